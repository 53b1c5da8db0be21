# %% [markdown] question
# # 08 · Attention
# Covers: `minillama/attention.py`, `tests/test_attention.py`
# Needs: 05, 07
# Time: 8 s
# Teaches: queries, keys, values, scaling, causal mask, heads, GQA and MQA
# Paper: [Vaswani et al. 2017](https://arxiv.org/abs/1706.03762), equation 1
#
# **Question.** All other parts of a LLaMA treat every token alone. Attention is the one
# place where tokens meet. Who looks at whom, and what do they take away?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $B$, $T$ | `B`, `T` | | texts at a time, and tokens in each |
# | $D$ | `dim` | | model width: numbers per token (4096 in LLaMA-7B) |
# | $d$ | `d` | | head width (128 in LLaMA-7B) |
# | $q_t$ | `q[t]` | (d,) | query of token $t$: what it looks for |
# | $k_s$ | `k[s]` | (d,) | key of token $s$: what it can be found by |
# | $v_s$ | `v[s]` | (d,) | value of token $s$: what it hands over |
# | $a_{ts}$ | `scores` | (T, T) | score: how well $q_t$ and $k_s$ match |
# | $w_{ts}$ | `w` | (T, T) | weight: how much of $v_s$ goes into the output at $t$ |
# | $o_t$ | `out[t]` | (d,) | the output at token $t$ |
# | $H$, $K$ | `H`, `K` | | query heads; key/value heads |
#
# All that follows is one *head*. A model has many; we start with one. In the code a
# name ends with one letter for each axis: `q_BHTd` is (B, H, T, d).
# %% naive
import copy
import math

import torch
from torch import nn

from minillama.attention import Attention, attention
from minillama.config import ModelConfig
from minillama.plots import heat_maps, show
from minillama.rope import apply_rope, rope_frequencies, rope_rotations

torch.manual_seed(0)


def naive(q, k, v):
    """One head, one text: (T, d) each. Token t looks at the tokens 0 to t."""
    out = []
    for t in range(len(q)):
        scores = [sum(q[t] * k[s]) / math.sqrt(len(q[t])) for s in range(t + 1)]
        largest = max(scores)  # taken off first, so that exp cannot overflow
        shares = [math.exp(score - largest) for score in scores]
        out.append(sum(e / sum(shares) * v[s] for s, e in enumerate(shares)))
    return torch.stack(out)


q, k, v = torch.randn(3, 5, 4, dtype=torch.float64)  # T = 5, d = 4
print(naive(q, k, v).round(decimals=2).tolist())
# %% [markdown] formula
# Query, key and value are made from the same token vector, by three different matrices;
# RoPE (lesson 07) then turns the first two. The score $a_{ts}$ of a query and a key
# says how well they match. The *softmax* (second formula) turns the scores of one query
# into weights: positive, with sum 1. The sum runs over all tokens $r$ up to $t$. The
# output is the weighted mean of the values.
#
# $$a_{ts} = q_t \cdot k_s / \sqrt{d}$$
# ascii: a_ts = q_t . k_s / sqrt(d)
#
# $$w_{ts} = \frac{\exp(a_{ts})}{\sum_{r \le t} \exp(a_{tr})}$$
# ascii: w_ts = exp(a_ts) / sum_{r <= t} exp(a_tr)
#
# $$o_t = \sum_{s \le t} w_{ts} \, v_s$$
# ascii: o_t = sum_{s <= t} w_ts v_s
#
# **Causal:** token $t$ sees only $s \le t$, because the model must predict the next
# token. In matrix form the forbidden scores become $-\infty$, and their weights 0.
#
# **Scaling.** Why divide by $\sqrt{d}$? Let the entries of $q$ and $k$ be random with
# standard deviation 1. Their dot product is a sum of $d$ terms of size 1 with random
# signs: typical size $\sqrt{d}$, which is 11.3 at $d = 128$. Softmax of such scores
# gives nearly all the weight to one token, and hardly any gradient to the others.
# Divided by $\sqrt{d}$, scores have size 1, whatever the width.
# %% agree
ours = attention(q[None, None], k[None, None], v[None, None])  # (B, H, T, d), B = H = 1
assert (ours[0, 0] - naive(q, k, v)).abs().max() < 1e-12
assert torch.equal(ours[0, 0, 0], v[0])  # the first token can look only at itself

