"""The house keeps its own rules: names, sizes, floors, docstrings. Who has a reason to break one changes it here."""

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minillama"

CORE = "config rms_norm rope attention swiglu transformer kv_cache sampling generate".split()  # the reading order
PARTS = "rms_norm rope attention swiglu".split()  # take plain numbers and tensors, know no config
SIMT_ALONE = re.compile(r"minillama(?!\.simt)")  # what minillama/simt may not import
LIBRARIES = {"torch", "numpy", "regex", "tqdm", "matplotlib", "jinja2", "minillama"}  # what the package may import
EXTRAS = {"course.book": {"markdown_it", "latex2mathml", "pygments"},  # what one module may import beyond
          "web.server": {"starlette"}, "web.web_command": {"starlette", "uvicorn"}}
# Lines of Python that each part of the package may have. What is built after the house was moved into has a limit of
# its own, so that it is never paid for by pressing the rest together.
COUNTED_AS = {"simt": "the emulator", "course": "the course", **dict.fromkeys(
    ("evaluate", "web", "gguf_linear", "wordpiece", "grpo", "blank_infilling", "sharded", "sharded_checkpoint",
     "cuda_attention", "model_calls", "sharded_ppo",
     "tensor_parallel", "placement", "mixture", "subword_sampling", "adapters_package",
     "character_map", "unigram_steps", "byte_bpe_steps", "trust_region",
     "llama2_chat", "best_policy"), "what is new")}
LIMITS = {"the emulator": 1350, "the course": 1437, "the rest": 17993, "what is new": 4622}
# tests of no module:
WHOLE_REPOSITORY = ("bootstrap cuda_build run packaging layout mutants readme lessons exercises rounds doctests "
                    "types mutate lesson_rules lesson_seeds tiled_attention alternatives cleaning minhash "
                    "chinese_stories tuning_page normalized_tokenizer clean_corpus corpus_shards family scaling_law "
                    "mesh memory_cost tensorboard_log stack_exchange align two_rewards ghost_attention").split()
TESTED_ELSEWHERE = {"__init__": "by its package's tests", "__main__": "by test_command_line",
                    **dict.fromkeys(("protobuf", "sentencepiece_training"), "by test_sentencepiece, test_unigram"),
                    "simt_commands": "by test_cuda_program", "tokenizer_commands": "by test_command_line",
                    "generation_commands": "by test_command_line",
                    **dict.fromkeys(("ptx_instructions", "ptx_tables"), "by test_inline_ptx"),
                    **dict.fromkeys(("grader", "lesson_commands"), "by test_exercise"),
                    "held_out": "by test_feedback_commands and test_tour_own_worlds",
                    "stepper": "by test_lesson", "reward_file": "by test_feedback_commands",
                    "model_calls": "by test_train_ppo",
                    "notebook": "by test_book",
                    **dict.fromkeys(("piece_trainer", "word_counts", "unicode_script"), "by test_bpe"),
                    **dict.fromkeys(("training_run", "resumable"), "by test_pretrain, test_resume and test_sft")}


def files(*patterns):
    """Tracked files (and new ones that git does not ignore) that match; every file of a tree that is no checkout."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("needs a git checkout")
    paths = {ROOT / name for name in listed.stdout.split("\n") if name}
    return sorted(path for path in paths if path.is_file() and any(path.match(pattern) for pattern in patterns))


@functools.cache
def modules():
    return [path for path in files("*.py") if PACKAGE in path.parents]


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def statements_of(tree):
    """All statements, inside others too; their expressions, which are most of a tree, are not looked through."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for node in getattr(tree, field, []):
            yield node
            yield from statements_of(node)


