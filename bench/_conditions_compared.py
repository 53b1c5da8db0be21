"""The race under other conditions: few data, an unseen topic, examples in the prompt, wider models: `bench tuning`.

Rates are those that `_methods_compared` chose, for every method, so a condition changes the data alone.
"""

from pathlib import Path

import _classes_compared as classes_compared
import _methods_compared as compared

SEEDS = (0, 1, 2)
FEW = 16  # questions of the few-data runs
EXAMPLES = (1, 4)  # questions and answers to learn, or to stand in the prompt
LEARNERS = ("prompt", "lora", "full")  # beside examples in the prompt
WIDTHS = (32, 64, 128)  # of the models that read classes; the forward layer grows alike


def make_small():
    """One seed and the smallest counts, to see that it runs."""
    globals().update(SEEDS=(0,), FEW=4, EXAMPLES=(1,), WIDTHS=(32, 64))


def other_topic(seed, tokenizer):
    """[Sequence] of questions about animals and their manners, which the base knows from stories and no forum asks."""
    import random

    from minillama.corpus import forum, stories
    from minillama.corpus.grammar import Grammar
    from minillama.train.sequence_loss import encode_segments
    from minillama.train.templates import BOS, EOS, Segment

    animals = {"object": stories.RULES["friend"], "condition": stories.RULES["manner"]}
    grammar, rng, rows = Grammar(forum.RULES | animals, start="{question}"), random.Random(f"animals {seed}"), []
    for _ in range(compared.UNSEEN):
        question = grammar.sample(rng, "{question}")
        answer = grammar.sample(rng, "First {get} a {tool}. Then {verb} the {object} {spot}.", question.chosen)
        segments = [BOS, Segment(question.text), Segment(f" {answer.text}", learn=True), EOS]
        rows.append(encode_segments(segments, tokenizer))
    return rows


def learned_from(count, name, rate, base, tokenizer, seed):
    """A row: what a method has learned of `count` questions, on them, on unseen ones and on another topic."""
    from minillama.train.sft import answer_loss

    facts, unseen = compared.facts_of(seed, tokenizer)
    facts, learner, loss = facts[:count], base, 0.0
    if rate:
        learner, loss = compared.tuned_at(rate, name, base, facts, unseen, seed)
    row = {"seed": seed, "method": name, "rate": rate, "count": count, "training_loss": loss}
    if learner is None:
        return row
    return row | {"exact": compared.exact_answers(learner, facts), "unseen": answer_loss(learner, unseen, 64),
                  "topic": answer_loss(learner, other_topic(seed, tokenizer), 64)}


def data_runs(out, rates, seeds=None):
    """Rows of the base, of every method in `rates`, {name: rate}, on FEW and on all questions, and of LEARNERS on
    EXAMPLES."""
    tokenizer, rows = compared.tokenizer_of_all(), []
    base = compared.base_of(out, tokenizer)
    plan = [(FEW, "none")] + [(compared.FACTS, name) for name in rates] + [(FEW, name) for name in rates]
    plan += [(count, name) for count in EXAMPLES for name in LEARNERS if name in rates]
    for count, name in plan:
        for seed in seeds or SEEDS:
            path = Path(out) / f"of-{count}-{seed}-{name}.json"
            rows += compared.kept(path, learned_from, count, name, rates.get(name), base, tokenizer, seed)
            print(rows[-1], flush=True)
    return rows


def in_prompt(count, base, tokenizer, seed):
    """A row: the base's loss on unseen answers behind `count` questions with their answers, nothing trained."""
    from minillama.train.sequence_loss import encode_segments
    from minillama.train.sft import answer_loss
    from minillama.train.templates import BOS, EOS, Segment

    pairs = list(compared.questions_and_answers(seed).items())
    shown = [part for question, answer in pairs[:count] for part in (BOS, Segment(f"{question} {answer}"), EOS)]
    rows = [encode_segments([*shown, BOS, Segment(question), Segment(f" {answer}", learn=True), EOS], tokenizer)
            for question, answer in pairs[compared.FACTS:]]
    return {"seed": seed, "count": count, "unseen": answer_loss(base, rows, 64)}


def few_shot_runs(out, seeds=None):
    """Rows of `in_prompt`, for 0, EXAMPLES and FEW examples."""
    tokenizer = compared.tokenizer_of_all()
    base = compared.base_of(out, tokenizer)
    return [row for count in (0, *EXAMPLES, FEW) for seed in seeds or SEEDS for row in compared.kept(
        Path(out) / f"shown-{count}-{seed}.json", in_prompt, count, base, tokenizer, seed)]


def width_runs(out, seeds=None):
    """Rows of telling classes apart with a soft prompt and in full, in bases of WIDTHS."""
    tokenizer, rows, seeds = compared.tokenizer_of_all(), [], seeds or SEEDS
    for width in WIDTHS:
        base, found = compared.base_of(f"{out}/{width}", tokenizer, width), []
        for way in ("prompt and head", "full and head"):
            for seed in seeds:
                first = seed == seeds[0]
                for rate in compared.RATES if first else [compared.chosen_rate(found, way, seeds[0])]:
                    path = Path(out) / f"width-{width}-{seed}-{way}-{rate}.json"
                    found += compared.kept(path, classes_compared.classified, way, rate, base, tokenizer, seed,
                                           classes_compared.CLASS_STEPS)
                    print(width, found[-1], flush=True)
        rows += [{**row, "width": width} for row in found]
    return rows
