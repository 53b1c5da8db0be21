# %% [markdown] question
# # 19 · Supervised fine-tuning
# Covers: `minillama/train/sft.py`, `minillama/train/sequence_loss.py`, `tests/test_sft.py`
# Needs: 10, 15
# Time: 25 s
# Teaches: self-instruct and Alpaca, templates, loss on answers, multi-turn masks, stages
# Paper: [Wang et al. 2023](https://arxiv.org/abs/2212.10560), section 3
#
# **Question.** A pretrained model continues text. Asked a question, it may well write
# three more questions. How does it become an assistant that answers?
#
# By more of the same training, on examples of the right kind: a question, its answer,
# and a mark that the answer has ended. What is new is small: the *template* around
# them, and the *labels*, which say which tokens are to be learned.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $x_t$ | `tokens` | (T,) | the tokens of prompt and answer |
# | $m_t$ | `label != IGNORE` | (T,) | 1 where token $t$ is learned, 0 elsewhere |
# | $p(x_t)$ | | | what the model gave token $t$, after all tokens before it |
# | $L$ | `loss` | | mean nats per learned token |

# %% teacher
import random

WORDS = "owl fox hen toad mole goat bear duck kite drum ball bell".split()
PHRASES = {"first": ["Say the first word of", "What comes first in", "Begin of"],
           "last": ["Say the last word of", "What comes last in", "End of"]}


def teacher(n, seed):
    """n different questions with answers, made out of six ways to ask."""
    rng, seen = random.Random(seed), {}
    while len(seen) < n:
        kind, words = rng.choice(list(PHRASES)), rng.sample(WORDS, 3)
        question = f"{rng.choice(PHRASES[kind])} {' '.join(words)}?"
        seen[question] = (words[0] if kind == "first" else words[-1]) + "."
    return list(seen.items())


examples = teacher(1300, seed=0)
train_set, test_set = examples[:1000], examples[1000:]
print(*train_set[:3], sep="\n")

# %% [markdown] formula
# **Where examples come from.** *Self-instruct* lets a strong model write them: from 175
# tasks written by people it makes new ones, and those too similar to old ones are
# dropped (`minillama/train/self_instruct.py`, or `python3 run.py filter` for your own
# file). Alpaca got 52,000 that way. Our teacher is a small program, so that we can mark
# its pupil.
#
# **What is learned.** The mean runs over the answer and its end mark, not over the
# prompt:
# $$L = -\frac{\sum_t m_t \ln\, p(x_t)}{\sum_t m_t}$$
# ascii: L = - sum over t of m_t ln p(x_t) / sum over t of m_t
#
# The prompt is given to the model at all times; predicting what a user will ask is
# another task, and mostly a lottery. The end mark must be learned: without it the
# assistant never stops.
#
# **Several turns.** In a dialogue every answer is learned, not only the last, and none
# of the user's words. (Vicuna was trained this way.)

# %% naive
import torch

from minillama.tokenizer import train_bpe
from minillama.train import sequence_loss as sl
from minillama.train.sequence_loss import IGNORE, encode_segments, pad_right
from minillama.train.templates import question_answer, text_of, vicuna

tokenizer = train_bpe([text_of(question_answer(q, a)) for q, a in examples], 420)


def naive(question, answer):
    """Tokens and labels by hand: ask where the answer begins, in tokens."""
    prompt = tokenizer.encode(f"Question: {question}\n\nAnswer:", bos=True)
    text = f"Question: {question}\n\nAnswer: {answer}"
    whole = tokenizer.encode(text, bos=True, eos=True)
    assert whole[:len(prompt)] == prompt  # not so for every template and tokenizer!
    return whole, [IGNORE] * len(prompt) + whole[len(prompt):]


sequences = [encode_segments(question_answer(q, a), tokenizer) for q, a in train_set]
for (question, answer), sequence in zip(train_set, sequences, strict=True):
    assert (sequence.tokens, sequence.labels) == naive(question, answer)
turns = ("user", "Hi?"), ("assistant", "fox."), ("user", "And?"), ("assistant", "hen.")
chat = [{"role": role, "content": text} for role, text in turns]
print("learned in a chat:", [s.text for s in vicuna(chat) if s.learn])

