# %% [markdown] question
# # 03 · WordPiece and Unigram
# Covers: `minillama/tokenizer/unigram.py`, `minillama/tokenizer/unigram_training.py`, `tests/tokenizer/test_unigram.py`
# Needs: 01, 02
# Time: 30 s
# Teaches: WordPiece's score, mutual information, unigram model, EM, Viterbi, sampling, granularity, coverage
# Paper: [Kudo 2018](https://arxiv.org/abs/1804.10959), sections 3.1 and 3.2
#
# **Question.** BPE joins the pair that occurs most often. Is that the pair that belongs
# together most? And must a word be cut in one way only?
#
# *WordPiece* (BERT's tokenizer) answers the first question, *Unigram* (T5's) the
# second.
#
# | symbol | in code | type | meaning |
# |---|---|---|---|
# | $a, b$ | `pair` | two str | two pieces that stand side by side |
# | $f(a), f(ab)$ | `singles`, `pairs` | Counter | how often a piece, a pair occurs |
# | $N$ | `total` | int | pieces in the whole text |
# | $p(x)$ | `p` | dict | probability of a piece $x$ |
# | $S$ | `cut` | list | one way to cut a word into pieces |
# | $c(x)$ | `expected` | dict | how often $x$ is expected in a random cut |

# %% naive
import math
from collections import Counter

words = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
pairs, singles = Counter(), Counter()
for word, count in words.items():
    symbols = [word[0], *("##" + letter for letter in word[1:])]
    for symbol in symbols:
        singles[symbol] += count
    for pair in zip(symbols, symbols[1:], strict=False):
        pairs[pair] += count
total = sum(singles.values())
ratio = {(a, b): n / (singles[a] * singles[b]) for (a, b), n in pairs.items()}
gain = {(a, b): pairs[a, b] * math.log(r * total) for (a, b), r in ratio.items()}
for pair in sorted(pairs, key=ratio.get, reverse=True):
    print(f"{'+'.join(pair):10} {pairs[pair]:3} times  ratio {ratio[pair]:.4f}  "
          f"gain {gain[pair]:6.2f}")
assert max(pairs, key=pairs.get) == ("##u", "##g")  # BPE would join these
assert max(pairs, key=ratio.get) == ("##g", "##s")  # WordPiece these

# %% [markdown] formula
# `##` marks what does not begin a word. `##u ##g` is the most frequent pair, but `##u`
# is in every word. `##s` comes after `##g` alone: those two belong together. WordPiece
# joins the pair with the greatest
# $$\frac{f(ab)}{f(a) \, f(b)}$$
# ascii: f(ab) / (f(a) f(b))
#
# The logarithm of $N$ times this is the (pointwise) *mutual information* of the pair:
# how much seeing $a$ tells about $b$. The price: two pieces that occur once, side by
# side, score best of all, so one asks for a minimum count. The column `gain` above,
# $f(ab) \log(N f(ab) / (f(a) f(b)))$, weighs the logarithm by frequency, and the order
# changes. It is about what joining the pair adds to the logarithm of the *likelihood*,
# the probability that the pieces give to the text. (BERT's trainer was never published;
# Hugging Face's "WordPiece trainer" is BPE.)
#
# **Unigram** starts from the other end: many pieces, each with a probability. A cut
# has the product of its pieces' probabilities, and a word the sum over all its cuts:
# $$p(\text{word}) = \sum_{S} \prod_{x \in S} p(x)$$
# ascii: p(word) = sum over cuts S of the product of p(x), x in S
#
# Where do the $p(x)$ come from? *EM* guesses, then repeats two steps. **E**: with the
# present $p$, how often is each piece expected, $c(x)$? **M**: set $p(x)$ to
# $c(x) / \sum_x c(x)$. No step lowers the likelihood.

# %% em
def cuts(word):
    """Every way to cut a word."""
    if not word:
        yield []
    for end in range(1, len(word) + 1):
        for rest in cuts(word[end:]):
            yield [word[:end], *rest]


