"""Each mistake planted in a checkpoint is named with its tensor, row and column; files that are only rounded alarm
nobody."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import in_a_folder, model_of
from mutants import Mutant

from minillama.checkpoint import open_weights, save_model
from minillama.checkpoint.convert import convert
from minillama.checkpoint.names import rows_to_hf, rows_to_meta
from minillama.checkpoint.quantized import quantize_weights
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.checkpoint.weights import Weights, as_stored, from_model
from minillama.config import ModelConfig, RopeScaling
from minillama.parity.checkpoint_diff import compare_checkpoints
from minillama.parity.parity_peers import parity

GROUPED = ModelConfig(dim=44, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=10, vocab_size=53, hidden_dim=39,
                      max_seq_len=48)
TIED = ModelConfig(dim=33, n_layers=2, n_heads=3, n_kv_heads=1, head_dim=14, vocab_size=61, hidden_dim=47,
                   max_seq_len=48, tie_embeddings=True)
SQUARE = ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=50, hidden_dim=32, max_seq_len=48)
CONFIGS = {"grouped": GROUPED, "tied": TIED, "square": SQUARE}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WQ, WK, WV, WO = (f"layers.1.attention.{name}.weight" for name in ("wq", "wk", "wv", "wo"))
W1, W2, W3 = (f"layers.1.feed_forward.{name}.weight" for name in ("w1", "w2", "w3"))
NORM, TABLE, HEAD = "layers.1.ffn_norm.weight", "tok_embeddings.weight", "output.weight"


def numbers(config, seed=0):
    return {name: tensor.read().clone() for name, tensor in from_model(model_of(config, seed)).tensors.items()}


def held(config, tensors):
    return Weights(config, {name: as_stored(tensor) for name, tensor in tensors.items()}, Path("x"))


def lines_of(config, tensors, right, changed=None):
    """{name: what is said of it} without those that are only rounded."""
    result = compare_checkpoints(held(changed or config, tensors), held(config, right))
    assert not result.harmless
    return {name: words for words, names in result.found.items() for name in names if "alone" not in words}


def with_tensor(name, change):
    return lambda tensors, config: {**tensors, name: change(tensors[name].clone(), config)}


def with_item(name, place, number):
    def change(tensor, config):
        tensor[place] = number(tensor[place])
        return tensor

    return with_tensor(name, change)


def swapped(*pairs):
    def change(tensors, config):
        moved = {a: tensors[b] for a, b in pairs} | {b: tensors[a] for a, b in pairs}
        return tensors | moved

    return change


def layers_swapped(tensors, config):
    return tensors | {name: tensors[name.replace(f"rs.{a}.", f"rs.{1 - a}.")] for a in (0, 1) for name in tensors
                      if f"layers.{a}." in name}


def heads_swapped(rows, config):
    heads = rows.view(-1, config.head_dim, rows.shape[1])
    return heads[[1, 0, *range(2, len(heads))]].reshape(rows.shape)


def other_lines(rows):
    return torch.randn(rows.shape, generator=torch.Generator().manual_seed(7)) / 5


PLANTS = {  # what was done: (how, {tensor: how what is said of it begins, or all of it with an end "."})
    "one weight off": (with_item(W2, (5, 7), lambda x: x + 0.5), {W2: "row 5, column 7: "}),
    "one weight off a little": (with_item(TABLE, (9, 3), lambda x: x * 1.02), {TABLE: "row 9, column 3: "}),
    "one weight turned about": (with_item(WO, (20, 31), lambda x: -x), {WO: "row 20, column 31: "}),
    "one weight of a norm": (with_item(NORM, 7, lambda x: x * 1.5), {NORM: "element 7: "}),
    "one weight not a number": (with_item(WV, (3, 4), lambda x: x * float("nan")), {WV: "row 3, column 4: nan here, "}),
    "two weights": (with_item(WK, ([2, 9], [30, 1]), lambda x: x - 1), {WK: "row 2, column 30: "}),
    "a row": (with_item(W1, 11, other_lines), {W1: "other numbers in row 11; most at row 11, column "}),
    "a column": (with_item(W3, (slice(None), 13), other_lines), {W3: "other numbers in column 13; most at row "}),
    "a row scaled": (with_item(WV, 3, lambda x: x * 2), {WV: "row 3 x2."}),
    "a column scaled": (with_item(W2, (slice(None), 6), lambda x: x * -0.5), {W2: "column 6 x-0.5."}),
    "a head scaled": (with_item(WQ, slice(0, 6), lambda x: x * 3), {WQ: "rows 0 to 5 x3."}),
    "a row lost": (with_item(TABLE, 17, lambda x: x * 0), {TABLE: "row 17 all zeros."}),
    "doubled": (with_tensor(W3, lambda x, c: x * 2), {W3: "x2."}),
    "halved": (with_tensor(WO, lambda x, c: x / 2), {WO: "x0.5."}),
    "negated": (with_tensor(W1, lambda x, c: -x), {W1: "x-1."}),
    "scaled by the head's width": (with_tensor(WQ, lambda x, c: x / c.head_dim ** 0.5), {WQ: "x0"}),
    "a norm scaled": (with_tensor(NORM, lambda x, c: x * c.dim ** 0.5), {NORM: "x"}),
    "a norm without its 1": (with_tensor(NORM, lambda x, c: x - 1), {NORM: "-1 added to each number."}),
    "a norm never loaded": (with_tensor("norm.weight", lambda x, c: x * 0 + 1), {"norm.weight": "every number is 1."}),
    "a tensor never loaded": (with_tensor(WV, lambda x, c: x * 0), {WV: "all zeros."}),
    "q not brought to Meta's order": (with_tensor(WQ, lambda x, c: rows_to_hf("attention.wq", x, c.n_heads, 0)),
                                      {WQ: "rows brought to Hugging Face's RoPE order once too often."}),
    "k brought there twice": (with_tensor(WK, lambda x, c: rows_to_meta("attention.wk", x, 0, c.n_kv_heads)),
                              {WK: "rows brought to Meta's RoPE order once too often."}),
    "heads swapped": (with_tensor(WQ, heads_swapped), {WQ: "head 0 holds head 1, head 1 holds head 0."}),
    "rows reversed": (with_tensor(WV, lambda x, c: x.flip(0)), {WV: "rows in reverse order."}),
    "columns shifted": (with_tensor(WO, lambda x, c: x.roll(1, 1)), {WO: "column 0 holds column "}),
    "tokens shifted": (with_tensor(TABLE, lambda x, c: torch.cat([x[:1] * 0, x[:-1]])), {TABLE: "rows 1 to "}),
    "transposed": (with_tensor(W2, lambda x, c: x.T.reshape(x.shape)), {W2: "transposed"}),
    "transposed with a row lost": (with_tensor(W2, lambda x, c: x.T.reshape(x.shape).index_fill(0, torch.tensor(3), 0)),
                                   {W2: "transposed"}),
    "w1 and w3 swapped": (swapped((W1, W3)), {W1: f"is swapped with {W3}"}),
    "norms swapped": (swapped((NORM, "layers.1.attention_norm.weight")), {"layers.1.attention_norm.weight":
                                                                         f"is swapped with {NORM}"}),
    "norms of two layers swapped": (swapped(("layers.0.ffn_norm.weight", NORM)), {"layers.0.ffn_norm.weight":
                                                                                 f"is swapped with {NORM}"}),
    "layers swapped": (layers_swapped, {"layers.0": "is swapped with layers.1."}),
    "two tensors": (lambda tensors, c: with_item(W2, (1, 2), lambda x: x + 1)(with_tensor(WQ, lambda x, c: x * 4)(
        tensors, c), c), {WQ: "x4.", W2: "row 1, column 2: "}),
}


@pytest.mark.parametrize("what", PLANTS)
def test_a_planted_mistake_is_named_also_under_rounding(what):
    """Each in two of three shapes (grouped, tied, square) and dtypes."""
    plant, expected = PLANTS[what]
    turn = list(PLANTS).index(what)
    for number in (turn, turn + 1):
        config, dtype = list(CONFIGS.values())[number % 3], list(DTYPES.values())[(number + turn) % 3]
        right = numbers(config, number)
        bad = {name: tensor.to(dtype).float() for name, tensor in plant(right, config).items()}
        said = lines_of(config, bad, right)
        assert said.keys() == expected.keys(), said
        for name, words in expected.items():
            whole = said[name].split("; rounded")[0]
            assert whole == words[:-1] if words[-1] == "." else whole.startswith(words), said


def test_rows_that_one_side_has_more_are_named():
    right = numbers(SQUARE)
    table = right[TABLE]
    for more, words in ((torch.cat([table, table[:3] * 0]), "rows 50 to 52 only here, all zeros"),
                        (torch.cat([table[4:6], table]), "rows 0 to 1 only here")):
        config = replace(SQUARE, vocab_size=len(more))
        said = lines_of(SQUARE, right | {TABLE: more, HEAD: more}, right, config)
        assert said[TABLE] == words and said["vocab_size"].startswith(f"{len(more)} here, 50 there")
    bad = torch.cat([table, table[:3] * 0])
    bad[7, 8] += 1
    result = compare_checkpoints(held(replace(SQUARE, vocab_size=53), right | {TABLE: bad}), held(SQUARE, right))
    assert any(words.startswith("row 7, column 8: ") for words in result.found)


def test_settings_and_missing_tensors_are_named_though_all_tensors_agree():
    right = numbers(GROUPED)
    for setting in ({"rope_theta": 5e5}, {"norm_eps": 1e-6}, {"rope_scaling": RopeScaling()}, {"n_heads": 2}):
        said = lines_of(GROUPED, right, right, replace(GROUPED, **setting))
        assert said.keys() == setting.keys() and " here, " in said[next(iter(setting))]
    fewer = {name: tensor for name, tensor in right.items() if "layers.2" not in name}
    said = lines_of(GROUPED, fewer, right, replace(GROUPED, n_layers=2))
    assert sum(words == "only there" for words in said.values()) == 9
    result = compare_checkpoints(held(replace(GROUPED, max_seq_len=9), right), held(GROUPED, right))
    assert result.harmless and list(result.found.values()) == [["max_seq_len"]]


def test_a_head_is_compared_with_the_table_that_the_other_side_ties_it_to():
    right, tied = numbers(SQUARE), replace(SQUARE, tie_embeddings=True)
    without = {name: tensor for name, tensor in right.items() if name != HEAD}
    assert lines_of(SQUARE, without, right, tied)[HEAD] == f"holds {TABLE}"
    copy = without | {HEAD: right[TABLE].clone()}
    assert compare_checkpoints(held(SQUARE, copy), held(tied, without)).harmless
    copy[HEAD][4, 5] = 9
    assert lines_of(tied, copy, without, SQUARE)[HEAD].startswith("row 4, column 5: 9 here, ")
    assert lines_of(SQUARE, right | {TABLE: right[HEAD], HEAD: right[TABLE]}, right)[HEAD] == f"is swapped with {TABLE}"


def test_a_head_against_the_settings_is_told(tmp_path):
    save_model(tmp_path / "right", model_of(TIED))
    convert(tmp_path / "right", tmp_path / "hf", "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(file).items()}
    write_safetensors(file, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 0.01})
    result = compare_checkpoints(open_weights(tmp_path / "hf"), open_weights(tmp_path / "right"))
    assert not result.harmless and "+0.01 added to each number" in result.found
    assert any("holds a head with other numbers" in words for words in result.found)


def roundings(right):
    """{words: the same weights rounded}; bf16 also of fp16, whose rounding may tip a tie, and by cutting bits off."""
    return {"fp16": {name: x.half() for name, x in right.items()}, "bf16": {n: x.bfloat16() for n, x in right.items()},
            "bf16 of fp16": {name: x.half().bfloat16() for name, x in right.items()},
            "bf16 (bits cut off)": {name: (x.view(torch.int32) & -65536).view(torch.float32)
                                    for name, x in right.items()}}


def alarms_nobody(config, right):
    for dtype, bad in roundings(right).items():
        for a, b in ((bad, right), (right, bad)):
            result = compare_checkpoints(held(config, a), held(config, b))
            assert result.harmless, str(result)
            assert set(result.found) == {f"differs by rounding to {dtype.removesuffix(' of fp16')} alone"}
    small = {name: x.half() for name, x in right.items()}
    result = compare_checkpoints(held(config, small), held(config, {n: x.bfloat16() for n, x in right.items()}))
    assert result.harmless and list(result.found) == ["differs by rounding to bf16 alone"]
    faint = {name: (x * 1e-4).bfloat16() for name, x in right.items()}  # fp16's steps end at 2^-24
    assert compare_checkpoints(held(config, {n: x.half() for n, x in faint.items()}), held(config, faint)).harmless


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rounding_is_told_and_alarms_nobody(config):
    alarms_nobody(config, numbers(config, 3))


def test_rounding_of_real_weights_alarms_nobody(weights):
    real = open_weights(weights / "stories260K.bin")
    alarms_nobody(real.config, {name: tensor.read().clone() for name, tensor in real.tensors.items()})
    for kind, words in (("int8", "int8 in blocks of 64"), ("nf4", "4 bits in blocks of 64")):
        result = compare_checkpoints(quantize_weights(real, kind), real)
        assert result.harmless and f"differs by rounding to {words} alone" in result.found, str(result)


@pytest.mark.parametrize(("kind", "settings", "words"), [("int8", {}, "int8 in blocks of 44"),
                                                        ("nf4", {}, "4 bits in blocks of 64"),
                                                        ("nf4", {"fit_scales": True}, "4 bits in blocks of 64")])
def test_quantization_is_told_and_mistakes_in_it_are_named(kind, settings, words):
    config = replace(GROUPED, hidden_dim=44, head_dim=11 + 11, n_heads=2)
    right = numbers(config, 5)
    quantized = quantize_weights(held(config, right), kind, **settings)
    result = compare_checkpoints(quantized, held(config, right))
    assert result.harmless and all(said.startswith(f"differs by rounding to {words} alone") for said in result.found)
    bad = {name: tensor.read().float().clone() for name, tensor in quantized.tensors.items()}
    bad[W2][5, 7] += 2
    bad[WO] *= 2
    bad[WQ] = bad[WQ].flip(0)
    said = lines_of(config, bad, right)
    assert said[W2].startswith("row 5, column 7: ") and said[WO].startswith("x2; rounded to ") and set(said) == {
        WQ, WO, W2} and said[WQ].startswith("rows in reverse order")


def test_a_factor_within_bf16s_step_is_seen_by_the_weights_that_it_tips():
    generator = torch.Generator().manual_seed(1)
    right = {**numbers(SQUARE), TABLE: torch.randn((50, 32), generator=generator)}
    config = replace(SQUARE, vocab_size=600)
    right |= {TABLE: torch.randn((600, 32), generator=generator), HEAD: torch.randn((600, 32), generator=generator)}
    bad = {name: (x * 1.0004 if name == TABLE else x).bfloat16().float() for name, x in right.items()}
    assert lines_of(config, bad, right)[TABLE].startswith("x1.000")
    exact = lines_of(config, right | {W1: right[W1] * 1.0001}, right)
    assert exact == {W1: "x1.0001"}


def test_parity_of_checkpoints_tells_the_tensor_first_and_passes_what_is_rounded(tmp_path):
    model = model_of(GROUPED)
    save_model(tmp_path / "right", model)
    save_model(tmp_path / "rounded", model_of(GROUPED).bfloat16())
    assert parity(tmp_path / "right", tmp_path / "right").passed
    result = parity(tmp_path / "rounded", str(tmp_path / "right"))
    first, *rest = str(result).splitlines()
    assert result.passed and first.endswith("differs by rounding to bf16 alone") and "FAILS" not in str(result)
    assert any("rounding" in line for line in rest) and not str(result).count("usual cause")
    model.tok_embeddings.weight.data[52, 43] += 1e-3  # a token that the ladder's text does not hold
    save_model(tmp_path / "wrong", model)
    result = parity(tmp_path / "wrong", tmp_path / "right")
    assert not result.passed and str(result).startswith(f"{TABLE}: row 52, column 43: ")


def test_a_smaller_vocabulary_on_the_other_side_is_no_crash(tmp_path):
    config = replace(GROUPED, n_layers=1)
    save_model(tmp_path / "right", model_of(config))
    save_model(tmp_path / "padded", model_of(replace(config, vocab_size=64)))
    assert not parity(tmp_path / "padded", tmp_path / "right").passed


DIFF = "minillama.parity.checkpoint_diff"
MUTANTS = [
    Mutant(DIFF, 'HARMLESS = ("max_seq_len", ', 'HARMLESS = ("norm_eps", ',
           test_settings_and_missing_tensors_are_named_though_all_tensors_agree),
    Mutant(DIFF, "parts >= MATRICES", "parts",
           lambda: test_a_planted_mistake_is_named_also_under_rounding("norms of two layers swapped")),
    Mutant(DIFF, "& -65536", "& -1",
           lambda: test_rounding_is_told_and_alarms_nobody(GROUPED)),
    Mutant(DIFF, "first = left[1] < left[0]", "first = False", test_rows_that_one_side_has_more_are_named),
    Mutant(DIFF, "return tied | weights.tensors", "return weights.tensors",
           test_a_head_is_compared_with_the_table_that_the_other_side_ties_it_to),
    Mutant("minillama.parity.compare_models", "return not named and all(", "return all(",
           lambda: in_a_folder(test_parity_of_checkpoints_tells_the_tensor_first_and_passes_what_is_rounded)),
    Mutant("minillama.parity.compare_models", "rung.passed or self.rounding", "rung.passed",
           lambda: in_a_folder(test_parity_of_checkpoints_tells_the_tensor_first_and_passes_what_is_rounded)),
    Mutant("minillama.parity.parity_peers", "min(getattr(c, size)", "max(getattr(c, size)",
           lambda: in_a_folder(test_a_smaller_vocabulary_on_the_other_side_is_no_crash)),
]
