"""Facts of tokens against sums written out, and answers against `generate_text` with the same seed."""

import math
from functools import partial

import pytest
import torch
from mutants import Mutant
from test_inspection import CONFIG, TEXT, Named, model_of
from web_server import Bytes

from minillama.generate import generate_text, generate_tokens
from minillama.sampling import Sampling
from minillama.web.token_facts import LEAST, answers, label, read_text, token_facts


def test_the_facts_of_a_token_are_sums_over_the_vocabulary():
    scores = [2.0, -1.0, 0.5, 2.0, -math.inf]
    total = sum(math.exp(score) for score in scores)
    chances = [math.exp(score) / total for score in scores]
    for token in range(5):
        found = token_facts(Named(), torch.tensor(scores), token, 3)
        wanted = math.log(chances[token]) if chances[token] else LEAST
        assert found["logprob"] == pytest.approx(wanted, abs=1e-6)
        assert found["rank"] == 1 + sum(score > scores[token] for score in scores)
        assert found["entropy"] == pytest.approx(-sum(p * math.log(p) for p in chances if p), abs=1e-6)
        assert [top["id"] for top in found["top_logprobs"]][2:] == [2] and len(found["top_logprobs"]) == 3
        assert found["token"] == f"t{token}" and label(Named(), 258) == "<258>"


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(0.8, 20, 0.9, 0.01, 1.2)])
def test_an_answer_is_the_text_and_the_tokens_of_generate(sampling):
    for seed in range(3):
        model = model_of(seed)
        wanted = [row[0] for row in generate_tokens(model, [TEXT], 12, sampling, (257,), seed)]
        pieces = list(answers(model, Named(), [TEXT], 12, sampling, ("zz",), seed, {257}))
        facts = [fact for piece in pieces for fact in piece.tokens]
        assert [fact["id"] for fact in facts] == wanted
        text = "".join(piece.text for piece in pieces)
        assert text == "".join(generate_text(model, Named(), TEXT, 12, sampling, ("zz",), seed, {257}))
        assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish == ("stop" if wanted[-1] == 257 else "length")
        logits_V = model(torch.tensor([[*TEXT, *wanted[:-1]]]))[0, len(TEXT) - 1:]
        for fact, row_V in zip(facts, logits_V, strict=True):  # decoding rounds otherwise than one pass
            assert fact["logprob"] == pytest.approx(row_V.log_softmax(-1)[fact["id"]].item(), abs=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(1.5, 40)])
def test_rows_of_one_batch_are_the_texts_that_each_gets_alone(sampling):
    """Also where one is ended early, by its stop string or its context, and its neighbours go on."""
    long = [60 + n % 30 for n in range(CONFIG.max_seq_len - 3)]
    for seed in range(3):
        model, rows = model_of(seed), [TEXT, [7], long, TEXT[::-1]]
        stop = "".join(generate_text(model, Named(), [7], 12, sampling, (), seed))[2:4]
        made = list(answers(model, Named(), rows, 12, sampling, (stop,), seed, {257}))
        for index, ids in enumerate(rows):
            pieces = [piece for piece in made if piece.index == index]
            alone = list(answers(model, Named(), [ids], 12, sampling, (stop,), seed, {257}))
            text = "".join(generate_text(model, Named(), ids, 12, sampling, (stop,), seed, {257}))
            assert "".join(piece.text for piece in pieces) == "".join(piece.text for piece in alone) == text
            assert [[fact["id"] for fact in piece.tokens] for piece in pieces] == \
                [[fact["id"] for fact in piece.tokens] for piece in alone]
            assert [piece.finish for piece in pieces] == [piece.finish for piece in alone]
            for together, single in zip(pieces, alone, strict=True):
                for fact, other in zip(together.tokens, single.tokens, strict=True):
                    assert fact["logprob"] == pytest.approx(other["logprob"], abs=1e-4)


def test_half_a_character_is_told_where_the_text_ends():
    """As `generate_text` has it: the replacement character, also where nothing may follow the prompt."""
    for ids, most in (([0xC3], 0), ([97, 0xE2, 0x82], 0)):
        pieces = list(answers(model_of(0), Bytes(), [ids], most, Sampling(0), (), 0, set()))
        text = "".join(generate_text(model_of(0), Bytes(), ids, most, Sampling(0), (), 0, set()))
        assert "".join(piece.text for piece in pieces) == text and text


def test_a_text_that_is_read_has_the_facts_of_each_token_behind_the_first():
    model = model_of(1)
    facts = read_text(model, Named(), TEXT)
    log_TV = model(torch.tensor([TEXT]))[0].log_softmax(-1)
    assert facts[0] is None and read_text(model, Named(), []) == []
    for place, fact in enumerate(facts[1:], 1):
        assert fact["id"] == TEXT[place]
        assert fact["logprob"] == pytest.approx(log_TV[place - 1, TEXT[place]].item(), abs=1e-5)


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="attends over"):
        next(answers(model_of(0), Named(), [[1] * (CONFIG.max_seq_len + 1)], 3, Sampling(), (), 0, set()))


plant = partial(Mutant, "minillama.web.token_facts")
MUTANTS = [
    plant("1 + int(np.count_nonzero", "int(np.count_nonzero",
          test_the_facts_of_a_token_are_sums_over_the_vocabulary),
    plant("np.exp(found_V) @ found_V", "np.exp(found_V).sum()", test_the_facts_of_a_token_are_sums_over_the_vocabulary),
    plant("logits_1V[0], self.token, self.n_top", "logits_1V[0], 0, self.n_top",
          lambda: test_an_answer_is_the_text_and_the_tokens_of_generate(Sampling(temperature=0))),
    plant("facts, self.facts = tuple(self.facts), []", "facts = tuple(self.facts)",
          lambda: test_an_answer_is_the_text_and_the_tokens_of_generate(Sampling(temperature=0))),
    plant("        if stopped:\n            self.left = 0\n", "",
          lambda: test_rows_of_one_batch_are_the_texts_that_each_gets_alone(Sampling(temperature=0))),
    plant("if self.left else self.decoder.flush()", 'if True else ""',
          test_half_a_character_is_told_where_the_text_ends),
    plant("zip(logits_TV[:-1]", "zip(logits_TV[1:]",
          test_a_text_that_is_read_has_the_facts_of_each_token_behind_the_first),
]
