"""Laws of written answers: what counts of a text is what the harness counts, and the model stops where it must."""

import random

import pytest
import torch
from letters import Letters
from mutants import Mutant

from minillama.config import ModelConfig
from minillama.evaluate.exact_match import NONE_FOUND, exact_match, extract, normalize, write_answers, write_texts
from minillama.generate import generate_text
from minillama.transformer import Transformer

STRICT, LAST = r"#### (\-?[0-9\.\,]+)", r"(-?[$0-9.,]{2,})|(-?[0-9]+)"


def test_a_pattern_takes_its_first_or_last_match_and_says_where_there_is_none():
    text = "3 + 4 is 7.\n#### 1,207\n#### 8"
    assert (extract(text, STRICT), extract(text, STRICT, -1), extract(text, LAST, -1)) == ("1,207", "8", "8")
    assert extract("-5 or $1,200.", LAST, -1) == "$1,200." and extract("it is -5", LAST, -1) == "-5"
    assert extract("seven", STRICT) == extract("", LAST, -1) == NONE_FOUND
    assert extract("a ", "(a) |(b)") == "a" and extract("c", "(a)?(b)?c") == NONE_FOUND


def test_answers_are_equal_but_for_what_is_ignored():
    ignore = (",", r"\$", "(?s).*#### ", r"\.$")
    assert normalize("So it is\n#### $1,200.", ignore) == "1200"
    assert exact_match("1,200", ["way\n#### 1200"], ignore) and not exact_match("1200.5", ["#### 1200"], ignore)
    assert exact_match("the U.S.", ["USA", "The US"], punctuation=False) and not exact_match("the U.S.", ["The US"])
    assert not exact_match(NONE_FOUND, ["#### 7"], ignore) and not exact_match("7", [])



def test_an_answer_ends_at_a_stop_or_the_limit_and_a_long_question_loses_its_beginning():
    torch.manual_seed(0)
    tokenizer = Letters()
    model = Transformer(ModelConfig(8, 1, 2, Letters.vocab_size, hidden_dim=16, max_seq_len=16)).eval()
    with torch.no_grad():
        model.output.weight[:3] = 0  # it never ends by itself
    whole = write_answers(model, tokenizer, ["how"], 8, ())[0]
    assert len(whole) == 8
    assert write_answers(model, tokenizer, ["how"], 8, (whole[-1],))[0] == whole[:whole.index(whole[-1])]
    assert write_answers(model, tokenizer, ["how"], 3, ())[0] == whole[:3]
    read = []
    model.tok_embeddings.register_forward_hook(lambda part, given, _: read.append(given[0].tolist()[0]))
    write_answers(model, tokenizer, ["abcdefghijklmnop"], 10, ())
    assert read[0] == tokenizer.encode("klmnop")
    with pytest.raises(ValueError, match="max_new_tokens 16 leave no room for a question: the model's max_seq_len"):
        write_answers(model, tokenizer, ["how"], 16, ())


def test_answers_written_several_at_once_are_those_written_one_by_one():
    """Of unequal questions, to ends, stops and the limit; in float64, so that no tie turns on rounding."""
    tokenizer, ended = Letters(), set()
    for seed in range(3):
        torch.manual_seed(seed)
        model = Transformer(ModelConfig(8, 2, 2, Letters.vocab_size, hidden_dim=16, max_seq_len=32)).double().eval()
        with torch.no_grad():
            model.output.weight *= 3
        rng = random.Random(seed)
        rows = [[rng.randrange(3, 30) for _ in range(1 + rng.randrange(20))] for _ in range(11)]
        plain = write_texts(model, tokenizer, rows, 12)
        within = [(text[i - 1:i + 2], text[i]) for text in plain for i in range(1, len(text) - 1)
                  if text.find(text[i]) == i][:1]  # the one that begins later ends first
        assert within
        for stop in ((), ("e", "th"), ("a", "b", " "), *within):
            wanted = ["".join(generate_text(model, tokenizer, row, 12, stop=stop)) for row in rows]
            ended |= {(bool(stop), len(text) < 12) for text in wanted}
            for batch_size in (1, 3, 8, 11):
                assert write_texts(model, tokenizer, rows, 12, stop, batch_size=batch_size) == wanted
    assert len(ended) == 4, "some end by themselves, some at a stop, some at the limit"
    assert write_texts(model, tokenizer, [], 12) == []


TOGETHER = test_answers_written_several_at_once_are_those_written_one_by_one


def plant(old, new, law):
    return Mutant("minillama.evaluate.exact_match", old, new, law)


MUTANTS = [
    plant("found[place]", "found[0]", test_a_pattern_takes_its_first_or_last_match_and_says_where_there_is_none),
    plant("text.lower() if punctuation", "text.lower() if not punctuation",
          test_answers_are_equal_but_for_what_is_ignored),
    plant("any(normalize", "all(normalize", test_answers_are_equal_but_for_what_is_ignored),
    plant("[-room:]", "[:room]",
          test_an_answer_ends_at_a_stop_or_the_limit_and_a_long_question_loses_its_beginning),
    plant("for word in stop if word in text", "for word in () if word in text",
          test_an_answer_ends_at_a_stop_or_the_limit_and_a_long_question_loses_its_beginning),
    plant("text.find(word) + len(word), text.find(word)", "text.find(word), text.find(word)", TOGETHER),
    plant("going.discard(number)", "going.clear()", TOGETHER),
]
