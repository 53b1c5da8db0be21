"""Quantized checkpoints: the bits that quantizing in memory gives, a layer in memory at a time, hostile until read."""

import ast
import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from checkpoints import assert_same_weights, in_a_folder, model_of
from mutants import Mutant

from minillama.checkpoint import load_model, open_weights, save_model
from minillama.checkpoint.convert import convert, quantize
from minillama.checkpoint.quantized import quantize_weights, write_quantized
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.checkpoint.weights import Weights, as_stored, from_model
from minillama.cli.info import examine_checkpoint
from minillama.config import ModelConfig
from minillama.quant.quantize_linears import quantize_linears
from run import CAPS

# odd widths: 33 * 38 = 1254 weights are no whole number of blocks; two heads of 19 are none that RoPE turns: 18
CONFIG = ModelConfig(dim=38, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=18, vocab_size=53, hidden_dim=33,
                     max_seq_len=16)
TIED = ModelConfig(dim=64, n_layers=1, n_heads=2, vocab_size=31, hidden_dim=64, max_seq_len=16, tie_embeddings=True)
KINDS = [("nf4", {}), ("nf4", {"block_size": 6, "double_quantization": False}), ("nf4", {"block_size": 4096}),
         ("int8", {}), ("int8", {"threshold": math.inf})]
TOKENS = torch.arange(1, 14)[None]


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["odd", "tied"])
@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_the_file_holds_the_bits_that_quantizing_in_memory_gives(kind, settings, config, tmp_path):
    model = model_of(config, dtype=torch.bfloat16)
    save_model(tmp_path / "whole", model)
    quantize(tmp_path / "whole", tmp_path / "few", kind, **settings)
    quantize_linears(model, kind=kind, **settings)
    found = load_model(tmp_path / "few")[0]
    assert_same_weights(model, found)
    for name, module in model.named_modules():
        if hasattr(module, "settings"):
            assert found.get_submodule(name).settings() == module.settings() == {**module.settings(), **settings}
    assert torch.equal(model(TOKENS), found(TOKENS))


def test_what_a_layer_was_made_of_leaves_memory_before_the_next_is_read():
    """Or the whole model would be in memory beside its few bits, once all of it has been read."""
    whole = {name: tensor.detach().clone() for name, tensor in model_of(TIED).named_parameters()}
    alive = {name: weakref.ref(tensor) for name, tensor in whole.items()}
    weights = Weights(TIED, {name: as_stored(whole.pop(name)) for name in list(whole)}, Path("there"))
    weights = quantize_weights(weights, "nf4")
    for name in list(weights.tensors):
        part = weights.tensors.pop(name)
        part.layer() if part.layer else part.read()
        del part
        assert alive[name]() is None, f"{name} is still held"


@pytest.mark.parametrize("to", ["hf", "llama2c", "gguf"])
def test_every_form_is_quantized_and_the_result_converts_to_whole_weights_again(to, tmp_path):
    save_model(tmp_path / "meta", model_of(TIED))
    convert(tmp_path / "meta", tmp_path / "other", to)
    quantize(tmp_path / "other", tmp_path / "few", "nf4")
    quantize(tmp_path / "meta", tmp_path / "same", "nf4")
    few, same = load_model(tmp_path / "few")[0], load_model(tmp_path / "same")[0]
    assert_same_weights(few, same)
    convert(tmp_path / "few", tmp_path / "whole", "meta")
    whole = load_model(tmp_path / "whole")[0]
    assert torch.equal(whole.layers[0].attention.wq.weight, few.layers[0].attention.wq.dequantize())
    assert torch.allclose(whole(TOKENS), few(TOKENS), atol=1e-4)


def test_what_is_kept_takes_the_dtype_asked_for_and_the_codes_come_from_the_unrounded_weights(tmp_path):
    model = model_of(CONFIG)
    save_model(tmp_path / "whole", model)
    quantize(tmp_path / "whole", tmp_path / "few", "int8", dtype="bfloat16")
    quantize_linears(model, kind="int8")
    found = load_model(tmp_path / "few")[0]
    assert_same_weights(model.bfloat16(), found)


