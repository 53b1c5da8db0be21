// minillama._C: what is compiled but no tensor operator. Arguments in, results out; the work is in csrc/cpu.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind_unigram.h"
#include "cpu/bpe.h"
#include "cpu/byte_bpe.h"

namespace py = pybind11;
using namespace minillama::bpe;

namespace {

// The UTF-8 of a str: in place if it is ASCII, else a copy that lives as long as this object.
class Utf8 {
 public:
  explicit Utf8(const py::str& text) {
    if (PyUnicode_IS_ASCII(text.ptr())) {
      view_ = {static_cast<const char*>(PyUnicode_DATA(text.ptr())), static_cast<size_t>(PyUnicode_GET_LENGTH(text.ptr()))};
    } else {
      bytes_ = py::reinterpret_steal<py::bytes>(PyUnicode_AsUTF8String(text.ptr()));
      if (!bytes_) throw py::error_already_set();  // UnicodeEncodeError: a lone surrogate
      view_ = bytes_;
    }
  }
  std::string_view view() const { return view_; }

 private:
  py::bytes bytes_;
  std::string_view view_;
};

constexpr size_t kBrief = 4096;  // bytes that take some microseconds: not worth letting other threads run

// The ids 0 to n - 1 as Python's numbers, one object for each, shared by all lists; larger ones are made anew, as a
// file may name any.
class Numbers {
 public:
  explicit Numbers(size_t n) {
    for (size_t id = 0; id < std::min<size_t>(n, kMostShared); ++id) numbers_.push_back(py::int_(id));
  }

  // What encode(text) gives, as a list. While a long text is encoded, other threads run.
  template <typename Encode>
  py::list list(const py::str& text, const Encode& encode) const {
    const Utf8 utf8(text);
    std::vector<int32_t> ids;
    if (utf8.view().size() <= kBrief) {
      ids = encode(utf8.view());
    } else {
      const py::gil_scoped_release release;
      ids = encode(utf8.view());
    }
    py::list list(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto id = static_cast<size_t>(ids[i]);
      PyList_SET_ITEM(list.ptr(), i, (id < numbers_.size() ? py::object(numbers_[id]) : py::int_(id)).release().ptr());
    }
    return list;
  }

 private:
  static constexpr size_t kMostShared = 1 << 20;
  std::vector<py::int_> numbers_;
};

// Encodes with a SentencePiece vocabulary.
class Encoder {
 public:
  Encoder(std::vector<std::string> texts, const std::vector<float>& scores, const std::vector<int>& kinds,
          int32_t unk_id, bool byte_fallback)
      : core_(rows(std::move(texts), scores, kinds), unk_id, byte_fallback), numbers_(scores.size()) {}

  py::list encode(const py::str& text, bool dummy_prefix, bool spaces) const {
    return numbers_.list(text, [&](std::string_view bytes) { return core_.encode(bytes, dummy_prefix, spaces); });
  }

 private:
  static std::vector<PieceRow> rows(std::vector<std::string> texts, const std::vector<float>& scores,
                                    const std::vector<int>& kinds) {
    if (scores.size() != texts.size() || kinds.size() != texts.size())
      throw std::invalid_argument("texts, scores and kinds are not equally many");
    std::vector<PieceRow> rows;
    for (size_t id = 0; id < texts.size(); ++id)
      rows.push_back({std::move(texts[id]), rank_of_score(scores[id]), kinds[id]});
    return rows;
  }

  BpeEncoder core_;
  Numbers numbers_;
};

using Classes = std::vector<std::array<uint32_t, 3>>;  // (first, last, class) of characters

std::vector<Pattern> known(const std::vector<int>& numbers) {
  std::vector<Pattern> patterns;
  for (const int number : numbers) {
    if (number < 0 || number > 2) throw std::invalid_argument("a pattern that is not known");
    patterns.push_back(static_cast<Pattern>(number));
  }
  return patterns;
}

// Encodes with a byte-level vocabulary.
class ByteEncoder {
 public:
  ByteEncoder(const std::vector<std::string>& tokens, const std::vector<int32_t>& ids,
              const std::vector<std::pair<std::string, std::string>>& merges, bool ids_are_ranks, bool whole_words,
              const Classes& classes, const std::vector<int>& patterns)
      : core_(tokens, ids, pairs(merges), ids_are_ranks, whole_words, WordSplitter(classes, known(patterns))),
        numbers_(ids.empty() ? 0 : static_cast<size_t>(*std::max_element(ids.begin(), ids.end())) + 1) {}

  py::list encode(const py::str& text) const {
    return numbers_.list(text, [&](std::string_view bytes) { return core_.encode(bytes); });
  }

  py::list split(const py::str& text) const {
    py::list words;
    const Utf8 utf8(text);
    core_.splitter().for_each(utf8.view(), [&](std::string_view word) { words.append(py::str(word.data(), word.size())); });
    return words;
  }

 private:
  static std::vector<Merge> pairs(const std::vector<std::pair<std::string, std::string>>& merges) {
    std::vector<Merge> pairs;
    for (const auto& [left, right] : merges) pairs.push_back({left, right});
    return pairs;
  }

