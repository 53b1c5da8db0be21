"""Texts and models for tokenizer tests: real, cruel, random and hand-made ones; and the sentencepiece oracle."""

import io
import itertools
import random
import sysconfig
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from minillama.tokenizer import train_bpe
from minillama.tokenizer.protobuf import write_fields
from minillama.tokenizer.sentencepiece import BYTE_PIECES, Piece, model_bytes

# words of many scripts; the real text is mostly ASCII
_FOREIGN = ("Straße größer naïve façade Ελλάδα λόγος Москва слово язык שלום עולם مرحبا بالعالم हिन्दी भाषा ภาษาไทย "
            "日本語のテキスト ひらがな カタカナー 汉语 你好世界 한국어 단어 Việt Nam ngôn ngữ ქართული հայերեն ٣٤٥ १२३ ２０２３ ½ ² "
            "🦙🦙 👩‍👩‍👧 a\u0301e\u0301 «слово»слово (日本)語 don't foo_bar x=2023;").split()


_NOT_PYTHONS = ("site-packages", "dist-packages")


def real_text(size, seed=0):
    """`size` bytes: sources and docstrings of the standard library, one line in eight made of other scripts."""
    rng, lines, total = random.Random(seed), [], 0
    library = Path(sysconfig.get_path("stdlib"))
    deeper = (path for path in library.rglob("*/*.py") if path.relative_to(library).parts[0] not in _NOT_PYTHONS)
    for path in itertools.chain(sorted(library.glob("*.py")), sorted(deeper)):
        for line in path.read_bytes().split(b"\n"):
            if rng.random() < 0.125:
                words = rng.choices(_FOREIGN, weights=range(len(_FOREIGN), 0, -1), k=rng.randrange(1, 9))
                line = " ".join(words).encode()
            lines.append(line)
            total += len(line) + 1
            if total >= size:
                return b"\n".join(lines)[:size]
    raise ValueError(f"the standard library holds only {total} bytes of text, {size} are asked for")


def _tangle(alphabet, length, seed):
    """Random words over a tiny alphabet: ties and overlaps everywhere."""
    rng = random.Random(seed)
    return "".join(rng.choice(alphabet) for _ in range(length)).encode()


CRUEL = {
    "runs of one letter": b"\n".join(b"a" * n + b" b" * (n % 3) for n in range(1, 40)),
    "every count is equal": b" ".join(bytes([a, b]) for a in b"zyxabc" for b in b"zyxabc" if a != b),
    "two letters and spaces": _tangle("ab ", 3000, 1),
    "digits of all kinds": "a1b2 2023 1999 ２０２３ ２０２４ ٣٤ ٣٤ ⅣⅣ ½½ x²x² 10,000 10,000 v1.2 v1.2".encode() * 3,
    "controls": b"a\tb\tab\tb\r\n\ta\tb\r\r\n\x1f\x1fab\x1fab\x00\x00ab\x00ab \x0b\x0c\x0b\x0c" * 4,
    "pieces with special names": b"<s>ab</s>ab<unk>ab <0x41>ab<0x41>ab <s <0x4> <0x41 <0xZZ> <s></s><s></s> <unk>" * 3,
    "spaces": "  a  a   a    a \n \n  \n   \n a\u2581a \u2581\u2581a a\u2581\u2581 a  \n\u2581".encode() * 3,
    "reserved and empty lines": "ab ab\n\n\u2585 ab ab\nab\u2585\n\nab\n".encode() * 3,
    "broken bytes": b"ab\xff\xffab\xc0\x80ab\xed\xa0\x80ab\xf4\x90\x80\x80\xe2\x96 \xe2\x96ab \xf0\x9f\xa6ab\n" * 4,
    "japanese": "カタカナー語とひらがな語のテスト カタカナー カタカナー ーー ーー テスト語 ｶﾀｶﾅ 々々 〆 テストtest test語".encode() * 3,
    "marks": "a\u0301b\u0301 \u0301\u0301a и\u0301и\u0301 a\u0301и a\u0301и \u0301и \u200da\u200da ж\u200dж ".encode() * 4,
    "punctuation": "don't don't foo_bar __foo__ ::: ... a.b.c a.b.c != == +=1 += ('a') (\"a\") €€ a€ a€ ——".encode() * 3,
    "long words": b"abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz pqrstuvwxyzabcdefgh" * 4,
    "long lines": b"x" * 4192 + b"\n" + b"y" * 4193 + b"\nab ab z\n" + "é".encode() * 2096 + b"\n" + "ü".encode() * 2097,
    "rare characters": ("".join(chr(0x4E00 + n) for n in range(400)) + "\n" + "的一是不了\n" * 400 + "ab" * 30).encode(),
    "emoji": "👩‍👩‍👧 👩‍👩‍👧 🦙🦙🦙 🦙🦙 ☺️☺️ 1️⃣1️⃣ 🇩🇪🇩🇪 🇩🇪🇫🇷 a🦙 a🦙".encode() * 3,
}


