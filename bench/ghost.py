"""Ghost attention: is a system's instruction still kept at the fifth turn? With it, and without.

Little conversations of five turns about where things are; an instruction asks that answers begin or end with a word.
One model is tuned on conversations of one to five turns in which half of the user's messages bring an instruction, kept
in that answer alone, and on a system's instruction in conversations of one turn. Then, for as many steps on as many
conversations: `run.py ghost-attention` and `sft`; and the same, but sampled with the instruction told once. A quarter
of the words never stands in what these two learn. Minutes of one core.
"""

import json
import random
import sys
from pathlib import Path

import _rounds

THINGS = "bell lamp kite boat drum shoe coin book cup key hat ring".split()
COLOURS = "red blue green black white brown".split()
PLACES = ["in the garden", "on the shelf", "under the bed", "behind the door", "by the river", "in the box",
          "on the roof", "at school"]
WORDS = "Amber Cedar Delta Ember Falcon Ginger Harbor Indigo Jasmin Kernel Lemon Maple".split()
UNSEEN = WORDS[::4]  # by ghost attention
TURNS, PIECES, ROOM = 5, 384, 24
SIZES = {"records": 3200, "talks": 240, "asked": 32}
STEPS = {"pretrain": 150, "sft": 170, "ghost": 40}
COLUMNS = ("seed", "model", "instruction's word", *(f"turn {turn}" for turn in range(1, TURNS + 1)))


def drawn_turn(rng):
    """(question, answer)."""
    thing = rng.choice(THINGS)
    return f"Where is the {rng.choice(COLOURS)} {thing}?", f"The {thing} is {rng.choice(PLACES)}."


def instruction(place, word):
    return f"{place} each answer with the word {word}."


def instructions(words):
    return [instruction(place, word) for place in ("Begin", "End") for word in words]


def obeyed(told, answer):
    """The answer as the instruction wants it."""
    place, word = told.split()[0], told.split()[-1][:-1]
    return f"{word}. {answer}" if place == "Begin" else f"{answer} {word}."


def is_kept(told, answer):
    place, word = told.split()[0], told.split()[-1]
    return answer.startswith(word) if place == "Begin" else answer.endswith(word) and answer != word


def talk(rng, turns, share=0.0):
    """A conversation; a share of its questions brings an instruction, which holds for that answer."""
    messages = []
    for _ in range(turns):
        question, answer = drawn_turn(rng)
        if rng.random() < share:
            told = rng.choice(instructions(WORDS))
            question, answer = f"{told}\n{question}", obeyed(told, answer)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def under_system(rng):
    told = rng.choice(instructions(WORDS))
    question, answer = drawn_turn(rng)
    return [{"role": "system", "content": told}, {"role": "user", "content": question},
            {"role": "assistant", "content": obeyed(told, answer)}]


def write_records(path, talks):
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talks), encoding="utf-8")
    return path


def write_tuning(out):
    """text/ and tuning.jsonl, of the model that every seed begins with."""
    from minillama.train.templates import llama2_chat, text_of

    rng = random.Random("ghost 0")
    tuning = [under_system(rng) if i % 4 == 0 else talk(rng, rng.randint(1, TURNS), 0.5)
              for i in range(SIZES["records"])]
    (out / "text").mkdir(parents=True, exist_ok=True)
    for i in range(0, len(tuning), 40):
        said = [text_of([segment for segment in llama2_chat(messages) if not segment.control])
                for messages in tuning[i:i + 40]]
        (out / "text" / f"{i}.txt").write_text("\n".join(said), encoding="utf-8")
    write_records(out / "tuning.jsonl", tuning)


