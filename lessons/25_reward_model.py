# %% [markdown] question
# # 25 · The reward model
# Covers: `minillama/rlhf/reward_model.py`, `tests/rlhf/test_reward_model.py`
# Needs: 10
# Time: 20 s
# Teaches: votes to scores to pairs, Bradley-Terry loss, margin, label noise, 67 % accuracy
# Paper: [Ouyang et al. 2022](https://arxiv.org/abs/2203.02155), equation 1
#
# **Question.** People can say which of two answers they like better, but hardly ever by
# how many points. How does a model learn to give points from that?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $v$ | `upvotes` | | votes that an answer got |
# | $r_j$ | `chosen` | (B,) | score of the better answer of each of B pairs |
# | $r_k$ | `rejected` | (B,) | its score of the worse one |
# | $\sigma$ | `sigmoid` | | $1 / (1 + e^{-x})$: turns any $x$ into a probability |
# | $m$ | `margin` | (B,) | how clearly the better one should win |
#
# **From votes to pairs.** On a forum, answers get votes. StackLLaMA, a LLaMA tuned on
# the answers of Stack Exchange, scores an answer with $\log_2(1 + v)$, rounded, plus 1
# if the asker accepted it. Where the votes are negative the score is -1, accepted or
# not. The logarithm, because the hundredth vote says less than the third. Of each
# question at most ten pairs are kept, each of a better and a worse answer.

# %% votes
import math

from minillama.corpus import forum
from minillama.rlhf.preferences import thread_pairs, vote_score


def score(upvotes, accepted):
    return -1 if upvotes < 0 else round(math.log2(1 + upvotes)) + accepted


for v in range(-3, 999):
    assert score(v, True) == vote_score(v, True) and score(v, 0) == vote_score(v, False)
threads = forum.threads(0, 1500)
for answer in threads[0].answers:
    points = score(answer.upvotes, answer.accepted)
    print(f"{answer.upvotes:3} votes, accepted {answer.accepted:d}: score {points:2}   "
          f"{answer.text[:44]}...")
pairs = [pair for thread in threads for pair in thread_pairs(thread, most=10)]
print(f"{len(pairs)} pairs from {len(threads)} threads")

# %% [markdown] formula
# **From pairs to a loss.** Say that answer $j$ beats $k$ with probability
# $\sigma(r_j - r_k)$, as in chess ratings (the *Bradley-Terry* model). The loss $L$ is
# minus the logarithm of that probability, with the margin $m$ inside:
# $$L = -\ln\, \sigma(r_j - r_k - m)$$
# ascii: L = -ln sigmoid(r_j - r_k - m)
#
# InstructGPT has $m = 0$; Llama 2 takes a larger $m$ where people were surer. With
# $m = 0$, a model that gives all texts the same score loses $\ln\, 2 = 0.693$, the toss
# of a coin. Only differences count: adding 5 to all scores changes nothing.
#
# **Where the score is read.** At the last token of the text, where a language model has
# seen everything: one linear layer turns its hidden state into one number.

# %% module
import torch

from minillama.rlhf.reward_model import RewardModel, pair_accuracy, preference_loss
from minillama.train.optimizer import AdamW

generator = torch.Generator().manual_seed(0)
chosen, rejected = torch.randn(2, 1000, generator=generator)
naive = -torch.log(1 / (1 + torch.exp(-(chosen - rejected)))).mean()
assert torch.allclose(preference_loss(chosen, rejected), naive, atol=1e-5)
assert abs(preference_loss(chosen, chosen).item() - math.log(2)) < 1e-6
far = preference_loss(torch.tensor([-100.0]), torch.tensor([100.0])).item()
print(f"all alike {math.log(2):.3f}; 200 points wrong {far:.0f}, where exp overflows")

# %% [markdown] experiment
# **Experiment.** How good is "67 % accuracy", the figure that StackLLaMA reports for
# its reward model? A *label* says which answer of a pair is better. Our forum knows the
# *hidden quality* of each answer (polite, to the point, in two steps), so we can ask
# twice: does the model agree with the labels, and with the truth? We train on true
# labels, and on labels of which a third is flipped.
#
# To be fast, the body is no Transformer. Its `hidden_states`, the one method that the
# reward model calls, takes the mean of the vectors of all words so far and puts it
# through one layer. It sees words, not order.

# %% data
quality = {}
for thread in threads:
    for answer in thread.answers:
        text = thread.question, answer.text
        quality[text] = forum.quality(*text)
labelled = []
for pair in pairs:
    a, b = ((pair.prompt, text) for text in (pair.chosen, pair.rejected))
    if quality[a] != quality[b]:  # the truth has no opinion on equals
        labelled.append((a, b) if quality[a] > quality[b] else (b, a))
