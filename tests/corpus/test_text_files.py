"""Laws of the reader of the user's own text: nothing bad gets in, nothing good is lost, the order is fixed."""

import hashlib
import os
import random
import tempfile
from pathlib import Path

import pytest
from mutants import Mutant

from minillama.corpus import text_files
from minillama.corpus.text_files import check_texts, normalised, read_documents, sides, split


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return folder


def test_folders_are_read_in_the_order_of_names_and_by_suffix(tmp_path):
    write(tmp_path, {"b.md": "second", "a/z.txt": "fourth", "a/b/y.py": "sixth", "A.TXT": "first", ".hidden.txt": "no",
                     ".git/x.txt": "no", "image.png": b"\x89PNG\0", "c.rst": "third", "a/zz.txt": "fifth"})
    assert list(read_documents(tmp_path)) == ["first", "second", "third", "fourth", "fifth", "sixth"]
    assert list(read_documents([tmp_path / "a" / "b", str(tmp_path / "b.md")])) == ["sixth", "second"]


def test_line_ends_marks_and_repeats_are_evened_out(tmp_path):
    write(tmp_path, {"1.txt": b"\xef\xbb\xbfone\r\ntwo\n", "2.txt": "one\ntwo\n", "3.txt": " \n\n", "4.txt": "",
                     "5.txt": "three"})
    assert list(read_documents(tmp_path)) == ["one\ntwo\n", "three"]
    assert list(read_documents(write(tmp_path, {"end.c": "four\r"}) / "end.c")) == ["four\r"], "half a line end"


@pytest.mark.parametrize(("content", "line", "offset"), [
    (b"caf\xe9", 1, 3), (b"good\nbad \xff\n", 2, 9), (b"\xef\xbb\xbfx\xff", 1, 4), (b"cut \xe2\x98", 1, 4),
    (b"ok\n\n\xc0\xaf", 3, 4), (b"half \xed\xa0\x80 pair", 1, 5)])
def test_bytes_that_are_not_utf8_are_reported_with_line_and_offset(tmp_path, content, line, offset):
    path = write(tmp_path, {"x.txt": content}) / "x.txt"
    message = f"x.txt:{line}: byte 0x{content[offset]:02x} at offset {offset} is not UTF-8"
    with pytest.raises(ValueError, match=message) as error:
        list(read_documents(path))
    assert "\n" not in str(error.value)


