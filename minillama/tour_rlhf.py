"""The tour's learning from feedback: votes become a reward model, and PPO turns a model that answers like the forum
into one that answers well; without its leash the same program learns to please the reward model instead.

The forum knows how good every answer really is (`corpus.forum.quality`). Nothing here learns from that: it is the
ruler by which the tour sees what learning from votes has done.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from minillama.backends import use_kernels
from minillama.checkpoint import save_model
from minillama.checkpoint.pth import read_plain
from minillama.corpus import forum
from minillama.files import atomic_write
from minillama.rlhf.evaluation import Exam, examine, prompts_of
from minillama.rlhf.preferences import label_ceiling, order_in_truth, thread_pairs
from minillama.rlhf.reward_model import RewardModel, pair_accuracy
from minillama.rlhf.rollout import sample_answers
from minillama.rlhf.train_ppo import STATE_FILE, PPOConfig, train_ppo
from minillama.rlhf.train_reward import RewardConfig, encode_pairs, held_out_scores, train_reward
from minillama.tour_rlhf_pages import answers_page, hacking_page, ppo_page, reward_page
from minillama.tour_sft import fits
from minillama.train.resume import check_form, crc_of

PAIRS, HELD_OUT_PAIRS = 2400, 600
ASKED = 128  # questions that are asked before and after, and never in training
REWARD = RewardConfig(max_lr=2e-3)
LEASHED = PPOConfig(iterations=25, lr=2e-3, kl_coefficient=0.15, kl_target=3.0, kl_horizon=300.0)
WATCHED = {"quality": forum.quality, "sound": fits}  # measured of every batch, never learned from


@dataclass(frozen=True)
class Feedback:
    """What people preferred, and the questions to practise on and to be examined with; none in both parts."""

    pairs: list  # of `Pair`, to learn from
    held_out: list  # of `Pair`
    practice: list  # questions
    asked: list  # questions
    key: dict  # what the pairs are, for the name of the stage's folder
    truth: Callable | None = None  # f(question, answer), the hidden quality where there is one
    max_new_tokens: int = LEASHED.max_new_tokens

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


def feedback_stages(road, model, tokenizer, feedback):
    """Votes become a reward model; PPO practises on the leash and, where a ground truth can tell, off it
    -> (reward model, `Practice` on the leash)."""
    reward_model = reward_stage(road, model, tokenizer, feedback)
    leashed = ppo_stage(road, model, reward_model, tokenizer, feedback)
    if feedback.truth is None:
        road.skip("without the leash", "that a score was won by cheating shows beside a known truth alone, and your "
                  "preferences bring none")
        road.pages.append(answers_page(feedback.asked, {"before": leashed.before, "PPO": leashed.after}))
    else:
        free_stage(road, model, reward_model, tokenizer, feedback, leashed)
    return reward_model, leashed


def reward_stage(road, model, tokenizer, feedback):
    """A reward model from pairs, normalised on the policy's own answers."""
    road.say("  reward model: what the votes prefer (minillama/rlhf/train_reward.py)")
    model, seed = fused(model), road.config.seed

    def make(folder):
        reward_model, history = train_reward(model, feedback.pairs, tokenizer, config, progress=road.config.progress)
        rollout = sample_answers(model, prompts_of(feedback.practice[:256], tokenizer), tokenizer.eos_id,
                                 feedback.max_new_tokens, seed=seed)
        with torch.no_grad():
            reward_model.normalise(reward_model(rollout.tokens_BT, rollout.mask_BT))
        return {"reward_model": reward_model.state_dict(), "history": history}

    config = replace(REWARD, seed=seed)
    reward_model = RewardModel(copy.deepcopy(model), model.config.dim).eval().requires_grad_(False)
    found = kept(road, "reward", make, lambda found: check_form(
        "it", reward_model.state_dict(), found["reward_model"]), train=asdict(config), policy=fingerprint(model),
        **feedback.key)
    reward_model.load_state_dict(found["reward_model"])
    chosen, rejected = held_out_scores(reward_model, encode_pairs(feedback.held_out, tokenizer))
    expected, got, passed, ceiling = verdict(chosen, rejected, feedback)
    road.expect("reward model", expected, got, passed, "minillama/rlhf/train_reward.py", "lessons/25_reward_model.py")
    road.pages.append(reward_page(chosen.tolist(), rejected.tolist(), pair_accuracy(chosen, rejected), *ceiling))
    return reward_model


def verdict(chosen, rejected, feedback):
    """(expected, got, passed, (label ceiling, accuracy in truth) or ()) for a reward model's scores of unseen pairs."""
    accuracy, n = pair_accuracy(chosen, rejected), len(chosen)
    if feedback.truth is None:
        chance = 0.5 + n**-0.5  # two standard errors of a coin
        return (f"more than a coin and two standard errors ({chance:.3f})", f"{accuracy:.3f} of {n} unseen pairs",
                accuracy > chance, ())
    ceiling = label_ceiling(feedback.held_out, feedback.truth)
    true = order_in_truth(chosen, rejected, feedback.held_out, feedback.truth)
    return (f"0.92 or more of unseen pairs in the order of the truth; of the noisy labels at most 0.03 fewer than a "
            f"judge who knew the truth ({ceiling:.3f})", f"{true:.3f} in truth, {accuracy:.3f} by the labels, of {n}",
            true >= 0.92 and accuracy > ceiling - 0.03, (ceiling, true))


