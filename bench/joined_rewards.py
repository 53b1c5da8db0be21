"""Two trained reward models, helpful and safe, on pairs whose labels disagree: Llama 2's rule against their mean.

The commands `pretrain` and `sft` make one model of a forum where a helpful answer may be unsafe (`_dangers`); for each
seed `reward` makes the two models of 1,600 and 800 pairs. Of eight answers to questions that no stage has learned the
best is taken by each score, and held against the truth. --practice N adds N rounds of PPO under the rule and under the
mean. A minute of one core for each seed without it; what was trained is kept in --out.
"""

import sys
from pathlib import Path

import _dangers
import _rounds

COLUMNS = ("seed", "wrong labels", "labels disagree", "helpful model right", "safe model right", "what", "by",
           "quality", "unsafe", "worth")
SIZES = {"posts": 9000, "records": 2400, "pairs": 1600, "asked": 100, "answers": 8}
STEPS = {"pretrain": 400, "sft": 150}
PIECES, ROOM = 512, 40


def run(command, *words):
    if code := command([str(word) for word in words]):
        raise SystemExit(code)


def tuned(out):
    """The model that every seed begins with -> its folder."""
    from minillama.cli.command_line import main as minillama

    base, sft = out / "base", out / "sft"
    if not (base / "params.json").exists():
        _dangers.write_text(out / "text", SIZES["posts"])
        if not (out / "t.model").exists():
            run(minillama, "tokenizer", "train", "--text", out / "text", "--vocab-size", PIECES, "--out",
                out / "t.model")
        run(minillama, "pretrain", "--text", out / "text", "--tokenizer", out / "t.model", "--out", base, "--steps",
            STEPS["pretrain"], *resumed(base))
    if not (sft / "params.json").exists():
        _dangers.write_answers(out / "answers.jsonl", SIZES["records"])
        run(minillama, "sft", "--model", base, "--data", out / "answers.jsonl", "--method", "full", "--template",
            "question_answer", "--steps", STEPS["sft"], "--out", sft, *resumed(sft))
    return sft


def resumed(folder):
    return ["--resume"] * any(folder.glob("*_state.pt"))


def judges(sft, folder, seed, wrong):
    """The two reward models of a seed, in `folder` -> the share of prompts on which their labels disagree."""
    from minillama.cli.command_line import main as minillama

    helpful, safe, disagree = _dangers.labelled(seed, SIZES["pairs"], wrong)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("helpful", helpful), ("safe", safe)):
        _dangers.write_rows(folder / f"{name}.jsonl", rows)
        if not (folder / name / "params.json").exists():
            run(minillama, "reward", "--model", sft, "--pairs", folder / f"{name}.jsonl", "--max-lr", "2e-3", "--seed",
                seed, "--max-new-tokens", ROOM, "--out", folder / name, *resumed(folder / name))
    return disagree


def practised(sft, folder, seed, rounds, by):
    """`llama2-chat ppo` under the rule or under the mean of the two normalised scores -> its folder."""
    import two_rewards

    out, plain = folder / f"ppo-{by}", two_rewards.JoinedReward.joined
    if by == "mean":
        two_rewards.JoinedReward.joined = mean_score
    try:
        if not (out / "params.json").exists():
            run(two_rewards.main, "ppo", "--model", sft, "--reward", folder / "helpful", "--safe", folder / "safe",
                "--safety-pairs", folder / "safe.jsonl", "--prompts", folder / "helpful.jsonl", "--iterations", rounds,
                "--lr", "2e-3", "--value-lr", "3e-3", "--seed", seed, "--out", out, *resumed(out))
    finally:
        two_rewards.JoinedReward.joined = plain
    return out


def mean_score(self, tokens_BT, mask_BT):
    return (self.helpful(tokens_BT, mask_BT) + self.safe(tokens_BT, mask_BT)) / 2


def share_right(model, reads, pairs, true):
    """Share of pairs that a reward model puts in the order of the truth; pairs of equal truth are left out."""
    from minillama.evaluate.exam import order_in_truth
    from minillama.rlhf.train_reward import encode_pairs, held_out_scores

    return order_in_truth(*held_out_scores(model, encode_pairs(pairs, reads)), pairs, true)


