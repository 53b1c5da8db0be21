"""The pictures of learning from feedback: what the reward model prefers, what PPO did, and what it does unleashed."""

from math import exp
from statistics import fmean

from minillama.plots import CONTEXT, CONTRAST, OURS, figure, house_style, label_end, svg
from minillama.report import caption, quote, section, told

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
    said = told("reward", accuracy=accuracy, n=len(chosen), chosen=fmean(chosen), rejected=fmean(rejected),
                ceiling=ceiling or 0.0, true=true or 0.0)
    return section(said["title"], said["text"] + ("" if ceiling is None else said["noise"]),
                   svg(picture, said["alt"]), caption(said["caption"]))


def ppo_page(history):
    """Score and KL over the iterations, one above the other."""
    picture, (top, bottom) = stacked("PPO raises the score and pays in KL", ("score", "KL, nats an answer"))
    steps = [row["iteration"] for row in history]
    line(top, steps, [row["score"] for row in history], "reward model", OURS)
    line(bottom, steps, [row["kl"] for row in history], "from the start", OURS)
    first, last = history[0], history[-1]
    said = told("ppo", first=first, last=last, n=len(history), odds=exp(last["kl"]))
    return section(said["title"], said["text"], svg(picture, said["alt"]), caption(said["caption"]))


def hacking_page(leashed, free, after, gamed):
    """What the reward model sees, and beside it the truth, with the leash and without."""
    measures = {"score": "reward model's score", "quality": "hidden quality", "sound": "share of sound answers"}
    picture, panels = stacked("Without the leash the score rises and the text decays", measures.values())
    for name, history, colour in (("with leash", leashed, OURS), ("without", free, CONTRAST)):
        for axes, measure in zip(panels, measures, strict=True):
            line(axes, [row["iteration"] for row in history], [row[measure] for row in history], name, colour)
    said = told("hacking", after=after, gamed=gamed, good=after.measured, bad=gamed.measured, n=len(after.answers))
    return section(said["title"], said["text"], svg(picture, said["alt"]), caption(said["caption"]))


def answers_page(questions, exams, shown=3):
    """The same questions, answered by each of {name: Exam}."""
    blocks = []
    for i, question in enumerate(questions[:shown]):
        blocks += [caption(question), *(quote(f"{name}: ", exam.answers[i]) for name, exam in exams.items())]
    known = [f"{exam.measured['quality']:+.2f} ({name})" for name, exam in exams.items() if "quality" in exam.measured]
    scores = ", ".join(f"{exam.score:+.2f} ({name})" for name, exam in exams.items())
    said = told("answers", n=len(questions), known=", ".join(known), scores=scores)
    return section(said["title"], said["text"] + said["quality" if known else "score"], *blocks)


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
