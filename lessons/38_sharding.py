# %% [markdown] question
# # 38 · Many processes, one model
# Covers: `minillama/train/sharded.py`, `minillama/train/tensor_parallel.py`, `lessons/mesh.py`
# Needs: 06, 08, 10, 18
# Time: 30 s
# Teaches: ring all-reduce, reduce-scatter, all-gather, data parallelism, ZeRO, FSDP, tensor parallelism, meshes
# Paper: [Rajbhandari 2020](https://arxiv.org/abs/1910.02054), [Shoeybi 2019](https://arxiv.org/abs/1909.08053)
#
# **Question.** Training needs 16 bytes for each weight (lesson 18): 973 GiB for LLaMA
# 65B. How do many processes train a model that none of them can hold, and how many
# bytes must they send each other?
#
# `run(f, xs)` starts one Python process for each item of `xs`; process 2 computes
# `f(link, xs[2])`, or with more lists `f(link, xs[2], ys[2], ...)`. Sockets join them;
# `link.send` and `link.receive` pass a tensor's bytes. `run` returns the processes'
# results, and the bytes that each sent.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $P$ | `P`, `link.size` | | processes |
# | $r$ | `r`, `link.rank` | | number of a process, from 0 to P - 1 |
# | $N$ | `N` | | numbers in a vector; weights of a model |
# | $T$, $D$, $F$ | `T`, `D`, `F` | | tokens; width of stream, of feed-forward layer |
# | $W$ | `W`, `w1`, ... | | a matrix of weights |
# | $x$, $y$ | `x`, `y` | (T, D) | what goes into a layer; what comes out |
# %% naive
import torch
from torch.func import grad, vjp
from torch.nn.functional import scaled_dot_product_attention, silu

from lessons import sharding_pictures
from lessons.mesh import describe_mesh, step_traffic
from lessons.processes import run
from minillama.config import ModelConfig, preset
from minillama.plots import show
from minillama.transformer import Transformer

torch.set_num_threads(1)
torch.manual_seed(0)


def naive(link, x):
    """The sum of all processes' x, in every process: process 0 adds them up."""
    if link.rank > 0:
        link.send(x, 0)
        return link.receive(x, 0)  # a tensor of x's shape, from process 0
    x = x + sum(link.receive(x, other) for other in range(1, link.size))
    for other in range(1, link.size):
        link.send(x, other)
    return x


counted = {}
# %% [markdown] ring
# **All-reduce** is the name of this job: each process has a vector, and each needs the
# sum of all. Naively, process 0 sends $P - 1$ whole vectors while the others wait.
#
# **A ring** shares the work out. Cut the vector into $P$ chunks. In each step every
# process sends one chunk to its right neighbour and adds its own numbers to the one
# that comes from the left. After $P - 1$ steps process $r$ has the whole sum of chunk
# $r$: a *reduce-scatter*. In $P - 1$ more steps the finished chunks go around once: an
# *all-gather*. In each step each process sends $4 N / P$ bytes (fp32). Each sends in
# all:
#
# $$\text{bytes sent} = 2 \cdot \frac{P - 1}{P} \cdot 4 N$$
# ascii: bytes sent = 2 * (P - 1) / P * 4 N
#
# That is less than two vectors.
#
# **Data parallel training** needs nothing more. Each process has the whole model and
# its own rows of the batch, equally many. The loss is a mean over rows, so the mean of
# their gradients is the gradient of the whole batch. One all-reduce gives it to all.
# %% ring_code
def reduce_scatter(link, x):
    """Chunk number r of the sum; P divides the length of x."""
    P, r, chunks = link.size, link.rank, list(x.chunk(link.size))
    for step in range(1, P):
        link.send(chunks[(r - step) % P], (r + 1) % P)  # chunk r - 1 goes first
        i = (r - step - 1) % P
        chunks[i] = chunks[i] + link.receive(chunks[i], (r - 1) % P)
    return chunks[r]


def all_gather(link, chunk):
    """The chunks of all processes, one behind the other."""
    P, r, chunks = link.size, link.rank, {link.rank: chunk}
    for step in range(P - 1):
        link.send(chunks[(r - step) % P], (r + 1) % P)
        chunks[(r - step - 1) % P] = link.receive(chunk, (r - 1) % P)
    return torch.cat([chunks[i] for i in range(P)])


def ring(link, x):
    return all_gather(link, reduce_scatter(link, x))


for f, P in ((naive, 2), (ring, 2), (naive, 4), (ring, 4)):
    vectors = torch.randn(P, 12_000)
    sums, sent = run(f, vectors)
    assert all(torch.allclose(s, vectors.sum(0), atol=1e-5) for s in sums)
    counted[f.__name__, P] = max(sent) / vectors[0].nbytes
show(sharding_pictures.all_reduce("A ring sends less than two vectors", counted),
     f"Of 4, one sends {counted['naive', 4]} vectors, in a ring {counted['ring', 4]}")
