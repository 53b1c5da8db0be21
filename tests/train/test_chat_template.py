"""Templates in Jinja: ours say what our Python says, a model's own what transformers renders, and no message poses."""

import random

import pytest
from mutants import Mutant
from test_parity_peers import smollm2
from test_tiktoken import tiny_file

from minillama.chat import Conversation
from minillama.checkpoint import find_tokenizer, open_weights
from minillama.tokenizer import train_bpe
from minillama.tokenizer.added_tokens import AddedToken, TokenSettings
from minillama.tokenizer.tiktoken import read_tiktoken
from minillama.train.chat_template import (
    JINJA,
    chosen_template,
    end_of_answer,
    own_template,
    pair_function,
    template_for,
)
from minillama.train.sequence_loss import IGNORE, encode_segments
from minillama.train.templates import TEMPLATES, text_of

TURNS = {"system": "Be brief.", "user": " What <s> is\n", "assistant": "It </s> is <|im_end|> 7. "}


def said(roles):
    return [{"role": role, "content": TURNS[role]} for role in roles]


def tokenizer_for(name):
    if name == "llama3":
        return read_tiktoken(tiny_file())
    tokenizer = train_bpe(["the cat and the hat"] * 20, 280)
    return tokenizer.obey(TokenSettings((AddedToken("<|im_start|>", 280), AddedToken("<|im_end|>", 281))))


ROLES = [["user"], ["user", "assistant"], ["user", "assistant", "user"], ["user", "assistant"] * 2]
ROLES += [["system", *roles] for roles in ROLES]


@pytest.mark.parametrize("name", JINJA)
def test_our_templates_in_jinja_give_the_tokens_and_labels_of_our_own_functions(name):
    tokenizer = tokenizer_for(name)
    tokenizer.chat_template = JINJA[name]
    assert template_for(tokenizer) == name and TEMPLATES.keys() == JINJA.keys()
    for roles in ROLES:
        try:
            wanted = encode_segments(TEMPLATES[name](said(roles)), tokenizer)
        except ValueError:
            with pytest.raises(ValueError, match="no place for a system text"):
                own_template(tokenizer, said(roles))
            continue
        assert encode_segments(own_template(tokenizer, said(roles)), tokenizer) == wanted, roles


OWN = {
    "plain": "{% for m in messages %}\n<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
             "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "always asks": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                   "<|im_start|>assistant\n",
    "marked": "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
              "<|im_end|>{% endgeneration %}{% else %}Q:{{ m.content }} A:{% endif %}{% endfor %}",
    "loops": "{%- for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}{{ m.content | tojson }}"
             "{% endfor -%}\n",
}


@pytest.mark.parametrize("name", OWN)
def test_a_models_own_template_is_the_text_that_transformers_renders(name):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = OWN[name]
    assert template_for(tokenizer) == "own"
    for roles in ROLES:
        asks = roles[-1] == "user"
        [[wanted], _] = utils.render_jinja_template([said(roles)], chat_template=OWN[name], add_generation_prompt=asks,
                                                    bos_token="<s>", eos_token="</s>")
        assert text_of(own_template(tokenizer, said(roles))) == wanted, roles


@pytest.mark.parametrize("name", ["plain", "always asks", "marked"])
def test_what_is_learned_are_the_answers_and_the_token_that_ends_them(name):
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = OWN[name]
    answer = TURNS["assistant"].strip() if name == "plain" else TURNS["assistant"]
    for roles in ROLES:
        segments = own_template(tokenizer, said(roles))
        learned = "".join(segment.text for segment in segments if segment.learn)
        if name == "always asks":  # Jinja drops a program's last newline: the model has to write it
            learned = learned.replace("\nIt", "It")
        assert learned == (answer + "<|im_end|>") * roles.count("assistant"), roles
    assert end_of_answer("own", tokenizer) == 281
    assert pair_function("own", tokenizer)("a", "b")[-1].text == "<|im_end|>"
    assert not any(segment.learn for segment in pair_function("own", tokenizer)("a"))


THINKS = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n"
          "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")


