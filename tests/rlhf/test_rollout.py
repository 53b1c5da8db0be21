"""Laws of rollouts: answers are scored by the distribution they were drawn from, and padding is nothing."""

import pytest
import torch
from mutants import Mutant
from torch.nn import functional as F

import minillama.generate
from minillama.config import ModelConfig
from minillama.rlhf.rollout import answer_logits, log_probs_of, sample_answers
from minillama.sampling import next_token_distribution, sample
from minillama.transformer import Transformer

V, EOS = 7, 2
PROMPTS = [[1, 3], [1, 4, 5, 6, 3], [1], [1, 5, 3]]  # unequal: three rows are padded on the left
EXACT = {"rtol": 0, "atol": 2e-5}  # fp32: the same sums in another order, of logits of size 1


def a_model(dropout=0.0):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(24, 2, 4, V, n_kv_heads=2, hidden_dim=32, max_seq_len=32)).eval()
    if dropout:
        model.norm.register_forward_hook(lambda part, _, x: F.dropout(x, dropout, part.training))
    return model


def a_rollout(model, temperature=1.0, seed=1, **options):
    return sample_answers(model, PROMPTS, EOS, options.pop("max_new_tokens", 9), temperature, seed, **options)


def answers(rollout):
    return [row[real].tolist() for row, real in zip(rollout.answers_BA, rollout.answer_mask_BA, strict=True)]


@torch.no_grad()
def drawn_with(model, prompt, answer, temperature):
    """log p of each token of the answer by the definition: no cache, no batch, no padding."""
    ids = torch.tensor([prompt + answer])
    table = (model(ids)[0] / temperature).log_softmax(-1)
    return torch.stack([table[len(prompt) + i - 1, token] for i, token in enumerate(answer)])


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_an_answer_has_the_log_probabilities_it_has_alone(temperature):
    model = a_model()
    rollout = a_rollout(model, temperature)
    scored_BA = log_probs_of(answer_logits(model, rollout, temperature), rollout)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers(rollout), strict=True)):
        wanted = drawn_with(model, prompt, answer, temperature)
        torch.testing.assert_close(scored_BA[row, :len(answer)].detach(), wanted, **EXACT)


def test_scoring_gives_the_probabilities_that_sampling_drew_with(monkeypatch):
    drawn = []

    def recording(logits_BV, sampling, generator, seen_BV, u_B):
        next_B = sample(logits_BV, sampling, generator, seen_BV, u_B)
        table_BV = next_token_distribution(logits_BV, sampling, seen_BV)
        drawn.append(table_BV.gather(1, next_B[:, None])[:, 0].log())
        return next_B

    monkeypatch.setattr(minillama.generate, "sample", recording)
    model = a_model()
    rollout = a_rollout(model, 0.8)
    scored_BA = log_probs_of(answer_logits(model, rollout, 0.8), rollout)
    scored_N = scored_BA.T[rollout.answer_mask_BA.T]  # place after place, of the rows that go on
    torch.testing.assert_close(scored_N.detach(), torch.cat(drawn).clone(), **EXACT)


def test_an_answer_ends_with_its_first_eos_or_is_cut_off():
    for seed in range(5):
        rollout = a_rollout(a_model(), seed=seed)
        for answer, ended in zip(answers(rollout), rollout.ended_B.tolist(), strict=True):
            assert (EOS in answer) == ended and EOS not in answer[:-1] and (ended or len(answer) == 9)
    cut = a_rollout(a_model(), seed=3, max_new_tokens=1)
    assert cut.answer_mask_BA.sum() == 4


def test_a_row_is_padding_prompt_answer_padding():
    rollout = a_rollout(a_model())
    for row, prompt in enumerate(PROMPTS):
        assert rollout.tokens_BT[row, :5][rollout.mask_BT[row, :5]].tolist() == prompt
    assert rollout.prompt_places == 5 and rollout.mask_BT.int().argmax(-1).tolist() == [3, 0, 4, 2]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_unequal_prompts_near_the_contexts_end_are_sampled_and_scored_as_if_alone(temperature):
    """Of 32 places a prompt of 29 leaves 3 to its own answer and takes none of its neighbours'."""
    model, prompts = a_model(), [[1, 3], [4] * 29, [1] * 31, [5, 3] * 7]
    together = sample_answers(model, prompts, V, 24, temperature, seed=2)  # V: no end ever comes
    assert together.answer_mask_BA.sum(-1).tolist() == [24, 3, 1, 18] and together.tokens_BT.shape[1] == 31 + 24
    scored_BA = log_probs_of(answer_logits(model, together, temperature), together)
    for row, (prompt, answer) in enumerate(zip(prompts, answers(together), strict=True)):
        assert answers(sample_answers(model, [prompt], V, 24, temperature, seed=2)) == [answer]
        wanted = drawn_with(model, prompt, answer, temperature)
        torch.testing.assert_close(scored_BA[row, :len(answer)].detach(), wanted, **EXACT)