# %% [markdown] experiment
# **Experiment.** The same small LLaMA is tuned twice on the same questions: with the
# loss on answers only, and with the loss on all tokens. We watch the share of unseen
# questions that it answers exactly. (To be quick it starts from nothing, not from a
# pretrained model.)

# %% measure
from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.train.optimizer import AdamW, clip_gradients, learning_rate
from minillama.transformer import Transformer

STEPS, EVERY = 175, 25
tests = [encode_segments(question_answer(q, a), tokenizer) for q, a in test_set]
test_tokens, test_labels = pad_right(tests, 0)


@torch.no_grad()
def exact(model):
    """Share of test answers whose every learned token is the model's first choice."""
    said = model(test_tokens)[:, :-1].argmax(-1)
    wanted = test_labels[:, 1:]
    return ((said == wanted) | (wanted == IGNORE)).all(1).float().mean().item()

# %% tune
def tune(on_answers):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(64, 2, 4, tokenizer.vocab_size, hidden_dim=128),
                        torch_attention)
    optimizer, curve = AdamW(model.parameters(), weight_decay=0.0), [exact(model)]
    for step in range(STEPS):
        optimizer.lr = learning_rate(step, STEPS, 4e-3, warmup_steps=20)
        rows = torch.randint(0, len(sequences), (32,)).tolist()
        tokens, labels = pad_right([sequences[i] for i in rows], 0)
        if not on_answers:
            labels = torch.where(tokens > 0, tokens, IGNORE)
        loss = sl.sequence_loss(model(tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        if step % EVERY == EVERY - 1:
            curve.append(exact(model))
    return model, curve

# %% compare
curves, on_prompt = {}, test_tokens.masked_fill(test_labels != IGNORE, IGNORE)
on_prompt[test_tokens == 0] = IGNORE  # padding
for name, on_answers in (("answers only", True), ("all tokens", False)):
    model, curves[name] = tune(on_answers)
    with torch.no_grad():
        losses = [sl.sequence_loss(model(test_tokens), labels).item()
                  for labels in (test_labels, on_prompt)]
    print(f"loss on {name}: {curves[name][-1]:.0%} exact; nats on answers "
          f"{losses[0]:.2f}, on prompts {losses[1]:.2f}")
    if on_answers:
        prompt_loss = losses[1]

# %% figure
from minillama.plots import CONTRAST, OURS, figure, show

picture, axes = figure("Loss on the answers alone gets there sooner", "training step",
                       "unseen questions answered exactly, %")
steps = range(0, STEPS + 1, EVERY)
for (name, curve), colour, place in zip(curves.items(), (OURS, CONTRAST),
                                        ((28, 80), (110, 30)), strict=True):
    axes.plot(steps, [100 * share for share in curve], color=colour, marker="o", ms=3)
    axes.annotate(f"loss on {name}", place, color=colour)
axes.set(xlim=(0, STEPS + 3), ylim=(0, 104))
ends = {name: f"{curve[-1]:.0%}" for name, curve in curves.items()}
show(picture, f"Exact after {STEPS} steps, by what the loss is on: {ends}")

# %% [markdown] exercise
# The model tuned on answers is hopeless at writing questions, and nobody will ask it
# to. A pretrained model keeps most of what it knew, if the tuning is short.
#
# **Easy first.** Some programs order the examples (Ziya: easy tasks before hard ones).
# It is cheap to try (`sft --data easy.jsonl hard.jsonl`); measure before you believe.
#
# **Exercise.** Write the labels of a chat of three turns, and the loss, in
# `lessons/exercises/ex19_sft.py`. Then `python3 run.py check 19`.

# %% closing
answers, everything = (curve[-1] for curve in curves.values())
lead = sum(curves["answers only"]) - sum(curves["all tokens"])
assert curves["answers only"][0] < 0.01 and answers > 0.9 and lead / len(steps) > 0.1
assert [s.text for s in vicuna(chat) if s.learn] == [" fox.", "</s>", " hen.", "</s>"]
assert prompt_loss > 4
print(f"You should see: 0% exact answers become {answers:.0%} (above 90) with the loss "
      f"on answers, {everything:.0%} on all tokens; a lead of {lead / len(steps):.0%} "
      "on average over the run (above 10)")
