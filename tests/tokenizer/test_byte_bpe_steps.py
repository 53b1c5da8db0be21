"""Compiled training of byte-level BPE learns the plain form's pairs, one by one, whatever the text and the pattern."""

import random
import types

import pytest
from mutants import Mutant
from tokenizer_texts import CRUEL, random_text, real_text

from minillama.tokenizer import byte_bpe_steps, byte_bpe_training, compiled, default_backend
from minillama.tokenizer.byte_bpe import GPT2_WORDS, LLAMA3_WORDS, SINGLE_DIGITS
from minillama.tokenizer.byte_bpe_training import train_byte_bpe

CUTS = {"gpt2": [GPT2_WORDS], "llama3 and gpt4": [LLAMA3_WORDS], "digits": [SINGLE_DIGITS],
        "digits, then gpt2": [SINGLE_DIGITS, GPT2_WORDS]}
ODD = {"no text": [], "empty": [""], "one byte": ["a"], "one character": ["猫"], "one letter": ["a" * 33],
       "one letter, odd and even": ["a" * n for n in range(9)], "spaces": [" " * 20 + "\n" * 7],
       "chinese": ["我们都是木头人，不许说话不许动。木头人不许动。"], "emoji": [CRUEL["emoji"].decode()],
       "Latin-1": ["".join(map(chr, range(256))) * 2], "NUL": ["\0\0a\0\0a"]}
MANY = 1 << 20  # more than there are pairs


def need_core():
    """For laws that mutants call: marks do not count there."""
    if default_backend("ByteBpeTrainer") != "cpp":
        pytest.skip(f"not built: {compiled.BUILD}")


def equal_pairs(texts, patterns, most=MANY):
    ours = byte_bpe_steps.learn_pairs(texts, patterns, most)
    assert ours == byte_bpe_training.learn_pairs(texts, patterns, most)
    return ours


