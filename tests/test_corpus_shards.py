"""Laws of shards: each document of a file is read once, whole and in order, wherever the file is cut."""

import json
import random
import re
import tempfile
from pathlib import Path

import corpus_shards as shards
import pytest
from corpus_shards import cut_into_shards, read_shards
from mutants import Mutant


def random_file(rng):
    """Text of words, line ends of both kinds, and runs of white space that may or may not hold an empty line."""
    parts = ["w", "words", "汉字", " ", "\t", "\n", "\r\n", "\n\n", "\n \n", "\r\n\r\n", "\n\t\r\n  \n\n", "   \n"]
    return "".join(rng.choice(parts) for _ in range(rng.randint(1, 120)))


def documents_the_long_way(text):
    return [part.replace("\r\n", "\n").strip() for part in re.split(r"\n[ \t\r]*\n", text) if part.strip()]


@pytest.mark.parametrize("seed", range(3))
def test_documents_lie_between_empty_lines_wherever_a_file_is_cut(seed):
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "text.txt")
        for _ in range(150):
            text = random_file(rng)
            path.write_bytes(text.encode())
            patch.setattr(shards, "SHARD_BYTES", rng.randint(1, 60))
            patch.setattr(shards, "PIECE", rng.randint(1, 9))
            cut = cut_into_shards([path])
            assert [shard.begin for shard in cut] == [0, *(shard.end for shard in cut)][: len(cut)], "no byte is lost"
            assert not any(text.encode()[shard.begin : shard.begin + 1].isspace() for shard in cut[1:])
            assert list(read_shards([path])) == documents_the_long_way(text)


def test_offsets_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 7)
    (tmp_path / "a.txt").write_bytes("\ufeffalpha\n\nбета\r\n\r\n\r\ngamma".encode())
    found = [pair for shard in cut_into_shards([tmp_path]) for pair in shard.documents()]
    assert found == [(0, "alpha"), (10, "бета"), (24, "gamma")]


def test_lines_of_jsonl_are_documents(tmp_path, monkeypatch):
    texts = [f"text {i}\n\nof two parts" for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts) + "\n \n")
    for size in (1, 50, 1000, 1 << 20):
        monkeypatch.setattr(shards, "SHARD_BYTES", size)
        assert list(read_shards([tmp_path])) == texts


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.txt", b"good\n\nb\xffd\n", "byte 6 is not UTF-8"),
    ("a.jsonl", b'{"text": "x"}\n[1]\n', 'byte 14 is no JSON object with a "text"'),
    ("a.txt", b"good\n\na\0b", "byte 6 holds a zero byte"), ("a.jsonl", b'{"text": "\\ud800"}', "byte 0 holds half a"),
    ("a.jsonl", b'{"text": 7}\n', "byte 0 is no JSON"), ("a.jsonl", b'{"txt": ""}', "byte 0 is no JSON"),
    ("a.jsonl", b"[" * 100_000, "byte 0 is no JSON"), ("a.jsonl", b'{"text": "\xff"}', "byte 0 is not UTF-8")])
def test_what_is_no_text_is_refused_with_its_place(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: the document at {words}")):
        list(read_shards([tmp_path]))


def test_a_document_longer_than_the_bound_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    monkeypatch.setattr(shards, "LONGEST_DOCUMENT", 70_000)
    path = tmp_path / "long.txt"
    path.write_bytes(b"\n".join([b"x" * 60] * 5000))
    with pytest.raises(ValueError, match="put empty lines between documents"):
        cut_into_shards([path])


MODULE = "corpus_shards"
MUTANTS = [
    Mutant(MODULE, "found.end() < len(data):", "found:",
           lambda: [test_documents_lie_between_empty_lines_wherever_a_file_is_cut(seed) for seed in range(3)]),
    Mutant(MODULE, "return place + found.end()", "return place + found.start()",
           lambda: test_documents_lie_between_empty_lines_wherever_a_file_is_cut(0)),
    Mutant(MODULE, "file.read(self.end - self.begin)", "file.read(self.end - self.begin - 1)",
           lambda: test_documents_lie_between_empty_lines_wherever_a_file_is_cut(0)),
    Mutant(MODULE, '.replace("\\r\\n", "\\n")', "",
           lambda: test_documents_lie_between_empty_lines_wherever_a_file_is_cut(0)),
]
