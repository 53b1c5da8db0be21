"""Feedback on tasks that the defaults were not chosen on: little worlds (`_worlds`), each also turned round.

The tour's stages for somebody's own files, with default settings: text, fine-tuning, reward model, PPO. What came out
is held against the world's own measure of good, which no stage sees, on questions that no stage has learned. Some five
minutes of one core for each row; what was trained is kept in --out, so that a run that was stopped goes on.
"""

import itertools
import time
from pathlib import Path

import _rounds
import _worlds

COLUMNS = ("world", "good is", "wrong labels", "seed", "quality before", "after", "rise", "ended", "distinct",
           "malformed before", "after", "KL", "CPU seconds")
ANSWERS = 200


def results(name, inverted, wrong, seed, out):
    """One chain -> all numbers, in the order of COLUMNS."""
    from minillama.evaluate.exam import split_prompts
    from minillama.tour.tour import TourConfig, TourReport, text_stage
    from minillama.tour.tour_own import own_feedback, own_files, own_sft_stage
    from minillama.tour.tour_rlhf import ppo_stage, reward_stage

    folder = Path(out) / f"{name}{'-inverted' * inverted}-{wrong:g}-{seed}"
    if not (folder / "pairs.jsonl").exists():
        _worlds.write_files(folder, name, seed, wrong=wrong, inverted=inverted)
    began, report = time.process_time(), TourReport(Path(out) / f"{name}-{seed}", TourConfig(seed=seed, progress=False))
    model, tokenizer = text_stage(report, [folder / "text"])
    records, pairs = own_files(folder / "sft.jsonl", folder / "pairs.jsonl")
    tuned = own_sft_stage(report, model, tokenizer, records)
    feedback = own_feedback(pairs, tokenizer, model.config.max_seq_len)
    tokenizer.save(report.out / "tokenizer.model")
    judge = reward_stage(report, tuned, tokenizer, feedback)
    run = ppo_stage(report, tuned, judge, tokenizer, feedback)
    seconds, asked = time.process_time() - began, _worlds.WORLDS[name].questions()
    held_out = (split_prompts(list(asked), 0.1)[1] * ANSWERS)[:ANSWERS]
    before, after = (measured(policy, tokenizer, name, held_out) for policy in (tuned, run.policy))
    sign = -1 if inverted else 1
    return (name, "turned round" if inverted else "as it is", wrong, seed, sign * before["quality"],
            sign * after["quality"], sign * (after["quality"] - before["quality"]), after["ended"], after["distinct"],
            before["malformed"], after["malformed"], run.after.kl, seconds)


def measured(policy, tokenizer, name, questions):
    """What a policy's answers are worth in truth, and how many end, differ, and are malformed."""
    from minillama.evaluate.exam import prompts_of
    from minillama.rlhf.rollout import sample_answers

    world = _worlds.WORLDS[name]
    asked = world.questions()
    rollout = sample_answers(policy.eval(), prompts_of(questions, tokenizer), tokenizer.eos_id, 128, seed=7)
    texts = [text.strip() for text in rollout.texts(tokenizer)]
    found = [world.judged(asked[question], text) for question, text in zip(questions, texts, strict=True)]
    return {"quality": sum(quality for quality, _ in found) / len(found),
            "malformed": sum(malformed for _, malformed in found) / len(found),
            "ended": rollout.ended_B.double().mean().item(), "distinct": len(set(texts)) / len(texts)}


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--worlds", nargs="+", choices=_worlds.WORLDS, default=list(_worlds.WORLDS)),
        parser.add_argument("--wrong", type=float, default=0.0, help="share of wrong labels (default: 0)"),
        parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="default: 1 2"),
        parser.add_argument("--out", default="out/own_tasks", help="for what is trained (default: %(default)s)")))
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for name, seed, inverted in itertools.product(chosen.worlds, chosen.seeds, (False, True)):
        row = results(name, inverted, chosen.wrong, seed, chosen.out)
        print("| " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row) + " |", flush=True)


if __name__ == "__main__":
    main()