def test_a_prompt_that_fills_the_context_is_refused():
    with pytest.raises(ValueError, match="a prompt of 32 tokens leaves no room for an answer in a context of 32"):
        sample_answers(a_model(), [[1], [1] * 32], EOS, 4)


def test_what_stands_on_padding_changes_nothing():
    model, rollout = a_model(), a_rollout(a_model())
    before_BA = log_probs_of(answer_logits(model, rollout), rollout)
    assert not rollout.mask_BT.all()
    rollout.tokens_BT[~rollout.mask_BT] = 6
    after_BA = log_probs_of(answer_logits(model, rollout), rollout)
    mask_BA = rollout.answer_mask_BA
    assert torch.equal(after_BA[mask_BA], before_BA[mask_BA])


def test_the_same_seed_gives_the_same_answers_and_another_one_others():
    one, same, other = (a_rollout(a_model(), seed=seed) for seed in (4, 4, 5))
    assert answers(one) == answers(same) != answers(other)


def test_sampling_drops_nothing_out_and_leaves_the_model_in_its_mode():
    still, dropping = a_model(), a_model(dropout=0.5).train()
    assert answers(a_rollout(dropping)) == answers(a_rollout(still)) and dropping.training
    assert not still.training


def test_rollouts_take_part_in_training():
    """Tensors born in inference mode could not; sampling runs in it."""
    model = a_model()
    rollout = a_rollout(model)
    assert not rollout.tokens_BT.is_inference() and not rollout.mask_BT.is_inference()
    log_probs_of(answer_logits(model, rollout), rollout)[rollout.answer_mask_BA].sum().backward()
    assert model.tok_embeddings.weight.grad.abs().sum() > 0


def test_texts_are_the_answers_without_eos():
    class Letters:
        def decode(self, ids):
            return "".join("abcdefg"[i] for i in ids)

    rollout = a_rollout(a_model(), seed=2)
    for text, answer, ended in zip(rollout.texts(Letters()), answers(rollout), rollout.ended_B, strict=True):
        assert text == Letters().decode(answer[:-1] if ended else answer)


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": 0.0}, "temperature is 0.0"), ({"temperature": float("nan")}, "temperature"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0")])
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        a_rollout(a_model(), **options)


def _scored_as_drawn():
    with pytest.MonkeyPatch.context() as monkeypatch:
        test_scoring_gives_the_probabilities_that_sampling_drew_with(monkeypatch)


ALONE = test_an_answer_has_the_log_probabilities_it_has_alone
MUTANTS = [
    Mutant("minillama.rlhf.rollout", "(rollout.prompt_places - 1 - first_B)", "(rollout.prompt_places - first_B)",
           lambda: ALONE(1.0)),
    Mutant("minillama.rlhf.rollout", ") / temperature", ")", lambda: ALONE(0.6)),
    Mutant("minillama.rlhf.rollout", "prompt_places - 1 - first_B)", "prompt_places - 1 + 0 * first_B)",
           lambda: ALONE(1.0)),
    Mutant("minillama.rlhf.rollout", "token is not None and place < context - len(prompt)", "token is not None",
           lambda: test_unequal_prompts_near_the_contexts_end_are_sampled_and_scored_as_if_alone(1.0)),
    Mutant("minillama.train.sequence_loss", "places_BT = first_B[:, None] + ", "places_BT = 0 * first_B[:, None] + ",
           lambda: ALONE(1.0)),
    Mutant("minillama.rlhf.rollout", " - logits_BAV.logsumexp(-1)", "", lambda: ALONE(1.0)),
    Mutant("minillama.rlhf.rollout", "Sampling(temperature)", "Sampling()", _scored_as_drawn),
    Mutant("minillama.rlhf.rollout", "{eos_id}, seed", "(), seed",
           test_an_answer_ends_with_its_first_eos_or_is_cut_off),
    Mutant("minillama.rlhf.rollout", "with in_eval_mode(model):", "if model:",
           test_sampling_drops_nothing_out_and_leaves_the_model_in_its_mode),
    Mutant("minillama.rlhf.rollout", "real_tokens(prompts, left=True,", "real_tokens(prompts, left=False,",
           test_a_row_is_padding_prompt_answer_padding),
    Mutant("minillama.rlhf.rollout", "- self.ended_B.int()", "", test_texts_are_the_answers_without_eos),
]
