"""Meta's own form: what we save comes back whole, in its dtype, with its shape."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from checkpoints import assert_same_weights, in_a_folder, model_of
from mutants import Mutant

from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.huggingface import write_huggingface
from minillama.checkpoint.meta import _for_saving, _room_for, _scaling, params_of, read_meta, write_meta
from minillama.checkpoint.safetensors import write_safetensors
from minillama.checkpoint.weights import Stored, as_stored, from_model
from minillama.config import PRESETS, ModelConfig, RopeScaling, hidden_dim_rule, preset
from minillama.transformer import Transformer

ODD = ModelConfig(dim=24, n_layers=2, n_heads=6, n_kv_heads=3, vocab_size=37, head_dim=6, hidden_dim=23,
                  max_seq_len=50, norm_eps=1e-6, rope_theta=5e5, rope_scaling=RopeScaling(4.0, 1.0, 3.0, 32))
SHARDED = ModelConfig(dim=64, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=48, hidden_dim=96, max_seq_len=32)


def test_a_saved_model_comes_back_bit_for_bit(tmp_path):
    for config in (ODD, preset("tiny", vocab_size=40), replace(ODD, tie_embeddings=True, head_dim=4)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            model = Transformer(config).to(dtype)
            save_model(tmp_path, model)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                copy, tokenizer = load_model(tmp_path)
            assert tokenizer is None and copy.config == config
            assert copy.norm.weight.dtype == dtype
            assert_same_weights(model, copy)
            assert (copy.output.weight is copy.tok_embeddings.weight) == config.tie_embeddings


def test_any_feed_forward_width_survives_the_params_file():
    for dim in (1, 2, 5, 64, 96, 100, 4096):
        for hidden in (*range(1, 300), 4095, 4096, 4097, 11008, 28671, 28672):
            config = ModelConfig(dim, 1, 1, 8, head_dim=2, hidden_dim=hidden)
            params = params_of(config)
            assert hidden_dim_rule(dim, params["multiple_of"], params.get("ffn_dim_multiplier")) == hidden


def test_a_width_rounded_up_to_a_power_of_two_is_written_as_rounded_to_the_largest_that_gives_it():
    powers, chosen = [2**n for n in range(2, 9)], set()
    for dim in range(1, 96):  # narrower than the next multiple that a released model has, 1024
        for hidden in {hidden_dim_rule(dim, power) for power in powers}:
            params = params_of(ModelConfig(dim, 1, 1, 8, head_dim=2, hidden_dim=hidden))
            assert params["multiple_of"] == max(power for power in powers if hidden_dim_rule(dim, power) == hidden)
            assert "ffn_dim_multiplier" not in params
            chosen.add(params["multiple_of"])
    assert chosen == set(powers)


def test_a_width_that_only_a_published_multiplier_gives_is_written_with_it():
    for multiplier in (1.3, 1.5, 1.2):
        params = params_of(ModelConfig(29, 1, 1, 8, head_dim=2, hidden_dim=hidden_dim_rule(29, 4, multiplier)))
        assert (params["multiple_of"], params["ffn_dim_multiplier"]) == (4, multiplier)


def test_published_shapes_are_written_as_published():
    published = {"llama_7b": (256, None), "llama2_70b": (4096, 1.3), "llama3_8b": (1024, 1.3),
                 "stories260k": (4, None)}
    for name, words in published.items():
        params = params_of(PRESETS[name])
        assert (params["multiple_of"], params.get("ffn_dim_multiplier")) == words


def test_a_bad_folder_gets_one_clear_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="neither params.json"):
        load_model(tmp_path)
    save_model(tmp_path, Transformer(ODD))
    good = json.loads((tmp_path / "params.json").read_text())
    for change, message in (({"n_layers": 3}, "layers.2.attention_norm.weight is missing"),
                            ({"n_layers": 10**9}, "n_layers is 1000000000 but there are 21 tensors"),
                            ({"vocab_size": 38}, r"tok_embeddings.weight has shape \[37, 24\]"),
                            ({"dim": "24"}, "dim is '24': expected a positive whole number"),
                            ({"norm_eps": -1}, "norm_eps is -1: expected a positive number")):
        (tmp_path / "params.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(good))
    (tmp_path / "consolidated.00.pth").write_bytes((tmp_path / "consolidated.00.pth").read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut short"):
        load_model(tmp_path)


def split(model, n, axis, copies=1):
    """The model's tensors in `n` shards as Meta cuts them; axis: the embedding's. copies: shards per k/v head."""
    shards = [{} for _ in range(n)]
    for name, weight in model.state_dict().items():
        module = name.split(".")[-2]
        cut = {"tok_embeddings": axis, "wo": 1, "w2": 1}.get(module, None if "norm" in module else 0)
        if module in ("wk", "wv") and copies > 1:
            parts = [part for part in weight.chunk(n // copies) for _ in range(copies)]
        else:
            parts = [weight] * n if cut is None else weight.chunk(n, cut)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.clone()
    return shards


def write_shards(folder, shards, params):
    for place, shard in enumerate(shards):
        torch.save({**shard, "rope.freqs": torch.ones(3)}, folder / f"consolidated.{place:02}.pth")
    (folder / "params.json").write_text(json.dumps(params))


def test_shards_are_joined_in_the_manner_of_llama_2_and_of_llama_3(tmp_path):
    model = model_of(SHARDED)
    for axis in (0, 1):
        for n in (1, 2, 4, 8, 16):
            folder = tmp_path / f"{axis}-{n}"
            folder.mkdir()
            write_shards(folder, split(model, n, axis, copies=max(n // SHARDED.n_kv_heads, 1)),
                         {**params_of(SHARDED), "vocab_size": -1})
            copy, _ = load_model(folder)
            assert copy.config == SHARDED
            assert_same_weights(model, copy)


def test_17_shards_are_too_many_and_tensors_that_every_model_has_are_there(tmp_path):
    for place in range(17):
        torch.save({"norm.weight": torch.ones(64)}, tmp_path / f"consolidated.{place:02}.pth")
    (tmp_path / "params.json").write_text(json.dumps(params_of(SHARDED)))
    with pytest.raises(ValueError, match="17 files consolidated.NN.pth: expected 1 to 16"):
        read_meta(tmp_path)
    (tmp_path / "consolidated.16.pth").unlink()
    with pytest.raises(ValueError, match="consolidated.00.pth: tok_embeddings.weight is missing"):
        read_meta(tmp_path)
    write_shards(tmp_path, [{"tok_embeddings.weight": torch.ones(3, 64)}] * 16, params_of(SHARDED))
    with pytest.raises(ValueError, match="consolidated.00.pth: norm.weight is missing"):
        read_meta(tmp_path)


def test_shards_that_do_not_belong_together_are_refused(tmp_path):
    shards, params = split(model_of(SHARDED), 2, 0), params_of(SHARDED)
    for change, message in (({"norm.weight": None}, "norm.weight is not in every shard"),
                            ({"layers.0.attention.wq.weight": torch.ones(3, 64)}, "wq.weight differs between shards"),
                            ({"layers.0.attention.wo.weight": torch.ones(64, 32).half()}, "wo.weight differs")):
        other = {name: tensor for name, tensor in {**shards[1], **change}.items() if tensor is not None}
        write_shards(tmp_path, [shards[0], other], params)
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path)


def test_what_meta_leaves_out_is_read_off_the_tensors_or_taken_as_published(tmp_path):
    model, params = model_of(ODD), params_of(replace(ODD, head_dim=None))
    for key in ("max_seq_len", "tie_embeddings", "rope_scaling"):
        params.pop(key)
    model = model_of(replace(ODD, head_dim=4))
    model.output.weight.data.copy_(model.tok_embeddings.weight)
    torch.save(model.state_dict(), tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps({**params, "vocab_size": -1, "max_batch_size": 32}))
    copy, _ = load_model(tmp_path)
    assert copy.config.vocab_size == 37 and copy.config.max_seq_len == 131072
    assert copy.config.rope_scaling == RopeScaling(8.0)
    assert copy.config.tie_embeddings  # Llama 3.2's small models store one table twice
    for words, length in (({"norm_eps": 1e-6}, 2048), ({"norm_eps": 1e-5}, 4096), ({"rope_theta": 5e5}, 8192),
                          ({"rope_theta": 1e6}, 16384)):
        words = {"norm_eps": 1e-5, "rope_theta": 1e4, **words}
        (tmp_path / "params.json").write_text(json.dumps({**params, "use_scaled_rope": False, **words}))
        assert load_model(tmp_path)[0].config.max_seq_len == length


def test_a_setting_of_params_json_is_known_or_refused_by_its_name(tmp_path):
    save_model(tmp_path, model_of(ODD))
    path = tmp_path / "params.json"
    params = json.loads(path.read_text())
    path.write_text(json.dumps({**params, "sliding_window": None, "moe": None, "quantization_args": None}))
    assert load_model(tmp_path)[0].config == ODD
    for name, value in (("surprise", 1), ("sliding_window", 4096), ("moe", {"num_experts": 8}), ("use_qk_norm", True),
                        ("lora_args", {"rank": 16}), ("head_dim", 0),
                        ("ffn_dim_multiplier", 0), ("hidden_dim", "8"), ("rope_scaling", {"factor": 8.0, "beta": 1})):
        path.write_text(json.dumps({**params, name: value}))
        with pytest.raises(ValueError, match=rf"params.json: {name}(: beta)? is "):
            load_model(tmp_path)
    path.write_text(json.dumps({**params, "use_scaled_rope": False}))
    with pytest.raises(ValueError, match="rope_scaling is there, but use_scaled_rope is not true"):
        load_model(tmp_path)
    path.write_text(json.dumps({**params, "tie_embeddings": True}))
    with pytest.warns(UserWarning, match="params.json ties the output head .* that head is used"):
        assert load_model(tmp_path)[0].config == ODD


def test_mistrals_folder_with_one_safetensors_is_read_and_its_other_form_is_preferred(tmp_path):
    config = replace(ODD, rope_scaling=None, max_seq_len=4096, norm_eps=1e-5)
    model = model_of(config)
    params = {name: getattr(config, name) for name in ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads",
                                                       "n_kv_heads", "norm_eps", "vocab_size")}
    (tmp_path / "params.json").write_text(json.dumps(params | {"rope_theta": 1e4}))
    write_safetensors(tmp_path / "consolidated.safetensors", model.state_dict())
    copy = load_model(tmp_path)[0]
    assert copy.config == replace(config, rope_theta=1e4)
    assert_same_weights(model, copy)
    write_huggingface(tmp_path, from_model(model_of(replace(config, max_seq_len=77), seed=1)))
    assert load_model(tmp_path)[0].config.max_seq_len == 77  # config.json says it, params.json cannot
    save_model(tmp_path, model)
    assert_same_weights(model, load_model(tmp_path)[0])


def test_llama_3_2_gets_its_published_scaling_and_a_note():
    params = {**params_of(PRESETS["llama3_2_1b"])}
    for key in ("rope_scaling", "max_seq_len"):
        params.pop(key)
    assert _scaling(params, "params.json").factor == 32.0
    assert _scaling({**params, "n_layers": 32, "dim": 4096}, "params.json").factor == 8.0
    for layers, dim, factor in ((28, 3072, 32.0), (16, 3072, 8.0), (28, 2048, 8.0)):
        assert _scaling({**params, "n_layers": layers, "dim": dim}, "params.json").factor == factor


def test_a_factor_that_params_json_does_not_say_is_noted(tmp_path, monkeypatch):
    """A small shape stands in for those of Llama 3.2."""
    monkeypatch.setattr("minillama.checkpoint.meta.LLAMA_3_2", {(24, 2)})
    model = model_of(ODD)
    params = {name: value for name, value in params_of(ODD).items() if name != "rope_scaling"}
    torch.save(model.state_dict(), tmp_path / "consolidated.00.pth")
    for change, notes in (({}, 1), ({"rope_scaling": {"factor": 32.0, "low_freq_factor": 1, "high_freq_factor": 4,
                                                      "original_max_seq_len": 8192}}, 0),
                          ({"use_scaled_rope": False}, 0)):
        (tmp_path / "params.json").write_text(json.dumps({**params, **change}))
        found = read_meta(tmp_path).notes
        assert len(found) == notes and all("RoPE scaling factor 32" in note for note in found), change


def test_tensors_that_are_made_while_they_are_saved_have_aligned_places_of_their_own(tmp_path):
    shapes = {"a": (3,), "b": (5, 7), "c": (32,), "d": (1,), "e": (16,)}
    dtypes = {"a": torch.float32, "b": torch.bfloat16, "c": torch.bfloat16, "d": torch.float32, "e": torch.float32}
    made = {name: Stored(shape, dtypes[name], None, made=name != "e") for name, shape in shapes.items()}
    rooms = _room_for(made, tmp_path)
    assert list(rooms) == ["a", "b", "c", "d"] and all(rooms[name].shape == shapes[name] for name in rooms)
    assert all(rooms[name].dtype == dtypes[name] for name in rooms)
    begins = [room.data_ptr() for room in rooms.values()]
    assert [begin - begins[0] for begin in begins] == [0, 64, 192, 256] and begins[0] % 64 == 0
    assert _room_for({"e": made["e"]}, tmp_path) == {} and list(tmp_path.iterdir()) == []


def test_a_part_of_a_larger_tensor_is_saved_without_the_rest():
    whole = torch.arange(1000.0).view(10, 100)
    part = _for_saving(as_stored(whole[3:5]), None)
    assert torch.equal(part, whole[3:5]) and part.untyped_storage().nbytes() == 800
    across = _for_saving(as_stored(whole[:, 7]), None)
    assert torch.equal(across, whole[:, 7]) and across.untyped_storage().nbytes() == 40


def test_the_tokenizer_is_copied_and_a_tied_head_is_the_embedding_under_a_second_name(tmp_path):
    (tmp_path / "t").write_bytes(b"pieces")
    write_meta(tmp_path / "a" / "b", from_model(model_of(replace(ODD, tie_embeddings=True))), tmp_path / "t")
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["consolidated.00.pth", "params.json",
                                                                             "tokenizer.model"]
    assert (tmp_path / "a" / "b" / "tokenizer.model").read_bytes() == b"pieces"
    state = torch.load(tmp_path / "a" / "b" / "consolidated.00.pth")
    assert state["output.weight"].data_ptr() == state["tok_embeddings.weight"].data_ptr()
    before = (tmp_path / "a" / "b" / "consolidated.00.pth").read_bytes()
    broken = from_model(model_of(ODD))
    broken.tensors["norm.weight"] = Stored((24,), torch.float32, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_meta(tmp_path / "a" / "b", broken)
    assert not (tmp_path / "a" / "b" / "params.json").exists(), "half a model is none"
    assert (tmp_path / "a" / "b" / "consolidated.00.pth").read_bytes() == before


META = "minillama.checkpoint.meta"
MUTANTS = [
    Mutant(META, "return 0 if parts[0].dim() == 2 and parts[0].shape[1] == dim else 1", "return 1",
           lambda: in_a_folder(test_shards_are_joined_in_the_manner_of_llama_2_and_of_llama_3)),
    Mutant(META, '"w3", "output"), ("wo", "w2")', '"w3", "output", "wo"), ("w2",)',
           lambda: in_a_folder(test_shards_are_joined_in_the_manner_of_llama_2_and_of_llama_3)),
    Mutant(META, "for shard in shards[::copies]", "for shard in shards[:len(shards) // copies]",
           lambda: in_a_folder(test_shards_are_joined_in_the_manner_of_llama_2_and_of_llama_3)),
    Mutant(META, "64, 32, 16, 8, 4)", "64, 32, 17, 8, 4)",
           test_a_width_rounded_up_to_a_power_of_two_is_written_as_rounded_to_the_largest_that_gives_it),
    Mutant(META, "hidden + 0.5", "hidden - 0.5", test_any_feed_forward_width_survives_the_params_file),
]
