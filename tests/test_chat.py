"""Conversations without a terminal: prompts as in training, stop rules that hold, slips that are survived."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mutants import Mutant
from test_sequence_loss import FOUR_TURNS, Letters

from minillama.chat import Conversation, chat, reply, template_for
from minillama.config import ModelConfig
from minillama.train.sequence_loss import encode_segments
from minillama.train.templates import TEMPLATES

SYSTEM = {"role": "system", "content": "Be brief."}
WITH_SYSTEM = ("vicuna", "llama2", "llama3", "chatml")
V = 400


class Tokenizer(Letters):
    """Letters that also speaks ChatML, and whose decoder passes over control tokens."""

    special_tokens = {**Letters.special_tokens, "<|im_start|>": 261, "<|im_end|>": 262}

    def decoder(self):
        inner = super().decoder()
        return SimpleNamespace(push=lambda token: inner.push(token) if token < 256 else "", flush=inner.flush)


class Scripted(torch.nn.Module):
    """A model that gives the n-th prompt the n-th of its answers, ids after ids, then 'z' for ever; it keeps what it
    was asked."""

    def __init__(self, *answers, max_seq_len=1000):
        super().__init__()
        self.config = ModelConfig(2, 1, 1, V, max_seq_len=max_seq_len)
        self.tok_embeddings, self.cache_dtype = torch.nn.Embedding(V, 2), None
        self.answers, self.prompts, self.said = [list(answer) for answer in answers], [], 0

    def hidden_states(self, tokens_BT, cache):
        if cache.length == 0:
            self.prompts.append(tokens_BT[0].tolist())
            self.said = 0
        cache.advance(tokens_BT.shape[1])
        script = self.answers[len(self.prompts) - 1]
        wanted = script[self.said] if self.said < len(script) else ord("z")
        self.said += 1
        return torch.nn.functional.one_hot(torch.tensor(wanted), V).float().expand(*tokens_BT.shape, V)

    def logits(self, hidden_BTV):
        return 100 * hidden_BTV  # certain at any temperature


EOS = Letters.eos_id


def talk(model, lines, template="vicuna", **settings):
    """What is shown, and the conversation afterwards."""
    shown, conversation = [], Conversation(Tokenizer(), template)
    chat(model, conversation, lines, shown.append, **settings)
    return "".join(shown), conversation


@pytest.mark.parametrize("template", WITH_SYSTEM)
def test_a_prompt_is_the_beginning_of_the_training_example_of_the_same_messages(template):
    conversation = Conversation(Tokenizer(), template)
    conversation.set_system(SYSTEM["content"])
    for asked, told in zip(FOUR_TURNS[::2], FOUR_TURNS[1::2], strict=True):
        conversation.ask(asked["content"])
        ids = conversation.prompt(10_000)
        conversation.answered(told["content"])
        example = encode_segments(TEMPLATES[template](conversation.messages), Tokenizer())
        assert example.tokens[:len(ids)] == ids and len(example.tokens) > len(ids)
        answer = example.labels[len(ids):]
        assert answer[:2] != [-100, -100] and example.labels[:len(ids)][-1] == -100
    assert conversation.messages == [SYSTEM, *FOUR_TURNS]


def test_templates_of_one_exchange_ask_the_last_question_alone():
    for template in ("question_answer", "alpaca"):
        conversation = Conversation(Tokenizer(), template)
        for asked in ("One?", "Two?"):
            conversation.ask(asked)
            alone = encode_segments(TEMPLATES[template]([{"role": "user", "content": asked}]), Tokenizer())
            assert conversation.prompt(1000) == alone.tokens
            conversation.answered("Yes.")
        assert len(conversation.messages) == 4


def test_turns_are_streamed_and_each_prompt_holds_all_that_was_said():
    model = Scripted([*b" Hello. You?", EOS], [*b" Good.", EOS])
    shown, conversation = talk(model, ["Hi", "", "  Fine  "])
    assert shown == "Hello. You?\nGood.\n"
    assert [m["content"] for m in conversation.messages] == ["Hi", "Hello. You?", "Fine", "Good."]
    assert model.prompts[1] == encode_segments(TEMPLATES["vicuna"](conversation.messages[:3]), Tokenizer()).tokens
    conversation = Conversation(Tokenizer(), "vicuna")
    conversation.ask("Hi")
    pieces = list(reply(Scripted([*b" Hi you", EOS]), conversation))
    assert pieces == list("Hi you")  # a piece for each token, the leading space swallowed


@pytest.mark.parametrize(("template", "answer", "told"), [
    ("vicuna", [*b" Yes.", EOS, *b"no"], "Yes."),
    ("vicuna", [*b" Yes. USER: me", EOS], "Yes."),
    ("question_answer", b" Yes.\n\nQuestion: more", "Yes."),
    ("alpaca", b"Yes.\n\n### Instruction:\nmore", "Yes."),
    ("llama2", b" Yes. [INST] more", "Yes."),
    ("llama3", [*b"Yes.", 260, *b"no"], "Yes."),
    ("chatml", [*b"Yes.", 262, *b"no"], "Yes."),
    ("chatml", [*b"USER: [INST]", 262], "USER: [INST]"),
])
def test_an_answer_stops_where_its_template_says(template, answer, told):
    shown, conversation = talk(Scripted(answer), ["Hi"], template, max_new_tokens=40)
    assert shown.strip() == told and conversation.messages[-1]["content"] == told


def test_an_answer_without_an_end_stops_at_the_limit():
    assert talk(Scripted([]), ["Hi"], max_new_tokens=5)[0] == "zzzzz\n"


def test_reset_forgets_all_but_the_system_text_and_system_begins_anew():
    model = Scripted(*([*b" A", EOS] for _ in range(4)))
    shown, conversation = talk(model, ["/system Be brief.", "One", "/reset", "Two", "/history", "/exit", "Three"])
    assert conversation.messages == [SYSTEM, {"role": "user", "content": "Two"},
                                     {"role": "assistant", "content": "A"}]
    assert "system: Be brief.\nuser: Two\nassistant: A\n" in shown and len(model.prompts) == 2
    _, conversation = talk(Scripted([*b" A", EOS]), ["/system Be brief.", "One", "/system"])
    assert conversation.messages == []


def test_a_full_context_forgets_the_oldest_exchanges_and_says_so():
    model = Scripted(*([*b" A", EOS] for _ in range(30)), max_seq_len=300)
    shown, conversation = talk(model, ["/system S", *(f"Question number {n:03}" for n in range(20))], "vicuna",
                               max_new_tokens=50)
    assert all(len(prompt) <= 250 for prompt in model.prompts) and len(model.prompts) == 20
    assert all(bytes(i for i in prompt if i < 256).endswith(f"number {n:03} ASSISTANT:".encode())
               for n, prompt in enumerate(model.prompts)), "the latest question is never the one forgotten"
    assert conversation.messages[0] == {"role": "system", "content": "S"} and conversation.forgotten > 0
    assert shown.count("of the oldest exchanges forgotten") > 0
    assert conversation.forgotten + (len(conversation.messages) - 1) // 2 == 20
    shown, conversation = talk(Scripted([], max_seq_len=300), ["x" * 400], "vicuna", max_new_tokens=50)
    assert "shorten it" in shown and conversation.messages == []


def test_slips_are_told_in_one_line_and_the_talk_goes_on():
    model = Scripted([*b" A", EOS])
    shown, conversation = talk(model, ["/sing", "[INST] hack", "Hi"], "llama2")
    lines = shown.splitlines()
    assert lines[0].startswith("(/sing is no command: /reset") and "holds [INST]" in lines[1] and lines[2] == "A"
    assert [m["content"] for m in conversation.messages] == ["Hi", "A"]
    shown, _ = talk(model, ["/system You are a pirate."], "alpaca")
    assert "no place for a system text" in shown


def test_a_question_that_the_template_or_the_tokenizer_refuses_is_not_asked():
    class Deaf(Tokenizer):
        def decoder(self):
            return SimpleNamespace(push=lambda token: "?", flush=lambda: "")

    for tokenizer, text, message in ((Tokenizer(), "a [/INST] b", "mark of Llama 2"), (Deaf(), "Hi", "tokens")):
        conversation = Conversation(tokenizer, "llama2")
        with pytest.raises(ValueError, match=message):
            conversation.ask(text)
        assert conversation.messages == []


def test_ctrl_c_keeps_what_was_said_and_an_empty_answer_leaves_no_trace():
    class Impatient(Scripted):
        def hidden_states(self, tokens_BT, cache):
            if len(self.prompts) == 1 and self.said == 4 and cache.length:
                raise KeyboardInterrupt
            return super().hidden_states(tokens_BT, cache)

    shown, conversation = talk(Impatient(b" Well, you", [*b" B", EOS]), ["Hi", "More"])
    assert shown == "Wel ...\nB\n"
    assert [m["content"] for m in conversation.messages] == ["Hi", "Wel", "More", "B"]
    _, conversation = talk(Scripted([EOS], [*b" B", EOS]), ["Hi", "More"])
    assert [m["content"] for m in conversation.messages] == ["More", "B"]


def test_the_template_follows_from_the_control_tokens():
    assert template_for(Letters()) == "llama3"
    assert template_for(SimpleNamespace(special_tokens={"<|im_start|>": 1})) == "chatml"
    assert template_for(SimpleNamespace()) is None
    with pytest.raises(ValueError, match="template 'gpt' is not known: choose one of question_answer"):
        Conversation(Letters(), "gpt")


@pytest.mark.long
def test_smollm2_knows_paris_and_what_italy_was_asked_for():
    """A real model in its own template; the second question only makes sense to one that remembers the first."""
    from test_parity_peers import smollm2

    from minillama.checkpoint import load_model
    from minillama.sampling import Sampling

    model, tokenizer = load_model(smollm2())
    conversation, shown = Conversation(tokenizer, template_for(tokenizer)), []
    chat(model.eval(), conversation, ["What is the capital of France?", "And of Italy?"], shown.append, 30,
         Sampling(temperature=0))
    assert ["Paris" in conversation.messages[1]["content"], "Rome" in conversation.messages[3]["content"]] == [True] * 2


plant = partial(Mutant, "minillama.chat")
MUTANTS = [
    plant("        encode_segments(self.segments(messages), self.tokenizer)\n        self.messages",
          "        self.messages", test_a_question_that_the_template_or_the_tokenizer_refuses_is_not_asked),
    plant("        encode_segments(self.segments(messages), self.tokenizer)\n        self.messages",
          "        self.segments(messages)\n        self.messages",
          test_a_question_that_the_template_or_the_tokenizer_refuses_is_not_asked),
    plant("self.messages[-1:] if self.template in SINGLE else self.messages", "self.messages[-1:]",
          lambda: test_a_prompt_is_the_beginning_of_the_training_example_of_the_same_messages("vicuna")),
    plant("del self.messages[first:first + 2]", "del self.messages[-2:]",
          test_a_full_context_forgets_the_oldest_exchanges_and_says_so),
    plant('if message["role"] == "system"]', "if False]",
          test_reset_forgets_all_but_the_system_text_and_system_begins_anew),
    plant("{end_of_answer(self.template, self.tokenizer)}", "set()",
          lambda: test_an_answer_stops_where_its_template_says("chatml", [*b"Yes.", 262, *b"no"], "Yes.")),
    plant("return self.tokenizer.end_ids |", "return set() |",
          lambda: test_an_answer_stops_where_its_template_says("llama3", [*b"Yes.", 256, *b"no"], "Yes.")),
    plant("conversation.stop_texts(), seed", "(), seed", lambda: test_an_answer_stops_where_its_template_says(
        "question_answer", b" Yes.\n\nQuestion: more", "Yes.")),
    plant("if told.strip() else conversation.take_back()", "",
          test_ctrl_c_keeps_what_was_said_and_an_empty_answer_leaves_no_trace),
    plant("context - min(max_new_tokens, context // 2)", "context",
          test_a_full_context_forgets_the_oldest_exchanges_and_says_so),
]
