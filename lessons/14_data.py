# %% [markdown] question
# # 14 · Data
# Covers: `lessons/cleaning.py`, `lessons/minhash.py`, `minillama/train/data.py`
# Needs: 01, 02
# Time: 6 s
# Teaches: duplicates, shingles, MinHash, heuristic and n-gram filters, mixture, packing
# Paper: [LLaMA 2023](https://arxiv.org/abs/2302.13971), section 2.1
#
# **Question.** Much of the web is menus, adverts and copies. How do you turn it into
# text worth learning from, when nobody can read even a thousandth of it?
#
# Filters read it for us. To test them we *plant*: we mix 160 bad documents of four
# kinds into 400 good ones, and ask of each filter: what did it find, and what did it
# wrongly throw away?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $A, B$ | `shingles(text)` | sets | the runs of four words in two documents |
# | $J$ | `jaccard` | | the share of them that both have |
# | $h$ | `salts` | | a hash function: any text to a number that looks random |
# | $k$ | `K` | | how many hash functions there are |
# | $T$ | `T` | | tokens of a training sequence |

# %% planted
import hashlib
import random
import re

from minillama.corpus import mixture

rng = random.Random(0)
good = [document.text for document in mixture(3, 400)]
planted = []
for text in good[:40]:
    planted.append((text.upper().replace(" ", "  "), "copy"))
for text in sorted(good, key=len)[-40:]:
    words = text.split()
    words[rng.randrange(len(words))] = "click"  # one word changed
    planted.append((" ".join(words), "near copy"))
for i in range(40):
    menu = " | ".join(rng.sample("Home About Login Cart Blog Shop Terms".split(), 6))
    advert = rng.choice([menu, "BUY NOW! " * 12, f"#{i} $$$ %%% @@@ >>> {i}"])
    planted.append((advert, "junk"))
for _ in range(40):
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7)))
             for _ in range(25)]
    planted.append((" ".join(words).capitalize() + ".", "gibberish"))
rng.shuffle(planted)
web = [(text, "good") for text in good] + planted
print(len(web), "documents, among them:")
print(*(f"{kind:9} {text[:60]!r}" for text, kind in planted[:5]), sep="\n")

# %% [markdown] formula
# **Rules** catch junk that does not even look like prose: too few words, no sentence
# end, mostly symbols, one phrase over and over. What a word is depends on the script:
# Chinese and Japanese have no spaces, and who counts words by spaces throws all of them
# away. Here each of their characters counts as a word. **A language model** catches
# what looks like prose but is not: text that a small model of clean text finds too
# surprising (over 3.5 bits a character). (An *n-gram* model: it has counted which
# letter follows which three.) It knows one language, so each language needs a model of
# its own.
#
# **Exact copies** are found by comparing a hash of the text, with case and spaces
# evened out. **Near copies** are not: one changed word changes the whole hash. Compare
# the sets of four-word runs (*shingles*) instead:
# $$J(A, B) = \frac{|A \cap B|}{|A \cup B|}$$
# ascii: J(A, B) = |A and B| / |A or B|
#
# Comparing all pairs of a billion documents is hopeless. **MinHash** gives each
# document a short signature: for each of $k$ hash functions, the smallest hash of its
# shingles. Each shingle of $A \cup B$ is equally likely to have the smallest hash of
# all. The smallest of $A$ and of $B$ are equal just when this shingle is in both, so
# the probability $P$ of that is $J$:
# $$P[\min h(A) = \min h(B)] = J(A, B)$$
# ascii: P[min h(A) = min h(B)] = J(A, B)
#
# The $k = 128$ numbers are cut into 32 *bands* of 4. Two documents that have an equal
# band *meet*: only such pairs are compared. One band is equal with probability $J^4$,
# at least one of 32 with $1 - (1 - J^4)^{32}$: at $J = 0.8$ almost surely.

# %% filters
from minillama.corpus.char_ngram import CharNgram


def evened(text):
    return " ".join(text.lower().split())


clean = CharNgram(4).fit("\n".join(evened(text) for text, _ in mixture(4, 400)))
HAN = r"\u3040-\u30ff\u3400-\u9fff"  # kana and Chinese characters
WORD = re.compile(rf"[{HAN}]|[^\s{HAN}]+")  # one of them, or a run of others


