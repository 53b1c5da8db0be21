"""What to watch in learning from feedback; what the metrics say is wrong, and what to try: a sentence for each thing.

The bounds are rules of thumb, not laws. They stand where runs on several little tasks went wrong and healthy ones did
not; each says what it looks at.
"""

import sys

import torch

from minillama.evaluate.agreement import diagnose_labels
from minillama.rlhf import ppo

SETTLED = 10  # iterations after which a run should have got somewhere
FEW_PAIRS = 1000  # below, a reward model that reads its pairs once has too few updates


@torch.no_grad()
def describe(experience):
    """What to watch of a batch: {"score", "kl", "length", "ended", "explained_variance"}.

    score: mean, missing EOS included; kl: nats of a whole answer, summed over its tokens, by k1, which
    is unbiased: clearly below zero it says that sampling and scoring disagree; length: tokens, EOS
    included; ended: share with EOS; explained_variance: of the returns, by the values.
    """
    mask_BA = experience.rollout.answer_mask_BA
    kl_BA = ppo.kl_estimate(experience.log_prob_BA, experience.ref_log_prob_BA).masked_fill(~mask_BA, 0.0)
    return {"score": experience.score_B.mean().item(), "kl": kl_BA.sum(-1).mean().item(),
            "length": mask_BA.sum(-1).double().mean().item(),
            "ended": experience.rollout.ended_B.double().mean().item(),
            "explained_variance": explained_variance(experience.values_BA, experience.returns_BA, mask_BA)}


@torch.no_grad()
def explained_variance(values_BT, returns_BT, mask_BT):
    """1 - Var(R - V) / Var(R): 1 for a perfect value head, 0 for a constant, below 0 for one worse
    than a constant; 0 if all returns are equal, when there is nothing to explain (JSON has no NaN)."""
    left = ppo.masked_variance(returns_BT - values_BT, mask_BT)
    total = ppo.masked_variance(returns_BT, mask_BT)
    return (1.0 - left / total).item() if total > 0 else 0.0


def diagnose(history, config):
    """{name: sentence} for the metrics of PPO's iterations so far (`train_ppo`) under a `PPOConfig`."""
    first, last, found = history[0], history[-1], {}
    if config.kl_target and config.kl_coefficient and last["kl"] > 3 * config.kl_target:
        found["KL"] = (f"KL is {last['kl']:.1f} nats an answer, and its target {config.kl_target:g}: the policy leaves "
                       f"where it began faster than the penalty holds it. Try a lower --lr than {config.lr:.1e} or a "
                       f"higher --kl-coefficient than {config.kl_coefficient:g}")
    if last["entropy"] < first["entropy"] / 3:
        found["entropy"] = (f"entropy fell from {first['entropy']:.2f} to {last['entropy']:.2f} nats a token: soon the "
                            "policy can write only one answer. Try a lower --lr, or a lower --kl-target")
    if first["distinct"] < 0.5:
        found["alike"] = (f"only {first['distinct']:.0%} of the first answers differ from one another: there is little "
                          "to choose from. Try more varied answers in fine-tuning, or more prompts")
    elif last["distinct"] < 0.7 * first["distinct"]:
        found["collapse"] = (f"distinct answers fell from {first['distinct']:.0%} to {last['distinct']:.0%}: the "
                             "policy says the same to many. If that is not what your pairs prefer, try a lower "
                             "--kl-target, or more varied pairs")
    if first["ended"] < 0.9:
        found["unended"] = (f"{1 - first['ended']:.0%} of the first answers were cut off at {config.max_new_tokens} "
                            "tokens: the model has not learned to stop. Try more --steps of fine-tuning, or more "
                            "--max-new-tokens")
    elif last["ended"] < first["ended"] - 0.1:
        found["endless"] = (f"answers that end fell from {first['ended']:.0%} to {last['ended']:.0%}: try a lower "
                            "--missing-eos-score")
    half = config.epochs * config.minibatches / 2
    if len(history) >= 3 and sum(row["updates"] for row in history[-3:]) < 3 * half:
        found["early"] = (f"the last batches were left after {last['updates']} of {2 * half:g} updates, too far from "
                          f"the policy that sampled them: try a lower --lr than {config.lr:.1e}")
    if len(history) >= SETTLED and last["score"] < first["score"] + 0.3:
        way = "it hardly moves, try a higher --lr" if last["kl"] < 1 else "it moves in vain, try a lower --lr"
        found["flat"] = (f"after {len(history)} iterations the policy's score went from {first['score']:+.2f} to "
                         f"{last['score']:+.2f}: {way}")
    exam = next((row for row in reversed(history) if "held_out_score" in row), None)
    if exam and exam["score"] > exam["held_out_score"] + 0.7:
        found["unseen"] = (f"the score is {exam['score']:+.2f} on what is practised and {exam['held_out_score']:+.2f} "
                           "on other questions: it learns its prompts by heart. Try more prompts, fewer --iterations")
    return found


