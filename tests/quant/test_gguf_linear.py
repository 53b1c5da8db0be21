"""A GGUF file's blocks are multiplied where they lie: the numbers that they stand for, and an error that follows."""

import math

import pytest
import torch
from mutants import Mutant
from test_engine import law
from test_engine_decoding import check_every_stage, lively_model, padded_cache

from minillama import kernels
from minillama.backends import use_kernels
from minillama.checkpoint import load_model, open_weights
from minillama.checkpoint.gguf_blocks import BLOCKS
from minillama.checkpoint.gguf_llama import write_gguf_llama
from minillama.checkpoint.weights import from_model
from minillama.cli.command_line import main
from minillama.config import ModelConfig
from minillama.engine import Engine, matrix_of, refusal
from minillama.parity.rounding import gamma
from minillama.quant.gguf_linear import GGUFLinear, bytes_held
from minillama.quant.quantized_linear import replace_module

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
TYPES = {block.name: block for block in BLOCKS.values() if block.name in ("Q4_0", "Q8_0", "Q6_K")}
SCALE_AT = {"Q4_0": 0, "Q8_0": 0, "Q6_K": 208}  # byte of a block at which its fp16 scale lies
SHAPES = [(1, 32), (7, 96), (5, 64), (3, 256), (9, 768), (6, 1312)]  # (rows, columns)


