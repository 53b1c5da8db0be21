# %% [markdown] question
# # 12 · The KV cache
# Covers: `minillama/kv_cache.py`, `tests/test_kv_cache.py`
# Needs: 07, 08, 10
# Time: 8 s
# Teaches: cache, prefill and decode, bytes per token, GQA's reason, rewind
# Paper: [Shazeer 2019](https://arxiv.org/abs/1911.02150)
#
# **Question.** Ask a chat model something long: you wait for the first word, and then
# the others come quickly. Why does the second token of the answer come faster than the
# first?
#
# | symbol | in code | 7B | meaning |
# |---|---|---|---|
# | $T$ | `T` | | tokens read so far |
# | $L$ | `n_layers` | 32 | layers |
# | $H$, $K$ | `n_heads`, `n_kv_heads` | 32, 32 | query heads, key/value heads |
# | $d$ | `head_dim` | 128 | head width |
# | $q$, $k$, $v$ | `q`, `k`, `v` | | query, key, value of a token (lesson 08) |
# | $b$ | `2` | 2 | bytes per number (2 for 16-bit floats, fp16 or bf16) |
# %% naive
import time

import torch

from minillama.attention import attention
from minillama.config import ModelConfig, preset
from minillama.generate import generate_tokens
from minillama.kv_cache import KVCache
from minillama.plots import CONTRAST, OURS, figure, label_end, show
from minillama.transformer import Transformer

torch.manual_seed(0)
x = torch.randn(6, 8, dtype=torch.float64)  # six tokens of width 8
wq, wk, wv = torch.randn(3, 8, 8, dtype=torch.float64)
all_at_once = attention(*(y[None, None] for y in (x @ wq, x @ wk, x @ wv)))[0, 0]

keys, values = [], []  # the whole idea: two lists that are kept
for t in range(6):
    keys.append(x[t] @ wk)
    values.append(x[t] @ wv)
    weights = (torch.stack(keys) @ (x[t] @ wq) / 8**0.5).softmax(0)
    out = weights @ torch.stack(values)
    assert (out - all_at_once[t]).abs().max() < 1e-12
print("one token at a time gives what all at once gives (RoPE left out)")
# %% [markdown] why
# A model writes one token, appends it to the text, and reads the text again to write
# the next. Nearly all of that reading is repetition. Attention is causal: a token sees
# only earlier ones, so nothing that comes later changes its keys and values, in any
# layer. They can be kept. A token's query serves only its own output.
#
# Reading $T$ tokens one by one, and all earlier ones again each time, takes
# $1 + 2 + \ldots + T$ passes of a token through the model; with the cache, $T$:
#
# $$\frac{T (T + 1)}{2} \quad \mathrm{against} \quad T$$
# ascii: T (T + 1) / 2 against T
#
# Two phases follow. **Prefill** reads the whole *prompt* (the text to go on from) in
# one go, fills the cache, and gives the first new token. **Decode** sends only the
# newest token through the model. Position matters: the keys are kept *after* RoPE has
# turned them, each by its own place.
#
# The cell below writes 60 tokens after a prompt of 40, always the likeliest next one
# (*greedy*, lesson 13).
# %% agree
config = ModelConfig(dim=128, n_layers=4, n_heads=4, vocab_size=512, max_seq_len=512)
model = Transformer(config)
tokens = torch.randint(512, (1, 40))
with torch.inference_mode():
    wanted = model(tokens)
    cache = KVCache(config, batch=1, max_len=40)
    parts = [model(tokens[:, :30], cache)]  # prefill
    parts += [model(tokens[:, t:t + 1], cache) for t in range(30, 40)]  # decode
    worst = (torch.cat(parts, 1) - wanted).abs().max().item()
    print("logits with the cache are the same:", worst < 1e-4)
    assert worst < 1e-4 and cache.length == 40

    text = tokens[0].tolist()
    for _ in range(60):  # read everything again for each token
        text.append(model(torch.tensor([text]))[0, -1].argmax().item())
