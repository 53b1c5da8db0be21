"""Ziya's other feedback beside PPO: does it "make up for PPO's weakness and train faster", as its model card says?

All arms begin as one tuned model with one reward model (`_short_chain`). Before PPO: tuning on what people preferred
(HFFT); chain of hindsight (COHFT: the better answer under the plain prompt, the worse under its own name); AI feedback
(AIF: the reward model labels pairs of the model's own answers, which DPO learns). Within PPO: a written rule beside the
reward model (RBRS). Then all four together, and PPO alone. What is measured is the world's own quality, and the CPU
seconds from the tuned model until nine tenths of what PPO alone gains are reached. Minutes of one core for each seed.
--record keeps each arm in bench/ziya.json, and makes the table of docs/own_tasks.md from that file alone.
"""

import time
from pathlib import Path
from statistics import fmean

import _record
import _rounds  # before torch
import _short_chain as chain

RECORD, PAGE = _rounds.ROOT / "bench" / "ziya.json", _rounds.ROOT / "docs" / "own_tasks.md"
SIZES = {"tuning": 400, "steps": 150, "rounds": 12, "answers": 4, "pairs": 16}
COLUMNS = ("what", "quality without PPO", "CPU seconds", "quality after PPO", "gain on PPO alone", "malformed",
           "distinct", "KL from the tuned model", "CPU seconds in all", "to nine tenths of PPO's gain")
SMOOTH = 3  # rounds whose mean quality has to be there
SHARE = 0.9


def settings(seed):
    """Of tuning on what people said."""
    from minillama.train.sft import SftConfig

    return SftConfig(steps=SIZES["steps"], max_lr=1e-3, eval_every=0, seed=seed)


def preferred(policy, judge, task, seed):
    """HFFT: the answers that people preferred are learned as answers."""
    from minillama.train.sequence_loss import encode_segments
    from minillama.train.sft import fine_tune
    from minillama.train.templates import question_answer

    sequences = [encode_segments(question_answer(pair.prompt, pair.chosen), task.tokenizer) for pair in task.pairs]
    fine_tune(policy, sequences, task.held_out, settings(seed), progress=False)


def hindsight(policy, judge, task, seed):
    """Chain of hindsight. The better answer stands where any answer stands, so the plain prompt asks for a good one."""
    from lessons import other_feedback
    from minillama.train.sft import fine_tune

    plain, other_feedback.SIDES = other_feedback.SIDES, ("Answer:", "Bad:")
    try:
        sequences = other_feedback.hindsight_sequences(task.pairs, task.tokenizer, seed)
    finally:
        other_feedback.SIDES = plain
    fits = [sequence for sequence in sequences if len(sequence.tokens) <= policy.config.max_seq_len]
    fine_tune(policy, fits, task.held_out, settings(seed), progress=False)


def judged_by_a_model(policy, judge, task, seed):
    """AI feedback: of the policy's own answers to a question the one with the highest score is preferred to the one
    with the lowest, and DPO learns these pairs."""
    from lessons.other_feedback import DPOConfig, n_answers, train_dpo
    from minillama.rlhf.preferences import Pair
    from minillama.rlhf.rollout import prompts_of

    n = SIZES["answers"]
    rollout, scores_BN = n_answers(policy, judge, prompts_of(task.practice, task.tokenizer), task.tokenizer.eos_id, n,
                                   task.max_new_tokens, seed)
    texts, pairs = [text.strip() for text in rollout.texts(task.tokenizer)], []
    for i, question in enumerate(task.practice):
        best, worst = (texts[n * i + int(at)] for at in (scores_BN[i].argmax(), scores_BN[i].argmin()))
        fit = all(0 < len(task.tokenizer.encode(text)) <= task.max_new_tokens for text in (best, worst))
        if fit and best != worst:
            pairs.append(Pair(question, best, worst))
    config = DPOConfig(batch_size=SIZES["pairs"], max_lr=2e-4, beta=0.5, seed=seed)
    train_dpo(policy, pairs, task.tokenizer, config, progress=False)


def points(text):
    """The written rule: half a point each for the ship and the port that were asked for, less half for every sentence
    beyond three, and for every one that is said twice."""
    question, _, answer = text.partition("Answer:")
    words, sentences = question.split(), [part.strip() for part in answer.split(".") if part.strip()]
    named = sum(f" {word} " in f" {answer} " for word in (words[5], words[7]))
    return 0.5 * (named - max(len(sentences) - 3, 0) - (len(sentences) - len(set(sentences))))


