"""Laws of the Chinese README and glossary: they point at what exists, and say no other numbers than the English one."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import Mutant
from readme import rooms_block, tour_block, words_block

from minillama.course import lesson

ROOT = Path(__file__).parents[1]
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.zh.md").read_text(encoding="utf-8")
TERMS = [[part.strip() for part in line.strip("|").split("|")] for line in GLOSSARY.splitlines()
         if line.startswith("| ") and not line.startswith("| 中文")]


def links(text):
    return [target for target in re.findall(r"\]\(([^)#]+)\)", text) if not target.startswith("http")]


def test_every_file_the_chinese_readme_points_at_exists():
    missing = [target for target in links(CHINESE) if not (ROOT / target).exists()]
    assert len(links(CHINESE)) > 60 and not missing


def test_its_map_names_the_forward_pass_and_the_rest():
    modules = {target for target in links(CHINESE) if target.startswith("minillama/")}
    assert {f"minillama/{name}.py" for name in "config rms_norm rope attention swiglu transformer kv_cache sampling "
            "generate".split()} <= modules and len(modules) >= 20


def test_its_tour_is_the_recorded_one_and_its_first_screen_has_the_two_commands():
    recorded = json.loads((ROOT / "docs" / "tour.json").read_text(encoding="utf-8"))
    assert tour_block(recorded) in CHINESE and words_block() in CHINESE and rooms_block() in CHINESE
    first_screen = "\n".join(CHINESE.splitlines()[:20])
    assert "python3 run.py tour" in first_screen and "python3 run.py test" in first_screen


@pytest.mark.long
def test_every_command_of_the_chinese_readme_runs(tmp_path):
    (tmp_path / "README.zh.md").write_text(CHINESE, encoding="utf-8")
    for name in ("minillama", "docs", "lessons", "bench", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", CHINESE, flags=re.S) for line in block.splitlines()]
    for line in lines[2:]:  # tour and test have tests of their own
        for name, tool in (("clean-corpus", "clean_corpus"), ("evaluate", "evaluate"), ("judge", "judge_answers")):
            tool = ROOT / "tools" / f"{tool}.py"  # as run.py does it
            line = line.replace(f"python3 run.py {name}", f"PYTHONPATH={shlex.quote(str(ROOT))} "
                                f"{shlex.quote(sys.executable)} {tool}")
        command = line.replace("python3 run.py", f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} "
                                                 "-m minillama")
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert len(lines) >= 14


def test_the_glossary_has_its_terms_each_once_with_a_sentence_and_a_place():
    assert len(TERMS) >= 120 and all(len(row) == 4 and all(row) for row in TERMS)
    for column in (0, 1):
        names = [row[column] for row in TERMS]
        assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    assert all(re.search("[\u4e00-\u9fff]", row[2]) for row in TERMS)


def test_every_place_in_the_glossary_exists():
    """A lesson's page is made from the lesson: what counts here is that the lesson is written."""
    for target in (target for row in TERMS for target in links(row[3])):
        written = lesson.FOLDER / (Path(target).stem + ".py")
        assert (written if target.startswith("lessons/") else ROOT / "docs" / target).exists(), target
    assert all(links(row[3]) for row in TERMS)


MUTANTS = [Mutant("readme", "row['seconds']:.1f", "row['seconds']:.2f",
                  test_its_tour_is_the_recorded_one_and_its_first_screen_has_the_two_commands)]
