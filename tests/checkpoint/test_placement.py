"""Laws of placement: whole layers in order, within the room there is, and the ids of one device wherever they lie."""

import math
from dataclasses import replace

import generate_over_devices
import pytest
import torch
from checkpoints import model_of
from generate_over_devices import find_room, main
from mutants import Mutant

from minillama.checkpoint import save_model
from minillama.checkpoint.placement import load_placed, place_layers
from minillama.checkpoint.weights import build_model, from_model
from minillama.cli import command_line as cli
from minillama.config import ModelConfig
from minillama.generate import generate_tokens
from minillama.tokenizer import train_bpe

CONFIG = ModelConfig(dim=12, n_layers=3, n_heads=3, n_kv_heads=1, vocab_size=31, hidden_dim=20, max_seq_len=40)
PROMPTS = [[1, 5, 9, 2], [3], [7, 7]]
MODEL = model_of(CONFIG)
LAYER = 4 * sum(p.numel() for p in MODEL.layers[0].parameters())
TABLE = 4 * 31 * 12
ALL = TABLE * 2 + 3 * LAYER + 4 * 12


def ids_of(model, max_new_tokens=12):
    return list(generate_tokens(model, PROMPTS, max_new_tokens))


@pytest.mark.parametrize(("room", "placed"), [
    ([("a", 10)], ["a", "a", "a", "disk"]),  # 4 + 3 + 3, and 2 find no room
    ([("a", 7), ("b", 5)], ["a", "a", "b", "b"]), ([("a", 6), ("b", 100)], ["a", "b", "b", "b"]),  # in order: 2 stays
    ([("a", 3), ("b", 3)], ["disk"] * 4), ([("a", 4), ("b", 2), ("c", 5)], ["a", "c", "disk", "disk"]),
    ([("a", 12)], ["a"] * 4), ([], ["disk"] * 4)])
def test_each_layer_is_on_the_first_device_with_room_and_never_before_the_one_before(room, placed):
    sizes = dict(zip("wxyz", (4, 3, 3, 2), strict=True))
    before = list(room)
    assert list(place_layers(sizes, room).values()) == placed and room == before


ROOMS = {"one": [("cpu:0", ALL)], "two": [("cpu:0", TABLE + LAYER), ("cpu:1", math.inf)],
         "two and disk": [("cpu:0", TABLE + LAYER), ("cpu:1", LAYER)], "disk": [("cpu:0", TABLE)]}
WHERE = {"one": ["cpu:0"] * 6, "two": ["cpu:0"] * 2 + ["cpu:1"] * 4,
         "two and disk": ["cpu:0"] * 2 + ["cpu:1"] + ["disk"] * 3, "disk": ["cpu:0"] + ["disk"] * 5}


@pytest.mark.parametrize("name", ROOMS)
def test_the_ids_are_those_of_one_device_and_no_device_holds_more_than_it_has(name):
    placed_model, placed = load_placed(from_model(MODEL), ROOMS[name], torch.float32)
    assert list(placed.values()) == WHERE[name]
    for device, room in ROOMS[name]:
        held = [part for part, where in placed.items() if where == device]
        assert 4 * sum(p.numel() for part in held for p in MODEL.get_submodule(part).parameters()) <= room
    assert ids_of(placed_model) == ids_of(build_model(from_model(MODEL)))
    for part, where in placed.items():  # what is on disk is in memory during its own call alone
        weights = placed_model.get_submodule(part).parameters()
        assert all(weight.is_meta == (where == "disk") for weight in weights)


def test_a_tied_head_is_where_the_embedding_is():
    tied = model_of(replace(CONFIG, tie_embeddings=True))
    for room in ([("cpu:0", TABLE)], [("cpu:0", TABLE + LAYER), ("cpu:1", 2 * LAYER)]):
        model, placed = load_placed(from_model(tied), room, torch.float32)
        assert model.output.weight is model.tok_embeddings.weight and not model.output.weight.is_meta
        assert "output" not in placed and ids_of(model) == ids_of(tied)


def test_what_a_layer_reads_is_brought_to_its_device(monkeypatch):
    """CPUs have one memory, so it is the calls that are watched: every tensor that enters a part goes to its device."""
    model, _ = load_placed(from_model(MODEL), ROOMS["two and disk"], torch.float32)
    moved, to = [], torch.Tensor.to

    def watched(tensor, *to_what, **more):
        moved.append(str(to_what[0]) if to_what else "")
        return to(tensor, *to_what, **more)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    next(generate_tokens(model, [[1, 2]], 1))
    # a layer is given the stream and the rotations, and its cache gives keys and values
    assert moved.count("cpu:1") == 4 and moved.count("cpu:0") >= 4 + 1 + 1  # the layer, the ids, the scores