def write_talks(folder, seed):
    """talks.jsonl, for ghost attention, and told.txt, its instructions."""
    rng = random.Random(f"talks {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "talks.jsonl", [talk(rng, 1 + i % TURNS) for i in range(SIZES["talks"])])
    (folder / "told.txt").write_text("\n".join(instructions([w for w in WORDS if w not in UNSEEN])), encoding="utf-8")


def run(command, *words):
    if code := command([str(word) for word in words]):
        raise SystemExit(code)


def tuned(out):
    """The model that every seed begins with -> its folder."""
    from minillama.cli.command_line import main as minillama

    write_tuning(out)
    if not (out / "t.model").exists():
        run(minillama, "tokenizer", "train", "--text", out / "text", "--vocab-size", PIECES, "--out", out / "t.model")
    if not (out / "base" / "params.json").exists():
        run(minillama, "pretrain", "--text", out / "text", "--tokenizer", out / "t.model", "--out", out / "base",
            "--steps", STEPS["pretrain"])
    return learn(out / "base", out / "tuning.jsonl", out / "tuned", STEPS["sft"], 0)


def learn(model, data, out, steps, seed):
    from minillama.cli.command_line import main as minillama

    if not (out / "params.json").exists():
        run(minillama, "sft", "--model", model, "--data", data, "--method", "full", "--template", "llama2", "--steps",
            steps, "--max-lr", "2e-3", "--seed", seed, "--out", out, *["--resume"] * any(out.glob("*_state.pt")))
    return out


def haunted(start, folder, seed, name, told):
    """Ghost attention's data with `told` when sampling, mixed half and half with conversations without instructions."""
    import ghost_attention

    made = folder / name
    if not (made / "ghost.jsonl").exists():
        plain, ghost_attention.told_each_time = ghost_attention.told_each_time, told
        try:
            run(ghost_attention.main, "--model", start, "--data", folder / "talks.jsonl", "--instructions",
                folder / "told.txt", "--max-new-tokens", ROOM, "--seed", seed, "--out", made)
        finally:
            ghost_attention.told_each_time = plain
    rows = [json.loads(line)["messages"] for line in (made / "ghost.jsonl").read_text().splitlines()]
    rng = random.Random(f"plain {seed}")
    rows += [talk(rng, 1 + i % TURNS) for i in range(len(rows))]
    rng.shuffle(rows)
    return learn(start, write_records(folder / f"{name}.jsonl", rows), folder / f"{name}-tuned", STEPS["ghost"], seed)


def kept(folder, words, seed, told=True):
    """Share of answers at each turn that keep the system's instruction; told=False: that was not given."""
    import ghost_attention
    import torch
    from ghost_attention import answer_turns, answers_to, parser

    from minillama.checkpoint import load_model
    from minillama.rlhf.llama2_chat import told_once
    from minillama.tokenizer import load_tokenizer
    from minillama.train.chat_template import end_of_answer, template_function

    rng = random.Random(f"asked {seed}")
    order = [rng.choice(instructions(words)) for _ in range(SIZES["asked"])]
    questions = [[drawn_turn(rng)[0] for _ in range(TURNS)] for _ in order]
    model, reads = load_model(folder)[0].eval(), load_tokenizer(folder / "tokenizer.model")
    given = parser().parse_args(["--model", "-", "--data", "-", "--instructions", "-", "--out", "-", "--max-new-tokens",
                                 str(ROOM), "--seed", str(seed)])
    template, end = template_function("llama2", reads), end_of_answer("llama2", reads)
    plain, ghost_attention.told_each_time = ghost_attention.told_each_time, told_once if told else lambda _, talk: talk
    try:
        with torch.no_grad():
            talks = answer_turns(questions, order, lambda asked: [
                text or "-" for text in answers_to(model, reads, template, end, asked, given)])
    finally:
        ghost_attention.told_each_time = plain
    return [sum(is_kept(o, t[2 * turn + 1]["content"]) for o, t in zip(order, talks, strict=True)) / len(order)
            for turn in range(TURNS)]


def rows_of(seed, out):
    from minillama.rlhf.llama2_chat import told_each_time, told_once

    start, folder = tuned(out), out / str(seed)
    write_talks(folder, seed)
    models = {"before": start, "told once": haunted(start, folder, seed, "once", told_once),
              "ghost attention": haunted(start, folder, seed, "ghost", told_each_time)}
    for name, model in models.items():
        for what, words in (("learned", [w for w in WORDS if w not in UNSEEN]), ("unseen", UNSEEN)):
            yield seed, name, what, *kept(model, words, seed)
        yield seed, name, "no instruction", *kept(model, WORDS, seed, told=False)


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2"),
        parser.add_argument("--out", type=Path, default="out/ghost", help="for what is trained (default: "
                            "%(default)s)")))
    sys.path.append(str(_rounds.ROOT / "tools"))
    if chosen.small:
        SIZES.update(records=200, talks=40, asked=8)
        STEPS.update(pretrain=40, sft=60, ghost=12)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for seed in chosen.seeds:
        for row in rows_of(seed, chosen.out):
            print("| " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row) + " |", flush=True)


if __name__ == "__main__":
    main()
