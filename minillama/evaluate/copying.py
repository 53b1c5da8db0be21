"""Whether answers name what their question names: what can be seen of copying without knowing the task.

A name is a word that some questions hold and most do not. A model that has not learned to copy writes such words, for
it has seen them in answers, but those of other questions. The share of such answers in the user's own is what it is
compared with.
"""

import re

from minillama.rlhf.preferences import Pair
from minillama.rlhf.train_reward import encode_pairs, held_out_scores

WORD = re.compile(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+")  # a character is a word where none stand apart (Chinese)
COMMON = 0.2  # a word that stands in more of the questions than this names nothing
LEAST = 20  # cases, of which a mean says something
SEEN = 0.25  # deviations of the score: a reward model that gains less by the right question hardly sees it


def words_of(text):
    """The words of a text, in lower case, as a set."""
    return set(WORD.findall(text.lower()))


def rare_words_in(questions):
    """The names that questions hold: their words, but for those of more than COMMON of the questions, as a set.

    >>> sorted(rare_words_in([f"Where is {town}?" for town in ("Rome", "Oslo", "Bern", "Cork", "Paris")]))
    ['bern', 'cork', 'oslo', 'paris', 'rome']
    """
    held = [words_of(question) for question in dict.fromkeys(questions)]
    count = {}
    for word in (word for words in held for word in words):
        count[word] = count.get(word, 0) + 1
    return {word for word, n in count.items() if n <= COMMON * len(held)}


def name_shares(questions, answers, names):
    """(share of answers that name something their own question names, share that name something it does not)."""
    pairs = [(words_of(question), words_of(answer) & names)
             for question, answer in zip(questions, answers, strict=True)]
    own, other = sum(bool(named & asked) for asked, named in pairs), sum(bool(named - asked) for asked, named in pairs)
    return own / max(len(pairs), 1), other / max(len(pairs), 1)


def allowed_difference(n):
    """How far two shares of n answers may differ before it is said: two standard errors (at most) plus 0.1."""
    return 0.1 + max(n, 1) ** -0.5


def diagnose_copying(questions, asked, given, made):
    """A sentence, or "", on the answers that a tuned model made to unseen questions (asked) beside those that were
    given. questions: all there are, to tell what is a name. The bounds are rules of thumb, as in `diagnosis`."""
    names = rare_words_in(questions)
    (own, other), (made_own, made_other) = (name_shares(asked, answers, names) for answers in (given, made))
    if made_other > other + allowed_difference(len(asked)):
        found = f"name what another question names, of your own {other:.0%}", made_other
    elif made_own < own - allowed_difference(len(asked)):
        found = f"name what the question names, of your own {own:.0%}", made_own
    else:
        return ""
    return (f"{found[1]:.0%} of the model's answers to unseen questions {found[0]}: it has learned too little copying. "
            "Try more --text-steps, a lower --text-max-lr, or more answers")


def diagnose_records(records, asked, made):
    """`diagnose_copying` of `train.records.Record`s: all, those that were asked, and [(text, whether it ended)]."""
    return diagnose_copying([record.question for record in records], [record.question for record in asked],
                            [record.messages[-1]["content"] for record in asked], [text for text, _ in made])


def diagnose_forgetting(questions, asked, before, after, sight):
    """A sentence, or "", on the answers to `asked` after practice beside those before it.

    sight() -> what `gain_under_own_question` measures of the reward model, asked for where answers have become worse:
    one that does not see the names lets practice forget them.
    """
    names = rare_words_in([*questions, *asked])
    (_, first), (_, last) = (name_shares(asked, answers, names) for answers in (before, after))
    if last <= first + allowed_difference(len(asked)):
        return ""
    gain, n = sight()
    blind = n >= LEAST and gain < SEEN
    return (f"{last:.0%} of the answers after practice name what another question names, before {first:.0%}: the "
            "policy forgets what it was asked" + blind * (
                f", and the reward model does not see it (an answer under its own question gains {gain:.2f} deviations "
                "of the score on the same under another)")
            + ". Try a lower --kl-target, or pairs whose worse answer is right for another question")


def scores_of(reward_model, tokenizer):
    """f(rows of (question, answer)) -> the reward model's scores, (rows,)."""
    return lambda rows: held_out_scores(reward_model, encode_pairs([Pair(*row, row[1]) for row in rows], tokenizer))[0]


def gain_under_own_question(questions, pairs, score):
    """(how much more an answer scores under its own question than under another, of which it names nothing, in
    deviations of the scores; of how many answers that is the mean): whether a reward model sees what questions name.

    pairs: `Pair`s it was never taught, of which the chosen answers that name something are taken; score(rows of
    (question, answer)) -> a tensor (`scores_of`). (0, n) where fewer than two answers tell, or all score alike.
    """
    names = rare_words_in([*questions, *(pair.prompt for pair in pairs)])
    telling = [(question, answer, words_of(answer) & names) for question, answer, _ in pairs
               if words_of(answer) & names & words_of(question)]
    other = [next((asked for asked, *_ in telling[i:] + telling[:i] if not words_of(asked) & named), None)
             for i, (*_, named) in enumerate(telling)]
    rows = [(question, asked, answer) for (question, answer, _), asked in zip(telling, other, strict=True) if asked]
    if len(rows) < 2:
        return 0.0, len(rows)
    own, others = (score([(row[i], row[2]) for row in rows]) for i in (0, 1))
    deviation = own.std(correction=0).item()
    return ((own - others).mean().item() / deviation if deviation else 0.0), len(rows)
