"""PPO in shards: `torchrun --nproc-per-node 4 -m minillama ppo ... --shard`.

Policy, reward model and value model are cut as `train.sharded` cuts a model, and with the policy its reference, its
best weights and the optimizers. The rows of a batch are shared out: each process samples, scores and learns its own.
What a row comes to is small, a few numbers a token, and every process gets that of all rows. So advantages, losses, KL
and all that decides are computed from the whole batch, in every process alike, by the code of one process
(`train_ppo`); a loss has a gradient in each process through its own rows, and FSDP adds these up.

Answers are sampled on the pieces: each token gathers one block after another, so that no process ever holds a whole
policy. A gather needs all processes: who has ended its answers reads padding until all have (`in_step`).
"""

import contextlib

import torch
import torch.distributed as dist
from torch import nn

from minillama.corpus.text_files import read_documents
from minillama.rlhf import ppo
from minillama.rlhf.model_calls import ModelCalls, losses_at
from minillama.rlhf.rollout import Rollout, answer_logits, log_probs_of, sample_answers, with_prompts
from minillama.rlhf.train_ppo import PPORun
from minillama.rlhf.trust_region import distance_of, full_kl
from minillama.sampling import row_chances
from minillama.train import data_parallel
from minillama.train.data import open_tokens, write_tokens
from minillama.train.sharded import StateInShards, find_slowest, shard_model, time_layers
from minillama.train.sharded_checkpoint import cut_like, read_shards, take_part_in_saving, unshard_trained


def rows_of_own(n):
    """The places of this process's rows among n: as many for each process, the last row more than once where n is no
    multiple of them."""
    rank, size = data_parallel.rank_and_size()
    return [min(place, n - 1) for place in range(rank, -(-n // size) * size, size)]


def rows_of_all(own, n):
    """All n rows, gathered from the `rows_of_own` of N processes. Only this process's own rows get a gradient, times N:
    the gradients of all processes should be added up, but FSDP takes their mean."""
    rank, size = data_parallel.rank_and_size()
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format, requires_grad=False) for _ in range(size)]
    dist.all_gather(parts, own.detach().contiguous())
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * size)
    parts[rank] = own
    return torch.stack(parts, 1).flatten(0, 1)[:n]


class Within(nn.Module):
    """A model in a module of its own, which computes any function of it: FSDP gathers what is outside of the blocks
    where the outermost module is called, and a policy is asked in several ways."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, compute, *arguments):
        return compute(self.body, *arguments)


def ask(model, *arguments):
    """Call a sharded model; without gradients, what is outside of its blocks is forgotten at once, too."""
    found = model(*arguments)
    if not torch.is_grad_enabled():
        model.reshard()
    return found


@contextlib.contextmanager
def in_step(model):
    """Within it all processes read together, pass by pass; at its end, who has read all reads on until all have."""
    device = model.tok_embeddings.weight.device

    def anyone_reads(here):
        return data_parallel.mean(torch.tensor(float(here), device=device)) > 0

    hook = model.tok_embeddings.register_forward_pre_hook(lambda *_: (anyone_reads(True), None)[1])
    try:
        yield
    finally:
        hook.remove()
    while anyone_reads(False):
        model.hidden_states(torch.zeros(1, 1, dtype=torch.long, device=device))


def sample_in_step(model, *arguments):
    """`sample_answers` within `in_step`."""
    with in_step(model):
        return sample_answers(model, *arguments)


class CallsInShards(ModelCalls):
    """`ModelCalls` of models in shards; it stands before a learner among the bases of a class."""

    def __init__(self, policy, score, value, config):
        self.actor, self.policy, self.score = Within(policy), policy, score
        facts = self.facts()  # as one process has them: of what is in NF4 the bits become parameters here
        self.facts = lambda: facts
        for model in filter(None, (self.actor, score, value)):
            shard_model(model)
        with torch.no_grad():  # FSDP's buffers are made here: those of inference mode could not take part in learning
            ask(self.actor, type(policy).hidden_states, torch.zeros(1, 1, dtype=torch.long,
                                                                    device=policy.tok_embeddings.weight.device))
        super().__init__(policy, score, value, config)

    def own(self, rollout):
        """This process's rows."""
        return rollout.rows(rows_of_own(len(rollout.tokens_BT)))

    @torch.no_grad()
    def sample(self, prompts, eos_id, seed):
        """Each process answers its own prompts, by the chances that their rows have in the whole batch."""
        config, places, device = self.config, rows_of_own(len(prompts)), self.policy.tok_embeddings.weight.device
        chances_Bn = row_chances(prompts, config.max_new_tokens, seed, device)[places]
        own = ask(self.actor, sample_in_step, [prompts[place] for place in places], eos_id, config.max_new_tokens,
                  config.temperature, seed, chances_Bn)
        ids_BA = own.answers_BA.masked_fill(~own.answer_mask_BA, -1)
        room = config.max_new_tokens - ids_BA.shape[1]
        ids_BA = rows_of_all(nn.functional.pad(ids_BA, (0, room), value=-1), len(prompts))
        ids_BA = ids_BA[:, :int((ids_BA >= 0).sum(-1).max())]
        answers = Rollout(ids_BA.clamp(min=0), ids_BA >= 0, 0, (ids_BA == eos_id).any(-1))
        return with_prompts(answers, prompts)

    def scores(self, rollout):
        own = self.own(rollout)
        return rows_of_all(ask(self.score, own.tokens_BT, own.mask_BT), len(rollout.tokens_BT))

    def values(self, rollout):
        return rows_of_all(ask(self.value, self.own(rollout)), len(rollout.tokens_BT))

    def logits(self, rollout):
        """Those of this process's rows alone."""
        return ask(self.actor, answer_logits, self.own(rollout), self.config.temperature)

    def log_probs(self, model, rollout):
        return rows_of_all(log_probs_of(self.logits(rollout), self.own(rollout)), len(rollout.tokens_BT))

    def measure(self, logits_BAV, experience, began_BAV=None):
        rollout = experience.rollout
        n, mask_BA = len(rollout.tokens_BT), rollout.answer_mask_BA
        log_prob_BA = rows_of_all(log_probs_of(logits_BAV, self.own(rollout)), n)
        kl_BA = None if began_BAV is None else rows_of_all(full_kl(logits_BAV, began_BAV), n)
        found = distance_of(log_prob_BA, experience, self.config.clip, kl_BA)
        entropy_BA = rows_of_all(torch.special.entr(logits_BAV.detach().softmax(-1)).sum(-1), n)
        return log_prob_BA, self.agree({**found, "entropy": ppo.masked_mean(entropy_BA, mask_BA).item()})

    def text_losses(self, tokens_BT, targets_BT):
        places = rows_of_own(len(tokens_BT))
        return rows_of_all(ask(self.actor, losses_at, tokens_BT[places], targets_BT[places]), len(tokens_BT))

    def update(self, *arguments):
        row = super().update(*arguments)
        if row is None:  # no backward pass came, behind which it is forgotten
            self.actor.reshard()
        return row

    def agree(self, numbers):
        """Their means over the processes: machines of different kinds may round differently."""
        device = self.policy.tok_embeddings.weight.device
        means = data_parallel.mean(torch.tensor(list(numbers.values()), dtype=torch.float64, device=device))
        return dict(zip(numbers, means.tolist(), strict=True))


