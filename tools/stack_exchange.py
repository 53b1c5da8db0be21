"""Your own Stack Exchange dump as lessons for a model: `run.py stack-exchange --posts Posts.xml --out DIR`.

Reads Posts.xml row by row into a database on disk (a dump is larger than memory), turns the HTML of each post into
Markdown, and writes, as StackLLaMA did with all of Stack Exchange:

    text.txt         questions with their best answers, for `pretrain --model`: plain text of the field, every token of
                     it learned, before any answer is
    answers.jsonl    question -> best answer, for `sft`
    pairs.jsonl      two answers to a question, the better voted first, at most ten a question, for `reward`
    prompts.jsonl    questions for `ppo`
    held_out.jsonl   pairs of questions that are in none of these

The files share no question: a hash of its number decides, so that a longer dump of the same site moves none. An
answer's score is round(log2(1 + votes)), one more if accepted, -1 if voted down (`preferences.vote_score`).
"""

import argparse
import json
import sqlite3
import sys
import zlib
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from xml.parsers import expat

from resumable_command import end_well

from minillama.cli.flags import add_number
from minillama.config_checks import Range
from minillama.rlhf.preferences import thread_pairs, vote_score
from minillama.system.files import atomic_write

FILES = ("held_out.jsonl", "answers.jsonl", "pairs.jsonl", "prompts.jsonl")
CHUNK = 1 << 20  # bytes read at once
LONGEST_POST = 1 << 20  # characters: a longer one is left out and counted


def rows_of(path):
    """Yield the attributes of each <row> of the file, a dict of texts.

    A dump declares no document type. One that does is refused at that line: entities are what makes a small file
    expand without end, or fetch others. ValueError in one line for this and for anything that is not XML.
    """
    parser, found = expat.ParserCreate(), []

    def refuse(*_):
        raise ValueError(f"{path}:{parser.CurrentLineNumber}: a document type is declared, which no dump has and whose "
                         "entities could expand without end: take a dump as Stack Exchange publishes it")

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    parser.StartElementHandler = lambda name, attributes: found.append(attributes) if name == "row" else None
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            yield from parsed(path, parser, found, chunk)
        yield from parsed(path, parser, found, b"", last=True)


def parsed(path, parser, found, chunk, last=False):
    """The rows that a chunk completes."""
    try:
        parser.Parse(chunk, last)
    except expat.ExpatError as error:
        raise ValueError(f"{path}:{error.lineno}: not XML: {expat.errors.messages[error.code]}") from None
    rows = list(found)
    found.clear()
    return rows


def store(path, base):
    """The questions and answers of the dump into the database -> how many posts were left out for their length."""
    base.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, parent INTEGER, votes INTEGER, accepted INTEGER, "
                 "title TEXT, body TEXT)")
    long = 0
    for row in rows_of(path):
        if row.get("PostTypeId") not in ("1", "2"):
            continue
        if len(row.get("Body", "")) > LONGEST_POST:
            long += 1
            continue
        try:
            values = [int(row["Id"]), int(row.get("ParentId", 0)), int(row["Score"]),
                      int(row.get("AcceptedAnswerId", 0)), row.get("Title", ""), row["Body"]]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: the post of Id {row.get('Id')!r:.40} has no proper {explain_field(error)}: it "
                             "needs the numbers Id and Score, and a Body") from None
        base.execute("INSERT OR REPLACE INTO posts VALUES (?, ?, ?, ?, ?, ?)", values)
    base.execute("CREATE INDEX by_parent ON posts (parent)")
    return long


def explain_field(error):
    """The field that is missing, or the text that is no number."""
    return str(error.args[0]) if isinstance(error, KeyError) else f"number ({error})"


def threads_of(base, to_text):
    """Yield (number, thread) of each question with an answer: what `preferences.thread_pairs` reads, in Markdown."""
    questions = base.execute("SELECT id, accepted, title, body FROM posts WHERE parent = 0 ORDER BY id")
    for number, accepted, title, body in questions:
        answers = base.execute("SELECT id, votes, body FROM posts WHERE parent = ? ORDER BY id", (number,)).fetchall()
        made = tuple(SimpleNamespace(text=to_text(text), upvotes=votes, accepted=answer == accepted)
                     for answer, votes, text in answers)
        made = tuple(answer for answer in made if answer.text)
        question = "\n\n".join(filter(None, (title.strip(), to_text(body))))
        if made and question:
            yield number, SimpleNamespace(question=question, answers=made)


