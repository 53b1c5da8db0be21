# %% [markdown] question
# # 19 · Supervised fine-tuning
# Covers: `minillama/train/sft.py`, `minillama/train/sequence_loss.py`, `tests/train/test_sft.py`
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
# | $m_t$ | `label != IGNORE` | (T,) | 1 where $t$ is learned, else 0 (label -100) |
# | $p(x_t)$ | | | the model's probability of $x_t$, given all tokens before |
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
# file). Alpaca got 52,000 that way, and is fine-tuned on them alone: no reward model,
# no reinforcement learning. Our teacher is a small program, so that we can mark its
# pupil.
#
# **What is learned.** The loss is a mean over the tokens of the answer and its end
# mark, not over those of the prompt:
# $$L = -\frac{\sum_t m_t \ln\, p(x_t)}{\sum_t m_t}$$
# ascii: L = - sum over t of m_t ln p(x_t) / sum over t of m_t
#
# The prompt is given to the model at all times; predicting what a user will ask is
# another task, and mostly a lottery. The end mark must be learned: without it the
# assistant never stops.
#
# **Several turns.** In a dialogue every answer is learned, not only the last, and none
# of the user's words. Vicuna was trained this way: one begin mark `<s>` for the whole
# conversation, and an end mark `</s>` behind each answer.

# %% naive
import torch

from minillama.collate import collate
from minillama.tokenizer import train_bpe
from minillama.train import sequence_loss as sl
from minillama.train.sequence_loss import IGNORE, encode_segments
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
# pretrained model.) One run proves little: much depends on the first weights and on the
# order of the examples, that is, on the *seed* of the random numbers. So each is tuned
# from three seeds. Our claim holds for all three: averaged over the run, the model
# tuned on answers gives more exact ones.

# %% measure
from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW, clip_gradients
from minillama.transformer import Transformer

STEPS, EVERY = 175, 25
tests = [encode_segments(question_answer(q, a), tokenizer) for q, a in test_set]
test_tokens, test_labels = collate(tests)


@torch.no_grad()
def exact(model):
    """Share of test answers whose every learned token is the model's first choice."""
    said = model(test_tokens)[:, :-1].argmax(-1)
    wanted = test_labels[:, 1:]
    return ((said == wanted) | (wanted == IGNORE)).all(1).float().mean().item()

# %% tune
def tune(on_answers, seed):
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(64, 2, 4, tokenizer.vocab_size, hidden_dim=128),
                        torch_attention)
    optimizer, curve = AdamW(model.parameters(), weight_decay=0.0), [exact(model)]
    for step in range(STEPS):
        optimizer.lr = learning_rate(step, STEPS, 4e-3, warmup_steps=20)
        rows = torch.randint(0, len(sequences), (32,)).tolist()
        tokens, labels = collate([sequences[i] for i in rows])
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
import statistics

curves, on_prompt = {}, test_tokens.masked_fill(test_labels != IGNORE, IGNORE)
on_prompt[test_tokens == 0] = IGNORE  # padding
losses, ends = {}, {}
for name, on_answers in (("answers only", True), ("all tokens", False)):
    tuned = [tune(on_answers, seed) for seed in range(3)]
    models, curves[name] = zip(*tuned, strict=True)
    ends[name] = [curve[-1] for curve in curves[name]]
    with torch.no_grad():
        losses[name] = [[sl.sequence_loss(model(test_tokens), labels).item()
                         for model in models] for labels in (test_labels, on_prompt)]
    print(f"loss on {name}: exact", " ".join(f"{end:.0%}" for end in ends[name]),
          f"(mean {statistics.mean(ends[name]):.0%}, standard deviation "
          f"{statistics.stdev(ends[name]):.0%})\n  nats on answers, on prompts:",
          *(f"{statistics.mean(values):.2f}" for values in losses[name]))

# %% figure
from minillama.plots import CONTRAST, OURS, figure, show

picture, axes = figure("Loss on the answers alone gets there sooner", "training step",
                       "unseen questions answered exactly, %")
steps = range(0, STEPS + 1, EVERY)
for (name, runs), colour, place in zip(curves.items(), (OURS, CONTRAST),
                                       ((2, 92), (2, 80)), strict=True):
    for curve in runs:
        axes.plot(steps, [100 * share for share in curve], color=colour, linewidth=1.2)
    axes.annotate(f"loss on {name}: three seeds", place, color=colour)
axes.set(xlim=(0, STEPS + 3), ylim=(0, 104))
show(picture, f"Exact after {STEPS} steps, three seeds: " + "; ".join(
    f"loss on {name} " + ", ".join(f"{end:.0%}" for end in values)
    for name, values in ends.items()))

# %% [markdown] exercise
# The model tuned on answers is hopeless at writing questions, and nobody will ask it
# to.
#
# **Easy first.** Some projects order the examples (Ziya: easy tasks before hard ones).
# It is cheap to try (`python3 run.py sft --data easy.jsonl hard.jsonl ...`); measure
# before you believe.
#
# **Exercise.** Write the labels of a chat of several turns, the loss, and the share of
# exact answers, in `lessons/exercises/ex19_sft.py`. Then `python3 run.py check 19`.

# %% closing
gains = [(sum(ours) - sum(theirs)) / len(steps)
         for ours, theirs in zip(*curves.values(), strict=True)]
answers, everything = (statistics.mean(values) for values in ends.values())
assert max(curve[0] for curve in curves["answers only"]) < 0.01
assert min(ends["answers only"]) > 0.4 and answers > everything + 0.05
assert min(gains) > 0 and statistics.mean(gains) > 0.05
spoken = vicuna(chat)
assert [s.text for s in spoken if s.learn] == [" fox.", "</s>", " hen.", "</s>"]
assert [s.text for s in spoken].count("<s>") == 1 and spoken[0].text == "<s>"
assert min(losses["answers only"][1]) > 4 > max(losses["all tokens"][1])
print(f"You should see: 0% exact answers become {min(ends['answers only']):.0%} to "
      f"{max(ends['answers only']):.0%} by seed (above 40) with the loss on answers, "
      f"{answers:.0%} on average; {everything:.0%} on all tokens; from each seed the "
      f"loss on answers is ahead by {statistics.mean(gains):.0%} on average")