  ByteBpeEncoder core_;
  Numbers numbers_;
};

// Reading and learning byte-level BPE, with the calls in this order: feed ..., learn ...
class ByteTrainer {
 public:
  ByteTrainer(const py::bytes& bytes, const Classes& classes, const std::vector<int>& patterns)
      : core_(bytes, WordSplitter(classes, known(patterns))) {}

  void feed(const py::str& text) {
    const Utf8 utf8(text);
    const py::gil_scoped_release release;
    core_.feed(utf8.view());
  }

  std::vector<std::pair<uint32_t, uint32_t>> learn(size_t most) {
    const py::gil_scoped_release release;
    return core_.learn(most);
  }

 private:
  ByteBpeTrainer core_;
};

// Reading and learning, with the calls in this order: feed ..., choose_alphabet, learn ...
class Trainer {
 public:
  Trainer(const std::vector<std::string>& meta, const std::vector<std::array<uint32_t, 3>>& classes, uint8_t common,
          uint64_t max_line_bytes, uint32_t max_piece_length, unsigned threads)
      : counter_(meta, classes, common, max_line_bytes, threads), max_piece_length_(max_piece_length) {}

  void feed(const py::bytes& block, bool is_last) {
    const std::string_view view = block;
    const py::gil_scoped_release release;
    counter_.feed(view, is_last);
  }

  py::dict report() const {
    const ReadingReport report = counter_.report();
    py::dict counts;
    counts["lines"] = report.lines;
    counts["long_lines"] = report.long_lines;
    counts["reserved_lines"] = report.reserved_lines;
    counts["bytes"] = report.bytes;
    counts["characters"] = report.characters;
    return counts;
  }

  py::tuple choose_alphabet(float coverage) {
    {
      const py::gil_scoped_release release;
      StringCounts counts = counter_.take_counts();
      alphabet_ = minillama::bpe::choose_alphabet(counts, coverage);
      counts_ = std::make_unique<StringCounts>(std::move(counts));
    }
    return py::make_tuple(alphabet_.characters, alphabet_.uncovered);
  }

  py::list learn(size_t most) {
    std::vector<std::string> pieces;
    {
      const py::gil_scoped_release release;
      if (!trainer_) {
        if (!counts_) throw std::logic_error("learn was called before choose_alphabet");
        trainer_ = std::make_unique<PieceTrainer>(std::move(*counts_), alphabet_.characters, counter_.classes(),
                                                  max_piece_length_);
        counts_.reset();
      }
      pieces = trainer_->learn(most);
    }
    return py::cast(pieces);
  }

  uint64_t last_count() const { return trainer_ ? trainer_->last_count() : 0; }
  uint64_t segments() const { return trainer_ ? trainer_->segments() : 0; }

 private:
  SegmentCounter counter_;
  uint32_t max_piece_length_;
  Alphabet alphabet_;
  std::unique_ptr<StringCounts> counts_;
  std::unique_ptr<PieceTrainer> trainer_;
};

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "minillama's compiled parts that are no tensor operators; see minillama.tokenizer";
  py::class_<Encoder>(module, "BpeEncoder")
      .def(py::init<std::vector<std::string>, const std::vector<float>&, const std::vector<int>&, int32_t, bool>(),
           py::arg("texts"), py::arg("scores"), py::arg("kinds"), py::arg("unk_id"), py::arg("byte_fallback"))
      .def("encode", &Encoder::encode, py::arg("text"), py::arg("dummy_prefix"), py::arg("spaces"));
  py::class_<ByteEncoder>(module, "ByteBpeEncoder")
      .def(py::init<const std::vector<std::string>&, const std::vector<int32_t>&,
                    const std::vector<std::pair<std::string, std::string>>&, bool, bool, const Classes&,
                    const std::vector<int>&>(),
           py::arg("tokens"), py::arg("ids"), py::arg("merges"), py::arg("ids_are_ranks"), py::arg("whole_words"),
           py::arg("classes"), py::arg("patterns"))
      .def("encode", &ByteEncoder::encode, py::arg("text"))
      .def("split", &ByteEncoder::split, py::arg("text"));
  py::class_<ByteTrainer>(module, "ByteBpeTrainer")
      .def(py::init<const py::bytes&, const Classes&, const std::vector<int>&>(), py::arg("bytes"), py::arg("classes"),
           py::arg("patterns"))
      .def("feed", &ByteTrainer::feed, py::arg("text"))
      .def("learn", &ByteTrainer::learn, py::arg("most"));
  py::class_<Trainer>(module, "BpeTrainer")
      .def(py::init<const std::vector<std::string>&, const std::vector<std::array<uint32_t, 3>>&, uint8_t, uint64_t, uint32_t,
                    unsigned>(),
           py::arg("meta_pieces"), py::arg("classes"), py::arg("common"), py::arg("max_line_bytes"),
           py::arg("max_piece_length"), py::arg("threads"))
      .def("feed", &Trainer::feed, py::arg("block"), py::arg("is_last"))
      .def("report", &Trainer::report)
      .def("choose_alphabet", &Trainer::choose_alphabet, py::arg("coverage"))
      .def("learn", &Trainer::learn, py::arg("most"))
      .def_property_readonly("last_count", &Trainer::last_count)
      .def_property_readonly("segments", &Trainer::segments);
  bind_unigram(module);
}
