"""Decoding one text and reading a prompt: our model on PyTorch and on the compiled engine, in each form of its weights,
beside transformers, bitsandbytes and llama.cpp.

Each new token reads every weight once (all but the embedding table), so decoding is at most as fast as the bytes of the
weights can be read: that is the limit, by a sum over the same weights in fp32, in the same rounds. The peers' calls are
theirs alone, without the loop that a user's program has around them. With one thread times are CPU time, so that other
programs on the machine cost little; with more they are the wall's, and worth something on an idle machine alone.

Far into a text the keys and values of what was read are a good part of those bytes: --position says how far, and
--cache-dtype how ours are kept. llama.cpp keeps them in float16.

One form is made, measured beside its peers and let go before the next, and all read one file of weights where it lies:
1.1B takes some 6 GB. A line on stderr says how much each form took.
"""

import contextlib
import copy
import gc
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import _rounds  # first: it speaks to OpenMP before torch loads
import torch
from _readers import LlamaCpp, Ours, Transformers, llama_cpp_file, random_file

from minillama import kernels
from minillama.backends import use_kernels
from minillama.checkpoint import load_model
from minillama.config import ModelConfig, preset
from minillama.quant.quantize_linears import quantize_linears

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
    "GGUF Q4_0": ("gguf", None, torch.float32, "fp32"),
    "GGUF Q4_0 x int8 activations": ("gguf", None, torch.float32, "int8"),
    "GGUF Q8_0": ("gguf", None, torch.float32, "fp32"),
    "GGUF Q8_0 x int8 activations": ("gguf", None, torch.float32, "int8"),
}
PEERS = {"fp32": "F32", "bf16": "BF16", "NF4": "Q4_0", "int8": "Q8_0",  # llama.cpp's form beside each of ours;
         "GGUF Q4_0": "Q4_0", "GGUF Q8_0": "Q8_0"}  # of GGUF the very file that it reads


def in_form(model, form, folder):
    """The model with its weights in another form, on the kernels for CPUs; what stays fp32 shares their memory."""
    kind, head, dtype, activations = FORMS[form]
    if kind == "gguf":
        other = load_model(folder / f"{PEERS[kind_of(form)]}.gguf", quantize="gguf")[0].eval().requires_grad_(False)
        return use_kernels(other, "cpu", activations)
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


def peers_of(kind, model, folder, room, threads):
    """{name: reader} of what a kind of form is held against, as far as it can be had here."""
    found = {}
    if _rounds.has_peer("llama_cpp"):
        path = llama_cpp_file(folder, PEERS[kind])
        found[f"llama.cpp {PEERS[kind]}"] = LlamaCpp(path, max(2 * PROMPT, room), threads)
    plain = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    found["PyTorch fp32"] = Ours(use_kernels(plain, "torch"), room)
    if kind == "fp32" and _rounds.has_peer("transformers"):
        found["transformers fp32"] = Transformers(model)
    if kind == "NF4" and _rounds.has_peer("transformers") and _rounds.has_peer("bitsandbytes"):
        found["bitsandbytes NF4"] = Transformers(model, nf4=True)
    return found


def kind_of(form):
    """The first word of a form's name, the first two of GGUF's: what its peers are chosen by."""
    words = form.replace(",", " ").split()
    return " ".join(words[:1 + (words[0] == "GGUF")])


def memory_in_use():
    """GB that this process has in memory: (its own, of files it maps, each page once); zeros where none can tell."""
    with contextlib.suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        whole, own = (int(lines[name].split()[0]) / 1e6 for name in ("Pss", "Pss_Anon"))
        return own, whole - own
    return 0.0, 0.0


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


def rows_of(what, form, seconds, tokens, limits, size):
    """The table's rows: a form of ours against each of its peers. limits: tokens/s in each round, or None."""
    speed = {name: [tokens / s for s in values] for name, values in seconds.items()}
    ours = speed.pop(f"engine {form}")
    speed.pop("limit", None)
    return [_rounds.Row(f"{what}, engine {form}, against {peer}", size, "tok/s", ours, theirs, limits)
            for peer, theirs in speed.items()]