def random_training(seed):
    """A small random text over few letters, and random options of `train_bpe`."""
    rng = random.Random(seed)
    letters = rng.choice(["ab", "abc ", "a ", "aA1 ", "ab\u0301 и", "あア漢ー a", ". ,ab", "12a ", "ab\t ", "xyz▁ "])
    lines = ["".join(rng.choices(letters, k=rng.randrange(1, 60))) for _ in range(rng.randrange(1, 20))]
    options = {"split_digits": rng.random() < 0.7, "character_coverage": rng.choice([0.98, 0.99995, 1.0]),
               "byte_fallback": rng.random() < 0.7, "max_piece_length": rng.choice([2, 3, 5, 16])}
    if rng.random() < 0.3:
        options["user_defined_symbols"] = rng.sample(["ab", "a", "xx", "ba1", "\u2581a", "b a"], 2)
    return "\n".join(lines).encode(), options


def train_oracle(data, vocab_size, **options):
    """sentencepiece's .model bytes for this text (bytes), with LLaMA's options unless told otherwise."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle of BPE training is sentencepiece")
    out = io.BytesIO()
    llama = {"model_type": "bpe", "vocab_size": vocab_size, "character_coverage": 0.99995, "split_digits": True,
             "allow_whitespace_only_pieces": True, "byte_fallback": True, "normalization_rule_name": "identity",
             "remove_extra_whitespaces": False, "minloglevel": 3, "num_threads": 1}
    with tempfile.TemporaryDirectory() as folder:  # as a file: the package's iterator strips carriage returns
        path = Path(folder) / "text"
        path.write_bytes(data)
        sentencepiece.SentencePieceTrainer.train(input=str(path), model_writer=out, **{**llama, **options})
    return out.getvalue()


def processor(model):
    """sentencepiece's tokenizer of a .model's bytes."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle of encoding is sentencepiece")
    return sentencepiece.SentencePieceProcessor(model_proto=model)


_ATOMS = [" ", "  ", "    ", "\n", "\t", "a", "the", "Hello", "world", "é", "你好", "🦙", "\u2581", "\u2581\u2581", "</s>",
          "<s>", "<0x41>", "<unk>", "[INST]", "[/INST]", "1", "12", "२", "\u3000", "\xa0", "\0", "ſ", "\u200d", "\ufffd",
          "xxxxxxxxxxxxxxxxxxxx", " def ", "foo_bar", "don't", "...", "!!", "हिन्दी", "\r\n", "aaaa", "return self.",
          "日本語", "ー", "\ufeff", "\u2585", "<", ">", "0x", "ab", "abab"]


def random_text(rng, most=12):
    """A string of common and odd parts and of any code points (no surrogates)."""
    parts = []
    for _ in range(rng.randrange(most)):
        if rng.random() < 0.8:
            parts.append(rng.choice(_ATOMS))
        else:
            code = rng.choice([rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)])
            parts.append("" if 0xD800 <= code < 0xE000 else chr(code))
    return "".join(parts)


def random_ids(rng, vocab_size, most=10):
    """Ids, half of them special, byte or early ones."""
    return [rng.randrange(vocab_size if rng.random() < 0.5 else min(300, vocab_size)) for _ in range(rng.randrange(most))]


MISTRAL = ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3",
           "mistral_instruct_tokenizer_241114.model.v7m1")


@lru_cache
def own_model():
    return train_bpe([real_text(60_000)], 900).model


@lru_cache
def tiny_model():
    return train_bpe([b"low lower lowest 2023 \xc3\xa9t\xc3\xa9 aaaa bbbb abab"], 300).model


def mistral_model(name):
    if find_spec("mistral_common") is None:
        pytest.skip("mistral-common, which carries Mistral's tokenizers, is not installed")
    return (Path(find_spec("mistral_common").origin).parent / "data" / name).read_bytes()


def hand_made(extra=(), byte_fallback=True, trainer=(), normalizer=()):
    """<unk> <s> </s>, the bytes if wanted, then `extra`; fields given last override LLaMA's options."""
    pieces = [Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3)]
    pieces += [Piece(text, 0.0, 6) for text in BYTE_PIECES] if byte_fallback else []
    model = model_bytes(pieces + list(extra), byte_fallback=byte_fallback)
    return model + write_fields([(2, 2, write_fields(trainer)), (3, 2, write_fields(normalizer))])


def random_hand_made(rng):
    """A model with every kind of piece, odd scores, inner spaces, unused pieces and any whitespace rules."""
    letters, extra = "ab\u2581c é", {}
    for _ in range(rng.randrange(1, 30)):
        text = "".join(rng.choices(letters, k=rng.randrange(1, 5)))
        score = rng.choice([0.0, -0.0, -1.0, -2.5, -1e9, 3.0, float("inf"), -rng.random()])
        extra[text] = Piece(text, score, rng.choice([1, 1, 1, 1, 4, 5, 3]))
    bits = [int(rng.random() < 0.5) for _ in range(3)]
    return hand_made(extra.values(), byte_fallback=rng.random() < 0.5, trainer=[(24, 0, int(rng.random() < 0.2))],
                     normalizer=[(number, 0, bit) for number, bit in zip((3, 4, 5), bits, strict=True)])