def best_by(score, policy, reads, prompts, seed):
    """The text of the best of SIZES["answers"] answers to each prompt, by each of several scores: {name: texts}."""
    from minillama.rlhf.ppo import punish_missing_eos
    from minillama.rlhf.rollout import sample_answers

    n = SIZES["answers"]
    rollout = sample_answers(policy, [prompt for prompt in prompts for _ in range(n)], reads.eos_id, ROOM, seed=seed)
    texts, found = rollout.texts(reads), {}
    for name, function in score.items():
        score_B = punish_missing_eos(function(rollout.tokens_BT, rollout.mask_BT), rollout.ended_B)
        found[name] = [texts[n * i + best] for i, best in enumerate(score_B.view(-1, n).argmax(-1).tolist())]
    return found | {"any": texts[::n]}


def in_truth(questions, texts):
    """(mean quality, share unsafe, mean worth) of an answer to each question."""
    rows = [(_dangers.forum.quality(q, text), _dangers.is_unsafe(q, text), _dangers.worth(q, text))
            for q, text in zip(questions, texts, strict=True)]
    return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))


def rows_of(seed, wrong, rounds, out):
    """One seed -> rows in the order of COLUMNS."""
    import torch
    import two_rewards

    from minillama.checkpoint import load_model
    from minillama.evaluate.held_out import split_by_prompt
    from minillama.rlhf.llama2_chat import JoinedReward
    from minillama.rlhf.preferences import read_pairs
    from minillama.rlhf.rollout import prompts_of, sample_answers

    sft, folder = tuned(out), out / f"{seed}-{wrong:g}"
    disagree = judges(sft, folder, seed, wrong)
    joint, reads = two_rewards.load_joined(folder / "helpful", folder / "safe", folder / "safe.jsonl")
    held_out, safety = (split_by_prompt(read_pairs(folder / f"{name}.jsonl"), 0.1)[1] for name in ("helpful", "safe"))
    known = (share_right(joint.helpful, reads, held_out, _dangers.forum.quality),
             share_right(joint.safe, reads, safety, lambda q, a: -_dangers.is_unsafe(q, a)))
    asked = list(dict.fromkeys(pair.prompt for pair in held_out))[:SIZES["asked"]]
    prompts, first = prompts_of(asked, reads), (seed, wrong, disagree, *known)
    with torch.no_grad():
        unmarked = JoinedReward(joint.helpful, joint.safe, level=joint.level)
        scores = {"rule": joint.joined, "rule, no marks": unmarked.joined,
                  "mean": lambda *given: mean_score(joint, *given), "helpful": joint.helpful}
        for by, texts in best_by(scores, load_model(sft)[0].eval(), reads, prompts, seed).items():
            yield *first, f"best of {SIZES['answers']}", by, *in_truth(asked, texts)
        for by in ("rule", "mean") * bool(rounds):
            with torch.enable_grad():
                made = practised(sft, folder, seed, rounds, by)
            rollout = sample_answers(load_model(made)[0].eval(), prompts, reads.eos_id, ROOM, seed=seed)
            yield *first, f"PPO, {rounds} rounds", by, *in_truth(asked, rollout.texts(reads))


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--wrong", type=float, default=0.0, help="share of wrong labels of safety (default: 0)"),
        parser.add_argument("--practice", type=int, default=0, metavar="N", help="rounds of PPO (default: none)"),
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2"),
        parser.add_argument("--out", type=Path, default="out/joined_rewards", help="for what is trained (default: "
                            "%(default)s)")))
    sys.path.append(str(_rounds.ROOT / "tools"))
    if chosen.small:
        SIZES.update(posts=300, records=96, pairs=200, asked=8, answers=2)
        STEPS.update(pretrain=40, sft=40)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for seed in chosen.seeds:
        for row in rows_of(seed, chosen.wrong, chosen.practice, chosen.out):
            print("| " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row) + " |", flush=True)


if __name__ == "__main__":
    main()
