"""A model at rest: complete or refused, and built without copies."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from checkpoints import assert_same_weights, model_of
from mutants import Mutant

from minillama.checkpoint import find_tokenizer
from minillama.checkpoint.weights import (
    Stored,
    as_stored,
    build_model,
    check_tensors,
    expected_shapes,
    from_model,
    read_part,
)
from minillama.config import PRESETS, ModelConfig
from minillama.tokenizer import load_tokenizer, train_bpe

CONFIG = ModelConfig(dim=12, n_layers=2, n_heads=3, n_kv_heads=1, vocab_size=7, hidden_dim=20, max_seq_len=5)


def test_expected_shapes_are_those_of_the_model():
    for config in (CONFIG, replace(CONFIG, tie_embeddings=True, head_dim=6)):
        model = model_of(config)
        assert {name: tuple(w.shape) for name, w in model.named_parameters()} == expected_shapes(config)
    for config in PRESETS.values():
        assert sum(torch.Size(shape).numel() for shape in expected_shapes(config).values()) == config.n_parameters()


def test_a_model_is_built_on_the_stored_memory_itself():
    model = model_of(CONFIG)
    copy = build_model(from_model(model))
    assert_same_weights(model, copy)
    assert copy.norm.weight.data_ptr() == model.norm.weight.data_ptr()
    assert build_model(from_model(model), dtype=torch.bfloat16).norm.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="cannot hold weights"):
        build_model(from_model(model), dtype=torch.int8)


def test_a_folder_s_tokenizer_is_its_first_and_a_file_s_is_the_first_beside_it_that_fits(tmp_path):
    sizes = {"tokenizer.model": 300, "tok310.bin": 310}
    for name, size in sizes.items():
        train_bpe(["low lower lowest 2023 abc defg hijk lmno"], size, hard_vocab_limit=False).save(tmp_path / name)

    def found(source, size):
        config = replace(CONFIG, vocab_size=size)
        return find_tokenizer(SimpleNamespace(tokenizer=None, source=source, config=config))

    (tmp_path / "x.gguf").touch()
    made = {name: load_tokenizer(tmp_path / name).vocab_size for name in sizes}
    assert made == {"tokenizer.model": 300, "tok310.bin": 310} or made["tok310.bin"] > 300
    assert found(tmp_path, made["tok310.bin"]).vocab_size == 300, "a folder's: whether it fits is asked elsewhere"
    assert found(tmp_path / "x.gguf", made["tok310.bin"]).vocab_size == made["tok310.bin"]
    assert found(tmp_path / "x.gguf", 300).vocab_size == 300 and found(tmp_path / "x.gguf", 77) is None
    inside = SimpleNamespace(n_rows=0, special_tokens={})
    assert find_tokenizer(SimpleNamespace(tokenizer=inside, config=CONFIG)) is inside
    assert inside.n_rows == CONFIG.vocab_size
    (tmp_path / "7B").mkdir()  # Meta's download puts the tokenizer one folder up
    assert found(tmp_path / "7B", 300).vocab_size == 300 and found(tmp_path / "7B", 77) is None


def test_a_mixture_of_dtypes_is_widened_so_that_nothing_is_lost():
    weights = from_model(model_of(CONFIG, dtype=torch.bfloat16))
    weights.tensors["norm.weight"] = as_stored(torch.full((12,), 1 / 3, dtype=torch.float16))
    model = build_model(weights)
    assert {w.dtype for w in model.parameters()} == {torch.float32}
    assert torch.equal(model.norm.weight.half(), torch.full((12,), 1 / 3, dtype=torch.float16))


def test_every_tensor_is_there_once_in_its_shape():
    good = from_model(model_of(CONFIG)).tensors
    for change, message in (({"layers.1.ffn_norm.weight": None}, "layers.1.ffn_norm.weight is missing .1 tensors"),
                            ({"lora.A": as_stored(torch.ones(2))}, "lora.A is not part of a LLaMA"),
                            ({"norm.weight": as_stored(torch.ones(13))}, r"norm.weight has shape \[13\]"),
                            ({"norm.weight": as_stored(torch.ones(12).int())}, "norm.weight is torch.int32")):
        weights = from_model(model_of(CONFIG))
        weights.tensors = {name: tensor for name, tensor in {**good, **change}.items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            check_tensors(weights)


def test_nothing_is_read_before_everything_is_checked():
    def read():
        raise AssertionError("read too early")

    weights = from_model(model_of(CONFIG))
    weights.tensors = {name: Stored(t.shape, t.dtype, read) for name, t in weights.tensors.items()}
    check_tensors(weights)
    weights.tensors["norm.weight"] = Stored((11,), torch.float32, read)
    with pytest.raises(ValueError, match="norm.weight has shape"):
        build_model(weights)


WEIGHTS = "minillama.checkpoint.weights"
WHOLE = torch.arange(7.0 * 6).view(7, 6)
KEPT = {"one tensor": as_stored(WHOLE), "rows moved": as_stored(WHOLE, lambda rows: rows.flip(0)),
        "joined by rows": Stored((7, 6), WHOLE.dtype, lambda: WHOLE, parts=(0, WHOLE.split([3, 3, 1]), None)),
        "joined by columns": Stored((7, 6), WHOLE.dtype, lambda: WHOLE, parts=(1, WHOLE.split([2, 2, 2], 1), None)),
        "decoded": Stored((7, 6), WHOLE.dtype, lambda: WHOLE.clone())}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize(("axis", "begin", "end"), [
    (0, 0, 7), (0, 0, 1), (0, 2, 5), (0, 6, 7), (0, 3, 3), (1, 0, 6), (1, 0, 2), (1, 1, 5), (1, 5, 6)])
def test_a_part_of_a_stored_tensor_is_that_part_of_what_is_read(name, axis, begin, end):
    kept = KEPT[name]
    assert torch.equal(read_part(kept, axis, begin, end), kept.read().narrow(axis, begin, end - begin))


def test_a_part_that_lies_in_one_of_the_files_is_a_view_of_it_and_one_that_was_decoded_keeps_no_more():
    held = KEPT["joined by rows"].parts[1][1]
    assert read_part(KEPT["joined by rows"], 0, 3, 6).data_ptr() == held.data_ptr()
    assert read_part(KEPT["decoded"], 0, 3, 5).untyped_storage().nbytes() == 4 * 2 * 6


def parts_are_parts():
    for name in KEPT:
        test_a_part_of_a_stored_tensor_is_that_part_of_what_is_read(name, 0, 2, 5)
        test_a_part_of_a_stored_tensor_is_that_part_of_what_is_read(name, 1, 1, 5)


MUTANTS = [
    Mutant(WEIGHTS, "if tensors[name].shape != shape:", "if False:", test_every_tensor_is_there_once_in_its_shape),
    Mutant(WEIGHTS, "functools.reduce(torch.promote_types, {tensor.dtype for tensor in weights.tensors.values()})",
           "next(iter(weights.tensors.values())).dtype",
           test_a_mixture_of_dtypes_is_widened_so_that_nothing_is_lost),
    Mutant(WEIGHTS, '"attention.wk": (kv, D)', '"attention.wk": (q, D)', test_expected_shapes_are_those_of_the_model),
    Mutant(WEIGHTS, "first += size if axis == joined else 0", "first += size",
           parts_are_parts),
    Mutant(WEIGHTS, "[begin:end, 0]", "[:end, 0]", parts_are_parts),
]