# %% [markdown] shards
# **Must each process hold everything?** With Adam a weight needs 4 bytes for itself, 4
# for its gradient, and 8 for two running means. ZeRO cuts these in three stages. The
# last column is in units of $4 N (P - 1) / P$ bytes:
#
# | bytes held by a process | weights | gradients | Adam | sent |
# |---|---|---|---|---|
# | data parallel | $4N$ | $4N$ | $8N$ | 2 |
# | stage 1 | $4N$ | $4N$ | $8N/P$ | 2 |
# | stage 2 | $4N$ | $4N/P$ | $8N/P$ | 2 |
# | stage 3 | $4N/P$ | $4N/P$ | $8N/P$ | 3 |
#
# **Stages 1 and 2** work between the reduce-scatter and the all-gather. Reduce-scatter
# gives process $r$ the gradient for piece $r$ of the weights. It updates this piece
# alone, so it needs only this piece's means. Then an all-gather hands the new weights
# to all. Stage 2 drops the rest of the gradient once it is sent.
#
# **Stage 3**, which PyTorch calls FSDP, cuts the weights too. A layer's matrix is
# gathered before the layer computes, dropped after, and gathered again for backward. A
# reduce-scatter then leaves each process its piece of the gradient. That is two
# all-gathers and a reduce-scatter; data parallel has one of each.
# %% shards_code
def layer(W, x):
    return silu(x @ W.T)


def loss(weights, x, target):
    return (layer(weights[1], layer(weights[0], x)) - target).pow(2).mean()


def mean_gradient(link, weights, x, target):  # data parallel
    gradients = grad(loss)(weights, x, target)
    return ring(link, torch.cat([g.flatten() for g in gradients])) / link.size


def train_in_pieces(link, pieces, x, target):  # stage 3, three steps
    adam = torch.optim.AdamW(pieces, lr=1e-3, eps=1e-5)
    for _ in range(3):
        inputs = [x]
        for piece in pieces:
            W = all_gather(link, piece).view(D, D)
            inputs.append(layer(W, inputs[-1]))
        dy = 2 * (inputs.pop() - target) / target.numel()  # gradient of the output
        for piece in reversed(pieces):
            W = all_gather(link, piece).view(D, D)
            dW, dy = vjp(layer, W, inputs.pop())[1](dy)  # gradients of W and of x
            piece.grad = reduce_scatter(link, dW.flatten()) / link.size
        adam.step()
    parts = ((p, p.grad, *adam.state[p].values()) for p in pieces)
    return pieces, sum(t.nbytes for part in parts for t in part if t.dim())
