"""The tokenizer's compiled core learns the same pieces and gives the same ids as the plain Python and sentencepiece."""

import pickle
import random
import shutil
import subprocess
import threading
import warnings
from pathlib import Path

import pytest
from mutants import Mutant
from tokenizer_texts import (
    CRUEL,
    MISTRAL,
    hand_made,
    mistral_model,
    model_bytes,
    own_model,
    processor,
    random_hand_made,
    random_ids,
    random_text,
    random_training,
    real_text,
    tiny_model,
    train_oracle,
)

from minillama.tokenizer import SentencePieceTokenizer, compiled, default_backend, train_bpe
from minillama.tokenizer.sentencepiece import Piece
from minillama.tokenizer.word_counts import TrainingReport, read_lines

built = pytest.mark.skipif(default_backend() != "cpp", reason=f"the compiled core is not built: {compiled.BUILD}")


def train(data, vocab_size, backend, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train_bpe([data], vocab_size, backend=backend, **options)


def need_core():
    """For laws that mutants call: marks do not count there."""
    if default_backend() != "cpp":
        pytest.skip(f"the compiled core is not built: {compiled.BUILD}")


def check_equal_training(data, vocab_size, **options):
    ours, plain = (train(data, vocab_size, backend, **options) for backend in ("cpp", "python"))
    assert ours.model == plain.model
    a, b = (vars(tokenizer.training_report) for tokenizer in (ours, plain))
    assert {**a, "seconds": 0, "backend": 0} == {**b, "seconds": 0, "backend": 0}


# ---- training ----------------------------------------------------------------------------------------------------

@built
@pytest.mark.parametrize("vocab_size", [1000, 8000])
def test_the_vocabulary_of_a_megabyte_is_sentencepieces(vocab_size):
    data = real_text(1_000_000)
    assert train(data, vocab_size, "cpp").pieces == SentencePieceTokenizer(train_oracle(data, vocab_size)).pieces


@built
@pytest.mark.long
@pytest.mark.parametrize("megabytes", [3, 10])
@pytest.mark.parametrize("vocab_size", [4000, 8000, 32000])
def test_the_vocabulary_of_many_megabytes_is_sentencepieces(vocab_size, megabytes):
    data = real_text(megabytes * 1_000_000)
    assert train(data, vocab_size, "cpp").pieces == SentencePieceTokenizer(train_oracle(data, vocab_size)).pieces


@built
@pytest.mark.parametrize("name", CRUEL)
def test_cruel_small_texts_give_the_same_vocabulary_and_report(name):
    for options in ({}, {"split_digits": False}, {"byte_fallback": False, "user_defined_symbols": ["ab", "▁a"]}):
        check_equal_training(CRUEL[name], 8000, hard_vocab_limit=False, **options)


def check_random_training(seeds):
    need_core()
    for seed in seeds:
        data, options = random_training(seed)
        check_equal_training(data, 5000, hard_vocab_limit=False, split_unspaced=seed % 4 == 3, **options)


def test_random_texts_and_options_give_the_same_vocabulary():
    check_random_training(range(80))


@pytest.mark.long
def test_many_random_texts_and_options_give_the_same_vocabulary():
    check_random_training(range(80, 4000))


@built
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_the_number_of_threads_changes_nothing(threads):
    data = real_text(700_000)
    assert train(data, 2000, "cpp", threads=threads).model == train(data, 2000, "cpp", threads=1).model


@built
def test_blocks_of_any_size_give_the_same_counts():
    """Lines, long lines and broken characters that begin in one block and end in another."""
    text = b"".join(CRUEL.values()) + b"\n" + b"z" * 9000 + b"\nlow lower\n" + "é".encode() * 3000 + b"\nend"
    results = []
    for size in (1, 2, 3, 7, 4192, 4193, len(text)):
        trainer = compiled.CompiledTrainer(["<s>"], 4192, 16, True, threads=2)
        for at in range(0, len(text), size):
            trainer._core.feed(text[at : at + size], False)
        trainer._core.feed(b"", True)
        report = trainer._core.report()
        results.append((report, trainer.choose_alphabet(0.9999), trainer.learn(300)))
    plain = TrainingReport()
    assert sum(1 for _ in read_lines([text], 4192, plain)) == results[0][0]["lines"] == plain.lines
    assert results[0][0]["long_lines"] == plain.long_lines > 2 and results[0][0]["bytes"] == plain.bytes
    assert all(result == results[0] for result in results)


# ---- encoding ----------------------------------------------------------------------------------------------------

def check_equal_encoding(model, texts):
    ours, plain = (SentencePieceTokenizer(model, backend=backend) for backend in ("cpp", "python"))
    for text in texts:
        assert ours.encode(text) == plain.encode(text), repr(text)


@built
@pytest.mark.parametrize("name", MISTRAL[:1])
def test_encoding_equals_plain_python_and_sentencepiece(name):
    rng = random.Random(1)
    texts = [random_text(rng) for _ in range(700)]
    ours, theirs = SentencePieceTokenizer(mistral_model(name), backend="cpp"), processor(mistral_model(name))
    assert [ours.encode(text) for text in texts] == theirs.encode(texts)
    check_equal_encoding(own_model(), texts)


@built
@pytest.mark.long
def test_a_hundred_thousand_strings_are_encoded_as_by_sentencepiece(weights):
    llama = (weights / "llama_tokenizer.model").read_bytes()
    for seed, model in enumerate([llama, own_model(), *map(mistral_model, MISTRAL)]):
        rng, ours, theirs = random.Random(seed), SentencePieceTokenizer(model, backend="cpp"), processor(model)
        for text in (random_text(rng, 30) for _ in range(20_000)):
            assert ours.encode(text) == theirs.encode(text), repr(text)


def check_mixtures(seeds):
    """Against sentencepiece: every kind of piece, unused and user-defined ones, all rules of spaces."""
    need_core()
    for seed in seeds:
        rng = random.Random(seed)
        model = random_hand_made(rng)
        ours, theirs = SentencePieceTokenizer(model, backend="cpp"), processor(model)
        for _ in range(20):
            text = "".join(rng.choices("ab\u2581cé  \n", k=rng.randrange(60)))
            assert ours.encode(text) == theirs.encode(text), (seed, text)
            ids = random_ids(rng, ours.vocab_size)
            assert ours.decode(ids) == theirs.decode(ids), (seed, ids)


@built
def test_a_user_defined_piece_may_be_the_first():
    letters = [Piece(letter, -1.0) for letter in "ab\u2581"]
    for pieces in ([Piece("ab", 0.0, 4), *letters], [*letters, Piece("ab", 0.0, 4)]):
        special = [Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3)]
        model = model_bytes(pieces + special, byte_fallback=False)
        ours, theirs = SentencePieceTokenizer(model, backend="cpp"), processor(model)
        assert ours.encode("aabb ab") == theirs.encode("aabb ab")


