"""Laws of likelihood scoring: each choice gets what a loop over its tokens, one context at a time, gives it."""

import math

import pytest
import torch
from letters import Letters
from mutants import Mutant
from oracles import log_softmax

from minillama.config import ModelConfig
from minillama.evaluate.likelihood import chosen, encode_pair, log_likelihoods, text_nats_and_counts
from minillama.transformer import Transformer

V = Letters.vocab_size
LONGEST = 9
PAIRS = [([1, 5, 9], [4, 4]), ([1], [7]), ([1, 5, 9, 4], [4]), ([3, 3, 8, 20], [6, 2, 29]), ([1, 5, 9], [8, 8]),
         ([1, 2, 3, 4, 5, 6, 7], [11, 12, 13, 14]), ([1, 5, 9], [4])]  # of all lengths; one is too long for the model


def tiny_model(seed=0):
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(8, 1, 2, V, hidden_dim=16, max_seq_len=LONGEST)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)  # far from uniform: contexts matter
    return model


def by_loop(model, context, continuation):
    """sum of log p(token | all before it that the model attends over)"""
    ids, total = [*context, *continuation][-LONGEST - 1:], 0.0
    for place in range(len(ids) - len(continuation), len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]]))[0, -1].tolist()
        total += log_softmax(logits)[ids[place]]
    return total


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_each_continuation_gets_what_a_loop_over_its_tokens_gives_whatever_stands_beside_it(batch_size):
    """float64 throughout: sums of 8 to 16 terms in another order differ by less than 1e-12 of their size."""
    for seed in range(3):
        model = tiny_model(seed)
        wanted = [by_loop(model, *pair) for pair in PAIRS]
        assert log_likelihoods(model, PAIRS, batch_size) == pytest.approx(wanted, rel=1e-11)


def test_what_is_read_for_several_choices_is_read_once():
    model, read = tiny_model(), []
    model.tok_embeddings.register_forward_hook(lambda part, given, _: read.append(len(given[0])))
    sums = log_likelihoods(model, [([1, 5, 9], [letter]) for letter in (3, 4, 5, 6)])
    assert read == [1] and len(set(sums)) == 4
    assert math.fsum(map(math.exp, log_likelihoods(model, [([1, 5], [i]) for i in range(V)]))) == pytest.approx(1)


def test_scoring_is_without_dropout_and_leaves_the_mode_and_the_gradients_alone():
    model = tiny_model()
    wanted = log_likelihoods(model, PAIRS)
    model.norm.register_forward_hook(lambda part, _, x: torch.nn.functional.dropout(x, 0.5, part.training))
    for mode in (True, False):
        model.train(mode)
        assert log_likelihoods(model, PAIRS) == wanted and model.training is mode
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), ([1], [3] * (LONGEST + 1))])
def test_a_pair_that_cannot_be_scored_is_refused_by_its_number(pair):
    with pytest.raises(ValueError, match=rf"pair 1 has {len(pair[0])} tokens of context and {len(pair[1])} to score.*"
                       f"at most {LONGEST} to score, the model's max_seq_len"):
        log_likelihoods(tiny_model(), [([1], [2]), pair])


def test_a_likelihood_that_is_not_finite_is_an_error_and_no_choice():
    model = tiny_model()
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match="a log-likelihood is nan: the model's weights are damaged"):
        log_likelihoods(model, PAIRS)


class Pairs(Letters):
    """Two letters at once are a token: it may lie across the boundary of two texts. No bos in front."""

    add_bos, eos_id = False, 2
    vocab_size = 1000

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [sum(map(ord, text[i:i + 2])) for i in range(0, len(text), 2)]


def test_a_pair_is_tokenized_as_one_text_and_cut_where_the_context_ends():
    letters, pairs = Letters(), Pairs()
    ids = letters.encode
    assert encode_pair(letters, "ab", " cd") == ([1, *ids("ab")], ids(" cd"))
    assert encode_pair(letters, "ab  ", "cd") == ([1, *ids("ab")], ids("  cd"))
    assert encode_pair(letters, "", "cd") == ([1], ids("cd"))
    assert encode_pair(letters, " ", "cd") == ([1], ids(" cd"))
    assert encode_pair(pairs, "ab", "cd") == (pairs.encode("ab"), pairs.encode("cd"))
    assert encode_pair(pairs, "abc", "de") == (pairs.encode("abc"), pairs.encode("e"))  # "cd" is one token
    pairs.bos_id = None
    assert encode_pair(pairs, "", "cd") == ([2], pairs.encode("cd"))
    with pytest.raises(ValueError, match="the choice 'd' has no token of its own behind 'abc'"):
        encode_pair(pairs, "abc", "d")


