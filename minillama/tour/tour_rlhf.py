"""The tour's learning from feedback: votes become a reward model, and PPO turns a model that answers like the forum
into one that answers well; without the KL penalty the same program learns to please the reward model instead.

The forum knows how good every answer really is (`corpus.forum.quality`). Nothing here learns from that: it is the
ruler by which the tour sees what learning from votes has done.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from minillama.backends import use_kernels
from minillama.checkpoint import load_model, save_model
from minillama.corpus import forum
from minillama.evaluate.copying import diagnose_forgetting, gain_under_own_question, scores_of
from minillama.evaluate.diagnosis import FEW_PAIRS, diagnose, diagnose_reward
from minillama.evaluate.exam import Exam, examine, verdict
from minillama.rlhf.preferences import thread_pairs
from minillama.rlhf.reward_file import load_reward, save_reward
from minillama.rlhf.reward_model import pair_accuracy
from minillama.rlhf.rollout import prompts_of, sample_answers
from minillama.rlhf.train_ppo import STATE_FILE, PPOConfig, train_ppo, with_rates
from minillama.rlhf.train_reward import STATE_FILE as REWARD_STATE
from minillama.rlhf.train_reward import RewardConfig, encode_pairs, held_out_accuracy, held_out_scores, train_reward
from minillama.tour.tour_pages import answers_page, hacking_page, ppo_page, reward_page
from minillama.tour.tour_sft import fits_question
from minillama.train.resumable import METRICS_FILE
from minillama.train.resume import crc_of, read_metrics

PAIRS, HELD_OUT_PAIRS = 2400, 600
ASKED = 128  # questions that are asked before and after, and never in training
REWARD = RewardConfig(max_lr=2e-3)
PENALIZED = PPOConfig(iterations=25, lr=2e-3, value_lr=3e-3, old_kl=0.0)  # of the forum: fast, as it is well known
OWN_PPO = PPOConfig()  # of tasks that nobody here has seen: what follows the model and the data
WATCHED = {"quality": forum.quality, "sound": fits_question}  # measured of every batch, never learned from


@dataclass(frozen=True)
class Feedback:
    """What people preferred, and the questions to practise on and to be examined with; none in both parts."""

    pairs: list  # of `Pair`, to learn from
    held_out: list  # of `Pair`
    practice: list  # questions
    asked: list  # questions
    key: dict  # what the pairs are, for the name of the stage's folder
    truth: Callable | None = None  # f(question, answer), the hidden quality where there is one
    max_new_tokens: int = 40

    @property
    def watched(self):
        """What is measured of every answer, and never learned from."""
        return WATCHED if self.truth else {}


@dataclass(frozen=True)
class Practice:
    """What PPO did: exams before and after, and the run's history."""

    policy: torch.nn.Module
    before: Exam
    after: Exam
    history: list


def forum_feedback(seed):
    """The forum's votes and questions."""
    return Feedback(pairs_of(f"{seed} votes", PAIRS), pairs_of(f"{seed} held-out votes", HELD_OUT_PAIRS),
                    *questions_of(seed), {"pairs": PAIRS}, forum.quality)


def feedback_stages(report, model, tokenizer, feedback):
    """Votes become a reward model; PPO practises with the KL penalty and, where a ground truth can tell, without it
    -> (reward model, `Practice` with the KL penalty)."""
    reward_model = reward_stage(report, model, tokenizer, feedback)
    penalized = ppo_stage(report, model, reward_model, tokenizer, feedback)
    if feedback.truth is None:
        report.skip("without the KL penalty", "that a score was won by cheating shows beside a known truth alone, and "
                    "your preferences bring none")
        report.pages.append(answers_page(feedback.asked, {"before": penalized.before, "PPO": penalized.after}))
    else:
        free_stage(report, model, reward_model, tokenizer, feedback, penalized)
    return reward_model, penalized


