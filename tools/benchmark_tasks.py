"""What each benchmark asks: a row of its files -> the texts that a model is shown, its choices, and the right one.

The forms are those of EleutherAI's lm-evaluation-harness, to the letter, because a score depends on them: a space more
in front of an answer is another question. `examples` in front of a question are written the same way.
"""

import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

from benchmark_files import read_split, short

from minillama.train.records import SURROGATE

SUBJECTS = json.loads((Path(__file__).parent / "benchmark_subjects.json").read_text(encoding="utf-8"))
DESCRIPTIONS = {
    "mmlu": "The following are multiple choice questions (with answers) about {}.\n\n",
    "ceval": "以下是中国关于{}的单项选择题，请选出其中的正确答案。\n\n",
    "cmmlu": "以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n"}
LETTERS = "ABCD"
EXAMPLE_SEED = 1234  # of the harness, where examples are drawn


class Question(NamedTuple):
    """One item. texts: what stands before each answer (the same, unless the choice lies in it). answers: without the
    space in front. gold: number of the right one. Where the model writes its answer, one text and the answers that are
    right; a document is one text without an answer."""

    texts: tuple
    answers: tuple
    gold: int
    place: str = ""
    subject: str = ""

    def example(self):
        """The question with its answer, as it stands before others."""
        return f"{self.texts[self.gold]} {self.answers[self.gold]}\n\n"


class Task(NamedTuple):
    """A benchmark: how a row becomes a `Question`, and which splits hold the questions and the examples. drawn:
    how many more examples are drawn for each question than are shown (as the harness does it); None: the first ones
    are shown to all. form: "choice", "written" (the model writes until one of `stop`) or "document"."""

    ask: Callable
    splits: tuple = ("val", "dev")
    example_splits: tuple = ("train",)
    drawn: int | None = 1
    measures: tuple = ("acc", "acc_norm", "acc_bytes", "acc_token", "acc_pmi")
    shots: int = 0
    unconditional: str = "Answer:"
    form: str = "choice"
    stop: tuple = ()


def text_of(row, *names, blank=False):
    """The text of the first field of that name; a number is written out."""
    name = next((name for name in names if row.fields.get(name) is not None), None)
    if name is None:
        raise ValueError(f"{row.place}: field {names[0]!r} is missing: there are {', '.join(map(str, row.fields))}")
    value = row.fields[name]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value != value:  # NaN: what pandas misses
        raise ValueError(f"{row.place}: field {name!r} is {short(value)}: expected a text")
    if not (blank or str(value).strip()):
        raise ValueError(f"{row.place}: field {name!r} is blank: expected a text")
    if SURROGATE.search(str(value)):
        raise ValueError(f"{row.place}: field {name!r} holds half a surrogate pair, which is no character")
    return str(value)


def label_of(row, names, allowed):
    """The number of the right choice: the place of the label among those `allowed`."""
    name = next((name for name in names if row.fields.get(name) is not None), None)
    if name is None:
        raise ValueError(f"{row.place}: field {names[0]!r} is missing: a file without answers cannot be scored")
    value = row.fields[name]
    value = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if value not in list(allowed):  # of a text also "" and "01" would be a part
        raise ValueError(f"{row.place}: field {name!r} is {short(row.fields[name])}: expected one of "
                         f"{', '.join(allowed)}")
    return list(allowed).index(value)


def _question(row, text, answers, gold):
    return Question((text,) * len(answers), tuple(answers), gold, row.place, subject_in(row))


def subject_in(row):
    """The subject that a row names itself, else that of its file."""
    return row.subject if row.fields.get("subject") in (None, "") else text_of(row, "subject")


def boolq(row):
    """A passage and a question that is answered by yes or no."""
    labels = ("0", "1", "False", "True", "false", "true")
    text = f"{text_of(row, 'passage')}\nQuestion: {text_of(row, 'question')}?\nAnswer:"
    return _question(row, text, ("no", "yes"), label_of(row, ("label", "answer"), labels) % 2)


def piqa(row):
    """Which of two ways reaches a goal."""
    return _question(row, f"Question: {text_of(row, 'goal')}\nAnswer:", (text_of(row, "sol1"), text_of(row, "sol2")),
                     label_of(row, ("label",), "01"))


def siqa(row):
    """What people feel, want and do; three answers."""
    answers = [text_of(row, f"answer{letter}") for letter in "ABC"]
    return _question(row, f"Q: {text_of(row, 'context')} {text_of(row, 'question')}\nA:", answers,
                     label_of(row, ("label", "correct"), ("1", "2", "3", "A", "B", "C")) % 3)


