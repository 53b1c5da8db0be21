# %% [markdown] question
# # 40 · Two relatives
# Covers: `docs/family.md`, `minillama/attention.py`, `minillama/rope.py`
# Needs: 07, 08, 12
# Time: 50 s
# Teaches: RWKV's time mixing, recurrence and its state, ALiBi, longer texts than in training
# Paper: [Peng et al. 2023](https://arxiv.org/abs/2305.13048), [Press et al. 2021](https://arxiv.org/abs/2108.12409)
#
# **Question.** RWKV has no attention, and BLOOM no RoPE. What does each of them gain by
# that, and what does it give up?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $k_t, v_t$ | `k`, `v` | (B, T, D) | key and value of token $t$ |
# | $t, i$ | `t`, `i` | | places of the token that reads and of one before it |
# | $w$ | `w` | (D,) | how fast each channel forgets, above 0 |
# | $u$ | `u` | (D,) | the extra weight of the token itself |
# | $y_t$ | `y` | (B, T, D) | what time mixing gives token $t$ |
# | $a_t, b_t$ | `a`, `b` | (B, D) | the two running sums: all that is remembered |
# | $m$ | `slopes` | (H,) | ALiBi: how much a score falls for each token of distance |

# %% naive
import torch
from torch import nn


def mix_by_sums(k, v, w, u):
    """Time mixing as a weighted mean over all tokens so far, (B, T, D)."""
    T = k.shape[1]
    t, i = torch.arange(T)[:, None], torch.arange(T)[None]
    logs = k[:, None] - (t - 1 - i)[..., None] * w  # (B, T, T, D): of token i, at t
    logs = torch.where((i == t)[..., None], k[:, None] + u, logs)
    weights = logs.masked_fill((i > t)[..., None], -torch.inf).softmax(2)
    return (weights * v[:, None]).sum(2)

# %% [markdown] formula
# Attention weighs the past by a product of query and key. RWKV has no query: a token's
# weight is its own key, and it fades with distance, in each channel at its own rate:
# $$y_t = \frac{\sum_{i<t} e^{-(t-1-i)w + k_i} v_i + e^{u + k_t} v_t}{\sum_{i<t} e^{-(t-1-i)w + k_i} + e^{u + k_t}}$$
# ascii: y_t = (sum_(i<t) e^(-(t-1-i) w + k_i) v_i + e^(u+k_t) v_t) / (the same without v)
#
# Because all old weights fade by the same factor, the sums need not be done again:
# $$a_{t+1} = e^{-w} a_t + e^{k_t} v_t, \qquad b_{t+1} = e^{-w} b_t + e^{k_t}$$
# ascii: a_(t+1) = e^-w a_t + e^k_t v_t,  b_(t+1) = e^-w b_t + e^k_t
#
# So it trains as one product over all tokens, like a Transformer, and writes like a
# recurrence: two numbers a channel are all it carries, however long the text is. A KV
# cache (lesson 12) grows by two vectors with each token.

# %% recurrence
def mix_by_recurrence(k, v, w, u):
    a = b = torch.zeros_like(k[:, 0])
    y = []
    for t in range(k.shape[1]):
        own = (u + k[:, t]).exp()
        y.append((a + own * v[:, t]) / (b + own))
        old, new = (-w).exp(), k[:, t].exp()
        a, b = old * a + new * v[:, t], old * b + new
    return torch.stack(y, 1)


torch.manual_seed(0)
k, v = torch.randn(2, 3, 9, 5).double()
w, u = torch.rand(2, 5).double() + 0.1
apart = (mix_by_sums(k, v, w, u) - mix_by_recurrence(k, v, w, u)).abs().max().item()


class TimeMixing(nn.Module):
    def __init__(self, D):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-4, 1, D))  # of ln w: slow to fast
        self.u = nn.Parameter(torch.zeros(D))
        self.shift = nn.Parameter(torch.ones(3, D) / 2)
        self.r, self.k, self.v, self.out = (nn.Linear(D, D, False) for _ in range(4))

    def forward(self, x, rotations=None):
        last = nn.functional.pad(x, (0, 0, 1, -1))  # the token before each
        r, k, v = (s * x + (1 - s) * last for s in self.shift)
        y = mix_by_sums(self.k(k), self.v(v), self.w.exp(), self.u)
        return self.out(torch.sigmoid(self.r(r)) * y)