def tell_news(history, config, told):
    """Say on stderr what `diagnose` finds and has not yet `told` of, a set of names to which they are added."""
    for name, sentence in diagnose(history, config).items():
        if name not in told:
            print(f"iteration {len(history)}: {sentence}", file=sys.stderr)
        told.add(name)


def require_ends(parts, max_length):
    """The sequences of each of parts, `train.records.Encoded` at so many tokens; ValueError where most are cut there,
    or have no answer before it."""
    whole = sum(len(part.sequences) - part.cut for part in parts)
    given = sum(len(part.sequences) + part.left_out for part in parts)
    if 2 * whole < given:
        raise ValueError(f"{given - whole} of {given} answers do not end within the {max_length} tokens that the model "
                         "reads: it would not learn to end one. Shorten or split them")
    return [part.sequences for part in parts]


def diagnose_tuning(history):
    """A sentence, or "", for the metrics of fine-tuning (`sft`)."""
    losses = [row["held_out_loss"] for row in history if "held_out_loss" in row]
    if losses[-1] > losses[0]:
        return (f"the loss on unseen answers rose from {losses[0]:.3f} to {losses[-1]:.3f}: try a lower --max-lr, or "
                "fewer --steps")
    if len(losses) > 2 and losses[-1] < losses[-2] - 0.03 * (losses[0] - losses[-1]):
        return (f"the loss on unseen answers was still falling ({losses[-2]:.3f} to {losses[-1]:.3f}): the model would "
                "learn more from more --steps")
    if min(losses) < losses[-1] - 0.05 * (losses[0] - losses[-1]):
        return (f"the loss on unseen answers was {min(losses):.3f} and is {losses[-1]:.3f}: the answers are learned by "
                "heart. Try fewer --steps, or more answers")
    return ""


def diagnose_reward(accuracy, pairs, trained, labels=()):
    """What there is to say, or "", of a reward model that orders a share of so many unseen pairs, and of those it
    learned, as they are labelled; and of the labels themselves, `Pair`s, where some were given twice."""
    found = ""
    if accuracy < 0.5 + pairs**-0.5:
        found = (f"it orders {accuracy:.0%} of {pairs} unseen pairs, a coin 50%: nothing to practise for. Are chosen "
                 "and rejected right? Try more pairs")
    elif accuracy < 0.75 and trained > accuracy + 0.15:
        found = (f"it orders {trained:.0%} of the pairs it learned and {accuracy:.0%} of unseen ones: it learned them "
                 "by heart. Try one epoch, or more pairs")
    elif accuracy < 0.75:
        found = (f"it orders {accuracy:.0%} of unseen pairs, and hardly more of those it learned: either a quarter of "
                 "the labels contradict one another, its ceiling, or it saw too few. Try more pairs"
                 + (", or --epochs 2, as these are few" if 0 < len(labels) < FEW_PAIRS else " before more epochs"))
    return "; ".join(filter(None, (found, diagnose_labels(labels))))


def summary(history, asked):
    """What a run of PPO came to: on so many held-out questions, or on its own batches where there were none."""
    rows = [row for row in history if "held_out_score" in row]
    if not asked:
        return (f"score {history[0]['score']:+.2f} -> {history[-1]['score']:+.2f}, {history[-1]['kl']:.1f} nats from "
                "the start")
    kept, n = max(rows[-1]["kept"], 1), len(history)
    best = history[kept - 1]
    return (f"score {rows[0]['held_out_score']:+.2f} -> {best['held_out_score']:+.2f} on {asked} held-out prompts, "
            f"{best['held_out_kl']:.1f} nats from the start, after iteration {rows[-1]['kept']} of {n}")