class ShardedPPORun(StateInShards, PPORun):
    """`PPORun` in shards."""

    name = "ppo --shard"

    def __init__(self, learner, *arguments):
        super().__init__(learner, *arguments)
        bodies = [learner.policy, learner.score.body, *([learner.value.body] if learner.value else [])]
        self.spent = time_layers([layer for body in bodies for layer in body.layers])

    def record(self, row):
        super().record(row | find_slowest(self.spent, next(self.ppo.policy.parameters()).device))

    def resume(self, progress=False):
        """All processes know the history: it says when a run goes wrong."""
        super().resume(progress)
        known = [self.history]
        dist.broadcast_object_list(known)
        self.history = known[0]

    def tensors(self):
        return {name: leaf for name, leaf in leaves_of(super().state_dict()) if isinstance(leaf, torch.Tensor)}

    def state_dict(self):
        numbers = {name: leaf for name, leaf in leaves_of(super().state_dict()) if not isinstance(leaf, torch.Tensor)}
        return {"shards": self.shards, "numbers": numbers}

    def load_state_dict(self, state):
        ours = super().state_dict()
        if "shards" in state:
            self.shards = state["shards"]
            given = {**dict(leaves_of(ours)), **state["numbers"]}
            read_shards(self.folder / self.shards, {name: given[name] for name in self.tensors()})
        else:
            given = dict(leaves_of(state))
        super().load_state_dict(with_leaves(ours, given))


def leaves_of(tree, name=""):
    """Yield (name, leaf) of dicts and lists within one another; a name says the way, as "value_optimizer.m.3"."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, part in parts:
        yield from leaves_of(part, f"{name}.{key}")
    if not isinstance(tree, (dict, list)):
        yield name.removeprefix("."), tree


def with_leaves(tree, given, name=""):
    """The tree with the leaves of {name: leaf}; whole tensors are cut as those in their places are."""
    if isinstance(tree, dict):
        return type(tree)((key, with_leaves(part, given, f"{name}.{key}")) for key, part in tree.items())
    if isinstance(tree, list):
        return [with_leaves(part, given, f"{name}.{i}") for i, part in enumerate(tree)]
    leaf = given[name.removeprefix(".")]
    whole = hasattr(tree, "full_tensor") and not hasattr(leaf, "full_tensor")
    return cut_like(leaf, tree) if whole else leaf


def forms_of(learner, arguments, weights):
    """What `train_ppo` takes, by name: the learner and the kind of its run, where --shard asks their forms in shards.
    ValueError where those cannot learn on the policy's `Weights`."""
    if not arguments.shard:
        return {"learner": learner}
    if weights.quantization and weights.quantization["kind"] != "nf4":
        raise ValueError(f"{arguments.model} is in {weights.quantization['kind']}, and ppo --shard takes plain weights "
                         "or nf4: give its original, or leave --shard out")
    return {"learner": in_shards(learner), "kind": ShardedPPORun}


def in_shards(learner):
    """A class of `grpo.LEARNERS` in shards; it keeps its name, by which a run is known."""
    return type(learner.__name__, (CallsInShards, learner), {})


def write_text(path, files, tokenizer):
    """The `Tokens` of text files, or None where there are none: of several processes one writes them to `path`."""
    if files and data_parallel.is_main_process():
        write_tokens(path, read_documents(files), tokenizer)
    data_parallel.wait_for_all()
    return open_tokens(path, tokenizer.vocab_size) if files else None


def save_trained(save, model, *more):
    """save(model, *more) by one process, an adapter whole; of a model in shards the others lend theirs."""
    parts = list(model.parameters())
    if hasattr(parts[0], "full_tensor") and not all(part.requires_grad for part in parts):
        unshard_trained(model)
    if data_parallel.is_main_process():
        save(model, *more)
    else:
        take_part_in_saving(model)
