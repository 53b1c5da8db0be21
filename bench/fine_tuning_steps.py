"""How much fine-tuning feedback needs, and when PPO stops to gain: StackLLaMA's two curves, on a little world.

A small model (`_short_chain`) is tuned on answers for 50 to 1200 steps, each time from random weights with a rate that
falls to its end; then come a reward model on that one, and PPO. And PPO for three times as many rounds, to see where it
levels off (StackLLaMA: after about 1,000 steps). Minutes of one core for each seed. --record keeps each run in
bench/fine_tuning_steps.json, and makes the tables of docs/own_tasks.md from that file alone.
"""

from pathlib import Path
from statistics import fmean

import _record
import _rounds  # before torch
import _short_chain as chain

RECORD, PAGE = _rounds.ROOT / "bench" / "fine_tuning_steps.json", _rounds.ROOT / "docs" / "own_tasks.md"
SIZES = {"steps": (50, 150, 400, 1200), "rounds": 12, "long": 36, "long_steps": 400}
COLUMNS = ("steps of tuning", "answers read", "loss on unseen answers", "quality", "malformed", "quality after PPO",
           "rise", "rise of each seed", "malformed after", "KL")
ROUNDS = (1, 4, 8, 12, 16, 20, 24, 28, 32, 36)


def results(task, steps, rounds, seed):
    """Tuning, reward model, PPO -> what the answers are worth before and after."""
    from minillama.train.sft import answer_loss

    start = chain.tuned(task, steps, seed)
    judge, policy = chain.judge_of(start, task, seed), chain.a_copy(start)
    curve, _ = chain.practised(policy, judge, task, rounds, seed)
    return {"loss": answer_loss(start, task.held_out), "read": 16 * steps / len(task.sequences), "curve": curve,
            "before": chain.measured(start, start, judge, task), "after": chain.measured(policy, start, judge, task)}


def steps_table(rows):
    """A line for each number of steps, the mean of the seeds."""
    lines = []
    for steps in SIZES["steps"]:
        found = [row for row in rows if row["steps"] == steps and row["rounds"] == SIZES["rounds"]]
        if found:
            rises = [row["after"]["quality"] - row["before"]["quality"] for row in found]
            lines.append([steps, f"{fmean(row['read'] for row in found):.1f} times",
                          f"{fmean(row['loss'] for row in found):.3f}",
                          *(fmean(row["before"][key] for row in found) for key in ("quality", "malformed")),
                          fmean(row["after"]["quality"] for row in found), fmean(rises),
                          ", ".join(f"{rise:.2f}" for rise in rises),
                          *(fmean(row["after"][key] for row in found) for key in ("malformed", "kl"))])
    return _record.table(COLUMNS, lines)


def rounds_table(rows):
    """The quality of PPO's batches, the mean of four rounds up to each (of one for the first), seed by seed."""
    found = [row for row in rows if row["rounds"] == SIZES["long"]]
    lines = []
    for row in found:
        qualities = [quality for _, quality in row["curve"]]
        lines.append([row["seed"], *(fmean(qualities[at - 4:at]) if at > 1 else qualities[0]
                                     for at in ROUNDS if at <= len(qualities))])
    return _record.table(["seed", *(f"round {at}" for at in ROUNDS if at <= SIZES["long"])], lines)


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2"),
        parser.add_argument("--record", action="store_true", help="write bench/fine_tuning_steps.json and the page"),
        parser.add_argument("--out", default="out/fine_tuning_steps", help="for the rows without --record (default: "
                            "%(default)s)")))
    if chosen.small:
        SIZES.update(steps=(12, 20), rounds=2, long=3, long_steps=12)
        chain.SIZES.update(records=300, pairs=300, dim=16, asked=8)
    record = RECORD if chosen.record else Path(chosen.out) / "rows.json"
    for seed in chosen.seeds:
        task = chain.task_of(seed)
        for steps, rounds in [*((steps, SIZES["rounds"]) for steps in SIZES["steps"]),
                              (SIZES["long_steps"], SIZES["long"])]:
            _record.keep_row(record, lambda steps=steps, rounds=rounds, task=task, seed=seed:
                             results(task, steps, rounds, seed), steps=steps, rounds=rounds, seed=seed)
            print(f"seed {seed}: {steps} steps, {rounds} rounds of PPO", flush=True)
    rows = _record.rows_of(record)
    if chosen.record:
        _record.put(PAGE, "fine-tuning steps", steps_table(rows))
        _record.put(PAGE, "rounds of PPO", rounds_table(rows))
    print(steps_table(rows), rounds_table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
