"""Templates equal to the published texts, and with the published tokenizers to the published token ids."""

import codecs
from functools import partial

import pytest
from mutants import Mutant

from minillama.tokenizer.added_tokens import AddedToken, Tokenizer
from minillama.train.sequence_loss import IGNORE, encode_segments
from minillama.train.templates import EOS, alpaca, chatml, llama2_chat, llama3_chat, question_answer, text_of, vicuna


def said(*turns, system=None):
    """Messages from contents in turn, user first."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    return messages + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def learned_text(segments):
    return "".join(segment.text for segment in segments if segment.learn)


def test_alpaca_is_the_readmes_text():
    with_input = (
        "<s>Below is an instruction that describes a task, paired with an input that provides further context."
        " Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nAdd them.\n\n### Input:\n2, 3\n\n### Response:\n5</s>"
    )
    without = (
        "<s>Below is an instruction that describes a task."
        " Write a response that appropriately completes the request.\n"
        "\n### Instruction:\nSay hi.\n\n### Response:\nHi</s>"
    )
    assert text_of(alpaca("Add them.", "2, 3", "5")) == with_input
    assert text_of(alpaca("Say hi.", output="Hi")) == without
    assert learned_text(alpaca("Add them.", "2, 3", "5")) == "5</s>"


def test_alpaca_leaves_braces_in_a_users_text_alone():
    text = text_of(alpaca("Explain {input} and {instruction}", "{output} {0}"))
    assert "### Instruction:\nExplain {input} and {instruction}\n\n### Input:\n{output} {0}\n\n" in text


def test_stackllama_is_the_published_text():
    assert text_of(question_answer("Why?", "So.")) == "<s>Question: Why?\n\nAnswer: So.</s>"
    assert learned_text(question_answer("Why?", "So.")) == " So.</s>"


def test_vicuna_is_fastchats_text():
    system = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives "
              "helpful, detailed, and polite answers to the user's questions.")  # fmt: skip
    ours = vicuna(said("Hello!", "Hi!", "How are you?", "Fine.", "Bye"))
    wanted = " USER: Hello! ASSISTANT: Hi!</s>USER: How are you? ASSISTANT: Fine.</s>USER: Bye ASSISTANT:"
    assert text_of(ours) == "<s>" + system + wanted
    assert learned_text(ours) == " Hi!</s> Fine.</s>"
    assert text_of(vicuna(said("a", "b", system="Be brief."))) == "<s>Be brief. USER: a ASSISTANT: b</s>"


def test_llama2_chat_is_metas_text():
    ours = llama2_chat(said(" Hello ", " Hi! ", "More?", "No.", "Bye", system="Be brief."))
    assert text_of(ours) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hello [/INST] Hi! </s>"
        "<s>[INST] More? [/INST] No. </s><s>[INST] Bye [/INST]"
    )
    assert learned_text(ours) == " Hi! </s> No. </s>"
    assert text_of(llama2_chat(said(" Hello ", "Hi"))) == "<s>[INST] Hello [/INST] Hi </s>"


def test_llama3_chat_is_metas_text():
    assert text_of(llama3_chat(said("Hi", "Hello", "Bye", system="Be brief."))) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert learned_text(llama3_chat(said("Hi", "Hello", "Bye", "Ciao"))) == "Hello<|eot_id|>Ciao<|eot_id|>"


def test_chatml_puts_no_system_text_of_its_own_and_the_newline_behind_an_answer_is_not_learned():
    turns = ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
             "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n")
    assert text_of(chatml(said("Hi", "Hello", "Bye"))) == turns
    assert text_of(chatml(said("Hi", "Hello", "Bye", system="S."))) == "<|im_start|>system\nS.<|im_end|>\n" + turns
    assert learned_text(chatml(said("Hi", "Hello", "Bye", "Ciao"))) == "Hello<|im_end|>Ciao<|im_end|>"
    for segment in chatml(said("Hi", "Hello", system="S.")):
        assert segment.control == (segment.text in ("<|im_start|>", "<|im_end|>"))


def test_without_an_answer_a_template_is_the_prompt_of_its_example():
    turns = ("Hi", "Hello", "Bye", "Ciao")
    for chat in (vicuna, llama2_chat, llama3_chat, chatml):
        prompt, full = chat(said(*turns[:3])), chat(said(*turns))
        assert full[: len(prompt)] == prompt and full[len(prompt)].learn
    for one in (lambda *answer: alpaca("a", "b", *answer), lambda *answer: question_answer("a", *answer)):
        assert one("c")[: len(one())] == one() and learned_text(one()) == ""


def test_an_empty_answer_is_an_answer():
    assert alpaca("a", output="")[-1] == question_answer("a", "")[-1] == vicuna(said("a", ""))[-1] == EOS
    assert llama2_chat(said("a", ""))[-1] == EOS and llama3_chat(said("a", ""))[-1].learn


def test_conversations_out_of_turn_are_refused():
    for wrong in ([], said("a", system="s")[:1], said("a", "b")[1:], said("a") * 2, said("a") + said(system="s")):
        for chat in (vicuna, llama2_chat, llama3_chat, chatml):
            with pytest.raises(ValueError, match="roles"):
                chat(wrong)


def test_llama2_refuses_messages_that_hold_its_marks():
    for tag in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"):
        for messages in (said(f"a {tag} b"), said("a", tag, "b"), said("a", system=tag)):
            with pytest.raises(ValueError, match="mark of Llama 2"):
                llama2_chat(messages)


# --- with the published tokenizers


class SentencePiece:
    """sentencepiece itself behind the interface of our tokenizers; decodes by decoding every prefix."""

    def __init__(self, path):
        sentencepiece = pytest.importorskip("sentencepiece", reason="compares with sentencepiece")
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.bos_id, self.eos_id = self.model.bos_id(), self.model.eos_id()

    def encode(self, text):
        return self.model.encode(text)

    def decoder(self):
        model, ids, given = self.model, [], ""

        class Decoder:
            def push(self, token):
                nonlocal given
                ids.append(token)
                whole = model.decode(ids)
                new = "" if whole.endswith("\ufffd") else whole[len(given) :]
                given += new
                return new

            def flush(self):
                return ""

        return Decoder()


class Llama3(Tokenizer):
    """llama-models' tokenizer behind the interface of our tokenizers."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.added = {name: AddedToken(name, index) for name, index in tokenizer.special_tokens.items()}
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id

    def encode(self, text):
        return self.tokenizer.encode(text, bos=False, eos=False)

    def decoder(self):
        model, utf8 = self.tokenizer.model, codecs.getincrementaldecoder("utf-8")()

        class Decoder:
            def push(self, token):
                return utf8.decode(model.decode_single_token_bytes(token))

            def flush(self):
                return utf8.decode(b"", final=True)

        return Decoder()