def hellaswag(row):
    """How a text goes on."""
    endings = row.fields.get("endings")
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(text, str) and _clean(text) for text in
                                                                    endings):
        raise ValueError(f"{row.place}: field 'endings' is {short(endings)}: expected a list of two texts or more "
                         "(in a CSV as JSON)")
    begin = f"{text_of(row, 'ctx_a')} {text_of(row, 'ctx_b', blank=True).capitalize()}"
    return _question(row, _clean(f"{text_of(row, 'activity_label')}: {begin}"), [_clean(text) for text in endings],
                     label_of(row, ("label",), [str(i) for i in range(len(endings))]))


def _clean(text):
    """Without the marks that WikiHow's pages left in HellaSwag."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def winogrande(row):
    """What a blank stands for, judged by what follows it (arXiv 1806.02847, "partial scoring")."""
    before, blank, after = text_of(row, "sentence").partition("_")
    if not blank or not after.strip():
        raise ValueError(f"{row.place}: field 'sentence' is {short(before + after)}: expected a _ and a text behind it")
    texts = tuple(before + text_of(row, f"option{n}") for n in "12")
    return Question(texts, (after.strip(),) * 2, label_of(row, ("answer", "label"), "12"), row.place, row.subject)


def _of_labelled_choices(row, text, choices):
    """The choices as {"text": [...], "label": [...]} or [{"text": ..., "label": ...}, ...], and answerKey."""
    if isinstance(choices, list) and all(isinstance(one, dict) for one in choices):
        choices = {name: [one.get(name) for one in choices] for name in ("text", "label")}
    texts, labels = (choices.get(name) if isinstance(choices, dict) else None for name in ("text", "label"))
    wrong = ValueError(f"{row.place}: field 'choices' is {short(choices)}: expected two texts or more, and as many "
                       "labels that differ (a CSV holds them as JSON)")
    if not isinstance(texts, list) or not isinstance(labels, list) or None in texts + labels:
        raise wrong
    texts, labels = ([text_of(row._replace(fields={"choices": one}), "choices") for one in part]
                     for part in (texts, labels))  # numbers are written out
    if len(texts) < 2 or not len(texts) == len(labels) == len(set(labels)):
        raise wrong
    return _question(row, text, texts, label_of(row, ("answerKey",), labels))


def _stem_and_choices(row, name):
    """The question's text and choices, in the form of the authors or of the hub."""
    inner = row.fields.get("question")
    if isinstance(inner, dict):
        row = row._replace(fields=inner)
        return text_of(row, "stem"), inner.get("choices")
    return text_of(row, name), row.fields.get("choices")


def arc(row):
    """Questions of school science, easy or hard; mostly four answers."""
    stem, choices = _stem_and_choices(row, "question")
    return _of_labelled_choices(row, f"Question: {stem}\nAnswer:", choices)


def obqa(row):
    """Sentences of elementary science to complete; four endings."""
    return _of_labelled_choices(row, *_stem_and_choices(row, "question_stem"))


def by_letter(row, name, answer):
    """Exam questions, with the four choices shown and answered by their letter."""
    choices = row.fields.get("choices")
    if choices is None:
        choices = [text_of(row, letter, blank=True) for letter in LETTERS]
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        raise ValueError(f"{row.place}: field 'choices' is {short(choices)}: expected {len(LETTERS)} texts")
    choices = [text_of(row._replace(fields={"choices": choice}), "choices", blank=True) for choice in choices]
    lines = [text_of(row, "question", "Question").strip(), *(f"{letter}. {choice}" for letter, choice in
                                                             zip(LETTERS, choices, strict=True)), answer]
    gold = label_of(row, ("answer", "Answer"), (*LETTERS, "0", "1", "2", "3")) % len(LETTERS)
    return _question(row, "\n".join(lines), LETTERS, gold)


def gsm8k(row):
    """Sums told as stories; the model writes its way and then #### and the number."""
    answer = text_of(row, "answer")
    if not re.search(r"(####|^) *-?\$?[0-9.,]*[0-9]\.?$", answer.strip()):
        raise ValueError(f"{row.place}: field 'answer' is {short(answer)}: expected a text that ends in #### and a "
                         "number, or a number alone")
    return Question((f"Question: {text_of(row, 'question')}\nAnswer:",), (answer,), 0, row.place, row.subject)


