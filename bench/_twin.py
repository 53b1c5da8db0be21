"""The same LLaMA in transformers: the peer of the forward pass, with our weights in it."""

import torch

from minillama.checkpoint.huggingface import config_to_hf
from minillama.checkpoint.names import state_dict_to_hf


def transformers_twin(model, share=True):
    """LlamaForCausalLM with the weights of `model`, fp32, its own default attention. share: in the same memory (all but
    wq and wk, whose rows it keeps in another order), as two models to read; otherwise copies, to be trained apart."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**config_to_hf(model.config, torch.float32)))
    weights = state_dict_to_hf(model.state_dict(), model.config.n_heads, model.config.n_kv_heads)
    theirs.load_state_dict({name: w if share else w.clone() for name, w in weights.items()}, assign=True)
    theirs.model.rotary_emb.__init__(theirs.config)  # its table is no weight: made anew, off the meta device
    return theirs
