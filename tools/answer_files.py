"""Files of questions, and of answers to them: JSONL or JSON, one object for each question.

A question may be called `question`, `prompt` or `instruction`, an answer `answer`, `response` or `output`. What is
wrong with a file is one line that names file, line, field and what is allowed.
"""

from minillama.train.records import SURROGATE, json_values

QUESTION, ANSWER = ("question", "prompt", "instruction"), ("answer", "response", "output")


def read_answers(path):
    """{question: (answer, place)} in the file's order. An answer may be empty; a question stands once."""
    found = {}
    for place, fields in _objects(path):
        question = _text(fields, QUESTION, place)
        if question in found:
            raise ValueError(f"{place}: the same question as {found[question][1]}: which answer counts? Keep one")
        found[question] = _text(fields, ANSWER, place, empty=True), place
    if not found:
        raise ValueError(f"{path}: no answer: give objects with a question and an answer, one on each line")
    return found


def read_both(ours, theirs, questions=None):
    """[(question, our answer, their answer), ...] in our order, or in that of `questions`; ValueError for a question
    that only one of them answers."""
    one, other = read_answers(ours), read_answers(theirs)
    for here, there, path in ((one, other, theirs), (other, one, ours)):
        for question, (_, place) in here.items() if questions is None else ():
            if question not in there:
                raise ValueError(f"{place}: {question[:60]!r} has no answer in {path}: both must answer the same "
                                 "questions, spelled the same")
    for question in questions or ():
        if question not in one:
            raise ValueError(f"{ours}: no answer to {question[:60]!r}, which --prompts asks: give one, or leave it out")
    return [(question, one[question][0], other[question][0]) for question in questions or one]


def read_prompts(path):
    """The questions of a file, each once, in its order."""
    found = dict.fromkeys(_text(fields, QUESTION, place) for place, fields in _objects(path))
    if not found:
        raise ValueError(f"{path}: no question: give objects with a field 'question', one on each line")
    return list(found)


def _objects(path):
    for line, value in json_values(path):
        if isinstance(value, ValueError):
            raise ValueError(f"{path}:{line}: {value}")
        if not isinstance(value, dict):
            raise ValueError(f"{path}:{line}: {type(value).__name__}: expected an object of question and answer")
        yield f"{path}:{line}", value


def _text(fields, names, place, empty=False):
    """The text of the first field of these names that is there."""
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise ValueError(f"{place}: no field {', '.join(names[:-1])} or {names[-1]}: there are "
                         f"{', '.join(map(str, fields)) or 'none'}"[:200])
    text = fields[name]
    if not isinstance(text, str):
        raise ValueError(f"{place}: field {name!r} is {type(text).__name__}: expected a text")
    if not (empty or text.strip()):
        raise ValueError(f"{place}: field {name!r} is blank: expected a text")
    if SURROGATE.search(text):
        raise ValueError(f"{place}: field {name!r} holds half a surrogate pair, which is no character")
    return text