def triviaqa(row):
    """What everybody may know; the model writes a word or a few, and each of several spellings is right."""
    answers = row.fields.get("answer")
    answers = answers.get("aliases") if isinstance(answers, dict) else answers
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(
            isinstance(one, str) and one.strip() for one in answers):
        raise ValueError(f"{row.place}: field 'answer' is {short(row.fields.get('answer'))}: expected a text, a list "
                         "of texts, or {\"aliases\": [texts]}")
    return Question((f"Question: {text_of(row, 'question')}?\nAnswer:",), tuple(answers), 0, row.place, row.subject)


def document(row):
    """A text to be read as it stands."""
    return Question((text_of(row, "text", "page"),), (), 0, row.place, row.subject)


def _exam(name, answer, splits):
    return Task(partial(by_letter, name=name, answer=answer), splits, ("dev",), None, ("acc",), 5, answer)


TASKS = {"boolq": Task(boolq), "piqa": Task(piqa), "siqa": Task(siqa), "hellaswag": Task(hellaswag),
         "winogrande": Task(winogrande, measures=("acc",)), "arc_easy": Task(arc, ("test", "val", "dev"), drawn=0),
         "arc_challenge": Task(arc, ("test", "val", "dev"), drawn=0),
         "obqa": Task(obqa, ("test", "val", "dev"), drawn=0),
         "mmlu": _exam("mmlu", "Answer:", ("test", "val")), "ceval": _exam("ceval", "答案：", ("val", "test")),
         "cmmlu": _exam("cmmlu", "答案：", ("test",)),
         "gsm8k": Task(gsm8k, ("test",), drawn=0, measures=("exact_match", "last_number"), shots=5, form="written",
                       stop=("Question:", "</s>", "<|im_end|>")),
         "triviaqa": Task(triviaqa, measures=("exact_match",), form="written", stop=("\n", ".", ",")),
         "text": Task(document, ("test", "val", ""), measures=("bits_per_byte",), form="document")}
CHOICES = [name for name, task in TASKS.items() if task.form == "choice"]


def groups_of(name, subject):
    """The groups of subjects that a benchmark's subject belongs to, the one that it is listed in first."""
    return [group for group, subjects in SUBJECTS.get(name, {}).items() if subject in subjects] or [""]


def title_of(name, subject):
    """The subject's own name in the benchmark's language."""
    return SUBJECTS.get(name, {}).get(groups_of(name, subject)[0], {}).get(subject) or subject.replace("_", " ")


def read_task(folder, name, shots=None, limit=None):
    """The questions of a benchmark, each with `shots` examples in front (default: 5 for exams, else none); of each
    subject the first `limit`.

    ValueError where it has no such split, a row is bad, or there are too few examples.
    """
    task, seen = TASKS[name], {}
    questions = [task.ask(row) for row in read_split(folder, name, task.splits)]
    if not questions:
        raise ValueError(f"{Path(folder) / name}: no question in a file of the split "
                         f"{' or '.join(filter(None, task.splits))}: name one so, with a row for each question")
    for question in questions:
        seen.setdefault(question.subject, []).append(question)
    questions = [question for group in seen.values() for question in group[:limit]]
    shots = 0 if task.form == "document" else task.shots if shots is None else shots
    apart = shots and (Path(folder) / name).is_dir()  # one file holds the questions, which must not show themselves
    examples = [task.ask(row) for row in read_split(folder, name, task.example_splits)] if apart else []
    return _with_examples(name, task, questions, examples, shots)


def _with_examples(name, task, questions, examples, shots):
    rng = random.Random(EXAMPLE_SEED)
    for number, question in enumerate(questions):
        pool = [one for one in examples if one.subject == question.subject] if task.drawn is None else examples
        if len(pool) < shots + (task.drawn or 0) * bool(shots):
            raise ValueError(f"{name}: {len(pool)} examples for {question.place} in the split "
                             f"{' or '.join(task.example_splits)}, fewer than --shots {shots}: give them, or --shots 0")
        drawn = task.drawn is not None and shots > 0
        shown = rng.sample(pool, shots + task.drawn)[:shots] if drawn else pool[:shots]
        front = DESCRIPTIONS.get(name, "").format(title_of(name, question.subject))
        front += "".join(example.example() for example in shown)
        questions[number] = question._replace(texts=tuple(front + text for text in question.texts))
    return questions