def test_dtype_is_obeyed_and_counts():
    model, placed = load_placed(from_model(MODEL), [("cpu:0", (TABLE + LAYER) // 2)], torch.bfloat16)
    assert list(placed.values())[:3] == ["cpu:0", "cpu:0", "disk"]
    assert model.tok_embeddings.weight.dtype == model.layers[0].attention.wq.weight.dtype == torch.bfloat16
    assert ids_of(model) == ids_of(build_model(from_model(MODEL), dtype=torch.bfloat16))


def test_no_room_for_the_embedding_is_said_in_a_line():
    with pytest.raises(ValueError, match="the embedding, which every pass looks up, in memory"):
        load_placed(from_model(MODEL), [("cpu:0", TABLE - 1)], torch.float32)
    quantized = replace(from_model(MODEL), quantization={"kind": "int8"})
    with pytest.raises(ValueError, match="only plain weights are placed.*--device-map"):
        load_placed(quantized, ROOMS["one"], torch.float32)


def test_the_room_ends_with_the_cpu_and_spares_a_part(monkeypatch):
    monkeypatch.setattr(generate_over_devices, "available_bytes", lambda device: 1000)
    found = find_room()
    assert found[-1] == ("cpu", 800) and all(name.startswith("cuda:") for name, _ in found[:-1])


def test_the_command_says_where_layers_are_and_writes_what_generate_writes(tmp_path, capsys):
    tokenizer = train_bpe(["a llama sleeps, two llamas sleep. "] * 9, 280)
    model = model_of(replace(CONFIG, vocab_size=tokenizer.vocab_size))
    tokenizer.save(tmp_path / "t.model")
    save_model(tmp_path / "model", model, tmp_path / "t.model")
    words = ["--model", str(tmp_path / "model"), "--prompt", "two", "--max-new-tokens", "9", "--seed", "3"]
    assert cli.main(["generate", *words, "--kernels", "torch"]) == 0
    plain = capsys.readouterr().out
    gigabyte = 4 * model.tok_embeddings.weight.numel() / 1e9
    table = f"={gigabyte:.9f}"
    for room, said in (((), "tok_embeddings to output on cpu"), (("cpu" + table,), "layers.0 to output on disk"),
                       (("cpu:0" + table, "cpu=1"), "tok_embeddings on cpu:0, layers.0 to output on cpu")):
        main(["--device-map", "auto", *words, *(word for each in room for word in ("--room", each))])
        out, err = capsys.readouterr()
        assert out == plain and said in err


@pytest.mark.parametrize(("words", "said"), [
    (("--model", "nowhere"), "nowhere"), (("--model", "x", "--room", "8"), "DEVICE=GB"),
    (("--model", "x", "--room", "cpu=-1"), "0 or more"), (("--model", "x", "--room", "cpu=nan"), "0 or more"),
    (("--model", "x", "--room", "cuda:77=1"), "cuda:77"), (("--model", "x", "--load-8bit"), "--load-8bit"),
    (("--model", "x", "--adapter", "y"), "--adapter")])
def test_what_cannot_be_placed_is_refused_in_a_line(words, said, capsys):
    with pytest.raises(SystemExit) as error:
        main(["--device-map", "auto", *words])
    assert error.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def twice(name):
    return lambda: test_the_ids_are_those_of_one_device_and_no_device_holds_more_than_it_has(name)


MUTANTS = [
    Mutant("minillama.checkpoint.placement", "room[0] = room[0][0], room[0][1] - size", "pass", twice("two")),
    Mutant("minillama.checkpoint.placement", "part.register_forward_hook(forget)", "pass", twice("disk")),
    Mutant("minillama.checkpoint.placement", "part.register_forward_pre_hook(fill)", "fill()", twice("disk")),
    Mutant("minillama.checkpoint.placement", "dtype.itemsize * sum", "4 * sum", test_dtype_is_obeyed_and_counts),
    Mutant("minillama.checkpoint.placement", "model.tie_weights()", "pass",
           test_a_tied_head_is_where_the_embedding_is),
]
