# %% [markdown] question
# # 13 · Generation
# Covers: `minillama/sampling.py`, `minillama/generate.py`, `tests/test_sampling.py`, `tests/test_generate.py`
# Needs: 10, 12
# Time: 6 s
# Teaches: greedy, temperature, top-k, top-p, seeds, stop rules, chi-square
# Paper: [Holtzman et al. 2019](https://arxiv.org/abs/1904.09751), equation 2
#
# **Question.** A trained model's weights are fixed numbers, and running it twice gives
# the same scores twice. Yet a chat model answers differently each time. Where does the
# randomness live?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $V$ | `V` | | pieces in the vocabulary |
# | $z$ | `logits` | (V,) | scores of each piece to be the next (*logits*) |
# | $\tau$ | `temperature` | | how bold: 0 always the best, 1 the model's own chances |
# | $p$ | `p` | (V,) | probabilities of the pieces (a *distribution*), with sum 1 |
# | $u$ | `u` | | a random number, at least 0 and below 1 |
# | $k$, $c$ | `top_k`, `top_p` | | how many pieces, how much probability to keep |
# %% naive
import math

import torch

from minillama.config import preset
from minillama.generate import generate_tokens
from minillama.plots import INK, OURS, figure, show
from minillama.sampling import Sampling, next_token_distribution, sample
from minillama.transformer import Transformer


def softmax(logits, temperature):
    weights = [math.exp((z - max(logits)) / temperature) for z in logits]
    return [weight / sum(weights) for weight in weights]


def draw(p, u):
    """Lay the probabilities end to end from 0 to 1: on which of them does u fall?"""
    for piece, probability in enumerate(p):
        u -= probability
        if u < 0:
            return piece
    return len(p) - 1  # rounding left a crumb at the end


words = ["mat", "sofa", "floor", "roof", "table", "moon", "tax", "the"]
logits = [3.0, 2.4, 2.0, 1.4, 1.0, 0.2, -0.5, -1.0]  # after "The cat sat on the"
for u in (0.1, 0.5, 0.9, 0.999):
    print(f"u = {u}: The cat sat on the {words[draw(softmax(logits, 1.0), u)]}")
# %% [markdown] formula
# All chance is in $u$. The model gives scores, a softmax turns them into probabilities,
# and one random number picks.
#
# $$p_i = \frac{e^{z_i / \tau}}{\sum_{j=1}^{V} e^{z_j / \tau}}$$
# ascii: p_i = exp(z_i / tau) / sum_j exp(z_j / tau)
#
# The **temperature** $\tau$ divides the scores first. Below 1, the likely pieces gain;
# above 1, the unlikely ones do. Towards 0 the best piece takes all. That limit is
# called **greedy**, and needs no $u$. How much chance is left is measured by the
# *entropy*, $-\sum_i p_i \log_2 p_i$ (the mean of $-\log_2 p_i$ over many draws): 0
# bits if one piece is certain, 3 bits if 8 are equally likely.
# %% agree
z = torch.tensor([logits])
for temperature in (0.1, 0.5, 1.0, 2.0):
    ours = next_token_distribution(z, Sampling(temperature=temperature))[0]
    assert (ours - torch.tensor(softmax(logits, temperature))).abs().max() < 1e-6
    bits = -(ours * ours.clamp(min=1e-30).log2()).sum().item()
    print(f"temperature {temperature}: mat {ours[0]:.3f}, tax {ours[6]:.3f}, "
          f"entropy {bits:.2f} bits")
greedy = sample(z, Sampling(temperature=0.0)).item()
assert words[greedy] == "mat"
# %% [markdown] filters
# **The long tail.** "tax" has 1.3 %. That seems harmless, but LLaMA's vocabulary has
# 32,000 pieces: thousands of bad ones, each unlikely, add up. One bad piece, and the
# text goes on from it. Two filters cut the tail, then make the rest sum to 1 again:
#
# - **top-k** keeps the $k$ likeliest pieces (where several tie for the last place, the
#   library keeps them all).
# - **top-p**, or nucleus sampling, keeps pieces from the likeliest down, until their
#   probabilities together reach $c$. Where the model is sure, that is one piece; where
#   it is not, many.
#
# The library applies the temperature first, then top-k, then top-p. (Before all of them
# it can make words that are already in the text less likely: a *repetition penalty*,
# off unless asked for.)
# %% filtered
def keep(p, pieces):
    total = sum(p[i] for i in pieces)
    return [q / total if i in pieces else 0.0 for i, q in enumerate(p)]


def top_k(p, k):
    return keep(p, sorted(range(len(p)), key=lambda i: -p[i])[:k])


def top_p(p, c):
    kept, mass = [], 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if mass >= c:
            break
        kept.append(i)
        mass += p[i]
    return keep(p, kept)