def ppo_stage(road, model, reward_model, tokenizer, feedback):
    """PPO on the leash, and what it has done to answers to questions that were never practised -> `Practice`."""
    road.say(f"  PPO: {LEASHED.iterations} rounds of {LEASHED.batch_size} answers (minillama/rlhf/train_ppo.py)")
    run = practised(road, "ppo", model, reward_model, tokenizer, feedback, LEASHED)
    before, after, history = run.before, run.after, run.history
    if feedback.truth:
        rise = after.measured["quality"] - before.measured["quality"]
        expected = f"on {len(feedback.asked)} unseen questions the hidden quality rises by 1.5 or more, within 8 nats"
        got = f"{before.measured['quality']:+.2f} to {after.measured['quality']:+.2f}, KL {after.kl:.1f}"
        passed = rise >= 1.5 and 0 < after.kl < 8
    else:
        road.skip("hidden quality", "no ground truth: what is good is what your pairs say, and the reward model's "
                  "score is all that can be seen of it")
        expected = f"on {len(feedback.asked)} unseen questions the score rises by half a deviation, within 8 nats"
        got = f"score {before.score:+.2f} to {after.score:+.2f}, KL {after.kl:.1f}"
        passed = after.score >= before.score + 0.5 and 0 < after.kl < 8
    distinct = f"; {after.distinct} distinct answers, {before.distinct} before"
    road.expect("PPO", expected, got + distinct, passed, "minillama/rlhf/train_ppo.py", "lessons/27_ppo.py")
    ones = sum(row["first_ratio"] == 1.0 for row in history)
    road.expect("PPO's ratio", f"pi / pi_old exactly 1 before the first update of all {len(history)} batches",
                f"{ones}", ones == len(history), "minillama/rlhf/rollout.py", "lessons/27_ppo.py")
    road.pages.append(ppo_page(history))
    return run


def free_stage(road, model, reward_model, tokenizer, feedback, leashed):
    """The same PPO without its leash: a better score for a worse truth."""
    free = practised(road, "ppo-free", model, reward_model, tokenizer, feedback, replace(LEASHED, kl_coefficient=0.0))
    before, after, gamed = leashed.before, leashed.after, free.after
    (good, sound), (bad, unsound) = (tuple(exam.measured.values()) for exam in (after, gamed))
    road.expect("without the leash", "a higher score than on the leash, for a hidden quality lower by 1 or more and "
                "fewer distinct answers",
                f"score {gamed.score:+.2f} ({after.score:+.2f} on the leash), hidden quality {bad:+.2f} ({good:+.2f}), "
                f"{unsound:.0%} sound ({sound:.0%}), {gamed.distinct} distinct ({after.distinct}), KL {gamed.kl:.0f}",
                gamed.score > after.score and bad <= good - 1 and gamed.distinct < after.distinct,
                "minillama/rlhf/ppo.py", "lessons/27_ppo.py")
    exams = {"before": before, "PPO": after, "no leash": gamed}
    for i, question in enumerate(feedback.asked[:2]):
        road.say("\n".join([f"    {question}"] + [f"    {name + ':':10}{exam.answers[i]}"
                                                   for name, exam in exams.items()]))
    road.pages += [hacking_page(leashed.history, free.history, after, gamed), answers_page(feedback.asked, exams)]
    return free


def practised(road, name, model, reward_model, tokenizer, feedback, config):
    """PPO with `config` from `model`, trained now or found in the stage's folder -> `Practice`."""
    model = fused(model)
    config = replace(config, seed=road.config.seed, max_new_tokens=feedback.max_new_tokens)
    policy = fused(copy.deepcopy(model)).requires_grad_(True)

    def make(folder):
        history = train_ppo(policy, reward_model, tokenizer, feedback.practice, config, folder=folder,
                            watch=feedback.watched, resume=(folder / STATE_FILE).exists(),
                            progress=road.config.progress)
        save_model(folder, policy, road.out / "tokenizer.model")  # for `generate` and `chat`
        return {"policy": policy.state_dict(), "history": history}

    def check(found):
        check_form("it", policy.state_dict(), found["policy"])
        check_rows(found["history"], ("iteration", "score", "kl", "entropy", "ended", "kl_coefficient", "first_ratio",
                                      *feedback.watched))

    found = kept(road, name, make, check, train=asdict(config), policy=fingerprint(model),
                 reward=fingerprint(reward_model))
    policy.load_state_dict(found["policy"])
    before, after = (examine(each.eval(), model, reward_model, tokenizer, feedback.asked, feedback.watched,
                             feedback.max_new_tokens) for each in (model, policy))
    return Practice(policy, before, after, found["history"])


def pairs_of(name, n):
    """The first `n` pairs that the votes of a stream of threads give; about four a thread."""
    return [pair for thread in forum.threads(name, n // 3 + 1) for pair in thread_pairs(thread)][:n]


def questions_of(seed):
    """Questions to practise on and ASKED others to be examined on, no question in both, as two lists."""
    rng = random.Random(f"forum questions {seed}")
    questions = list(dict.fromkeys(forum.GRAMMAR.sample(rng, "{question}").text for _ in range(1000)))
    return questions[ASKED:], questions[:ASKED]


def fused(model):
    """The model itself, with the fused spelling of attention: less time, and the same in every stage, found or
    trained."""
    return use_kernels(model, "torch")


def fingerprint(model):
    """CRC-32 of all weights and buffers: another start is another stage."""
    return crc_of(model.state_dict().values())


def kept(road, name, make, check, **settings):
    """What `make(folder)` returns, a dict of numbers and tensors, made once for the same settings. A file that is
    damaged, or that `check(found)` does not like, is told and made anew."""
    folder = road.folder(name, **settings)
    path = folder / "result.pt"
    if path.exists():
        try:
            check(found := dict(read_plain(path)))
        except (ValueError, TypeError, LookupError):
            road.say(f"  {path} is damaged: it is made anew")
        else:
            road.say(f"  found trained in {folder}")
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
