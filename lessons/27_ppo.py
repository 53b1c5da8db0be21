# %% [markdown] question
# # 27 · PPO
# Covers: `minillama/rlhf/ppo.py`, `tests/rlhf/test_ppo.py`
# Needs: 25, 26
# Time: 15 s
# Teaches: policy gradient, the ratio and its clip, KL to a reference, reward hacking
# Paper: [Schulman et al. 2017](https://arxiv.org/abs/1707.06347), equation 7
#
# **Question.** A model may now write what it likes and gets a point for each text that
# a judge likes. Why must it pay for leaving the model that it was?
#
# Because the judge is a model too. It can be pleased by texts that no person would
# like, and whoever is rewarded for pleasing it will find them.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $\pi$ | `policy` | | the model that learns: probabilities of the next token |
# | $\pi_{old}$ | | (B, T) | the policy that wrote the texts; `old`: $\ln \pi_{old}$ |
# | $\pi_{ref}$ | | (B, T) | the reference, before all this; `ref`: $\ln \pi_{ref}$ |
# | $\rho$ | `ratio` | (B, T) | $\pi / \pi_{old}$, 1 before the first step |
# | $A$ | `advantages` | (B, T) | how much better a token did than expected |
# | $\epsilon$ | `clip` | | how far $\rho$ may go from 1 before a gain stops paying |
# | $\beta$ | `beta` | | price of each nat of KL: weight of the KL penalty |
# | $r_t$, $s$ | `rewards` | (B, T) | reward of token $t$; the judge's score |

# %% naive
import torch

from minillama.rlhf import ppo

clip = 0.2
ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.5]).requires_grad_()
signs = {}
for name, A in (("better than expected", 1.0), ("worse than expected", -1.0)):
    clipped = ratio.clamp(1 - clip, 1 + clip)
    objective = torch.minimum(ratio * A, clipped * A)
    (pull,) = torch.autograd.grad(objective.sum(), ratio)
    signs[name] = [int(p) for p in pull.tolist()]
    print(f"{name:21} rho {[round(r, 1) for r in ratio.tolist()]}: pull {signs[name]}")
    old, mask = torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool)
    loss = ppo.policy_loss(ratio.log()[None], old, torch.full((1, 5), A), mask, clip)
    assert torch.allclose(loss, -objective.mean())

# %% [markdown] formula
# **The clipped objective.** A text that did better than expected should become
# likelier. But the advantages were measured on texts of the old policy, and say little
# about a policy far from it. So a token stops gaining once its probability has changed
# by 20 % in the direction its advantage asks for:
# $$L = -\min(\rho A, \; \text{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A), \qquad \rho = \pi / \pi_{old}$$
# ascii: L = -min(rho A, clip(rho, 1 - eps, 1 + eps) A),  rho = pi / pi_old
#
# Read the table above (+1: made likelier, -1: less likely, 0: left alone). No pull
# where a good token is already much likelier, or a bad one already much less likely.
# Where it went the wrong way, it is always pulled back.
#
# **The KL penalty.** Each token $t$ also pays for straying from the reference model;
# the judge's score $s$ comes once, at the last token (the square bracket is 1 there,
# else 0):
# $$r_t = -\beta \, (\ln\, \pi_{old} - \ln\, \pi_{ref}) + s \, [t \text{ is last}]$$
# ascii: r_t = -beta (ln pi_old - ln pi_ref) + s at the last token
#
# On average $\ln\, \pi_{old} - \ln\, \pi_{ref}$, summed over a text, is the *KL
# divergence*: how many nats of evidence a text gives that the learner wrote it and not
# the reference model.

# %% world
WORDS = "the a cat dog saw fed happy and nice .".split()
V, T, B, START = len(WORDS), 12, 256, 9  # a text begins as after a full stop
torch.manual_seed(0)
REFERENCE = torch.full((V, V), 0.02)  # row: this word; column: the next
for line in ("the cat dog nice happy", "a dog cat nice happy", "and the a", "saw the a",
             "cat saw fed and .", "dog fed saw and .", "fed a the", "happy cat dog",
             "nice dog cat", ". the a ."):
    word, *following = map(WORDS.index, line.split())
    REFERENCE[word, following] = 1.0
REFERENCE = (REFERENCE / REFERENCE.sum(1, keepdim=True)).log()


@torch.no_grad()
def write(logits):
    """(B, 1 + T) texts: each word is drawn given the one before it (a bigram model)."""
    words = [torch.full((B,), START)]
    for _ in range(T):
        words.append(torch.multinomial(logits[words[-1]].softmax(-1), 1)[:, 0])
    return torch.stack(words, 1)


def log_probs(logits, texts):
    table = logits.log_softmax(-1)
    return table[texts[:, :-1], texts[:, 1:]]

# %% judges
def pleasing(texts):
    return (texts == WORDS.index("nice")) | (texts == WORDS.index("happy"))


def judge(texts):
    """What the judge counts: the words "nice" and "happy"."""
    return pleasing(texts[:, 1:]).sum(1).float()