def test_any_mixture_of_pieces_and_rules_is_encoded_as_by_sentencepiece():
    check_mixtures(range(80))


@pytest.mark.long
def test_many_mixtures_of_pieces_and_rules_are_encoded_as_by_sentencepiece():
    check_mixtures(range(80, 5000))


@built
def test_long_words_are_joined_by_the_heap_as_by_looking():
    """Runs without any cut, around the sizes where the way of working changes: 24 bytes, 24 symbols."""
    rng = random.Random(3)
    sizes = [1, 2, 23, 24, 25, 26, 63, 64, 65, 66, 997]
    texts = ["".join(rng.choices("ab", k=size)) for size in sizes for _ in range(8)]
    pieces = {"".join(rng.choices("ab", k=rng.randrange(2, 7))): -float(rng.randrange(9)) for _ in range(40)}
    model = hand_made([Piece(text, score) for text, score in {"a": -99.0, "b": -99.0, **pieces}.items()])
    check_equal_encoding(model, texts + [" ".join(texts)])


@built
def test_a_megabyte_in_one_line_is_encoded_with_and_without_spaces():
    text = real_text(1_000_000).decode("utf-8", "ignore").replace("\n", " ")
    ours, theirs = SentencePieceTokenizer(own_model(), backend="cpp"), processor(own_model())
    assert ours.encode(text) == theirs.encode(text)
    short = text[:200_000].replace(" ", "")
    assert ours.encode(short) == theirs.encode(short)


@built
def test_a_cache_that_overflows_changes_nothing():
    """More different segments than its 65,536, of all lengths, the first ones again at the end."""
    rng = random.Random(5)
    words = [" " * rng.randrange(9) + "".join(rng.choices("lower", k=rng.randrange(1, 30))) for _ in range(90_000)]
    text = " ".join(words + words[:5000])
    ours = SentencePieceTokenizer(tiny_model(), backend="cpp")
    assert ours.encode(text) == processor(tiny_model()).encode(text)