def require_one_text(readers, prompt):
    """SystemExit where those in fp32 do not write the same text."""
    exact = {name: text_of(reader, prompt, N) for name, reader in readers.items() if name.endswith(("fp32", "F32"))}
    if len(set(map(tuple, exact.values()))) > 1:
        raise SystemExit(f"the greedy texts differ, {exact}: nothing was timed")


def measure(chosen, form, found, bytes_read, model):
    """The rows of one form, of decoding and of reading a prompt. found: {name: reader} of ours and its peers."""
    clock, how = ((time.process_time, "CPU time") if chosen.threads == 1 else (time.perf_counter, "wall clock"))
    size, config = max(PROMPT, chosen.position), model.config
    ids = torch.randint(config.vocab_size, (size,), generator=torch.Generator().manual_seed(1)).tolist()
    short, prompt = ids[:chosen.position], ids[:PROMPT if not chosen.small else 40]
    if not chosen.cache_dtype:  # which rounds
        require_one_text(found, short)
    shape = f"{config.n_parameters() / 1e6:.0f} M weights"
    cache = f", cache {chosen.cache_dtype}" if chosen.cache_dtype else ""
    steps = {name: decoding(reader, short, N, clock) for name, reader in found.items()}
    steps["limit"] = timed(reading(model), clock)
    seconds = _rounds.alternate(steps, chosen.rounds, lambda work: work())
    whole = sum(weight.nbytes for weight in model.parameters())
    limits = [whole / bytes_read / s for s in seconds["limit"]]
    rows = rows_of(f"decoding, {how}", form, seconds, N, limits, f"{shape}, {N} tokens after {chosen.position}{cache}")
    if chosen.position > PROMPT:
        return rows
    reads = {name: timed(lambda reader=reader: reader.read(prompt), clock) for name, reader in found.items()}
    seconds = _rounds.alternate(reads, max(1, chosen.rounds // 2), lambda work: work())
    return rows + rows_of(f"reading a prompt, {how}", form, seconds, len(prompt), None,
                          f"{shape}, {len(prompt)} tokens")


def measure_kind(chosen, kind, forms, model, folder):
    """The rows of all forms of a kind, one after another beside the same peers, which are then let go."""
    room = max(chosen.position + N, PROMPT) + 1
    cache_dtype = chosen.cache_dtype and getattr(torch, chosen.cache_dtype)
    peers, rows = peers_of(kind, model, folder, room, chosen.threads), []
    for form in forms:
        made = in_form(model, form, folder)
        ours = Ours(made, room, engine=True, cache_dtype=cache_dtype)
        bytes_read = bytes_of_a_token(made, chosen.position, ours.cache_dtype)
        rows += measure(chosen, form, {f"engine {form}": ours, **peers}, bytes_read, model)
        own, mapped = memory_in_use()
        print(f"{form}: {own + mapped:.1f} GB in memory, {mapped:.1f} of them pages of files", file=sys.stderr)
        del made, ours
        gc.collect()
    for reader in peers.values():
        reader.close()
    return rows


def main(argv=None):
    def shape(parser):
        parser.add_argument("--shape", choices=list(SHAPES), default="110m", help="of the model (default 110m)")
        parser.add_argument("--position", type=int, default=POSITION, help="tokens read before (default %(default)s)")
        parser.add_argument("--cache-dtype", choices=("bfloat16", "float16"), help="default: that of the weights")
        parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), metavar="FORM",
                            help="of the weights (default: all, %(choices)s)")

    chosen = _rounds.options(__doc__, argv, shape)
    kernels.require("cpu")
    config = ModelConfig(64, 2, 4, 512, hidden_dim=192) if chosen.small else SHAPES[chosen.shape]
    config = replace(config, max_seq_len=max(config.max_seq_len, chosen.position + N + 1))
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        model = load_model(random_file(config, Path(folder)))[0].eval().requires_grad_(False)
        rows = []
        for kind in dict.fromkeys(map(kind_of, chosen.forms)):
            if kind.startswith("GGUF") and not _rounds.has_peer("llama_cpp"):
                continue  # which writes the file
            forms = [form for form in chosen.forms if kind_of(form) == kind]
            rows += measure_kind(chosen, kind, forms, model, Path(folder))
        _rounds.show(rows)


if __name__ == "__main__":
    main()