def em_step(p, word):
    """(likelihood, share of each cut, expected counts, new p)."""
    ways = {}
    for cut in cuts(word):
        if all(piece in p for piece in cut):
            ways[tuple(cut)] = math.prod(p[piece] for piece in cut)
    whole, expected = sum(ways.values()), Counter()
    for cut, way in ways.items():
        for piece in cut:
            expected[piece] += way / whole
    new = {piece: expected[piece] / sum(expected.values()) for piece in p}
    return whole, {cut: way / whole for cut, way in ways.items()}, expected, new


first = p = {"h": 0.3, "u": 0.1, "g": 0.2, "hu": 0.1, "ug": 0.3}
likelihoods = []
for _ in range(6):
    whole, shares, expected, p = em_step(p, "hug")
    likelihoods.append(whole)
    print(f"{whole:.3f} ", *(f"{'|'.join(c)} {part:.0%}" for c, part in shares.items()))
assert likelihoods == sorted(likelihoods)

# %% [markdown] pruning
# By hand: at first `h|u|g` has $0.3 \cdot 0.1 \cdot 0.2 = 0.006$, `hu|g` has
# $0.1 \cdot 0.2 = 0.02$ and `h|ug` has $0.3 \cdot 0.3 = 0.09$, together 0.116. So
# `h|ug` has 78 % of it, and `ug` is expected 0.78 times. Step by step the winner takes
# all.
#
# A real vocabulary begins with *seeds*: strings that a text repeats. After two rounds
# of EM the quarter of the pieces that the likelihood needs least is dropped; then EM
# again, until the wanted size is reached.
#
# The library computes the sums without writing out the cuts, place by place along the
# word (forward and backward). The best cut, by *Viterbi*, needs at each place only the
# best way to get there.

# %% module
from random import Random

from minillama.tokenizer.unigram import UnigramModel, edge_probabilities
from minillama.tokenizer.wordpiece import gain_score, wordpiece_merges
from minillama.train.subword_sampling import draw_segmentation

model = UnigramModel({piece: math.log(value) for piece, value in first.items()})
whole, shares, expected, _ = em_step(first, "hug")
assert abs(model.log_likelihood("hug") - math.log(whole)) < 1e-12
found = Counter()
for start, end, share in edge_probabilities(model.lattice("hug")):
    found["hug"[start:end]] += share
assert all(abs(found[piece] - expected[piece]) < 1e-12 for piece in first)
assert model.segment("hug") == list(max(shares, key=shares.get))
assert next(wordpiece_merges(words)) == max(pairs, key=ratio.get)
assert next(wordpiece_merges(words, gain_score)) == max(pairs, key=gain.get)

draw = Random(0)
for alpha in (0.0, 0.5, 1.0):
    drawn = Counter("|".join(draw_segmentation(model, "hug", alpha, draw))
                    for _ in range(900))
    print(f"alpha {alpha}: {dict(drawn.most_common())}")

# %% [markdown] experiment
# **One segmentation or many.** Unigram can *draw* a cut, with its probability to the
# power `alpha`: 0 draws all alike, 1 as the model says. A model that sees a word cut in
# several ways learns that they are the same word. Whatever the cut, putting the pieces
# together gives the text: decoding is exact, and only encoding has a choice.
#
# **Experiment.** English and Chinese stories, cut into characters, words, BPE pieces
# and Unigram pieces. How many tokens does unseen text take, how many words are unknown,
# and how few characters make up how much of a text?
#
# Unigram is trained twice: with SentencePiece's seeds, and with all words among them
# ("seeded"). A string that is always followed by the same character is no seed, since
# its longer form stands for it. So a word that always stands before a space is none.

# %% measure
from lessons import chinese_stories
from minillama.corpus import stories
from minillama.tokenizer.sentencepiece_training import train_sentencepiece