def with_rule(judge, tokenizer):
    """The reward model's score and the rule's points, added up."""
    from lessons.other_feedback import RuleReward

    class Both(RuleReward):
        def forward(self, tokens_BT, mask_BT):
            return judge(tokens_BT, mask_BT) + super().forward(tokens_BT, mask_BT)

    return Both(points, tokenizer, judge.body, judge.head.in_features)


ARMS = {"PPO alone": ((), False), "HFFT": ((preferred,), False), "hindsight": ((hindsight,), False),
        "AI feedback": ((judged_by_a_model,), False), "rule": ((), True),
        "all four": ((preferred, hindsight, judged_by_a_model), True)}


def results(name, start, judge, task, seed):
    """One arm: what its stages give without PPO and with it, and the curve of PPO's batches."""
    (stages, ruled), policy, began = ARMS[name], chain.a_copy(start), time.process_time()
    for stage in stages:
        stage(policy, judge, task, seed)
        policy.requires_grad_()
    spent = time.process_time() - began
    alone = chain.measured(policy, start, judge, task)
    score = with_rule(judge, task.tokenizer) if ruled else judge
    curve, ppo_seconds = chain.practised(policy, score, task, SIZES["rounds"], seed)
    return {"stages_seconds": spent, "seconds": spent + ppo_seconds, "without_ppo": alone,
            "after": chain.measured(policy, start, judge, task), "curve": [(spent + t, q) for t, q in curve]}


def keep_arms(names, seed, record):
    """The arms of a seed that the record does not hold yet."""
    if all(_record.find_row(record, arm=name, seed=seed) for name in names):
        return
    task = chain.task_of(seed)
    start = chain.tuned(task, SIZES["tuning"], seed)
    judge = chain.judge_of(start, task, seed)
    for name in names:
        _record.keep_row(record, lambda name=name: results(name, start, judge, task, seed), arm=name, seed=seed)
        print(f"seed {seed}: {name}", flush=True)


def reached(row, level):
    """CPU seconds at which the mean quality of SMOOTH batches is at the level; None if it never is."""
    for i in range(len(row["curve"]) - SMOOTH + 1):
        if fmean(quality for _, quality in row["curve"][i:i + SMOOTH]) >= level:
            return row["curve"][i + SMOOTH - 1][0]
    return None


def page_part(rows):
    """A line for each arm: the mean of the seeds, gains and seconds seed by seed."""
    ppo = {row["seed"]: row for row in rows if row["arm"] == "PPO alone"}
    lines = []
    for name in ARMS:
        found = [row for row in rows if row["arm"] == name and row["seed"] in ppo]
        if not found:
            continue
        times = []
        for row in found:
            base = ppo[row["seed"]]
            first, last = base["without_ppo"]["quality"], fmean(q for _, q in base["curve"][-SMOOTH:])
            at = reached(row, first + SHARE * (last - first))
            times.append("never" if at is None else f"{at:.0f}")
        gains = [row["after"]["quality"] - ppo[row["seed"]]["after"]["quality"] for row in found]
        lines.append([name, fmean(row["without_ppo"]["quality"] for row in found),
                      f"{fmean(row['stages_seconds'] for row in found):.0f}",
                      fmean(row["after"]["quality"] for row in found), ", ".join(f"{gain:+.2f}" for gain in gains),
                      *(fmean(row["after"][key] for row in found) for key in ("malformed", "distinct", "kl")),
                      f"{fmean(row['seconds'] for row in found):.0f}", ", ".join(times)])
    return _record.table(COLUMNS, lines)


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2"),
        parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all"),
        parser.add_argument("--record", action="store_true", help="write bench/ziya.json and docs/own_tasks.md"),
        parser.add_argument("--out", default="out/ziya", help="for the rows without --record (default: %(default)s)")))
    if chosen.small:
        SIZES.update(tuning=60, steps=12, rounds=3, answers=2, pairs=2)
        chain.SIZES.update(records=300, pairs=300, dim=16, asked=8)
    record = RECORD if chosen.record else Path(chosen.out) / "rows.json"
    for seed in chosen.seeds:
        keep_arms(chosen.arms, seed, record)
    text = page_part(_record.rows_of(record))
    if chosen.record:
        _record.put(PAGE, "ziya", text)
    print(text)


if __name__ == "__main__":
    main()
