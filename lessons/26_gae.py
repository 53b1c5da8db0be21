# %% [markdown] question
# # 26 · Generalised advantage estimation
# Covers: `minillama/rlhf/gae.py`, `tests/rlhf/test_gae.py`
# Needs: 25
# Time: 4 s
# Teaches: values, advantages, TD error, GAE's lambda, bias and variance, padding
# Paper: [Schulman et al. 2016](https://arxiv.org/abs/1506.02438), equation 16
#
# **Question.** A model writes an answer of a hundred tokens, and a judge gives it one
# number at the end. Which of the hundred tokens earned it?
#
# A second model, the *value head*, helps: before each token it guesses the reward that
# will come in the end. If its guess jumps from 0.9 to 0.1 after one token, that token
# was the blunder. But the value head is learned too, and may be wrong.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $r_t$ | `rewards` | (B, T) | reward paid at token $t$; often 0 but for the last |
# | $V_t$ | `values` | (B, T) | guess, before token $t$, of all rewards from there on |
# | $\gamma$ | `gamma` | | discount of later rewards; 1 for short texts |
# | $\delta_t$ | `delta` | (B, T) | surprise of one step |
# | $\lambda$ | `lam` | | trust in rewards over guesses |
# | $A_t$ | `advantages` | (B, T) | how much better token $t$ did than was expected |
# | $R_t$ | `returns` | (B, T) | $A_t + V_t$, what the value head should have said |

# %% naive
rewards = [0, 0, 0, 0, 0, 0.0]  # the judge says 0: a bad answer
values = [0.9, 0.9, 0.9, 0.1, 0.1, 0.1]  # after the third token the head knows it
T = len(rewards)

# Way 1: blame every token for all that followed.
followed = [sum(rewards[t:]) - values[t] for t in range(T)]
# Way 2: blame each token for the jump of the guess right after it.
jump = [rewards[t] + (values[t + 1] if t + 1 < T else 0) - values[t] for t in range(T)]
for name, blame in (("all that followed", followed), ("the next jump", jump)):
    print(f"{name:18}", " ".join(f"{a:5.1f}" for a in blame))

# %% [markdown] formula
# The first way blames the two innocent tokens at the front as much as the blunder. Way
# 2 blames token three alone, as it should (and the last a little, for the 0.1 that was
# still hoped for). But it stands or falls with the guesses.
#
# The jump $\delta_t$ is called the *TD error* (temporal difference). GAE blends the
# two ways: it adds up the jumps from $t$ on, the one $l$ steps later multiplied by
# $(\gamma\lambda)^l$.
# $$\delta_t = r_t + \gamma V_{t+1} - V_t$$
# ascii: delta_t = r_t + gamma V_(t+1) - V_t
# $$A_t = \sum_l (\gamma\lambda)^l \delta_{t+l} = \delta_t + \gamma\lambda A_{t+1}$$
# ascii: A_t = sum over l of (gamma lam)^l delta_(t+l) = delta_t + gamma lam A_(t+1)
#
# The second form is how it is computed: from the end to the front, one multiplication a
# token. Behind the last token nothing comes, so $V$ and $A$ are 0 there.
#
# $\lambda = 0$ is way 2. $\lambda = 1$ is way 1: the guesses in between cancel, each
# being added once and subtracted once.

# %% module
import torch

from minillama.rlhf.gae import gae

r, v = torch.tensor([rewards]).double(), torch.tensor([values]).double()
mask = torch.ones(1, T, dtype=torch.bool)  # False would mark padding
for lam in (0.0, 0.5, 0.95, 1.0):
    advantages, returns = gae(r, v, mask, gamma=1.0, lam=lam)
    print(f"lambda {lam:4}  ", " ".join(f"{a:5.2f}" for a in advantages[0]))
assert torch.allclose(gae(r, v, mask, lam=0.0)[0], torch.tensor([jump]).double())
assert torch.allclose(gae(r, v, mask, lam=1.0)[0], torch.tensor([followed]).double())

