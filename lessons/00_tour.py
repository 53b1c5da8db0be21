# %% [markdown] question
# # 00 · The tour
# Covers: `minillama/tour/tour.py`, `tests/tour/test_tour.py`
# Needs: -
# Time: 40 s
# Teaches: every step in small: pretraining, fine-tuning, reward model, PPO
# Paper: [Ouyang et al. 2022](https://arxiv.org/abs/2203.02155), figure 2
#
# **Question.** A pile of text goes in, and a helpful assistant comes out. What happens
# in between? There are three steps. Guess now, before you run anything: which of them
# changes the answers most?
#
# Every later lesson takes one of these steps and opens it. Here we take them all,
# with a model some 16,000 times smaller than the smallest LLaMA. Do not try to follow
# each line of code: look at what it prints. `python3 run.py tour` takes the same steps
# more slowly, in minutes.
#
# A text is cut into *tokens*, words or parts of words, and each token has a number.
#
# | symbol | in code | meaning |
# |---|---|---|
# | $x_t$ | `ids[t]` | a text as numbers: its token at place $t$, from 0 |
# | $T$ | `len(ids) - 1` | how many tokens follow the first |
# | $p(x_t \mid x_{<t})$ | `p` | probability of a token, given those before it |
# | $V$ | `vocab_size` | how many different tokens there are |
# | $r$ | `score` | what the reward model thinks of an answer |
# | $\beta$ | `kl_coefficient` | the price of moving away from the starting model |
# %% naive
import random
from collections import defaultdict

from minillama.corpus import forum, mixture

texts = [document.text for document in mixture(0, 4000)]  # stories, questions, answers
print("a text:", next(text for text in texts if text.startswith("How")))

followers = defaultdict(list)
for text in texts:
    words = text.split()
    for word, then in zip(words, words[1:], strict=False):
        followers[word].append(then)

rng, question = random.Random(1), "How do I fix a broken red ball?"
word, made = "ball?", []
while len(made) < 20 and word in followers:
    word = rng.choice(followers[word])
    made.append(word)
print("asked:", question)
print("word by word:", " ".join(made))
# %% [markdown] formula
# That was a language model: a table of which word follows which. It looks back one
# word, so it has forgotten the question when it answers.
#
# A LLaMA does the same job, but looks at *all* tokens before. In place of a table it
# has *weights*: numbers that training changes, step by step. It learns from one number,
# the **loss**: how surprised it is, on average, by the next token of real text.
#
# $$L = -\frac{1}{T} \sum_{t=1}^{T} \ln\, p(x_t \mid x_{<t})$$
# ascii: L = -mean over t of ln p(x_t | tokens before t)
#
# ($\ln$ is the natural logarithm.) A model that knows nothing finds every token as
# likely as any other: $p = 1/V$, and the loss is $\ln\, V$. New, random weights come
# near that. Let us see it, and see that the library's loss is our formula.
#
# The capitals at the end of a name tell its axes: `logits_BTV` holds, for each text of
# a batch (B) and each of its tokens (T), one score per possible next token (V). The
# *softmax* turns these scores into probabilities.
# %% agree
import math

import torch

from minillama.attention import torch_attention
from minillama.config import ModelConfig, preset
from minillama.tokenizer import train_bpe
from minillama.train.sequence_loss import Sequence, sequence_loss
from minillama.transformer import Transformer

torch.manual_seed(0)
tokenizer = train_bpe(texts, 1000)
shape = ModelConfig(dim=96, n_layers=2, n_heads=4, vocab_size=1000, max_seq_len=256)
model = Transformer(shape, torch_attention)
smaller = preset("llama_7b").n_parameters() / shape.n_parameters()
assert 16_000 < smaller < 16_500

ids = tokenizer.encode(texts[0], bos=True, eos=True)
print(len(ids), "tokens:", [tokenizer.id_to_piece(i) for i in ids[:8]], "...")
with torch.no_grad():
    tokens_BT = torch.tensor([ids])
    logits_BTV = model(tokens_BT)
    p = logits_BTV[0].softmax(-1)
    ours = -sum(math.log(p[t - 1, ids[t]]) for t in range(1, len(ids))) / (len(ids) - 1)
    library = sequence_loss(logits_BTV, tokens_BT).item()
print(f"loss {ours:.4f}, by the library {library:.4f}, ln V {math.log(1000):.4f}")
assert abs(ours - library) < 1e-4 and abs(ours - math.log(1000)) < 1
# %% [markdown] pretrain
# **Step 1, pretraining.** Lower the loss on all the text there is. Nobody says what is
# a question and what is an answer; the model only learns what follows what.
#
# To see what each step does, we ask the same 64 questions after each. Our toy world has
# a luxury that the real one lacks: a rule that knows how good an answer *really* is.
# What people in this world write gets from -3 (rude, about the wrong thing, sour) to +4
# (polite, two right steps, kind). Nothing will learn from that rule. It is our ruler.
# %% pretrain_it
from minillama.rlhf.rollout import sample_answers
from minillama.train.sequence_loss import encode_segments
from minillama.train.sft import SftConfig, fine_tune
from minillama.train.templates import question_answer

posts = [d.text.partition("? ") for d in forum.documents("lesson", 2000)]
posts = [(q + "?", answer) for q, _, answer in posts]
asked = list(dict.fromkeys(q for q, _ in posts))[:64]  # never in training
posts = [post for post in posts if post[0] not in asked]
quality = {}


