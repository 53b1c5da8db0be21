"""Ghost attention, so that an instruction lasts over turns: `run.py ghost-attention --model PATH --data ... --out DIR`.

Llama 2-Chat's (arXiv 2307.09288, section 3.3): the user's side of each conversation is answered by the model with an
instruction before every message; what is written holds the instruction once, as the system message, and gives all
answers but the last the weight 0. `sft --data DIR/ghost.jsonl` learns it, together with conversations without one.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from resumable_command import end_well

from minillama.backends import use_kernels
from minillama.cli import flags
from minillama.cli.model_arguments import add_template, load_from_args, take_template
from minillama.config_checks import MOST, Range
from minillama.rlhf.llama2_chat import told_each_time, told_once
from minillama.rlhf.rollout import sample_answers
from minillama.system.claim import claim_new
from minillama.system.files import atomic_write
from minillama.train.chat_template import end_of_answer, template_function
from minillama.train.records import read_records
from minillama.train.sequence_loss import encode_segments


def read_instructions(path):
    """The lines of a text file; ValueError where none holds anything, or the file is no UTF-8."""
    try:
        found = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8: save the instructions as UTF-8 text") from None
    if not found:
        raise ValueError(f"{path}: no instruction in it: write one a line, such as: Answer in one sentence.")
    return found


def ghost_record(instruction, messages):
    """The conversation as `sft` learns it: the instruction once, the last answer alone (section 3.3 gives all tokens of
    earlier turns no loss, for their answers were sampled under another prompt)."""
    told, last = told_once(instruction, messages), len(messages)
    return {"messages": [dict(message, weight=int(place == last)) if message["role"] == "assistant" else message
                         for place, message in enumerate(told)]}


def answer_turns(questions, instructions, answer):
    """Conversations answered turn by turn: questions, instructions: of each, its user's messages and what it is told.
    answer([messages, ...]) -> texts, None for an answer that failed, which leaves its conversation out (None)."""
    talks = [[] for _ in questions]
    for turn in range(max(map(len, questions))):
        alive = [i for i, talk in enumerate(talks) if talk is not None and turn < len(questions[i])]
        asked = [[*talks[i], {"role": "user", "content": questions[i][turn]}] for i in alive]
        texts = answer([told_each_time(instructions[i], talk) for i, talk in zip(alive, asked, strict=True)])
        for i, talk, text in zip(alive, asked, texts, strict=True):
            talks[i] = text and [*talk, {"role": "assistant", "content": text}]
    return talks


@torch.no_grad()
def answers_to(model, tokenizer, template, end, talks, arguments):
    """An answer's text to each conversation; None where it does not fit or does not end, or an answer before it holds a
    mark of the template, which the template refuses."""
    prompts, room = [], model.config.max_seq_len - arguments.max_new_tokens
    for talk in talks:
        try:
            prompts.append(encode_segments(template(talk), tokenizer).tokens)
        except ValueError:
            prompts.append(None)
    fitting = [i for i, ids in enumerate(prompts) if ids and len(ids) <= room]
    found = [None] * len(talks)
    for first in range(0, len(fitting), arguments.batch_size):
        part = fitting[first:first + arguments.batch_size]
        rollout = sample_answers(model, [prompts[i] for i in part], end, arguments.max_new_tokens,
                                 arguments.temperature, arguments.seed + first + len(talks[0]))  # turns differ
        for i, text, ended in zip(part, rollout.texts(tokenizer), rollout.ended_B.tolist(), strict=True):
            found[i] = ended and text.strip() or None
    return found


def run_ghost(arguments):
    """Read, sample, write."""
    out = Path(arguments.out) / "ghost.jsonl"
    with claim_new(out):
        return write_conversations(arguments, out)


def write_conversations(arguments, out):
    """What `run_ghost` does where `out` is its own."""
    instructions, rng = read_instructions(arguments.instructions), random.Random(arguments.seed)
    questions = [[message["content"] for message in record.messages if message["role"] == "user"]
                 for record in read_records(arguments.data).records][:arguments.limit]
    told = [rng.choice(instructions) for _ in questions]
    model, tokenizer = load_from_args(arguments)
    name = take_template(arguments, tokenizer, "llama2")
    template, end = template_function(name, tokenizer), end_of_answer(name, tokenizer)
    if end is None:
        raise ValueError(f"template {name} ends an answer with no token of its own: choose another --template")
    template(told_once(instructions[0], [{"role": "user", "content": "?"}]))  # has it a place for a system text?
    use_kernels(model.eval(), "torch")
    talks = answer_turns(questions, told, lambda asked: answers_to(model, tokenizer, template, end, asked, arguments))
    rows = [ghost_record(*pair) for pair in zip(told, talks, strict=True) if pair[1]]
    if not rows:
        raise ValueError(f"no conversation fits the context of {model.config.max_seq_len} with every answer ended "
                         f"within {arguments.max_new_tokens} tokens: shorten them, or give another --max-new-tokens")
    with atomic_write(out, "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{out}: {len(rows)} of {len(talks)} conversations under {len(set(told))} instructions; the rest did not "
          "fit or did not end, or held a mark of the template", file=sys.stderr)
    return 0


def parser():
    found = argparse.ArgumentParser(prog="run.py ghost-attention", description=__doc__.split("\n")[0])
    for flag, help in (("--model", "the fine-tuned model, a folder or file"),
                       ("--data", "JSON or JSONL, conversations: the user's messages are kept, the answers made anew"),
                       ("--instructions", "text, one instruction a line"), ("--out", "for ghost.jsonl")):
        found.add_argument(flag, required=True, metavar="PATH", help=help)
    add_template(found, "llama2")
    flags.add_number(found, "--max-new-tokens", Range(1, MOST), 64, help="of an answer")
    flags.add_number(found, "--temperature", Range(1e-9), 1.0, float, help="of sampling")
    flags.add_number(found, "--batch-size", Range(1, 4096), 32, help="conversations at once")
    flags.add_number(found, "--limit", Range(1, MOST), help="only the first N conversations")
    flags.add_number(found, "--seed", Range(0, MOST), 0, help="of the instructions' draw and the answers")
    flags.add_device(found)
    return found


def main(words=None):
    return end_well(run_ghost, parser().parse_args(words), kept=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