CONVERSATION = (
    "Write </s> and <s> and <|eot_id|> for me, 🦙!", "</s> <s>\n<|eot_id|> 🦙", "  two  spaces ",
    "一二三 — done.\n\n▁", "2023?", "Yes", "\nBye", "Bye 🦙",
)  # fmt: skip


def sentencepiece_tokenizers(weights):
    """sentencepiece, and our own tokenizer where it is built."""
    yield SentencePiece(weights / "llama_tokenizer.model")
    try:
        from minillama.tokenizer import load_tokenizer
    except ImportError:
        return
    yield load_tokenizer(weights / "llama_tokenizer.model")


def test_llama2_tokens_are_those_of_metas_program(weights):
    """Meta encodes each exchange by itself: BOS, "[INST] question [/INST] answer ", EOS."""
    oracle = SentencePiece(weights / "llama_tokenizer.model").model
    for tokenizer in sentencepiece_tokenizers(weights):
        tokens, labels = [], []
        for question, answer in zip(CONVERSATION[::2], CONVERSATION[1::2], strict=True):
            prompt = f"[INST] {question.strip()} [/INST]"
            turn = [1, *oracle.encode(f"{prompt} {answer.strip()} "), 2]
            tokens += turn
            context = 1 + len(oracle.encode(prompt))  # pieces never cross "] ", so the prompt's are the first
            assert turn[1:context] == oracle.encode(prompt)
            labels += [IGNORE] * context + turn[context:]
        ours = encode_segments(llama2_chat(said(*CONVERSATION)), tokenizer)
        assert ours.tokens == tokens and ours.labels == labels


def test_vicuna_masks_are_fastchats_rule_on_four_turns(weights):
    """FastChat counts: a turn has as many tokens as it has encoded alone with BOS (EOS makes up for BOS); its context
    those of the text up to "ASSISTANT: " with BOS, less two (BOS, and the space that belongs to the answer)."""
    oracle = SentencePiece(weights / "llama_tokenizer.model").model
    for tokenizer in sentencepiece_tokenizers(weights):
        ours = encode_segments(vicuna(said(*CONVERSATION)), tokenizer)
        place, system = 1, vicuna(said("a"))[1].text
        for question, answer in zip(CONVERSATION[::2], CONVERSATION[1::2], strict=True):
            start = f"{system}USER: {question} ASSISTANT: "
            turn, context, system = ([1, *oracle.encode(start + answer)], len([1, *oracle.encode(start)]) - 2, "")
            assert ours.tokens[place : place + len(turn)] == [*turn[1:], 2]
            learned = [label != IGNORE for label in ours.labels[place : place + len(turn)]]
            assert learned == [False] * context + [True] * (len(turn) - context)
            place += len(turn)
        assert place == len(ours.tokens) and ours.labels[0] == IGNORE


