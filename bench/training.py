"""A training step by the kernels for CPUs, and LoRA's and QLoRA's, beside transformers, peft and torch.compile.

Whole steps: forward, backward, clipping, AdamW, in fp32 from the same weights; contenders whose first losses differ are
not timed. Times are CPU time, so that a busy machine does not count; with several threads it is the sum of all, so the
ratio says which takes less work and not which ends sooner. torch.compile's own compiling is told apart, in wall-clock
seconds of its first step.
"""

import copy
import sys
import tempfile
import time

import _rounds  # first: it speaks to OpenMP before torch loads
import fine_tuning
import pretraining
import torch
from _twin import transformers_twin

from minillama.backends import use_kernels
from minillama.config import preset
from minillama.transformer import Transformer

PLAIN = "PyTorch's operations"  # minillama's own form, --kernels torch


def cpu_seconds(work):
    """CPU time of one call, all threads together."""
    start = time.process_time()
    work()
    return time.process_time() - start


def require_equal(losses, bound):
    if max(losses.values()) - min(losses.values()) > bound:
        raise SystemExit(f"the first losses differ, {losses}: nothing was timed")


def training_steps(small):
    """({name: a step}, size in words) of a model of 6 layers, 256 wide, in batches of 8 x 256."""
    batch, length = (2, 32) if small else (8, 256)
    config = preset("nano", n_layers=2, vocab_size=256) if small else preset("nano")
    tokens = torch.randint(config.vocab_size, (batch, length + 1), generator=torch.Generator().manual_seed(0))
    tokens_and_targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    torch.manual_seed(0)
    model = use_kernels(Transformer(config), "torch")
    models = {"ours": use_kernels(copy.deepcopy(model), "cpu"), PLAIN: model}
    if not small:
        models["torch.compile"] = torch.compile(copy.deepcopy(model))
    steps = {name: pretraining.our_step(model, tokens_and_targets) for name, model in models.items()}
    if _rounds.has_peer("transformers"):
        twin = transformers_twin(model, share=False).train()
        steps["transformers"] = pretraining.their_step(twin, tokens_and_targets)
    return steps, f"{config.n_layers} layers, {config.dim} wide, batch {batch} x {length}"


def tuning_steps(quantized, length, folder, config, with_peer):
    """The same for adapters on all linear layers but the head."""
    tokens_BT = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    steps = {"ours": fine_tuning.our_step(folder, quantized, tokens_BT),
             PLAIN: fine_tuning.our_step(folder, quantized, tokens_BT, "torch")}
    if with_peer:
        steps["peft"] = fine_tuning.their_step(folder, quantized, tokens_BT)
    return steps, f"{config.n_parameters() / 1e6:.1f} M weights, 1 x {length} tokens, rank {fine_tuning.RANK}"


def compare(what, steps, size, bound, chosen):
    """A row for each peer: all take turns together. `bound`: how far the first losses may be apart."""
    losses, first = {}, {}
    for name, step in steps.items():
        first[name] = _rounds.seconds(lambda name=name, step=step: losses.update({name: step()}))
    require_equal(losses, bound)
    if "torch.compile" in steps:
        print(f"torch.compile: {first['torch.compile']:.0f} s to its first step", file=sys.stderr)
    times = _rounds.alternate(steps, chosen.rounds, cpu_seconds)
    return [_rounds.Row(f"{what}, against {name}, CPU time", size, "s", times["ours"], times[name],
                        more_is_better=False) for name in steps if name != "ours"]


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    rows = compare("training step, fp32", *training_steps(chosen.small), 1e-4, chosen)
    peers = [_rounds.has_peer(name) for name in ("peft", "transformers", "bitsandbytes")]
    with tempfile.TemporaryDirectory() as folder:
        config = fine_tuning.write_model(folder, chosen.small)
        for what, quantized in (("LoRA", False), ("QLoRA", True)):
            for length in ((16,) if chosen.small else (64, 256)):
                steps, size = tuning_steps(quantized, length, folder, config, all(peers))
                rows += compare(f"{what}, a step, fp32", steps, size, 1e-2 if quantized else 1e-4, chosen)
    _rounds.show(rows)


if __name__ == "__main__":
    main()
