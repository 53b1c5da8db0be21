# %% [markdown] question
# # 10 · The transformer
# Covers: `minillama/transformer.py`, `minillama/config.py`, `tests/test_transformer.py`
# Needs: 05, 06, 07, 08
# Time: 12 s
# Teaches: residual stream, blocks, no biases, model sizes, parameter count, first loss
# Paper: [Touvron et al. 2023](https://arxiv.org/abs/2302.13971), section 2.2
#
# **Question.** All parts are there: norm, rotation, attention, gated feed-forward. A
# page of code puts them together. How does that page become 7 billion parameters?
#
# | symbol | in code | 7B, or shape | meaning |
# |---|---|---|---|
# | $D$ | `config.dim` | 4096 | model width |
# | $L$ | `config.n_layers` | 32 | layers (blocks) |
# | $H$, $K$ | `n_heads`, `n_kv_heads` | 32, 32 | query heads, key/value heads |
# | $d$ | `config.head_dim` | 128 | head width |
# | $F$ | `config.hidden_dim` | 11008 | feed-forward width |
# | $V$ | `config.vocab_size` | 32000 | pieces in the vocabulary |
# | $x$ | `x` | (T, D) | the residual stream: one vector for each of T tokens |
# | $N$ | `counts` | 6.7 billion | parameters: numbers that training sets |
# %% naive
import math

import torch

from minillama.attention import attention
from minillama.config import ModelConfig, preset
from minillama.plots import CONTEXT, CONTRAST, INK, OURS, bars, figure, show
from minillama.rms_norm import rms_norm
from minillama.rope import apply_rope, rope_frequencies, rope_rotations
from minillama.swiglu import gated_linear_unit
from minillama.transformer import Transformer


def forward(tokens, w, config):
    """Scores of every piece to be the next, (T, V), from a dictionary of weights."""
    f = rope_frequencies(config.head_dim, config.rope_theta)
    turns = rope_rotations(torch.arange(len(tokens)), f)
    x = w["tok_embeddings"][tokens]  # (T, D): one row of the table per token
    for n in range(config.n_layers):
        p = {name.removeprefix(f"layers.{n}."): value for name, value in w.items()}
        a = rms_norm(x, p["attention_norm"], config.norm_eps)
        heads = [(a @ p[f"attention.w{name}"].T).unflatten(-1, (-1, config.head_dim))
                 for name in "qkv"]  # (T, H or K, d) each
        q, k = apply_rope(heads[0], turns), apply_rope(heads[1], turns)
        mixed = attention(*(y.transpose(0, 1)[None] for y in (q, k, heads[2])))
        x = x + mixed[0].transpose(0, 1).flatten(1) @ p["attention.wo"].T
        b = rms_norm(x, p["ffn_norm"], config.norm_eps)
        ffn = (p[f"feed_forward.w{i}"] for i in (1, 3, 2))  # gate, up, down
        x = x + gated_linear_unit(b, *ffn)
    return rms_norm(x, w["norm"], config.norm_eps) @ w["output"].T
# %% [markdown] formula
# A token's row of the embedding table enters the stream. Each of the $L$ blocks adds to
# it twice: attention brings in what other tokens hold, the feed-forward layer works on
# each token alone. At the end one more norm, and a table that turns each vector into
# $V$ scores for the next token, called *logits*.
#
# $$x \leftarrow x + \mathrm{Attention}(\mathrm{RMSNorm}(x))$$
# ascii: x <- x + Attention(RMSNorm(x))
#
# $$x \leftarrow x + \mathrm{SwiGLU}(\mathrm{RMSNorm}(x))$$
# ascii: x <- x + SwiGLU(RMSNorm(x))
#
# No biases anywhere (constants added after a matrix), and no vectors that stand for
# positions: RoPE inside attention and the causal mask are all the model is told about
# order. LLaMA is a *decoder* alone: no encoder, and no attention to one. So is GPT-3,
# with 175 billion parameters; `docs/family.md` compares them.
# %% diagram
picture, axes = figure("Each of L blocks adds to the stream twice", figsize=(5.4, 4.4))


def box(x, y, name, colour=CONTEXT):
    axes.text(x, y, name, color="white", ha="center", va="center",
              bbox={"boxstyle": "round,pad=0.4", "facecolor": colour, "linewidth": 0})


def arrow(*points):
    xs, ys = zip(*points, strict=True)
    axes.plot(xs[:-1], ys[:-1], color=INK, linewidth=1)
    axes.annotate("", points[-1], points[-2],
                  arrowprops={"arrowstyle": "->", "color": INK})


arrow((1, 6.6), (1, 0.4))  # the stream, from the tokens to the logits
for y, name, colour in ((5, "attention", CONTRAST), (3, "SwiGLU", OURS)):
    arrow((1, y), (4.6, y), (4.6, y - 0.9), (1.15, y - 0.9))
    box(2.8, y, "RMSNorm")
    box(4.6, y, name, colour)
    axes.text(0.8, y - 0.9, "+", color=INK, ha="right", va="center")
for y, name in ((6, "embedding"), (1.2, "RMSNorm"), (0.4, "output")):
    box(1, y, name)
axes.set(xlim=(-0.2, 5.8), ylim=(0, 6.8))
axes.axis("off")
show(picture, "The residual stream: embedding, then in each block attention and SwiGLU "
              "behind a norm, added; a last norm; the output table")
# %% agree
torch.manual_seed(0)
config = ModelConfig(dim=48, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=100)
model = Transformer(config)
weights = {name.removesuffix(".weight"): value.detach()
           for name, value in model.named_parameters()}
tokens = torch.randint(100, (17,))
with torch.no_grad():
    ours, loop = model(tokens[None])[0], forward(tokens, weights, config)