def layer_of(name, rows, columns, gain=1.0, seed=0):
    """Random codes under random scales of both signs; `gain`: about the size of the weights."""
    block, generator = TYPES[name], torch.Generator().manual_seed(seed)
    raw = torch.randint(256, (rows, columns // block.numbers, block.bytes), generator=generator, dtype=torch.uint8)
    size = gain / {"Q4_0": 4.6, "Q8_0": 74, "Q6_K": 74 * 18}[name]  # of codes, and in Q6_K of their scales
    scales = size * (0.5 + torch.rand(raw.shape[:2], generator=generator)) * (1 - 2 * (raw[..., 5] % 2).float())
    raw[..., SCALE_AT[name]:SCALE_AT[name] + 2] = scales.half()[..., None].view(torch.uint8)
    layer = GGUFLinear(raw.flatten(), block, (rows, columns))
    layer.backend = "cpu"
    return layer


def decoded(layer):
    return layer.block.decode(layer.blocks.flatten()).view(layer.out_features, layer.in_features)


def layers(name, seed=0):
    return [layer_of(name, rows, columns, seed=seed) for rows, columns in SHAPES if columns % TYPES[name].numbers == 0]


@pytest.mark.parametrize("name", TYPES)
def test_compiled_loops_read_the_numbers_of_the_plain_form(name, vectors):
    for layer in layers(name):
        assert torch.equal(layer.dequantize(), decoded(layer))


@pytest.mark.parametrize("name", TYPES)
def test_exact_products_are_within_the_bound_of_a_sum(name, vectors):
    for layer in layers(name, seed=1):
        for n in (1, 2, 3, 5, 8):
            x = torch.randn(n, layer.in_features, generator=torch.Generator().manual_seed(n))
            law(matrix_of(layer).product(x), x, decoded(layer))


@pytest.mark.parametrize("name", TYPES)
def test_rounded_products_are_sums_of_integers_scaled_in_fp32(name, vectors):
    """|error| <= gamma(K / 16 + 24) of the sum of sizes: two scales, and parts and lanes added in any order."""
    for layer in layers(name, seed=2):
        layer.activations, K = "int8", layer.in_features
        for n in (1, 2, 3, 4, 7, 13):
            x = torch.randn(n, K, generator=torch.Generator().manual_seed(n))
            x[0, :32] = 0
            parts = x.view(n, -1, 32)
            absmax = parts.abs().amax(-1, keepdim=True)
            codes = torch.round(parts * (127 * (1 / absmax))).nan_to_num(0)
            rounded = (codes.double() * (absmax / 127).double()).view(n, K)
            W = decoded(layer).double()
            bound = gamma(K // 16 + 24) * (rounded.abs() @ W.abs().T) + 1e-40
            y = matrix_of(layer).product(x)
            assert bool(((y.double() - rounded @ W.T).abs() <= bound).all())


def test_a_row_that_holds_nan_stays_visible(vectors):
    for name in TYPES:
        layer = layer_of(name, 5, 256)
        layer.activations, x = "int8", torch.randn(3, 256)
        x[1, 200] = math.nan
        assert torch.equal(layer(x).isnan(), torch.tensor([[False], [True], [False]]).expand(3, 5))


def test_the_number_of_threads_changes_no_bit(vectors):
    x, before, found = torch.randn(5, 512), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append([])
        for name in TYPES:
            layer = layer_of(name, 701, 512)
            found[-1].append(layer(x))
            layer.activations = "int8"
            found[-1].append(layer(x))
    torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_the_layer_multiplies_any_number_of_rows_and_has_a_gradient():
    for name in TYPES:
        layer = layer_of(name, 7, 256)
        for shape in ((256,), (3, 256), (2, 9, 256), (0, 256)):
            x = torch.randn(shape, requires_grad=True)
            y = layer(x)
            torch.testing.assert_close(y, x @ decoded(layer).T, rtol=1e-5, atol=1e-4)
            y.sum().backward()
            torch.testing.assert_close(x.grad, torch.ones_like(y) @ decoded(layer))
            layer.backend = "reference"
            torch.testing.assert_close(layer(x), y, rtol=1e-5, atol=1e-4)
            layer.backend = "cpu"


def blocked_model(activations="fp32", seed=0, vocab_size=37, context=20):
    """A model whose layers lie in blocks of all three types."""
    model = lively_model(ModelConfig(256, 2, 4, vocab_size, n_kv_heads=2, hidden_dim=512, max_seq_len=context),
                         seed=seed)
    kinds = [("attention.wq", "Q4_0"), ("attention.wk", "Q8_0"), ("attention.wv", "Q6_K"), ("attention.wo", "Q4_0"),
             ("feed_forward.w1", "Q8_0"), ("feed_forward.w2", "Q6_K"), ("feed_forward.w3", "Q4_0")]
    names = [(f"layers.{n}.{name}", kind) for n in range(2) for name, kind in kinds] + [("output", "Q6_K")]
    for seed, (name, kind) in enumerate(names):
        linear = model.get_submodule(name)
        size = linear.in_features ** -0.5
        replace_module(model, name, layer_of(kind, linear.out_features, linear.in_features, size, seed))
    return use_kernels(model, "cpu", activations)


def test_the_engine_keeps_the_tolerance_law_on_blocks(vectors):
    check_every_stage(blocked_model(), 3)


def test_the_engine_and_pytorch_round_activations_alike(vectors):
    model, tokens_BT = blocked_model("int8"), torch.randint(37, (2, 12))
    cache, engine = padded_cache(model, 2), Engine(model)
    ours = torch.stack([engine.step(tokens_BT[:, t].contiguous(), cache) for t in range(12)], 1)
    plain, exact = model(tokens_BT), blocked_model()(tokens_BT)
    assert (ours - plain).norm() < 0.3 * (plain - exact).norm() < 0.03 * exact.norm()


def written(tmp_path, kind="Q8_0", **settings):
    model = lively_model(ModelConfig(64, 2, 4, 37, hidden_dim=96, max_seq_len=20, **settings))
    path = tmp_path / f"{kind}.gguf"
    write_gguf_llama(path, from_model(model), kind=kind)
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_layers_of_a_file_lie_in_it_and_nothing_is_copied(tmp_path, tied):
    path = written(tmp_path, tie_embeddings=tied)
    kept, plain = load_model(path, quantize="gguf")[0], load_model(path)[0]
    found = {name: module for name, module in kept.named_modules() if isinstance(module, GGUFLinear)}
    assert len(found) == 2 * 7 + 1 and "output" in found
    storages = {layer.blocks.untyped_storage() for layer in found.values()}
    assert {storage.data_ptr() for storage in storages} == {found["output"].blocks.untyped_storage().data_ptr()}
    assert all(storage.nbytes() == path.stat().st_size for storage in storages)
    weights = open_weights(path)
    table = 37 * 64 * 4
    assert bytes_held(weights, 4, False) == weights.config.n_parameters() * 4
    blocks = sum(layer.blocks.nbytes for name, layer in found.items() if not (tied and name == "output"))
    assert bytes_held(weights, 4, True) == table + 4 * 64 * 5 + blocks
    tokens_BT = torch.randint(37, (2, 9))
    for backend in ("reference", "cpu"):
        logits, of_plain = (use_kernels(model.eval(), backend)(tokens_BT) for model in (kept, plain))
        torch.testing.assert_close(logits, of_plain, rtol=0, atol=1e-4)
    assert refusal(use_kernels(kept, "cpu")) is None


def test_files_without_such_blocks_are_loaded_as_ever(tmp_path):
    model = load_model(written(tmp_path, "F16"), quantize="gguf")[0]
    assert not any(isinstance(module, GGUFLinear) for module in model.modules())


@pytest.mark.parametrize(("flags", "kept"), [((), "gguf"), (("--activations", "int8", "--kernels", "cpu"), "gguf"),
                                             (("--kernels", "torch"), None), (("--load-8bit",), "int8")])
def test_generate_keeps_the_blocks_where_the_compiled_kernels_multiply(tmp_path, monkeypatch, flags, kept):
    found = []

    def load(path, device, dtype, quantize, **settings):
        found.append(quantize)
        raise ValueError("enough")

    monkeypatch.setattr("minillama.cli.model_arguments.load_model", load)
    monkeypatch.setattr("minillama.cli.model_arguments.find_tokenizer", lambda *_: "a tokenizer")
    assert main(["generate", "--model", str(written(tmp_path)), *flags]) and found == [kept]


def test_bytes_that_are_no_such_matrix_are_refused():
    make = torch.classes.minillama.Matrix
    with pytest.raises(RuntimeError, match="the weight has 40 columns, wanted blocks of 32"):
        make("q8_0", [torch.zeros(2, 34, dtype=torch.uint8)], 2, 40, 0.0)
    with pytest.raises(RuntimeError, match=r"blocks has shape \[2, 34\], wanted \[2, 18\]"):
        make("q4_0", [torch.zeros(2, 34, dtype=torch.uint8)], 2, 32, 0.0)
    with pytest.raises(RuntimeError, match="form q4_k is not known"):
        make("q4_k", [torch.zeros(2, 144, dtype=torch.uint8)], 2, 256, 0.0)


MUTANTS = [] if "cpu" not in kernels.built_backends() else [
    Mutant("minillama.quant.gguf_linear", 'bits = 8.0 if self.activations == "int8" else 0.0', "bits = 8.0",
           lambda: test_exact_products_are_within_the_bound_of_a_sum("Q8_0", None)),
    Mutant("minillama.quant.gguf_linear", "dy @ self.dequantize(dy.dtype)", "-dy @ self.dequantize(dy.dtype)",
           test_the_layer_multiplies_any_number_of_rows_and_has_a_gradient),
    Mutant("minillama.quant.gguf_linear", "x @ self.dequantize(x.dtype).T", "-x @ self.dequantize(x.dtype).T",
           test_the_layer_multiplies_any_number_of_rows_and_has_a_gradient),
]
