"""What is built from the tree works outside it: a wheel, an sdist, and the kernel sources inside both."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tracked(*below):
    """Files of the repository, as git knows them; outside a checkout the tests that need it skip."""
    done = subprocess.run(["git", "ls-files", *below], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("needs a git checkout")
    return done.stdout.split()


def copy_of_the_tree(folder):
    for name in tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, target)
    return folder


def run_in(folder, *command):
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_version_is_the_same_everywhere():
    import minillama

    stated = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M).group(1)
    cited = re.search(r"^version: (.*)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M).group(1)
    assert minillama.__version__ == stated == cited
    assert f"## {stated}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_each_source_that_setup_compiles_is_in_the_tree_or_still_to_come():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    sources = set(re.findall(r'"(csrc/[\w/]+\.cpp)"', text))
    compiled = {name for name in tracked("csrc") if name.endswith(".cpp") and "/simt/" not in name}
    assert compiled <= sources, "a source that setup.py does not compile"


@pytest.mark.long
def test_a_wheel_and_an_sdist_work_outside_the_checkout(tmp_path):
    """Wheel from the sdist (so both are whole), installed in a fresh venv that sees only our libraries."""
    tree, away = copy_of_the_tree(tmp_path / "tree"), tmp_path / "away"
    away.mkdir()
    run_in(tree, sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    run_in(unpacked, sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ".")
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    wanted = [name for name in tracked("minillama") if not name.endswith(".gitignore")]
    wanted += ["minillama/" + name for name in tracked("csrc")]
    wanted += [f"minillama/{name}" for name in tracked("lessons/*.py", "lessons/*.json") if name.count("/") == 1]
    assert set(wanted) <= set(names)
    assert not [name for name in names if name.startswith(("tests", "bench", "lessons"))]

    run_in(away, sys.executable, "-m", "venv", "venv")
    python = away / "venv/bin/python"
    site = Path(run_in(away, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    import torch
    (site / "libraries.pth").write_text(str(Path(torch.__file__).parents[1]))  # PyTorch and the rest, not copied
    run_in(away, python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    code = ("import os, shutil, minillama; from minillama import kernels\n"
            f"assert minillama.__file__.startswith({str(away)!r}), minillama.__file__\n"
            f"assert str(kernels.source_folder()).startswith({str(away)!r})\n"
            "import minillama.transformer\n"
            "os.environ['TORCH_EXTENSIONS_DIR'] = 'cache'; os.mkdir('cache')\n"
            "open('lab.cpp', 'w').write('''#include <pybind11/pybind11.h>\n#include \"cpu/rope.h\"\n"
            "float turned(float a, float b) { float x[] = {a, b}, table[] = {0, 1}, y[2];\n"
            "  minillama::rope_cpu<float>({{x, 2, 2, 2}, y, 2, 2, 2, 1}, {}, {table, nullptr, 1, 1, 0, 0},\n"
            "                             {1, 1, 2, true, false}, 0, 1); return y[1]; }\n"
            "PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def(\"turned\", &turned); }''')\n"
            "if shutil.which('c++'):\n"
            "    assert kernels.load_source('lab', ['lab.cpp', 'cpu/rope.cpp']).turned(3, 5) == 3\n"
            "    assert 'cpu' in kernels.built_backends()\n")
    run_in(away, python, "-I", "-c", "import sys; sys.path.insert(0, '')\n" + code)
    for number in (16, 18, 37):  # they import what lies beside them, and read records and a kernel's source
        run_in(away, python, "-I", "-m", "minillama", "notebook", number)
        (notebook,) = (away / "out" / "lessons").glob(f"{number}_*.ipynb")
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        (away / "notebook.py").write_text(f"display = lambda figure: None\n{text}\n")
        run_in(away, python, "notebook.py")