def test_a_template_that_drops_thoughts_from_earlier_answers_asks_a_second_time():
    """DeepSeek R1's kind: an answer does not stand where its prompt ended. Only to learn from it is refused."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = THINKS
    talk = Conversation(tokenizer)
    for words in ("hi", "why?"):
        talk.ask(words)
        wanted, _ = utils.render_jinja_template([talk.messages], chat_template=THINKS, add_generation_prompt=True)
        assert text_of(own_template(tokenizer, talk.messages)) == wanted[0]
        assert talk.prompt(500) == encode_segments(own_template(tokenizer, talk.messages), tokenizer).tokens
        talk.answered("so</think>I see")
    with pytest.raises(ValueError, match="which part is learned cannot be told"):
        own_template(tokenizer, talk.messages)


def test_names_of_control_tokens_in_a_message_stay_text():
    tokenizer, rng = tokenizer_for("chatml"), random.Random(3)
    tokenizer.chat_template = OWN["plain"]
    for _ in range(100):
        words = rng.choices(["<|im_end|>", "<|im_start|>", "<s>", "</s>", "<", "|", "a", "system\n"], k=6)
        talk = [{"role": "user", "content": "".join(words)}]
        ids = encode_segments(own_template(tokenizer, talk), tokenizer).tokens
        assert [ids.count(index) for index in (280, 281, 1, 2)] == [2, 1, 0, 0], words


@pytest.mark.parametrize(("program", "message"), [
    ("{% if %}", "is no Jinja program"), ("{{ ''.__class__.__mro__ }}", "refuses this conversation"),
    ("{{ raise_exception('no tools') }}", "refuses this conversation \\(no tools\\)"),
    ("{{ messages[7].role }}", "refuses this conversation"),
    ("{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}", "part is learned cannot be told")])
def test_a_template_that_cannot_serve_is_refused_in_one_line(program, message):
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = program
    with pytest.raises(ValueError, match=message) as caught:
        own_template(tokenizer, said(["user", "assistant", "user", "assistant"]))
    assert "\n" not in str(caught.value) and "--template question_answer" in str(caught.value)


def test_the_template_is_the_one_asked_for_else_the_models_else_the_usual_one_and_is_kept():
    tokenizer = tokenizer_for("alpaca")
    assert template_for(tokenizer) == "chatml"
    tokenizer.added = {}
    assert chosen_template(None, tokenizer, "alpaca") == ("alpaca", "template alpaca, for the model names none")
    assert tokenizer.chat_template == JINJA["alpaca"]
    assert chosen_template(None, tokenizer, "vicuna", "M") == ("alpaca", "template alpaca")
    assert chosen_template("vicuna", tokenizer, "alpaca", "M") == (
        "vicuna", "template vicuna: M was tuned in alpaca, expect worse answers")
    with pytest.raises(ValueError, match="M brings no template of its own: choose one of question_answer"):
        chosen_template("own", tokenizer, "alpaca", "M")
    with pytest.raises(ValueError, match="template 'gpt' is not known"):
        pair_function("gpt", tokenizer)


def test_smollm2s_own_file_asks_as_transformers_does():
    """Its GGUF brings a chat_template that puts a system text first where there is none."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tokenizer = find_tokenizer(open_weights(smollm2()))
    assert not tokenizer.begins and template_for(tokenizer) == "own"
    talk = [{"role": "user", "content": "The capital of France is"}]
    [[wanted], _] = utils.render_jinja_template([talk], chat_template=tokenizer.chat_template,
                                                add_generation_prompt=True)
    ids = encode_segments(own_template(tokenizer, talk), tokenizer)
    assert tokenizer.decode(ids.tokens, show_special=True) == wanted and set(ids.labels) == {IGNORE}
    assert tokenizer.encode(talk[0]["content"]) == [504, 3575, 282, 4649, 314]


MODULE, LEARNED = "minillama.train.chat_template", test_what_is_learned_are_the_answers_and_the_token_that_ends_them
MUTANTS = [
    Mutant(MODULE, 'if messages[-1]["role"] != "assistant":', "if False:",
           test_a_template_that_drops_thoughts_from_earlier_answers_asks_a_second_time),
    Mutant(MODULE, "content = content.replace(name, name[0] + APART + name[1:])", "pass",
           test_names_of_control_tokens_in_a_message_stay_text),
    Mutant(MODULE, "rest.index(end) + len(end)", "rest.index(end)", lambda: LEARNED("plain")),
    Mutant(MODULE, "place % 2 == 1", "place % 2 == 0", lambda: LEARNED("marked")),
]
