"""Wrong labels, and what a loss makes of them: Bradley-Terry plain, with label smoothing, with a margin.

A linear reward on what an answer of a little world (`_worlds`) holds, one weight for each of its sentences, learned to
the end by LBFGS: nothing but the loss differs. The margin is how much better the better answer really is, as people who
grade would say; of a flipped pair too. The truth is the world's own measure, on pairs that were not learned.
"""

import re
import statistics

import _rounds
import _worlds

COLUMNS = ("wrong labels", "loss", "in the order of the truth", "of the labels", "loss of a flipped pair",
           "of a right one")
SHARES, SEEDS, PAIRS, FRESH = (0.0, 0.1, 0.2, 0.3), (0, 1, 2), 500, 2000
LOSSES = {"plain": {}, "smoothing 0.2": {"label_smoothing": 0.2}, "margin": {"margin": 1.0}}


def features(world, asked, answer):
    """Which sentences an answer holds, a list of 0 and 1 for all that the world knows, and how many besides."""
    found = [0.0] * (sum(len(templates) for templates, _ in world.kinds.values()) + 1)
    for sentence in re.findall(r"\S[^.!?]*[.!?]?", answer):
        patterns = (world.pattern(asked, text) for kind, _ in world.kinds.values() for text in kind)
        found[next((i for i, pattern in enumerate(patterns) if re.fullmatch(pattern, sentence)), -1)] += 1.0
    return found


def drawn(world, seed, n, wrong):
    """(features of the chosen, (n, F), of the rejected, how much better the chosen really is, (n,))."""
    import torch

    questions, rows = world.questions(), []
    for pair in _worlds.pairs_of(world, seed, n, wrong):
        asked = questions[pair["prompt"]]
        sides = [pair["chosen"], pair["rejected"]]
        good, bad = (world.judged(asked, text)[0] for text in sides)
        rows.append([*(features(world, asked, text) for text in sides), float(good - bad)])
    return tuple(torch.tensor(column) for column in zip(*rows, strict=True))


def learned(chosen, rejected, gap, label_smoothing=0.0, margin=None):
    """The weights of the smallest loss, with a little decay, without which separable pairs have none."""
    import torch

    from minillama.rlhf.reward_model import preference_loss

    weight = torch.zeros(chosen.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        surer = None if margin is None else margin * gap.abs()
        loss = preference_loss(chosen @ weight, rejected @ weight, surer, label_smoothing)
        loss = loss + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def row_of(name, wrong, seed):
    """The numbers of one fit, in the order of COLUMNS from the third on."""
    from minillama.rlhf.reward_model import preference_loss

    world = list(_worlds.WORLDS.values())[seed % 2]
    chosen, rejected, gap = drawn(world, f"{seed} learned", PAIRS, wrong)
    weight = learned(chosen, rejected, gap, **LOSSES[name])
    surer = gap.abs() * LOSSES[name].get("margin", 0.0)

    def loss_of(some):
        if not some.any():
            return float("nan")
        return preference_loss(chosen[some] @ weight, rejected[some] @ weight, surer[some]).item()

    fresh = drawn(world, f"{seed} fresh", FRESH, 0.0)
    true, kept = (((one - other) @ weight > 0).float().mean().item() for one, other in (fresh[:2], (chosen, rejected)))
    return true, kept, loss_of(gap < 0), loss_of(gap > 0)


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    if chosen.small:
        globals().update(PAIRS=60, FRESH=60, SEEDS=(0,))
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for wrong in SHARES:
        for name in LOSSES:
            means = map(statistics.mean, zip(*(row_of(name, wrong, seed) for seed in SEEDS), strict=True))
            print("| " + " | ".join([f"{wrong:.0%}", name, *(f"{x:.3f}" for x in means)]) + " |", flush=True)


if __name__ == "__main__":
    main()
