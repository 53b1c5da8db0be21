"""Sharded training by PyTorch's own engine: `torchrun --nproc-per-node 4 -m minillama pretrain ... --shard`.

`fully_shard` (FSDP2; arXiv 2304.11277, after ZeRO's third stage, arXiv 1910.02054) cuts every weight along its first
axis, a piece for each of N processes. Its gradient and AdamW's two averages are cut alike, so of 16 bytes a weight a
process holds 16 / N. A block's weights are gathered before its forward pass, and once more before its backward pass,
and forgotten behind each; then its gradients are averaged, and every process keeps its piece of them. Batches are
shared out as in data parallel training (`data_parallel`).

What a step of A batches a process has to send and receive besides, in bytes, is (N - 1) / N of

    A (2 blocks + rest) + blocks + rest

where blocks and rest are the bytes of the weights inside and outside of the blocks: gradients meet at the last batch.
"""

import contextlib
import functools
import os
import time

import torch

from minillama.quant.nf4 import NF4Linear
from minillama.train import data_parallel, sharded_checkpoint
from minillama.train.pretrain import PretrainRun
from minillama.train.resume import load_training_state
from minillama.train.sft import FineTuning
from minillama.train.sharded_checkpoint import cut_like, take_part_in_saving, unshard_trained
from minillama.train.tensor_parallel import choose_kernels, cut_layers, in_group, require_cuttable

METHODS = ("full", "lora", "rslora", "qlora")  # of sft, that train in shards
HELP = "share weights, gradients and optimizer out to the processes that torchrun started (FSDP)"  # of --shard
CUT_HELP = "of the processes of --shard, so many cut every matrix and compute each batch together"  # --tensor-parallel


def kind_of_run(kind, arguments, shape=None):
    """The class of run that a command with these arguments does: `kind`, or its form in shards where --shard asks.
    shape: the config of a model that --tensor-parallel may cut; where it does, PyTorch's products are chosen."""
    cut = getattr(arguments, "tensor_parallel", 1)
    if not arguments.shard:
        if cut > 1:
            raise ValueError(f"--tensor-parallel {cut} goes with --shard: give that, too")
        return kind
    require_shardable(arguments, cut)
    if cut > 1:
        require_cuttable(shape, cut)
        choose_kernels(arguments, cut)
    kind = {PretrainRun: ShardedPretrain, FineTuning: ShardedFineTuning}.get(kind) or type(
        f"Sharded{kind.__name__}", (ShardedRun, kind), {"name": f"{kind.name} --shard"})
    return functools.update_wrapper(functools.partial(kind, tensor_parallel=cut), kind, updated=())  # keeps its name


def bytes_to_train(shape, arguments):
    """Bytes that a process needs for training, activations apart: a weight, its gradient and AdamW's two averages, all
    fp32; with --shard its part of them, and the whole weights from which it takes that at the start, or the copy of
    weights and averages that is written while training goes on, which lies in main memory."""
    whole, copied = 4 * shape.n_parameters(), 0 if arguments.device.startswith("cuda") else 12
    if not arguments.shard:
        return 4 * whole
    held = shape.n_parameters() // int(os.environ["WORLD_SIZE"])
    return 16 * held + max(whole, copied * held)