def examine(stage):
    """Ask everything, print one answer, and measure the quality of all."""
    prompts = [encode_segments(question_answer(q), tokenizer).tokens for q in asked]
    rollout = sample_answers(model, prompts, tokenizer.eos_id, 40, seed=1)
    answers = [text.strip() for text in rollout.texts(tokenizer)]
    quality[stage] = sum(map(forum.quality, asked, answers)) / len(asked)
    print(f"{stage}: quality {quality[stage]:+.2f}\n  {asked[2]}\n  {answers[2][:76]}")


examine("untrained")
whole = [tokenizer.encode(text, bos=True, eos=True) for text in texts]
whole = [Sequence(tokens, tokens) for tokens in whole]  # input and target: the same
config = SftConfig(steps=160, max_lr=5e-3, eval_every=0)
losses = fine_tune(model, whole, whole[:64], config, progress=False)
examine("pretrained")
# %% [markdown] tune
# The untrained model writes noise. The pretrained one knows words and whole sentences,
# but it has never seen our form, `Question: ... Answer:`, and does not take it for
# something to be answered.
#
# **Step 2, fine-tuning.** The same loss, on questions and answers in that form, and
# only the tokens of the *answer* count. This takes half as many steps: what the model
# knows is there already, it only learns how to show it.
# %% tune_it
pairs = [encode_segments(question_answer(*post), tokenizer) for post in posts[:1000]]
config = SftConfig(steps=80, max_lr=3e-3, eval_every=0)
tuned = fine_tune(model, pairs, pairs[:64], config, progress=False)
examine("fine-tuned")
for name, history in (("pretraining", losses), ("fine-tuning", tuned)):
    seen = [row["held_out_loss"] for row in history if "held_out_loss" in row]
    print(f"{name}: loss on 64 of its own texts {seen[0]:.2f} -> {seen[-1]:.2f}")
# %% [markdown] feedback
# Now it answers, and stops by itself. But it answers as the forum does: sometimes
# rudely, sometimes about "the thing". It imitates, good and bad alike.
#
# **Step 3, feedback.** People vote on answers. A second model, the **reward model**,
# learns from pairs which of two answers was liked more. Then our model practises: it
# writes an answer, gets the score $r$, and makes good ones likelier (by a method called
# **PPO**, lesson 27). A **KL penalty** keeps it near the model it started as, $p_0$:
#
# $$\text{reward} = r - \beta \, \ln\, \frac{p(\text{answer})}{p_0(\text{answer})}$$
# ascii: reward = r - beta * ln(p(answer) / p0(answer))
#
# Here $p(\text{answer})$ is the product of the probabilities of the answer's tokens,
# and `kl` in the code is the mean of that logarithm. Without the penalty the model
# would find out what fools the reward model (lesson 27).
# %% feedback_it
from minillama.rlhf.preferences import thread_pairs
from minillama.rlhf.train_ppo import PPOConfig, train_ppo
from minillama.rlhf.train_reward import RewardConfig, train_reward

votes = [pair for t in forum.threads("votes", 200) for pair in thread_pairs(t)][:560]
config = RewardConfig(max_lr=2e-3)
judge, seen = train_reward(model, votes, tokenizer, config, progress=False)
right = sum(row["accuracy"] for row in seen[-10:]) / 10
print(f"reward model: agrees with the voters in {right:.0%} of its last 160 pairs")

practice = [q for q, _ in posts[1000:1600]]
forms = [encode_segments(question_answer(q), tokenizer) for q in practice[:128]]
prompts = [form.tokens for form in forms]
rollout = sample_answers(model, prompts, tokenizer.eos_id, 40)
with torch.no_grad():
    judge.normalise(judge(rollout.tokens_BT, rollout.mask_BT))  # mean 0, deviation 1
settings = PPOConfig(iterations=8, lr=5e-4, value_lr=3e-3, max_new_tokens=40)
rounds = train_ppo(model, judge, tokenizer, practice, settings, progress=False)
examine("practised")
kl = rounds[-1]["kl"]
print(f"8 rounds of 64 answers; ln(p / p0) is now {kl:.1f} on average")
# %% you_should_see
from minillama.plots import CONTEXT, OURS, figure, show

picture, axes = figure("Fine-tuning and feedback make it helpful",
                       "mean quality of 64 answers, from -3 to +4", figsize=(5.4, 2.3))
for stage, value in quality.items():
    colour = OURS if stage in ("fine-tuned", "practised") else CONTEXT
    axes.barh(stage, value + 3, left=-3, color=colour, height=0.6)
    axes.annotate(f"{value:+.1f}", (value, stage), xytext=(4, 0),
                  textcoords="offset points", va="center", color=colour)
axes.invert_yaxis()
axes.set_xlim(-3, 4)
show(picture, "Mean quality of the answers, from -3 to +4: "
     + ", ".join(f"{stage} {value:+.1f}" for stage, value in quality.items()))

print("You should see: quality", *(f"{value:+.1f}" for value in quality.values()),
      "for the untrained, pretrained, fine-tuned and practised model.")
untrained, pretrained, fine_tuned, practised = quality.values()
gain = {"pretraining": pretrained - untrained, "fine-tuning": fine_tuned - pretrained,
        "feedback": practised - fine_tuned}
print("And your guess? By this ruler", max(gain, key=gain.get), "changed most.")
assert max(untrained, pretrained) < -1.5 and fine_tuned > 0.3
assert practised > fine_tuned + 0.7 and 0 < kl < 8 and right > 0.7
