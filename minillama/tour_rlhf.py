"""The tour's learning from feedback: votes become a reward model, and PPO turns a model that answers like the forum
into one that answers well; without its leash the same program learns to please the reward model instead.

The forum knows how good every answer really is (`corpus.forum.quality`). Nothing here learns from that: it is the
ruler by which the tour sees what learning from votes has done.
"""

import copy
import random
import zlib
from dataclasses import asdict, dataclass, replace

import torch

from minillama.backends import use_kernels
from minillama.checkpoint import save_model
from minillama.corpus import forum
from minillama.files import atomic_write
from minillama.rlhf.ppo import kl_estimate, punish_missing_eos
from minillama.rlhf.preferences import label_ceiling, thread_pairs
from minillama.rlhf.reward_model import RewardModel
from minillama.rlhf.rollout import answer_logits, log_probs_of, sample_answers
from minillama.rlhf.train_ppo import STATE_FILE, PPOConfig, train_ppo
from minillama.rlhf.train_reward import RewardConfig, encode_pairs, held_out_accuracy, score_pairs, train_reward
from minillama.tour_rlhf_pages import answers_page, hacking_page, ppo_page, reward_page
from minillama.tour_sft import fits
from minillama.train.sequence_loss import encode_segments
from minillama.train.templates import question_answer

PAIRS, HELD_OUT_PAIRS = 2400, 600
ASKED = 128  # questions that are asked before and after, and never in training
REWARD = RewardConfig(max_lr=2e-3)
LEASHED = PPOConfig(iterations=25, lr=2e-3, kl_coefficient=0.15, kl_target=3.0, kl_horizon=300.0)
FREE = replace(LEASHED, kl_coefficient=0.0)
WATCHED = {"quality": forum.quality, "sound": fits}  # measured of every batch, never learned from


@dataclass(frozen=True)
class Exam:
    """A policy's answers to the held-out questions: texts, and means of what they are worth."""

    answers: list
    score: float  # the reward model's, in standard deviations of the starting policy's answers
    quality: float  # the hidden truth
    sound: float  # share that the forum could have written
    kl: float  # nats an answer, from the starting policy
    distinct: int  # answers unlike all before them


def reward_stage(road, model, tokenizer):
    """A reward model from the forum's votes, normalised on the policy's own answers."""
    road.say("  reward model: what the forum's votes prefer (minillama/rlhf/train_reward.py)")
    model, seed = fused(model), road.config.seed
    train, held_out = pairs_of(f"{seed} votes", PAIRS), pairs_of(f"{seed} held-out votes", HELD_OUT_PAIRS)

    def make(folder):
        reward_model, history = train_reward(model, train, tokenizer, config, progress=road.config.progress)
        rollout = sample_answers(model, prompts_of(questions_of(seed)[0][:256], tokenizer), tokenizer.eos_id,
                                 LEASHED.max_new_tokens, seed=seed)
        with torch.no_grad():
            reward_model.normalise(reward_model(rollout.tokens_BT, rollout.mask_BT))
        return {"reward_model": reward_model.state_dict(), "history": history}

    config = replace(REWARD, seed=seed)
    found = kept(road, "reward", make, train=asdict(config), pairs=PAIRS, policy=fingerprint(model))
    reward_model = RewardModel(copy.deepcopy(model), model.config.dim).eval().requires_grad_(False)
    reward_model.load_state_dict(found["reward_model"])
    encoded = encode_pairs(held_out, tokenizer)
    accuracy, ceiling = held_out_accuracy(reward_model, encoded), label_ceiling(held_out, forum.quality)
    road.expect("reward model", f"at most 0.03 below what a judge who knew the truth would score on these noisy labels "
                f"({ceiling:.3f})", f"{accuracy:.3f} of {len(held_out)} unseen pairs", accuracy > ceiling - 0.03,
                "minillama/rlhf/train_reward.py", "lessons/25_reward_model.py")
    with torch.no_grad():
        chosen, rejected = score_pairs(reward_model, encoded)
    road.pages.append(reward_page(chosen.tolist(), rejected.tolist(), accuracy, ceiling))
    return reward_model


