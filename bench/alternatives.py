"""Other ways to learn from the tour's feedback: best of n, expert iteration, a written rule, DPO, chain of hindsight,
GRPO, RLOO.

All start from the tour's tuned model, with the reward model and the pairs that PPO has, and are held to the same exam.
The chain of the tour comes first, then five minutes more; the report in --out has the picture. What was trained is
kept there, so that a run that was stopped goes on.
"""

import copy
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from statistics import fmean

import torch

from lessons.other_feedback import (
    DPOConfig,
    RuleReward,
    best_of_n_bound,
    best_of_n_policy,
    expert_round,
    hindsight,
    hindsight_sequences,
    kl_divergence,
    n_answers,
    train_dpo,
)
from minillama.backends import use_kernels
from minillama.checkpoint.pth import read_plain
from minillama.evaluate.exam import examine
from minillama.plots import CONTEXT, CONTRAST, ORACLE, OURS, figure, svg
from minillama.rlhf.grpo import GRPO, RLOO
from minillama.rlhf.rollout import prompts_of
from minillama.rlhf.train_ppo import train_ppo
from minillama.system.files import atomic_write
from minillama.tour.report import caption, section
from minillama.tour.tour_rlhf import PENALIZED
from minillama.train.resume import crc_of
from minillama.train.sft import SftConfig, fine_tune

DRAWS, BEST_OF = 32, (2, 4, 8, 16)  # answers to each question, and the n of best of n
ROUNDS, EXPERTS = 3, 8  # of expert iteration; answers of which the best is learned
EXPERT = SftConfig(steps=16, batch_size=16, max_lr=5e-4, warmup_steps=2, eval_every=0)
HINDSIGHT = SftConfig(steps=300, max_lr=3e-3, eval_every=0)
DPO = DPOConfig(max_lr=2e-4, beta=0.5)
COLOURS = {"PPO": OURS, "best of n": ORACLE, "expert iteration": CONTRAST}


def kind_and_in_steps(text):
    """The written rule: points for steps, for a friendly first sentence and a friendly last one; seen from outside, as
    somebody would write it who has read some of the forum."""
    answer = text.rpartition("Answer:")[2].strip()
    opening = answer.partition("First")[0].strip()
    return float("First " in answer) + (" Then " in answer) + opening.endswith("!") + answer.endswith("!")


def alternatives_stage(report, model, tokenizer, feedback, reward_model, penalized):
    """Every way trained and examined -> {name: [(kl, score, measured, distinct), ...]}, last the one it ends with."""
    report.say("  other ways: best of n, expert iteration, a rule, DPO, chain of hindsight, GRPO, "
               "RLOO (lessons/other_feedback.py, minillama/rlhf/grpo.py)")
    task = use_kernels(model, "torch"), reward_model, tokenizer, feedback, report.config.seed
    ways = {"PPO": [row_of(penalized.after)]}
    settings = {"expert": asdict(EXPERT), "hindsight": asdict(HINDSIGHT), "dpo": asdict(DPO), "ppo": asdict(PENALIZED)}
    crcs = {name: crc_of(part.state_dict().values()) for name, part in (("judge", reward_model), ("policy", model))}
    settings |= {**crcs, **feedback.key}

    def check(found):
        check_rows([{**measured, 0: kl, 1: score, 2: distinct} for kl, score, measured, distinct in found["rows"]],
                   (0, 1, 2, *feedback.watched))

    for name, learn in WAYS.items():
        ways[name] = [tuple(row) for row in kept(report, name.replace(" ", "-"), lambda folder, learn=learn: {
            "rows": list(learn(*task))}, check, **settings)["rows"]]
    for name, rows in ways.items():
        kl, score, measured, distinct = rows[-1]
        report.say(f"    {name:19}KL {kl:5.2f}, score {score:+.2f}, "
                   + "".join(f"{what} {value:+.2f}, " for what, value in measured.items()) + f"{distinct} distinct")
    ends, start = {name: rows[-1] for name, rows in ways.items()}, row_of(penalized.before)
    better = [name for name, row in ends.items() if row[1] > start[1]]
    report.check("other ways", f"all {len(ends)} end with a higher score than the model that they began as",
                 f"{len(better)}: " + ", ".join(f"{name} {row[1]:+.2f} at {row[0]:.1f} nats"
                                               for name, row in ends.items()),
                 len(better) == len(ends), "lessons/other_feedback.py", "lessons/28_other_feedback.py")
    report.pages.append(alternatives_page(ways, start, penalized.history))
    return ways


