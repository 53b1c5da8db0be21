# %% [markdown] question
# # 15 · Pretraining
# Covers: `minillama/train/pretrain.py`, `minillama/train/optimizer.py`, `tests/train/test_pretrain.py`
# Needs: 10, 14
# Time: 25 s
# Teaches: next-token loss, AdamW, warm-up and cosine, clipping, held-out loss, resuming
# Paper: [LLaMA 2023](https://arxiv.org/abs/2302.13971), section 2.3
#
# **Question.** The largest LLaMA took 2,048 GPUs for three weeks. Can a laptop train
# one?
#
# A small one, on a small language: yes, in seconds, with the very same recipe. The
# model reads text and guesses each next token; the loss is how surprised it was.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $w, g$ | `w`, `g` | any | weights; how the loss changes with each: the *gradient* |
# | $\eta$ | `lr` | | the learning rate: the size of a step |
# | $m, v$ | `m`, `v` | as $w$ | running means of $g$ and of $g^2$ |
# | $\beta_1, \beta_2$ | `betas` | | how slowly they forget: 0.9 and 0.95 |
# | $\lambda$ | `decay` | | weight decay: 0.1 |
# | $t$ | `t` | | number of the step, from 1 |
# | $\epsilon$ | `eps` | | a tiny number against division by zero |

# %% naive
import math

import torch


def adamw_step(w, g, m, v, t, lr, betas=(0.9, 0.95), eps=1e-8, decay=0.1):
    w = w - lr * decay * w  # every weight shrinks a little
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    mean, square = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return w - lr * mean / (square.sqrt() + eps), m, v


def rate(step, steps, top, warmup):
    if step < warmup:
        return top * (step + 1) / warmup
    done = (step + 1 - warmup) / (steps - warmup)  # 1 in the last step
    return top * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


steps = 0, 9, 19, 60, 110, 199
print("rate:", *(f"{rate(step, 200, 6e-3, 20):.4f}" for step in steps))

# %% [markdown] formula
# Some weights have gradients hundreds of times larger than others. **Adam** divides
# each gradient by its usual size, so that a weight moves by about $\eta$ at most:
# $$w \leftarrow w - \eta \lambda w - \eta \, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}$$
# ascii: w <- w - lr decay w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
#
# $m$ and $v$ start at zero and would be too small at first; the two divisions by
# $1 - \beta^t$ make up for that. The W in AdamW: the weight decay stands outside the
# fraction. Inside, weights with large gradients would hardly decay.
#
# The **rate** climbs for some steps (*warm-up*), while $m$ and $v$ rest on few batches,
# then falls along half a cosine to a tenth. **Clipping**: if the joint norm of all
# gradients exceeds 1, all are scaled so that it is 1. Then one odd batch cannot undo a
# hundred good ones.

# %% module
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW

assert all(abs(rate(s, 200, 1.0, 20) - learning_rate(s, 200, 1.0, 20)) < 1e-12
           for s in range(200))
torch.manual_seed(0)
parameter = torch.nn.Parameter(torch.randn(5, 3))
w, m, v = parameter.detach().clone(), torch.zeros(5, 3), torch.zeros(5, 3)
optimizer = AdamW([parameter], lr=0.01)
for t in range(1, 11):
    g = torch.randn(5, 3)
    w, m, v = adamw_step(w, g, m, v, t, lr=0.01)
    parameter.grad = g
    optimizer.step()
assert torch.allclose(parameter.detach(), w, atol=1e-6)
print("AdamW by hand and the library's agree over ten steps")

# %% [markdown] experiment
# **Experiment.** A grammar makes the corpus (stories and forum posts), so we know its
# *entropy*: the fewest bits per character that any model can need on average. For
# comparison, a *bigram* model knows only which letter follows which. We train 0.15
# million weights for 200 steps and see where they land. (The loss is in
# *nats*, because it is made with the natural logarithm $\ln$; one nat is
# $1 / \ln\, 2 = 1.44$ bits.)

# %% data
import tempfile
from pathlib import Path

from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.corpus import mixture, mixture_entropy_bits
from minillama.corpus.char_ngram import CharNgram
from minillama.tokenizer import train_bpe
from minillama.train.data import write_tokens
from minillama.train.perplexity import bits_per_character
from minillama.train.pretrain import PretrainConfig, pretrain
from minillama.transformer import Transformer

