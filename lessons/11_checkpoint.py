# %% [markdown] question
# # 11 · Checkpoints
# Covers: `minillama/checkpoint/safetensors.py`, `minillama/checkpoint/names.py`, `tests/checkpoint/test_safetensors.py`
# Needs: 07, 08, 10
# Time: 12 s
# Teaches: model files, safetensors, parameter names, the q/k permutation, hostile files
# Paper: [the safetensors format](https://github.com/huggingface/safetensors#format)
#
# **Question.** A trained LLaMA reaches you as a file: some settings, some names, and
# billions of numbers. Different programs write it differently. You load one, and text
# comes out. Is this really LLaMA, or something that only looks like it?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $S$ | `len(data)` | | size of a file in bytes |
# | $N$ | `n` | | length of its header in bytes |
# | $b$ | `4` | | bytes per number: 4 for fp32, 2 for fp16 and bf16 |
# | $n_t$ | `counts` | | how many numbers tensor $t$ holds |
# | $d$, $j$ | | | head width, rows per head (lesson 08); number of a pair |
# | $q$, $k$ | `wq`, `wk` | | queries and keys; the matrices that make them |
# %% train
import json
import math
import os
import tempfile
from pathlib import Path

import torch

from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.huggingface import write_huggingface
from minillama.checkpoint.llama2c import write_llama2c
from minillama.checkpoint.names import rows_to_meta, to_meta
from minillama.checkpoint.safetensors import read_safetensors
from minillama.checkpoint.weights import from_model
from minillama.config import ModelConfig
from minillama.generate import generate_text
from minillama.plots import CONTRAST, figure, show
from minillama.transformer import Transformer

