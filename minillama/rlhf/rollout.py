"""Rollouts: answers that a model samples, kept with the places of their tokens, and their log-probabilities."""

from dataclasses import dataclass

import torch

from minillama.collate import pad_rows, real_tokens
from minillama.config_checks import Range, check
from minillama.generate import generate_tokens
from minillama.sampling import Sampling
from minillama.train.perplexity import in_eval_mode
from minillama.train.sequence_loss import at_least_fp32, encode_segments, left_aligned
from minillama.train.templates import question_answer


@dataclass(frozen=True)
class Rollout:
    """B prompts with one sampled answer each. P: places of the longest prompt; A: of the longest answer.

    A row reads: padding, prompt, answer (its EOS included), padding. What is padding is told by the
    mask, never by an id.
    """

    tokens_BT: torch.Tensor  # int64, T = P + A
    mask_BT: torch.Tensor  # bool, True on the tokens of prompt and answer
    prompt_places: int  # P
    ended_B: torch.Tensor  # bool: the answer ends in EOS; else it was cut off

    @property
    def answer_mask_BA(self):
        return self.mask_BT[:, self.prompt_places:]

    @property
    def answers_BA(self):
        return self.tokens_BT[:, self.prompt_places:]

    def rows(self, chosen):
        """The rollout of some rows alone."""
        return Rollout(self.tokens_BT[chosen], self.mask_BT[chosen], self.prompt_places, self.ended_B[chosen])

    def texts(self, tokenizer):
        """The answers as texts, without EOS."""
        kept_B = self.answer_mask_BA.sum(-1) - self.ended_B.int()
        return [tokenizer.decode(ids[:kept]) for ids, kept in
                zip(self.answers_BA.tolist(), kept_B.tolist(), strict=True)]


def prompts_of(questions, tokenizer, template=question_answer):
    """The questions in the template, without answers, as lists of ids."""
    return [encode_segments(template(question), tokenizer).tokens for question in questions]


def choose_questions(n_questions, iteration, config):
    """Indices of an iteration's questions, each repeated once for each of its `answers`. Every question is asked
    before any is asked again, in an order that the seed decides."""
    if n_questions < 1:
        raise ValueError("no question given: PPO needs prompts to answer")
    asked = config.batch_size // (config.answers or 1)
    places = range(iteration * asked, (iteration + 1) * asked)
    orders = {turn: torch.randperm(n_questions, generator=torch.Generator().manual_seed(config.seed + turn)).tolist()
              for turn in {place // n_questions for place in places}}
    return [orders[place // n_questions][place % n_questions] for place in places for _ in range(config.answers or 1)]


def sample_answers(model, prompts, eos_id, max_new_tokens, temperature=1.0, seed=0, chances=None):
    """One answer to each prompt (a list of ids), sampled with a KV cache from the whole distribution: a `Rollout`.

    No top-k and no top-p: the log-probabilities that learning uses are those of the whole distribution,
    and answers drawn from another one would make the KL estimate wrong (even negative). The model
    samples as it will be scored, without dropout. The same seed gives the same answers; chances: `generate_tokens`.

    An answer ends where its prompt and it fill the model's context, so that they can be scored as a whole.
    """
    check("temperature", temperature, float, Range(1e-9))  # greedy answers have no distribution
    check("max_new_tokens", max_new_tokens, int, Range(1))
    prompts, context = [list(prompt) for prompt in prompts], model.config.max_seq_len
    if max(map(len, prompts), default=0) >= context:
        raise ValueError(f"a prompt of {max(map(len, prompts))} tokens leaves no room for an answer in a context of "
                         f"{context}: shorten it")
    with in_eval_mode(model):
        steps = list(generate_tokens(model, prompts, max_new_tokens, Sampling(temperature), {eos_id}, seed,
                                     chances=chances))
    # Built anew out of plain numbers: tensors made in inference mode could not take part in training.
    device = model.tok_embeddings.weight.device
    answers_BA = torch.tensor([[token or 0 for token in row] for row in zip(*steps, strict=True)], device=device)
    real_BA = torch.tensor([[token is not None and place < context - len(prompt) for place, token in enumerate(row)]
                            for prompt, row in zip(prompts, zip(*steps, strict=True), strict=True)], device=device)
    longest = int(real_BA.sum(-1).max())
    answers_BA, real_BA = answers_BA[:, :longest], real_BA[:, :longest]
    return _rollout(prompts, answers_BA, real_BA, ((answers_BA == eos_id) & real_BA).any(-1))


def _rollout(prompts, answers_BA, real_BA, ended_B):
    """Prompts, padded on the left, and behind them their answers."""
    prompt_BP = pad_rows(prompts, left=True, device=answers_BA.device)
    real_BP = real_tokens(prompts, left=True, device=answers_BA.device)
    return Rollout(torch.cat([prompt_BP, answers_BA], 1), torch.cat([real_BP, real_BA], 1), prompt_BP.shape[1], ended_B)


def with_prompts(rollout, prompts):
    """The same answers behind other prompts (lists of ids): how another model, asked otherwise, would have weighed
    them."""
    if len(prompts) != len(rollout.tokens_BT):
        raise ValueError(f"{len(prompts)} prompts for {len(rollout.tokens_BT)} answers: one each")
    return _rollout([list(prompt) for prompt in prompts], rollout.answers_BA, rollout.answer_mask_BA, rollout.ended_B)


def answer_states(body, rollout):
    """The hidden states from which the answer's tokens were chosen, (B, A, D): those one place before
    each, from the prompt's last token to the answer's last but one."""
    tokens_BT, first_B = left_aligned(rollout.tokens_BT, rollout.mask_BT)
    hidden_BTD = body.hidden_states(tokens_BT)
    places_BA = (rollout.prompt_places - 1 - first_B)[:, None] + torch.arange(rollout.answers_BA.shape[1],
                                                                              device=first_B.device)
    return hidden_BTD.take_along_dim(places_BA.clamp(max=tokens_BT.shape[1] - 1)[..., None], 1)


def answer_logits(model, rollout, temperature=1.0):
    """Scores of the vocabulary at each of the answer's places, (B, A, V), divided by the temperature of
    sampling: softmax gives the distribution that the token was drawn from. Only the answer's places go
    through the output head."""
    return at_least_fp32(model.logits(answer_states(model, rollout))) / temperature


def log_probs_of(logits_BAV, rollout):
    """log p of each token of the answer, (B, A), at least fp32; meaningless outside `answer_mask_BA`."""
    chosen_BA = logits_BAV.gather(-1, rollout.answers_BA[..., None]).squeeze(-1)
    return chosen_BA - logits_BAV.logsumexp(-1)