def test_llama3_tokens_are_those_of_chat_format():
    chat_format = pytest.importorskip("llama_models.llama3.chat_format", reason="compares with llama-models")
    from llama_models.datatypes import RawMessage, StopReason
    from llama_models.llama3.tokenizer import Tokenizer

    tokenizer = Tokenizer.get_instance()
    for messages in (said(*CONVERSATION[:7]), said("hi", system="\nBe brief.\n"), said("a\n", "\n\nb", "\n")):
        raw = [RawMessage(role=m["role"], content=m["content"], stop_reason=StopReason.end_of_turn) for m in messages]
        wanted = chat_format.ChatFormat(tokenizer).encode_dialog_prompt(raw).tokens
        ours = encode_segments(llama3_chat(messages), Llama3(tokenizer))
        assert ours.tokens == wanted
        learned = tokenizer.decode([label for label in ours.labels if label != IGNORE])
        assert learned == "".join(m["content"] + "<|eot_id|>" for m in messages if m["role"] == "assistant")


def test_control_words_typed_by_a_user_never_become_control_tokens(weights):
    words = "<s></s><unk><0x0A><|eot_id|><|begin_of_text|>"
    for tokenizer in sentencepiece_tokenizers(weights):
        tokens = encode_segments(vicuna(said(words, words)), tokenizer).tokens
        assert [t for t in tokens if t < 3] == [1, 2] and 13 not in tokens  # 13 is the byte 0x0A


plant = partial(Mutant, "minillama.train.templates")
ALPACA, VICUNA = test_alpaca_is_the_readmes_text, test_vicuna_is_fastchats_text
LLAMA2, LLAMA3 = test_llama2_chat_is_metas_text, test_llama3_chat_is_metas_text
PROMPT, TURNS = (
    test_without_an_answer_a_template_is_the_prompt_of_its_example,
    test_conversations_out_of_turn_are_refused,
)
CHATML = test_chatml_puts_no_system_text_of_its_own_and_the_newline_behind_an_answer_is_not_learned
REFUSES = test_llama2_refuses_messages_that_hold_its_marks
# fmt: off
MUTANTS = [
    plant("learn=True), EOS]", 'learn=True), Segment("</s>", control=True)]', ALPACA),
    plant("Segment(answer, learn=True)", "Segment(answer)", ALPACA),
    plant("ALPACA_WITH_INPUT if input else ALPACA_WITHOUT_INPUT", "ALPACA_WITH_INPUT", ALPACA),
    plant('before + instruction + after.replace("{input}", input)',
          'before.replace("{input}", input) + instruction + after', ALPACA),
    plant("Segment(answer, learn=True), EOS]", "Segment(answer, learn=True)]", ALPACA),
    plant("return segments if answer is None else", "return segments if not answer else",
          test_an_empty_answer_is_an_answer),
    plant("\\n\\nAnswer:", "\\nAnswer:", test_stackllama_is_the_published_text),
    plant("if system is None else system) + ", "if system is None else system) + '\\n' + ", VICUNA),
    plant("USER: {question} ASSISTANT:", "USER: {question} ASSISTANT: ", VICUNA),
    plant('f" {answer.strip()} "', 'f" {answer.strip()}"', LLAMA2),
    plant("{question.strip()} [/INST]", "{question} [/INST]", LLAMA2),
    plant('\\n<</SYS>>\\n\\n{question}", None', '\\n<</SYS>>\\n\\n{question}", system', LLAMA2),
    plant("if tag in message", "if False and tag in message", REFUSES),
    plant('"<|eot_id|>", learn, control', '"<|eot_id|>", False, control', LLAMA3),
    plant('else segments + _header("assistant")', "else segments", LLAMA3),
    plant('Segment("\\n\\n", alone=True)', 'Segment("\\n\\n")', test_llama3_tokens_are_those_of_chat_format),
    plant('Segment("<|im_end|>", learn', 'Segment("<|im_end|>", False', CHATML),
    plant('control=True), Segment("\\n")]', 'control=True), Segment("\\n", learn)]', CHATML),
    plant('Segment(message["content"], learn), Segment("<|im', 'Segment(message["content"]), Segment("<|im', CHATML),
    plant("if not rest or ", "if ", TURNS),
    plant("wanted[:len(rest)]:", "wanted[:len(rest)] and False:", TURNS),
]
# fmt: on
