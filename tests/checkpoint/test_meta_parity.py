"""Meta's own forward pass as the oracle (llama-models, on one process), and checkpoints of true width."""

import importlib
import json
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch
from checkpoints import FP32_NOISE, assert_same_logits, assert_same_weights, model_of
from test_meta import split, write_shards

from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.meta import params_of
from minillama.config import ModelConfig, RopeScaling, preset
from minillama.kv_cache import KVCache

CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=96, hidden_dim=128, max_seq_len=8192,
                     rope_theta=5e5, rope_scaling=RopeScaling(8.0))


@pytest.fixture
def meta_code(monkeypatch):
    """llama_models' Transformer and ModelArgs; fairscale's parallel layers stand in as plain ones, for one process."""
    def plain(n_in, n_out, bias=False, **_):
        return torch.nn.Linear(n_in, n_out, bias=bias)

    def table(rows, width, **_):
        return torch.nn.Embedding(rows, width)

    initialize = types.SimpleNamespace(get_model_parallel_world_size=lambda: 1, get_model_parallel_rank=lambda: 0)
    layers = types.SimpleNamespace(ColumnParallelLinear=plain, RowParallelLinear=plain, VocabParallelEmbedding=table)
    base = "fairscale.nn.model_parallel"
    for name in ("fairscale", "fairscale.nn", base, f"{base}.initialize", f"{base}.layers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[f"{base}.initialize"].__dict__.update(vars(initialize))
    sys.modules[f"{base}.layers"].__dict__.update(vars(layers))
    sys.modules[base].initialize = sys.modules[f"{base}.initialize"]
    try:
        model = importlib.import_module("llama_models.llama3.model")
        return model.Transformer, model.ModelArgs
    except ImportError as error:
        pytest.skip(f"the oracle: pip install -r tests/oracles.txt ({error})")


def theirs_from(folder, meta_code):
    """Meta's model, with the weights and settings of a folder that we wrote."""
    transformer, args = meta_code
    params = json.loads((folder / "params.json").read_text())
    theirs = transformer(args(**{**params, "max_batch_size": 1}))
    theirs.load_state_dict(torch.load(folder / "consolidated.00.pth", weights_only=True), strict=True)
    return theirs


def test_meta_loads_what_we_write_and_agrees(tmp_path, meta_code):
    tokens = torch.arange(96)[None]
    for config in (CONFIG, replace(CONFIG, n_kv_heads=4, rope_scaling=None, rope_theta=1e4, tie_embeddings=True)):
        model = model_of(config)
        save_model(tmp_path, model)
        with torch.no_grad():
            assert_same_logits(model(tokens), theirs_from(tmp_path, meta_code)(tokens, 0), noise=1e-5)


def test_positions_up_to_the_end_of_the_context_agree_with_meta(tmp_path, meta_code):
    """The last tokens of a long text: both caches hold the same random past."""
    model = model_of(CONFIG)
    save_model(tmp_path, model)
    theirs, tokens = theirs_from(tmp_path, meta_code), torch.arange(8)[None]
    for end in (2048, 4096, 8192):
        start, cache = end - 8, KVCache(CONFIG, 1, end)
        torch.manual_seed(end)
        for layer in range(2):
            for ours, name in ((cache.keys, "cache_k"), (cache.values, "cache_v")):
                past_STKd = torch.randn(1, start, 2, 16)
                ours[layer, :, :, :start] = past_STKd.transpose(1, 2)
                getattr(theirs.layers[layer].attention, name)[:, :start] = past_STKd
        cache.length = start
        with torch.no_grad():
            assert_same_logits(model(tokens, cache), theirs(tokens, start), noise=FP32_NOISE)


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama_7b", "llama2_70b", "llama3_8b"])
def test_shards_of_true_width_are_joined(name, tmp_path):
    config = preset(name, n_layers=1, vocab_size=64, max_seq_len=64)
    model = model_of(config, dtype=torch.bfloat16)
    for axis in (0, 1):
        write_shards(tmp_path, split(model, 8, axis), params_of(config))
        copy, _ = load_model(tmp_path)
        assert copy.config == config
        assert_same_weights(model, copy)


MEASURE = """
import sys, threading, time
import torch
from minillama.checkpoint import load_model
def private():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024
load_model(sys.argv[2])
start, peak, running = private(), 0, True
def watch():
    global peak
    while running:
        peak = max(peak, private())
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
model, _ = load_model(sys.argv[1])
running = False; thread.join()
print(peak - start, sum(w.nbytes for w in model.parameters()), max(w.nbytes for w in model.parameters()))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads private memory from /proc")
def test_loading_a_gigabyte_of_shards_takes_the_model_and_one_tensor(tmp_path):
    config = preset("llama_7b", n_layers=2, vocab_size=8000)
    (tmp_path / "large").mkdir()
    write_shards(tmp_path / "large", split(model_of(config, dtype=torch.bfloat16), 4, 1), params_of(config))
    save_model(tmp_path / "small", model_of(CONFIG))  # what the first load costs in imports is not counted
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "large", tmp_path / "small"],
                          capture_output=True, text=True, check=True)
    grown, model, largest = map(int, done.stdout.split())
    assert model > 0.9e9
    assert grown <= model + largest + 2**25  # 32 MB for the interpreter's own ups and downs
