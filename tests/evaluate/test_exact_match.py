"""Laws of written answers: what counts of a text is what the harness counts, and the model stops where it must."""

import pytest
import torch
from letters import Letters
from mutants import Mutant

from minillama.config import ModelConfig
from minillama.evaluate.exact_match import NONE_FOUND, exact_match, extract, normalize, write_answer
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
    whole = write_answer(model, tokenizer, "how", 8, ())
    assert len(whole) == 8
    assert write_answer(model, tokenizer, "how", 8, (whole[-1],)) == whole[:whole.index(whole[-1])]
    assert write_answer(model, tokenizer, "how", 3, ()) == whole[:3]
    read = []
    model.tok_embeddings.register_forward_hook(lambda part, given, _: read.append(given[0].tolist()[0]))
    write_answer(model, tokenizer, "abcdefghijklmnop", 10, ())
    assert read[0] == tokenizer.encode("klmnop")
    with pytest.raises(ValueError, match="max_new_tokens 16 leave no room for a question: the model's max_seq_len"):
        write_answer(model, tokenizer, "how", 16, ())


def plant(old, new, law):
    return Mutant("minillama.evaluate.exact_match", old, new, law)


MUTANTS = [
    plant("found[place]", "found[0]", test_a_pattern_takes_its_first_or_last_match_and_says_where_there_is_none),
    plant("text.lower() if punctuation", "text.lower() if not punctuation",
          test_answers_are_equal_but_for_what_is_ignored),
    plant("any(normalize", "all(normalize", test_answers_are_equal_but_for_what_is_ignored),
    plant("[-room:]", "[:room]",
          test_an_answer_ends_at_a_stop_or_the_limit_and_a_long_question_loses_its_beginning),
    plant(", stop=stop)", ")",
          test_an_answer_ends_at_a_stop_or_the_limit_and_a_long_question_loses_its_beginning),
]
