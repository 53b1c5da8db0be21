"""Laws of PPO in shards: processes that hold a part each of all three models end where one that holds all does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from forked import in_processes
from letters import Letters, bare
from mutants import Mutant
from test_sharded import BrokenOff, Traffic, largest_difference, local_bytes

from lessons.mesh import ppo_traffic, ppo_training_bytes
from minillama.config import ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.quant.nf4 import NF4Linear
from minillama.quant.quantize_linears import quantize_linears
from minillama.rlhf import sharded_ppo
from minillama.rlhf.grpo import LEARNERS
from minillama.rlhf.reward_model import RewardModel
from minillama.rlhf.rollout import choose_questions
from minillama.rlhf.sharded_ppo import ShardedPPORun, in_shards, leaves_of, rows_of_own, with_leaves
from minillama.rlhf.train_ppo import PPOConfig, PPORun, train_ppo
from minillama.train.data import Tokens
from minillama.transformer import Transformer

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

SHAPE = ModelConfig(24, 2, 2, Letters.vocab_size, n_kv_heads=1, max_seq_len=32)
QUESTIONS, ASKED = ["a?", "what is b?", "c", "dd", "who?"], ["b?", "ee", "what?"]
CONFIG = PPOConfig(iterations=3, batch_size=8, max_new_tokens=4, epochs=2, lr=2e-3, value_lr=3e-3,
                            kl_coefficient=0.05, kl_target=6.0, kl_horizon=60, checkpoint_every=1, seed=1)
TEXT = Tokens(np.arange(900).astype(np.uint16) * 7 % SHAPE.vocab_size, SHAPE.vocab_size)
KINDS = {"full": {}, "lora": {"lora": True}, "grpo": {"algorithm": "grpo"}, "text": {"text": TEXT},
         "nf4": {"lora": True, "nf4": True}}  # six updates each
IN_FOUR = ("full", "lora")  # the others in two processes alone
SAME = {"rel": 2e-4, "abs": 2e-5}  # of metrics: fp32 sums in another order


def whole(model):
    return {name: getattr(p.detach(), "full_tensor", lambda p=p: p.detach())().clone() for name, p in
            model.named_parameters()}


def practised(folder=None, shard=False, stop_at=None, resume=False, lora=False, algorithm="ppo", text=None,
              nf4=False):
    """A run on seeded models, or its part up to the checkpoint of an iteration -> the run, with the policy's weights as
    they were `learned` and as the best of them were `kept`."""
    torch.manual_seed(0)
    policy, config = Transformer(SHAPE), replace(CONFIG, pretraining_weight=0.5) if text else CONFIG
    if nf4:
        quantize_linears(policy)
    if lora:
        add_lora(policy, LoRAConfig(4, 8.0, 0.0, ("attention.*", "feed_forward.*")))
    torch.manual_seed(5)
    judge, learner = RewardModel(Transformer(SHAPE), SHAPE.dim).eval().requires_grad_(False), LEARNERS[algorithm]
    made = []

    class Run(ShardedPPORun if shard else PPORun):
        def save(self):
            super().save()
            made[:] = [self]
            self.learned = whole(policy)
            if self.step == stop_at:
                raise BrokenOff

    if folder is not None:
        folder.mkdir(exist_ok=True)
    try:
        train_ppo(policy, judge, Letters(), QUESTIONS, config, bare, progress=False, folder=folder, resume=resume,
                  pretraining_text=text, asked=ASKED, learner=in_shards(learner) if shard else learner, kind=Run)
    except BrokenOff:
        pass
    made[0].kept = whole(policy)
    return made[0]


def bytes_held(run):
    """Bytes of all that this process keeps of the models between steps: weights, gradients, Adam's averages, the
    reference's weights; not the copies of the best and of the last steps."""
    learner = run.ppo
    learned = [*learner.policy.parameters(), *learner.value.parameters()]
    kept = [tensor for _, tensor in learner.reference.kept]
    averages = [x for part in (learner.policy_optimizer, learner.value_optimizer) for x in (*part.m, *part.v)]
    gradients = [p.detach() for p in learned if p.requires_grad]
    return local_bytes([*learned, *kept, *averages, *gradients, *learner.score.parameters()])


