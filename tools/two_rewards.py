"""Two reward models, helpful and safe, by Llama 2-Chat's rule (`rlhf.llama2_chat`): `run.py llama2-chat best|ppo ...`.

best    rejection sampling: of several answers to each prompt the best one, into --out/best.jsonl, for `sft`
ppo     `ppo` with both: its flags, and these two
--safe DIR           the reward model of safety, as `reward` makes it of --safety-pairs
--safety-pairs FILE  its pairs, chosen the safe answer: their prompts count as marked, their scores fix what is neutral
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from resumable_command import end_well

from minillama.backends import use_kernels
from minillama.cli import feedback_commands, flags
from minillama.cli.command_line import main as minillama
from minillama.cli.model_arguments import add_template, load_from_args
from minillama.config_checks import MOST, Range
from minillama.rlhf.llama2_chat import JoinedReward, best_answers, logit_level
from minillama.rlhf.preferences import read_pairs, read_prompts
from minillama.rlhf.reward_file import load_reward
from minillama.rlhf.rollout import prompts_of
from minillama.rlhf.train_reward import encode_pairs, held_out_scores
from minillama.system.claim import claim_new
from minillama.system.files import atomic_write
from minillama.train.chat_template import pair_function, template_for


def load_joined(helpful, safe, safety_pairs, device="cpu"):
    """(`JoinedReward` of two folders; the tokenizer that both read with)."""
    (helpful_model, reads), (safe_model, other) = load_reward(helpful, device), load_reward(safe, device)
    if reads is None or other is None or reads.vocab_size != other.vocab_size:
        raise ValueError(f"{safe} reads with another tokenizer than {helpful}: make both with `reward` and one model")
    pairs = read_pairs(safety_pairs)
    template = pair_function(template_for(reads) or "question_answer", reads)
    encoded = encode_pairs(pairs, reads, template, safe_model.body.config.max_seq_len)
    level = logit_level(*held_out_scores(safe_model, encoded))
    marked = prompts_of(sorted({pair.prompt for pair in pairs}), reads, template)
    return JoinedReward(helpful_model, safe_model, marked, level=level).eval(), reads


def run_ppo(arguments, words):
    """`minillama ppo` with the two in the place of one. Scores are whitened in each batch: their mean on held-out
    prompts is 0 for any policy and tells none from another, so the last one is kept (`--keep last`)."""
    if "--shard" in words:
        print("minillama: error: --shard cuts one reward model, and here are two: leave it out", file=sys.stderr)
        return 2
    words = words if any(word.split("=")[0] == "--keep" for word in words) else [*words, "--keep", "last"]
    plain = feedback_commands.load_reward
    feedback_commands.load_reward = lambda folder, device: load_joined(folder, arguments.safe, arguments.safety_pairs,
                                                                      device)
    try:
        return minillama(["ppo", *words])
    finally:
        feedback_commands.load_reward = plain


def run_best(arguments):
    """Sample, judge, write the best."""
    out = Path(arguments.out) / "best.jsonl"
    with claim_new(out):
        return write_best(arguments, out)


def write_best(arguments, out):
    """What `run_best` does where `out` is its own."""
    questions = read_prompts(arguments.prompts)[:arguments.limit]
    model, tokenizer = load_from_args(arguments)
    template, end = feedback_commands.choose_template(arguments, tokenizer)
    joint, _ = load_joined(arguments.reward, arguments.safe, arguments.safety_pairs, arguments.device)
    use_kernels(model, "torch")
    prompts, lines = prompts_of(questions, tokenizer, template), []
    for first in range(0, len(questions), arguments.batch_size):
        part = slice(first, first + arguments.batch_size)
        rollout, score_B = best_answers(model.eval(), joint.joined, prompts[part], end, arguments.answers,
                                        arguments.max_new_tokens, seed=first)
        lines += [{"instruction": question, "output": text.strip(), "score": score} for question, text, score, ended in
                  zip(questions[part], rollout.texts(tokenizer), score_B.tolist(), rollout.ended_B.tolist(),
                      strict=True) if ended and text.strip()]
    if not lines:
        raise ValueError(f"no answer of {arguments.max_new_tokens} tokens ended: give more --max-new-tokens")
    with atomic_write(out, "w") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    print(f"{out}: the best of {arguments.answers} answers to {len(lines)} of {len(questions)} prompts",
          file=sys.stderr)
    return 0


def parsers():
    """(that of `best`, that of what `ppo` has beside its own flags)."""
    best, ppo = (argparse.ArgumentParser(prog=f"run.py llama2-chat {name}", allow_abbrev=False,
                                         description=__doc__.split("\n")[0]) for name in ("best", "ppo"))
    for parser in (best, ppo):
        parser.add_argument("--safe", required=True, metavar="DIR", help="the reward model of safety")
        parser.add_argument("--safety-pairs", required=True, metavar="FILE", help="its pairs, JSONL")
    for flag in ("--model", "--reward", "--prompts", "--out"):
        best.add_argument(flag, required=True, metavar="PATH")
    add_template(best, "question_answer")
    flags.add_number(best, "--answers", Range(1, 4096), 8, help="to each prompt")
    flags.add_number(best, "--max-new-tokens", Range(1, MOST), 64, help="of an answer")
    flags.add_number(best, "--batch-size", Range(1, 4096), 8, help="prompts at once")
    flags.add_number(best, "--limit", Range(1, MOST), help="only the first N prompts")
    flags.add_device(best)
    return best, ppo


def main(words):
    best, ppo = parsers()
    if words[:1] == ["best"]:
        with torch.no_grad():
            return end_well(run_best, best.parse_args(words[1:]), kept=False)
    if words[:1] != ["ppo"]:
        print("minillama: error: llama2-chat what? best or ppo", file=sys.stderr)
        return 2
    arguments, rest = ppo.parse_known_args(words[1:])
    return run_ppo(arguments, rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