corpora = {"English": stories, "Chinese": chinese_stories}
unknown, length, covered = {}, {}, {}
kinds = "char", "bpe", "unigram", "seeded unigram"
for name, corpus in corpora.items():
    for seed in range(3):
        train = [story.text for story in corpus.documents(seed, 150)]
        unseen = [story.text for story in corpus.documents(seed + 10, 30)]
        counts = Counter("".join(train))
        often = sorted(counts.values(), reverse=True)
        covered[name, seed] = [sum(often[:n]) / sum(often) for n in range(1, 201)]
        known = {word for text in train for word in text.split()}
        asked = [word for text in unseen for word in text.split()]
        unknown[name, seed] = sum(word not in known for word in asked) / len(asked)
        for kind in kinds:
            tokenizer = train_sentencepiece(
                train, 2000 if kind == "char" else 600, kind.removeprefix("seeded "),
                character_coverage=1.0, hard_vocab_limit=False,
                whole_words=kind == "seeded unigram")
            tokens = [tokenizer.encode(text) for text in unseen]
            length[name, kind, seed] = len("".join(unseen)) / sum(map(len, tokens))
            assert kind == "char" or [*map(tokenizer.decode, tokens)] == unseen
    print(f"{name}: {unknown[name, 0]:.0%} of words unknown; characters a token:",
          ", ".join(f"{kind} {length[name, kind, 0]:.2f}" for kind in kinds))

# %% figure
from minillama.plots import CONTRAST, OURS, figure, label_end, show

half = {name: [1 + sum(share < 0.5 for share in covered[name, seed])
               for seed in range(3)] for name in corpora}
picture, axes = figure(f"Half of a text: {half['English'][0]} English characters, "
                       f"{half['Chinese'][0]} Chinese ones",
                       "the most frequent characters", "share of the text, %")
for name, colour, dy in (("English", OURS, 6), ("Chinese", CONTRAST, -8)):
    for seed in range(3):
        shares = [100 * share for share in covered[name, seed]]
        axes.plot(range(1, 201), shares, color=colour, linewidth=1.2)
    label_end(axes, range(1, 201), shares, name, colour, dy)
axes.set(xlim=(0, 245), ylim=(0, 104))
show(picture, f"{half['English'][0]} characters make up half of an English text, "
     f"{half['Chinese'][0]} characters half of a Chinese one")

# %% [markdown] exercise
# Words keep borders and meaning, but hide that `hugs` is `hug` and `s`. In Chinese,
# which is written without spaces, they cannot be found by splitting: nearly every
# "word" is unknown. Characters are hardly ever unknown, but make texts long. Pieces lie
# between. What a Unigram vocabulary begins with decides much of how it ends.
#
# | tokenizer | models |
# |---|---|
# | BPE on characters | GPT, LLaMA, Mistral |
# | byte-level BPE | GPT-2, RoBERTa, Llama 3 |
# | WordPiece | BERT, DistilBERT, Electra |
# | Unigram | T5, ALBERT, XLNet, Marian |
#
# **Exercise.** Write three functions. `pair_scores` returns WordPiece's score of each
# pair. `longest_match` cuts a word as BERT does: the longest known beginning first.
# `best_cut` returns the most probable cut of a word under a unigram model.
#
# Open `lessons/exercises/ex03_wordpiece_unigram.py`, then run `python3 run.py check 3`.

# %% closing
assert abs(expected["ug"] - 0.09 / 0.116) < 1e-12
for seed in range(3):
    assert length["English", "bpe", seed] > 2.0 > 1.1 > length["English", "char", seed]
    english = {kind: length["English", kind, seed] for kind in kinds}
    assert english["seeded unigram"] > 1.2 * english["unigram"]
    assert english["seeded unigram"] > english["bpe"]
    assert unknown["Chinese", seed] > 0.5 > unknown["English", seed]
    assert half["English"][seed] * 2 < half["Chinese"][seed]
shown = [length["English", kind, 0] for kind in ("unigram", "seeded unigram")]
print("You should see: ##g + ##s first, ##u + ##g most often; p(hug) rising from 0.116 "
      f"to {likelihoods[-1]:.3f}; {shown[0]:.1f} English characters a Unigram piece, "
      f"{shown[1]:.1f} with words as seeds")
