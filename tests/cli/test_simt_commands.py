"""`simt run` hands on what was typed, says what went wrong on stderr, and ends with a code that tells what it was."""

import json
from pathlib import Path

import pytest
from mutants import Mutant

from minillama.cli import simt_commands
from minillama.cli.command_line import build_parser, main
from minillama.simt import cuda_program
from minillama.simt.cuda_program import Result

RACE = {"kind": "race", "text": "kernel k: a race", "place": "a.cu:2", "other": "", "times": 3}


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A file that is there; what it was built and run with, and how the run ends, are in the list."""
    seen = [Result(0)]
    monkeypatch.setattr(cuda_program, "build", lambda *given: seen.append(given) or "program")
    monkeypatch.setattr(cuda_program, "run", lambda *given, memory: seen.append((*given, memory)) or seen[0])
    monkeypatch.chdir(tmp_path)
    for name in ("a.cu", "b.cpp"):
        Path(name).write_text("")
    return seen


def test_without_flags_there_are_no_folders_macros_counts_or_further_sources(program):
    assert main(["simt", "run", "a.cu"]) == 0
    assert program[1:] == [("a.cu", [], [], False, [], True), ("program", [], "forward", 60, 8)]


def test_flags_may_come_more_than_once_and_the_program_has_its_own_words(program):
    assert main(["simt", "run", "--with", "b.cpp", "-I", "x", "-I", "y", "-D", "N=3", "-D", "M", "--profile",
                 "--fmad", "false", "--schedule", "shuffle:12", "--limit-seconds", "0.5",
                 "--limit-gib", "1.5", "--", "a.cu", "3", "-n"]) == 0
    assert program[1:] == [("a.cu", ["x", "y"], ["N=3", "M"], True, ["b.cpp"], False),
                           ("program", ["3", "-n"], "shuffle:12", 0.5, 1.5)]


@pytest.mark.parametrize(("words", "said"), [
    (["none.cu"], "none.cu is no file"), (["a.cu", "--with", "none.h"], "none.h is no file"),
    (["a.cu", "--schedule", "shuffle"], "--schedule shuffle: use"),
    (["a.cu", "--schedule", "forward2"], "--schedule forward2: use")])
def test_what_cannot_be_is_named_before_anything_is_built(program, capsys, words, said):
    assert main(["simt", "run", *words]) == 2 and program[1:] == []
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0.0009", "0", "-1", "10000001", "nan", "soon"])
def test_seconds_out_of_their_range_are_a_wrong_use(program, capsys, seconds):
    with pytest.raises(SystemExit, match="2"):
        main(["simt", "run", "a.cu", "--limit-seconds", seconds])
    assert "--limit-seconds" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0.2", "0", "-1", "2000000", "nan", "much"])
def test_memory_out_of_its_range_is_a_wrong_use(program, capsys, size):
    with pytest.raises(SystemExit, match="2"):
        main(["simt", "run", "a.cu", "--limit-gib", size])
    assert "--limit-gib" in capsys.readouterr().err


def test_the_ends_of_the_range_of_seconds_are_allowed(program):
    for seconds in (0.001, 1e7):
        assert main(["simt", "run", "a.cu", "--limit-seconds", str(seconds)]) == 0 and program[-1][-2] == seconds


@pytest.mark.parametrize(("result", "code", "lines"), [
    (Result(0), 0, []), (Result(41), 41, []), (Result(0, findings=["a race"]), 1, ["a race"]),
    (Result(7, findings=["a race", "one more"]), 7, ["a race", "one more"]),
    (Result(0, unsupported="no graphs"), 3, ["no graphs"]), (Result(-9, "after 1 second"), 124, ["after 1 second"]),
    (Result(-11, "ended by SIGSEGV"), 139, ["ended by SIGSEGV"]),
    (Result(-9, "after 1 second", "no graphs", ["a race"]), 3, ["a race", "no graphs", "after 1 second"])])
def test_the_exit_code_is_the_programs_unless_there_is_more_to_say(program, capsys, result, code, lines):
    program[0] = result
    assert main(["simt", "run", "a.cu"]) == code
    assert capsys.readouterr() == ("", "".join(f"minillama: {line}\n" for line in lines))


def test_what_the_profiler_found_is_told_once_in_its_table_and_makes_the_code_1(program, capsys):
    program[0] = Result(0, profile=json.dumps({"kernels": [], "findings": []}))
    assert main(["simt", "run", "a.cu"]) == 0 and "nothing found wrong" in capsys.readouterr().err
    program[0] = Result(0, "", "", [RACE["text"]], json.dumps({"kernels": [], "findings": [RACE]}))
    assert main(["simt", "run", "a.cu"]) == 1
    err = capsys.readouterr().err
    assert err.count(RACE["text"]) == 1 and f"minillama: {RACE['text']}" not in err


def test_what_is_not_supported_ends_in_3_before_it_runs(program, capsys, monkeypatch):
    def refuse(*given):
        raise cuda_program.Unsupported("a.cu:2: unsupported: CUDA graphs")

    monkeypatch.setattr(cuda_program, "build", refuse)
    assert main(["simt", "run", "a.cu"]) == 3 and program[1:] == []
    assert capsys.readouterr() == ("", "minillama: a.cu:2: unsupported: CUDA graphs\n")


def _codes():
    said = [simt_commands._say(result) for result in (Result(-9, "late"), Result(-11, "ended"), Result(0))]
    assert said == [124, 139, 0] and not build_parser("simt").parse_args(["simt", "run", "a.cu"]).profile


MUTANTS = [Mutant("minillama.cli.simt_commands", "124 if result.code == -9", "124 if result.code != -9", _codes)]