def breaks_a_rule(text):
    words = WORD.findall(text)
    letters = sum(c.isalpha() or c.isspace() for c in text)
    return (len(words) < 10 or not re.search(r"[.?!]\s|[.?!]\"?$|[。？！]", text)
            or letters < 0.7 * len(text) or len(shingles(text, 2)) < len(words) / 3)


def is_gibberish(text, model=clean):
    return model.bits_per_character(evened(text)) > 3.5


def shingles(text, n=4):
    words = WORD.findall(evened(text))
    return {tuple(words[i:i + n]) for i in range(len(words) - n + 1)}


def jaccard(a, b):
    return len(a & b) / len(a | b)

# %% near
import numpy as np

K, BAND = 128, 4  # 32 bands
salts = np.random.PCG64(0).random_raw(2 * K).astype(np.uint64).reshape(2, K, 1)


def signature(text):
    """(K,) the smallest of a * hash + b, modulo 2^64, for K pairs of a and b."""
    keys = ["|".join(shingle).encode() for shingle in sorted(shingles(text))]
    digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    codes = np.frombuffer(digests, "<u8")
    return ((salts[0] | np.uint64(1)) * codes + salts[1]).min(1)


def near_copies(texts, limit=0.6):
    """Numbers of the texts that share `limit` or more with a text before them."""
    seen, found = {}, set()
    for number, text in enumerate(texts):
        bands = signature(text).reshape(-1, BAND)
        keys = [(i, band.tobytes()) for i, band in enumerate(bands)]
        rivals = {texts[other] for key in keys for other in seen.get(key, ())}
        if any(jaccard(shingles(text), shingles(other)) >= limit for other in rivals):
            found.add(number)
            continue
        for key in keys:
            seen.setdefault(key, []).append(number)
    return found

# %% chinese
from lessons import chinese_stories

# Unseen Chinese stories keep the rules; the English model finds them all gibberish.
for seed in range(3):
    told = [story.text for story in chinese_stories.documents(seed, 200)]
    of_chinese = CharNgram(4).fit("\n".join(told[100:]))
    for text in told[:100]:
        assert len(text.split()) == 1 and not breaks_a_rule(text)
        assert is_gibberish(text) and not is_gibberish(text, of_chinese)
        assert jaccard(shingles(text), shingles(text.replace("他", "她"))) > 0.5
print("passes:", told[0])
for junk in ("首页 | 关于 | 登录 | 购物车 | 博客", "马上购买！" * 12):
    assert breaks_a_rule(junk)
    print("does not:", junk[:30])

# %% run
from collections import Counter


def sieve(documents, is_bad):
    thrown = [kind for (text, kind), bad in zip(documents, is_bad, strict=True) if bad]
    kept = [pair for pair, bad in zip(documents, is_bad, strict=True) if not bad]
    return kept, Counter(thrown)


removed, kept = {}, web
for name, test in (("rules", breaks_a_rule), ("n-gram model", is_gibberish)):
    kept, removed[name] = sieve(kept, [test(text) for text, _ in kept])
seen = set()
digests = [hashlib.sha256(evened(text).encode()).digest() for text, _ in kept]
again = [digest in seen or seen.add(digest) is not None for digest in digests]
kept, removed["exact copies"] = sieve(kept, again)
near = near_copies([text for text, _ in kept])
kept, removed["near copies"] = sieve(kept, [i in near for i in range(len(kept))])
for name, counts in removed.items():
    print(f"{name:13} removed {dict(counts)}")
print("left:", Counter(kind for _, kind in kept))

# %% library
# The library has the same tools, for files larger than memory: `run.py clean-corpus`.
from lessons.cleaning import CleaningRules, find_fault, hash_words
from lessons.minhash import find_near_duplicates, hash_runs
from lessons.minhash import signature as sign

bad = [find_fault(text, CleaningRules(min_words=10), ("latin",)) for text, _ in web]
theirs, faults = sieve(web, bad)
of_all = np.array([sign(hash_runs(hash_words(text), 5)) for text, _ in theirs])
theirs, copies = sieve(theirs, find_near_duplicates(of_all, similarity=0.6) >= 0)
assert faults["junk"] == copies["copy"] == 40 and copies["near copy"] >= 38

# %% figure
from minillama.plots import CONTEXT, OURS, figure, show

pool = [text for text, kind in web if kind in ("good", "near copy")]
sets, signatures = [*map(shingles, pool)], np.array([*map(signature, pool)])
meetings = {}
for i in range(1, len(pool)):
    met = (signatures[:i] == signatures[i]).reshape(i, -1, BAND).all(2).any(1)
    for other, meets in zip(sets[:i], met, strict=True):
        meetings.setdefault(round(jaccard(sets[i], other), 1), []).append(meets)