def ppo_stage(road, model, reward_model, tokenizer):
    """PPO twice from the same start, with its leash and without -> the policy that was on the leash."""
    model, (practice, asked) = fused(model), questions_of(road.config.seed)
    before = exam(model, model, reward_model, tokenizer, asked)
    road.say(f"  PPO: {LEASHED.iterations} rounds of {LEASHED.batch_size} answers (minillama/rlhf/train_ppo.py)\n"
             f"    before: hidden quality {before.quality:+.2f}")
    policy, history = improved(road, "ppo", model, reward_model, tokenizer, practice, LEASHED)
    after = exam(policy, model, reward_model, tokenizer, asked)
    rise, ones = after.quality - before.quality, sum(row["first_ratio"] == 1.0 for row in history)
    road.expect("PPO", f"on {ASKED} unseen questions the hidden quality rises by 1.5 or more, within 8 nats",
                f"{before.quality:+.2f} to {after.quality:+.2f}, KL {after.kl:.1f}", rise >= 1.5 and 0 < after.kl < 8,
                "minillama/rlhf/train_ppo.py", "lessons/27_ppo.py")
    road.expect("PPO's ratio", f"pi / pi_old exactly 1 before the first update of all {len(history)} batches",
                f"{ones}", ones == len(history), "minillama/rlhf/rollout.py", "lessons/27_ppo.py")
    free, free_history = improved(road, "ppo-free", model, reward_model, tokenizer, practice, FREE)
    gamed = exam(free, model, reward_model, tokenizer, asked)
    road.expect("without the leash", "a higher score than on the leash, for a hidden quality lower by 1 or more",
                f"score {gamed.score:+.2f} ({after.score:+.2f} on the leash), hidden quality {gamed.quality:+.2f} "
                f"({after.quality:+.2f}), {gamed.sound:.0%} sound ({after.sound:.0%}), KL {gamed.kl:.0f}",
                gamed.score > after.score and gamed.quality <= after.quality - 1,
                "minillama/rlhf/ppo.py", "lessons/27_ppo.py")
    for question, *texts in list(zip(asked, before.answers, after.answers, gamed.answers, strict=True))[:2]:
        road.say("\n".join(f"    {name:9}{text}" for name, text in
                           zip(("", "before:", "PPO:", "no leash:"), (question, *texts), strict=True)))
    road.pages += [ppo_page(history), hacking_page(history, free_history, after, gamed),
                   answers_page(asked, before, after, gamed)]
    return policy


def improved(road, name, model, reward_model, tokenizer, questions, config):
    """A copy of `model` after PPO, trained now or found in the stage's folder -> (policy, history)."""
    config = replace(config, seed=road.config.seed)
    policy = fused(copy.deepcopy(model)).requires_grad_(True)

    def make(folder):
        history = train_ppo(policy, reward_model, tokenizer, questions, config, folder=folder,
                            watch=WATCHED,
                            resume=(folder / STATE_FILE).exists(), progress=road.config.progress)
        save_model(folder, policy, road.out / "tokenizer.model")  # for `generate` and `chat`
        return {"policy": policy.state_dict(), "history": history}

    found = kept(road, name, make, train=asdict(config), policy=fingerprint(model), reward=fingerprint(reward_model))
    policy.load_state_dict(found["policy"])
    return policy.eval(), found["history"]


@torch.no_grad()
def exam(policy, start, reward_model, tokenizer, questions):
    """What `policy` answers to `questions`, and what that is worth: an `Exam`."""
    rollout = sample_answers(policy, prompts_of(questions, tokenizer), tokenizer.eos_id, LEASHED.max_new_tokens, seed=1)
    log_prob_BA, start_BA = (log_probs_of(answer_logits(m, rollout), rollout) for m in (policy, start))
    kl_BA = kl_estimate(log_prob_BA, start_BA).masked_fill(~rollout.answer_mask_BA, 0.0)
    texts = [text.strip() for text in rollout.texts(tokenizer)]
    score_B = punish_missing_eos(reward_model(rollout.tokens_BT, rollout.mask_BT), rollout.ended_B)
    quality, sound = (sum(map(measure, questions, texts)) / len(texts) for measure in WATCHED.values())
    return Exam(texts, score_B.mean().item(), quality, sound, kl_BA.sum(-1).mean().item(), len(set(texts)))


def pairs_of(name, n):
    """The first `n` pairs that the votes of a stream of threads give; about four a thread."""
    return [pair for thread in forum.threads(name, n // 3 + 1) for pair in thread_pairs(thread)][:n]


def questions_of(seed):
    """Questions to practise on and ASKED others to be examined on, no question in both, as two lists."""
    rng = random.Random(f"forum questions {seed}")
    questions = list(dict.fromkeys(forum.GRAMMAR.sample(rng, "{question}").text for _ in range(1000)))
    return questions[ASKED:], questions[:ASKED]


def prompts_of(questions, tokenizer):
    """The questions in the template that the model was tuned on, as lists of ids."""
    return [encode_segments(question_answer(question), tokenizer).tokens for question in questions]


def fused(model):
    """The model itself, with the fused spelling of attention: less time, and the same in every stage, found or
    trained."""
    return use_kernels(model, "torch")


def fingerprint(model):
    """CRC-32 of all weights and buffers: another start is another stage."""
    crc = 0
    for tensor in model.state_dict().values():
        crc = zlib.crc32(tensor.cpu().numpy().tobytes(), crc)
    return crc


def kept(road, name, make, **settings):
    """What `make(folder)` returns, a dict of numbers and tensors, made once for the same settings."""
    folder = road.folder(name, **settings)
    path = folder / "result.pt"
    if path.exists():
        road.say(f"  found trained in {folder}")
        return torch.load(path, weights_only=True)
    result = make(folder)
    with atomic_write(path) as file:
        torch.save(result, file)
    return result