def traffic_of_an_iteration(run):
    """(bytes sent, counted; the formula's) of one more iteration."""
    asked = [run.prompts[i] for i in choose_questions(len(run.prompts), run.step, run.config)]
    with Traffic() as traffic:
        rollout, metrics = run.ppo.advance(asked, run.end_id)
    said = ppo_traffic(SHAPE, torch.distributed.get_world_size(), rollout.answers_BA.shape[1], metrics["updates"],
                       1 + metrics["halved"])
    return traffic.bytes, said


def practise_in_shards(rank, size, folder):
    found = {}
    for name, options in KINDS.items():
        if name in IN_FOUR or size == 2:
            run = practised(shard=True, **options)
            found[name] = {"learned": run.learned, "kept": run.kept, "history": run.history}
            if name in IN_FOUR:
                found[name]["held"] = bytes_held(run)
            if name == "full":
                found["traffic"] = traffic_of_an_iteration(run)
    found["moved"] = practised(folder / "moved", True, 2 if size == 4 else None, resume=True).learned
    if rank == 0:
        torch.save(found, folder / f"found-{size}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{number of processes: what they found}; one process begins a run in `moved`, four and then two go on."""
    folder = tmp_path_factory.mktemp("ppo")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the others has
    alone = {name: practised(**options) for name, options in KINDS.items()}
    practised(folder / "moved", stop_at=1)
    torch.set_num_threads(threads)
    in_processes(practise_in_shards, [4, 2], folder, limit=560)
    return {1: alone, **{size: torch.load(folder / f"found-{size}.pt") for size in (4, 2)}}


@pytest.mark.long
@pytest.mark.parametrize(("size", "kind"), [(2, "full"), (4, "full"), (2, "lora"), (4, "lora"), (2, "grpo"),
                                          (2, "text"), (2, "nf4")])
def test_processes_that_share_three_models_out_learn_what_one_does(runs, size, kind):
    ours, theirs = runs[size][kind], runs[1][kind]
    assert largest_difference(ours["learned"], theirs.learned) <= 1e-6
    assert largest_difference(ours["kept"], theirs.kept) <= 1e-6, "the best policy"
    assert len(ours["history"]) == 3 and theirs.history[-1]["updates"] == 2
    for row, other in zip(ours["history"], theirs.history, strict=True):
        assert row["slowest_times"] >= 1 and row["slowest_process"] in range(size)
        for name in other.keys() - {"seconds", "explained_variance"}:
            assert row[name] == pytest.approx(other[name], **SAME), name


@pytest.mark.long
def test_a_run_moved_from_one_process_to_four_to_two_ends_like_the_one_that_stayed(runs):
    stayed = runs[1]["full"].learned
    assert largest_difference(runs[2]["moved"], stayed) <= 1e-6
    assert largest_difference(runs[4]["moved"], stayed) > 1e-4  # broken off on the way


@pytest.mark.long
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_process_of_four_holds_a_quarter_of_all_models(runs, kind):
    held, alone = runs[4][kind]["held"], bytes_held(runs[1][kind])
    assert held <= 0.35 * alone
    if kind == "full":
        heads = 20 * SHAPE.dim + 16  # the rows that read value and score, and a bias: all of them in one process
        assert alone == ppo_training_bytes(SHAPE) + heads
        assert 0.98 * ppo_training_bytes(SHAPE, 4) <= held <= ppo_training_bytes(SHAPE, 4) + heads


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_what_an_iteration_sends_is_what_the_formula_says(runs, size):
    counted, said = runs[size]["traffic"]
    assert counted["reduce_scatter_base"] == said["gradients"]
    assert counted["allgather_base"] == sum(said.values()) - said["gradients"]
    assert sum(counted.values()) == pytest.approx(sum(said.values()), rel=0.02)  # the rest are numbers of the rows


def test_what_a_run_depends_on_is_told_of_bits_in_shards_as_of_those_in_one_process(monkeypatch):
    """Else no run over NF4 could be moved between them; FSDP cuts parameters alone, so bits become such."""
    def hold_bits_as_parameters(model):
        for layer in model.modules():
            for name in ("codes", "absmax", "absmax_scale") if isinstance(layer, NF4Linear) else ():
                bits = torch.nn.Parameter(getattr(layer, name), requires_grad=False)
                delattr(layer, name)
                layer.register_parameter(name, bits)

    policy, judge = Transformer(SHAPE), RewardModel(Transformer(SHAPE), SHAPE.dim).requires_grad_(False)
    for model in (policy, judge.body):
        quantize_linears(model)
    add_lora(policy, LoRAConfig(4, 8.0, 0.0, ("attention.*", "feed_forward.*")))
    alone = LEARNERS["grpo"](policy, judge, None, CONFIG).facts()
    monkeypatch.setattr(sharded_ppo, "shard_model", hold_bits_as_parameters)
    monkeypatch.setattr(sharded_ppo, "ask", lambda *_: None)
    assert in_shards(LEARNERS["grpo"])(policy, judge, None, CONFIG).facts() == alone


@pytest.mark.parametrize(("n", "size"), [(8, 4), (7, 2), (1, 3), (64, 5)])
def test_every_row_has_a_process_and_each_process_as_many_rows(n, size, monkeypatch):
    shares = []
    for rank in range(size):
        monkeypatch.setattr(sharded_ppo.data_parallel, "rank_and_size", lambda rank=rank: (rank, size))
        shares.append(rows_of_own(n))
    assert len({len(share) for share in shares}) == 1
    assert [row for rows in zip(*shares, strict=True) for row in rows][:n] == list(range(n))


def test_rows_are_put_together_in_their_order_and_learn_from_their_own(monkeypatch):
    """Of three processes the second's gradient is three times what it would be alone: FSDP takes the mean."""
    own = torch.tensor([[2.0], [5.0], [7.0]], requires_grad=True)
    others = torch.tensor([[1.0], [4.0], [7.0]]), None, torch.tensor([[3.0], [6.0], [7.0]])

    def gather(parts, mine):
        for part, other in zip(parts, others, strict=True):
            part.copy_(mine if other is None else other)

    monkeypatch.setattr(sharded_ppo.data_parallel, "rank_and_size", lambda: (1, 3))
    monkeypatch.setattr(sharded_ppo.dist, "all_gather", gather)
    rows = sharded_ppo.rows_of_all(own, 7)
    assert rows.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7]
    (rows.flatten() * torch.arange(7)).sum().backward()
    assert own.grad.flatten().tolist() == [3 * 1, 3 * 4, 0], "the last row is the first process's"