train, held_out = mixture(0, 2500), mixture(0, 150, "held-out")
train, held_out = ([document.text for document in part] for part in (train, held_out))
tokenizer = train_bpe(train, 512)
home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # gone at the end
folder = Path(home.name)
rows = [write_tokens(folder / f"{name}.bin", texts, tokenizer, progress=False)
        for name, texts in (("train", train), ("held_out", held_out))]
characters = sum(map(len, held_out))
floor = mixture_entropy_bits() * len(held_out) / characters
bigrams = CharNgram(2).fit("\n".join(train)).bits_per_character("\n".join(held_out))
per_character = len(rows[1]) / characters / math.log(2)  # nats to bits
print(f"{len(rows[0]):,} tokens; bigrams need {bigrams:.2f} bits a character, "
      f"the floor is {floor:.2f}")

# %% measure
from minillama.generate import generate_text
from minillama.sampling import Sampling


def new_model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(64, 2, 4, 512, hidden_dim=128, max_seq_len=128),
                       torch_attention)


def sample(model):
    words = generate_text(model, tokenizer, "At night", 24, Sampling(0.8), seed=1)
    return "".join(words)


model = new_model()
before = sample(model)
config = PretrainConfig(steps=200, batch_size=8, seq_len=96, max_lr=6e-3,
                        warmup_steps=20, eval_every=25, eval_windows=24,
                        checkpoint_every=0)
history = pretrain(model, *rows, config, folder / "run", progress=False)
evaluated = [(h["step"], h["held_out_loss"] * per_character) for h in history
             if "held_out_loss" in h]
reached = bits_per_character(model, rows[1])
print(f"before: At night{before!r}\nafter:  At night{sample(model)!r}")
print(f"held-out text: {reached:.2f} bits a character")

# %% figure
from minillama.plots import CONTEXT, CONTRAST, OURS, learning_curve, show

losses = [h["loss"] * per_character for h in history if "loss" in h]
title = f"From noise to {reached:.2f} bits a character in 200 steps"
picture = learning_curve(title, {
    "": (range(1, 201), losses, CONTEXT),
    "held out": (*map(list, zip(*evaluated, strict=True)), OURS)},
    floor, "entropy of the language: no model can go below", log=True)
axes = picture.axes[0]
axes.axhline(bigrams, color=CONTRAST, linestyle="--", linewidth=1.2)
axes.annotate("training", (45, 1.3), (14, 8), color=CONTEXT, textcoords="offset points")
axes.annotate("a model of letter pairs", (200, bigrams), (0, 4), color=CONTRAST,
              textcoords="offset points", ha="right")
show(picture, f"Held out: {reached:.2f} bits a character, letter pairs {bigrams:.2f}, "
     f"the floor {floor:.2f}")

# %% resume
short = PretrainConfig(steps=12, warmup_steps=2, batch_size=2, seq_len=32,
                       checkpoint_every=4, eval_every=0, eval_windows=4)
whole = new_model()
pretrain(whole, *rows, short, folder / "whole", progress=False)
broken, calls = new_model(), []


def power_cut(model, inputs):
    calls.append(model.training)
    if sum(calls) == 10:
        raise RuntimeError("the power went off in step 10")


broken.register_forward_pre_hook(power_cut)
try:
    pretrain(broken, *rows, short, folder / "broken", progress=False)
except RuntimeError as error:
    print(error)
again = new_model()
pretrain(again, *rows, short, folder / "broken", resume=True, progress=False)
assert all(map(torch.equal, again.parameters(), whole.parameters()))
print("killed and resumed, or never stopped: the same weights, bit for bit")

# %% [markdown] exercise
# **Resuming** is exact because nothing lives in memory alone: the order of the data is
# a pure function of seed and step, and a checkpoint holds weights, $m$, $v$, $t$ and
# the state of the random numbers, written whole or not at all.
#
# **Exercise.** Write clipping, and AdamW for a list of parameters, in
# `lessons/exercises/ex15_pretrain.py`. Then `python3 run.py check 15`.

# %% closing
assert round(model.config.n_parameters() / 1e6, 2) == 0.15
assert 2.5 < bigrams < 3.7 and abs(floor - 0.2) < 0.01
assert floor < reached < 0.65 < bigrams and evaluated[0][1] > 4
print(f"You should see: {reached:.2f} bits a character (below 0.65) on held-out text; "
      f"letter pairs need {bigrams:.2f}, and nothing can go below {floor:.2f}; "
      "a resumed run equal to one that never stopped")
