# %% [markdown] question
# # 01 · Byte-pair encoding
# Covers: `minillama/tokenizer/bpe.py`, `tests/tokenizer/test_bpe.py`
# Needs: -
# Time: 6 s
# Teaches: words, letters, subwords; BPE; `</w>` and `▁`; ties; vocabulary size
# Paper: [Sennrich et al. 2016](https://arxiv.org/abs/1508.07909), algorithm 1
#
# **Question.** A model reads numbers, so a text must first be cut into parts, each with
# a number. Why are these parts neither words nor letters?
#
# A list of words is always too short: tomorrow's text holds a name that is not on it.
# With letters hardly anything is missing, but the text becomes very long, and the model
# must take one step for every letter. *Byte-pair encoding* starts from letters and
# joins the most frequent pair of neighbours, again and again. Frequent words end up as
# one part; rare words stay in several. (A part is called a *symbol* while merges are
# learned, a *piece* in the vocabulary, and a *token* in a text.)
#
# | symbol | in code | type | meaning |
# |---|---|---|---|
# | $c(w)$ | `count` | int | how often the word $w$ occurs |
# | $a, b$ | `pair` | two str | two symbols that stand side by side |
# | $n(a, b)$ | `pairs` | Counter | how often $a, b$ occurs in the whole text |
# | $n_w(a, b)$ | | int | how often $a, b$ occurs in the one word $w$ |
# | $V$ | `vocab_size` | int | how many different parts there are in the end |

# %% naive
import re
from collections import Counter

END = "</w>"  # marks the end of a word: "est</w>" is another symbol than "est"


def join(word, pair):
    """"l o w </w>", ("l", "o") -> "lo w </w>": whole symbols only, from the left."""
    together = re.escape(" ".join(pair))
    return re.sub(rf"(?<!\S){together}(?!\S)", lambda _: "".join(pair), word)


counts = {"low": 5, "lower": 2, "newest": 6, "widest": 3}  # the paper's example
words = {" ".join([*word, END]): count for word, count in counts.items()}
merges = []
for _ in range(5):
    pairs = Counter()
    for word, count in words.items():
        symbols = word.split()
        for pair in zip(symbols, symbols[1:], strict=False):
            pairs[pair] += count
    best = max(pairs, key=pairs.get)  # of equals, the first one met
    merges.append(best)
    words = {join(word, best): count for word, count in words.items()}
    print(f"{pairs[best]} times  {best[0]} + {best[1]}")
print("now:", *words, sep="  ")

# %% [markdown] formula
# That is all of it. One step joins the pair
# $$(a^*, b^*) = \mathrm{arg\,max}_{(a, b)} n(a, b), \qquad n(a, b) = \sum_w c(w) \, n_w(a, b)$$
# ascii: (a*, b*) = argmax of n(a, b);  n(a, b) = sum over words w of c(w) n_w(a, b)
#
# (argmax: $(a^*, b^*)$ is the pair with the largest count). The new symbol takes part
# in the next step. The list of merges, in their order, *is* the tokenizer.
#
# A **tie** needs a rule. At first `e s`, `s t` and `t </w>` all occur 9 times, in
# new**est** and wid**est**. We take the pair that is met first. A different rule
# gives a different tokenizer: two programs that both "do BPE" need not agree.
#
# To cut a new word, start from its letters and repeat the merges, in the order in which
# they were learned.

# %% module
from minillama.tokenizer.bpe import sennrich_encode, sennrich_merges

assert sennrich_merges(counts, 5) == merges
lowest = sennrich_encode("lowest", merges)
print("lowest ->", lowest)  # never seen, and yet cut into two meaningful parts
assert lowest == ["low", "est</w>"]

# %% [markdown] llama
# **LLaMA's form.** LLaMA trains its tokenizer with a program called SentencePiece
# ([LLaMA 2023](https://arxiv.org/abs/2302.13971), section 2.1). The idea is the
# same; these details differ:
#
# - A word *begins* with `▁` (it stands for the space) where Sennrich's *ends* with
#   `</w>`. The spaces come back when the parts are put together.
# - Digits stay single: `47` is `4`, `7`. Lesson 02 shows why.
# - A character that is not in the vocabulary is written as the bytes in which a
#   computer stores it, `<0xE2>` and so on (lesson 02). So nothing is ever unknown.
# - Of equally frequent pairs, the one that makes the shorter string wins; if still
#   equal, the one whose characters come first in Unicode.

# %% llama_code
from minillama.tokenizer import train_bpe

