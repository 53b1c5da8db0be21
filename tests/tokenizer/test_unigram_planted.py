"""The laws of the compiled steps of unigram training see every planted fault of their C++.

The steps are built once more, alone, each marked expression as `planted == n ? wrong : right`.
"""

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import pytest
from planted_sources import plant_all
from test_unigram_steps import check_steps, check_ties

from minillama.tokenizer import unigram_steps

pytestmark = pytest.mark.long
CSRC = Path(__file__).resolve().parents[2] / "csrc"
STEPS, SEEDS = "unigram.cpp", "unigram_seeds.cpp"
BINDING = """#include "bind_unigram.h"
int planted = 0;
PYBIND11_MODULE(_steps, module) {
  module.def("plant", [](int number) { planted = number; });
  bind_unigram(module);
}
"""

FAULTS = [  # file of csrc/cpu; text that occurs there once, with @what is right@ in it; what is wrong instead
    (STEPS, "unknown_ = least - @kUnknownPenalty@;", "9.0"),
    (STEPS, "row.value < @kLeastCount@) continue", "1.0"),
    (STEPS, "least = @std::min(least, log_p)@;", "log_p"),
    (STEPS, "at += @character.size@;\n    }\n    piece_of_", "1"),
    (STEPS, "@piece < 0@) continue;\n      known", "piece < 1"),
    (STEPS, "known |= @end == start + 1@;", "true"),
    (STEPS, "insert(first, {start, @start + 1@, -1", "size"),
    (STEPS, "return @top + std::log(sum)@;", "std::log(sum)"),
    (STEPS, "sum += std::exp(@term - top@)", "term"),
    (STEPS, "terms_.push_back(@edge.log_p + after_[edge.end]@)", "edge.log_p"),
    (STEPS, "std::exp(before_[start] + edge.log_p + @after_[edge.end]@ -", "0.0"),
    (STEPS, "+= @count * share@;", "share"),
    (STEPS, "terms_.push_back(@before_[edge.start]@ + edge.log_p)", "0.0"),
    (STEPS, "x < @10.0@; x += 1.0", "9.0"),
    (STEPS, "- @0.5 / x@ - series", "0.0"),
    (STEPS, "const double of_sum = @digamma(sum)@;", "std::log(sum)"),
    (STEPS, "if (@without_whole && edge.start == 0 && end == lattice.size()@) continue;", "false"),
    (STEPS, "if (@sum > best_[end]@)", "sum >= best_[end]"),
    (STEPS, "return @found == of_character_.end() ? 0 : found->second@;", "0"),
    (STEPS, "of_character_[lattice.character(edge.start)] += @count@;", "1"),
    (STEPS, "counts.total() + count * (@path.size() - 1@)", "path.size()"),
    (STEPS, "lattice.edges()[path[i]]) + @count@) - new_total", "0"),
    (STEPS, "if (@!count@) continue;", "false"),
    (STEPS, "if (@lattice.size() == 1@) {", "false"),
    (STEPS, "return @a.first > b.first@; });", "a.first < b.first"),
    (STEPS, "i < losses.size() && @kept.size() < size@;", "true"),
    (SEEDS, "beginning(rest, @most + 1@)", "most"),
    (SEEDS, "@suffixes[kept - 1].value += suffixes[i].value@;", "0"),
    (SEEDS, "uint64_t count = @previous.value@;", "1"),
    (SEEDS, "count += @opened.back().second@;", "0"),
    (SEEDS, "opened.back().second += @count@;", "0"),
    (SEEDS, "if (@kind == kOutside@ || kind", "false"),
    (SEEDS, "|| @kind == kDigitClass@) return", "false"),
    (SEEDS, "inner_space |= @at > 0@;", "true"),
    (SEEDS, "kind != kAnyClass && script != kAnyClass && @kind != script@) return", "false"),
    (SEEDS, "return !(@inner_space@ && other)", "false"),
    (SEEDS, "@length && length <= rules.max_piece_length + 1@) whole", "length && length <= rules.max_piece_length"),
    (SEEDS, "if (@count > 1@) found", "count > 0"),
    (SEEDS, "if (@length > 1@ && valid_piece", "true"),
    (SEEDS, "{text, @count * length@}", "count"),
    (SEEDS, "return @a.value > b.value@; });", "a.value < b.value"),
    (SEEDS, "std::min(weights.size(), @kMostSeeds@)", "size_t(3)"),
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(number) -> None: plants that fault; 0 plants none. The steps are those with the faults."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed here")
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(CSRC / "cpu", folder / "cpu")
    shutil.copy(CSRC / "bind_unigram.h", folder)
    plant_all((number, folder / "cpu" / name, text, wrong) for number, (name, text, wrong) in enumerate(FAULTS, 1))
    for name in (STEPS, SEEDS):
        path = folder / "cpu" / name
        path.write_text(f"extern int planted;\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    (folder / "binding.cpp").write_text(BINDING, encoding="utf-8")
    includes = [f"-I{path}" for path in (folder, pybind11.get_include(), sysconfig.get_path("include"))]
    sources = ["binding.cpp", f"cpu/{STEPS}", f"cpu/{SEEDS}", "cpu/bpe.cpp", "cpu/word_counts.cpp"]
    done = subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-ffp-contract=off", "-fPIC", "-shared", *includes,
                           *sources, "-o", "_steps.so"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    spec = importlib.util.spec_from_file_location("_steps", folder / "_steps.so")  # pybind11 keeps one module of a name
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unigram_steps, "_core", lambda: core)
        yield core.plant


def all_laws():
    check_steps(range(60))
    check_ties()


def test_without_a_fault_every_law_holds(planted):
    planted(0)
    all_laws()


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{name}: {text} -> {wrong}"
                                                                 for name, text, wrong in FAULTS])
def test_every_fault_breaks_a_law(planted, number):
    planted(number)
    with pytest.raises((AssertionError, ValueError)):
        all_laws()
