# %% [markdown] question
# # 37 · A decoding engine
# Covers: `csrc/cpu/engine.cpp`, `csrc/cpu/matrix.h`, `minillama/engine.py`
# Needs: 05, 06, 07, 08, 12, 22, 23, 36
# Time: 10 s
# Teaches: bytes of a token, a decoding step in C++, grouped queries in the cache, int8 activations for 4-bit weights
# Paper: [Pope et al. 2022](https://arxiv.org/abs/2211.05102)
#
# **Question.** To write one token, a model does two FLOPs for each of its weights. A
# core does some fifty billion FLOPs in a second, so a model of a hundred million
# weights should write hundreds of tokens. It writes a few dozen. What does the CPU
# wait for, and what can a program for this one job do about it?
#
# With one token there is no batch and no time axis: the stream is one vector, and each
# layer is a matrix times that vector. The second cell is the whole step: all that the
# library's engine does.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $D$, $F$, $V$ | `D`, `F`, `V` | | width of stream, feed-forward layer; vocabulary |
# | $L$ | `L` | | layers |
# | $H$, $K$, $d$ | `H`, `K`, `d` | | heads of queries; of keys, values; their width |
# | $S$ | `S` | | tokens in the KV cache, the new one among them |
# | $N$ | `N` | | weights that one token needs |
# | $w$, $b$ | `w`, `b` | | bytes of a weight; of a number in the cache |
# | $Q$ | `Q` | | bytes that one token reads |
# | $W$, $x$, $y$ | `W`, `x`, `y` | $y = W x$ | weights; activations in, and out |
# | $c$, $s$ | `codes`, `scale` | | int8 codes of 64 activations; their scale |
# %% naive
import torch
from torch.nn.functional import silu

from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.course.lesson import ROOT
from minillama.engine import Engine
from minillama.kv_cache import KVCache
from minillama.plots import CONTRAST, OURS, figure, label_end, show
from minillama.quant.nf4 import quantize_nf4
from minillama.quant.quantize_linears import quantize_linears
from minillama.transformer import Transformer

torch.set_num_threads(1)
torch.manual_seed(0)
D, L, H, K, d, V, F = 256, 4, 8, 2, 32, 2000, 704
config = ModelConfig(D, L, H, V, n_kv_heads=K, hidden_dim=F, max_seq_len=64)
model = Transformer(config).requires_grad_(False)


def normed(x, norm):  # lesson 05
    return x * (x.pow(2).mean() + norm.eps).rsqrt() * norm.weight


