"""Tensor parallelism: the matrices of every block are cut over K processes, which compute each token together.

As Megatron-LM has it (arXiv 1909.08053, section 3) and Meta's files are cut: wq, wk, wv, w1, w3 and the head by their
output rows, so a process has H / K heads and F / K hidden numbers of its own; wo and w2 by their input columns, so
each process gives a part of a sum. The embedding is cut by columns, as in Llama 1 and 2; norms are held by all.

In training, tokens are shared out between the matrices (sequence parallelism, arXiv 2205.05198, section 4.2.2): of the
residual stream and the norms a process has T / K tokens, rounded up. A block gathers B T D numbers before attention and
before its feed-forward layer (all-gather) and adds up as many behind each (reduce-scatter), and so again on its way
back: the bytes of two all-reduces each way. In generation T is 1: all have the stream whole, and sums are all-reduces.

`torchrun --nproc-per-node K -m minillama generate --tensor-parallel K`: each process reads its part of the weights and
keeps the keys and values of its heads, and all choose the same tokens.
"""

import contextlib
import functools
import io
import os
import sys
from dataclasses import replace

import torch
from torch import nn

from minillama.checkpoint.weights import common_dtype, planned_model, read_part
from minillama.train import data_parallel

CUT_HELP = "so many processes, started by torchrun, cut every matrix and choose each token together"


def require_cuttable(config, size, flag="--tensor-parallel"):
    """ValueError where a model of this shape cannot be cut over `size` processes."""
    for name in ("n_heads", "n_kv_heads", "hidden_dim", "dim"):
        if getattr(config, name) % size:
            raise ValueError(f"{flag} {size} does not divide the model's {name} {getattr(config, name)}: choose a "
                             "number that does")
    if config.tie_embeddings:
        raise ValueError(f"{flag} {size} cannot cut a model whose head is its embedding (tie_embeddings): leave it out")


def cut_layers(model, mesh, share_tokens=False):
    """Cut a Transformer, in place, over the processes of a one-dimensional mesh; its parameters become `DTensor`s.
    share_tokens: of the residual stream, too, each has a part. What it computes with is PyTorch's: use_kernels
    "reference" or "torch"."""
    from torch.distributed.tensor import Replicate, Shard, distribute_module
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    whole = Replicate()
    stream = Shard(1) if share_tokens else whole  # (B, T, D): a DTensor, which knows a T that K does not divide
    summed = RowwiseParallel(output_layouts=stream, use_local_output=False)
    block = {**{f"attention.{name}": ColwiseParallel() for name in ("wq", "wk", "wv")},
             **{f"feed_forward.{name}": ColwiseParallel() for name in ("w1", "w3")},
             "attention.wo": summed, "feed_forward.w2": summed}
    for layer in model.layers:
        parallelize_module(layer, mesh, block)
        for part in (layer.attention, layer.feed_forward):  # once for all matrices that read x: one sum on the way back
            part.register_forward_pre_hook(
                lambda _, inputs: (inputs[0].redistribute(placements=[whole]), *inputs[1:]))
    norms = [model.norm, *(norm for layer in model.layers for norm in (layer.attention_norm, layer.ffn_norm))]
    for norm in norms:  # its gradient is a part of a sum where the tokens are: a `Partial`, which FSDP adds up
        distribute_module(norm, mesh)
    parallelize_module(model, mesh, {
        "tok_embeddings": ColwiseParallel(output_layouts=stream, use_local_output=False),
        "output": ColwiseParallel(input_layouts=stream, output_layouts=whole)})


def choose_kernels(arguments, cut):
    """Put PyTorch's products, the only ones that take a cut matrix, in the place of --kernels auto; a line says so."""
    if arguments.kernels not in ("auto", "torch", "reference"):
        raise ValueError(f"--kernels {arguments.kernels} cannot multiply matrices that are cut: use torch or auto")
    arguments.kernels = arguments.kernels.replace("auto", "torch")
    print(f"kernels: {arguments.kernels} (matrices are cut over {cut} processes)", file=sys.stderr)


def in_group(asked):
    """Decorate a command: where asked(arguments) says so, or ValueError, the processes of torchrun are a group in it,
    and the first alone prints."""
    def decorate(command):
        @functools.wraps(command)
        def run(arguments):
            if not asked(arguments):
                return command(arguments)
            with data_parallel.process_group(arguments.device), contextlib.ExitStack() as silence:
                if not data_parallel.is_main_process():
                    silence.enter_context(contextlib.redirect_stdout(io.StringIO()))
                    silence.enter_context(contextlib.redirect_stderr(io.StringIO()))
                return command(arguments)

        return run

    return decorate


def asks_to_cut(arguments):
    """Whether a command is to cut its model over processes. ValueError where --tensor-parallel cannot."""
    cut = arguments.tensor_parallel
    if cut == 1:
        return False
    started = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if started != cut:
        raise ValueError(f"--tensor-parallel {cut} wants {cut} processes and has {started}: start them by "
                         f"`torchrun --nproc-per-node {cut} -m minillama ...`")
    for flag in ("adapter", "load_4bit", "load_8bit"):
        if getattr(arguments, flag):
            raise ValueError(f"--tensor-parallel {cut} cuts plain weights alone, without --{flag.replace('_', '-')}: "
                             "`merge` an adapter first")
    choose_kernels(arguments, cut)
    return True


def load_cut(arguments, open_model):
    """(`Transformer`, tokenizer) of what open_model(arguments) finds, cut over the processes of --tensor-parallel: each
    reads its part; None where there are no such."""
    from torch.distributed.device_mesh import init_device_mesh

    if getattr(arguments, "tensor_parallel", 1) == 1:
        return None
    weights, tokenizer, *_ = open_model(arguments)
    if weights.quantization or arguments.merged:
        raise ValueError(f"{arguments.model} holds more than plain weights, and --tensor-parallel cuts those alone: "
                         "`merge` an adapter first, or give the original of a quantized model")
    mesh = init_device_mesh(torch.device(arguments.device).type, (arguments.tensor_parallel,))
    dtype = getattr(torch, arguments.dtype or "", None) or common_dtype(weights)
    return read_cut(weights, mesh, dtype), tokenizer


def read_cut(weights, mesh, dtype):
    """The model of unread `Weights`, in which a process of a one-dimensional mesh holds its part alone: pieces of the
    matrices, and a config of the heads that are its own."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    require_cuttable(weights.config, mesh.size())
    model = planned_model(weights.config)
    cut_layers(model, mesh)
    for name, planned in list(model.named_parameters()):
        shape, offset = compute_local_shape_and_global_offset(planned.shape, mesh, planned.placements)
        stored, place = weights.tensors[name], planned.placements[0]
        axis = place.dim if place.is_shard() else 0
        piece = read_part(stored, axis, offset[axis], offset[axis] + shape[axis]).to(mesh.device_type, dtype)
        weight = DTensor.from_local(piece.contiguous(), mesh, planned.placements, run_check=False, shape=planned.shape,
                                    stride=planned.stride())
        module, _, parameter = name.rpartition(".")
        setattr(model.get_submodule(module), parameter, nn.Parameter(weight, requires_grad=False))
    config, n = weights.config, mesh.size()
    model.config = replace(config, n_heads=config.n_heads // n, n_kv_heads=config.n_kv_heads // n)
    return model
