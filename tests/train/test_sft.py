"""Fine-tuning against a bare loop and transformers' own loss; adapters leave the base alone."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from mutants import Mutant
from test_sequence_loss import FOUR_TURNS, Letters
from test_transformer_parity import as_hugging_face
from tiny_run import one_thread, same_weights, without_times

from minillama.collate import collate
from minillama.config import ModelConfig
from minillama.generate import generate_tokens
from minillama.peft.lora import LoRAConfig, add_lora, lora_layers
from minillama.quant.quantize_linears import quantize_linears
from minillama.train.sequence_loss import IGNORE, Sequence, encode_segments, sequence_loss
from minillama.train.sft import FineTuning, SequenceBatches, SftConfig, answer_loss, fine_tune
from minillama.train.templates import vicuna
from minillama.transformer import Transformer

pytestmark = pytest.mark.usefixtures(one_thread.__name__)
V, EOS = 13, 2
SHAPE = ModelConfig(16, 2, 2, V, hidden_dim=24, max_seq_len=40)
CONFIG = SftConfig(steps=7, batch_size=3, max_lr=1e-2, warmup_steps=2, eval_every=3, checkpoint_every=2, seed=5)
EVERYWHERE = ("attention.*", "feed_forward.*")


def a_model(shape=SHAPE):
    torch.manual_seed(1)
    return Transformer(shape)


def some(n, seed=0):
    """Questions of 1 to 4 random tokens, answered by their reversal and EOS, of which the answer is learned."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for i in range(n):
        asked = torch.randint(4, V, (1 + i % 4,), generator=generator).tolist()
        answer = [3, *reversed(asked), EOS]
        rows.append(Sequence([1, *asked, *answer], [IGNORE] * (len(asked) + 2) + answer[1:]))
    return rows


TRAIN, HELD_OUT = some(10), some(7, seed=1)


def tuned(config=CONFIG, model=None, **options):
    model = a_model() if model is None else model
    return model, fine_tune(model, TRAIN, HELD_OUT, config, progress=False, **options)


def with_adapter(kind=None):
    model = a_model()
    if kind:
        quantize_linears(model, kind=kind)
    add_lora(model, LoRAConfig(2, 4.0, 0.0, EVERYWHERE))
    return model


def losses_of(history):
    return [row["loss"] for row in history if "loss" in row]


def test_a_run_is_the_bare_loop():
    """PyTorch's AdamW and cross entropy over one row after another; each row's learned tokens weigh alike. 1e-5: the
    same fp32 terms, padded and added in another order, through seven steps."""
    config = replace(CONFIG, clip_norm=0.3, weight_decay=0.1)
    model, history = tuned(config)
    theirs = a_model()
    matrices, gains = ([p for p in theirs.parameters() if (p.dim() > 1) is wide] for wide in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95), eps=1e-8)
    batches, losses = SequenceBatches(TRAIN, 3, config.seed), []
    for step in range(config.steps):
        done = (step + 1 - 2) / (config.steps - 2)
        rate = (step + 1) / 2 if step < 2 else 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = config.max_lr * rate
        parts = []
        for row in batches(step):
            logits_TV, labels = theirs(row.tokens[None])[0, :-1], row.labels[1:]
            parts.append(torch.nn.functional.cross_entropy(logits_TV[labels >= 0], labels[labels >= 0],
                                                           reduction="none"))
        loss = torch.cat(parts).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        optimizer.step()
        losses.append(loss.item())
    assert losses_of(history) == pytest.approx(losses, rel=1e-5)
    for ours, wanted in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


def test_the_loss_and_its_gradient_are_those_of_transformers_with_minus_100():
    """Their model, their loss, their shift by one; rows of unequal length padded on the right."""
    model = a_model()
    theirs = as_hugging_face(model)
    rows = SequenceBatches(TRAIN, 6, seed=0)(0)
    tokens_BT, labels_BT, _ = collate(rows)
    wanted = theirs(input_ids=tokens_BT, labels=labels_BT).loss
    [ours] = FineTuning(model, TRAIN, HELD_OUT, replace(CONFIG, batch_size=6, seed=0), None).losses(0)
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-5)
    ours.backward()
    wanted.backward()
    torch.testing.assert_close(model.output.weight.grad, theirs.lm_head.weight.grad, rtol=1e-4, atol=1e-6)