def require_shardable(arguments, cut=1):
    """ValueError, before any work, where a command with these arguments cannot train in shards as it was started, `cut`
    processes to a batch."""
    size, given = int(os.environ.get("WORLD_SIZE", 1)), vars(arguments)
    dealt, method = "grad_accumulation" if "grad_accumulation" in given else "batch_size", given.get("method", "full")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise ValueError("--shard shares a model out to the processes that torchrun starts, and it started none: "
                         "`torchrun --nproc-per-node 2 -m minillama ... --shard`")
    if size % cut:
        raise ValueError(f"--tensor-parallel {cut} does not divide the {size} processes: choose a number that does")
    if given[dealt] % (size // cut):
        raise ValueError(f"--{dealt.replace('_', '-')} {given[dealt]} cannot be shared by {size // cut} "
                         f"{'groups of ' * (cut > 1)}processes: give a multiple of {size // cut}")
    if given.get("paged_optimizer"):
        raise ValueError(f"--paged-optimizer {given['paged_optimizer']} does not go with --shard: leave one out")
    if given.get("load_8bit") or method not in METHODS:
        what = "--load-8bit" if given.get("load_8bit") else f"--method {method}"
        raise ValueError(f"--shard does not take {what}: choose --method {', '.join(METHODS)} on plain weights or "
                         "--load-4bit, or leave --shard out")


def asks_to_shard(arguments):
    """Whether a command is to train in shards. ValueError where --shard cannot."""
    if arguments.shard:
        require_shardable(arguments)
    return arguments.shard


in_shards = in_group(asks_to_shard)  # decorates a command


def shard_model(model, tensor_parallel=1):
    """Cut the weights of a Transformer, in place, to this process's pieces (`DTensor`) -> what to call in training.
    Gradients are averaged in fp32 whatever the weights' dtype; the pieces keep theirs. tensor_parallel: so many
    processes compute each batch together, and hold the pieces of one copy's matrices (`tensor_parallel`)."""
    from torch.distributed.device_mesh import init_device_mesh  # here, for none but sharded runs need it loaded
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    shape = data_parallel.rank_and_size()[1] // tensor_parallel, tensor_parallel
    mesh = init_device_mesh(next(model.parameters()).device.type, shape, mesh_dim_names=("shard", "tensor"))
    if tensor_parallel > 1:
        cut_layers(model, mesh["tensor"], share_tokens=True)
    policy, layers = MixedPrecisionPolicy(reduce_dtype=torch.float32), getattr(model, "body", model).layers
    for layer in model.modules():  # of what is quantized, the bits: cut and gathered as they are, and never learned
        for name, bits in list(layer.named_buffers(recurse=False)) if isinstance(layer, NF4Linear) else ():
            if name != "layout" and bits.dim():
                delattr(layer, name)
                layer.register_parameter(name, torch.nn.Parameter(bits, requires_grad=False))
    for part in (*layers, model):
        fully_shard(part, mesh=mesh["shard"], mp_policy=policy)
    return ShardedLearner(model, (mesh["shard"].get_local_rank(), shape[0]))


def share_of(rows, learner):
    """This process's rows of a batch, as many for each; all of them where nothing is shared out."""
    rank, size = getattr(learner, "place", (0, 1))
    return rows[rank::size]


class ShardedLearner:
    """A sharded model as `data_parallel.shard` wants it: it is called with batches, and sends nothing between them."""

    def __init__(self, model, place):
        self.model, self.place = model, place  # place: (which of the groups that learn a batch is ours, how many)

    def __call__(self, *arguments, **named):
        return self.model(*arguments, **named)

    @contextlib.contextmanager
    def no_sync(self):
        """Within it gradients are added up here, whole, and nothing of them is sent."""
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)


def save_scorer(save, folder, model, *more):
    """save(folder, model, *more) of a `RewardModel` by one process; where it is in shards the others lend theirs."""
    if hasattr(model, "reshard"):
        model.reshard()
        model.head.weight = torch.nn.Parameter(model.head.weight.full_tensor())
    if data_parallel.is_main_process():
        save(folder, model, *more)
    else:
        take_part_in_saving(model.body)


class StateInShards:
    """What a `ResumableRun` does otherwise in shards; it stands before one among the bases of a class, which adds
    `tensors()`, {name: what this process holds of it}. The state's file holds all else and names the folder that has
    those (`sharded_checkpoint`). They are copied, and the copy is written while training goes on, one at a time. Only
    when that folder is whole is the file replaced, at once, so when a process is killed one whole state is there."""

    shards, writing = "", None  # the folder of the last checkpoint; (the next one's state, its future)

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.writers = None if self.folder is None else sharded_checkpoint.writers_group()

    def write_state(self, state):
        """Begin the checkpoint, when the one before it is finished: every process writes its pieces."""
        self.finish_checkpoint()
        if self.folder is not None:
            name, future = sharded_checkpoint.begin_shards(self.folder, self.step, self.tensors(), self.shards,
                                                           self.writers)
            self.writing = {**state, "shards": name}, future

    def finish_checkpoint(self):
        """Wait until all have written the checkpoint that is begun; then the main process says that it is the state."""
        if self.writing is None:
            return
        (state, future), self.writing = self.writing, None
        sharded_checkpoint.finish_shards(self.folder / state["shards"], future)
        super().write_state(state)
        self.shards = state["shards"]
        if self.is_main:
            sharded_checkpoint.remove_shards(self.folder, keep=self.shards)

    def advance(self):
        said = super().advance()
        # Whether it is written must be asked of all: a process that alone ends with an error lets the others wait.
        if self.writing and data_parallel.mean(torch.tensor(float(self.writing[1].done()))) == 1:
            self.finish_checkpoint()
        return said

    def _steps(self, request, progress):
        try:
            super()._steps(request, progress)
        except (KeyboardInterrupt, SystemExit) as stopped:
            self.writing = self.writing if getattr(stopped, "done", "") else None  # a second request waits for nothing
            raise
        finally:
            self.finish_checkpoint()

    def resume(self, progress=False):
        """Go on from a state in shards of any number of processes, or from that of a run that held all in one."""
        name, own = self.name, self.name.removesuffix(" --shard")
        if load_training_state(self.folder / self.state_file).get("kind") == own:
            self.name, self.state_dict = own, super().state_dict  # for as long as that form is read
        try:
            super().resume(progress)
        finally:
            self.name = name
            vars(self).pop("state_dict", None)


