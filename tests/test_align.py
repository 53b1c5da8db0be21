"""Laws of `align`: the stages are commands that exist; what is finished is never done again; a stop is gone on from."""

import contextlib
import io
import json
import shlex
import sys
from pathlib import Path

import align
import pytest
from mutants import Mutant

from minillama.cli.command_line import build_parser
from minillama.cli.flags import as_flag

sys.path.append(str(Path(__file__).parent / "cli"))
GIVEN = {"model": ["m"], "answers": ["easy.jsonl", "hard.jsonl"], "pairs": ["p.jsonl"], "posts": ["Posts.xml"],
         "safety_pairs": ["s.jsonl"]}


def inputs_of(recipe):
    text = " ".join(align.RECIPES[recipe]["stages"].values())
    return {name: paths for name, paths in GIVEN.items() if f"{{{name}}}" in text}


def aligned(folder, recipe, *words, codes=()):
    """(exit code, the commands that ran, what was said); `codes`: those that the stages end with, in turn."""
    codes, ran, said = iter(codes), [], io.StringIO()

    def run(words):
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        ran.append(words)
        code = next(codes, 0)
        (out / ("some_state.pt" if code else "params.json")).touch()
        if code == 0:
            (out / "held_out.jsonl").touch()
        return code

    paths = [str(folder / path) for paths in inputs_of(recipe).values() for path in paths]
    for path in paths:
        Path(path).touch()
    flags = [word for name, some in inputs_of(recipe).items()
             for word in (as_flag(name), *(str(folder / path) for path in some))]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.setattr(align, "minillama", run)
        patch.setattr(align.ppo_like, "main", lambda words: run(["ppo", *words]))
        patch.setattr(align.two_rewards, "main", lambda words: run(["llama2-chat", *words]))
        patch.setattr(align.stack_exchange, "main", lambda words: run(["stack-exchange", *words]))
        code = align.main(["--recipe", recipe, "--out", str(folder / "out"), *flags, *words])
    return code, ran, said.getvalue()


@pytest.mark.parametrize("recipe", align.RECIPES)
def test_every_stage_is_a_command_that_takes_its_flags(recipe):
    for name, words in align.stages_of(recipe, {**inputs_of(recipe), "out": "o"}, {}):
        if words[0] == "stack-exchange":
            assert align.stack_exchange.parser().parse_args(words[1:]).out == "o/data"
        elif words[0] == "llama2-chat":
            best, ppo = align.two_rewards.parsers()
            rest = words[2:] if words[1] == "best" else ppo.parse_known_args(words[2:])[1]
            made = best.parse_args(rest) if words[1] == "best" else build_parser("ppo").parse_args(["ppo", *rest])
            assert made.out == f"o/{name}"
        elif "--like" in words:
            like, rest = align.ppo_like.take_name(words[1:])
            assert build_parser("ppo").parse_args(["ppo", *rest]).out == f"o/{name}", like
        else:
            assert build_parser(words[0]).parse_args(words).out == f"o/{name}"


@pytest.mark.parametrize("recipe", align.RECIPES)
def test_what_is_printed_is_what_runs(recipe, tmp_path):
    code, ran, said = aligned(tmp_path, recipe, "--dry-run")
    assert code == 0 and not ran and not (tmp_path / "out").exists()
    shown = [shlex.split(line)[2:] for line in said.splitlines() if line.startswith("python3 run.py ")]
    code, ran, _ = aligned(tmp_path, recipe)
    assert code == 0 and ran == shown and len(ran) == len(align.RECIPES[recipe]["stages"])


def test_it_goes_on_with_the_first_stage_that_is_not_finished(tmp_path):
    code, ran, _ = aligned(tmp_path, "instructgpt", codes=(0, 143))
    assert code == 143 and [words[0] for words in ran] == ["sft", "reward"]
    code, again, said = aligned(tmp_path, "instructgpt")
    assert code == 0 and again[0] == [*ran[1], "--resume"] and [words[0] for words in again] == ["reward", "ppo"]
    assert "--resume" not in again[1] and "sft: finished before" in said
    assert aligned(tmp_path, "instructgpt")[1] == []


def test_flags_of_the_users_own_reach_their_stage(tmp_path):
    _, ran, _ = aligned(tmp_path, "ziya", "--flags", "ppo", "--lr 5e-4", "--flags", "sft", "--steps 3")
    assert ran[2][-2:] == ["--lr", "5e-4"] and ran[0][-2:] == ["--steps", "3"] and "--lr" not in ran[1]
    code, ran, said = aligned(tmp_path, "ziya", "--flags", "ppo", "--lr 1e-4")
    assert code == 2 and not ran and "other commands" in said