# %% shards_equal
P, D, N = 4, 48, 2 * 48 * 48
weights = [torch.randn(D, D) / D**0.5 for _ in range(2)]
x, target = torch.randn(2, 8, D)
rows = x.chunk(P), target.chunk(P)
means, in_whole = run(mean_gradient, P * [weights], *rows)
whole = torch.cat([g.flatten() for g in grad(loss)(weights, x, target)])
assert all((mean - whole).abs().max() < 1e-6 for mean in means)
assert in_whole == P * [2 * (P - 1) * 4 * N // P]

own = zip(*(W.flatten().chunk(P) for W in weights), strict=True)
done, in_pieces = run(train_in_pieces, own, *rows)
alone = [W.clone().requires_grad_() for W in weights]
adam = torch.optim.AdamW(alone, lr=1e-3, eps=1e-5)
for _ in range(3):
    adam.zero_grad()
    loss(alone, x, target).backward()
    adam.step()
for i, W in enumerate(alone):
    learned = torch.cat([pieces[i] for pieces, _ in done]).view(D, D)
    assert (learned - W).abs().max() < 1e-6 < (W - weights[i]).abs().max()
assert all(held == 16 * N // P for _, held in done)
assert in_pieces == P * [3 * 3 * (P - 1) * 4 * N // P]  # three steps
print(f"a step sends {in_whole[0]} bytes, in stage 3 {in_pieces[0] // 3}")
# %% [markdown] tensor
# **Tensor parallel: cut the computation.** A process can compute all rows with its part
# of every matrix. Cut $W_1$ and $W_3$ of SwiGLU by rows: process $r$ gets $F / P$ of
# the hidden numbers, and the gate needs no others. Cut $W_2$ by columns, which read
# those numbers:
#
# $$y = \sum_r W_{2,r}\,(\mathrm{silu}(W_{1,r}\,x) \odot W_{3,r}\,x)$$
# ascii: y = sum over r of W2_r (silu(W1_r x) * (W3_r x))
#
# Each process has one term; one all-reduce of $T D$ numbers adds them. Attention has
# the same form: a head needs its own rows of $W_q$, $W_k$, $W_v$ and columns of $W_o$.
# Backward, each process finds its matrices' gradients alone. The gradient of $x$ is
# a sum over $r$ again: one more all-reduce. (Papers write $x W$: there
# the first cut is by *columns*, the second by *rows*.)
#
# **PyTorch has this.** `fully_shard` is stage 3, `parallelize_module` is the cut.
# `minillama pretrain --shard --tensor-parallel 4` uses both: see `docs/cluster.md`.
# `learn_sharded` below trains a small LLaMA with `fully_shard`: two processes, joined
# by "gloo" (for CPUs).
#
# **A mesh** of 8 x 4 is 32 processes in 8 groups of 4. The 4 of a group cut each
# matrix; the 8 groups take different sequences, and share out what each would hold, as
# in stage 3. The last cell says what 32 processes send for 32 sequences, weights in 16
# bits: *sums* are activations, *tables* embedding and head. In 32 x 1 each gathers all
# weights; in 1 x 32 each sums the activations of all sequences. 8 x 4 sends least.
# %% tensor_code
def feed_forward(w1, w3, w2, x):
    return (silu(x @ w1.T) * (x @ w3.T)) @ w2.T


def attend(wq, wk, wv, wo, x):
    q, k, v = ((x @ w.T).view(T, -1, 8).transpose(0, 1) for w in (wq, wk, wv))
    mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(0, 1).flatten(1) @ wo.T


def half_block(link, f, weights, x, dy):
    y, backward = vjp(f, *weights, x)
    *gradients, dx = backward(dy)  # of this process's pieces; a part of a sum
    return ring(link, y), gradients, ring(link, dx)


P, T, F = 2, 16, 128
x, dy = torch.randn(2, T, D)
w1, w3, w2 = torch.randn(3, F, D) / 8
for f, matrices, axes in ((feed_forward, [w1, w3, w2.T], (0, 0, 1)),
                          (attend, torch.randn(4, D, D) / 8, (0, 0, 0, 1))):
    cut = [W.chunk(P, axis) for W, axis in zip(matrices, axes, strict=True)]
    done, sent = run(half_block, [f] * P, zip(*cut, strict=True), [x] * P, [dy] * P)
    whole, backward = vjp(f, *matrices, x)
    *wanted, wanted_dx = backward(dy)
    for r, (y, gradients, dx) in enumerate(done):
        assert (y - whole).abs().max() < 1e-4 > (dx - wanted_dx).abs().max()
        for own, g, axis in zip(gradients, wanted, axes, strict=True):
            assert (own - g.chunk(P, axis)[r]).abs().max() < 1e-4
    assert sent == P * [2 * (2 * (P - 1) * 4 * T * D // P)]
# %% engine
shape = ModelConfig(48, 2, 4, 96, max_seq_len=32)
alone, tokens = Transformer(shape), torch.randint(96, (8, 16))


def learn(model, rows):
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5)
    for _ in range(3):
        model(rows).logsumexp(-1).mean().backward()  # some mean over rows
        adam.step()
        adam.zero_grad()


def learn_sharded(link, model, rows):
    from torch.distributed import fsdp, init_process_group

    init_process_group("gloo", link.meeting, rank=link.rank, world_size=link.size)
    for part in (*model.layers, model):
        fsdp.fully_shard(part)
    learn(model, rows)
    held = sum(p.to_local().nbytes for p in model.parameters())
    return [p.full_tensor().detach() for p in model.parameters()], held
# %% [markdown] exercise
# **Exercise.** Count what a stage holds and sends. Write a reduce-scatter that takes a
# vector of any length. Then write a step of stage 2 that clips the gradient by its norm
# over all pieces: a number that no process can find alone.
#
# Open `lessons/exercises/ex38_sharding.py`, then run `python3 run.py check 38`.
# %% you_should_see
(first, second), _ = run(learn_sharded, 2 * [alone], tokens.chunk(2))
learn(alone, tokens)
pairs = zip(first[0], alone.parameters(), strict=True)
assert max((a - b).abs().max() for a, b in pairs) < 1e-6
assert first[1] == second[1] == 4 * shape.n_parameters() // 2

big, P = preset("llama_65b"), 32
n = 4 * big.n_parameters() / 2**30  # GiB of the weights
GiB = {"data parallel": (n, n, 2 * n), "stage 1": (n, n, 2 * n / P),
       "stage 2": (n, n / P, 2 * n / P), "stage 3": (n / P, n / P, 2 * n / P)}
show(sharding_pictures.memory("LLaMA 65B on 32 processes", GiB, "GiB of each process"),
     ", ".join(f"{name} {sum(parts):.0f} GiB" for name, parts in GiB.items()))
for K in (1, 4, 32):  # 32 / K groups of K processes
    print(*describe_mesh(big, 32 // K, K, K, 2048, "infiniband-hdr"), sep="\n")
sent = [sum(step_traffic(big, 32 // K, K, 1, K * 2048, 2, True).values())
        for K in (1, 4, 32)]
ratio = in_pieces[0] / 3 / in_whole[0]
print(f"You should see: a ring of 4 sends {counted['ring', 4]} vectors, the naive way "
      f"{counted['naive', 4]:g}; stage 3 sends {ratio} times what data parallel sends.")
assert counted == {("naive", 2): 1, ("ring", 2): 1, ("naive", 4): 3, ("ring", 4): 1.5}
assert ratio == 1.5 and min(sent) == sent[1] < sent[0] / 2
