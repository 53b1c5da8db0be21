"""Laws of csrc/cpu/bpe_maps.h, what the compiled tokenizer stands on, in a small C++ program of its own."""

import itertools
import random
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
PROGRAM = r"""
#include "cpu/bpe_maps.h"
#include <cstdio>
#include <set>
using namespace minillama::bpe;

// Every character: its bytes, and what is read back of them, whole and cut short.
static void characters() {
  char out[4];
  for (uint32_t code = 0; code < kCodePoints; ++code) {
    const size_t size = write_utf8(code, out);
    const Character whole = character_at(std::string_view(out, size), 0);
    const Character cut = character_at({out, size - (size > 1)}, 0);
    if (code >= 0xD800 && code < 0xE000 ? whole.size != 0 : whole.size != size || whole.code != code)
      std::printf("U+%X is read as U+%X of %u bytes\n", code, whole.code, whole.size);
    if (size > 1 && cut.size) std::printf("U+%X cut short is a character\n", code);
  }
}

// Four bytes of every kind, in any order: sizes, for Python's decoder to agree with.
static void sizes() {
  static const unsigned char kinds[] = {KINDS};
  for (const unsigned char a : kinds)
    for (const unsigned char b : kinds)
      for (const unsigned char c : kinds)
        for (const unsigned char d : kinds) {
          const unsigned char text[] = {a, b, c, d};
          std::putchar('0' + static_cast<int>(character_at(text, text + 4).size));
        }
  std::putchar('\n');
}

// Texts that differ in one byte, or in their length alone, have different hashes; and the low bits of texts in a row
// are spread as if drawn: of 2^14 in 2^14 places 1 - 1/e are taken, 10,357, and 60 is a standard deviation.
static void hashes() {
  for (size_t size = 0; size <= 40; ++size) {
    std::string text(size, 'a');
    std::set<uint64_t> seen{hash_bytes(text.data(), size)};
    size_t texts = 1;
    for (size_t at = 0; at < size; ++at)
      for (int other = 0; other < 256; ++other) {
        if (other == 'a') continue;
        text[at] = static_cast<char>(other);
        seen.insert(hash_bytes(text.data(), size));
        ++texts;
        text[at] = 'a';
      }
    if (seen.size() != texts) std::printf("%zu bytes: %zu hashes of %zu texts\n", size, seen.size(), texts);
  }
  std::set<uint64_t> lengths;
  const std::string zeros(64, '\0');
  for (size_t size = 0; size <= 64; ++size) lengths.insert(hash_bytes(zeros.data(), size));
  if (lengths.size() != 65) std::printf("%zu hashes of zeros of 65 lengths\n", lengths.size());
  for (const size_t digits : {5, 7, 11, 19}) {
    std::set<uint64_t> low, high;
    for (int i = 0; i < 1 << 14; ++i) {
      char text[32];
      std::snprintf(text, sizeof text, "%0*d", static_cast<int>(digits), i);
      const uint64_t hash = hash_bytes(text, digits);
      low.insert(hash & 0x3FFF);
      high.insert(hash >> 18 & 0x3FFF);
    }
    for (const size_t taken : {low.size(), high.size()})
      if (taken < 10000) std::printf("%zu digits: %zu places of 16384 are taken\n", digits, taken);
  }
}

// The longest of some texts that begins another, asked of each line of words on the standard input.
static void prefixes() {
  char line[256];
  while (std::fgets(line, sizeof line, stdin)) {
    std::vector<std::string> words;
    std::string_view rest(line, std::strlen(line) - 1);
    for (size_t end; (end = rest.find(' ')) != std::string_view::npos; rest.remove_prefix(end + 1))
      words.emplace_back(rest.substr(0, end));
    const PrefixSet set(words);
    std::printf("%zu%d%d", set.longest(rest), set.may_begin_with('a'), set.empty());
  }
  std::putchar('\n');
}

// Rows are cut from blocks of 2^18 bytes, and a row that is longer has one of its own; none lies in another.
static void rows() {
  Rows<uint16_t> memory;
  std::vector<std::pair<uint16_t*, size_t>> taken;
  for (const size_t size : {1, 131071, 131072, 1, 131073, 2, 5, 400000, 7, 131064, 3})
    taken.emplace_back(memory.take(size), size);
  for (uint16_t i = 0; i < taken.size(); ++i) std::fill_n(taken[i].first, taken[i].second, i);
  for (uint16_t i = 0; i < taken.size(); ++i)
    for (size_t at = 0; at < taken[i].second; ++at)
      if (taken[i].first[at] != i) return void(std::printf("row %d is overwritten\n", i));
}

int main() {
  characters();
  hashes();
  rows();
  sizes();
  prefixes();
}
"""
KINDS = [0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0,
         0xF1, 0xF4, 0xF5, 0xFF]


def size_of_first(raw):
    """Bytes of the UTF-8 character at the beginning, by Python's decoder; 0 where there is none."""
    for size in (1, 2, 3, 4):
        try:
            if len(raw[:size].decode("utf-8")) == 1:
                return size
        except UnicodeDecodeError:
            pass
    return 0


def longest(words, text):
    """The longest of the words that begins the text, looked for one by one."""
    return max((len(word) for word in words if text.startswith(word)), default=0)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """(sets of words with a text, lines that the program prints about them and about all else)."""
    compiler, folder = shutil.which("c++") or pytest.skip("needs a C++ compiler"), tmp_path_factory.mktemp("maps")
    (folder / "laws.cpp").write_text(PROGRAM.replace("{KINDS}", f"{{{', '.join(map(str, KINDS))}}}"))
    subprocess.run([compiler, "-std=c++17", "-O1", f"-I{CSRC}", folder / "laws.cpp", "-o", folder / "laws"], check=True)
    rng = random.Random(0)
    asked = [(sorted({"".join(rng.choices("ab\x7f~", k=rng.randrange(1, 5))) for _ in range(rng.randrange(9))},
                     key=lambda _: rng.random()), "".join(rng.choices("ab\x7f~", k=rng.randrange(8))))
             for _ in range(400)]
    given = "".join(" ".join([*words, text]) + "\n" for words, text in asked)
    done = subprocess.run([folder / "laws"], input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return asked, done.stdout.splitlines()


def test_characters_hashes_and_rows_keep_their_laws(said):
    assert said[1][:-2] == []


def test_bytes_of_every_kind_are_read_as_by_pythons_decoder(said):
    wanted = "".join(str(size_of_first(bytes(raw))) for raw in itertools.product(KINDS, repeat=4))
    assert said[1][-2] == wanted


def test_the_longest_of_a_set_of_texts_is_the_one_found_by_looking_at_all(said):
    wanted = "".join(f"{longest(words, text)}{any(word[0] == 'a' for word in words):d}{not words:d}"
                     for words, text in said[0])
    assert said[1][-1] == wanted and len(set(wanted)) > 3
