"""The pictures of learning from feedback: what the reward model prefers, what PPO did, and what it does unleashed."""

from statistics import fmean

from minillama.plots import CONTEXT, CONTRAST, OURS, STYLE, figure, label_end, svg
from minillama.report import caption, quote, section

BINS = 40


def reward_page(chosen, rejected, accuracy, ceiling):
    """Scores of the better and of the worse answers of held-out pairs."""
    low, high = min(chosen + rejected), max(chosen + rejected)
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    picture, axes = figure("The reward model tells better from worse", "score, in standard deviations", "answers")
    for name, scores, colour, side in (("rejected", rejected, CONTRAST, "left"), ("chosen", chosen, OURS, "right")):
        axes.hist(scores, edges, color=colour, alpha=0.55)
        axes.annotate(name, (0.02 if side == "left" else 0.98, 0.92), xycoords="axes fraction", color=colour, ha=side)
    return section(
        "A reward model learns what the votes prefer",
        f"It orders {accuracy:.1%} of {len(chosen)} unseen pairs as the votes did. Votes are noisy: a judge who knew "
        f"the true quality of every answer would agree with {ceiling:.1%} of them, and that is the ceiling.",
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
        f"The model answers, the reward model scores, and what scored above expectation becomes likelier. In "
        f"{len(history)} rounds the score went from {first['score']:+.2f} to {last['score']:+.2f}, "
        f"{last['kl']:.1f} nats away from where it began.",
        svg(picture, f"Score from {first['score']:+.2f} to {last['score']:+.2f}, KL from 0 to {last['kl']:.1f} nats"),
        caption(f"Entropy {first['entropy']:.2f} to {last['entropy']:.2f} nats a token; {last['ended']:.0%} of the "
                f"last answers ended by themselves; the coefficient of the penalty went from "
                f"{first['kl_coefficient']:.3f} to {last['kl_coefficient']:.3f}."))


def hacking_page(leashed, free, after, gamed):
    """What the reward model sees, and beside it the truth, with the leash and without."""
    measures = {"score": "reward model's score", "quality": "hidden quality", "sound": "share of sound answers"}
    picture, panels = stacked("Without the leash the score rises and the text decays", measures.values())
    for name, history, colour in (("with leash", leashed, OURS), ("without", free, CONTRAST)):
        for axes, measure in zip(panels, measures, strict=True):
            line(axes, [row["iteration"] for row in history], [row[measure] for row in history], name, colour)
    return section(
        "Reward hacking, against a known truth",
        f"Without the penalty for leaving the starting model the reward model's score ends at {gamed.score:+.2f} "
        f"instead of {after.score:+.2f}, and the hidden quality at {gamed.quality:+.2f} instead of "
        f"{after.quality:+.2f}: the model pleases its judge with texts of a kind on which nobody ever voted. Only "
        f"{gamed.sound:.0%} of them could have stood in the forum; on the leash {after.sound:.0%}.",
        svg(picture, f"With leash: score {after.score:+.2f}, hidden quality {after.quality:+.2f}, {after.sound:.0%} "
            f"sound. Without: {gamed.score:+.2f}, {gamed.quality:+.2f}, {gamed.sound:.0%}"),
        caption(f"KL from the start: {after.kl:.1f} nats an answer with the leash, {gamed.kl:.0f} without. Distinct "
                f"answers to {len(after.answers)} questions: {after.distinct} and {gamed.distinct}. The hidden quality "
                "of the forum's own answers is from -3 to +4; a sentence that belongs nowhere costs one. Neither it "
                "nor the share of sound answers is ever learned from."))


def answers_page(questions, before, after, gamed, shown=3):
    """The same questions, answered before, after, and without the leash."""
    blocks = []
    for i, question in enumerate(questions[:shown]):
        blocks += [caption(question), quote("before: ", before.answers[i]), quote("PPO: ", after.answers[i]),
                   quote("no leash: ", gamed.answers[i])]
    return section(
        "Before and after",
        f"Questions that were never practised. Hidden quality {before.quality:+.2f} before, {after.quality:+.2f} after "
        f"PPO, {gamed.quality:+.2f} without the leash.", *blocks)


def stacked(title, ylabels):
    """A figure of panels one above the other that share the iterations: (figure, axes)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
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
