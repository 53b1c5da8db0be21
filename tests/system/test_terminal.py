"""Laws of the door to the terminal: a stranger's control characters are shown and not obeyed, a pipe gets every bit as
it is, and a stream that is closed or full is named in one line.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
import torch
from mutants import Mutant

from minillama.checkpoint import save_model
from minillama.cli.command_line import main
from minillama.config import ModelConfig
from minillama.system.terminal import CONTROL, guard_streams, one_line, tell, tqdm, visible
from minillama.tokenizer import train_bpe
from minillama.transformer import Transformer

ROOT = Path(__file__).parents[2]
# a title, a screen cleared by C1, a turned line, two characters that move the cursor
HOSTILE = "\x1b]0;owned\x07\x9b2J\u202e\x7f\r"
SHOWN = r"\x1b]0;owned\x07\x9b2J\u202e\x7f\r"


def parrot(folder, text):
    """A model folder whose greedy continuation of "a" is the text, of which no token may come twice: with attention
    and feed-forward silent, what follows a token is a row of the head."""
    (folder / "text.txt").write_text("a " * 50, encoding="utf-8")
    tokenizer = train_bpe([folder / "text.txt"], 261)
    ids = [*tokenizer.encode("a"), *tokenizer.encode("a" + text)[len(tokenizer.encode("a")):], tokenizer.eos_id]
    assert len(set(ids)) == len(ids)
    size = tokenizer.vocab_size
    model = Transformer(ModelConfig(size + size % 2, 1, 1, size, hidden_dim=8, max_seq_len=64))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.zero_()
        model.tok_embeddings.weight.fill_diagonal_(1)
        for now, after in zip(ids, ids[1:], strict=False):
            model.output.weight[after, now] = 1
    save_model(folder / "parrot", model)
    tokenizer.save(folder / "parrot" / "tokenizer.model")
    return folder / "parrot"


def on_terminal(*words, typed=""):
    """(exit code, all that a real pseudo-terminal received) of one command in this process."""
    pty, tty = pytest.importorskip("pty"), pytest.importorskip("tty")
    theirs, ours = pty.openpty()
    tty.setraw(ours)  # no carriage returns of the terminal's own
    before, (reader, writer) = (sys.stdin, sys.stdout, sys.stderr), os.pipe()
    os.write(writer, typed.encode())
    os.close(writer)
    try:
        sys.stdin = os.fdopen(reader)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(ours), "w") for _ in range(2))
        code = main([str(word) for word in words])
    finally:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.close()
        sys.stdin, sys.stdout, sys.stderr = before
    os.set_blocking(theirs, False)
    received = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(theirs, 65536):
            received += part
    os.close(ours)
    os.close(theirs)
    return code, received.decode("utf-8")


def call(words, redirect="", stdin=b"", before="", **environment):
    """One command in a shell of its own, with the streams as `redirect` has them."""
    if "/dev/full" in redirect and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = " ".join(f"'{word}'" for word in (sys.executable, "-m", "minillama", *words))
    done = subprocess.run(["sh", "-c", f"{before} exec {command} {redirect}"], cwd=ROOT, input=stdin,
                          capture_output=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
    return done.returncode, done.stdout, done.stderr.decode("utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return parrot(tmp_path_factory.mktemp("parrot"), HOSTILE)


def test_every_control_character_is_shown_and_every_letter_stays():
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        steers = unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in (
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI") or letter in "\u200e\u200f\u061c"
        if steers:
            assert one_line(letter) == ascii(letter)[1:-1] and (visible(letter) == letter) == (letter in "\n\t")
        elif unicodedata.category(letter) != "Cf":
            assert not CONTROL.match(letter)
    joined = "\U0001f469\u200d\U0001f4bb m\u200cn"  # the two joiners belong to scripts and pictures
    assert visible(joined) == joined


def test_pieces_of_a_sequence_are_shown_as_the_whole_is():
    assert "".join(map(visible, HOSTILE)) == visible(HOSTILE) == SHOWN


def test_a_terminal_is_shown_what_a_model_writes_and_a_pipe_gets_it_bit_for_bit(model, capfdbinary):
    words = ("generate", "--model", model, "--prompt", "a", "--temperature", "0", "--max-new-tokens", "40")
    code, received = on_terminal(*words)
    assert code == 0 and received.endswith("a" + SHOWN + "\n")
    assert main([str(word) for word in words]) == 0
    assert capfdbinary.readouterr().out == ("a" + HOSTILE).encode()


def test_a_prompt_is_shown_too(model):
    code, received = on_terminal("generate", "--model", model, "--prompt", HOSTILE, "--max-new-tokens", "0")
    assert code == 0 and received.endswith(SHOWN + "\n")


def test_talk_shows_answers_history_and_errors(model):
    code, received = on_terminal("chat", "--model", model, "--temperature", "0", "--max-new-tokens", "3",
                                 "--system", "\x1b[2J", "--template", "llama2", typed="a\n/history\n/\x1b[2J\n")
    assert code == 0 and r"system: \x1b[2J" in received and r"/\x1b[2J is no command" in received
    assert not CONTROL.search(received.replace("\n", ""))


def test_names_are_shown_in_one_line_of_error(tmp_path, capsys):
    name = tmp_path / (HOSTILE + "\nminillama: all fine")
    for words in (("info", name), ("generate", "--model", name), ("tokenizer", "encode", "--model", name),
                  ("info", "x", name)):
        with contextlib.suppress(SystemExit):  # the last is argparse's own refusal
            assert main([str(word) for word in words]) == 2
        (line,) = [line for line in capsys.readouterr().err.split("\n") if "owned" in line]
        assert not CONTROL.search(line) and "error" in line and r"\nminillama: all fine" in line


def test_fields_and_keys_and_tensors_names_are_shown(model, tmp_path, capsys):
    name = HOSTILE + "\nminillama: all fine"
    (tmp_path / "data.jsonl").write_text(json.dumps({"instruction": "a", "output": "b", name: 1}), encoding="utf-8")
    params = json.loads((model / "params.json").read_text(encoding="utf-8"))
    (tmp_path / "params.json").write_text(json.dumps(params | {name: 1}), encoding="utf-8")
    weights = torch.load(model / "consolidated.00.pth")
    torch.save(weights, tmp_path / "consolidated.00.pth")
    assert main(["sft", "--model", str(model), "--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "o")])
    assert main(["generate", "--model", str(tmp_path)])
    torch.save(weights | {name: torch.zeros(2)}, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(params), encoding="utf-8")
    assert main(["info", str(tmp_path)])
    said = capsys.readouterr().err
    assert said.count(SHOWN + r"\nminillama") == 3 and not CONTROL.search(said.replace("\n", ""))


def test_the_last_word_stands_on_a_line_below_the_bars_and_no_bar_comes_after_it(capsys):
    with guard_streams():
        bars = [tqdm(total=3), tqdm(range(3))]
        bars[0].update()
        tell("error: no room")
        del bars
    assert capsys.readouterr().err.replace("\r", "\n").splitlines()[-1] == "minillama: error: no room"


def test_a_bar_still_returns_to_the_begin_of_its_line_and_its_name_is_shown(capsys):
    with guard_streams():
        list(tqdm(range(3), desc="\x1b[2J"))
        print("\rover it", file=sys.stderr)
    said = capsys.readouterr().err
    assert "\r" + r"\x1b[2J: 100%" in said and "\n" + r"\rover it" in said


STREAMS = [  # what, its streams, exit code, what it says
    ("info", ">&-", 2, "stdout is closed"), ("info", ">/dev/full", 2, "stdout: No space left"),
    ("info", "<&- >&- 2>&-", 2, ""), ("tokenizer encode --model {}/tokenizer.model", "<&-", 2, "stdin is closed"),
    ("info --help", ">/dev/full", 0, ""), ("generate --model {}", ">&-", 2, "stdout is closed"),
    ("chat --model {}", "<&-", 2, "stdin is closed"), ("info", "<&-", 0, ""), ("info", "2>&-", 0, ""),
    ("info nowhere", "2>&-", 2, ""), ("info nowhere", "2>/dev/full", 2, ""), ("lesson 1", ">&-", 2, "stdout is closed"),
]


@pytest.mark.parametrize(("words", "redirect", "code", "said"), [
    pytest.param(*case, marks=[pytest.mark.long] * (number > 3)) for number, case in enumerate(STREAMS)])
def test_a_stream_that_is_closed_or_full_is_one_line_or_no_matter(words, redirect, code, said, model):
    got, out, err = call(words.format(model).split(), redirect)
    lines = [line for line in err.splitlines()  # apart from what a command says of itself at its start
             if "GiB" not in line and not line.startswith(("template", "/reset", "kernels"))]
    assert (got, len(lines)) == (code, int(bool(said))) and said in err and "Traceback" not in err


@pytest.mark.parametrize("redirect", [
    "2>&-", *(pytest.param(other, marks=pytest.mark.long) for other in ("2>/dev/full", "<&- >&- 2>&-"))])
def test_training_needs_nobody_who_listens(redirect, model, tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(60):
        (tmp_path / f"texts/{i}.txt").write_text(f"a llama {i} " * 9, encoding="utf-8")
    code, _, _ = call(["pretrain", "--text", tmp_path / "texts", "--model", model, "--out", tmp_path / "run",
                       "--steps", "2", "--warmup-steps", "1", "--seq-len", "8"], redirect)
    assert code == 0 and (tmp_path / "run/consolidated.00.pth").stat().st_size > 1000


MUTANTS = [
    Mutant("minillama.system.terminal", "bool(before[1]) and before[1].isatty()", "False",
           lambda: _on_a_parrot(test_a_prompt_is_shown_too)),
    Mutant("minillama.system.terminal", "if found[0] in kept", "if True",
           lambda: test_every_control_character_is_shown_and_every_letter_stays()),
]


def _on_a_parrot(law):
    with tempfile.TemporaryDirectory() as folder:
        law(parrot(Path(folder), HOSTILE))