def test_only_places_that_predict_an_answer_get_a_gradient():
    """d loss / d (what the head reads) is nonzero exactly where the next token is learned: nowhere in prompts, nowhere
    in padding."""
    model, seen = a_model(), []
    model.norm.register_forward_hook(lambda part, _, hidden: (hidden.retain_grad(), seen.append(hidden))[1])
    run = FineTuning(model, TRAIN, HELD_OUT, CONFIG, None)
    for loss in run.losses(0):
        loss.backward()
    touched_BT = seen[0].grad.abs().sum(-1) > 0
    for touched, row in zip(touched_BT.tolist(), run.batches(0), strict=True):
        learned = [label != IGNORE for label in row.labels.tolist()[1:]]
        assert touched == learned + [False] * (len(touched) - len(learned))


def test_of_four_turns_four_answers_and_their_ends_are_learned():
    sequence = encode_segments(vicuna(FOUR_TURNS), Letters())
    model = a_model(replace(SHAPE, vocab_size=400, max_seq_len=512))
    run = FineTuning(model, [sequence], [sequence], replace(CONFIG, batch_size=1), None)
    [loss] = run.losses(0)
    scores_TV = model(torch.tensor([sequence.tokens]))[0].log_softmax(-1)
    answers = [[*(" " + turn["content"]).encode(), Letters.eos_id] for turn in FOUR_TURNS[1::2]]
    places = [t for t, label in enumerate(sequence.labels) if label != IGNORE]
    assert [sequence.tokens[t] for t in places] == sum(answers, [])
    wanted = -sum(scores_TV[t - 1, sequence.tokens[t]] for t in places) / len(places)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_packed_rows_behind_a_block_diagonal_mask_have_the_loss_of_separate_ones():
    """All sequences in one row, and one sequence a row: losses within 1e-5, gradients as near as fp32 sums go."""
    everything = sum(len(sequence.tokens) for sequence in TRAIN[:4])
    results = []
    for length in (0, everything):
        model = a_model()
        config = replace(CONFIG, batch_size=1 if length else 4, pack_length=length)
        run = FineTuning(model, TRAIN[:4], HELD_OUT, config, None)
        [loss] = run.losses(0)
        loss.backward()
        results.append((loss.item(), [p.grad for p in model.parameters()]))
    assert abs(results[0][0] - results[1][0]) < 1e-5
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    seeing = FineTuning(a_model(), TRAIN[:4], HELD_OUT, replace(config, separate_documents=False), None)
    assert abs(next(seeing.losses(0)).item() - results[0][0]) > 1e-3


@pytest.mark.parametrize("pack_length", [0, 7, 40])
def test_an_epoch_holds_every_row_once_and_the_order_follows_seed_and_step_alone(pack_length):
    batches = SequenceBatches(TRAIN, 1, 3, pack_length)
    n = len(batches.rows)
    epochs = [[batches(step)[0].tokens.tolist() for step in range(e * n, (e + 1) * n)] for e in range(3)]
    rows = sorted(torch.as_tensor(row.tokens).tolist() for row in batches.rows)
    assert all(sorted(epoch) == rows for epoch in epochs)
    assert epochs[0] != epochs[1] or n == 2
    tokens = sorted(t for row in rows for t in row)
    lost = sum(len(s.tokens) for s in TRAIN) - len(tokens)
    assert lost <= 1 and (lost or tokens == sorted(t for s in TRAIN for t in s.tokens))
    again = SequenceBatches(TRAIN, 4, 3, pack_length)  # another batch size, asked for out of order: the same stream
    assert [row.tokens.tolist() for row in again(1)] == [batches(step)[0].tokens.tolist() for step in range(4, 8)]
    assert [c.tokens.tolist() for c in SequenceBatches(TRAIN, 9, 4, pack_length)(0)] != [
        c.tokens.tolist() for c in SequenceBatches(TRAIN, 9, 3, pack_length)(0)]


def test_small_batches_accumulated_are_one_large_batch():
    """Rows of unequal length: the mean is over tokens, not over batches. 1e-5: other padding, other order of sums."""
    large = tuned(replace(CONFIG, batch_size=6))[1]
    small = tuned(replace(CONFIG, batch_size=2, grad_accumulation=3))[1]
    assert losses_of(small)[0] == pytest.approx(losses_of(large)[0], rel=1e-6)
    assert losses_of(small) == pytest.approx(losses_of(large), rel=1e-4)


def test_the_held_out_loss_counts_every_answer_token_once():
    model, history = tuned()
    total = sum(sequence_loss(model(torch.tensor([s.tokens])), torch.tensor([s.labels]), "sum").item()
                for s in HELD_OUT)
    wanted = total / sum(label != IGNORE for s in HELD_OUT for label in s.labels)
    for size in (1, 3, 7, 50):
        assert answer_loss(model, HELD_OUT, size) == pytest.approx(wanted, rel=1e-6)
    assert [row["step"] for row in history if "held_out_loss" in row] == [0, 3, 6, 7]
    assert history[-1]["held_out_loss"] == pytest.approx(wanted, rel=1e-6) and not model.training
    few = tuned(replace(CONFIG, eval_sequences=2))[1]
    assert few[-1]["held_out_loss"] == pytest.approx(answer_loss(model, HELD_OUT[:2]), rel=1e-6)