def test_each_measure_takes_the_choice_that_its_own_length_makes_likeliest():
    """L:  a -6, b -8, c -9, d -10; per character a -6, b -1.6, c -3, d -2; per byte b -1.6, c -1, d -2;
    per token a -6, b -4, c -4.5, d -2; less what is likely anyhow a 0, b -1, c -2, d +1."""
    sums, texts, n_tokens = [-6.0, -8.0, -9.0, -10.0], ["x", "abcde", "中文字", "abcde"], [1, 2, 2, 5]
    taken = chosen(sums, texts, n_tokens, unconditional=[-6.0, -7.0, -7.0, -11.0])
    assert taken == {"acc": 0, "acc_norm": 1, "acc_bytes": 2, "acc_token": 3, "acc_pmi": 3}
    assert "acc_pmi" not in chosen(sums, texts, n_tokens)
    assert set(chosen([-1.0, -1.0], ["a", "b"], [1, 1]).values()) == {0}  # of equal ones the first


def test_the_perplexity_of_an_even_guess_is_known_whatever_the_window():
    model, text = tiny_model(), "the cat sat on the mat\nand more"
    with torch.no_grad():
        model.output.weight.zero_()
    for stride in (None, 1, 4):
        found = text_nats_and_counts(model, SpelledOut(), text, stride)
        assert found["nats"] == pytest.approx(len(text) * math.log(V), rel=1e-12)
        assert (found["tokens"], found["bytes"], found["words"]) == (len(text), len(text), 8)
    found = text_nats_and_counts(model, SpelledOut(), "猫 a")
    assert (found["tokens"], found["bytes"], found["words"]) == (3, 5, 2)


def test_the_perplexity_of_a_short_text_is_the_likelihood_behind_bos():
    model, text = tiny_model(), "a mat"
    found = text_nats_and_counts(model, Letters(), text)
    assert -found["nats"] == pytest.approx(by_loop(model, [1], Letters().encode(text)), rel=1e-11)


class SpelledOut(Letters):
    """Any character is a token."""

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [ord(letter) % V for letter in text]


def _mutant(old, new, law):
    return Mutant("minillama.evaluate.likelihood", old, new, law)


def loop():
    test_each_continuation_gets_what_a_loop_over_its_tokens_gives_whatever_stands_beside_it(3)


MUTANTS = [
    _mutant("[-longest - 1:-1]", "[:longest]", loop),
    _mutant("hidden_TD[:len(row)]", "hidden_TD", loop),
    _mutant("for number in asked[row]:", "for number in asked[row][:1]:", loop),
    _mutant("hidden_TD[-len(continuation):]", "hidden_TD[:len(continuation)]", loop),
    _mutant(".double().sum()", ".double().mean()", loop),
    _mutant("with in_eval_mode(model):", "if model:",
            test_scoring_is_without_dropout_and_leaves_the_mode_and_the_gradients_alone),
    Mutant("minillama.train.perplexity", "model.train(training)", "model.train()",
            test_scoring_is_without_dropout_and_leaves_the_mode_and_the_gradients_alone),
    _mutant("context[len(bare):] + continuation", "continuation",
            test_a_pair_is_tokenized_as_one_text_and_cut_where_the_context_ends),
    _mutant("prompt_ids(tokenizer, bare + continuation)[len(front):]", "tokenizer.encode(continuation)",
            test_a_pair_is_tokenized_as_one_text_and_cut_where_the_context_ends),
    _mutant("[len(choice) for choice in choices]", "[len(choice.encode()) for choice in choices]",
            test_each_measure_takes_the_choice_that_its_own_length_makes_likeliest),
    _mutant("[len(choice.encode()) for choice in choices]", "[1] * len(choices)",
            test_each_measure_takes_the_choice_that_its_own_length_makes_likeliest),
    _mutant("np.array(sums) - np.array(unconditional)", "np.array(sums) + np.array(unconditional)",
            test_each_measure_takes_the_choice_that_its_own_length_makes_likeliest),
    _mutant('"bytes": len(text.encode())', '"bytes": len(text)',
            test_the_perplexity_of_an_even_guess_is_known_whatever_the_window),
]
