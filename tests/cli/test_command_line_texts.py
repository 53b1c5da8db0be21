"""`tokenizer train`, `pretrain` and `tour` read the same kind of text, and refuse the same in the same words."""

import os

import pytest

from minillama.cli.command_line import main

LINES = "".join(f"Line {n} tells of {n * n} things, and of words that come again.\n" for n in range(300))


@pytest.fixture
def vocabulary(tmp_path):
    (tmp_path / "lines.txt").write_text(LINES)
    assert learned(tmp_path, "lines.txt", "t.model") == 0
    return tmp_path / "t.model"


def learned(folder, text, out):
    return main(["tokenizer", "train", "--text", str(folder / text), "--vocab-size", "330", "--out", str(folder / out)])


def refused(capsys, *words):
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("minillama: error: ")
    return line.removeprefix("minillama: error: ")


@pytest.mark.parametrize(("content", "said"), [
    (LINES.encode() + b"caf\xe9\n", "text.txt:301: byte 0xe9 at offset"), (LINES.encode("utf-16"), ":1: UTF-16 text"),
    (LINES.encode("utf-16-be"), "text.txt:1: a zero byte at offset 0: a binary file"), (b"", "no text in there"),
    (b"\xef\xbb\xbf \r\n", "no text in there"), (None, "not a regular file")])
def test_all_three_refuse_the_same_files_in_the_same_words(tmp_path, vocabulary, capsys, content, said):
    text = tmp_path / "text.txt"
    if content is None:
        text = "/dev/zero" if os.path.exists("/dev/zero") else pytest.skip("needs /dev/zero")
    else:
        text.write_bytes(content)
    lines = {refused(capsys, "tokenizer", "train", "--text", text, "--vocab-size", 330, "--out", tmp_path / "new"),
             refused(capsys, "pretrain", "--text", text, "--tokenizer", vocabulary, "--out", tmp_path / "new"),
             refused(capsys, "tour", "--text", text, "--out", tmp_path / "new")}
    assert len(lines) == 1 and said in lines.pop()
    assert not (tmp_path / "new").exists()


def test_line_ends_and_a_byte_order_mark_change_no_bit(tmp_path, vocabulary):
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode())
    assert learned(tmp_path, "windows.txt", "w.model") == 0
    assert (tmp_path / "w.model").read_bytes() == vocabulary.read_bytes()
    for name in ("lines", "windows"):
        assert main(["pretrain", "--text", str(tmp_path / f"{name}.txt"), "--tokenizer", str(vocabulary), "--out",
                     str(tmp_path / name), "--steps", "1", "--warmup-steps", "0", "--batch-size", "1"]) == 0
    for part in ("train.bin", "held_out.bin", "consolidated.00.pth"):
        assert (tmp_path / "lines" / part).read_bytes() == (tmp_path / "windows" / part).read_bytes()


def test_of_one_file_the_end_is_held_out_and_told(tmp_path, vocabulary, capsys):
    assert main(["pretrain", "--text", str(tmp_path / "lines.txt"), "--tokenizer", str(vocabulary), "--out",
                 str(tmp_path / "run"), "--steps", "1", "--warmup-steps", "0"]) == 0
    assert f"of {len(LINES)} characters are held out" in capsys.readouterr().err


def test_lines_that_are_too_long_are_told_with_a_flag_that_takes_them_in(tmp_path, capsys):
    (tmp_path / "one.txt").write_text(LINES.replace("\n", " "))
    assert "were skipped: break them up, or raise --max-line-bytes" in refused(
        capsys, "tokenizer", "train", "--text", tmp_path / "one.txt", "--vocab-size", 330, "--out", tmp_path / "x")
    assert main(["tokenizer", "train", "--text", str(tmp_path / "one.txt"), "--vocab-size", "330", "--out",
                 str(tmp_path / "one.model"), "--max-line-bytes", "100000"]) == 0
    (tmp_path / "two.txt").write_text(LINES + "long " * 1000)
    capsys.readouterr()
    assert learned(tmp_path, "two.txt", "two.model") == learned(tmp_path, "two.txt", "again.model") == 0
    assert "4192 bytes were skipped: break them up, or raise --max-line-bytes\n" in capsys.readouterr().err