class ShardedRun(StateInShards):
    """What a `TrainingRun` does otherwise in shards."""

    def __init__(self, *arguments, tensor_parallel=1, **named):
        self.learner_of = functools.partial(shard_model, tensor_parallel=tensor_parallel)
        super().__init__(*arguments, **named)
        self.processes = self.learner.place[1]
        self.spent = time_layers(getattr(self.model, "body", self.model).layers)

    def tensors(self):
        """{name: what this process holds of it} of all that is saved: weights, m, v, and fp32 copies of weights."""
        optimizer = super().state_dict()["optimizer"]
        lists = {"model": [p.detach() for p in self.trained.values()],
                 **{key: optimizer[key] for key in ("m", "v", "fp32_weights")}}
        return {f"{key}.{name}": tensor for key, tensors in lists.items()
                for name, tensor in zip(self.trained, tensors, strict=True) if tensor is not None}

    def state_dict(self):
        whole = super().state_dict()
        return {"shards": self.shards, "steps": whole["optimizer"]["steps"], "random": whole["random"]}

    def record(self, row):
        """Of a step also what `losses` measured of each share, on average, and which process was the slowest."""
        if "grad_norm" in row:
            row |= {name: data_parallel.mean(torch.tensor(value)).item() for name, value in self.measured.items()}
            row |= find_slowest(self.spent, self.device)
        super().record(row)

    def evaluate(self):
        super().evaluate()
        self.model.reshard()  # without a backward pass nothing else forgets what is outside of the blocks

    def load_state_dict(self, state):
        ours = super().state_dict()
        if "shards" in state:
            self.shards = state["shards"]
            sharded_checkpoint.read_shards(self.folder / self.shards, self.tensors())
            ours["optimizer"]["steps"] = state["steps"]
        else:
            ours = {"model": {name: cut_like(state["model"][name], p) for name, p in self.trained.items()},
                    "optimizer": {"steps": state["optimizer"]["steps"], **{
                        key: [None if given is None else cut_like(given, p) for given, p in
                              zip(state["optimizer"][key], self.trained.values(), strict=True)]
                        for key in ("m", "v", "fp32_weights")}}}
        super().load_state_dict({**ours, "random": state["random"]})


def time_layers(layers, clock=time.perf_counter):
    """[seconds that this process computes in the layers' forward passes from now on]: it waits for others before and
    behind, not within. On a GPU, seconds of launching kernels."""
    spent = [0.0, 0.0]  # the second: when the layer at work began

    def begin(*_):
        spent[1] = clock()

    def end(*_):
        spent[0] += clock() - spent[1]

    for layer in layers:
        layer.register_forward_pre_hook(begin)
        layer.register_forward_hook(end, prepend=True)
    return spent


def find_slowest(spent, device):
    """{the process that computed longest since the last call, how many times as long as the median one}."""
    rank, size = data_parallel.rank_and_size()
    seconds = torch.zeros(size, dtype=torch.float32, device=device)
    seconds[rank], spent[0] = spent[0], 0.0
    seconds = data_parallel.mean(seconds)
    return {"slowest_process": int(seconds.argmax()), "slowest_times": (seconds.max() / seconds.median()).item()}


class ShardedPretrain(ShardedRun, PretrainRun):
    """`PretrainRun` in shards."""
    name = "pretrain --shard"


class ShardedFineTuning(ShardedRun, FineTuning):
    """`FineTuning` in shards; an adapter is whole again at the end."""
    name = "fine-tune --shard"

    def train(self, resume=False, progress=True):
        history = super().train(resume, progress)
        if not all(p.requires_grad for p in self.model.parameters()):
            unshard_trained(self.model)
        return history
