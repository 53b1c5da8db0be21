"""The laws of byte-level BPE see every planted fault of its C++: one wrong expression makes one of them fail.

The compiled core is built once more, under names of its own, each marked expression as `planted == n ? wrong : right`.
"""

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import pytest
from planted_sources import plant_all
from test_byte_bpe import check_both_backends
from test_byte_bpe_steps import check_odd_texts, check_one_letter, check_ties
from test_character_classes import EVERYTHING, check_both_cut_alike

from minillama.tokenizer import byte_bpe_steps, compiled, default_backend
from minillama.tokenizer.byte_bpe import GPT2_WORDS, LLAMA3_WORDS, SINGLE_DIGITS, ByteBpeTokenizer

pytestmark = [pytest.mark.long, pytest.mark.skipif(default_backend() != "cpp", reason=f"not built: {compiled.BUILD}")]
CSRC = Path(__file__).resolve().parents[2] / "csrc"
JOIN, WORDS, LEARN, QUEUE = "byte_bpe.cpp", "byte_words.cpp", "byte_bpe_training.cpp", "bpe.cpp"

FAULTS = [  # file of csrc/cpu; text that occurs there once, with @what is right@ in it; what is wrong instead
    (JOIN, "if (slot.left == left && @std::string_view(slot.data, slot.size) == text@)", "slot.size == text.size()"),
    (JOIN, "if (@slot.left == left@ && std::string_view", "true"),
    (JOIN, "ranks_.insert(joined, @static_cast<uint32_t>(i)@", "0"),
    (JOIN, "@joined.size() > longest_@", "joined.size() >= longest_"),
    (JOIN, "@whole_words_ || word.size() == 1@ ?", "true"),
    (JOIN, "@whole_words_ || word.size() == 1@ ?", "word.size() == 1"),
    (JOIN, "[](const Part& a, const Part& b) { return @a.rank < b.rank@", "a.rank > b.rank"),
    (JOIN, "if (i > 0) @update(i - 1)@", "(void)0"),
    (JOIN, "@parts[i + 1].begin - parts[i].begin@);\n  };", "1"),
    (JOIN, "if (left > 0) @consider(previous[left])@", "(void)0"),
    (JOIN, "entry.count = @static_cast<uint32_t>(ids.size() - before)@", "1"),
    (WORDS, "@any_case && byte >= 'A' && byte <= 'Z'@ ?", "any_case && byte > 'D' && byte <= 'Z'"),
    (WORDS, "text.substr(@at + 1@, 2) ==", "at"),
    (WORDS, "(@first == 'l'@ && second == 'l')", "true"),
    (WORDS, "skip(Class::kNumber, text, at, @3@)", "4"),
    (WORDS, "if (@!is_line_end(text[at])@ && following.size", "true"),
    (WORDS, "after_space = @text[at] == ' '@ &&", "first.kind == Class::kSpace"),
    (WORDS, "while (@end < text.size() && is_line_end(text[end])@)", "false"),
    (WORDS, "begin = @text[at] == ' '@ ? at + 1", "next(text, at).kind == Class::kSpace"),
    (WORDS, "return @end == text.size() || last == at@ ? end : last", "last == at"),
    (WORDS, "if (by_line && @line_end@) return", "0"),
    (WORDS, "while (character.size && @character.kind != Class::kNumber@)", "true"),
    (LEARN, "symbol_of[static_cast<unsigned char>(@bytes[i]@)]", "i"),
    (LEARN, "if (@entry.size > 1@) add_word", "entry.size > 2"),
    (LEARN, "add_word(entry.text(), @entry.count@, symbol_of)", "uint64_t(1)"),
    (LEARN, "kNoPair, static_cast<uint32_t>(@weights_.size()@)});", "0"),
    (LEARN, "while (@learnt.size() < most@)", "learnt.size() <= most"),
    (LEARN, "|| @pairs_[pair].count == 0@) break", "false"),
    (LEARN, "learnt.emplace_back(@pairs_[pair].left@,", "pairs_[pair].right"),
    (LEARN, "{ counts_.add(word, @1@); }", "word.size()"),
    (QUEUE, "if (@ties_by_symbols_@) return {PairMap", "false"),
    (QUEUE, "PairMap::key(@pairs_[pair].left@, pairs_[pair].right), pair", "pairs_[pair].right"),
    (QUEUE, "PairMap::key(pairs_[pair].left, @pairs_[pair].right@), pair", "0u"),
    (QUEUE, "if (@pairs_[pair].count == level_@) return pair;", "true"),
    (QUEUE, "if (@other_after >= 0@) {", "false"),
    (QUEUE, "pairs_[places_[middle].pair].count -= @weight@;", "0"),
    (QUEUE, "pairs_[places_[before].pair].count -= @weight@;", "0"),
]