def part_of(number, shares, seed=0):
    """Which of the parts a question is in, by a hash of its number: 0, 1, ... with the given shares, of sum 1."""
    place, total = zlib.crc32(f"{seed} {number}".encode()) / 2**32, 0.0
    for part, share in enumerate(shares):
        total += share
        if place < total:
            return part
    return len(shares) - 1


def best_answer(thread):
    """The answer of the highest score, the earliest of several."""
    return max(thread.answers, key=lambda answer: vote_score(answer.upvotes, answer.accepted)).text


def write_all(threads, out, shares, most_pairs):
    """The five files -> {name: how many lines, "questions": of all}."""
    counts = dict.fromkeys(("questions", *FILES), 0)
    with ExitStack() as stack:
        files = {name: stack.enter_context(atomic_write(out / name, "w")) for name in (*FILES, "text.txt")}

        def write(name, record):
            counts[name] += 1
            files[name].write(json.dumps(record, ensure_ascii=False) + "\n")

        for number, thread in threads:
            counts["questions"] += 1
            name = FILES[part_of(number, shares)]
            if name != "held_out.jsonl":
                files["text.txt"].write(f"{thread.question}\n\n{best_answer(thread)}\n\n")
            if name == "answers.jsonl":
                write(name, {"instruction": thread.question, "output": best_answer(thread)})
            elif name == "prompts.jsonl":
                write(name, {"prompt": thread.question})
            else:
                for pair in thread_pairs(thread, most_pairs):
                    write(name, pair._asdict())
    return counts


def markdown():
    """The function from HTML to Markdown; ValueError where the extra is not installed."""
    try:
        from markdownify import markdownify
    except ImportError:
        raise ValueError("HTML becomes Markdown by the extra `stack-exchange`: pip install "
                         "'minillama[stack-exchange]'") from None
    return lambda html: markdownify(html, heading_style="ATX").strip()


def run_stack_exchange(arguments):
    """Read, split, write, and say what there is."""
    shares, out = [arguments.held_out_fraction], Path(arguments.out)
    left = [share / sum(arguments.shares) for share in arguments.shares]
    shares += [share * (1 - shares[0]) for share in left]
    to_text = markdown()
    if any((out / name).exists() for name in FILES):
        raise ValueError(f"{out} already holds such files: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "posts.db"
    path.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path)) as base:
            long = store(arguments.posts, base)
            counts = write_all(threads_of(base, to_text), out, shares, arguments.most_pairs)
    finally:
        path.unlink(missing_ok=True)
    print(f"{out}: {counts['questions']:,} questions with answers; " + ", ".join(
        f"{counts[name]:,} lines in {name}" for name in FILES) + (f"; {long:,} posts too long" if long else ""))
    return 0


def parser():
    found = argparse.ArgumentParser(prog="run.py stack-exchange", description=__doc__.split("\n")[0])
    found.add_argument("--posts", required=True, metavar="FILE", help="Posts.xml of a site's dump")
    found.add_argument("--out", required=True, metavar="DIR", help="for the five files")
    found.add_argument("--shares", nargs=3, type=float, default=[0.4, 0.4, 0.2], metavar="S",
                       help="of questions for answers, pairs and prompts (default: %(default)s)")
    add_number(found, "--held-out-fraction", Range(0, below=1), 0.05, float, "of the questions")
    add_number(found, "--most-pairs", Range(1, 10**6), 10, help="of a question")
    return found


def main(words=None):
    asked = parser()
    arguments = asked.parse_args(words)
    if not all(share > 0 for share in arguments.shares):
        asked.error(f"--shares {arguments.shares}: each must be above 0")
    return end_well(run_stack_exchange, arguments)


if __name__ == "__main__":
    sys.exit(main())