def test_binary_files_and_sizes_over_the_bounds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LARGEST_FILE", 99)
    write(tmp_path, {"zero.txt": b"abc\nd\0e", "big.txt": b"y\n" * 50, "utf16.txt": "text".encode("utf-16")})
    for name, message in (("zero.txt", "zero.txt:2: a zero byte at offset 5"),
                          ("utf16.txt", "utf16.txt:1: UTF-16 text"),
                          ("big.txt", "100 bytes, more than the 99 allowed: split it up")):
        with pytest.raises(ValueError, match=message):
            list(read_documents(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        list(read_documents(tmp_path / "absent"))


def test_a_long_file_becomes_documents_of_bounded_size_and_loses_nothing(tmp_path):
    lines = [f"line {i} é\n" for i in range(60_000)]
    parts = list(read_documents(write(tmp_path, {"x.txt": "".join(lines)})))
    assert len(parts) > 1 and "".join(parts) == "".join(lines)
    assert all(part.endswith("\n") and len(part) <= text_files.DOCUMENT_BYTES + 20 for part in parts)


@pytest.mark.parametrize("text", ["x" * (3 << 20), "天地玄黄" * (1 << 18), "ab cde " * (1 << 18) + "\r\nend"])
def test_a_line_without_end_is_read_in_pieces_and_loses_nothing(tmp_path, text):
    parts = list(read_documents(write(tmp_path, {"x.txt": "\ufeff" + text}) / "x.txt"))
    assert max(map(len, parts)) <= text_files.LONGEST_LINE + text_files.DOCUMENT_BYTES
    assert "".join(text_files._documents_of(tmp_path / "x.txt")) == text.replace("\r\n", "\n")


@pytest.mark.parametrize("seed", range(40))
def test_a_document_ends_at_the_first_line_end_after_its_size_and_a_long_line_at_a_space(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(text_files, "DOCUMENT_BYTES", 16)
    monkeypatch.setattr(text_files, "LONGEST_LINE", 40)
    rng = random.Random(seed)
    text = "".join(rng.choices("ab \n", [8, 8, 1 + seed % 3, seed % 4], k=rng.randrange(1, 400))) + "."
    parts = list(text_files._documents_of(write(tmp_path, {"x.txt": text}) / "x.txt"))
    assert "".join(parts) == text
    for part in parts[:-1]:
        if part.endswith("\n") and len(part) <= 40 or "\n" in part[15:]:
            assert len(part) >= 16 and part.find("\n", 15) == len(part) - 1
        else:
            assert part.endswith(" ") or " " not in part and len(part) > 40
    assert "\n" not in parts[-1][15:-1] and len(parts[-1]) <= 40


def test_a_line_end_may_fall_between_two_pieces_and_lines_are_counted_over_all(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "DOCUMENT_BYTES", 4)
    for text in ("abc\r\ndef\r\n", "ab\r\rc\r\n", "abc\rdefg\r\r\n"):
        path = write(tmp_path, {"x.txt": text.encode()}) / "x.txt"
        assert "".join(text_files._documents_of(path)) == text.replace("\r\n", "\n")
    for content, line, offset in ((b"a\nb\nc\nd\ne\xff", 5, 9), (b"\0a", 1, 0), (b"a\n\n\nb\0", 4, 5)):
        with pytest.raises(ValueError, match=f"x.txt:{line}: .* at offset {offset}"):
            list(read_documents(write(tmp_path, {"x.txt": content}) / "x.txt"))


def test_a_text_stays_on_its_side_for_ever():
    """Held out: the first 8 bytes of the SHA-256 of its normalised form, as a number, are a multiple of `one_in`."""
    texts = [f"Text  {i}" for i in range(300)]
    numbers = {text: int(hashlib.sha256(f"text {i}".encode()).hexdigest()[:16], 16) for i, text in enumerate(texts)}
    for one_in in (2, 20):
        assert split(texts, one_in)[1] == [text for text in texts if numbers[text] % one_in == 0]


def test_the_bounds_are_those_that_are_told(tmp_path, monkeypatch):
    assert (text_files.LONGEST_LINE, text_files.DOCUMENT_BYTES, text_files.LARGEST_FILE) == (2**20, 2**18, 2**40)
    path = write(tmp_path, {"x.txt": "123456789"}) / "x.txt"
    monkeypatch.setattr(text_files, "LARGEST_FILE", 9)
    assert list(read_documents(path)) == ["123456789"]
    monkeypatch.setattr(text_files, "LARGEST_FILE", 8)
    with pytest.raises(ValueError, match="9 bytes, more than the 8 allowed"):
        list(read_documents(path))


@pytest.mark.parametrize("seed", range(60))
def test_a_text_is_cut_at_the_last_line_end_or_space_before_its_end_part(seed):
    """Found by looking at every place of the stretch as long as the part, before it."""
    rng = random.Random(seed)
    text = "x" + "".join(rng.choices("xy \n", [9, 9, 1, seed % 2], k=rng.randrange(1, 60))) + "z" + " \n"[:seed % 3]
    length, asked = len(text.rstrip()), rng.randrange(8 if seed % 3 else 70)
    part = max(1, min(asked, length // 2))
    stretch = range(max(0, length - 2 * part), length - part)
    places = [[i + 1 for i in stretch if text[i] == mark] for mark in "\n "]
    place = next((max(found) for found in places if found), length - part)
    assert text_files._cut(text, asked) == (text[:place], text[place:])


def test_a_bad_byte_behind_the_first_piece_of_a_line_is_named_with_its_offset(tmp_path):
    before = b"x" + "é".encode() * (text_files.LONGEST_LINE // 2)  # a piece ends within a letter
    path = write(tmp_path, {"x.txt": before + b"\xff\n"}) / "x.txt"
    with pytest.raises(ValueError, match=f"x.txt:1: byte 0xff at offset {len(before)}"):
        list(read_documents(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_regular_file_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            check_texts([path])


def test_texts_are_checked_to_their_end_and_there_must_be_some(tmp_path):
    write(tmp_path, {"good/a.txt": "text", "good/empty.txt": "", "none/a.txt": " \n",
                     "late.txt": b"good\n" * 9 + b"\xe9\n"})
    check_texts([tmp_path / "good"])
    for path, message in ((tmp_path / "none", "none: no text in there"),
                          (tmp_path / "good" / "empty.txt", "no text in there"),
                          (tmp_path / "late.txt", "late.txt:10: byte 0xe9")):
        with pytest.raises(ValueError, match=message):
            check_texts([path])


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("held", [True, False])
def test_of_too_few_documents_the_end_is_held_out_and_told(n, held):
    documents, said = [f"{i} words of one line\n" * 40 for i in range(n)], []
    parts = list(sides(documents, lambda text: held, 0.05, said.append))
    train, held_out = ("".join(text for text, out in parts if out is side) for side in (False, True))
    assert train + held_out == "".join(documents), "nothing is lost, and the end is the end"
    assert held_out.startswith(f"{n - 1} words") and 0.02 < len(held_out) / len(train + held_out) < 0.11
    assert len(said) == 1 and f"the last {len(held_out)} of {len(train + held_out)} characters are held out" in said[0]


def test_documents_that_fall_on_both_sides_stay_where_they_fall():
    documents = [str(i) for i in range(30)]
    for chosen in ({"0"}, {"29"}, {"3", "4", "20"}):
        parts, said = list(sides(documents, chosen.__contains__, 0.05, print)), []
        assert sorted(parts) == sorted((text, text in chosen) for text in documents) and not said
        assert [text for text, out in parts if not out] == [text for text in documents if text not in chosen]


@pytest.mark.parametrize("text", ["", " ", "a", " \n b "])
def test_a_text_too_short_for_two_sides_is_refused(text):
    with pytest.raises(ValueError, match="too few to learn from"):
        list(sides([text], lambda text: False, 0.05, print))


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="symbolic links need a POSIX system here")
def test_links_in_folders_are_not_followed(tmp_path):
    write(tmp_path, {"a/real.txt": "text"})
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    os.symlink(tmp_path / "a" / "real.txt", tmp_path / "link.txt")
    assert list(read_documents(tmp_path)) == ["text"]


def test_the_split_depends_on_a_text_alone_and_shares_none():
    texts = [f"document {i}" for i in range(4000)]
    train, held_out = split(texts)
    assert sorted(train + held_out) == sorted(texts)
    assert abs(len(held_out) - 200) < 4 * (4000 * 0.05 * 0.95) ** 0.5  # binomial, four standard deviations
    again = split(reversed(texts[:1000]))
    assert set(again[1]) == set(held_out) & set(texts[:1000])
    copies = split(texts + [text.upper().replace(" ", " \n ") for text in texts])
    assert copies == (train, held_out)
    assert normalised(" A\n b\t") == "a b"
    with pytest.raises(ValueError, match="one_in is 1"):
        split(texts, one_in=1)


def _in_a_temporary_folder(law, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        law(Path(folder), *arguments)


MODULE = "minillama.corpus.text_files"
MUTANTS = [
    Mutant(MODULE, "offset + used, data", "offset + len(text), data",
           lambda: _in_a_temporary_folder(
               test_a_bad_byte_behind_the_first_piece_of_a_line_is_named_with_its_offset)),
    Mutant(MODULE, "subfolders[:] = sorted(", "sorted(",
           lambda: _in_a_temporary_folder(test_folders_are_read_in_the_order_of_names_and_by_suffix)),
    Mutant(MODULE, "if digest not in seen:\n                seen", "if True:\n                seen",
           lambda: _in_a_temporary_folder(test_line_ends_marks_and_repeats_are_evened_out)),
    Mutant(MODULE, "_digest(normalised(text))", "_digest(text)",
           test_the_split_depends_on_a_text_alone_and_shares_none),
    Mutant(MODULE, "int.from_bytes(digest[:8], \"big\") % one_in", "len(first) % one_in",
           test_the_split_depends_on_a_text_alone_and_shares_none),
]
