"""Run as a program: damage files of several forms N times and load each. A JSON line per form: what went wrong.

A load may succeed or end in a ValueError. Anything else is a failure: another exception, more than a few seconds,
more address space than the limit, a file touched outside.
"""

import json
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

from minillama.checkpoint import load_model, open_weights, save_model
from minillama.checkpoint.gguf_llama import write_gguf_llama
from minillama.checkpoint.huggingface import write_huggingface
from minillama.checkpoint.llama2c import write_llama2c
from minillama.checkpoint.quantized import quantize_weights, write_quantized
from minillama.checkpoint.safetensors import read_safetensors
from minillama.checkpoint.weights import from_model
from minillama.config import ModelConfig, RopeScaling
from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tokenizer.llama2c_vocab import llama2c_vocab
from minillama.tokenizer.tiktoken import read_tiktoken
from minillama.tokenizer.tokenizer_json import tokenizer_json
from minillama.transformer import Transformer

sys.path.append(str(Path(__file__).parent / "tokenizer"))
from test_tiktoken import tiny_file  # noqa: E402

CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=280, hidden_dim=32, max_seq_len=8)
SCALED = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=280, hidden_dim=32, rope_scaling=RopeScaling(8.0))
EXTREMES = [0, 1, 2, 7, 31, 255, 256, 2**15, 2**16 - 1,
            2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = [b"0", b"-1", b"1e999", b"99999999999999999999", b"4294967296", b"null",
           b'"x"', b"[]", b"{}", b"true", b"NaN",
           b"0.5", b"1"]
SECONDS, GROWTH = 20, 2**30


def damaged(content, source):
    """A copy with one to four mistakes: bits, runs, cuts, repeats, extreme integers, other numbers in text."""
    content = bytearray(content)
    for _ in range(source.randint(1, 4)):
        size = len(content)
        place = source.randrange(size + 1) if source.random() < 0.4 else source.randrange(min(size, 600) + 1)
        kind = source.randrange(8)
        if kind == 0 and place < size:
            content[place] ^= 1 << source.randrange(8)
        elif kind == 1:
            content[place:place + source.choice([1, 2, 4, 8, 64])] = b""
        elif kind == 2:
            content[place:place] = content[:source.choice([1, 4, 8, 100])]
        elif kind == 3:
            del content[place:]
        elif kind in (4, 5):
            width = source.choice([1, 2, 4, 8])
            value = source.choice(EXTREMES) % 256**width
            content[place:place + width] = value.to_bytes(width, "little")
        elif kind == 6:
            content[place:place + 8] = source.randbytes(8)
        else:
            digits = [i for i in range(min(size, 5000)) if 48 <= content[i] <= 57]
            if digits:
                place = source.choice(digits)
                content[place:place + 1] = source.choice(NUMBERS)
    return bytes(content)


def prepare(form, folder):
    """A good file of the form; returns (the file to damage, how to load it)."""
    if form == "trusting":  # no form of ours: a reader with every fault this program looks for
        path = folder / "x"
        path.write_bytes((4).to_bytes(8, "little") + b"abcd")
        return path, lambda: trusting(path.read_bytes())
    torch.manual_seed(0)
    tokenizer = train_bpe(["the cat and the hat and the bat"] * 20, 280)
    weights = from_model(Transformer(CONFIG))
    if form in ("pth", "params"):
        save_model(folder, Transformer(CONFIG))
        return folder / ("params.json" if form == "params" else "consolidated.00.pth"), lambda: load(folder)
    if form in ("safetensors", "config", "index", "bin"):
        write_huggingface(folder, weights)
        if form == "bin":
            state = {name: tensor.clone() for name, tensor in read_safetensors(folder / "model.safetensors").items()}
            torch.save(state, folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        if form == "index":
            names = list(read_safetensors(folder / "model.safetensors"))
            (folder / "model.safetensors").rename(folder / "one.safetensors")
            (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": dict.fromkeys(names, "one.safetensors")}))
        name = {"safetensors": "model.safetensors", "config": "config.json", "bin": "pytorch_model.bin",
                "index": "model.safetensors.index.json"}[form]
        return folder / name, lambda: load(folder)
    if form.startswith("quantized"):
        write_quantized(folder, quantize_weights(weights, form.split("_")[1]))
        name = "params.json" if form.endswith("params") else "quantized.safetensors"
        return folder / name, lambda: load(folder)
    if form.startswith("llama2c"):
        write_llama2c(folder / "x.bin", weights, int(form[-1]))
        return folder / "x.bin", lambda: load(folder / "x.bin")
    if form.startswith("gguf"):
        model = Transformer(SCALED if form == "gguf_scaled" else CONFIG)
        write_gguf_llama(folder / "x.gguf", from_model(model), tokenizer, "Q8_0" if form == "gguf_q8" else None)
        return folder / "x.gguf", lambda: load(folder / "x.gguf")
    return prepare_tokenizer(form, folder, tokenizer)


def trusting(data):
    """Allocates what the first bytes say, then indexes without looking."""
    room = bytearray(min(int.from_bytes(data[:8], "little"), 2**62))
    for i in range(min(len(room), 100)):
        room[i] = data[8 + i]


def prepare_tokenizer(form, folder, tokenizer):
    """The same for tokenizer files."""
    path = folder / "tokenizer"
    if form == "vocab_bin":
        path.write_bytes(llama2c_vocab(tokenizer))
    elif form == "tiktoken":
        path.write_bytes(tiny_file())
    elif form == "tokenizer_json":
        path.write_bytes(tokenizer_json(read_tiktoken(tiny_file())))
    else:
        tokenizer.save(path)

    def use():
        found = load_tokenizer(path)
        ids = found.encode("the cat \u4f60 123")
        found.decode(ids)

    return path, use


def load(path):
    """Read every tensor; now and then build the model too (slow), and load the tokenizer."""
    weights = open_weights(path)
    for tensor in weights.tensors.values():
        tensor.read().float().sum()
    if random.random() < 0.05:
        load_model(path)


def hang(*_):
    raise TimeoutError(f"more than {SECONDS} seconds")


def main(count, folder, *forms):
    """Damage `count` files of each form."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, hang)
    for form in forms:
        place = Path(folder, form)
        place.mkdir()
        path, use = prepare(form, place)
        use()
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + GROWTH, resource.RLIM_INFINITY))
        print(json.dumps({"form": form, **damage_and_load(path, use, count)}), flush=True)


def damage_and_load(path, use, count):
    """The counts, and the first failures in words."""
    good, source, failures, loaded, slowest = path.read_bytes(), random.Random(count), [], 0, 0.0
    for number in range(count):
        path.write_bytes(damaged(good, source))
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process's own time, however busy the machine
        try:
            use()
            loaded += 1
        except ValueError as error:
            if "\n" in str(error):
                failures.append(f"{number}: more than a line: {error}")
        except BaseException as error:
            failures.append(f"{number}: {type(error).__name__}: {error} at {traceback.format_exc().splitlines()[-3:]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - started)
    return {"loaded": loaded, "slowest": slowest, "failed": len(failures), "failures": failures[:5]}


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
