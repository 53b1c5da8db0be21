"""Laws of the command line: what is asked for is on stdout alone, and bad input ends in one line with a next step."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from mutants import Mutant

from minillama.checkpoint import load_model
from minillama.cli.command_line import COMMANDS, GROUPS, build_parser, main

ROOT = Path(__file__).parents[2]
TEXT = "The quick brown fox jumps over the lazy dog in 2023. " * 40 + "\nA second line, with a llama.\n" * 20


def run(capsys, *words, stdin=""):
    """Exit code, stdout and stderr of one command, run in this process."""
    before = sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        code = main([str(word) for word in words])
    except SystemExit as stopped:  # argparse's own refusals
        code = stopped.code
    finally:
        sys.stdin = before
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    return made_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def made_tokenizer(folder):
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    assert main(["tokenizer", "train", "--text", str(folder / "text.txt"), "--vocab-size", "320", "--out",
                 str(folder / "t.model")]) == 0
    return folder / "t.model"


@pytest.fixture(scope="module")
def model_folder(tokenizer_file, tmp_path_factory):
    return made_model(tokenizer_file, tmp_path_factory.mktemp("model") / "run", tmp_path_factory.mktemp("texts"))


def made_model(tokenizer_file, folder, texts):
    for i in range(60):
        (texts / f"{i:02}.txt").write_text(f"Llama number {i} eats grass. " * 5, encoding="utf-8")
    assert main(["pretrain", "--text", str(texts), "--tokenizer", str(tokenizer_file), "--out", str(folder),
                 "--steps", "4", "--warmup-steps", "1", "--seq-len", "16"]) == 0
    return folder


def test_encode_and_decode_take_one_json_value_a_line_and_undo_each_other(tokenizer_file, capsys):
    texts = ["Hello 2023", "", " two  spaces ", "line\nbreak \u2028 \U0001f999", "</s> stays text"]
    code, out, err = run(capsys, "tokenizer", "encode", "--model", tokenizer_file,
                         stdin="".join(json.dumps(text) + "\n" for text in texts))
    ids = [json.loads(line) for line in out.splitlines()]
    assert (code, err, len(ids)) == (0, "", len(texts))
    assert all(isinstance(i, int) for row in ids for i in row)
    code, out, err = run(capsys, "tokenizer", "decode", "--model", tokenizer_file, stdin=out)
    assert (code, err, [json.loads(line) for line in out.split("\n")[:-1]]) == (0, "", texts)


def test_bos_and_eos_come_only_when_asked_for(tokenizer_file, capsys):
    plain, both = (json.loads(run(capsys, "tokenizer", "encode", "--model", tokenizer_file, *flags, stdin='"hi"\n')[1])
                   for flags in ((), ("--bos", "--eos")))
    assert both == [1, *plain, 2]


def test_generate_prints_the_text_alone_and_greedy_repeats_itself(model_folder, capsys):
    words = ("generate", "--model", model_folder, "--prompt", "Llama", "--temperature", "0", "--max-new-tokens", "5")
    first, second = run(capsys, *words), run(capsys, *words)
    assert first[0] == 0 and first[1] == second[1]
    assert first[1].startswith("Llama") and "GiB" not in first[1]


def test_a_finished_run_is_not_overwritten(model_folder, tokenizer_file, capsys):
    code, _, err = run(capsys, "pretrain", "--text", tokenizer_file, "--tokenizer", tokenizer_file, "--out",
                       model_folder)
    assert code == 2 and "--resume" in err


MORE = ("--steps", "5", "--warmup-steps", "1", "--seq-len", "16", "--checkpoint-every", "2")


def other_text(folder):
    """Something that the model of `model_folder` has not read, and the command that reads it."""
    (folder / "texts").mkdir()
    for i in range(60):
        (folder / "texts" / f"{i:02}.txt").write_text(f"{i} llamas sleep. " * 5, encoding="utf-8")
    return "pretrain", "--text", folder / "texts"


def test_pretraining_goes_on_from_a_model_with_its_tokenizer(model_folder, tmp_path, capsys):
    begin, out = (*other_text(tmp_path), "--model", model_folder), tmp_path / "out"
    code, said, _ = run(capsys, *begin, "--out", out, *MORE)
    assert (code, said) == (0, "")
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["held_out_loss"]
    assert run(capsys, "pretrain", "--text", tmp_path / "texts", "--tokenizer", model_folder / "tokenizer.model",
               "--out", tmp_path / "new", *MORE)[0] == 0
    fresh = json.loads((tmp_path / "new" / "metrics.jsonl").read_text().splitlines()[0])["held_out_loss"]
    assert first < fresh - 0.1, "it begins where the model was, not at random weights"
    before, after = load_model(model_folder), load_model(out)
    assert after[0].config == before[0].config and after[1].pieces == before[1].pieces
    assert not torch.equal(after[0].output.weight, before[0].output.weight)


def test_pretraining_from_a_model_that_was_killed_and_resumed_ends_with_the_same_bits(model_folder, tmp_path, capsys,
                                                                                      monkeypatch):
    from minillama.train import pretrain

    begin, losses = (*other_text(tmp_path), "--model", model_folder), pretrain.batch_losses
    assert run(capsys, *begin, "--out", tmp_path / "whole", *MORE)[0] == 0
    left = [3]

    def dies(*words):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("power cut")
        return losses(*words)

    monkeypatch.setattr(pretrain, "batch_losses", dies)
    assert run(capsys, *begin, "--out", tmp_path / "cut", *MORE)[0] == 2
    monkeypatch.setattr(pretrain, "batch_losses", losses)
    assert not (tmp_path / "cut" / "params.json").exists()
    assert run(capsys, *begin, "--out", tmp_path / "cut", *MORE, "--resume")[0] == 0
    models = [load_model(tmp_path / name)[0] for name in ("whole", "cut")]
    assert all(torch.equal(p, q) for p, q in zip(*(model.parameters() for model in models), strict=True))


@pytest.mark.parametrize(("words", "stdin", "said"), [
    (("pretrain", "--text", "{text}", "--model", "{model}", "--out", "x", "--preset", "tiny"), "", "shape of its own"),
    (("pretrain", "--text", "{text}", "--model", "nowhere", "--out", "x"), "", "nowhere"),
    (("pretrain", "--text", "{text}", "--out", "x"), "", "give --tokenizer"),
    (("generate", "--model", "nowhere"), "", "nowhere"),
    (("generate", "--model", "{model}", "--temperature", "-1"), "", "temperature"),
    (("generate", "--model", "{model}", "--top-p", "0"), "", "--top-p"),
    (("generate", "--model", "{tokenizer}"), "", "{tokenizer}"),
    (("tokenizer", "encode", "--model", "nowhere"), '"a"\n', "nowhere"),
    (("tokenizer", "encode", "--model", "{model}/params.json"), '"a"\n', "params.json"),
    (("tokenizer", "encode", "--model", "{tokenizer}"), "not json\n", "line 1 of stdin"),
    (("tokenizer", "encode", "--model", "{tokenizer}"), "[1]\n", "line 1 of stdin is list"),
    (("tokenizer", "decode", "--model", "{tokenizer}"), "[99999999]\n", "99999999"),
    (("tokenizer", "decode", "--model", "{tokenizer}"), "[-1]\n", "-1"),
    (("tokenizer", "decode", "--model", "{tokenizer}"), '["a"]\n', "whole numbers"),
    (("tokenizer", "train", "--text", "nowhere", "--vocab-size", "300", "--out", "x"), "", "nowhere"),
    (("tokenizer", "train", "--text", "{text}", "--vocab-size", "3", "--out", "x"), "", "3"),
    (("tokenizer", "train", "--text", "{text}", "--vocab-size", "999999", "--out", "x"), "", "999999"),
    (("pretrain", "--text", "{text}", "--tokenizer", "{tokenizer}", "--out", "x", "--preset", "huge"), "", "huge"),
    (("pretrain", "--text", "{text}", "--tokenizer", "{tokenizer}", "--out", "x", "--steps", "0"), "", "steps"),
    (("pretrain", "--text", "{text}", "--tokenizer", "{tokenizer}", "--out", "x", "--preset", "llama_65b"), "", "GiB"),
    (("pretrain", "--text", "{tokenizer}", "--tokenizer", "{tokenizer}", "--out", "x"), "", "t.model"),
], ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_bad_input_ends_in_one_line_that_names_it(words, stdin, said, tokenizer_file, model_folder, capsys,
                                                  tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"tokenizer": tokenizer_file, "model": model_folder, "text": tokenizer_file.parent / "text.txt"}
    code, out, err = run(capsys, *(word.format(**places) for word in words), stdin=stdin)
    line = err.splitlines()[-1]
    assert code == 2 and out == "" and "Traceback" not in err
    assert line.startswith("minillama: error: ") and said.format(**places) in line
    assert not (tmp_path / "x").exists() or not any((tmp_path / "x").glob("*.pth")), "a refused run left a model"


def test_the_help_lists_each_command_once_under_its_heading_with_what_it_does():
    help = build_parser().format_help()
    lines = help[help.index("learn:"):].splitlines()
    assert [line for line in lines if line.endswith(":")] == [f"{heading}:" for heading in GROUPS]
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert "None" not in help and all(len(line.split()) > 3 for line in lines if line.startswith("  "))


def test_ctrl_c_is_130_and_a_missing_command_is_2(capsys, monkeypatch):
    monkeypatch.setattr("minillama.cli.info.describe", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(capsys, "info")[0] == 130
    assert run(capsys)[0] == 2


def test_info_names_versions_backends_threads_and_what_fits(capsys):
    code, out, err = run(capsys, "info")
    assert (code, err) == (0, "")
    for word in (torch.__version__, "reference", "threads", "nf4", "llama_7b", "llama2_70b"):
        assert word in out


def test_a_reader_that_goes_away_is_no_error(model_folder):
    command = f"{sys.executable} -m minillama info | head -1"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.stdout.startswith("minillama") and "Traceback" not in done.stderr


def _from_a_model(law, *more):
    """The law on a model made for it, without pytest's fixtures."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(name)
        (folder / "few").mkdir()
        model = made_model(made_tokenizer(folder), folder / "run", folder / "few")
        law(model, folder, Silent, *more)


class Silent:
    @staticmethod
    def readouterr():
        return "", ""


MUTANTS = [
    Mutant("minillama.cli.command_line", "[name for name in names if name in parsers]", "list(parsers)",
           test_the_help_lists_each_command_once_under_its_heading_with_what_it_does),
    Mutant("minillama.cli.training_commands", "model or Transformer(shape)", "Transformer(shape)",
           lambda: _from_a_model(test_pretraining_goes_on_from_a_model_with_its_tokenizer)),
    Mutant("minillama.cli.training_commands", "tokenizer=tokenizer if given or", "tokenizer=tokenizer if",
           lambda: _from_a_model(test_pretraining_goes_on_from_a_model_with_its_tokenizer)),
    Mutant("minillama.cli.command_line", "return 128 + getattr(", "return 127 + getattr(",
           lambda: _patched(test_ctrl_c_is_130_and_a_missing_command_is_2)),
]


def _patched(law):
    with pytest.MonkeyPatch.context() as patch:
        law(Silent, patch)