def test_info_counts_the_bits_of_a_weight(tmp_path):
    """4 bits, 8 for each 64 weights, 32 for each 256 * 64 (here one for less), one mean: all layers of 64 x 64."""
    save_model(tmp_path / "whole", model_of(TIED))
    for kind, bits in (("nf4", 4 + 8 / 64 + 2 * 32 / 4096), ("int8", 8 + 32 / 64)):
        quantize(tmp_path / "whole", tmp_path / kind, kind)
        text = examine_checkpoint(tmp_path / kind)[0]
        assert f"quantized: {kind}" in text and f"7 linear layers, {bits:.3f} bits a weight" in text
        size = sum(t.nbytes for name, t in read_safetensors(tmp_path / kind / "quantized.safetensors").items()
                   if not name.endswith("layout"))
        assert f"all together {8 * size / TIED.n_parameters():.2f} bits" in text
    text = examine_checkpoint(tmp_path / "whole")[0]
    assert "32.00 bits" in text and "quantized" not in text


WRITE_ALL = """
import hashlib, sys, torch
from pathlib import Path
from minillama.checkpoint.gguf_llama import write_gguf_llama
from minillama.checkpoint.llama2c import write_llama2c
from minillama.checkpoint.quantized import quantize_weights, write_quantized
from minillama.checkpoint.weights import Stored, Weights, expected_shapes
from minillama.config import ModelConfig
def numbers(shape, seed):  # integers are the same everywhere, torch.randn is not; 33,280 blocks: more than a thread's
    return torch.randint(-2**24, 2**24, shape, generator=torch.Generator().manual_seed(seed)).float() * 0.3 / 2**26
def weights_of(dim, hidden_dim):
    config = ModelConfig(dim=dim, n_layers=1, n_heads=4, vocab_size=320, hidden_dim=hidden_dim, max_seq_len=16)
    tensors = {name: Stored(shape, torch.float32, lambda shape=shape, seed=seed: numbers(shape, seed))
               for seed, (name, shape) in enumerate(expected_shapes(config).items())}
    return Weights(config, tensors, "numbers")
def write_all(folder):
    (folder / "large").mkdir(parents=True)
    write_quantized(folder / "large", quantize_weights(weights_of(512, 4160), "nf4"))
    weights = weights_of(128, 352)
    for name, kind, settings in (("nf4", "nf4", {}), ("fitted", "nf4", {"fit_scales": True}), ("int8", "int8", {}),
                                 ("single", "nf4", {"fit_scales": True, "double_quantization": False})):
        (folder / name).mkdir()
        write_quantized(folder / name, quantize_weights(weights, kind, **settings))
    write_llama2c(folder / "model.bin", weights, version=2)
    write_gguf_llama(folder / "model.gguf", weights, kind="Q8_0")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}
for threads in sys.argv[2:]:
    torch.set_num_threads(int(threads))
    print(write_all(Path(sys.argv[1], threads)))
"""

def test_the_bytes_of_quantized_files_depend_on_no_processor_and_no_number_of_threads(tmp_path):
    """NF4, also fitted, int8, and the 8-bit forms of GGUF and llama2.c: SHA-256 of every file."""
    printed = []
    for cap, threads in (("native", "12"), ("avx2", "2"), ("sse", "1")):
        done = subprocess.run([sys.executable, "-c", WRITE_ALL, str(tmp_path / cap), *threads], capture_output=True,
                              text=True, env={**os.environ, **CAPS.get(cap, {})})
        assert done.returncode == 0, done.stderr
        printed += done.stdout.splitlines()
    assert len(printed) == 4 and len(set(printed)) == 1, printed
    assert len(ast.literal_eval(printed[0])) >= 6


