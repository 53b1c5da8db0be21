"""Decoding one text and reading a prompt: our model on PyTorch and on the compiled engine, in each form of its weights,
beside transformers, bitsandbytes and llama.cpp.

Each new token reads every weight once (all but the embedding table), so decoding is at most as fast as the bytes of the
weights can be read: that is the limit, by a sum over the same weights in fp32, in the same rounds. The peers' calls are
theirs alone, without the loop that a user's program has around them. With one thread times are CPU time, so that other
programs on the machine cost little; with more they are the wall's, and worth something on an idle machine alone.

Far into a text the keys and values of what was read are a good part of those bytes: --position says how far, and
--cache-dtype how ours are kept. llama.cpp keeps them in float16.
"""

import copy
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import _rounds  # first: it speaks to OpenMP before torch loads
import torch
from _readers import LlamaCpp, Ours, Transformers, gguf_files

from minillama import kernels
from minillama.backends import use_kernels
from minillama.config import ModelConfig, preset
from minillama.quant.quantize_linears import quantize_linears
from minillama.transformer import Transformer

POSITION, N, PROMPT = 32, 24, 256  # tokens before the first that is timed, tokens that are, tokens of a prompt
SHAPES = {"110m": preset("stories110m"),
          "1b1": ModelConfig(2048, 22, 32, 32000, n_kv_heads=4, hidden_dim=5632, max_seq_len=2048)}
FORMS = {  # name: kind of the layers, kind of the head, dtype, activations
    "fp32": (None, None, torch.float32, "fp32"),
    "bf16": (None, None, torch.bfloat16, "fp32"),
    "NF4": ("nf4", None, torch.float32, "fp32"),
    "NF4, head int8": ("nf4", "int8", torch.float32, "fp32"),
    "NF4 x int8 activations": ("nf4", None, torch.float32, "int8"),
    "NF4 x int8 activations, head int8": ("nf4", "int8", torch.float32, "int8"),
    "int8": ("int8", None, torch.float32, "fp32"),
    "int8, head int8": ("int8", "int8", torch.float32, "fp32"),
}
PEERS = {"fp32": "F32", "bf16": "BF16", "NF4": "Q4_0", "int8": "Q8_0"}  # llama.cpp's form beside each of ours


def lively_model(config):
    """Random weights of unit gain: the text wanders, and the best score stands clear of the second."""
    torch.manual_seed(0)
    model = Transformer(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.normal_(std=weight.shape[-1] ** -0.5)
    return model


def in_form(model, form):
    """The model with its weights in another form, on the kernels for CPUs; in fp32 it shares their memory."""
    kind, head, dtype, activations = FORMS[form]
    other = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()}).to(dtype)
    if kind:
        quantize_linears(other, kind=kind, **({"backend": "cpu"} if kind == "nf4" else {}))
    if head:
        quantize_linears(other, ("output",), head, skip=())
    return use_kernels(other, "cpu", activations)


def bytes_of_a_token(model, position, cache_dtype):
    """Bytes that a step reads: the weights, all but the embedding table, unless the head is that table; and the keys
    and values of all tokens before it."""
    table = model.tok_embeddings
    modules = [module for module in model.modules() if module is not table or model.config.tie_embeddings]
    weights = sum(tensor.nbytes for module in modules for tensor in
                  (*module.parameters(recurse=False), *module.buffers(recurse=False)))
    c = model.config
    return weights + 2 * c.n_layers * c.n_kv_heads * c.head_dim * position * cache_dtype.itemsize


def reading(model):
    """Sums over the weights: every byte is touched, and nothing else is done with it."""
    def work():
        for weight in model.parameters():
            weight.sum()

    return work


def opened(chosen, config, model, folder):
    """({name: reader} of all that can be had here, {name: bytes a token})."""
    room = max(chosen.position + N, PROMPT) + 1
    cache_dtype = chosen.cache_dtype and getattr(torch, chosen.cache_dtype)
    found = {"PyTorch fp32": Ours(use_kernels(copy.deepcopy(model, {id(w): w for w in model.parameters()}), "torch"),
                                  room)}
    bytes_read = {}
    for form in FORMS:
        made = in_form(model, form)
        found[f"engine {form}"] = ours = Ours(made, room, engine=True, cache_dtype=cache_dtype)
        bytes_read[form] = bytes_of_a_token(made, chosen.position, ours.cache_dtype)
    if _rounds.has_peer("transformers"):
        found["transformers fp32"] = Transformers(model)
        if _rounds.has_peer("bitsandbytes"):
            found["bitsandbytes NF4"] = Transformers(model, nf4=True)
    if _rounds.has_peer("llama_cpp"):
        for kind, path in gguf_files(model, folder, PEERS.values()).items():
            found[f"llama.cpp {kind}"] = LlamaCpp(path, max(2 * PROMPT, room), chosen.threads)
    return found, bytes_read