@built
def test_threads_may_share_a_tokenizer():
    tokenizer = SentencePieceTokenizer(own_model(), backend="cpp")
    texts = [real_text(40_000, seed).decode("utf-8", "ignore") for seed in range(4)]
    expected, got = [tokenizer.encode(text) for text in texts], {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: [tokenizer.encode(texts[i]) for _ in range(20)]}))
               for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(got[i] == [expected[i]] * 20 for i in range(4))


# ---- memory ------------------------------------------------------------------------------------------------------

@pytest.mark.long
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizers, tmp_path):
    """The core alone, without Python, on random corpora, vocabularies and texts: see bpe_fuzz.cpp."""
    root, program = Path(__file__).parents[2], tmp_path / "bpe_fuzz"
    sources = [*(root / "csrc/cpu").glob("bpe*.cpp"), root / "csrc/cpu/word_counts.cpp", root / "tests/bpe_fuzz.cpp"]
    compiler = shutil.which("c++") or pytest.skip("needs a C++ compiler")
    built = subprocess.run([compiler, "-std=c++17", "-O1", "-g", f"-fsanitize={sanitizers}", "-pthread", "-Icsrc",
                            "-fno-sanitize-recover=all", *map(str, sources), "-o", str(program)],
                           cwd=root, capture_output=True, text=True)
    if built.returncode and "cannot find -l" in built.stderr:
        pytest.skip(f"the compiler has no {sanitizers} sanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, "100"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "all laws hold\n"), done.stderr


# ---- the door ----------------------------------------------------------------------------------------------------

@built
def test_a_pickled_tokenizer_keeps_what_was_asked_for():
    for backend in ("python", "cpp", None):
        tokenizer = pickle.loads(pickle.dumps(SentencePieceTokenizer(tiny_model(), backend=backend)))
        assert tokenizer.backend == (backend or default_backend()) and tokenizer.encode("low")


@built
def test_errors_of_the_core_are_pythons():
    tokenizer = SentencePieceTokenizer(tiny_model(), backend="cpp")
    with pytest.raises(ValueError, match="lone surrogate .* at position 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TypeError):
        tokenizer.encoder_of(True).encode(7)
    core = compiled.CompiledTrainer(["<s>"], 4192, 16, True)
    with pytest.raises(RuntimeError, match="before choose_alphabet"):
        core.learn(1)


def test_a_backend_that_is_missing_or_unknown_is_an_error(monkeypatch):
    monkeypatch.setattr(compiled, "_core", lambda: None)
    assert default_backend() == "python"
    with pytest.raises(RuntimeError, match="python setup.py build_ext --inplace"):
        train_bpe(["low"], 265, backend="cpp")
    with pytest.raises(RuntimeError, match="not built"):
        SentencePieceTokenizer(tiny_model(), backend="cpp")
    with pytest.raises(ValueError, match="choose 'python' or 'cpp'"):
        train_bpe(["low"], 265, backend="rust")


def check_japanese():
    need_core()
    check_equal_training(CRUEL["japanese"], 8000, hard_vocab_limit=False)


def check_wide_digits():
    need_core()
    check_equal_training("１０ ０１ １０ ０１".encode(), 400, hard_vocab_limit=False)


_DOOR = "minillama.tokenizer.compiled"
MUTANTS = [
    Mutant(_DOOR, '"Hiragana": 2, ', "", check_japanese),
    Mutant(_DOOR, "[*UNSPACED, *HAN_LIKE]", "UNSPACED", lambda: (
        need_core(), check_equal_training(CRUEL["japanese"], 8000, hard_vocab_limit=False, split_unspaced=True))),
    Mutant(_DOOR, "(0x30FC, 0x30FC, ", "(0x30FD, 0x30FD, ", check_japanese),
    Mutant(_DOOR, "if split_digits:", "if True:", lambda: check_random_training(range(20))),
    Mutant(_DOOR, "DIGIT_CLASS), (0xFF10", "DIGIT_CLASS), (0xFF11", check_wide_digits),
    Mutant(_DOOR, "whitespace_normalizer(pieces, rules) if special", "None if special",
           lambda: check_mixtures(range(30))),
]