flip = torch.rand(len(labelled), generator=generator) < 1 / 3
noisy = [(b, a) if f else (a, b) for (a, b), f in zip(labelled, flip, strict=True)]
names = sorted({word for text in quality for word in " ".join(text).split()})
word_id = {word: i for i, word in enumerate(names)}

# %% model
def tensors(pairs):
    """Words of all better answers, then all worse ones, with their masks: (2, B, T)."""
    texts = [" ".join(pair[side]).split() for side in (0, 1) for pair in pairs]
    T = max(map(len, texts))
    ids = torch.tensor([[word_id[w] for w in t] + [0] * (T - len(t)) for t in texts])
    mask = torch.arange(T) < torch.tensor([[len(text)] for text in texts])
    return ids.view(2, -1, T), mask.view(2, -1, T)


class MeanOfWords(torch.nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.words = torch.nn.Embedding(len(names), dim)
        self.layer = torch.nn.Linear(dim, dim)

    def hidden_states(self, tokens_BT):
        means = self.words(tokens_BT).cumsum(1)
        means = means / torch.arange(1, 1 + means.shape[1])[:, None]
        return torch.tanh(self.layer(means))

def scores(model, ids, mask):
    return model(ids[0], mask[0]), model(ids[1], mask[1])

# %% measure
def train(pairs, steps=150):
    torch.manual_seed(0)
    model = RewardModel(MeanOfWords(), dim=32)
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=1.0)
    ids, mask = tensors(pairs)
    for _ in range(steps):
        rows = torch.randint(0, len(pairs), (32,))
        loss = preference_loss(*scores(model, ids[:, rows], mask[:, rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, pairs):
    return 100 * pair_accuracy(*scores(model, *tensors(pairs)))


held_out, sizes = 500, [60, 125, 250, 1000, 4000]
lines = {"true labels": [], "a third flipped": [], "as its labels say": []}
for size in sizes:
    learned = slice(held_out, held_out + size)
    model, misled = train(labelled[learned]), train(noisy[learned])
    lines["true labels"].append(accuracy(model, labelled[:held_out]))
    lines["a third flipped"].append(accuracy(misled, labelled[:held_out]))
    lines["as its labels say"].append(accuracy(misled, noisy[:held_out]))
    print(f"{size:5}", *(f"{name}: {line[-1]:.0f} %  " for name, line in lines.items()))

# %% figure
from minillama.plots import CONTEXT, CONTRAST, ORACLE, OURS, figure, label_end, show

by_labels, by_truth = lines["as its labels say"][-1], lines["a third flipped"][-1]
title = f"{by_labels:.0f} % by noisy labels can be {by_truth:.0f} % in truth"
picture, axes = figure(title, "pairs to learn from",
                       "pairs that agree with the test labels, %")
places = {"true labels": (ORACLE, "learned from true labels", 0),
          "a third flipped": (OURS, "from noisy labels, tested on the truth", 0),
          "as its labels say": (CONTRAST, "the same, tested on noisy labels", -7)}
for name, (colour, label, dy) in places.items():
    axes.semilogx(sizes, lines[name], color=colour, marker="o", markersize=3)
    label_end(axes, sizes, lines[name], label, colour, dy)
axes.axhline(200 / 3, color=CONTEXT, linewidth=1, linestyle=":")
axes.annotate("67: all that noisy labels allow", (420, 200 / 3), (0, 3),
              textcoords="offset points", color=CONTEXT)
axes.set(ylim=(40, 104), xlim=(50, 120000), xticks=[100, 1000],
         xticklabels=["100", "1,000"])
axes.minorticks_off()
show(picture, f"{sizes[-1]} pairs: {by_labels:.0f} % by labels, {by_truth:.0f} % true")

# %% [markdown] exercise
# If a third of the labels are wrong, a perfect judge agrees with two thirds of them.
# With 4,000 pairs the noise spoils the test far more than the model: flips go both ways
# and mostly cancel, and the truth remains. With few pairs the model suffers too. So
# 67 % may be a good reward model or a poor one; only a better test set can say.
#
# **Exercise.** Make pairs, write the loss so that it is finite everywhere
# ($-\ln \sigma(x) = \max(0, -x) + \ln(1 + e^{-|x|})$), and the accuracy, in
# `lessons/exercises/ex25_reward_model.py`. Then `python3 run.py check 25`.

# %% closing
assert f"{math.log(2):.3f}" == "0.693" and far == 200.0
assert lines["true labels"][-1] > 95 and by_truth > 82 and 57 < by_labels < 70
print("You should see: 0.693 for scores all alike; above 95 % from true labels; "
      f"from noisy ones {by_labels:.0f} % by the labels (57 to 70), "
      f"{by_truth:.0f} % in truth (above 82)")