cached = [row[0] for row in generate_tokens(model, tokens.tolist(), 60)]
assert text[40:] == cached
passes = sum(range(40, 100)), 40 + 59  # the 60th new token is not read any more
print(f"the same 60 tokens; passes of a token: {passes[0]:,} again, {passes[1]} cached")
assert passes == (4170, 99)
# %% [markdown] memory
# **The price is memory.** Each token leaves a key and a value of $d$ numbers, in each
# of $K$ heads, in each of $L$ layers:
#
# $$\mathrm{bytes\ per\ token} = 2 \, L \, K \, d \, b$$
# ascii: bytes per token = 2 L K d b
#
# The number of *query* heads is not in it. That is why Llama 2 70B shares each
# key/value head among 8 query heads (GQA, lesson 08). The cell counts in KiB (1024
# bytes) and GiB ($1024^3$ bytes).
# %% bytes
def kib_per_token(config, kv_heads):
    return 2 * config.n_layers * kv_heads * config.head_dim * 2 / 1024  # b = 2


small, large = preset("llama_7b"), preset("llama2_70b")
kib = (kib_per_token(small, small.n_kv_heads), kib_per_token(large, large.n_heads),
       kib_per_token(large, large.n_kv_heads))
print(f"LLaMA-7B: {kib[0]:.0f} KiB per token, {kib[0] * 2048 / 2**20:.0f} GiB for 2048")
print(f"70B: {kib[1]:.0f} KiB if each head had its own keys, {kib[2]:.0f} with GQA")
assert kib == (512, 2560, 320) and kib[0] * 2048 == 2**20

half = KVCache(preset("stories260k"), batch=1, max_len=10, dtype=torch.float16)
stored = (half.keys.nbytes + half.values.nbytes) / 10 / 1024
assert stored == kib_per_token(preset("stories260k"), 4)  # the formula is the tensor
# %% time
def best_ms(run, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return min(times)  # the least disturbed by other programs


@torch.inference_mode()
def next_token_ms(T):
    """Time of the token after T others: (all read again, only the newest)."""
    text = torch.randint(512, (1, T + 1))
    cache = KVCache(config, 1, T + 1)
    model(text[:, :T], cache)

    def decode():
        model(text[:, T:], cache)
        cache.length = T  # rewind: forget the last token

    return best_ms(lambda: model(text)), best_ms(decode)


lengths = (16, 64, 128, 192, 256, 320, 384)
again, newest = zip(*map(next_token_ms, lengths), strict=True)
assert again[-1] > 3 * newest[-1]
print("the 385th token is more than 3 times as fast with the cache")
# %% picture
title = "With the cache, a token's cost hardly grows"
picture, axes = figure(title, "tokens before it", "ms for the next token (CPU)")
for times, name, colour in ((again, "read again", CONTRAST), (newest, "cached", OURS)):
    axes.plot(lengths, times, color=colour)
    label_end(axes, lengths, times, name, colour)
axes.set_xlim(0, 460)
axes.set_ylim(bottom=0)
show(picture, "Reading again takes ever longer; cached, it is over 3 times as fast")
# %% [markdown] rewind
# The cost grows a little: each new query still meets every old key. The answer: the
# first token waits for the prefill, the whole prompt. The second waits for one token.
#
# **Rewind.** Going back in the text is free: `cache.length = n` forgets all tokens
# after the first n, as the timing above did.
#
# **Windows.** To bound the memory, some models
# ([Mistral 7B](https://arxiv.org/abs/2310.06825)) let a token see only the last $W$
# tokens. Their cache needs $W$ places: the new token takes the place of the oldest.
# %% [markdown] exercise
# **Exercise.** Write that rolling cache for one layer, in fixed memory. Its `append`
# takes one token's key and value, and returns the last $W$ keys and values, oldest
# first.
#
# Open `lessons/exercises/ex12_kv_cache.py`, then run `python3 run.py check 12`.
# %% you_should_see
print(f"You should see: {passes[0]:,} passes against {passes[1]}, the same 60 tokens;")
print(f"{kib[0]:.0f} KiB per token in LLaMA-7B; in 70B {kib[1]:.0f} without GQA, "
      f"{kib[2]:.0f} with it.")
assert passes == (4170, 99) and kib == (512, 2560, 320)
