"""The next commands that commands print run as they are printed, whatever is in the names of files."""

import io
import json
import re
import shlex
import sys

import pytest

from minillama.cli.command_line import main


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What a small chain of all commands says on stderr, in a folder whose name holds a space and a quote."""
    folder, said = tmp_path_factory.mktemp("next") / "it's here", []
    folder.mkdir()
    (folder / "my text.txt").write_text("".join(f"Line {n} tells of {n * n} things to come.\n" for n in range(300)))
    records = [{"instruction": f"Count to {n}.", "output": "one " * n} for n in range(1, 60)]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pairs = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."} for n in range(60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    few = "--steps 2 --warmup-steps 0 --batch-size 8"
    for words in ("tokenizer train --text @/my@text.txt --vocab-size 310 --out @/t.model",
                  f"pretrain --text @/my@text.txt --tokenizer @/t.model --out @/base --seq-len 16 {few}",
                  f"sft --model @/base --data @/data.jsonl --out @/tuned@whole --method full {few}",
                  f"sft --model @/base --data @/data.jsonl --out @/adapter {few}",
                  f"sft --model @/base --data @/data.jsonl --out @/bits --method qlora {few}",
                  "merge --model @/base --adapter @/adapter --out @/merged",
                  "quantize @/base @/few --nf4", "convert @/base @/other --to hf",
                  "reward --model @/tuned@whole --pairs @/pairs.jsonl --out @/judge/ --max-new-tokens 4 --epochs 1"):
        words = [word.replace("@/", f"{folder}/").replace("@", " ") for word in words.split()]
        code, err = ended(words)
        assert code == 0, err
        said.append((words[0], err))
    return said


def ended(words):
    """(exit code, stderr) of a command that finds nothing on stdin."""
    kept, sys.stderr, sys.stdin = (sys.stderr, sys.stdin), io.StringIO(), io.StringIO("")
    try:
        return main(words), sys.stderr.getvalue()
    except SystemExit as stopped:
        return stopped.code, sys.stderr.getvalue()
    finally:
        sys.stderr, sys.stdin = kept


def test_every_next_command_runs_as_it_is_printed(printed):
    found = [(name, step) for name, err in printed for step in re.findall(r"try `(.*)`\n", err)]
    assert [name for name, _ in found] == ["pretrain", "sft", "sft", "sft", "merge", "quantize", "convert", "reward"]
    for name, step in found:
        small = ["--iterations", "1", "--batch-size", "2"] if name == "reward" else []
        words = [*shlex.split(step), *small]
        code, err = ended(words)
        assert code == 0, f"{name} prints {step}: {err}"
