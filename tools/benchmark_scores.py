"""How a model does on questions: each becomes an item, a dict that says where it stands and what came of it.

Choices are scored by their likelihood; answers that the model writes are held against the right ones; of a document its
nats are counted, and the tokens, bytes and words that they may be divided by.
"""

from benchmark_tasks import TASKS

from minillama.evaluate.exact_match import exact_match, extract, write_answers
from minillama.evaluate.likelihood import chosen, encode_pair, log_likelihoods, text_nats_and_counts

IGNORED = (",", r"\$", "(?s).*#### ", r"\.$")  # of sums: signs within and around a number, the way to it
MATCHES = {  # task: {measure: whether what was written counts as one of the answers}; all as the harness does it
    "gsm8k": {"exact_match": lambda text, answers: exact_match(
                  extract(text, r"#### (\-?[0-9\.\,]+)"), answers, IGNORED),
              "last_number": lambda text, answers: exact_match(
                  extract(text, r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1), answers, IGNORED)},
    "triviaqa": {"exact_match": lambda text, answers: exact_match(text.strip(), answers, punctuation=False)}}


def score(model, tokenizer, name, questions, batch_size=16, stride=None, max_new_tokens=256):
    """Items as items.jsonl holds them, one for each question of the task `name`."""
    form = TASKS[name].form
    if form == "choice":
        return score_questions(model, tokenizer, name, questions, batch_size)
    if form == "written":
        made = _written(model, tokenizer, name, questions, batch_size, max_new_tokens)
    else:
        made = [_document(model, tokenizer, question, stride, batch_size) for question in questions]
    return [{"task": name, "subject": question.subject, "place": question.place, **one}
            for question, one in zip(questions, made, strict=True)]


def _written(model, tokenizer, name, questions, batch_size, max_new_tokens):
    prompts = [question.texts[0] for question in questions]
    texts = write_answers(model, tokenizer, prompts, max_new_tokens, TASKS[name].stop, batch_size)
    return [{"written": text, **{measure: int(matches(text, question.answers))
                                 for measure, matches in MATCHES[name].items()}}
            for text, question in zip(texts, questions, strict=True)]


def _document(model, tokenizer, question, stride, batch_size):
    try:
        return text_nats_and_counts(model, tokenizer, question.texts[0], stride, batch_size)
    except ValueError as error:
        raise ValueError(f"{question.place}: {error}") from None


def score_questions(model, tokenizer, name, questions, batch_size=16):
    """Items as items.jsonl holds them, one for each question of the task `name`."""
    task, pairs = TASKS[name], []
    for question in questions:
        try:
            pairs += [encode_pair(tokenizer, text, " " + answer)
                      for text, answer in zip(question.texts, question.answers, strict=True)]
            if "acc_pmi" in task.measures:
                pairs += [encode_pair(tokenizer, task.unconditional, " " + answer) for answer in question.answers]
        except ValueError as error:
            raise ValueError(f"{question.place}: {error}") from None
        if (longest := max(len(rest) for _, rest in pairs[-len(question.answers):])) > model.config.max_seq_len:
            raise ValueError(f"{question.place}: a choice of {longest} tokens, and the model reads "
                             f"{model.config.max_seq_len}: shorten it, or leave the question out")
    sums, place, items = log_likelihoods(model, pairs, batch_size), 0, []
    for question in questions:
        n = len(question.answers)
        n_tokens = [len(rest) for _, rest in pairs[place:place + n]]
        ours, place = sums[place:place + n], place + n
        unconditional = None
        if "acc_pmi" in task.measures:
            unconditional, place = sums[place:place + n], place + n
        taken = chosen(ours, question.answers, n_tokens, unconditional)
        items.append({"task": name, "subject": question.subject, "place": question.place, "gold": question.gold,
                      "log_likelihoods": ours, "unconditional": unconditional,
                      **{measure: int(taken[measure] == question.gold) for measure in task.measures}})
    return items
