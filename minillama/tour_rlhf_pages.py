"""The pictures of learning from feedback: what the reward model prefers, what PPO did, and what it does unleashed."""

from math import exp
from statistics import fmean

from minillama.plots import CONTEXT, CONTRAST, OURS, figure, house_style, label_end, svg
from minillama.report import caption, quote, section

BINS = 40


def reward_page(chosen, rejected, accuracy, ceiling=None, true=None):
    """Scores of the better and of the worse answers of held-out pairs; beside the ceiling of noisy labels and the
    accuracy in truth, where there is a truth."""
    low, high = min(chosen + rejected), max(chosen + rejected)
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    picture, axes = figure("The reward model tells better from worse", "score, in standard deviations", "answers")
    for name, scores, colour, side in (("rejected", rejected, CONTRAST, "left"), ("chosen", chosen, OURS, "right")):
        axes.hist(scores, edges, color=colour, alpha=0.55)
        axes.annotate(name, (0.02 if side == "left" else 0.98, 0.92), xycoords="axes fraction", color=colour, ha=side)
    noise = "" if ceiling is None else (
        f" Votes are noisy: a judge who knew the true quality of every answer would agree with {ceiling:.1%} of them, "
        f"and that is the ceiling. Where two answers truly differ, it finds the better one in {true:.1%}.")
    return section(
        "A reward model learns what the votes prefer",
        "People cannot read everything that a model will ever write. So a second model learns to guess what they would "
        f"say: it reads a question with an answer and gives points. It orders {accuracy:.1%} of {len(chosen)} unseen "
        f"pairs as people did.{noise}",
        svg(picture, f"Scores of chosen and rejected answers, overlapping; means {fmean(chosen):+.2f} and "
            f"{fmean(rejected):+.2f}"),
        caption(f"Scores have mean 0 and deviation 1 over what the model itself answers; here the chosen have mean "
                f"{fmean(chosen):+.2f}, the rejected {fmean(rejected):+.2f}."))


def ppo_page(history):
    """Score and KL over the iterations, one above the other."""
    picture, (top, bottom) = stacked("PPO raises the score and pays in KL", ("score", "KL, nats an answer"))
    steps = [row["iteration"] for row in history]
    line(top, steps, [row["score"] for row in history], "reward model", OURS)
    line(bottom, steps, [row["kl"] for row in history], "from the start", OURS)
    first, last = history[0], history[-1]
    return section(
        "PPO: practise what was preferred",
        "Each round the model answers a batch of questions and the reward model gives points. Tokens of answers that "
        "got more than expected become a little likelier, those of the others less likely, and the next round begins. "
        f"In {len(history)} rounds the score went from {first['score']:+.2f} to {last['score']:+.2f}. The leash: every "
        "answer also pays for each nat by which the model has made it likelier than it was at the start, so the model "
        f"changes only where that earns more than it costs. It ended {last['kl']:.1f} nats away.",
        svg(picture, f"Score from {first['score']:+.2f} to {last['score']:+.2f}, KL from 0 to {last['kl']:.1f} nats"),
        caption(f"KL {last['kl']:.1f} nats: the new model gives its own answers odds of {exp(last['kl']):.0f} to 1 "
                f"over the old one, in the geometric mean. Entropy {first['entropy']:.2f} to {last['entropy']:.2f} "
                f"nats a token; {last['ended']:.0%} of the last answers ended by themselves; the price of a nat went "
                f"from {first['kl_coefficient']:.3f} to {last['kl_coefficient']:.3f}."))


def hacking_page(leashed, free, after, gamed):
    """What the reward model sees, and beside it the truth, with the leash and without."""
    measures = {"score": "reward model's score", "quality": "hidden quality", "sound": "share of sound answers"}
    picture, panels = stacked("Without the leash the score rises and the text decays", measures.values())
    for name, history, colour in (("with leash", leashed, OURS), ("without", free, CONTRAST)):
        for axes, measure in zip(panels, measures, strict=True):
            line(axes, [row["iteration"] for row in history], [row[measure] for row in history], name, colour)
    (good, sound), (bad, unsound) = ([exam.measured[name] for name in ("quality", "sound")] for exam in (after, gamed))
    return section(
        "Reward hacking, against a known truth",
        "The reward model is a guess, and a good one only for answers of the kind that people voted on. Take the leash "
        f"away, and the same program finds answers of other kinds that it overrates: the score ends at "
        f"{gamed.score:+.2f} instead of {after.score:+.2f}, and the hidden quality, which nothing here learns from, at "
        f"{bad:+.2f} instead of {good:+.2f}. Only {unsound:.0%} of the answers could have stood in the forum; on the "
        f"leash {sound:.0%}.",
        svg(picture, f"With leash: score {after.score:+.2f}, hidden quality {good:+.2f}, {sound:.0%} sound. Without: "
            f"{gamed.score:+.2f}, {bad:+.2f}, {unsound:.0%}"),
        caption(f"KL from the start: {after.kl:.1f} nats an answer with the leash, {gamed.kl:.0f} without. Distinct "
                f"answers to {len(after.answers)} questions: {after.distinct} and {gamed.distinct}. The hidden quality "
                "of the forum's own answers is from -3 to +4; a sentence that belongs nowhere costs one. Whoever sees "
                "the upper panel alone, as one does without a ground truth, would prefer the wrong model."))


def answers_page(questions, exams, shown=3):
    """The same questions, answered by each of {name: Exam}."""
    blocks = []
    for i, question in enumerate(questions[:shown]):
        blocks += [caption(question), *(quote(f"{name}: ", exam.answers[i]) for name, exam in exams.items())]
    known = [f"{exam.measured['quality']:+.2f} ({name})" for name, exam in exams.items() if "quality" in exam.measured]
    scores = ", ".join(f"{exam.score:+.2f} ({name})" for name, exam in exams.items())
    return section(
        "Before and after PPO",
        "Questions that were never practised. " + (f"Hidden quality, mean of {len(questions)}: {', '.join(known)}."
                                                   if known else f"Reward model's score: {scores}."), *blocks)


def stacked(title, ylabels):
    """A figure of panels one above the other that share the iterations: (figure, axes)."""
    with house_style() as plt:
        picture, panels = plt.subplots(len(ylabels), 1, figsize=(6.0, 2.1 * len(ylabels)), sharex=True)
        panels[0].set_title(title)
        for axes, name in zip(panels, ylabels, strict=True):
            axes.set_ylabel(name)
            axes.axhline(0, color=CONTEXT, linewidth=0.6)
        panels[-1].set_xlabel("iteration")
    return picture, panels


def line(axes, xs, ys, name, colour):
    """A curve with its name at its end."""
    axes.plot(xs, ys, color=colour)
    label_end(axes, xs, ys, name, colour)
    axes.set_xlim(right=max(xs) * 1.22 + 1)
