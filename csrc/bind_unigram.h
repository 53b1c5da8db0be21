// The steps of unigram training for minillama._C: dicts {text: number} in and out, in the order that they have.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/unigram.h"

namespace {

// The rows of a dict. Its keys are held, as the rows point into them.
template <typename Number>
class RowsOf {
 public:
  explicit RowsOf(const pybind11::dict& dict) {
    for (const auto [key, value] : dict) {
      Py_ssize_t size = 0;
      const char* text = PyUnicode_AsUTF8AndSize(key.ptr(), &size);
      if (!text) throw pybind11::error_already_set();
      held_.append(key);
      rows.push_back({{text, static_cast<size_t>(size)}, pybind11::cast<Number>(value)});
    }
  }
  std::vector<minillama::unigram::Row<Number>> rows;

 private:
  pybind11::list held_;
};
using CountRows = RowsOf<uint64_t>;
using PieceRows = RowsOf<double>;

// What work() gives, as a dict; other threads run meanwhile.
template <typename Work>
pybind11::dict dict_of(const Work& work) {
  minillama::unigram::Pieces rows;
  {
    const pybind11::gil_scoped_release release;
    rows = work();
  }
  pybind11::dict dict;
  for (const auto& [text, value] : rows) dict[pybind11::str(text.data(), text.size())] = value;
  return dict;
}

void bind_unigram(pybind11::module_& module) {
  using namespace minillama::unigram;
  using pybind11::arg;
  module.def("unigram_seeds", [](const pybind11::dict& words, const pybind11::dict& alphabet,
                                 const std::vector<uint8_t>& classes, uint32_t max_piece_length, bool whole_words) {
    const CountRows given(words), letters(alphabet);
    if (classes.size() != letters.rows.size()) throw std::invalid_argument("classes and alphabet are not equally many");
    return dict_of([&] { return seed_pieces(given.rows, letters.rows, classes, {max_piece_length, whole_words}); });
  }, arg("words"), arg("alphabet"), arg("classes"), arg("max_piece_length"), arg("whole_words"));
  module.def("unigram_expected_counts", [](const pybind11::dict& log_p, const pybind11::dict& words) {
    const PieceRows pieces(log_p);
    const CountRows given(words);
    return dict_of([&] {
      const std::vector<double> counts = expected_counts(Model(pieces.rows), given.rows);
      Pieces expected = pieces.rows;
      for (size_t i = 0; i < counts.size(); ++i) expected[i].value = counts[i];
      return expected;
    });
  }, arg("log_p"), arg("words"));
  module.def("unigram_maximize", [](const pybind11::dict& expected) {
    const PieceRows given(expected);
    return dict_of([&] { return maximize(given.rows); });
  }, arg("expected"));
  module.def("unigram_prune", [](const pybind11::dict& log_p, const pybind11::dict& words, size_t size) {
    const PieceRows pieces(log_p);
    const CountRows given(words);
    return dict_of([&] { return prune(Model(pieces.rows), given.rows, size); });
  }, arg("log_p"), arg("words"), arg("size"));
}

}  // namespace