p = softmax(logits, 1.0)
rows = {"as it is": (p, Sampling()),
        "temperature 0.5": (softmax(logits, 0.5), Sampling(temperature=0.5)),
        "top-k 3": (top_k(p, 3), Sampling(top_k=3)),
        "top-p 0.85": (top_p(p, 0.85), Sampling(top_p=0.85))}
for name, (loop, settings) in rows.items():
    ours = next_token_distribution(z, settings)[0]
    assert (ours - torch.tensor(loop)).abs().max() < 1e-6
    kept = [(word, q) for word, q in zip(words, loop, strict=True) if q]
    print(f"{name:16}", *(f"{word} {q:.2f} " for word, q in kept))
assert [sum(q > 0 for q in loop) for loop, _ in rows.values()] == [8, 8, 3, 4]
# %% picture
assert round(p[6], 3) == 0.013  # tax
picture, axes = figure("Filters cut the tail; temperature thins it", "probability")
for row, (loop, _) in enumerate(rows.values()):
    left = 0.0
    for place, (word, q) in enumerate(zip(words, loop, strict=True)):
        shade = 1 - 0.11 * place
        axes.barh(row, q, left=left, color=OURS, alpha=shade, edgecolor="white")
        if q > 0.07:
            axes.text(left + q / 2, row, word, ha="center", va="center", color=INK)
        left += q
axes.set_yticks(range(4), rows)
axes.invert_yaxis()
show(picture, "Of 8 words top-k 3 keeps 3, top-p 0.85 keeps 4, temperature keeps all "
     "(the narrow slices without a name are the least likely words)")
# %% [markdown] chance
# **Is the draw fair?** Draw 20,000 times, count how often each word came ($n_i$), and
# compare with what was expected ($20000\, p_i$):
#
# $$\chi^2 = \sum_{i=1}^{V} \frac{(n_i - 20000 \, p_i)^2}{20000 \, p_i}$$
# ascii: chi^2 = sum_i (n_i - 20000 p_i)^2 / (20000 p_i)
#
# This number is called *chi-square*. If the draw is fair, it is 7 on average, one less
# than the number of words; printed tables say that it is below 24.3 in 999 of 1000
# experiments. A test must also be able to fail: so we compare the same draws with
# probabilities that are slightly off, those of temperature 0.9 instead of 1.
# %% chi_square
def chi_square(pieces, p):
    expected = len(pieces) * torch.tensor(p)
    counted = pieces.bincount(minlength=len(p))
    return ((counted - expected).square() / expected).sum().item()


seed = torch.Generator().manual_seed(0)
pieces = sample(z.expand(20_000, -1), Sampling(), seed)
fair, unfair = chi_square(pieces, p), chi_square(pieces, softmax(logits, 0.9))
print(f"chi-square: {fair:.1f} against temperature 1, {unfair:.0f} against 0.9")
assert fair < 24.3 < unfair
# %% generate
torch.manual_seed(0)
model = Transformer(preset("tiny"))  # untrained: its text is noise, its rules are real


def write(seed, temperature=1.0, stop_ids=()):
    settings = Sampling(temperature=temperature)
    steps = generate_tokens(model, [[1]], 12, settings, stop_ids, seed)
    return [row[0] for row in steps]


text = write(seed=7)
print("seed 7:", text)
assert text == write(seed=7) != write(seed=8)
assert write(seed=7, temperature=0.0) == write(seed=8, temperature=0.0)  # greedy: no u
stopped = write(seed=7, stop_ids=[text[4]])
print("stopped at piece", text[4], ":", stopped)
assert stopped == text[:text.index(text[4]) + 1]
# %% [markdown] exercise
# Generation is then a loop: scores from the model (with a KV cache), filters, one draw,
# feed the piece back. It ends at a *stop piece* (a model learns to write one at the end
# of an answer), after a set number, or when the text is as long as the model can read.
# The seed fixes every $u$, so the same seed gives the same text.
#
# A page in the browser shows all of it at work, token by token: `python3 run.py chat
# --web --model DIR`. `docs/inside.html` is one conversation that was recorded with it.
#
# **Exercise.** Write two functions. `top_p` returns the filtered probabilities; of
# pieces that are equally likely, it may keep only some. `draw` returns one piece for
# each of many $u$.
#
# Open `lessons/exercises/ex13_generate.py`, then run `python3 run.py check 13`.
# %% you_should_see
print(f"You should see: chi-square {fair:.1f} for the right distribution, "
      f"{unfair:.0f} for one that is slightly off;")
print("top-k 3 keeps 3 words, top-p 0.85 keeps 4.")
assert fair < 24.3 and unfair > 50 and sum(q > 0 for q in top_p(p, 0.85)) == 4
