"""A short chain on the little world `harbour`: a small LLaMA tuned on answers alone, a reward model, PPO by its
defaults. It costs tens of CPU seconds instead of minutes, so that ways and numbers of steps can be compared."""

import copy
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import _worlds

WORLD = "harbour"
SIZES = {"records": 2500, "pairs": 2400, "dim": 64, "layers": 2, "pieces": 512, "context": 256, "asked": 200}


class Task(NamedTuple):
    """What a seed's files hold; questions of `asked` and of the held-out sequences stand nowhere else."""

    tokenizer: object
    sequences: list  # to tune on
    held_out: list
    pairs: list  # preferred and rejected answers
    practice: list  # questions
    asked: list
    max_new_tokens: int


def task_of(seed):
    """The world's answers and pairs, and a tokenizer of their words."""
    from minillama.tokenizer import train_bpe
    from minillama.tour.tour_own import own_answers, own_feedback, own_files

    with tempfile.TemporaryDirectory() as folder:
        _worlds.write_files(folder, WORLD, seed, 0, SIZES["records"], SIZES["pairs"])
        records, pairs = own_files(Path(folder) / "sft.jsonl", Path(folder) / "pairs.jsonl")
    said = [message["content"] for record in records for message in record.messages]
    tokenizer = train_bpe(said, SIZES["pieces"], hard_vocab_limit=False, progress=False)
    _, (sequences, held_out) = own_answers(records, tokenizer, SIZES["context"])
    made = own_feedback(pairs, tokenizer, SIZES["context"])
    return Task(tokenizer, sequences, held_out, made.pairs, made.practice,
                (made.asked * SIZES["asked"])[:SIZES["asked"]], made.max_new_tokens)


def tuned(task, steps, seed):
    """A model of random weights after so many steps of fine-tuning."""
    import torch

    from minillama.attention import torch_attention
    from minillama.config import ModelConfig
    from minillama.train.sft import SftConfig, fine_tune
    from minillama.transformer import Transformer

    torch.manual_seed(seed)
    model = Transformer(ModelConfig(SIZES["dim"], SIZES["layers"], 4, task.tokenizer.vocab_size,
                                    max_seq_len=SIZES["context"]), torch_attention)
    fine_tune(model, task.sequences, task.held_out, SftConfig(steps=steps, eval_every=0, seed=seed), progress=False)
    return model


def judge_of(model, task, seed):
    """A reward model on the tuned one, its scores normalised on that one's own answers."""
    import torch

    from minillama.rlhf.rollout import prompts_of, sample_answers
    from minillama.rlhf.train_reward import RewardConfig, train_reward

    judge, _ = train_reward(model, task.pairs, task.tokenizer, RewardConfig(max_lr=2e-3, seed=seed), progress=False)
    rollout = sample_answers(model, prompts_of(task.practice[:256], task.tokenizer), task.tokenizer.eos_id,
                             task.max_new_tokens, seed=seed)
    with torch.no_grad():
        judge.normalise(judge(rollout.tokens_BT, rollout.mask_BT))
    return judge.eval()


def practised(policy, score, task, rounds, seed):
    """PPO of `policy` in place -> ([(CPU seconds since the start, true quality) of each round's answers], CPU seconds
    in all). The first answers are those before anything is learned."""
    from minillama.rlhf.train_ppo import PPOConfig, train_ppo

    world, began, seen = _worlds.WORLDS[WORLD], time.process_time(), []
    questions = world.questions()

    def note(question, answer):
        seen.append((time.process_time() - began, question, answer))
        return 0.0

    config = PPOConfig(iterations=rounds, seed=seed, max_new_tokens=task.max_new_tokens)
    train_ppo(policy.requires_grad_(), score, task.tokenizer, task.practice, config, watch={"note": note},
              progress=False)
    spent, size = time.process_time() - began, config.batch_size
    batches = [seen[i:i + size] for i in range(0, len(seen), size)]
    return [(batch[0][0], fmean(world.judged(questions[q], answer)[0] for _, q, answer in batch))
            for batch in batches], spent


def measured(policy, start, judge, task):
    """What a policy's answers to unseen questions are worth: quality, malformed, ended, distinct, score, KL."""
    import own_tasks

    from minillama.evaluate.exam import examine

    exam = examine(policy.eval(), start, judge, task.tokenizer, task.asked, max_new_tokens=task.max_new_tokens)
    return own_tasks.measured(policy, task.tokenizer, WORLD, task.asked) | {"score": exam.score, "kl": exam.kl}


def a_copy(model):
    return copy.deepcopy(model).requires_grad_()