STREAM = """
import resource, sys, torch
from minillama.checkpoint.quantized import quantize_weights, write_quantized
from minillama.checkpoint.weights import Stored, Weights, expected_shapes
from minillama.config import ModelConfig
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)
def write(n_layers):
    config = ModelConfig(dim=512, n_layers=n_layers, n_heads=8, vocab_size=4096, hidden_dim=2048, max_seq_len=16)
    tensors = {name: Stored(shape, torch.float32, lambda shape=shape: torch.randn(shape))
               for name, shape in expected_shapes(config).items()}
    write_quantized(sys.argv[1], quantize_weights(Weights(config, tensors, "random"), sys.argv[2]))
write(1)
small = peak()
write(8)
print(peak() - small)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by resource.getrusage")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_memory_does_not_grow_with_the_number_of_layers(kind, tmp_path):
    """8 layers of 4 M weights are 134 MB in fp32 and 17 or 34 MB quantized; one layer's largest matrix is 4 MB. What
    the longer run adds to the peak of the short one is a matter of the allocator: 12 MB, three matrices."""
    done = subprocess.run([sys.executable, "-c", STREAM, str(tmp_path), kind], capture_output=True, text=True)
    assert int(done.stdout) < 12e6, done.stderr


def test_a_failure_on_the_way_leaves_nothing_and_names_the_tensor(tmp_path):
    model = model_of(CONFIG)
    with torch.no_grad():
        model.layers[1].feed_forward.w2.weight[3, 4] = math.nan
    save_model(tmp_path / "whole", model)
    with pytest.raises(ValueError, match=r"whole: layers.1.feed_forward.w2.weight: .*NaN"):
        quantize(tmp_path / "whole", tmp_path / "few", "nf4")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path):
    save_model(tmp_path / "whole", model_of(CONFIG))
    quantize(tmp_path / "whole", tmp_path / "few", "nf4")
    for source, settings, said in (("few", {"kind": "int8"}, "few is quantized already \\(nf4\\): quantize the model"),
                                   ("whole", {"kind": "fp4"}, "kind 'fp4' is not known"),
                                   ("whole", {"kind": "nf4", "block_size": 7}, "block_size 7 is not allowed"),
                                   ("whole", {"kind": "nf4", "dtype": "int8"}, "dtype 'int8' is not known")):
        with pytest.raises(ValueError, match=said):
            quantize(tmp_path / source, tmp_path / "out", **settings)
    with pytest.raises(FileExistsError, match="few exists: choose another place"):
        quantize(tmp_path / "whole", tmp_path / "few", "nf4")
    with pytest.raises(ValueError, match="quantized layers, which this form cannot hold"):
        from_model(load_model(tmp_path / "few")[0])
    with pytest.raises(ValueError, match="quantized already"):
        load_model(tmp_path / "few", quantize="nf4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few", "whole"]


WQ = "layers.0.attention.wq"
LIES = {  # what is changed in params.json or among the tensors, and what is said
    "another block size": ({"block_size": 32}, {}, "absmax is torch.uint8"),
    "a block size beyond all memory": ({"block_size": 2**39}, {}, "absmax is"),
    "an odd block size": ({"block_size": 63}, {}, "block_size is 63"),
    "a head of another kind": ({"head": "nf4"}, {}, "has head 'nf4': expected int8, or none"),
    "a head that is not there": ({"head": "int8"}, {}, "output.codes is missing or too short"),
    "another kind": ({"kind": "int8", "threshold": 6.0}, {}, "layout is torch.int64"),
    "a kind that is a list": ({"kind": ["nf4"]}, {}, "expected an object with kind"),
    "no double quantization": ({"double_quantization": False}, {}, "absmax is torch.uint8"),
    "wider than the file": ({"multiple_of": 2**31}, {}, "too short"),
    "more layers than tensors": ({"n_layers": 2**31}, {}, "cut short"),
    "a layout of the other order": ({}, {f"{WQ}.layout": torch.tensor([38, 36, 64, 0])}, "layout is"),
    "a part missing": ({}, {f"{WQ}.absmax_scale": None}, "absmax_scale is missing"),
    "codes missing": ({}, {f"{WQ}.codes": None}, "codes is missing"),
    "a part too many": ({}, {"layers.0.attention.wx.codes": torch.zeros(3)}, "wx.codes is not part"),
    "no embedding": ({}, {"tok_embeddings.weight": None}, "tok_embeddings.weight is missing"),
    "no norm": ({}, {"norm.weight": None}, "norm.weight is missing"),
    "absmax of another dtype": ({}, {f"{WQ}.absmax": torch.zeros(22)}, "absmax is torch.float32"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_in_one_line(lie, tmp_path):
    settings, changes, said = LIES[lie]
    write_quantized(tmp_path, quantize_weights(from_model(model_of(CONFIG)), "nf4"))
    params = json.loads((tmp_path / "params.json").read_text())
    for name, value in settings.items():
        (params if name in params else params["quantization"])[name] = value
    (tmp_path / "params.json").write_text(json.dumps(params))
    tensors = {name: t.clone() for name, t in read_safetensors(tmp_path / "quantized.safetensors").items()} | changes
    write_safetensors(tmp_path / "quantized.safetensors", {name: t for name, t in tensors.items() if t is not None})
    with pytest.raises(ValueError, match=said) as error:
        open_weights(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_moved_is_whole(tmp_path):
    """Nothing in it points outside: it may be copied anywhere."""
    save_model(tmp_path / "whole", model_of(TIED))
    quantize(tmp_path / "whole", tmp_path / "few", "nf4")
    before = load_model(tmp_path / "few")[0](TOKENS)
    shutil.move(tmp_path / "few", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "whole")
    assert torch.equal(load_model(tmp_path / "elsewhere")[0](TOKENS), before)
    assert sorted(path.name for path in Path(tmp_path / "elsewhere").iterdir()) == ["params.json", TENSORS]


def a_lie(name):
    return lambda: in_a_folder(lambda folder: test_a_file_that_lies_is_refused_in_one_line(name, folder))


def same_bits(kind, settings):
    return lambda: in_a_folder(lambda folder: test_the_file_holds_the_bits_that_quantizing_in_memory_gives(
        kind, settings, CONFIG, folder))


TENSORS = "quantized.safetensors"
MODULE = "minillama.checkpoint.quantized"
MUTANTS = [
    Mutant(MODULE, 'type(error)(f"{source}: {name}', 'type(error)(f"{weights.source}: {name}',
           test_what_a_layer_was_made_of_leaves_memory_before_the_next_is_read),
    Mutant(MODULE, "from_weight(tensor.read(), **given)", "from_weight(tensor.read())", same_bits(*KINDS[1])),
    Mutant(MODULE, "made = kind.planned(*shape, **settings)", "made = kind.planned(*shape)", same_bits(*KINDS[4])),
    Mutant(MODULE, 'or ".feed_forward.w" in name', "", same_bits(*KINDS[0])),
    Mutant(MODULE, "if name == HEAD and head else None", "if name == HEAD else None", same_bits(*KINDS[0])),
    Mutant(MODULE, "(tensor.shape, tensor.dtype) != (plan.shape, plan.dtype)", "False", a_lie("another block size")),
    Mutant(MODULE, 'found["layout"].tolist() != planned.layout.tolist()', "False",
           a_lie("a layout of the other order")),
    Mutant(MODULE, "codes is None or codes.numel() < math.prod(shape) / 2", "codes is None",
           a_lie("wider than the file")),
    Mutant(MODULE, "    if parts:\n", "    if False:\n", a_lie("a part too many")),
    Mutant("minillama.checkpoint.safetensors", "file.seek(8 + len(text) + spans[name][0])", "pass",
           same_bits(*KINDS[0])),
    Mutant("minillama.checkpoint.convert", "if not tensor.layer)", ")", lambda: in_a_folder(
        test_what_is_kept_takes_the_dtype_asked_for_and_the_codes_come_from_the_unrounded_weights)),
    Mutant("minillama.cli.info", 'if name != "layout")', ")",
           lambda: in_a_folder(test_info_counts_the_bits_of_a_weight)),
]