def lines_in(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def name_of(path):
    """minillama/peft/lora.py -> peft.lora; a package is called by its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported_by(path):
    """Full names of what a file imports, inside functions too; relative imports are resolved."""
    folder = ["minillama", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            modules_inside = inside & {f"minillama.{name_of(other)}" for other in modules()}
            yield from modules_inside or {base}  # `from minillama.corpus import stories` means the module stories


@functools.cache
def own_imports(path):
    known = {name_of(other) for other in modules()}
    found = {name.removeprefix("minillama.") for name in imported_by(path) if name.startswith("minillama.")}
    return (found & known) - {name_of(path)}


@functools.cache
def floors():
    """{module beside minillama/__init__ or room: its floor}, as their `__init__` files state them."""
    found = {}
    for path in modules():
        for node in tree_of(path).body if path.name == "__init__.py" else []:
            name = getattr(getattr(node, "targets", [None])[0], "id", None)
            if name == "FLOORS":
                found.update(ast.literal_eval(node.value))
            elif name == "FLOOR":
                found[path.parent.name] = ast.literal_eval(node.value)
    return found


def floor_of(name):
    return floors().get(name.split(".")[0])


def test_base_names_are_unique():
    python = [p for p in files("*.py") if p.name not in ("__init__.py", "__main__.py") and "bench" not in p.parts
              and "exercises" not in p.parts and "solutions" not in p.parts]
    twice = [name for name, count in Counter(path.name for path in python).items() if count > 1]
    assert not twice, f"a search for these words finds two files: {twice}"


def test_every_module_has_its_test():
    tests = {path.stem.removeprefix("test_") for path in files("test_*.py")}
    bare = [name_of(path) for path in modules() if path.stem not in tests and path.stem not in TESTED_ELSEWHERE]
    assert not bare, f"modules without tests/test_<name>.py: {bare}"


def test_every_test_file_is_named_after_what_it_tests():
    stems = {path.stem for path in modules()} | {path.parent.name for path in modules()} | set(WHOLE_REPOSITORY)
    names = [path.stem.removeprefix("test_") for path in files("test_*.py")]
    stray = [name for name in names if not any(name == stem or name.startswith(stem + "_") for stem in stems)]
    assert not stray, f"test files that no module answers to: {stray}"


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in modules()}
    assert not [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()]


def test_files_are_short():
    long = {str(p.relative_to(ROOT)): lines_in(p) for p in files("*.py", "*.cpp", "*.h", "*.cu", "*.cuh")}
    long = {name: count for name, count in long.items() if count > 300}
    assert not long, f"over 300 lines: {long}"


def test_functions_are_short():
    long = {}
    for path in files("*.py"):
        for node in statements_of(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 50:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert not long, f"over 50 lines: {long}"


def test_the_forward_pass_and_the_package_keep_their_budgets():
    assert sum(lines_in(PACKAGE / f"{name}.py") for name in CORE) <= 800
    parts = dict.fromkeys(LIMITS, 0)
    for path in modules():
        part = COUNTED_AS.get(path.parent.name) or COUNTED_AS.get(path.stem, "the rest")
        parts[part] += lines_in(path)
    assert all(parts[part] <= limit for part, limit in LIMITS.items()), parts


def test_every_module_has_a_floor_and_nothing_imports_upward():
    names = {name_of(path): path for path in modules() if name_of(path) != "__init__"}
    homeless = [name for name in names if floor_of(name) is None]
    assert not homeless, f"modules without a floor: state FLOOR in the room's __init__: {homeless}"
    upward = [f"{name} -> {target}" for name, path in names.items() for target in own_imports(path) & set(names)
              if floor_of(target) > floor_of(name)]
    assert not upward, f"imports that go up: {upward}"


def test_the_emulator_imports_nothing_of_the_rest():
    found = {f"{name_of(path)}: {name}" for path in modules() if path.parent.name == "simt"
             for name in imported_by(path) if SIMT_ALONE.match(name)}
    assert not found, f"minillama/simt is to be lifted out whole: {found}"


def test_imports_make_no_circle():
    try:
        TopologicalSorter({name_of(path): own_imports(path) for path in modules()}).prepare()
    except CycleError as error:
        pytest.fail(f"modules that import each other: {error.args[1]}")


def test_parts_know_no_config():
    knowing = [name for name in PARTS if "config" in own_imports(PACKAGE / f"{name}.py")]
    assert not knowing, "a part takes plain numbers and tensors; only transformer.py reads the config"


def test_the_package_imports_its_few_libraries_and_no_oracle():
    allowed = LIBRARIES | set(sys.stdlib_module_names)
    strange = {f"{name_of(path)}: {name}" for path in modules() for name in imported_by(path)
               if name.split(".")[0] not in allowed | EXTRAS.get(name_of(path), set())}
    assert not strange


def test_importing_minillama_does_no_work():
    code = ("import sys, minillama; heavy = {'torch', 'numpy', 'regex', 'matplotlib'} & set(sys.modules)\n"
            "assert not heavy, heavy")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names_have_docstrings():
    bare = [name_of(path) for path in modules() if lines_in(path) and not ast.get_docstring(tree_of(path))]
    for path in modules():
        for node in tree_of(path).body:
            named = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if named and not ast.get_docstring(node):
                bare.append(f"{name_of(path)}.{node.name}")
    assert not bare, f"no docstring: {bare}"


def test_the_project_speaks_of_itself_alone():
    """No path of somebody's machine, no note to self: what is left to do is an issue, not a comment."""
    words = re.compile("|".join(["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/[a-z]", r"\bTO" + r"DO\b", r"\bFIX" + "ME"]))
    found = []
    for path in files("*.py", "*.md", "*.toml", "*.txt", "*.cff", "*.cpp", "*.h", "*.cu", "*.cuh", ".ci/run"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if words.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def links_in(page):
    """What a Markdown or SVG-carrying page points at inside the repository: [(path, heading or "")]."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    for target in (one or other for one, other in found):
        if not re.match(r"[a-z]+:", target):
            path, _, heading = target.partition("#")
            yield (page.parent / path if path else page), heading


def anchors(page):
    """The names that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_link_inside_the_repository_leads_to_a_file_and_a_heading():
    pages = files("*.md")
    dead = []
    for page in pages:
        for target, heading in links_in(page):
            if not target.exists() or (heading and target.suffix == ".md" and heading not in anchors(target)):
                dead.append(f"{page.relative_to(ROOT)} -> {target.name}#{heading}")
    assert not dead, f"dead links: {dead}"
    linked = {page.relative_to(ROOT).as_posix() for page in pages if list(links_in(page))}
    assert linked >= {"README.md", "README.zh.md", "docs/reading.md", "docs/lessons/README.md"}


def test_the_linter_is_content():
    pytest.importorskip("ruff", reason="ruff is not installed")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
