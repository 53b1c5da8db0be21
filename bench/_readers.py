"""Models as benchmarks of decoding see them, ours and peers' alike: `read(ids)` forgets what was read before, reads a
prompt at once and gives the id of the greatest score behind it; `step(id)` reads one more token and gives the next."""

import ctypes
import os

import _rounds
import torch
from _twin import transformers_twin

from minillama.checkpoint.gguf_llama import write_gguf_llama
from minillama.checkpoint.weights import Stored, Weights, expected_shapes
from minillama.engine import Engine
from minillama.generate import prefill
from minillama.kv_cache import KVCache


class Ours:
    """Our model, with the compiled engine for single tokens where one is wanted."""

    def __init__(self, model, room, engine=False, cache_dtype=None):
        self.model, self.room, self.engine = model, room, Engine(model) if engine else None
        self.cache_dtype = cache_dtype or model.tok_embeddings.weight.dtype

    def read(self, ids):
        self.cache = KVCache(self.model.config, 1, self.room, self.cache_dtype)
        return int(prefill(self.model, torch.tensor([ids]), self.cache).argmax())

    def step(self, token):
        if self.engine:
            return int(self.engine.step(torch.tensor([token]), self.cache).argmax())
        return int(prefill(self.model, torch.tensor([[token]]), self.cache).argmax())

    def close(self):
        """Let go of what it holds."""
        self.model = self.engine = self.cache = None


class Transformers:
    """LlamaForCausalLM called token by token, without what its `generate` adds; nf4: with bitsandbytes' layers."""

    def __init__(self, model, nf4=False):
        self.theirs = transformers_twin(model).eval().requires_grad_(False)
        if nf4:
            in_bitsandbytes_nf4(self.theirs)

    def read(self, ids):
        from transformers import DynamicCache

        self.cache = DynamicCache()
        return self._next(ids)

    def step(self, token):
        return self._next([token])

    def close(self):
        """Let go of what it holds."""
        self.theirs = self.cache = None

    def _next(self, ids):
        out = self.theirs(input_ids=torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())


def in_bitsandbytes_nf4(model):
    """Put bitsandbytes' layers in the place of the linear layers but the head: NF4 with double quantization. They
    compute in bf16, for which it has a product of its own where the CPU has AVX512-BF16."""
    import bitsandbytes as bnb

    for name, linear in [pair for pair in model.model.named_modules() if isinstance(pair[1], torch.nn.Linear)]:
        layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, quant_type="nf4",
                                  compute_dtype=torch.bfloat16, compress_statistics=True)
        layer.weight = bnb.nn.Params4bit(linear.weight.data.clone(), requires_grad=False, quant_type="nf4",
                                         compress_statistics=True)
        parent, _, child = name.rpartition(".")
        setattr(model.model.get_submodule(parent), child, layer.to("cpu").eval())


class LlamaCpp:
    """llama.cpp by the C functions that llama-cpp-python passes on, on a GGUF file."""

    def __init__(self, path, room, threads):
        import llama_cpp

        self.api = llama_cpp
        quiet(llama_cpp)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = room, room, room
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def read(self, ids):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        return self._next(ids)

    def step(self, token):
        return self._next([token])

    def close(self):
        """Let go of what it holds, the mapped file as well."""
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)

    def _next(self, ids):
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError(f"llama.cpp could not read {len(ids)} tokens")
        scores = ctypes.string_at(self.api.llama_get_logits_ith(self.context, -1), 4 * self.vocabulary)
        return int(torch.frombuffer(bytearray(scores), dtype=torch.float32).argmax())


def quiet(llama_cpp):
    """Nothing of what llama.cpp says of itself on stderr."""
    log = llama_cpp.llama_log_callback(lambda *_: None)
    quiet.kept = log  # C holds no reference
    llama_cpp.llama_log_set(log, None)


def random_file(config, folder):
    """The path of a GGUF file in fp32, F32.gguf, with random weights of unit gain: the text wanders, and the best score
    stands clear of the second. A matrix is drawn when it is written, so that no model lies in memory."""
    def drawn(number, shape):
        if len(shape) == 1:
            return torch.ones(shape)
        return torch.empty(shape).normal_(std=shape[-1] ** -0.5, generator=torch.Generator().manual_seed(number))

    tensors = {name: Stored(shape, torch.float32, lambda number=number, shape=shape: drawn(number, shape))
               for number, (name, shape) in enumerate(expected_shapes(config).items())}
    write_gguf_llama(folder / "F32.gguf", Weights(config, tensors, folder))
    return folder / "F32.gguf"


def llama_cpp_file(folder, kind):
    """The path of F32.gguf in another type, made by llama.cpp itself; only one such file is kept."""
    import llama_cpp

    quiet(llama_cpp)
    source, path = folder / "F32.gguf", folder / f"{kind}.gguf"
    if kind != "F32":
        for other in folder.glob("*.gguf"):
            if other != source:
                other.unlink()
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        if llama_cpp.llama_model_quantize(*map(os.fsencode, (source, path)), settings):
            raise RuntimeError(f"llama.cpp could not write {path}")
    return path


def has_llama_cpp():
    """Whether llama-cpp-python is there; it is compiled when it is installed, so no other command of ours does that."""
    return _rounds.has_peer("llama_cpp")