def test_answers_are_learned_and_so_is_their_end():
    """Three questions, three answers: certain after 60 steps, and generation stops by itself."""
    lessons = [Sequence([1, q, 3, *answer, EOS], [IGNORE] * 3 + [*answer, EOS])
               for q, answer in ((4, [7]), (5, [8, 8, 9]), (6, []))]
    model = a_model()
    history = fine_tune(model, lessons, lessons, replace(CONFIG, steps=60, max_lr=3e-2), progress=False)
    assert history[-1]["held_out_loss"] < 0.02
    for lesson in lessons:
        said = [token for (token,) in generate_tokens(model, [lesson.tokens[:3]], 20, stop_ids=(EOS,))]
        assert said == lesson.tokens[3:]


@pytest.mark.parametrize("kind", [None, "nf4", "int8"])
def test_an_adapter_learns_and_its_base_stays_the_same_to_the_byte(kind):
    model = with_adapter(kind)
    before = copy.deepcopy(model.state_dict())
    _, history = tuned(replace(CONFIG, max_lr=3e-2, steps=20), model)
    assert history[-1]["held_out_loss"] < history[0]["held_out_loss"]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    adapters = {f"{layer}.{part}" for layer in lora_layers(model) for part in "AB"}
    assert changed == adapters and len(lora_layers(model)) == 14
    assert {name for name, p in model.named_parameters() if p.grad is not None} == adapters


def test_recomputing_blocks_changes_memory_and_not_a_bit_of_the_result():
    plain, recomputed = with_adapter("nf4"), with_adapter("nf4")
    histories = [tuned(replace(CONFIG, gradient_checkpointing=flag), model)[1]
                 for flag, model in ((False, plain), (True, recomputed))]
    assert without_times(histories[0]) == without_times(histories[1])
    assert same_weights(plain, recomputed) and recomputed.gradient_checkpointing is False




def test_recomputing_blocks_is_passed_on_to_the_model():
    model, seen = a_model(), []
    model.register_forward_pre_hook(lambda part, _: seen.append((part.training, part.gradient_checkpointing)))
    tuned(replace(CONFIG, gradient_checkpointing=True), model)
    assert (True, True) in seen and (True, False) not in seen


plant = partial(Mutant, "minillama.train.sft")
MUTANTS = [
    plant('"sum", documents_BT) / (count / self.processes)', '"tokens", documents_BT) / self.config.grad_accumulation',
          test_small_batches_accumulated_are_one_large_batch),
    Mutant("minillama.collate", '"labels": IGNORE', '"labels": 0',
           test_only_places_that_predict_an_answer_get_a_gradient),
    plant("labels_BT, \"sum\", documents_BT)", "labels_BT, \"sum\")",
          test_packed_rows_behind_a_block_diagonal_mask_have_the_loss_of_separate_ones),
    plant("permutation(len(self.rows), seed, epoch)", "permutation(len(self.rows), seed, 0)",
          lambda: test_an_epoch_holds_every_row_once_and_the_order_follows_seed_and_step_alone(0)),
    plant("permutation(len(self.rows), seed, epoch)", "permutation(len(self.rows), 0, epoch)",
          lambda: test_an_epoch_holds_every_row_once_and_the_order_follows_seed_and_step_alone(0)),
    plant("for i in drawn]", "for i in range(self.batch_size)]",
          lambda: test_an_epoch_holds_every_row_once_and_the_order_follows_seed_and_step_alone(7)),
    plant("    return total / count", "    return total / len(sequences)",
          test_the_held_out_loss_counts_every_answer_token_once),
    plant("held_out[:config.eval_sequences or None]", "sequences[:config.eval_sequences or None]",
          test_the_held_out_loss_counts_every_answer_token_once),
    plant("model.gradient_checkpointing = model.gradient_checkpointing, config.gradient_checkpointing",
          "model.gradient_checkpointing = model.gradient_checkpointing, False",
          test_recomputing_blocks_is_passed_on_to_the_model),
    Mutant("minillama.quant.quantized_linear", "    model.requires_grad_(False)\n", "",
           lambda: test_an_adapter_learns_and_its_base_stays_the_same_to_the_byte(None)),
]
