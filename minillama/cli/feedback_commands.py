"""The commands that learn from feedback: reward (pairs -> a reward model) and ppo (a reward model -> a better policy).

Both take the user's own pairs: what is good is what the pairs say. One JSON object a line, with the texts "prompt",
"chosen" and "rejected".
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from minillama.backends import use_kernels
from minillama.cli import flags
from minillama.cli.model_arguments import add_template, load_from_args, open_model, take_template
from minillama.cli.training_commands import save
from minillama.config_checks import MOST, Range
from minillama.corpus.text_files import check_texts
from minillama.evaluate.diagnosis import diagnose_reward, summary
from minillama.evaluate.held_out import answer_tokens, answer_tokens_in, split_by_prompt, split_prompts
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.rlhf.grpo import LEARNERS
from minillama.rlhf.preferences import read_pairs, read_prompts
from minillama.rlhf.pretraining_mix import check_mixing
from minillama.rlhf.reward_file import load_reward, save_reward
from minillama.rlhf.rollout import prompts_of, sample_answers
from minillama.rlhf.sharded_ppo import forms_of, save_trained, write_text
from minillama.rlhf.train_ppo import PPOConfig, train_ppo
from minillama.rlhf.train_reward import RewardConfig, RewardRun, encode_pairs, held_out_accuracy, steps_of, train_reward
from minillama.system.claim import claims
from minillama.system.memory import require_step_memory
from minillama.train import sharded
from minillama.train.chat_template import OWN, end_of_answer, pair_function, template_for
from minillama.train.resume import own_random_state


def add_reward(commands):
    """reward --model PATH --pairs FILE.jsonl --out DIR and the fields of RewardConfig."""
    reward = flags.command(commands, "reward", run_reward, "learn from pairs which of two answers is better")
    reward.add_argument("--model", required=True, metavar="PATH", help="the fine-tuned model, a folder or file")
    reward.add_argument("--pairs", required=True, metavar="FILE", help="JSONL with prompt, chosen and rejected")
    reward.add_argument("--out", required=True, metavar="DIR", help="for the reward model")
    add_template(reward, "question_answer")
    flags.add_number(reward, "--max-new-tokens", Range(1, MOST), help="of the model's own answers, over which scores "
                     "get mean 0 and deviation 1; as in `ppo` (default: as the longest of the pairs, and two)")
    flags.add_number(reward, "--held-out-fraction", Range(1e-6, below=1), 0.1, float, "of the prompts")
    flags.add_resume(reward)
    reward.add_argument("--shard", action="store_true", help=sharded.HELP)
    flags.add_fields(reward, RewardConfig)
    flags.add_device(reward)


def add_ppo(commands):
    """ppo --model PATH --reward DIR --prompts FILE.jsonl --out DIR [--algorithm ppo|grpo|rloo] [--method full|lora]
    [--check] [--shard] and the fields of PPOConfig."""
    ppo = flags.command(commands, "ppo", run_ppo, "practise what a reward model prefers, under a KL penalty")
    ppo.add_argument("--model", required=True, metavar="PATH", help="the fine-tuned model, a folder or file")
    ppo.add_argument("--reward", required=True, metavar="DIR", help="a reward model, as `reward` writes it")
    ppo.add_argument("--prompts", required=True, metavar="FILE", help="JSONL with prompt; a file of pairs will do")
    ppo.add_argument("--out", required=True, metavar="DIR", help="for the model (full) or the adapter (lora)")
    add_template(ppo, "question_answer")
    ppo.add_argument("--algorithm", choices=LEARNERS, default="ppo", help="grpo and rloo have no value model, and four "
                     "--answers to each question (default: %(default)s)")
    ppo.add_argument("--method", choices=("full", "lora"), default="full", help="default: %(default)s")
    flags.add_fields(ppo, LoRAConfig, rank="of the adapter")
    ppo.add_argument("--pretraining-text", nargs="+", metavar="FILE", help="text mixed into the learning, so that "
                     "practice does not cost other abilities; goes with --pretraining-weight")
    flags.add_number(ppo, "--held-out-fraction", Range(1e-6, below=1), 0.1, float, "of the prompts: by their score the "
                     "best policy is kept; as in `sft` and `reward`, so that no stage has learned them")
    ppo.add_argument("--check", action="store_true", help="three iterations, nothing written: what looks wrong?")
    flags.add_resume(ppo)
    ppo.add_argument("--shard", action="store_true", help=sharded.HELP)
    flags.add_fields(ppo, PPOConfig)
    ppo.set_defaults(max_new_tokens=None)  # as the longest answer, where --prompts are pairs
    flags.add_kernels_flag(ppo)
    flags.add_device(ppo)


@claims("reward", "model", "pairs", run=True)
@sharded.in_shards
def run_reward(arguments):
    """Split the pairs by their prompts, train (`rlhf.train_reward`), normalise on the model's own answers, save."""
    config = flags.from_flags(RewardConfig, arguments)
    train, held_out = split_by_prompt(read_pairs(arguments.pairs), arguments.held_out_fraction)
    steps_of(config, len(train))
    found = weights, tokenizer, *_ = open_model(arguments, whole=True)
    template, end = choose_template(arguments, tokenizer)
    pairs = encode_pairs([*train, *held_out], tokenizer, template, weights.config.max_seq_len)
    mean = sum(len(side) for pair in pairs for side in pair) / len(pairs) / 2
    require_step_memory(weights.config, 2 * config.batch_size, 1, mean, arguments.device, size=2, vocabulary=False)
    model = use_kernels(load_from_args(arguments, found=found)[0], "torch")
    longest = max(map(len, prompts_of([pair.prompt for pair in train + held_out], tokenizer, template)))
    room = arguments.max_new_tokens or answer_tokens(train + held_out, tokenizer, weights.config.max_seq_len - longest)
    given = {**flags.facts(arguments, "template", "held_out_fraction"), "max_new_tokens": room}
    reward_model, _ = train_reward(model, train, tokenizer, config, template, folder=arguments.out,
                                   resume=arguments.resume, facts=given, kind=sharded.kind_of_run(RewardRun, arguments))
    accuracy, learned = (held_out_accuracy(reward_model, part) for part in (pairs[len(train):], pairs[:len(train)]))
    prompts = prompts_of([pair.prompt for pair in train][:256], tokenizer, template)
    rollout = sample_answers(model.eval(), prompts, end, room, seed=config.seed)
    with torch.no_grad():
        reward_model.normalise(reward_model(rollout.tokens_BT, rollout.mask_BT))
    sharded.save_scorer(save_reward, arguments.out, reward_model, tokenizer)
    step = flags.typed("ppo", "--model", arguments.model, "--reward", arguments.out, "--prompts", arguments.pairs,
                 "--template", arguments.template, "--out", f"{Path(arguments.out)}-ppo")
    print(f"{arguments.out}: orders {accuracy:.1%} of {len(held_out)} unseen pairs as they are labelled; try {step}",
          diagnose_reward(accuracy, len(held_out), learned, train + held_out), sep="\n", file=sys.stderr)