def kept(report, name, make, check, **settings):
    """What `make(folder)` returns, a dict of numbers and tensors, made once for the same settings. A file that is
    damaged, or that `check(found)` does not like, is told and made anew."""
    folder = report.folder(name, **settings)
    path = folder / "result.pt"
    if path.exists():
        try:
            check(found := dict(read_plain(path)))
        except (ValueError, TypeError, LookupError):
            report.say(f"  {path} is damaged: it is made anew")
        else:
            report.say(f"  found trained in {folder}")
            return found
    result = make(folder)
    with atomic_write(path) as file:
        torch.save(result, file)
    return result


def check_rows(rows, names):
    """TypeError or LookupError unless `rows` are dicts with a number for each of the names, one at least."""
    if not (isinstance(rows, list) and rows and all(isinstance(row[name], (int, float)) for row in rows
                                                    for name in names)):
        raise TypeError("not rows of numbers")


def row_of(exam):
    """What is kept of an exam."""
    return exam.kl, exam.score, exam.measured, exam.distinct


def best_of_n(model, reward_model, tokenizer, feedback, seed):
    """Best of n for n in BEST_OF, by the reward model, from DRAWS answers to each question.

    The answers to a question, each of probability 1 / DRAWS, stand for the policy; the best of n of that is computed,
    not sampled (`best_of_n_policy`), and so is its KL: an estimate from below, where the bound is one from above.
    """
    drawn = [drawn_answers(model, reward_model, tokenizer, feedback, question, seed * 1000 + i)
             for i, question in enumerate(feedback.asked)]
    for n in BEST_OF:
        best = [best_of_n_policy(p_K, scores_K, n) for p_K, scores_K, _, _ in drawn]
        yield (fmean(kl_divergence(q_K, p_K) for q_K, (p_K, *_) in zip(best, drawn, strict=True)),
               fmean((q_K @ scores_K.double()).item() for q_K, (_, scores_K, *_) in zip(best, drawn, strict=True)),
               {name: fmean((q_K @ values[name]).item() for q_K, (_, _, values, _) in zip(best, drawn, strict=True))
                for name in feedback.watched},
               len({texts[int(q_K.argmax())] for q_K, (*_, texts) in zip(best, drawn, strict=True)}))


def drawn_answers(model, reward_model, tokenizer, feedback, question, seed):
    """The different answers among DRAWS to one question: (probabilities, scores, {measure: values}, texts)."""
    rollout, scores_1N = n_answers(model, reward_model, prompts_of([question], tokenizer), tokenizer.eos_id, DRAWS,
                                   feedback.max_new_tokens, seed)
    rows = dict(zip([text.strip() for text in rollout.texts(tokenizer)], range(DRAWS), strict=True))
    count = Counter(text.strip() for text in rollout.texts(tokenizer))
    p_K = torch.tensor([count[text] / DRAWS for text in rows], dtype=torch.float64)
    measured = {name: torch.tensor([float(measure(question, text)) for text in rows], dtype=torch.float64)
                for name, measure in feedback.watched.items()}
    return p_K, scores_1N[0, list(rows.values())], measured, list(rows)


def expert_iteration(model, reward_model, tokenizer, feedback, seed):
    """ROUNDS of tuning on the best of EXPERTS answers, examined after each."""
    policy, prompts = copy.deepcopy(model), prompts_of(feedback.practice, tokenizer)
    per_round = EXPERT.steps * EXPERT.batch_size
    for i in range(ROUNDS):
        asked = [prompts[j % len(prompts)] for j in range(i * per_round, (i + 1) * per_round)]
        expert_round(policy, reward_model, asked, tokenizer.eos_id, EXPERTS, replace(EXPERT, seed=seed * 100 + i),
                     feedback.max_new_tokens)
        yield examined(policy, model, reward_model, tokenizer, feedback)


def dpo(model, reward_model, tokenizer, feedback, seed):
    """DPO on the pairs that the reward model learned from."""
    policy = copy.deepcopy(model)
    train_dpo(policy, feedback.pairs, tokenizer, replace(DPO, seed=seed), progress=False)
    yield examined(policy, model, reward_model, tokenizer, feedback)


def chain_of_hindsight(model, reward_model, tokenizer, feedback, seed):
    """Tuned on the same pairs (those that the model can read at once), each answer under its name; asked for a good
    one."""
    policy = copy.deepcopy(model).requires_grad_(True)
    sequences = [sequence for sequence in hindsight_sequences(feedback.pairs, tokenizer, seed)
                 if len(sequence.tokens) <= model.config.max_seq_len]
    fine_tune(policy, sequences, sequences[:1], replace(HINDSIGHT, seed=seed), progress=False)
    yield examined(policy, model, reward_model, tokenizer, feedback, hindsight)