def turned(heads, t):  # RoPE, pairs as complex numbers: lesson 07
    pairs = torch.view_as_complex(heads.view(len(heads), -1, 2))
    turns = torch.polar(torch.ones(d // 2), t * model.frequencies)
    return torch.view_as_real(pairs * turns).view_as(heads)
# %% one_token
def attend(q, keys, values):
    """One query a head; H / K neighbouring heads share a head of keys and values."""
    mixed = []
    for h in range(H):
        k = h * K // H
        weights = (keys[:, k] @ q[h] / d**0.5).softmax(0)
        mixed.append(weights @ values[:, k])
    return torch.cat(mixed)


def step(token, t, cache):
    x = model.tok_embeddings.weight[token]
    for layer, (keys, values) in zip(model.layers, cache, strict=True):
        a, f = layer.attention, layer.feed_forward
        y = normed(x, layer.attention_norm)
        q = turned((a.wq.weight @ y).view(H, d), t)
        keys[t] = turned((a.wk.weight @ y).view(K, d), t)
        values[t] = (a.wv.weight @ y).view(K, d)
        x = x + a.wo.weight @ attend(q, keys[:t + 1], values[:t + 1])
        y = normed(x, layer.ffn_norm)
        x = x + f.w2.weight @ (silu(f.w1.weight @ y) * (f.w3.weight @ y))
    return model.output.weight @ normed(x, model.norm)


tokens = torch.randint(V, (1, 40))
cache = torch.zeros(L, 2, 40, K, d)
ours = torch.stack([step(token, t, cache) for t, token in enumerate(tokens[0])])
worst = (ours - model(tokens)[0]).abs().max().item()
print("a step by hand gives the model's logits:", worst < 1e-4)
assert worst < 1e-4
# %% [markdown] formula
# Now count what it reads. Each matrix is used once, for one vector, and then it is no
# use until the next token: by then the other layers have pushed it out of the CPU's
# caches. So all weights come from memory for every token. (Only the embedding table
# gives a single row.) In each layer $W_q$ and $W_o$ have $D H d$ weights, $W_k$ and
# $W_v$ have $D K d$, and the three of the feed-forward layer $D F$ each:
#
# $$N = L\,(2 D H d + 2 D K d + 3 D F) + D V$$
# ascii: N = L (2 D H d + 2 D K d + 3 D F) + D V
#
# To these come the keys and values of $S$ tokens, in every layer:
#
# $$Q = w N + 2\,b\,L K d\,S$$
# ascii: Q = w N + 2 b L K d S
#
# (The norms' gains are left out.) A weight of $w = 4$ bytes brings two FLOPs: half a
# FLOP for each byte. That is far to the left of every ridge in lesson 36. Decoding is
# *memory-bound*: the time of a token is $Q$ divided by the memory's speed, and
# arithmetic is nearly free.
# %% bytes
N = L * (2 * D * H * d + 2 * D * K * d + 3 * D * F) + D * V


def held(kind):
    """The model with its linear layers and its head in one form; bytes of them all."""
    other = Transformer(config).requires_grad_(False)
    other.load_state_dict(model.state_dict())
    if kind in ("int8", "nf4"):
        quantize_linears(other, kind=kind, skip=())
    other = use_kernels(other.bfloat16() if kind == "bf16" else other, "cpu")
    parts = [*other.layers.named_parameters(), *other.layers.named_buffers(),
             *other.output.named_parameters(), *other.output.named_buffers()]
    return other, sum(part.nbytes for name, part in parts
                      if not name.endswith(("norm.weight", "layout")))


forms = {kind: held(kind) for kind in ("fp32", "bf16", "int8", "nf4")}
w = {kind: count / N for kind, (_, count) in forms.items()}
for kind in w:
    print(f"{kind}: {w[kind]:.3f} bytes a weight, {w[kind] * N / 1e6:.2f} MB a token")
assert w["fp32"] == 4 and w["bf16"] == 2
assert 1 < w["int8"] < 1.02 and 0.51 < w["nf4"] < 0.53
# %% [markdown] engine
# That is why the forms of lessons 22 and 23 are *fast* and not only small: a token in
# NF4 reads an eighth of the bytes. But it is only fast if the weights go from
# memory into registers in the small form. A program that first writes the
# dequantized matrix to memory and then multiplies reads more than before.
#
# `csrc/cpu/engine.cpp` is the step above in C++. Its matrices are the model's own
# memory, in whatever form; `multiply` reads each row once, decodes it in registers, and
# multiplies. It shares the rows among threads. The cell prints its attention:
# `turn_and_store` is RoPE and the cache, and `add_to_stream` is $W_o$ and the sum.
# Results in fp32 and NF4 differ from PyTorch's by the order of sums alone; in bf16 and
# int8 activations are rounded too, at other places.
#
# **Grouped queries.** The cache's part of $Q$ grows with every token that was read. In
# our `attend` each of the $H$ heads reads its keys anew. The engine loops over the $K$
# heads of keys instead: the $H / K$ queries that share one are the rows of a small
# matrix, so each key is read once for all of them. The bytes fall by $H / K$: this is
# what grouped queries are for (lesson 12).
#
# The second cell counts a model of 1.1 billion weights, with $H = 32$ and $K = 4$, in
# NF4, with a cache in bf16.
# %% cpp
source = (ROOT / "csrc/cpu/engine.cpp").read_text(encoding="utf-8")
begin = source.index("void Engine::attention(")
print(source[begin:source.index("\n}\n", begin) + 2])

for kind, (other, _) in forms.items():
    dtype = other.tok_embeddings.weight.dtype
    engine, cache = Engine(other), KVCache(config, 1, 40, dtype)
    found = torch.cat([engine.step(token[None], cache) for token in tokens[0]])
    plain = other(tokens)[0].float()
    error = ((found - plain).norm() / plain.norm()).item()
    allowed = 1e-4 if kind in ("fp32", "nf4") else 0.05
    print(f"{kind}: the engine is within {allowed} of PyTorch")
    assert error < allowed
# %% figure
# L = 22, D = 2048, H = 32, K = 4, d = 64, F = 5632, V = 32000
in_a_layer = 2 * 2048 * 32 * 64 + 2 * 2048 * 4 * 64 + 3 * 2048 * 5632
weights = w["nf4"] * (22 * in_a_layer + 2048 * 32000)
lengths = list(range(0, 8193, 512))
cached = 2 * 2 * 22 * 64 / 1e6  # MB for each token and head, in bf16
reads = {heads: [weights / 1e6 + cached * heads * S for S in lengths]
         for heads in (32, 4)}
picture, axes = figure("Grouped queries keep the cache below the weights",
                       "tokens in the cache", "MB read for one token")
for heads, colour, words in ((32, CONTRAST, "K = 32"), (4, OURS, "K = 4")):
    axes.plot(lengths, reads[heads], color=colour)
    label_end(axes, lengths, reads[heads], words, colour)
axes.set(ylim=(0, None), xlim=(0, 8192))
show(picture, f"A token reads {reads[4][0]:.0f} MB of weights in NF4; behind 8,192 "
              f"tokens {reads[4][-1]:.0f} MB in all with K = 4, "
              f"{reads[32][-1]:.0f} MB with K = 32")
assert reads[4][-1] < 1.5 * reads[4][0] and reads[32][-1] > 2.5 * reads[4][-1]
# %% [markdown] rounded
# **The last step.** In NF4 so few bytes come that arithmetic is no longer free: every
# code must become an fp32 number, and a vector register of 64 bytes holds only 16 of
# them. In int8 it holds 64, and CPUs have one instruction for 64 products and sums of
# int8. So the engine can also round the *activations*: 64 at a time, to codes $c$ with
# a scale of their own, the largest $|x|$ of them over 127:
#
# $$x \approx s\,c, \qquad s = \frac{\max |x|}{127}$$
# ascii: x ~ s c,  s = max |x| / 127
#
# The sixteen levels of NF4 become integers too. The sums of integers are exact; two
# products with scales finish a block. The rounding is at most $s / 2$ in each $x$, and
# `--activations int8` asks for it. Measure before you do: where exact products keep up
# with the memory it gains nothing; `docs/speed.md` has the speed of both on one CPU.
# %% activations
W, x = torch.randn(300, 1024) / 32, torch.randn(1024)
stored = quantize_nf4(W)
blocks = x.view(-1, 64)
scale = blocks.abs().amax(1) / 127
codes = (blocks / scale[:, None]).round()
assert ((scale[:, None] * codes - blocks).abs() <= scale[:, None] * 0.5001).all()
exact = stored.dequantize() @ x
kernel = torch.ops.minillama.nf4_matmul_int8(x[None], *stored.parts(), 300, 64)[0]
by_hand = stored.dequantize() @ (scale[:, None] * codes).flatten()
errors = [((y - exact).norm() / exact.norm()).item() for y in (by_hand, kernel)]
print(f"activations in int8 move the product by {errors[0]:.1%}; "
      f"levels in int8 too: {errors[1]:.1%}")
assert max(errors) < 0.02
Q = {kind: w[kind] * N for kind in w}
# %% [markdown] exercise
# **Exercise.** Count a token's bytes. Write attention for one token so that each key
# is read once for its whole group. Then multiply a row of integer weights with
# activations that you round yourself.
#
# Open `lessons/exercises/ex37_engine.py`, then run `python3 run.py check 37`.
# %% you_should_see
print(f"You should see: {N:,} weights a token; {Q['fp32'] / 1e6:.1f} MB of them in "
      f"fp32, {Q['nf4'] / 1e6:.1f} in NF4; the engine\nagrees with PyTorch in every "
      f"form; activations in int8 move a product by {errors[1]:.1%}.")
assert N == 3_330_048 and Q["fp32"] / Q["nf4"] > 7.7