# %% [markdown] experiment
# **Experiment.** Which $\lambda$ is best? Take answers of 40 tokens in which each token
# is secretly worth +1 or -1, by the toss of a coin. The judge pays the sum at the end.
# So we know what nobody knows in practice: what each token was worth. We ask how well
# $A_t$ agrees with that worth (their *correlation*: 1 is perfect, 0 is no relation),
# for two value heads:
#
# - one that **knows**: it has added up all tokens so far;
# - one that is **late**: it notices each token two steps after it was written. This is
#   much like a real head, which needs a few more words to see where a sentence leads.

# %% measure
generator = torch.Generator().manual_seed(0)
B, T = 4000, 40
worth = torch.randint(0, 2, (B, T), generator=generator).double() * 2 - 1
rewards = torch.zeros(B, T).double()
rewards[:, -1] = worth.sum(1)  # one payment, at the end
so_far = torch.cat([torch.zeros(B, 3).double(), worth.cumsum(1)], 1)
heads = {"knows": so_far[:, 2:T + 2], "is late": so_far[:, :T]}
mask = torch.ones(B, T, dtype=torch.bool)


def agreement(values, lam):
    """Correlation of advantage and worth, the mean over tokens 3 to 30."""
    advantages = gae(rewards, values, mask, lam=lam)[0][:, 2:30]
    a, w = (x - x.mean(0) for x in (advantages, worth[:, 2:30]))
    return ((a * w).sum(0) / (a.norm(dim=0) * w.norm(dim=0))).mean().item()


lams = [i / 20 for i in range(21)]
curves = {name: [agreement(v, lam) for lam in lams] for name, v in heads.items()}
for name, curve in curves.items():
    best = max(range(21), key=curve.__getitem__)
    print(f"head {name:8} lambda 0: {curve[0]:.2f}  1: {curve[-1]:.2f}  "
          f"best {curve[best]:.2f} at lambda {lams[best]:.2f}")

# %% figure
from minillama.plots import CONTRAST, OURS, figure, show

picture, axes = figure("A head that notices late wants lambda in between", "lambda",
                       "correlation of advantage and worth")
for (name, curve), colour, place in zip(curves.items(), (CONTRAST, OURS),
                                        ((0.52, 0.9), (0.6, 0.17)), strict=True):
    axes.plot(lams, curve, color=colour, marker="o", markersize=3)
    axes.annotate(f"the head {name}", place, color=colour)
axes.set(xlim=(0, 1.02), ylim=(-0.03, 1.05))
show(picture, f"A late head: correlation 0 at lambda 0, {max(curve):.2f} near 0.8")

# %% [markdown] reading
# For the head that knows, every further jump only adds noise: $\lambda = 0$ is perfect.
# For the late head $\lambda = 0$ is useless, as the jump after a token belongs to
# another one. That error never averages out: *bias*. At $\lambda = 1$ nothing is
# missed, but the luck of all later tokens is mixed in: *variance*. The best lies
# between. On paper, for an endless answer, the late head's correlation is
# $$\lambda^2 \sqrt{1 - \lambda^2}, \text{ largest at } \lambda = \sqrt{2/3} = 0.816$$
# ascii: lambda^2 sqrt(1 - lambda^2), largest at lambda = sqrt(2/3) = 0.816: 0.385
#
# For language models 0.95 is the usual choice.

# %% [markdown] exercise
# **Padding.** Answers in a batch differ in length. After its last real token an answer
# has no value: whatever the head says about padding must not flow backwards.
#
# **Exercise.** Write the recursion with padding in `lessons/exercises/ex26_gae.py`.
# Then `python3 run.py check 26`.

# %% closing
late = curves["is late"]
assert abs(late[0]) < 0.01 and abs(max(late) - (4 / 27) ** 0.5) < 0.01
assert lams[late.index(max(late))] in (0.75, 0.8, 0.85) and late[-1] < 0.25
assert curves["knows"][0] > 0.9999 and curves["knows"][-1] < 0.3
print("You should see: lambda 1 equal to all that followed, lambda 0 to the next jump; "
      f"the late head best near lambda 0.8, with correlation {max(late):.2f} (0.38)")