def check_ties(seeds):
    """Few letters, so that most counts are equal, to the end and to each number of pairs before it."""
    need_core()
    for seed in seeds:
        draw = random.Random(seed)
        letters = draw.choice(["ab", "abc ", "aé猫 \n", "a1 2", "🦙a ", "\x80ÿ\xa0a", "zyx  \r\n'sS"])
        texts = ["".join(draw.choices(letters, k=draw.randrange(80))) for _ in range(draw.randrange(1, 4))]
        patterns = draw.choice(list(CUTS.values()))
        pairs = equal_pairs(texts, patterns)
        for most in (0, len(pairs) // 2, len(pairs)):
            assert byte_bpe_steps.learn_pairs(texts, patterns, most) == pairs[:most]


def check_odd_texts():
    need_core()
    for patterns in CUTS.values():
        for texts in ODD.values():
            equal_pairs(texts, patterns)


def test_ties_fall_alike():
    check_ties(range(40))


def test_odd_texts_give_the_same_pairs():
    check_odd_texts()


def check_one_letter():
    """A line of a megabyte without a space."""
    need_core()
    for size in (10, 20):
        pairs = byte_bpe_steps.learn_pairs(["a" * 2**size, "\n"], [GPT2_WORDS], MANY)
        assert pairs == [(b"a" * 2**n, b"a" * 2**n) for n in range(size)]


def test_one_letter_is_doubled_until_one_token_is_left():
    check_one_letter()


@pytest.mark.parametrize("cut", CUTS)
def test_real_and_random_text_give_the_same_pairs(cut):
    need_core()
    draw = random.Random(cut)
    equal_pairs([real_text(3_000).decode("utf-8", "ignore"), *(random_text(draw) for _ in range(20))], CUTS[cut], 200)


def test_more_pairs_than_one_step_are_learnt():
    need_core()
    text = real_text(9_000, 3).decode("utf-8", "ignore")
    for most in (byte_bpe_steps.STEP, byte_bpe_steps.STEP + 1):
        assert len(equal_pairs([text], [LLAMA3_WORDS], most)) == most


@pytest.mark.long
def test_a_line_of_a_megabyte_gives_the_same_pairs():
    """One word, of two letters in no order."""
    need_core()
    draw = random.Random(5)
    line = "".join(draw.choices("ab", k=1000)) * 1000
    assert len(equal_pairs([line + "\n"], [GPT2_WORDS], 3)) == 3


@pytest.mark.long
def test_many_random_texts_give_the_same_pairs():
    check_ties(range(40, 4000))


@pytest.mark.long
@pytest.mark.parametrize("pattern", ["gpt2", "llama3"])
def test_a_megabyte_gives_the_same_tokenizer(pattern, tmp_path):
    need_core()
    path = tmp_path / "text"
    path.write_bytes(real_text(1_000_000))
    ours, plain = (train_byte_bpe(path, 4000, pattern, backend=backend) for backend in ("cpp", "python"))
    assert ours.merges() == plain.merges() and list(ours.ids.items()) == list(plain.ids.items())
    assert (ours.backend, plain.backend) == ("cpp", "python")


def test_files_bytes_and_str_are_read_alike(tmp_path):
    """A broken byte is U+FFFD, in both forms."""
    data = "low lower 猫猫".encode() + b"\xff low"
    (tmp_path / "text").write_bytes(data)
    sources = tmp_path / "text", [data], [data.decode("utf-8", "replace")]
    first, *others = ([train_byte_bpe(source, 264, backend=backend).merges() for source in sources]
                      for backend in dict.fromkeys(("python", default_backend("ByteBpeTrainer"))))
    assert first[0] == first[1] == first[2] and all(other == first for other in others)


def test_the_first_tokens_are_the_bytes_by_their_printable_characters():
    """"!" is byte 33 and the first of them; the space, byte 32, comes behind those that are spelled as themselves."""
    assert byte_bpe_steps.FIRST_TOKENS[0] == b"!" and byte_bpe_steps.FIRST_TOKENS[-1] == b"\xad"
    assert byte_bpe_steps.FIRST_TOKENS.index(b" ") == 188 + 32
    assert sorted(byte_bpe_steps.FIRST_TOKENS) == [bytes([byte]) for byte in range(256)]


def test_the_core_refuses_what_it_cannot_begin_with():
    need_core()
    core = compiled._core()
    for first in (b"", bytes(range(255)), bytes(256), bytes(range(256)) + b"a", bytes(range(255)) + b"\0"):
        core.ByteBpeTrainer(bytes(range(256)), [], [0]).learn(1)  # a whole set, of which nothing may be left
        with pytest.raises(ValueError, match="begins with each of the 256 bytes once"):
            core.ByteBpeTrainer(first, [], [0]).learn(1)
    with pytest.raises(ValueError, match="a pattern that is not known"):
        core.ByteBpeTrainer(bytes(range(256)), [], [3])
    trainer = core.ByteBpeTrainer(bytes(range(256)), [], [0])
    assert trainer.learn(1) == []
    with pytest.raises(RuntimeError, match="feed was called after learn"):
        trainer.feed("a")


@pytest.mark.parametrize("core", [None, types.SimpleNamespace(BpeEncoder=1, BpeTrainer=1)])
def test_without_the_compiled_trainer_asking_for_it_is_refused_and_training_is_plain(monkeypatch, core):
    """Without a library, and with one that was built before it had this trainer."""
    wanted = train_byte_bpe(["low low lower"], 262, backend="python").merges()
    monkeypatch.setattr(compiled, "_core", lambda: core)
    monkeypatch.setattr(byte_bpe_steps, "learn_pairs", None)
    with pytest.raises(RuntimeError, match="backend 'cpp' is not built here. In the checkout, with a C.. compiler: "):
        train_byte_bpe(["low low lower"], 262, backend="cpp")
    assert default_backend("ByteBpeTrainer") == "python"
    assert train_byte_bpe(["low low lower"], 262).merges() == wanted


STEPS, TRAINING = "minillama.tokenizer.byte_bpe_steps", "minillama.tokenizer.byte_bpe_training"
MUTANTS = [
    Mutant(STEPS, "in sorted(CHARACTER_TO_BYTE)]", "in sorted(CHARACTER_TO_BYTE)[::-1]]",
           test_the_first_tokens_are_the_bytes_by_their_printable_characters),
    Mutant(STEPS, "min(most - len(pairs), STEP)", "min(most, STEP)", test_more_pairs_than_one_step_are_learnt),
    Mutant(STEPS, "tokens.append(tokens[left] + tokens[right])", "tokens.append(tokens[right] + tokens[left])",
           lambda: check_ties(range(20))),
    Mutant(TRAINING, "trainer.counts[pair] < 1", "trainer.counts[pair] < 0", lambda: check_ties(range(40))),
]