def ppo_on_a_rule(model, reward_model, tokenizer, feedback, seed):
    """PPO with the written rule in the reward model's place, with the same KL penalty."""
    policy = copy.deepcopy(model).requires_grad_(True)
    rule = RuleReward(kind_and_in_steps, tokenizer, copy.deepcopy(model), model.config.dim)
    config = replace(PENALIZED, seed=seed, max_new_tokens=feedback.max_new_tokens)
    train_ppo(policy, rule, tokenizer, feedback.practice, config, progress=False)
    yield examined(policy, model, reward_model, tokenizer, feedback)


def ppo_without_values(learner, model, reward_model, tokenizer, feedback, seed):
    """GRPO or RLOO with PPO's settings and as many answers, four to each question."""
    policy = copy.deepcopy(model).requires_grad_(True)
    config = replace(PENALIZED, seed=seed, max_new_tokens=feedback.max_new_tokens)
    train_ppo(policy, reward_model, tokenizer, feedback.practice, config, progress=False, learner=learner)
    yield examined(policy, model, reward_model, tokenizer, feedback)


def examined(policy, model, reward_model, tokenizer, feedback, asked_with=None):
    """The exam that PPO sat, as a row."""
    return row_of(examine(policy.eval(), model, reward_model, tokenizer, feedback.asked, feedback.watched,
                          feedback.max_new_tokens, asked_with=asked_with))


WAYS = {"best of n": best_of_n, "expert iteration": expert_iteration, "DPO": dpo,
        "chain of hindsight": chain_of_hindsight, "rule": ppo_on_a_rule,
        "GRPO": partial(ppo_without_values, GRPO), "RLOO": partial(ppo_without_values, RLOO)}


def alternatives_page(ways, start, history):
    """Reward against KL: what each way gets for each nat; PPO's whole path."""
    picture, axes = figure("What each way gets for a nat", "KL from the tuned model, nats an answer",
                           "reward model's score")
    axes.plot([row["kl"] for row in history], [row["score"] for row in history], color=OURS, alpha=0.5)
    for name, rows in ways.items():
        colour = COLOURS.get(name, CONTEXT)
        path = rows if name == "PPO" else [start, *rows]
        xs, ys = [row[0] for row in path], [row[1] for row in path]
        axes.plot(xs, ys, color=colour, marker="o", markersize=3, linestyle="-" if len(rows) > 1 else "none")
        left = name == "best of n"  # keeps to the left of the paths that go further
        place = (-6, 5) if left else (6, -20 if name == "PPO" else -5)
        axes.annotate(name, (xs[-1], ys[-1]), place, textcoords="offset points", color=colour,
                      ha="right" if left else "left", annotation_clip=False)
    axes.set_xlim(left=0, right=1.35 * max(row[0] for rows in ways.values() for row in rows) + 0.1)
    axes.set_ylim(top=axes.get_ylim()[1] + 0.1)
    best = ways["best of n"][-1]
    words = "; ".join(f"{name} {rows[-1][1]:+.2f} at {rows[-1][0]:.1f} nats" for name, rows in ways.items())
    truth = "; ".join(f"{name} {rows[-1][2]['quality']:+.2f}, {rows[-1][3]} distinct" for name, rows in ways.items()
                      if "quality" in rows[-1][2])
    return section(
        "Other ways to learn from the same feedback",
        "Best of n writes several answers and shows the one that the reward model likes best; nothing is learned. "
        "Expert iteration tunes the model on such answers, in rounds. DPO learns from the pairs themselves, without a "
        "reward model. Chain of hindsight reads good and bad answers under their names, and is asked for a good one. "
        "The rule pays for friendly words and steps instead of votes. GRPO and RLOO are PPO without a value model: "
        "four answers to one question are held against each other.",
        svg(picture, words),
        caption(f"The faint line is PPO's path (at most {max(row['kl'] for row in history):.1f} nats on the way). "
                f"Score: {words}. Before: {start[1]:+.2f}." + (f" Hidden quality: {truth}." if truth else "")
                + f" Best of {BEST_OF[-1]} is at {best[0]:.2f} nats as estimated from {DRAWS} answers a question; the "
                f"formula log n - (n - 1) / n, a bound from above, says {best_of_n_bound(BEST_OF[-1]):.2f}."))


def main(argv=None):
    import _rounds

    from minillama.tour.tour import TourReport, forum_chain, write_results
    from minillama.tour.tour_config import TourConfig

    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--seed", type=int, default=0, help="default: %(default)s"),
        parser.add_argument("--out", default="out/alternatives", help="for the report (default: %(default)s)")))
    report, began = TourReport(chosen.out, TourConfig(seed=chosen.seed)), time.perf_counter()
    alternatives_stage(report, *forum_chain(report))
    write_results(report, time.perf_counter() - began)


if __name__ == "__main__":
    main()