def text_of(reader, prompt, n):
    """The prompt's greedy continuation."""
    ids = [reader.read(prompt)]
    while len(ids) < n:
        ids.append(reader.step(ids[-1]))
    return ids


def decoding(reader, prompt, n, clock):
    """Seconds of n steps behind a prompt, of which only the steps count."""
    def work():
        token = reader.read(prompt)
        start = clock()
        for _ in range(n):
            token = reader.step(token)
        return clock() - start

    return work


def timed(work, clock):
    """Seconds of one call."""
    def measured():
        start = clock()
        work()
        return clock() - start

    return measured


def peers_of(form, found):
    """The names of those that a form is held against."""
    kind = form.replace(",", " ").split()[0]
    further = {"fp32": ["transformers fp32"], "NF4": ["bitsandbytes NF4"]}.get(kind, [])
    return [name for name in (f"llama.cpp {PEERS[kind]}", "PyTorch fp32", *further) if name in found]


def rows_of(what, seconds, tokens, found, limits, size):
    """The table's rows: each form of ours against each of its peers. limits: {form: tokens/s in each round}."""
    speed = {name: [tokens / s for s in values] for name, values in seconds.items()}
    return [_rounds.Row(f"{what}, engine {form}, against {peer}", size, "tok/s", speed[f"engine {form}"],
                        speed[peer], limits.get(form)) for form in FORMS for peer in peers_of(form, found)]


def measure(chosen, config, found, bytes_read, model):
    """All rows, of decoding and of reading a prompt."""
    clock, how = ((time.process_time, "CPU time") if chosen.threads == 1 else (time.perf_counter, "wall clock"))
    size = max(PROMPT, chosen.position)
    ids = torch.randint(config.vocab_size, (size,), generator=torch.Generator().manual_seed(1)).tolist()
    short, prompt = ids[:chosen.position], ids[:PROMPT if not chosen.small else 40]
    exact = {name: text_of(found[name], short, N) for name in found if name.endswith(("fp32", "F32"))}
    if len(set(map(tuple, exact.values()))) > 1 and not chosen.cache_dtype:  # which rounds
        raise SystemExit(f"the greedy texts differ, {exact}: nothing was timed")
    shape = f"{config.n_parameters() / 1e6:.0f} M weights"
    cache = f", cache {chosen.cache_dtype}" if chosen.cache_dtype else ""
    steps = {name: decoding(reader, short, N, clock) for name, reader in found.items()}
    steps["limit"] = timed(reading(model), clock)
    seconds = _rounds.alternate(steps, chosen.rounds, lambda work: work())
    whole = sum(weight.nbytes for weight in model.parameters())
    limits = {form: [whole / n / s for s in seconds["limit"]] for form, n in bytes_read.items()}
    rows = rows_of(f"decoding, {how}", seconds, N, found, limits, f"{shape}, {N} tokens after {chosen.position}{cache}")
    if chosen.position > PROMPT:
        return rows
    reads = {name: timed(lambda reader=reader: reader.read(prompt), clock) for name, reader in found.items()}
    seconds = _rounds.alternate(reads, max(1, chosen.rounds // 2), lambda work: work())
    return rows + rows_of(f"reading a prompt, {how}", seconds, len(prompt), found, {},
                          f"{shape}, {len(prompt)} tokens")


def main(argv=None):
    def shape(parser):
        parser.add_argument("--shape", choices=list(SHAPES), default="110m", help="of the model (default 110m)")
        parser.add_argument("--position", type=int, default=POSITION, help="tokens read before (default %(default)s)")
        parser.add_argument("--cache-dtype", choices=("bfloat16", "float16"), help="default: that of the weights")

    chosen = _rounds.options(__doc__, argv, shape)
    kernels.require("cpu")
    config = ModelConfig(64, 2, 4, 512, hidden_dim=192) if chosen.small else SHAPES[chosen.shape]
    config = replace(config, max_seq_len=max(config.max_seq_len, chosen.position + N + 1))
    model = lively_model(config)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        found, bytes_read = opened(chosen, config, model, Path(folder))
        _rounds.show(measure(chosen, config, found, bytes_read, model))


if __name__ == "__main__":
    main()
