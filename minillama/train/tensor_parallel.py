"""Tensor parallelism: the matrices of every block are cut over K processes, which compute each token together.

As Megatron-LM has it (arXiv 1909.08053, section 3) and Meta's files are cut: wq, wk, wv, w1, w3 and the head by their
output rows, so a process has H / K heads and F / K hidden numbers of its own; wo and w2 by their input columns, so
each process gives a part of a sum. The embedding is cut by columns, as in Llama 1 and 2; norms are held by all. A block
has two sums over all processes (all-reduce) of B T D numbers on its way forward, and two on its way back.
"""


def require_cuttable(config, size, flag="--tensor-parallel"):
    """ValueError where a model of this shape cannot be cut over `size` processes."""
    for name in ("n_heads", "n_kv_heads", "hidden_dim", "dim"):
        if getattr(config, name) % size:
            raise ValueError(f"{flag} {size} does not divide the model's {name} {getattr(config, name)}: choose a "
                             "number that does")
    if config.tie_embeddings:
        raise ValueError(f"{flag} {size} cannot cut a model whose head is its embedding (tie_embeddings): leave it out")


def cut_layers(model, mesh):
    """Cut a Transformer, in place, over the processes of a one-dimensional mesh; its parameters become `DTensor`s.
    What it computes with is PyTorch's: use_kernels "reference" or "torch"."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    whole = Replicate()
    block = {**{f"attention.{name}": ColwiseParallel() for name in ("wq", "wk", "wv")},
             **{f"feed_forward.{name}": ColwiseParallel() for name in ("w1", "w3")},
             "attention.wo": RowwiseParallel(), "feed_forward.w2": RowwiseParallel()}
    for layer in model.layers:
        parallelize_module(layer, mesh, block)
        for part in (layer.attention, layer.feed_forward):  # once for all matrices that read x: one sum on the way back
            part.register_forward_pre_hook(lambda _, inputs: with_whole_x(inputs, mesh))
        hold_whole(layer.attention_norm, mesh)
        hold_whole(layer.ffn_norm, mesh)
    hold_whole(model.norm, mesh)
    parallelize_module(model, mesh, {"tok_embeddings": ColwiseParallel(output_layouts=whole),
                                     "output": ColwiseParallel(output_layouts=whole)})


def hold_whole(norm, mesh):
    """Every process holds and computes all of it: the same numbers, so nothing is sent."""
    from torch.distributed.tensor import distribute_module

    distribute_module(norm, mesh, None, lambda _, inputs, mesh: with_whole_x(inputs, mesh),
                      lambda _, output, mesh: output.to_local())


def with_whole_x(inputs, mesh):
    """The inputs of a module, the first of which every process has whole; the others as they are."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(inputs[0], mesh, [Replicate()]), *inputs[1:]
