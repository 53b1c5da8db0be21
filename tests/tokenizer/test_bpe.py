"""BPE in plain Python: the vocabulary is sentencepiece's, piece for piece; Sennrich's form is the paper's."""

import itertools
import random
import warnings

import pytest
import regex
from mutants import Mutant
from tokenizer_texts import CRUEL, processor, random_training, real_text, train_oracle

from minillama.tokenizer import SentencePieceTokenizer, train_bpe
from minillama.tokenizer.bpe import join_pairs, sennrich_encode, sennrich_merges
from minillama.tokenizer.unicode_script import RANGES, script_of
from minillama.tokenizer.word_counts import EACH_BYTE, TrainingReport, choose_alphabet, read_lines

TINY = b"low lower newest widest 2023 2023\nlow low lower \xc3\xa9t\xc3\xa9\n"


def pieces_of(model):
    return SentencePieceTokenizer(model).pieces


def train_quietly(data, vocab_size, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train_bpe([data], vocab_size, backend="python", **options)


# ---- training against sentencepiece -----------------------------------------------------------------------------

@pytest.mark.parametrize("vocab_size", [600, 1500, 6000])
def test_the_vocabulary_of_real_text_is_sentencepieces_piece_for_piece(vocab_size):
    data = real_text(100_000)
    assert train_quietly(data, vocab_size).pieces == pieces_of(train_oracle(data, vocab_size))


@pytest.mark.long
@pytest.mark.parametrize("vocab_size", [1000, 8000, 20000])
def test_the_vocabulary_of_a_megabyte_is_sentencepieces(vocab_size):
    data = real_text(1_000_000)
    assert train_quietly(data, vocab_size).pieces == pieces_of(train_oracle(data, vocab_size))


def check_cruel(name, **options):
    """At the largest possible size, so that pairs of count 1 and 0 and all ties are decided too."""
    theirs = train_oracle(CRUEL[name], 8000, hard_vocab_limit=False, **options)
    assert train_quietly(CRUEL[name], len(pieces_of(theirs)), **options).pieces == pieces_of(theirs)


@pytest.mark.parametrize("name", CRUEL)
def test_cruel_small_texts_give_sentencepieces_vocabulary(name):
    check_cruel(name)


def check_random_training(seed):
    data, options = random_training(seed)
    theirs = train_oracle(data, 5000, hard_vocab_limit=False, **{
        {"max_piece_length": "max_sentencepiece_length"}.get(name, name): value for name, value in options.items()})
    ours = train_quietly(data, len(pieces_of(theirs)), **options)
    assert ours.pieces == pieces_of(theirs), f"seed {seed}"
    line = data.decode().split("\n")[0]
    assert ours.encode(line) == processor(theirs).encode(line), f"seed {seed}"


def test_random_texts_and_options_give_sentencepieces_vocabulary():
    for seed in range(40):
        check_random_training(seed)


@pytest.mark.long
def test_many_random_texts_and_options_give_sentencepieces_vocabulary():
    for seed in range(40, 600):
        check_random_training(seed)


def test_a_vocabulary_is_the_beginning_of_a_larger_one():
    small, large = (train_quietly(TINY, size).pieces[258:] for size in (280, 290))
    merged = [piece.text for piece in small if len(piece.text) > 1]
    assert merged == [piece.text for piece in large if len(piece.text) > 1][: len(merged)] and merged


# ---- the rules of pieces, without an oracle ---------------------------------------------------------------------

def merged_pieces(text, **options):
    """All pieces that can be learnt from a text, by asking for too many and reading the range."""
    with pytest.raises(ValueError, match="is too high for this text") as error:
        train_quietly(text.encode(), 100_000, **options)
    most = int(regex.search(r"to (\d+) are possible", str(error.value))[1])
    return [piece.text for piece in train_quietly(text.encode(), most, **options).pieces[259:]]


def test_a_digit_never_shares_a_piece():
    texts = merged_pieces("2023 a1 1a ２０ 2023")
    assert not any(len(text) > 1 and regex.search(r"[0-9０-９]", text) for text in texts)
    assert "2023" in merged_pieces("x2023 y2023", split_digits=False)


def test_a_space_stands_only_in_front_of_a_piece_or_among_spaces():
    texts = merged_pieces("a b   c    a b  a")
    assert "\u2581a" in texts and "\u2581\u2581\u2581" in texts
    assert not any(regex.search(r"[^▁]▁|▁▁[^▁]", text) for text in texts)


def test_a_piece_has_letters_of_one_script_only():
    texts = merged_pieces("don't foo_bar жук.жук aж日本ひカタ a\u0301b")
    assert {"▁don", "▁foo", "bar", "▁жук", "日本ひカタ", "▁a\u0301b"} <= set(texts)
    assert not any(regex.search(r"\p{L}[._']|[._']\p{L}|\p{Latin}\p{Cyrillic}", text) for text in texts)


def test_a_piece_has_at_most_sixteen_characters():
    assert max(map(len, merged_pieces("abcdefghijklmnopqrstuvwxyz " * 3))) == 16
    assert max(map(len, merged_pieces("abcdefghijklmnopqrstuvwxyz " * 3, max_piece_length=5))) == 5


def test_ties_go_to_the_shorter_then_to_the_lower_string():
    texts = merged_pieces("zz zz abc abc")  # all pairs occur twice: ab bc zz ▁a ▁z, after "ab" abc ▁ab, ...
    assert texts[:5] == ["ab", "zz", "abc", "\u2581zz", "\u2581abc"]


def test_scores_fall_by_one_and_the_alphabet_stands_last_by_count():
    pieces = train_quietly(b"bbb bb a a c c c c", 259 + 3 + 4).pieces[259:]
    assert [piece.score for piece in pieces] == [-float(rank) for rank in range(7)]
    assert [piece.text for piece in pieces[3:]] == ["\u2581", "b", "c", "a"]  # 7, 5, 4, 2 times


def test_coverage_counts_what_was_taken_before():
    alphabet, uncovered = choose_alphabet({"a" * 98 + "b": 1, "c": 1}, 0.98)
    assert alphabet == {"a": 98} and uncovered == 2  # 98 of 100 is enough: "b" is not needed
    assert list(choose_alphabet({"a" * 98 + "b": 1, "c": 1}, 0.981)[0]) == ["a", "b"]


# ---- reading -----------------------------------------------------------------------------------------------------

def test_files_texts_and_blocks_of_any_cut_give_the_same_tokenizer(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(TINY * 3)
    expected = train_bpe([TINY * 3], 290, backend="python").model
    for corpus in (path, [path], [TINY * 3], [TINY.decode()] * 3, iter((TINY * 3).splitlines(keepends=True))):
        assert train_bpe(corpus, 290, backend="python").model == expected


def test_long_and_reserved_lines_are_skipped_counted_and_reported(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"ab ab\n" + b"x" * 4193 + b"\n\n" + "\u2585 ab\n".encode() + b"y" * (1 << 20) + b"zz\nab")
    with pytest.warns(UserWarning, match="lines (of more than 4192 bytes|with the reserved)"):
        report = train_bpe(path, 264, backend="python").training_report
    assert (report.lines, report.long_lines, report.reserved_lines, report.bytes) == (2, 2, 1, 7)


def test_a_line_without_end_is_not_kept_in_memory(tmp_path):
    report, pulled = TrainingReport(), []
    path = tmp_path / "endless"
    path.write_bytes(b"x" * (5 << 20) + b"\nab")
    pulled += read_lines(path, 4192, report)
    assert pulled == [b"ab"] and report.long_lines == 1


def test_each_bad_byte_becomes_one_mark():
    assert b"\xe2\x96b\xff\xed\xa0\x80".decode("utf-8", EACH_BYTE) == "\ufffd\ufffdb\ufffd\ufffd\ufffd\ufffd"


@pytest.mark.parametrize(("corpus", "size", "message"), [
    ([TINY], 270, "at least 274 are needed"), ([TINY], 9000, "274 to 312 are possible"), ([], 300, "it is empty"),
    ([b"\n\n"], 300, "it is empty"), ([TINY], 0, "choose 1 to"), (["a\ud800"], 300, "lone surrogate"),
])
def test_impossible_requests_name_what_is_possible(corpus, size, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(corpus, size, backend="python")


def test_a_lone_string_is_refused_because_it_could_be_a_file_name():
    with pytest.raises(TypeError, match=r"pathlib.Path"):
        train_bpe("corpus.txt", 300)
    with pytest.raises(TypeError, match="not int"):
        train_bpe([7], 300)


def test_training_twice_in_any_order_of_words_gives_equal_bytes():
    lines = real_text(20_000).split(b"\n")
    assert train_quietly(b"\n".join(lines), 500).model == train_quietly(b"\n".join(reversed(lines)), 500).model


# ---- scripts -----------------------------------------------------------------------------------------------------

def test_the_script_table_agrees_with_unicode():
    """Against the regex module's newer Unicode; four characters changed their script after version 9.0."""
    changed = {"\u0953", "\u0954"}
    for first, last, name in RANGES:
        text = "".join(chr(code) for code in range(first, last + 1) if chr(code) not in changed)
        assert regex.fullmatch(rf"\p{{Script={name}}}*", text), (hex(first), name)


@pytest.mark.long
def test_scripts_are_those_sentencepiece_keeps_apart():
    """One character at each end of each range beside a Latin letter: a piece is made exactly if we say it fits."""
    ends = {code for first, last, _ in RANGES for code in (first - 1, first, last, last + 1)}
    letters = [chr(code) for code in sorted(ends) if code > 0x20 and not 0xD800 <= code < 0xE000
               and chr(code) not in "\u2581\u2585 \x1f<" and not chr(code).isdigit() and chr(code) not in "az"]
    data = " ".join(f"a{letter} {letter}а" for letter in letters)  # Latin a in front, Cyrillic а behind
    lines = regex.sub(r"(.{500}) ", r"\1\n", data).encode()
    theirs = pieces_of(train_oracle(lines, 200_000, hard_vocab_limit=False, character_coverage=1.0))
    made = {piece.text for piece in theirs}
    for letter in letters:
        fits = {name for name in ("Latin", "Cyrillic") if script_of(letter) in (name, "Inherited")}
        assert ("a" + letter in made, letter + "а" in made) == ("Latin" in fits, "Cyrillic" in fits), hex(ord(letter))


# ---- joining by rank ---------------------------------------------------------------------------------------------

def join_slowly(parts, rank):
    """Look at all pairs each time: the definition."""
    parts = list(parts)
    while True:
        found = [(rank[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in rank]
        if not found:
            return parts
        place = min(found)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def join_heaped(text, rank):
    return join_pairs(list(text), lambda left, right: rank.get(left + right))


def check_joining():
    rng = random.Random(5)
    for _ in range(400):
        words = {"".join(rng.choices("ab", k=rng.randrange(2, 6))) for _ in range(rng.randrange(1, 14))}
        rank = {word: rng.randrange(5) for word in sorted(words)}
        text = "".join(rng.choices("abc", k=rng.randrange(30)))
        assert join_heaped(text, rank) == join_slowly(text, rank), (text, rank)


def test_the_heap_joins_as_the_definition_does_ties_leftmost():
    check_joining()
    assert join_heaped("aaa", {"aa": 0}) == ["aa", "a"]


# ---- Sennrich's form ---------------------------------------------------------------------------------------------

PAPER = {"low": 5, "lower": 2, "newest": 6, "widest": 3}  # arXiv:1508.07909, algorithm 1


def test_the_papers_example_gives_the_papers_merges():
    merges = sennrich_merges(PAPER, 10)
    assert merges[:5] == [("e", "s"), ("es", "t"), ("est", "</w>"), ("l", "o"), ("lo", "w")]
    assert merges[5:] == [("n", "e"), ("ne", "w"), ("new", "est</w>"), ("low", "</w>"), ("w", "i")]
    assert sennrich_encode("lowest", merges[:5]) == ["low", "est</w>"]


def test_all_merges_make_whole_words_and_then_stop():
    merges = sennrich_merges(PAPER, 1000)
    assert [sennrich_encode(word, merges) for word in PAPER] == [[word + "</w>"] for word in PAPER]
    assert len(merges) < 1000 and len(set(merges)) == len(merges)


def test_each_learnt_pair_is_a_most_frequent_one():
    merges = sennrich_merges(PAPER, 12)
    for n in range(12):
        counts = {}
        for word, count in PAPER.items():
            for pair in itertools.pairwise(sennrich_encode(word, merges[:n])):
                counts[pair] = counts.get(pair, 0) + count
        assert counts[merges[n]] == max(counts.values())


def check_ties_and_overlaps(text=b"aaa aa aaaa ba ab abab " * 3):
    assert train_quietly(text, 275).pieces == pieces_of(train_oracle(text, 275))


_BPE, _PIECES = "minillama.tokenizer.bpe", "minillama.tokenizer.piece_trainer"
_WORDS = "minillama.tokenizer.word_counts"
MUTANTS = [
    Mutant(_PIECES, "if left in self.single or right in self.single:", "if False:", test_a_digit_never_shares_a_piece),
    Mutant(_PIECES, 'return len("".join(pair)), "".join(pair)', 'return "".join(pair), "".join(pair)',
           test_ties_go_to_the_shorter_then_to_the_lower_string),
    Mutant(_PIECES, 'return len("".join(pair)), "".join(pair)', 'return len("".join(pair)), pair[1]',
           test_ties_go_to_the_shorter_then_to_the_lower_string),
    Mutant(_PIECES, "self._count_pairs(number, -self.weights[number])", "pass", check_ties_and_overlaps),
    Mutant(_PIECES, "self._count((piece, left), 0)", "pass",
           lambda: check_cruel("long words")),
    Mutant(_PIECES, "-self.heap[0][0] != self.counts[self.heap[0][2]]", "False", check_ties_and_overlaps),
    Mutant(_PIECES, 'return "Han"', "return script", lambda: check_cruel("japanese")),
    Mutant(_PIECES, 'None if script == "Inherited" else script', "script", lambda: check_cruel("marks")),
    Mutant(_PIECES, "== SPACE and len(left) > 1:", "== SPACE and False:",
           test_a_space_stands_only_in_front_of_a_piece_or_among_spaces),
    Mutant(_BPE, "heapq.heappush(heap, (rank, left,", "heapq.heappush(heap, ((rank, -left), left,", check_joining),
    Mutant(_BPE, "max(pairs, key=pairs.get)", "max(pairs, key=lambda p: (pairs[p], p))",
           test_the_papers_example_gives_the_papers_merges),
    Mutant(_WORDS, "error.start + 1", "error.end", test_each_bad_byte_becomes_one_mark),
    Mutant(_WORDS, ">= float32(coverage)", "> float32(coverage)", test_coverage_counts_what_was_taken_before),
    Mutant(_WORDS, "if character != BOUNDARY:", "if True:", lambda: check_cruel("pieces with special names")),
    Mutant(_WORDS, 'BOUNDARY = "\\x1f"', 'BOUNDARY = "\\t"', lambda: check_cruel("controls")),
]