def reward_stage(report, model, tokenizer, feedback):
    """A reward model from pairs, normalised on the policy's own answers."""
    report.say("  reward model: what the votes prefer (minillama/rlhf/train_reward.py)")
    model, seed = use_kernels(model, "torch"), report.config.seed
    config = replace(REWARD, seed=seed, epochs=min(max(FEW_PAIRS // len(feedback.pairs), 1), 3))
    folder = report.folder("reward", train=asdict(config), policy=crc_of(model.state_dict().values()), **feedback.key)
    if not report.is_done(folder):
        reward_model, _ = train_reward(model, feedback.pairs, tokenizer, config, progress=report.config.progress,
                                       folder=folder, resume=(folder / REWARD_STATE).exists())
        rollout = sample_answers(model, prompts_of(feedback.practice[:256], tokenizer), tokenizer.eos_id,
                                 feedback.max_new_tokens, seed=seed)
        with torch.no_grad():
            reward_model.normalise(reward_model(rollout.tokens_BT, rollout.mask_BT))
        save_reward(folder, reward_model, tokenizer)
    reward_model, _ = load_reward(folder)
    use_kernels(reward_model.body, "torch")
    chosen, rejected = held_out_scores(reward_model, encode_pairs(feedback.held_out, tokenizer))
    expected, got, passed, ceiling = verdict(chosen, rejected, feedback)
    report.check("reward model", expected, got, passed, "minillama/rlhf/train_reward.py", "lessons/25_reward_model.py")
    if feedback.truth is None:
        learned = held_out_accuracy(reward_model, encode_pairs(feedback.pairs, tokenizer))
        report.advise(diagnose_reward(pair_accuracy(chosen, rejected), len(chosen), learned, feedback.pairs))
    report.pages.append(reward_page(chosen.tolist(), rejected.tolist(), pair_accuracy(chosen, rejected), *ceiling))
    return reward_model


def ppo_stage(report, model, reward_model, tokenizer, feedback):
    """PPO with the KL penalty, and what it has done to answers to questions that were never practised -> `Practice`."""
    config = settings_of_practice(report, feedback)
    report.say(f"  PPO: {config.iterations} rounds of {config.batch_size} answers (minillama/rlhf/train_ppo.py)")
    run = train_or_load_ppo(report, "ppo", model, reward_model, tokenizer, feedback, config)
    before, after, history = run.before, run.after, run.history
    numbers = {"n": len(feedback.asked), "before": before, "after": after}
    if feedback.truth:
        good = before.measured["quality"], after.measured["quality"]
        report.measure("PPO", good[1] - good[0] >= 1.5 and 0 < after.kl < 8, good=good, **numbers)
    else:
        report.skip("hidden quality", "no ground truth: what is good is what your pairs say, and the reward model's "
                    "score is all that can be seen of it")
        report.advise(diagnose_forgetting(feedback.practice, feedback.asked, before.answers, after.answers, lambda: (
            gain_under_own_question(feedback.practice, feedback.held_out, scores_of(reward_model, tokenizer)))))
        report.measure("your PPO", after.score >= before.score + 0.5 and 0 < after.kl < 8, **numbers)
    ones = sum(row["first_ratio"] == 1.0 for row in history)
    report.measure("PPO's ratio", ones == len(history), n=len(history), ones=ones)
    report.pages.append(ppo_page(history))
    return run


def settings_of_practice(report, feedback):
    """PPO's settings: the forum's or a new task's, but for what the tour was told."""
    told = {"iterations": report.config.rounds, "lr": report.config.ppo_lr, "kl_target": report.config.kl_target}
    return replace(PENALIZED if feedback.truth else OWN_PPO, **{name: value for name, value in told.items() if value})


def free_stage(report, model, reward_model, tokenizer, feedback, penalized):
    """The same PPO without the KL penalty: a better score for a worse truth."""
    config = replace(settings_of_practice(report, feedback), kl_coefficient=0.0)
    free = train_or_load_ppo(report, "ppo-free", model, reward_model, tokenizer, feedback, config)
    before, after, gamed = penalized.before, penalized.after, free.after
    worse = gamed.measured["quality"] <= after.measured["quality"] - 1
    report.measure("without the KL penalty", gamed.score > after.score and worse and gamed.distinct < after.distinct,
                   after=after, gamed=gamed)
    exams = {"before": before, "PPO": after, "no KL penalty": gamed}
    for i, question in enumerate(feedback.asked[:2]):
        report.say("\n".join([f"    {question}"] + [f"    {name + ':':15}{exam.answers[i]}"
                                                   for name, exam in exams.items()]))
    report.pages += [hacking_page(penalized.history, free.history, after, gamed), answers_page(feedback.asked, exams)]
    return free


def train_or_load_ppo(report, name, model, reward_model, tokenizer, feedback, config):
    """PPO with `config` from `model`, trained now or found in the stage's folder -> `Practice`."""
    model = use_kernels(model, "torch")
    config = replace(config, seed=report.config.seed, max_new_tokens=feedback.max_new_tokens)
    config = with_rates(config, model.config.dim)
    weights = {name: crc_of(part.state_dict().values()) for name, part in (("policy", model), ("reward", reward_model))}
    folder = report.folder(name, train=asdict(config), **weights)
    if not report.is_done(folder):
        policy = copy.deepcopy(model).requires_grad_(True)
        train_ppo(policy, reward_model, tokenizer, feedback.practice, config, folder=folder, watch=feedback.watched,
                  resume=(folder / STATE_FILE).exists(), progress=report.config.progress,
                  asked=() if feedback.truth else feedback.asked)
        save_model(folder, policy, report.out / "tokenizer.model")  # for `generate` and `chat` too
    policy = use_kernels(load_model(folder)[0], "torch")
    history = read_metrics(folder / METRICS_FILE, config.iterations, needs=("score", "kl"), unit="iteration")
    if config.kl_coefficient:
        report.advise(*diagnose(history, config).values())
    before, after = (examine(each.eval(), model, reward_model, tokenizer, feedback.asked, feedback.watched,
                             feedback.max_new_tokens) for each in (model, policy))
    return Practice(policy, before, after, history)


def pairs_of(name, n):
    """The first `n` pairs that the votes of a stream of threads give; about four a thread."""
    return [pair for thread in forum.threads(name, n // 3 + 1) for pair in thread_pairs(thread)][:n]


def questions_of(seed):
    """Questions to practise on and ASKED others to be examined on, no question in both, as two lists."""
    rng = random.Random(f"forum questions {seed}")
    questions = list(dict.fromkeys(forum.GRAMMAR.sample(rng, "{question}").text for _ in range(1000)))
    return questions[ASKED:], questions[:ASKED]