# %% [markdown] copying
# **The copy task** of lesson 08: some random letters, then the same again. To write the
# second half a model must still know the first, letter for letter and in order.
# Attention looks each one up. Time mixing has to carry them all, in 32 channels that
# fade at rates which no query can change.

# %% copy
from minillama.config import ModelConfig
from minillama.rope import rope_frequencies, rope_rotations
from minillama.transformer import Attention


def copied(make, length, seed, steps=200):
    """The share of the second half that a trained model with this layer gets right."""
    torch.manual_seed(seed)
    embed, layer, read_out = parts = nn.Embedding(16, 32), make(), nn.Linear(32, 16)
    rotations = rope_rotations(torch.arange(2 * length), rope_frequencies(32))
    optimizer = torch.optim.Adam(nn.ModuleList(parts).parameters(), lr=0.01)
    for _ in range(steps):
        letters = torch.randint(16, (64, length)).repeat(1, 2)
        x = embed(letters)
        scores = read_out(x + layer(x, rotations))[:, length - 1:-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(scores, letters[:, length:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (scores.argmax(-1) == letters[:, length:].flatten()).float().mean().item()


config = ModelConfig(dim=32, n_layers=1, n_heads=1, vocab_size=16)
layers = {"attention": lambda: Attention(config), "time mixing": lambda: TimeMixing(32)}
lengths, seeds = (1, 2, 4, 8), (0, 1, 2)
right = {name: [[copied(make, n, seed) for n in lengths] for seed in seeds]
         for name, make in layers.items()}
for name, table in right.items():
    print(name, *(" ".join(f"{x:4.0%}" for x in line) for line in table), sep="\n  ")

# %% [markdown] alibi
# **ALiBi** rotates nothing. Each head takes from a score the distance times a number of
# its own, $m$, which is never learned:
# $$\mathrm{score}_{ti} = \frac{q_t \cdot k_i}{\sqrt{d}} - m \, (t - i)$$
# ascii: score_ti = q_t k_i / sqrt(d) - m (t - i)
#
# Here $q_t$ is the query of token $t$ and $d$ the width of a head. Far tokens fade, as
# in RWKV, so beyond the trained length there is little new. With RoPE, distances that
# never came up in training turn the queries and keys to angles never seen.
#
# We train small models on 32 tokens at a time and read 128.
#
# **What comes out.** Within 32 tokens RoPE is better after so short a training: its
# heads may look anywhere, ALiBi's are held to what is near. Beyond, RoPE is lost, and
# ALiBi goes on nearly as before. (LLaMA's heirs stretch RoPE instead: lesson 07's base,
# and the frequencies of Llama 3.1.)

# %% reader
from minillama.attention import torch_attention
from minillama.rope import apply_rope

slopes, D, H = 2.0 ** -torch.tensor([2.0, 4, 6, 8]), 48, 4


def alibi(q, k, v):
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    scores = q @ k.transpose(-1, -2) / (D // H)**0.5 - slopes[:, None, None] * distance
    return scores.masked_fill(distance < 0, -torch.inf).softmax(-1) @ v


def rope(q, k, v):
    turns = rope_rotations(torch.arange(q.shape[2]), rope_frequencies(D // H))
    q, k = (apply_rope(x.transpose(1, 2), turns).transpose(1, 2) for x in (q, k))
    return torch_attention(q, k, v)


class Layer(nn.Module):
    def __init__(self, attend):
        super().__init__()
        self.attend, self.qkv, self.out = attend, nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.ffn = nn.Sequential(nn.RMSNorm(D), nn.Linear(D, 3 * D), nn.SiLU(),
                                 nn.Linear(3 * D, D))

    def forward(self, x):
        q, k, v = self.qkv(nn.functional.rms_norm(x, (D,))).chunk(3, -1)
        heads = (y.unflatten(-1, (H, -1)).transpose(1, 2) for y in (q, k, v))
        x = x + self.out(self.attend(*heads).transpose(1, 2).flatten(2))
        return x + self.ffn(x)

# %% beyond
from minillama.corpus import mixture
from minillama.tokenizer import train_bpe

texts = [document.text for document in mixture(0, 2000)]
tokenizer = train_bpe(texts, 320)
row = torch.tensor([i for text in texts for i in tokenizer.encode(text, bos=True)])
short, long, kept = 32, 128, 200 * 128  # kept: tokens at the end, not trained on


def by_place(attend, seed, steps=250):
    """The loss at each of 128 places, of a model trained on 32."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(320, D), Layer(attend), Layer(attend),
                          nn.RMSNorm(D), nn.Linear(D, 320))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(steps):
        starts = torch.randint(len(row) - kept - short, (24, 1))
        tokens = row[starts + torch.arange(short + 1)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1),
                                    tokens[:, 1:].flatten()).backward()
        optimizer.step()
    unseen = row[-kept - 1:].unfold(0, long + 1, long)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(unseen[:, :-1]).transpose(1, 2),
                                           unseen[:, 1:], reduction="none").mean(0)

# %% places
losses = {name: torch.stack([by_place(attend, seed) for seed in seeds])
          for name, attend in (("RoPE", rope), ("ALiBi", alibi))}
near = {name: row[:, 16:32].mean(1) for name, row in losses.items()}
far = {name: row[:, 64:].mean(1) for name, row in losses.items()}
for name in losses:
    print(f"{name:6} places 17 to 32:", *(f"{x:.3f}" for x in near[name].tolist()),
          " places 65 to 128:", *(f"{x:.3f}" for x in far[name].tolist()))

# %% figure
from minillama.plots import CONTRAST, OURS, figure, label_end, show

picture, axes = figure("Time mixing forgets; attention looks it up",
                       "letters to copy", "right, %")
for (name, rows), colour in zip(right.items(), (OURS, CONTRAST), strict=True):
    means = [100 * sum(column) / 3 for column in zip(*rows, strict=True)]
    axes.plot(lengths, means, "o-", color=colour)
    label_end(axes, lengths, means, name, colour)
axes.set(xscale="log", xlim=(0.9, 15), ylim=(0, 108), xticks=lengths)
axes.set_xticklabels(map(str, lengths))
axes.minorticks_off()
mixed = [sum(column) / 3 for column in zip(*right["time mixing"], strict=True)]
show(picture, f"Of 8 letters attention copies all, time mixing {mixed[-1]:.0%}")
picture, axes = figure("Beyond 32 tokens RoPE is lost, ALiBi is not",
                       "place in the text", "nats a token")
for (name, rows), colour in zip(losses.items(), (OURS, CONTRAST), strict=True):
    means = rows.mean(0).view(-1, 8).mean(1).tolist()  # of three seeds and 8 places
    axes.plot(range(4, 128, 8), means, color=colour)
    label_end(axes, [124], means[-1:], name, colour)
axes.set(xlim=(0, 150))
show(picture, "Places 65 to 128: " + ", ".join(
    f"{name} {x.mean():.2f} nats" for name, x in far.items()))

# %% closing
assert apart < 1e-12 and min(row[-1] for row in right["attention"]) > 0.99
near, far = ({name: part[name].mean() for name in losses} for part in (near, far))
assert mixed[0] > 0.99 and mixed[-1] < 0.8 and near["ALiBi"] > near["RoPE"]
assert far["RoPE"] > far["ALiBi"] + 0.8 and far["ALiBi"] < near["ALiBi"] + 0.4
print(f"You should see: both forms of time mixing {apart:.0e} apart (below 1e-12); "
      f"of 8 letters attention copies all, time mixing {mixed[-1]:.0%}; at places 65 "
      f"to 128 RoPE has {far['RoPE']:.2f} nats, ALiBi {far['ALiBi']:.2f}")