def test_what_is_missing_or_of_no_use_is_one_line(tmp_path):
    for recipe, words, message in (("instructgpt", ["--posts", "x"], "has no use for --posts"),
                                   ("instructgpt", ["--flags", "dance", "--lr 1"], "sft, reward, ppo"),
                                   ("stackllama", ["--pairs", "x"], "has no use for --pairs")):
        code, ran, said = aligned(tmp_path, recipe, *words)
        assert code == 2 and not ran and said.count("\n") == 1 and message in said
    with pytest.raises(ValueError, match="recipe ziya needs --answers"):
        align.stages_of("ziya", {"model": ["m"], "out": "o"}, {})
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert align.main(["--recipe", "ziya", "--model", "m", "--answers", "a", "--pairs", "p", "--out",
                           str(tmp_path / "new")]) == 2
    assert "m: there is no such file or folder" in said.getvalue() and not (tmp_path / "new").exists()


def a_base(folder, text):
    """A tiny model, pretrained -> its folder."""
    from test_command_line import made_tokenizer

    from minillama.cli.command_line import main

    tokenizer = made_tokenizer(folder)
    assert main(["pretrain", "--text", str(text), "--tokenizer", str(tokenizer), "--out", str(folder / "base"),
                 "--steps", "40", "--seq-len", "96"]) == 0
    return folder / "base"


@pytest.mark.long
def test_the_stages_of_instructgpt_run_on_a_tiny_model(tmp_path):
    """All three for real, on the examples that are shipped; the second call finds nothing left to do."""
    root = Path(__file__).parents[1]
    words = ["--recipe", "instructgpt", "--model", str(a_base(tmp_path, root / "README.md")), "--answers",
             str(root / "docs" / "examples" / "answers.jsonl"), "--pairs",
             str(root / "docs" / "examples" / "pairs.jsonl"), "--out", str(tmp_path / "out"),
             "--flags", "sft", "--steps 20", "--flags", "ppo",
             "--lr 5e-4 --iterations 2 --batch-size 8 --max-new-tokens 8"]
    assert align.main(words) == 0 and align.is_finished(tmp_path / "out" / "ppo")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert align.main(words) == 0
    assert said.getvalue().count("finished before") == 3


@pytest.mark.long
def test_the_stages_of_llama2_chat_run_on_a_tiny_model(tmp_path):
    """All six for real, so that what one stage writes is what the next one reads; the answers are short, for so little
    learning teaches to end one of three letters at most. Killed after `best`, it goes on with what that wrote."""
    answers, pairs, safety = (tmp_path / f"{name}.jsonl" for name in ("answers", "pairs", "safety"))
    questions = [f"Is {number} a llama?" for number in range(120)]
    for path, rows in ((answers, [{"instruction": q, "output": "Yes."} for q in questions]),
                       (pairs, [{"prompt": q, "chosen": "Yes.", "rejected": "No no."} for q in questions]),
                       (safety, [{"prompt": q, "chosen": "No no.", "rejected": "Yes."} for q in questions[::2]])):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--recipe", "llama2-chat", "--model", str(a_base(tmp_path, Path(__file__).parents[1] / "README.md")),
             "--answers", str(answers), "--pairs", str(pairs), "--safety-pairs", str(safety), "--out",
             str(tmp_path / "out"), "--flags", "sft", "--steps 40 --max-lr 4e-3", "--flags", "rejection", "--steps 12",
             "--flags", "best", "--answers 2 --limit 24 --max-new-tokens 12", "--flags", "ppo",
             "--lr 5e-4 --iterations 2 --batch-size 8 --max-new-tokens 8"]
    with pytest.MonkeyPatch.context() as patch:
        run_stage = align.run_stage
        patch.setattr(align, "run_stage", lambda words, folder: 143 if folder.name == "rejection" else
                      run_stage(words, folder))
        assert align.main(words) == 143 and (tmp_path / "out" / "best" / "best.jsonl").exists()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert align.main(words) == 0
    assert said.getvalue().count("finished before") == 4
    assert all(align.is_finished(tmp_path / "out" / name) for name in align.RECIPES["llama2-chat"]["stages"])


def test_words_that_are_cut_off_are_named_with_their_stage(tmp_path, capsys):
    code = align.main(["--recipe", "ziya", "--out", str(tmp_path), "--flags", "ppo", "--lr '5e-4"])
    assert code == 2 and "--flags ppo \"--lr '5e-4\" is no list of words" in capsys.readouterr().err


MUTANTS = [
    Mutant("align", 'words = [*words, "--resume"]', "pass", lambda: in_a_folder(
        test_it_goes_on_with_the_first_stage_that_is_not_finished)),
    Mutant("align", "if is_finished(out / name):", "if False:", lambda: in_a_folder(
        test_it_goes_on_with_the_first_stage_that_is_not_finished)),
    Mutant("align", "*more.get(name, [])", "", lambda: in_a_folder(test_flags_of_the_users_own_reach_their_stage)),
]


def in_a_folder(law):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        law(Path(folder))
