"""Adapters on a base in few bits go both ways between minillama and peft over bitsandbytes."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from mutants import Mutant
from test_lora import ALL, normal, train_by_chance

from minillama.checkpoint.names import rows_to_hf, state_dict_to_hf, to_hf
from minillama.config import ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora, lora_layers
from minillama.peft.lora_file import load_lora, save_lora
from minillama.quant.quantize_linears import quantize_linears
from minillama.transformer import Transformer

# Rows are whole blocks of 64, so that reordering the rows of q and k reorders blocks; double quantization would put
# other blocks into a group of 256, so it is off.
CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=61, hidden_dim=128)
SETTINGS = {"nf4": {"double_quantization": False}, "int8": {}}


def close(ours, theirs, kind):
    """nf4: fp32 sums in another order. int8: bitsandbytes goes through fp16 on a processor, so the inputs of layers get
    other codes; that is of the size of what rounding inputs to int8 changes at all, 2 % of an average logit."""
    difference, size = (ours - theirs).detach().abs(), theirs.detach().abs()
    return bool(difference.max() <= 4e-6 * size.max() if kind == "nf4" else difference.mean() <= 0.04 * size.mean())


def tokens():
    return torch.randint(61, (2, 37), generator=torch.Generator().manual_seed(3))


def plain_model():
    torch.manual_seed(0)
    return Transformer(CONFIG).eval()


def bitsandbytes_twin(model, kind):
    """transformers' LlamaForCausalLM of the same weights with bitsandbytes' layers for all linear ones but the head."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes holds peft's quantized bases")
    pytest.importorskip("peft", reason="peft is the oracle of adapters and their files")
    transformers = pytest.importorskip("transformers", reason="transformers holds the model that peft adapts")
    c = model.config
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=c.dim, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads, vocab_size=c.vocab_size,
        num_key_value_heads=c.n_kv_heads, intermediate_size=c.hidden_dim, rms_norm_eps=c.norm_eps,
        attn_implementation="eager")).eval()
    theirs.load_state_dict(state_dict_to_hf(model.state_dict(), c.n_heads, c.n_kv_heads))
    for name, linear in list(theirs.model.named_modules(prefix="model")):
        if isinstance(linear, torch.nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(theirs.get_submodule(parent), child, bitsandbytes_layer(bnb.nn, linear, kind))
    setattr(theirs, f"is_loaded_in_{'4' if kind == 'nf4' else '8'}bit", True)  # so peft takes its layers for such bases
    return theirs


def bitsandbytes_layer(nn, linear, kind):
    shape, weight = (linear.in_features, linear.out_features), linear.weight.data.clone()
    if kind == "nf4":
        layer = nn.Linear4bit(*shape, bias=False, compute_dtype=torch.float32, compress_statistics=False,
                              quant_type="nf4")
        layer.support_avx512bf16_for_cpu = False  # where it has such a processor it would compute in bf16
        layer.weight = nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
    else:
        layer = nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu")


def quantized(model, kind):
    ours = copy.deepcopy(model)
    quantize_linears(ours, kind=kind, **SETTINGS[kind])
    return ours


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_peft_loads_the_adapter_of_our_quantized_model_to_the_same_logits(kind):
    plain = plain_model()
    theirs, ours = bitsandbytes_twin(plain, kind), quantized(plain, kind)
    import peft

    base = ours(tokens())
    assert close(base, theirs(tokens()).logits, kind)
    add_lora(ours, LoRAConfig(rank=4, alpha=8, targets=ALL))
    train_by_chance(ours)
    with tempfile.TemporaryDirectory() as folder:
        save_lora(folder, ours)
        adapted = peft.PeftModel.from_pretrained(theirs, folder).eval()
        assert type(adapted.base_model.model.model.layers[0].self_attn.q_proj).__module__.endswith("bnb")
        logits = adapted(tokens()).logits
    assert close(ours(tokens()), logits, kind) and not torch.allclose(logits, base, atol=0.1)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_we_load_pefts_adapter_of_a_bitsandbytes_base_to_the_same_logits_and_gradients(kind):
    plain = plain_model()
    theirs, ours = bitsandbytes_twin(plain, kind), quantized(plain, kind)
    import peft

    adapted = peft.get_peft_model(theirs, peft.LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(normal(*parameter.shape, seed=len(name)) * 0.3)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        load_lora(Path(folder), ours)
    mine, logits = ours(tokens()), adapted(tokens()).logits
    assert close(mine, logits, kind)
    if kind == "int8":
        return  # bitsandbytes' gradient on a processor goes through fp16 besides
    weights = normal(*logits.shape, seed=4) / logits.numel() ** 0.5
    (mine * weights).sum().backward()
    (logits * weights).sum().backward()
    parameters = dict(adapted.named_parameters())
    for path, module in lora_layers(ours).items():
        B = rows_to_hf(path, module.B.grad, CONFIG.n_heads, CONFIG.n_kv_heads)
        name = "base_model.model." + to_hf(path)
        assert close(module.A.grad, parameters[f"{name}.lora_A.default.weight"].grad, kind)
        assert close(B, parameters[f"{name}.lora_B.default.weight"].grad, kind)


FILE = "minillama.peft.lora_file"
MUTANTS = [
    Mutant(FILE, "B = rows_to_hf(path, layer.B.detach(), model.config.n_heads, model.config.n_kv_heads)",
           "B = layer.B.detach()",
           lambda: test_peft_loads_the_adapter_of_our_quantized_model_to_the_same_logits("int8")),
    Mutant("minillama.peft.lora", "packed_weight().product_backward(dy)", "packed_weight().product_backward(0 * dy)",
           lambda: test_we_load_pefts_adapter_of_a_bitsandbytes_base_to_the_same_logits_and_gradients("nf4")),
]