torch.manual_seed(0)
model = Transformer(ModelConfig(32, n_layers=2, n_heads=2, vocab_size=16, n_kv_heads=1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
for _ in range(150):  # lesson 08's task: eight random letters, then the same again
    letters = torch.randint(16, (64, 8)).repeat(1, 2)
    scores = model(letters)[:, 7:-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(scores, letters[:, 8:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"a small model that can copy: loss {loss.item():.3f}")
# %% [markdown] formula
# We have a model of our own. Now write it in three forms that are in use:
#
# - **Meta's**: `params.json` (settings) and `consolidated.00.pth`, a zip archive in
#   which a *pickle* names the tensors. A pickle is a little program; loading one
#   carelessly runs whatever it says.
# - **Hugging Face's**: `config.json` and `model.safetensors`. Neither holds a program.
# - **llama2.c's**: one `.bin`, seven whole numbers, then all weights in a fixed order.
#
# A safetensors file has three parts: 8 bytes that say how long the header is; the
# header (JSON: for each tensor its name, type, shape and place); then the plain
# numbers. If all numbers have the same type, its size is
#
# $$S = 8 + N + \sum_t b \, n_t$$
# ascii: S = 8 + N + sum_t b n_t
# %% naive
scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
folder = Path(scratch.name)
weights = from_model(model)
save_model(folder / "meta", model)
write_huggingface(folder / "hf", weights)
write_llama2c(folder / "model.bin", weights)

data = (folder / "hf" / "model.safetensors").read_bytes()
n = int.from_bytes(data[:8], "little")  # lowest byte first
header = json.loads(data[8:8 + n])
header.pop("__metadata__")
tensors = {}
for name, entry in header.items():
    begin, end = entry["data_offsets"]  # counted from the end of the header
    raw = bytearray(data[8 + n + begin:8 + n + end])
    tensors[name] = torch.frombuffer(raw, dtype=torch.float32).view(entry["shape"])
print(f"{len(tensors)} tensors by hand, for example:")
name = "model.layers.0.self_attn.k_proj.weight"
print(name, header[name])
counts = [math.prod(entry["shape"]) for entry in header.values()]
assert len(data) == 8 + n + 4 * sum(counts)
assert sum(counts) == model.config.n_parameters()
# %% agree
library = read_safetensors(folder / "hf" / "model.safetensors")
assert all(torch.equal(library[name], tensors[name]) for name in tensors)

probe = torch.randint(16, (1, 8)).repeat(1, 2)
with torch.no_grad():
    wanted = model(probe)
    for form in ("meta", "hf", "model.bin"):
        loaded, _ = load_model(folder / form)
        ours, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
        assert (loaded(probe) - wanted).abs().max() < 1e-4
        print(f"{form:10} gives the same weights, bit for bit, and the same logits")
# %% [markdown] names
# **Names.** The same matrix is `layers.0.attention.wk` to Meta and
# `model.layers.0.self_attn.k_proj` to Hugging Face. A table of twelve names translates.
# A wrong name is found at once: something is missing.
#
# **Row order.** The dangerous part is quieter. The two programs turn different pairs
# (lesson 07). In each head, Meta pairs rows $2j$ and $2j+1$, Hugging Face rows $j$ and
# $j + d/2$. So the rows of `wq` and `wk` stand in another order in their files. Names,
# shapes, even the sum of all numbers are the same. What happens if we forget to reorder
# them?
# %% permutation
def from_hugging_face(reorder):
    """Our model from the tensors read by hand, with or without reordering wq and wk."""
    state = {}
    for hf_name, rows in tensors.items():
        name = to_meta(hf_name)
        ordered = rows_to_meta(name, rows, n_heads=2, n_kv_heads=1)
        state[name] = ordered if reorder else rows
    other = Transformer(model.config)
    other.load_state_dict(state)
    return other.eval()


letters = torch.randint(16, (500, 8)).repeat(1, 2)
right = {}
with torch.no_grad():
    for reorder in (True, False):
        logits = from_hugging_face(reorder)(letters)
        hits = logits[:, 7:-1].argmax(-1) == letters[:, 8:]
        right[reorder] = hits.float().mean().item()
        print(f"reordered: {reorder!s:5} letters right: {right[reorder]:.0%}")
        error = (logits - model(letters)).abs().amax(-1).mean(0)  # at each position
        assert error[0] < 1e-4 and (error.max() < 1e-4) == reorder
assert right[True] > 0.95 and right[False] < 0.2
# %% picture
title = "A forgotten reordering is right at position 0 only"
picture, axes = figure(title, "position", "error of the worst logit")
axes.bar(range(16), error, color=CONTRAST)
show(picture, f"No error at position 0, {error[1:].mean():.1f} on average after it")
# %% [markdown] proof
# So a test with one token passes: the first token has only itself to look at, whatever
# its query and key. Nor is readable text a proof: smaller slips, a wrong $\epsilon$ in
# the norm or a wrong base of RoPE, can leave text that reads well and is a little
# worse. Trust needs numbers: the same logits as another program, at many positions, and
# from a model with fewer key/value heads than query heads (else a mix-up of the two
# numbers goes unseen). `python3 run.py parity PATH` climbs from the embedding to the
# text and names the first step that differs.
#
# **Distrust files.** They come from strangers. The library checks sizes before it
# reserves memory, and lets no pickle run code.
# %% damage
(folder / "cut.safetensors").write_bytes(data[:-1])
entry = {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 8]}
lie = json.dumps({"w": entry}).encode()
lie = len(lie).to_bytes(8, "little") + lie + bytes(8)
(folder / "lie.safetensors").write_bytes(lie)
for name in ("cut", "lie"):
    try:
        read_safetensors(folder / f"{name}.safetensors")
    except ValueError as error_found:
        print(f"{name}:", str(error_found).split(": ", 1)[1])
    else:
        raise AssertionError(f"{name} was accepted")
# %% [markdown] exercise
# **Exercise.** Write two functions. One reads a safetensors header that may be hostile,
# and returns its entries and how many bytes follow. The other returns the name of the
# first tensor whose place cannot be right.
#
# Open `lessons/exercises/ex11_checkpoint.py`, then run `python3 run.py check 11`.
# %% you_should_see
real = Path(os.environ.get("MINILLAMA_WEIGHTS", "")) / "stories260K.bin"
if "MINILLAMA_WEIGHTS" in os.environ and real.exists():
    story, tokenizer = load_model(real)
    told = "".join(generate_text(story, tokenizer, max_new_tokens=40))
    for block in story.layers:  # the slip again: its own rows taken for Hugging Face's
        for name, w in (("attention.wq.weight", block.attention.wq.weight),
                        ("attention.wk.weight", block.attention.wk.weight)):
            w.data = rows_to_meta(name, w.data, n_heads=8, n_kv_heads=4)
    slip = "".join(generate_text(story, tokenizer, max_new_tokens=40))
    print(f"A real one, stories260K: {told}\nWith the rows in another order: {slip}")
    assert told.startswith("Once upon a time") and slip != told
print(f"You should see: three forms, the same bits; {right[True]:.0%} of the letters "
      f"right with the rows reordered, {right[False]:.0%} without.")
assert right[True] > 0.95 and right[False] < 0.2