def with_faults(folder):
    """A copy of csrc in `folder` in which fault n is in force while `planted` is n, and whose types are its own."""
    shutil.copytree(CSRC, folder, dirs_exist_ok=True)
    plant_all((number, folder / "cpu" / name, text, wrong) for number, (name, text, wrong) in enumerate(FAULTS, 1))
    for name in (JOIN, WORDS, LEARN, QUEUE):
        path = folder / "cpu" / name
        path.write_text(f"extern int planted;\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    binding = (folder / "bind_c.cpp").read_text(encoding="utf-8")
    binding = binding.replace("namespace {\n", "int planted = 0;\nnamespace with_faults {\n", 1).replace(
        "}  // namespace\n", "}  // namespace\nusing namespace with_faults;\n", 1).replace(
        'module.doc() =', 'module.def("plant", [](int number) { planted = number; });\n  module.doc() =', 1)
    (folder / "bind_c.cpp").write_text(binding, encoding="utf-8")
    for path in [path for path in folder.rglob("*") if path.suffix in (".h", ".cpp")]:
        source = path.read_text(encoding="utf-8")
        path.write_text(source.replace("minillama::bpe", "minillama_planted::bpe"), encoding="utf-8")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(number) -> None: plants that fault; 0 plants none. The tokenizers' core is the one with the faults."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed here")
    folder = tmp_path_factory.mktemp("planted")
    with_faults(folder)
    includes = [f"-I{path}" for path in (folder, pybind11.get_include(), sysconfig.get_path("include"))]
    patterns = ("*bpe*.cpp", "*word*.cpp", "unigram*.cpp")
    sources = [str(path) for pattern in patterns for path in folder.glob(f"cpu/{pattern}")]
    done = subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", *includes, "bind_c.cpp", *sources,
                           "-o", "_C.so"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    spec = importlib.util.spec_from_file_location("_C", folder / "_C.so")
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    with pytest.MonkeyPatch.context() as patch:
        for module in (compiled, byte_bpe_steps):
            patch.setattr(module, "_core", lambda: core)
        yield core.plant


def check_rare_words():
    """A contraction in each spelling, spaces of each kind at each end of a line, and joins where many are equal."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"'s", b"'\xc5\xbf", b"re", b"ll", b"al", b"\r\n", b"  ", b"12",
                                                      b"123", b"1234", b"aa", b"aaa", b"aaaa", b"\xe3\x80\x80a", b" a",
                                                      b"bc", b"ab", b"abc"]
    ids = {token: index for index, token in enumerate(tokens)}
    merges = {(b"a", b"a"): 0, (b"aa", b"a"): 1, (b"a", b"aa"): 3, (b"aa", b"aa"): 2, (b" ", b"a"): 4, (b"r", b"e"): 5,
              (b"a", b"l"): 6, (b"l", b"l"): 7, (b" ", b" "): 8, (b"\r", b"\n"): 9, (b"b", b"c"): 10, (b"a", b"b"): 11,
              (b"ab", b"c"): 12}  # not ("a", "bc"), which is what is left of "abc"
    texts = ["it's It'S it'\u017f we'RE we'rE al'al a'll 'tis 'd'm'vevE'r", "12345 1 12 \u0663\u0663\u0663\u0663",
             "a\r\n b \n\n  c\r", " a  a   a", "\u3000a \u3000 a", "!\n\n! \r\n?", "x \n y", "\n a", "a" * 23 + " " +
             "a" * 25 + " " + "a" * 71 + "b" + "a" * 130, "  ", " \n", "a ", "1!2a3 4", "a'Dx", "it'\u017fab",
             "x\ny", "\u3000!\t!", "abc"]
    for words in ([LLAMA3_WORDS], [GPT2_WORDS], [SINGLE_DIGITS, GPT2_WORDS]):
        for joins in (None, merges):
            for whole in (True, False):
                ours, plain = (ByteBpeTokenizer(ids, {}, words, joins, whole, backend=backend)
                               for backend in ("cpp", "python"))
                for text in texts:
                    assert ours.split(text) == plain.split(text)
                    assert ours.encode(text) == plain.encode(text) == ours.encode(text)


def all_laws():
    check_rare_words()
    check_ties(range(20))
    check_odd_texts()
    check_one_letter()
    check_both_backends(0, 20)


def test_without_a_fault_every_law_holds(planted):
    planted(0)
    all_laws()
    check_both_cut_alike([GPT2_WORDS], EVERYTHING[::500])


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{name}: {text} -> {wrong}"
                                                                 for name, text, wrong in FAULTS])
def test_every_fault_breaks_a_law(planted, number):
    planted(number)
    with pytest.raises((AssertionError, TypeError, ValueError)):
        all_laws()
