"""Checks of exercise 01: one merge, and merge lists of three small corpora."""
from minillama.course.exercise import Wrong
from minillama.tokenizer.bpe import sennrich_merges

HINTS = {
    "merge_once": ("Walk through the word with a place that you move on yourself: a `for` over all places would visit "
                   "the right half of a pair that is already joined.",
                   "After joining, the next place to look at lies two further on; otherwise one further on.",
                   "What comes back is a tuple, because words are keys of a dict."),
    "counts": ("A pair inside a word that occurs six times occurs six times as well.",
               "n(a, b) = the sum over all words of (count of the word) x (times the pair stands in it)."),
    "ties": ("Several pairs may have the same count; the one met first has to win.",
             "A dict keeps the order in which keys were first put in, and max keeps the first of equals."),
    "corpora": ("After each merge the words themselves change: the next count runs over the joined symbols.",
                "A corpus may run out of pairs: then stop, with fewer merges than were asked for."),
}


def equal(name, got, wanted, hint=0):
    if type(got) is not type(wanted):
        raise Wrong(f"{name}: expected a {type(wanted).__name__}, got {got!r}", hint)
    if got != wanted:
        raise Wrong(f"{name}: expected {wanted}, got {got}", hint)


def check_merge_once(learner):
    got = learner.merge_once(("l", "o", "w"), ("l", "o"))
    if isinstance(got, list):
        raise Wrong(f"merge_once: expected a tuple, got the list {got}", 2)
    equal("low", got, ("lo", "w"))
    equal("one symbol", learner.merge_once(("a",), ("a", "a")), ("a",))
    equal("no such pair", learner.merge_once(("a", "b"), ("b", "a")), ("a", "b"))
    equal("at the end", learner.merge_once(("x", "a", "b"), ("a", "b")), ("x", "ab"))
    equal("twice", learner.merge_once(("a", "b", "a", "b"), ("a", "b")), ("ab", "ab"), hint=1)
    equal("aaa", learner.merge_once(("a", "a", "a"), ("a", "a")), ("aa", "a"), hint=1)
    equal("aaaaa", learner.merge_once(tuple("aaaaa"), ("a", "a")), ("aa", "aa", "a"), hint=1)


def check_counts(learner):
    equal("the most frequent pair", learner.learn({"ab": 1, "abc": 1, "xy": 5}, 1), [("x", "y")])


def check_ties(learner):
    equal("a tie", learner.learn({"ba": 2, "ab": 2}, 1), [("b", "a")], hint=1)
    equal("a tie inside a word", learner.learn({"zyx": 3}, 1), [("z", "y")], hint=1)


def check_corpora(learner):
    corpora = [{"low": 5, "lower": 2, "newest": 6, "widest": 3},
               {"banana": 3, "bandana": 2, "an": 4},
               {"sing": 7, "ring": 5, "singing": 2, "rings": 4, "king": 1}]
    equal("the paper's five merges", learner.learn(corpora[0], 5),
          [("e", "s"), ("es", "t"), ("est", "</w>"), ("l", "o"), ("lo", "w")])
    try:
        got = learner.learn({"hi": 1}, 99)
    except ValueError as error:
        raise Wrong(f"a corpus without any pair left must end the learning, not raise {error!r}", 1) from None
    equal("all merges there are", got, [("h", "i"), ("hi", "</w>")], hint=1)
    for counts in corpora:
        equal(f"merges of {counts}", learner.learn(counts, 9), sennrich_merges(counts, 9))


WRONG = [
    ("place += 2", "place += 1", "merge_once", 0),
    ("return tuple(joined)", "return joined", "merge_once", 2),
    ("pairs.get(pair, 0) + count", "pairs.get(pair, 0) + 1", "counts", 0),
    ("max(pairs, key=pairs.get)", "max(sorted(pairs), key=pairs.get)", "ties", 1),
    ("words = {merge_once(symbols, best)", "_ = {merge_once(symbols, best)", "corpora", 0),
    ("            break", "            pass", "corpora", 1),
    ("== pair:", "== pair[::-1]:", "merge_once", 0),
    ("joined.append(pair[0] + pair[1])", "joined.append(pair)", "merge_once", 0),
    ("while place < len(symbols):", "while place < len(symbols) - 1:", "merge_once", 0),
    ("            place += 1\n", "            place += 2\n", "merge_once", 0),
    ("max(pairs, key=pairs.get)", "min(pairs, key=pairs.get)", "counts", 0),
    ("for _ in range(n):", "for _ in range(n + 1):", "counts", 0),
    ("merges.append(best)", "merges.append(pair)", "counts", 0),
    ("(*word, \"</w>\"): count", "tuple(word): count", "corpora", 0),
]