xs = [x for x in sorted(meetings) if len(meetings[x]) >= 8]
ys = [100 * np.mean(meetings[x]) for x in xs]
picture, axes = figure("Near copies meet in a band, strangers hardly ever",
                       "J, the share of common four-word runs", "pairs that meet, %")
grid = np.linspace(0, 1, 200)
axes.plot(grid, 100 * (1 - (1 - grid**BAND) ** (K // BAND)), color=CONTEXT)
axes.annotate("1 - (1 - J^4)^32", (0.52, 80), (6, -6), textcoords="offset points",
              color=CONTEXT)
axes.plot(xs, ys, "o", color=OURS)
for n, (x, y) in enumerate(zip(xs, ys, strict=True)):
    axes.annotate(f"{len(meetings[x]):,}", (x, y), (3, 8 + 12 * (n % 2)), color=OURS,
                  textcoords="offset points", ha="right")
axes.set(xlim=(-0.12, 1.02), ylim=(-4, 112))
show(picture, f"Of {len(meetings[0.0]):,} pairs with J near 0, {ys[0]:.2f} % meet; of "
     f"{len(meetings[xs[-1]])} with J near {xs[-1]}, {ys[-1]:.0f} % (blue: how many)")

# %% packing
import tempfile

from minillama.tokenizer import train_bpe
from minillama.train.data import Batches, write_tokens

texts, T = [text for text, _ in kept], 128
tokenizer = train_bpe(texts, 512)
encoded = [tokenizer.encode(text, bos=True, eos=True) for text in texts]
padding = 1 - sum(map(len, encoded)) / (len(encoded) * max(map(len, encoded)))
row = [token for ids in encoded for token in ids]  # one after another, cut anywhere
with tempfile.TemporaryDirectory() as folder:
    tokens = write_tokens(f"{folder}/train.bin", texts, tokenizer, progress=False)
    assert tokens.ids.tolist() == row
    tokens_BT, targets_BT = Batches(tokens, batch_size=4, seq_len=T, seed=0)(step=0)
    assert tokens_BT.shape == (4, T) and (tokens_BT[:, 1:] == targets_BT[:, :-1]).all()
    del tokens
print(f"padding: {padding:.0%} one document a row, none in {len(row):,} packed tokens")

# %% [markdown] exercise
# **Packing.** Documents differ in length. One to a row wastes part of every batch on
# padding. Joined end to end, with a mark at each end, and cut every $T$ tokens, nothing
# is wasted; a token may then look back into another document. The exercise forbids it.
#
# **Mixture.** Each source gets a share: LLaMA took 4.5 % of each batch from Wikipedia,
# 4.5 % from books and 4.5 % from code. The first two are small: it read them more than
# twice, and of the code only two thirds. An *epoch* is one reading of a source (the
# paper's table 1, over 1.4 trillion tokens):
#
# | source | share of a batch, % | epochs |
# |---|---|---|
# | CommonCrawl | 67.0 | 1.10 |
# | C4 | 15.0 | 1.06 |
# | GitHub | 4.5 | 0.64 |
# | Wikipedia | 4.5 | 2.45 |
# | books | 4.5 | 2.23 |
# | ArXiv | 2.5 | 1.06 |
# | StackExchange | 2.0 | 1.03 |
#
# `python3 run.py pretrain --recipe llama_7b --dry-run` prints the epochs for 1.0
# trillion tokens, and `pretrain --shares FILE` draws its batches so
# (`docs/examples/llama_shares.json`).
#
# **Exercise.** Write Jaccard's $J$, pack documents, and write the mask and the
# positions, in `lessons/exercises/ex14_data.py`. Then `python3 run.py check 14`.

# %% closing
wanted = {"rules": "junk", "n-gram model": "gibberish", "exact copies": "copy",
          "near copies": "near copy"}
assert removed == {name: Counter({kind: 40}) for name, kind in wanted.items()}
assert [text for text, _ in kept] == good and 0.3 < padding < 0.6
assert ys[0] < 1 and ys[-1] == 100 and xs[-1] >= 0.7
print("You should see: each filter finds its 40 planted documents and throws away "
      "nothing good; the rules pass 300 of 300 Chinese stories, and Chinese junk not; "
      f"packing saves the {padding:.0%} of padding (30 to 60)")