print("logits", tuple(ours.shape), "agree:", bool((ours - loop).abs().max() < 1e-4))
assert (ours - loop).abs().max() < 1e-4
for name in [name for name in weights if not name.startswith(("layers.1", "layers.2"))]:
    print(f"  {name:25} {tuple(weights[name].shape)}")
assert not any("bias" in name for name, _ in model.named_parameters())
# %% [markdown] count
# **Counting.** In attention, the matrices for queries and for the output are
# $D \times Hd$ each, those for keys and values $D \times Kd$. The feed-forward layer
# has three matrices of $D \times F$ (lesson 06). Two gains per block, one at the end; a
# table of $V \times D$ at each end of the model:
#
# $$N = L \, (2Dd(H + K) + 3DF + 2D) + 2VD + D$$
# ascii: N = L (2 D d (H + K) + 3 D F + 2 D) + 2 V D + D
#
# Some small models use one table for both ends (*tied*); then it counts once. Nearly
# every parameter is used for one multiplication and one addition per token, so reading
# a token costs about $2N$ operations. (The embedding is only looked up; the scores of
# attention come on top, and grow with the text.)
#
# PyTorch can build a model without memory for its numbers, on the device `meta`. So we
# can count every LLaMA here, though the largest would take 276 GB.
# %% sizes
counts = {}
for name in ("llama_7b", "llama_13b", "llama_33b", "llama_65b", "llama2_70b"):
    c = preset(name)
    with torch.device("meta"):
        counts[name] = sum(p.numel() for p in Transformer(c).parameters())
    D, d, H, K, F = c.dim, c.head_dim, c.n_heads, c.n_kv_heads, c.hidden_dim
    block = 2 * D * d * (H + K) + 3 * D * F + 2 * D
    assert counts[name] == c.n_layers * block + 2 * c.vocab_size * D + D
    print(f"{name:10} D {D}, L {c.n_layers}, H {H}, K {K:2}, F {F}: {counts[name]:,}")
assert counts["llama_7b"] == 6_738_415_616
assert counts["llama_13b"] == 13_015_864_320
assert counts["llama2_70b"] == 68_976_648_192
# GPT-3's blocks have 4 D^2 weights in attention, 8 D^2 in the feed-forward layer
gpt3 = 96 * 12 * 12288**2 + (50257 + 2048) * 12288  # + tables of pieces and places
print(f"GPT-3, by its paper's widths: {gpt3 / 1e9:.0f} billion")
assert round(gpt3 / 1e9) == 175  # not 135, as some texts have it

c = preset("llama_7b")
parts = {"feed-forward": c.n_layers * 3 * c.dim * c.hidden_dim,
         "attention": c.n_layers * 4 * c.dim**2,
         "embedding": c.vocab_size * c.dim, "output": c.vocab_size * c.dim}
share = parts["feed-forward"] / counts["llama_7b"]
rows = [(name, n / 1e9, colour) for (name, n), colour in
        zip(parts.items(), (OURS, CONTRAST, CONTEXT, CONTEXT), strict=True)]
title = f"Feed-forward layers hold {share:.0%} of LLaMA-7B"
picture = bars(title, rows, "billion parameters")
show(picture, f"Of 6.74 billion parameters {share:.0%} are in the feed-forward layers")
assert round(share, 2) == 0.64
# %% [markdown] first_loss
# **What should the loss be before training?** The loss is $-\ln\, p$, with $p$ the
# softmax probability of the right next token. If all pieces have the same chance, it is
# $\ln\, V$. Ours starts a bit above, and we can say by how much.
#
# After the last norm, the entries of $x$ have size 1. The output table starts with
# random numbers of variance $1/D$. A logit is the sum of $D$ products of the two: a
# random number of variance 1, close to a normal one. The loss is
# $\ln\, \sum_v e^{z_v} - z_r$, with $z_v$ the logit of piece $v$ and $r$ the right
# piece. The mean of $e^z$ over a standard normal $z$ is $e^{1/2}$, and $z_r$ is 0 on
# average. So we expect
#
# $$\mathrm{loss} \approx \ln\, (V e^{1/2}) = \ln\, V + \frac{1}{2}$$
# ascii: loss ~ ln(V e^(1/2)) = ln V + 1/2
#
# A first loss far from that is the cheapest bug report there is.
# %% losses
firsts = {}
for V in (64, 512, 4096):
    tokens = torch.randint(V, (16, 65))
    untrained = Transformer(ModelConfig(dim=128, n_layers=4, n_heads=4, vocab_size=V))
    with torch.no_grad():
        z = untrained(tokens)
    right = tokens[:, 1:].flatten()  # the piece that follows
    firsts[V] = torch.nn.functional.cross_entropy(z[:, :-1].flatten(0, 1), right).item()
    print(f"V = {V:4}: ln V = {math.log(V):.2f}, first loss {firsts[V]:.2f}")
    assert abs(firsts[V] - math.log(V) - 0.5) < 0.15
# %% [markdown] exercise
# **Exercise.** Write a function that returns how many parameters a LLaMA has, tied or
# not, from its widths alone. A second one wires a block from its four parts, in the
# right order, and returns the new stream.
#
# Open `lessons/exercises/ex10_transformer.py`, then run `python3 run.py check 10`.
# %% you_should_see
print(f"You should see: {counts['llama_7b']:,} parameters in LLaMA-7B, "
      f"{share:.0%} of them feed-forward;")
print(f"first loss {firsts[4096]:.2f} at V = 4096, near ln V + 1/2 = "
      f"{math.log(4096) + 0.5:.2f}.")
assert counts["llama_7b"] == 6_738_415_616 and round(share, 2) == 0.64
assert abs(firsts[4096] - math.log(4096) - 0.5) < 0.15