def truth(texts):
    """What people wanted: such words in sentences; two in a row please nobody."""
    kind = pleasing(texts)
    return judge(texts) - 3.0 * (kind[:, 1:] & kind[:, :-1]).sum(1)

# %% [markdown] experiment
# **Experiment.** A world small enough to see through: ten words, and a policy that is
# one table: for each word, a score of every next word. The judge likes `nice` and
# `happy`. People do too, in a sentence; they do not like `nice happy happy nice`. The
# judge only counts words and cannot tell. We run PPO with the KL penalty and without.

# %% train
from minillama.rlhf.gae import gae


def train(beta, rounds=80, seed=0):
    torch.manual_seed(seed)
    policy = REFERENCE.clone().requires_grad_()
    values = torch.zeros(T)  # the value head: one guess for each place
    optimizer = torch.optim.SGD([policy], lr=20.0)
    mask, history = torch.ones(B, T, dtype=torch.bool), []
    for _ in range(rounds):
        texts = write(policy)
        with torch.no_grad():
            old, ref = log_probs(policy, texts), log_probs(REFERENCE, texts)
        rewards = ppo.token_rewards(judge(texts), old, ref, mask, beta)
        advantages, returns = gae(rewards, values.expand(B, T), mask)
        advantages = ppo.whiten(advantages, mask)
        for _ in range(4):  # the same texts serve four steps; the clip makes that safe
            new = log_probs(policy, texts)
            loss = ppo.policy_loss(new, old, advantages, mask, clip=0.2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        values = returns.mean(0)
        kl = ppo.kl_estimate(old, ref).sum(1).mean().item()
        points, true = judge(texts), truth(texts)
        errs = (points != true).float().mean().item()
        history.append((points.mean().item(), true.mean().item(), kl, errs))
    return history, " ".join(WORDS[i] for i in texts[0, 1:])

# %% measure
runs, ends = {}, {}
for name, beta in (("KL penalty", 0.5), ("no penalty", 0.0)):
    runs[name], text = train(beta)
    ends[name] = [sum(column) / 20 for column in zip(*runs[name][-20:], strict=True)]
    score, true, kl, errs = ends[name]
    print(f"{name}: judge {score:.2f}, people {true:.2f}, KL {kl:.2f} nats; "
          f"the judge errs on {errs:.0%} of the texts")
    print(f"   sampled: {text}")

# %% figure
from minillama.plots import CONTRAST, OURS, figure, label_end, show

picture, axes = figure("Without a KL penalty the judge is pleased, people are not",
                       "round of PPO", "points for a text of 12 words")
for name, colour in (("KL penalty", OURS), ("no penalty", CONTRAST)):
    for column, judged, style in ((0, "judge", "-"), (1, "people", "--")):
        ys = [row[column] for row in runs[name]]
        axes.plot(ys, color=colour, linestyle=style)
        nudge = (7 if judged == "judge" else -7) if name == "KL penalty" else 0
        label_end(axes, [len(ys)], ys[-1:], f"{judged}, {name}", colour, dy=nudge)
axes.set(xlim=(0, 106), xticks=[0, 20, 40, 60, 80])
show(picture, "Judge and people: " + " / ".join(
    f"{name}: {end[0]:.1f} and {end[1]:.1f}" for name, end in ends.items()))

# %% [markdown] exercise
# The judge is right about nearly all texts of the reference model (it *errs* where
# people give other points). The KL penalty keeps the policy's texts close to
# those, but not fully: the judge errs more often than at first, and gives more points
# than people. Without the penalty it errs on nearly every text. How high a price?
# $\beta$ is set by hand, or adjusted during the run so that the KL stays near a target.
#
# On your own task `python3 run.py ppo --check ...` runs three rounds and says what
# looks wrong, and what to try: a KL that runs away, answers that are all alike.
# `reward` says where labels contradict one another.
#
# **Exercise.** Write the clipped loss, tell in which cases it pulls, and write the
# tokens' rewards, in `lessons/exercises/ex27_ppo.py`. Then `python3 run.py check 27`.

# %% closing
first, held, free = runs["KL penalty"][0], ends["KL penalty"], ends["no penalty"]
print(f"before: judge {first[0]:.2f}, people {first[1]:.2f}; "
      f"the judge errs on {first[3]:.0%} of the texts")
assert signs == {"better than expected": [1, 1, 1, 1, 0],
                 "worse than expected": [0, -1, -1, -1, -1]}
assert held[1] > first[1] + 0.3 and 0.3 < held[2] < 8
assert free[0] > 11 and free[1] < -10 and free[2] > 20
assert first[3] < 0.1 and first[3] < held[3] < 0.5 and free[3] > 0.99
print(f"You should see: with a KL penalty people's points rise from {first[1]:.1f} to "
      f"{held[1]:.1f} at {held[2]:.1f} nats (below 8); without it "
      f"the judge gives {free[0]:.1f} of 12 and people {free[1]:.0f}")