# 277: 256 bytes, 3 marks such as <s>, 11 characters, which leaves 7 merges
tokenizer = train_bpe(["low low low lower lowest 123"], vocab_size=277)
ids = tokenizer.encode("lowest 32 ≈")
print([tokenizer.id_to_piece(i) for i in ids])
assert tokenizer.decode(ids) == "lowest 32 ≈"
assert [tokenizer.id_to_piece(i) for i in ids][-3:] == ["<0xE2>", "<0x89>", "<0x88>"]

# %% [markdown] experiment
# **Experiment.** Real text: the documentation inside Python's own standard library. One
# document in twenty is held out: no tokenizer learns from it. We cut it into letters,
# into words, and into BPE pieces for vocabularies of growing size. For each way we ask:
# how many tokens does the held-out text need, and how much of it is unknown?

# %% measure
from minillama.corpus import stdlib_docs

train, held_out = stdlib_docs.train_and_held_out()
letters = sum(map(len, held_out))
find_words = re.compile(r"\w+|[^\w\s]").findall  # and punctuation; no spaces
known = {word for text in train for word in find_words(text)}
asked = [word for text in held_out for word in find_words(text)]
unknown = sum(word not in known for word in asked) / len(asked)

sizes, lengths = [400, 600, 1000, 2000, 4000, 8000], []
for size in sizes:
    tokenizer = train_bpe(train, size)
    encoded = [tokenizer.encode(text) for text in held_out]
    lengths.append(sum(map(len, encoded)) / 1000)
    assert all(map(str.__eq__, map(tokenizer.decode, encoded), held_out))
shorter = letters / 1000 / lengths[sizes.index(4000)]
pieces = {tokenizer.id_to_piece(i) for i in range(259, 259 + 100)}  # the first merges
assert {"▁t", "he", "in"} <= pieces
print(f"letters: {letters / 1000:.1f} thousand tokens")
print(f"words:   {len(asked) / 1000:.1f} thousand, of {len(known)} known words, "
      f"{unknown:.1%} unknown")
for size, length in zip(sizes, lengths, strict=True):
    print(f"{size:5} pieces: {length:.1f} thousand, nothing unknown")

# %% figure
from minillama.plots import CONTEXT, CONTRAST, OURS, figure, label_end, show

picture, axes = figure(f"4,000 pieces: {shorter:.1f} times shorter, no word unknown",
                       "pieces in the vocabulary", "held-out text, thousand tokens")
axes.semilogx(sizes, lengths, color=OURS, marker="o", markersize=4)
label_end(axes, sizes, lengths, "pieces", OURS, dy=10)
for height, name, colour in ((letters / 1000, "letters", CONTEXT),
                             (len(asked) / 1000, f"words, {unknown:.1%} unknown, "
                              f"{len(known):,} in the list", CONTRAST)):
    axes.axhline(height, color=colour, linestyle="--", linewidth=1.2)
    axes.annotate(name, (sizes[0], height), (0, 4), color=colour,
                  textcoords="offset points")
axes.set(ylim=(0, 1.15 * letters / 1000), xlim=(370, 11000))
axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
axes.minorticks_off()
show(picture, f"4,000 pieces: {shorter:.1f} times fewer tokens than letters; the "
              "dashed lines do not depend on a vocabulary (logarithmic axis)")

# %% [markdown] exercise
# **Why it works.** The first merges shorten the text most: they join `▁t`, `he`, `in`,
# which are everywhere. Each later one shortens it less. A larger vocabulary also costs:
# the model keeps one row of numbers per piece, and sees too little of the rare ones to
# learn them well. LLaMA settled on 32,000 pieces, Llama 3 on 128,256.
#
# **Exercise.** Write two functions. `merge_once` returns one word with a pair joined.
# Mind `aaa`: its two pairs `a a` overlap, so only one can be joined. `learn` returns
# the list of merges.
#
# Open `lessons/exercises/ex01_bpe.py`, then run `python3 run.py check 1`.

# %% closing
assert merges == [("e", "s"), ("es", "t"), ("est", END), ("l", "o"), ("lo", "w")]
assert 0.005 < unknown < 0.05 and len(known) > 5000
assert 2.9 < shorter < 4.2 and lengths == sorted(lengths, reverse=True)
print("You should see: the merges e+s, es+t, est+</w>, l+o, lo+w; "
      f"{unknown:.1%} of held-out words unknown (0.5 to 5); "
      f"4,000 pieces {shorter:.1f} times shorter than letters (2.9 to 4.2)")