def test_who_has_read_all_reads_on_until_all_have(monkeypatch):
    """This process reads two passes and the others five: it makes three more, and all say six times whether they do."""
    passes, said, model = [], [], Transformer(SHAPE)

    def mean(value):
        said.append(value.item())
        return torch.tensor(float(len(said) <= 5))

    monkeypatch.setattr(sharded_ppo.data_parallel, "mean", mean)
    model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad(), sharded_ppo.in_step(model):
        for _ in range(2):
            model.hidden_states(torch.ones(2, 3, dtype=torch.long))
    assert len(passes) == 5 and said == [1, 1, 0, 0, 0, 0]


def test_a_state_is_taken_apart_and_put_together():
    tree = {"a": [1, None, {"b": torch.ones(2)}], "c": 2.5}
    found = dict(leaves_of(tree))
    assert set(found) == {"a.0", "a.1", "a.2.b", "c"}
    again = with_leaves(tree, {**found, "c": 7})
    assert again["c"] == 7 and again["a"][:2] == [1, None] and torch.equal(again["a"][2]["b"], torch.ones(2))


def law(test, *arguments):
    def hold():
        with pytest.MonkeyPatch.context() as patch:
            test(*arguments, patch)

    return hold


MUTANTS = [
    Mutant(sharded_ppo.__name__, "self.facts = lambda: facts", "pass",
           law(test_what_a_run_depends_on_is_told_of_bits_in_shards_as_of_those_in_one_process)),
    Mutant(sharded_ppo.__name__, "gradient * size", "gradient",
           law(test_rows_are_put_together_in_their_order_and_learn_from_their_own)),
    Mutant(sharded_ppo.__name__, "range(rank, -(-n // size) * size, size)", "range(rank, n, size)",
           law(test_every_row_has_a_process_and_each_process_as_many_rows, 7, 2)),
    Mutant(sharded_ppo.__name__, "torch.stack(parts, 1)", "torch.stack(parts, 0)",
           law(test_rows_are_put_together_in_their_order_and_learn_from_their_own)),
    Mutant(sharded_ppo.__name__, "while anyone_reads(False)", "if anyone_reads(False)",
           law(test_who_has_read_all_reads_on_until_all_have)),
]