q2, k2, v2 = q.clone(), k.clone(), v.clone()
for changed in (q2, k2, v2):
    changed[3:] = torch.randn(2, 4, dtype=torch.float64)  # another future
changed_ours = attention(q2[None, None], k2[None, None], v2[None, None])
leak = (changed_ours - ours)[0, 0, :3].abs().max().item()
print("tokens 3 and 4 replaced: outputs 0 to 2 change by", leak)
assert leak == 0.0

queries, keys = torch.randn(2, 1000, 128)
scores = queries @ keys[:100].T  # each of 1000 queries against 100 keys
raw = scores.softmax(-1).amax(-1).mean().item()
scaled = (scores / math.sqrt(128)).softmax(-1).amax(-1).mean().item()
print(f"scores have size {scores.std():.1f}; the best of 100 keys gets {raw:.0%} "
      f"of the weight unscaled, {scaled:.0%} scaled")
assert abs(scores.std() - math.sqrt(128)) < 0.3 and raw > 0.75 and scaled < 0.15
# %% [markdown] heads
# **Heads.** One softmax gives one set of weights per token, so it can follow one thing
# at a time. Therefore each token gets $H$ queries, $H$ keys and $H$ values, each of
# width $d$, made by three matrices, the *projections*. Each head attends alone. Their
# outputs are joined, and the *output matrix* mixes what the heads have found. LLaMA-7B:
# $D = 4096$, 32 heads of 128. The first cell below has all shapes.
#
# **Shared keys and values.** While text is generated, the keys and values of all
# earlier tokens stay in memory (lesson 12). To keep less, Llama 2 70B has 64 query
# heads but only $K = 8$ key/value heads, each serving 8 neighbouring query heads:
# *grouped-query attention*, GQA ([Ainslie et al.
# 2023](https://arxiv.org/abs/2305.13245)). $K = H$ is the original multi-head
# attention, $K = 1$ *multi-query* attention, MQA. The second cell below compares the
# library, which makes no copies of $k$ and $v$, with copies made by hand.
# %% projections
B, T, D, H = 2, 5, 12, 3
layer = Attention(ModelConfig(dim=D, n_layers=1, n_heads=H, vocab_size=16))
rotations = rope_rotations(torch.arange(T), rope_frequencies(D // H))
x = torch.randn(B, T, D)
q, k, v = (W(x).view(B, T, H, D // H)  # (B, T, D) -> (B, T, H d) -> (B, T, H, d)
           for W in (layer.wq, layer.wk, layer.wv))
q, k = apply_rope(q, rotations), apply_rope(k, rotations)  # not v
q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # (B, H, T, d): a head at a time
heads = attention(q, k, v)  # (B, H, T, d)
joined = heads.transpose(1, 2).reshape(B, T, D)  # (B, T, H d)
assert (layer.wo(joined) - layer(x, rotations)).abs().max() < 1e-6  # (B, T, D)
# %% grouped
B, H, T, d = 2, 6, 7, 8
q_BHTd = torch.randn(B, H, T, d, dtype=torch.float64)
for K in (6, 3, 2, 1):
    k_BKTd, v_BKTd = torch.randn(2, B, K, T, d, dtype=torch.float64)
    served = [head * K // H for head in range(H)]  # whose keys each query head reads
    copied = attention(q_BHTd, k_BKTd[:, served], v_BKTd[:, served])
    assert (attention(q_BHTd, k_BKTd, v_BKTd) - copied).abs().max() < 1e-12
    print(f"K = {K}: query heads 0 to 5 read key/value heads {served}")
# %% [markdown] copier
# **Watch one learn.** The text is eight random letters, then the same eight again.
# Every letter of the second half stands 8 places after its first copy. The token that
# must predict it stands one place earlier, and so sees that copy 7 tokens back.
# (Counted from 0: the letter at place 11 is predicted at place 10, and stood at place
# 3.)
#
# Our model is an *embedding* (a table: one learned vector per letter), one attention
# head of width 32, and a matrix that turns each vector into 16 scores, one per letter.
# Nobody tells it about the 7. RoPE (lesson 07) lets scores depend on distance; training
# has to find the right one. Guessing among 16 letters costs $\ln\, 16 = 2.77$
# *nats*, the unit of a loss that is computed with natural logarithms.
#
# The library's `attention_weights` returns the weights. Here a trick shows them: let
# $v_s$ be the vector with a 1 at place $s$ and zeros elsewhere. Then the output $o_t$
# is the list of weights itself; `weights_of` below does that. In
# the maps a row is a token that looks, a column a token that is seen. Watch the rows
# from the eighth on. In the rows above there is nothing to copy yet, and they do not
# count in the loss.
# %% train
config = ModelConfig(dim=32, n_layers=1, n_heads=1, vocab_size=16)
embed, layer = nn.Embedding(16, 32), Attention(config)
read_out = nn.Linear(32, 16, bias=False)
rotations = rope_rotations(torch.arange(16), rope_frequencies(32))
weights = [*embed.parameters(), *layer.parameters(), *read_out.parameters()]
optimizer = torch.optim.Adam(weights, lr=0.01)
untrained = copy.deepcopy((embed, layer))


def loss_and_hits():
    letters = torch.randint(16, (64, 8)).repeat(1, 2)
    x = embed(letters)
    scores = read_out(x + layer(x, rotations))[:, 7:-1].flatten(0, 1)
    wanted = letters[:, 8:].flatten()
    hits = (scores.argmax(-1) == wanted).float().mean().item()
    return nn.functional.cross_entropy(scores, wanted), hits


for step in range(200):
    loss, hits = loss_and_hits()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, 10, 20, 40, 199):
        print(f"step {step:3}: loss {loss.item():.3f}, {hits:.0%} of the letters right")
assert hits == 1.0 and loss.item() < 0.05
# %% maps
def weights_of(embed, layer, letters):
    """The weights w, (B, T, T): what comes out if the values are the unit vectors."""
    seen = []

    def attend(q_BHTd, k_BKTd, v_BKTd, causal, mask_BTS):
        unit_vectors = torch.eye(letters.shape[1]).expand(len(letters), 1, -1, -1)
        seen.append(attention(q_BHTd, k_BKTd, unit_vectors, causal, mask_BTS))
        return attention(q_BHTd, k_BKTd, v_BKTd, causal, mask_BTS)

    layer.attend = attend
    layer(embed(letters), rotations)
    return seen[0][:, 0].detach()


letters = torch.randint(16, (500, 8)).repeat(1, 2)
maps = {"before training": weights_of(*untrained, letters),
        "after training": weights_of(embed, layer, letters)}
back = {name: w[:, range(7, 15), range(8)].mean().item() for name, w in maps.items()}
print("weight on the token 7 back:", {name: round(w, 2) for name, w in back.items()})
assert back["before training"] < 0.2 and back["after training"] > 0.85

names = ["abcdefghijklmnop"[i] for i in letters[0].tolist()]
picture = heat_maps("The trained head looks 7 tokens back",
                    {name: w[0].numpy() for name, w in maps.items()}, names)
show(picture, f"Each row is a token that looks; {back['after training']:.0%} of the "
              "weight lies 7 tokens back after training")
# %% [markdown] exercise
# **Exercise.** Write a function that returns the causal mask, True where a token may
# look. There may be more keys than queries: the queries are then the *last* tokens, as
# in generation. A second function returns the outputs of grouped-query attention, and
# a third is a whole layer: projections, heads, output matrix (without RoPE).
#
# Open `lessons/exercises/ex08_attention.py`, then run `python3 run.py check 8`.
# %% you_should_see
print(f"You should see: replacing later tokens changes earlier outputs by {leak};")
print(f"the copier gets {hits:.0%} right, with {back['after training']:.0%} of its "
      "weight 7 tokens back.")
assert leak == 0.0 and hits == 1.0 and back["after training"] > 0.85
