"""Feedback on tasks that the defaults were not chosen on: little worlds (`_worlds`), each also turned round.

The tour's stages for somebody's own files, with default settings: text, fine-tuning, reward model, PPO. What came out
is held against the world's own measure of good, which no stage sees, on questions that no stage has learned. Some five
minutes of one core for each row; what was trained is kept in --out, so that a run that was stopped goes on. --record
keeps each row in bench/own_tasks.json as it comes, and makes the table of docs/own_tasks.md from that file alone.
"""

import itertools
import statistics
import time
from pathlib import Path

import _record
import _rounds
import _worlds

RECORD, PAGE = _rounds.ROOT / "bench" / "own_tasks.json", _rounds.ROOT / "docs" / "own_tasks.md"
COLUMNS = ("world", "good is", "wrong labels", "seed", "quality before", "after", "rise", "ended", "distinct",
           "malformed before", "after", "KL", "highest KL", "taken back", "CPU seconds")
SHOWN = ("before", "after", "rise", "ended", "distinct", "malformed_before", "malformed", "kl", "highest_kl",
         "taken_back", "seconds")
ANSWERS = 200


def trained_base(report, folder):
    """(tuned model, tokenizer) of a world's text and answers, trained now or found."""
    from minillama.tour.tour import text_stage
    from minillama.tour.tour_own import own_files, own_sft_stage

    model, tokenizer = text_stage(report, [folder / "text"])
    tuned = own_sft_stage(report, model, tokenizer, own_files(folder / "sft.jsonl", folder / "pairs.jsonl")[0])
    tokenizer.save(report.out / "tokenizer.model")
    return tuned, tokenizer


def results(name, inverted, wrong, seed, out, record):
    """One chain -> its numbers. Text and answers are one for all rows of a world and a seed, and are learned once:
    their CPU seconds are kept in the record, and are part of every row's."""
    from minillama.tour.tour import TourConfig, TourReport
    from minillama.tour.tour_own import own_feedback, own_files
    from minillama.tour.tour_rlhf import ppo_stage, reward_stage

    folder = Path(out) / f"{name}{'-inverted' * inverted}-{wrong:g}-{seed}"
    if not (folder / "pairs.jsonl").exists():
        _worlds.write_files(folder, name, seed, wrong=wrong, inverted=inverted)
    report = TourReport(Path(out) / f"{name}-{seed}", TourConfig(seed=seed, progress=False))
    base = _record.keep_row(record, lambda: {"base_seconds": seconds(lambda: trained_base(report, folder))},
                            world=name, seed=seed, stage="text and answers")
    began = time.process_time()
    tuned, tokenizer = trained_base(report, folder)
    feedback = own_feedback(own_files(None, folder / "pairs.jsonl")[1], tokenizer, tuned.config.max_seq_len)
    run = ppo_stage(report, tuned, reward_stage(report, tuned, tokenizer, feedback), tokenizer, feedback)
    spent, asked = time.process_time() - began, _worlds.WORLDS[name].questions()
    before, after = (measured(policy, tokenizer, name, held_out(asked)) for policy in (tuned, run.policy))
    sign = -1 if inverted else 1
    return {"before": sign * before["quality"], "after": sign * after["quality"],
            "rise": sign * (after["quality"] - before["quality"]), "ended": after["ended"],
            "distinct": after["distinct"], "malformed_before": before["malformed"], "malformed": after["malformed"],
            "kl": run.after.kl, "highest_kl": max(row["kl"] for row in run.history),
            "taken_back": sum(row["taken_back"] for row in run.history), "seconds": round(base["base_seconds"] + spent)}


def seconds(work):
    """CPU seconds of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def held_out(asked):
    """ANSWERS questions that no stage learns, some of them several times."""
    from minillama.evaluate.held_out import split_prompts

    return (split_prompts(list(asked), 0.1)[1] * ANSWERS)[:ANSWERS]


def measured(policy, tokenizer, name, questions):
    """What a policy's answers are worth in truth, and how many end, differ, and are malformed."""
    from minillama.rlhf.rollout import prompts_of, sample_answers

    world = _worlds.WORLDS[name]
    asked = world.questions()
    rollout = sample_answers(policy.eval(), prompts_of(questions, tokenizer), tokenizer.eos_id, 128, seed=7)
    texts = [text.strip() for text in rollout.texts(tokenizer)]
    found = [world.judged(asked[question], text) for question, text in zip(questions, texts, strict=True)]
    return {"quality": sum(quality for quality, _ in found) / len(found),
            "malformed": sum(malformed for _, malformed in found) / len(found),
            "ended": rollout.ended_B.double().mean().item(), "distinct": len(set(texts)) / len(texts)}


def misses(row):
    """What a row misses of the numbers set beforehand, in words."""
    least, most = 1.8 if not row["wrong"] else 1.0, 0.3
    checks = {"rise": row["rise"] >= least, "ended": row["ended"] >= 0.97,
              "distinct": row["inverted"] or row["distinct"] >= 0.85,
              "malformed before": row["malformed_before"] <= 0.15, "malformed after": row["malformed"] <= most,
              "KL": 2 <= row["kl"] <= 8, "CPU seconds": row["seconds"] <= 400}
    return [name for name, holds in checks.items() if not holds]


def page_part(rows):
    """The table of all rows, and which of the numbers set beforehand they miss."""
    rows = [row for row in rows if "rise" in row]
    shown = [[row["world"], "turned round" if row["inverted"] else "as it is", f"{row['wrong']:.0%}", row["seed"],
              *(row[name] for name in SHOWN)] for row in rows]
    missed = [f"{row['world']}, {shown[i][1]}, {shown[i][2]} wrong, seed {row['seed']}: {', '.join(misses(row))}"
              for i, row in enumerate(rows) if misses(row)]
    right = [row["rise"] for row in rows if not row["wrong"]]
    mean = f"The mean rise with right labels is {statistics.mean(right):.2f}. " if right else ""
    return (_record.table(COLUMNS, shown) + f"\n\n{mean}{len(rows) - len(missed)} of {len(rows)} rows miss none of the "
            "numbers below." + "".join(f"\n- Missed by {line}." for line in missed))


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--worlds", nargs="+", choices=_worlds.WORLDS, default=list(_worlds.WORLDS)),
        parser.add_argument("--wrong", type=float, default=0.0, help="share of wrong labels (default: 0)"),
        parser.add_argument("--seeds", type=int, nargs="+", default=[4], help="default: 4"),
        parser.add_argument("--good", nargs="+", choices=["as-it-is", "turned-round"], default=["as-it-is",
                            "turned-round"], help="default: both"),
        parser.add_argument("--record", action="store_true", help="write bench/own_tasks.json, docs/own_tasks.md"),
        parser.add_argument("--out", default="out/own_tasks", help="for what is trained (default: %(default)s)")))
    record = RECORD if chosen.record else Path(chosen.out) / "rows.json"
    for name, seed, good in itertools.product(chosen.worlds, chosen.seeds, chosen.good):
        key = {"world": name, "inverted": good == "turned-round", "wrong": chosen.wrong, "seed": seed}
        row = _record.keep_row(record, lambda key=key: results(*key.values(), chosen.out, record), **key)
        print(row, flush=True)
        if chosen.record:
            _record.put(PAGE, "chains", page_part(_record.rows_of(record)))
    print(page_part(_record.rows_of(record)))


if __name__ == "__main__":
    main()
