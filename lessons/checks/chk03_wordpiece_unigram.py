"""Checks of exercise 03: small cases by hand, then random ones against all cuts."""
import random

from minillama.course.exercise import Wrong, close

HINTS = {
    "pair_scores": ("Each occurrence in a word counts as often as the word occurs.",
                    "The score divides by f(a) and by f(b); f counts a piece in every place, not only in pairs."),
    "longest_match": ("Try the whole word first, then one letter less, and so on.",
                      'Behind the first piece, look up "##" and the letters.',
                      'If one rest has no known beginning, the whole word is ["[UNK]"].'),
    "best_cut": ("The best cut is not the one with the longest pieces: compare sums of logarithms.",
                 "For each place of the word keep only the best way to reach it."),
}


def check_pair_scores(learner):
    once = {("a", "b"): 1, ("a", "c"): 1, ("a", "d"): 1, ("b", "c"): 1}
    close("the score of ('a', 'b') in four words", learner.pair_scores(once).get(("a", "b")), 1 / 6, 1e-12, hint=1)
    words = {("h", "##u", "##g"): 10, ("p", "##u", "##g"): 5, ("h", "##u", "##g", "##s"): 5}
    got = learner.pair_scores(words)
    close("the score of ('##g', '##s')", got.get(("##g", "##s")), 5 / (20 * 5), 1e-12, hint=0)
    close("the score of ('h', '##u')", got.get(("h", "##u")), 15 / (15 * 20), 1e-12, hint=1)
    close("pairs in {('a', 'a', 'a'): 2}", learner.pair_scores({("a", "a", "a"): 2}), {("a", "a"): 4 / 36}, 1e-12,
          hint=1)


def check_longest_match(learner):
    known = {"h", "hu", "hug", "##g", "##s", "##gs", "##u", "un", "##gg"}
    for word, wanted, hint in (("hug", ["hug"], 0), ("hugs", ["hug", "##s"], 1), ("ungs", ["un", "##gs"], 0),
                               ("hux", ["[UNK]"], 2), ("gun", ["[UNK]"], 1), ("h", ["h"], 0)):
        close(f"longest_match({word!r})", learner.longest_match(word, known), wanted, 0, hint=hint)


def _whole(word, pieces):
    if "".join(pieces) != word:
        raise Wrong(f"the pieces of best_cut({word!r}) do not make up the word: {pieces}", 1)
    return pieces


def check_best_cut(learner):
    log_p = {"a": -1.0, "b": -1.25, "ab": -2.5, "ba": -1.5, "aba": -4.125, "bab": -2.0}
    for word, wanted in (("ab", ["a", "b"]), ("aba", ["a", "ba"]), ("abab", ["a", "bab"])):
        close(f"best_cut({word!r})", _whole(word, learner.best_cut(word, log_p)), wanted, 0, hint=0)
    rng = random.Random(0)
    for length in (5, 9, 60):
        word = "".join(rng.choice("ab") for _ in range(length))
        got = _whole(word, learner.best_cut(word, log_p))
        best = [0.0] + [None] * length
        for end in range(1, length + 1):
            best[end] = max(best[end - len(piece)] + score for piece, score in log_p.items()
                            if word[:end].endswith(piece))
        close(f"the sum of best_cut({word!r})", sum(log_p[piece] for piece in got), best[-1], 1e-9, hint=0)


WRONG = [
    ("singles[piece] += count", "singles[piece] += 1", "pair_scores", 0),
    ("n / (singles[a] * singles[b])", "n / singles[a]", "pair_scores", 1),
    ("range(len(word), start, -1)", "range(start + 1, len(word) + 1)", "longest_match", 0),
    ('("##" if start else "") +', '"" +', "longest_match", 1),
    ('return ["[UNK]"]', 'return [*pieces, "[UNK]"]', "longest_match", 2),
    ("score > best[end][0]", "len(piece) > len(best[end][1][-1])", "best_cut", 0),
    ("pairs[pair] += count", "pairs[pair] += 1", "pair_scores", 0),
    ("(singles[a] * singles[b])", "(singles[a] + singles[b])", "pair_scores", 1),
    ("for piece in pieces:", "for piece in set(pieces):", "pair_scores", 1),
    ("range(len(word), start, -1)", "range(len(word) - 1, start, -1)", "longest_match", 0),
    ('return ["[UNK]"]', "return [*pieces, word[start:]]", "longest_match", 2),
    ('            return ["[UNK]"]', "            end = start + 1", "longest_match", 2),
    ("score > best[end][0]", "score < best[end][0]", "best_cut", 0),
    ("best[start][0] + log_p[piece]", "log_p[piece]", "best_cut", 0),
    ("[*best[start][1], piece]", "[piece]", "best_cut", 1),
]
