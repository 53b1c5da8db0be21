"""Programs with one mistake each are told of it by name and line, and sound ones are not accused.

Programs: tests/simt/programs. Of planted_*.cu the argument chooses one mistake, and the line at fault ends with
`// its name: argument`; in sound_*.cu comments `// prints: ...` foretell each line of output, by arithmetic.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from test_cuda_program import compiles

from minillama.simt.cuda_program import build, run

FOLDER = Path(__file__).resolve().parent / "programs"
SCHEDULES = ("forward", "reverse", "shuffle:5")
ONLY_FORWARD = {("planted_threads", 19)}  # a block that waits for the next one: the next may run first


def marks(name):
    """{argument: (kind, lines)} of a program with planted mistakes."""
    found = defaultdict(lambda: ("", []))
    for number, line in enumerate((FOLDER / f"{name}.cu").read_text(encoding="utf-8").splitlines(), 1):
        for kind, case in re.findall(r"// ([a-z ]+): (\d+)$", line):
            found[int(case)] = (kind, [*found[int(case)][1], number])
    return dict(sorted(found.items()))


def kinds_and_lines(result):
    """What was found: (kinds, lines of the program that are named, all of it)."""
    found = json.loads(result.profile)["findings"]
    launches = [line for line in result.findings if line.startswith("launch of ")]
    places = [place for one in found for place in (one["place"], one["other"]) if place]
    lines = {int(place.rsplit(":", 1)[1]) for place in places}
    lines |= {int(re.search(r"\.cu:(\d+):", line)[1]) for line in launches}
    return {one["kind"] for one in found} | ({"launch"} if launches else set()), lines, found


PLANTED = [(path.stem, case) for path in sorted(FOLDER.glob("planted_*.cu")) for case in marks(path.stem)]


def test_there_are_at_least_forty_planted_mistakes():
    assert len(PLANTED) >= 40


@compiles
@pytest.mark.long
@pytest.mark.parametrize(("name", "case"), PLANTED)
def test_a_planted_mistake_is_named_with_its_line_and_nothing_else_is(name, case, monkeypatch):
    monkeypatch.setenv("SIMT_SECONDS", "0.3")
    kind, lines = marks(name)[case]
    program = build(FOLDER / f"{name}.cu", profiled=True)
    for schedule in SCHEDULES[: 1 if (name, case) in ONLY_FORWARD else None]:
        result = run(program, [str(case)], schedule=schedule, seconds=60, write=lambda data: None)
        kinds, places, found = kinds_and_lines(result)
        assert kinds == {kind} and places & set(lines), (schedule, found, result)
        assert all(re.match(r"kernel .+, block \(.*\), thread \(.*\), \S+:\d+: |the host, \S+:\d+: ", one["text"])
                   for one in found), found


@compiles
@pytest.mark.long
def test_a_place_is_named_where_a_folder_has_a_blank(tmp_path):
    source = tmp_path / "day 28" / "k.cu"
    source.parent.mkdir()
    source.write_text("__global__ void k(int *x) { x[0] += 1; }\nint main() {\n  int *x;\n  cudaMalloc(&x, 4);\n"
                      "  k<<<1, 1>>>(x);\n  return cudaDeviceSynchronize();\n}\n")
    [found] = json.loads(run(build(source, profiled=True)).profile)["findings"]
    assert found["place"] == f"{source}:1" and ", k.cu:1: reads 4 bytes that nobody has written" in found["text"]


SOUND = sorted(path.stem for path in FOLDER.glob("sound_*.cu"))


def promised(name):
    return re.findall(r"^// prints: (.*)$", (FOLDER / f"{name}.cu").read_text(encoding="utf-8"), flags=re.M)


def test_there_are_at_least_forty_sound_programs():
    assert sum(len(promised(name)) for name in SOUND) >= 40


def printed(name, profiled, schedule):
    out = []
    result = run(build(FOLDER / f"{name}.cu", profiled=profiled), schedule=schedule, write=out.append)
    lines = [line for line in b"".join(out).decode().splitlines() if not line.startswith("[emulator: ")]
    return lines, result


@compiles
@pytest.mark.parametrize("name", SOUND[:1])
def test_a_sound_program_prints_what_arithmetic_says(name):
    for schedule in SCHEDULES:
        lines, result = printed(name, False, schedule)
        assert lines == promised(name) and result.code == 0 and not result.findings, result


@compiles
@pytest.mark.long
@pytest.mark.parametrize("name", SOUND)
def test_no_sound_program_is_accused(name):
    for profiled in (False, True):
        for schedule in SCHEDULES:
            lines, result = printed(name, profiled, schedule)
            found = json.loads(result.profile)["findings"] if profiled else []
            assert lines == promised(name) and result.code == 0 and not result.findings and not found, (found, result)