@claims("ppo", "model", "reward", "prompts", run=True)
@sharded.in_shards
def run_ppo(arguments):
    """Load policy and reward model, practise (`rlhf.train_ppo`), save."""
    given = arguments.max_new_tokens
    arguments.max_new_tokens = given or 1  # until the tokenizer is there
    config, out = flags.from_flags(PPOConfig, arguments), Path(arguments.out)
    prompts = read_prompts(arguments.prompts)
    arguments.dtype = arguments.dtype or "float32"  # small steps vanish in half precision
    check_mixing(config, arguments.pretraining_text)
    if arguments.pretraining_text:
        check_texts(arguments.pretraining_text)
    found = weights, tokenizer, *_ = open_model(arguments, whole=arguments.method == "full")
    forms = forms_of(LEARNERS[arguments.algorithm], arguments, weights)
    template, end = choose_template(arguments, tokenizer)
    longest = max(map(len, prompts_of(prompts, tokenizer, template)))
    if longest >= weights.config.max_seq_len:
        raise ValueError(f"a prompt of {longest} tokens leaves no room for an answer in a context of "
                         f"{weights.config.max_seq_len}: leave it out, or shorten it")
    room = weights.config.max_seq_len - longest
    config = replace(config, max_new_tokens=given or answer_tokens_in(arguments.prompts, tokenizer, room))
    require_step_memory(weights.config, config.batch_size // config.minibatches, config.minibatches, longest + 1,
                        arguments.device, vocabulary=False)
    model, _ = load_from_args(arguments, found=found)
    reward_model, reads = load_reward(arguments.reward, arguments.device)
    if reads is None or reads.vocab_size != tokenizer.vocab_size:
        raise ValueError(f"{arguments.reward} reads with another tokenizer than {arguments.model}: make one with "
                         "`reward` and this model")
    judged = template_for(reads)
    if judged not in (None, arguments.template) or judged == OWN and reads.chat_template != tokenizer.chat_template:
        print(f"{arguments.reward} judges answers in {judged}, and the policy is asked in {arguments.template}: its "
              f"scores mean little; give --template {judged} to both", file=sys.stderr)
    if arguments.method == "lora":
        with own_random_state(arguments.seed, arguments.device):  # all linear layers but the head; the base stays
            add_lora(model, LoRAConfig(arguments.rank, 2.0 * arguments.rank, 0.0, ("attention.*", "feed_forward.*")))
    for part in (model, reward_model.body):
        use_kernels(part, arguments.kernels)
    practice, asked = split_prompts(prompts, arguments.held_out_fraction)
    folder, config = (None, replace(config, iterations=3)) if arguments.check else (out, config)
    out.mkdir(parents=True, exist_ok=True)
    text = write_text(out / "pretraining.bin", arguments.pretraining_text, tokenizer)
    facts = flags.facts(arguments, "template", "method", *["rank"] * (arguments.method == "lora"))
    history = train_ppo(model, reward_model, tokenizer, practice, config, template, folder=folder,
                        resume=arguments.resume, pretraining_text=text, end_id=end, facts=facts, asked=asked,
                        **forms)
    if not arguments.check:
        save_trained(save, model, tokenizer, arguments)
    print(f"{out}: {summary(history, len(asked))}", file=sys.stderr)


def choose_template(arguments, tokenizer):
    """(f(prompt, answer=None) -> segments, the id that ends an answer) of the template to use (`take_template`)."""
    name = take_template(arguments, tokenizer, "question_answer")
    end = end_of_answer(name, tokenizer)
    if end is None:
        raise ValueError(f"template {name} ends an answer with no token of its own, where a score could be read: "
                         "choose another --template")
    return pair_function(name, tokenizer), end
