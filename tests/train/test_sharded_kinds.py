"""Laws of what trains in shards beside plain models: adapters over NF4, reward models; and of who is the slowest."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from forked import in_processes
from letters import Letters, bare
from mutants import Mutant
from test_sharded import largest_difference, local_bytes

from minillama.checkpoint import load_model, save_model
from minillama.config import ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.quant.quantize_linears import quantization_of, quantize_linears
from minillama.rlhf.preferences import Pair
from minillama.rlhf.train_reward import RewardConfig, RewardRun, train_reward
from minillama.train import sharded
from minillama.train.sequence_loss import Sequence
from minillama.train.sft import FineTuning, SftConfig, fine_tune
from minillama.train.sharded import find_slowest, kind_of_run, save_scorer, share_of, time_layers
from minillama.transformer import Transformer

SHAPE = ModelConfig(24, 2, 2, Letters.vocab_size, n_kv_heads=1, max_seq_len=32)
TUNING = SftConfig(steps=5, batch_size=2, grad_accumulation=4, max_lr=1e-2, warmup_steps=1, eps=1e-5, eval_every=0,
                   checkpoint_every=2, gradient_checkpointing=True)
REWARD = RewardConfig(batch_size=4, max_lr=1e-3, warmup_steps=1, checkpoint_every=2)
PAIRS = [Pair("what?", "a" * (i % 5 + 1) + "b" * (i % 3), "b" * (i % 4 + 1)) for i in range(20)]  # five steps


class CalmRewardRun(RewardRun):
    """With the epsilon of the other laws: at 1e-8 Adam makes a step of the rounding of a gradient near 0."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.optimizer.eps = 1e-5


def tuned(kind=None):
    """An adapter over NF4 after five steps -> ({name: its weights}, the model)."""
    torch.manual_seed(2)
    model = Transformer(SHAPE)
    quantize_linears(model)
    add_lora(model, LoRAConfig(4, 8.0, 0.0, ("attention.*", "feed_forward.*")))
    vocab = SHAPE.vocab_size
    rows = [Sequence(ids, ids) for ids in torch.randint(0, vocab, (12, 9)).tolist()]
    fine_tune(model, rows[:9], rows[9:], TUNING, progress=False, kind=kind)
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, model


def save(folder, model):
    save_model(folder, model.body)
    torch.save(model.head.weight.detach(), folder / "head.pt")


def weights(folder):
    return {**dict(load_model(folder)[0].named_parameters()), "head": torch.load(folder / "head.pt")}


def scored(folder, kind):
    """A reward model after five steps, saved -> the history."""
    torch.manual_seed(4)
    (folder / "run").mkdir(parents=True, exist_ok=True)
    model, history = train_reward(Transformer(SHAPE), PAIRS, Letters(), REWARD, bare, progress=False, kind=kind,
                                  folder=folder / "run")
    save_scorer(save, folder / "model", model)
    return history


def learn_in_two(rank, size, folder):
    shard = SimpleNamespace(shard=True, grad_accumulation=4, load_4bit=True, method="qlora")
    adapter, model = tuned(kind_of_run(FineTuning, shard))
    bits = [p for p in model.parameters() if p.dtype == torch.uint8][1:]  # the first codes are whole again, for a sum
    held, whole = local_bytes(bits), sum(p.numel() for p in bits)
    history = scored(folder / "two", kind_of_run(CalmRewardRun, SimpleNamespace(shard=True, batch_size=4)))
    if rank == 0:
        torch.save(adapter, folder / "adapter.pt")
        (folder / "facts.json").write_text(json.dumps([quantization_of(model), held, whole, history]))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    in_processes(learn_in_two, [2], folder)
    return folder, json.loads((folder / "facts.json").read_text())


@pytest.mark.long
def test_an_adapter_over_shards_in_nf4_learns_what_one_process_teaches_it(two):
    folder, (quantization, held, whole, _) = two
    alone, model = tuned()
    assert largest_difference(torch.load(folder / "adapter.pt"), alone) <= 1e-6
    assert quantization == quantization_of(model), "the file of the adapter tells its base by these bits"
    assert held <= 0.52 * whole, "each process holds half of the bits"


@pytest.mark.long
def test_a_reward_model_in_shards_learns_what_one_process_does(two):
    folder, (*_, history) = two
    alone = scored(folder / "one", CalmRewardRun)
    ours, theirs = (weights(folder / name / "model") for name in ("two", "one"))
    assert largest_difference(ours, theirs) <= 1e-6 and largest_difference(theirs, ours) <= 1e-6
    for row, other in zip(history, alone, strict=True):
        assert {name: row[name] for name in ("loss", "accuracy")} == pytest.approx(
            {name: other[name] for name in ("loss", "accuracy")}, rel=1e-5)


@pytest.mark.long
def test_every_step_names_a_slowest_process(two):
    rows = [row for row in two[1][3] if "loss" in row]
    assert len(rows) == 5 and all(row["slowest_process"] in (0, 1) and row["slowest_times"] >= 1 for row in rows)


def test_the_seconds_of_the_layers_are_those_from_their_begin_to_their_end():
    ticks = itertools.count(0, 3)
    layers = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    spent = time_layers(layers, lambda: next(ticks))
    for layer in layers:
        layer(torch.zeros(1))
    assert spent[0] == 6


def test_the_slowest_is_the_one_that_computed_longest_against_the_median(monkeypatch):
    others = torch.tensor([2.0, 0, 2.0])
    monkeypatch.setattr(sharded.data_parallel, "rank_and_size", lambda: (1, 3))
    monkeypatch.setattr(sharded.data_parallel, "mean", lambda seconds: (seconds + others) / 3)
    spent = [7.0, 99.0]
    assert find_slowest(spent, "cpu") == {"slowest_process": 1, "slowest_times": pytest.approx(3.5)} and spent[0] == 0


def test_a_batch_is_shared_out_once():
    rows = list(range(6))
    shares = [share_of(rows, SimpleNamespace(place=(rank, 3))) for rank in range(3)]
    assert sorted(sum(shares, [])) == rows and {len(share) for share in shares} == {2}
    assert share_of(rows, torch.nn.Linear(1, 1)) == rows


MUTANTS = [Mutant(sharded.__name__, "rows[rank::size]", "rows[rank:]", test_a_batch_is_shared_out_once),
           Mutant(sharded.__name__, "spent[0] += clock() - spent[1]", "spent[0] += clock()",
                  test_the_seconds_of_the_layers_are_those_from_their_begin_to_their_end)]
