"""Greedy decoding, batch 1, fp32: tokens per second beside transformers' `generate` and beside the memory's speed.

Each new token reads every weight once (all but the embedding table), so decoding is at most as fast as reading them.
The limit is a sum over the same tensors, in the same rounds.
"""

import _rounds  # first: it speaks to OpenMP before torch loads
import torch
from _twin import transformers_twin

from minillama.attention import torch_attention
from minillama.config import preset
from minillama.generate import generate_tokens
from minillama.transformer import Transformer


def lively_model(config):
    """Random weights of unit gain: the text wanders, and the best score stands clear of the second."""
    torch.manual_seed(0)
    model = Transformer(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.normal_(std=weight.shape[-1] ** -0.5)
    return model


def with_other_attention(model, attend):
    """The same weights, in the same memory, in a model that attends by another function."""
    with torch.device("meta"):
        other = Transformer(model.config, attend).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


def our_ids(model, prompt, n):
    return [ids[0] for ids in generate_tokens(model, [prompt], n)]


def their_ids(model, prompt, n):
    tokens = torch.tensor([prompt])
    out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n, do_sample=False)
    return out[0, len(prompt):].tolist()


def read_weights(model, times):
    """Touch every number that a token needs, `times` times, and do nothing else with it."""
    table = model.tok_embeddings.weight
    weights = [w for w in model.parameters() if w is not table or model.config.tie_embeddings]
    with torch.inference_mode():
        for _ in range(times):
            for weight in weights:
                weight.sum()


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    config, n = preset("tiny" if chosen.small else "stories110m"), 24
    prompt = torch.randint(config.vocab_size, (8,), generator=torch.Generator().manual_seed(1)).tolist()
    written_out = lively_model(config)
    models = {"attention": written_out, "torch_attention": with_other_attention(written_out, torch_attention)}
    contenders = {name: lambda model=model: our_ids(model, prompt, n) for name, model in models.items()}
    if _rounds.has_peer("transformers"):
        twin = transformers_twin(written_out).eval()
        twin.generation_config.eos_token_id = None
        contenders["peer"] = lambda: their_ids(twin, prompt, n)
    texts = {name: work() for name, work in contenders.items()}
    if len(set(map(tuple, texts.values()))) > 1:
        raise SystemExit(f"the greedy texts differ, {texts}: nothing was timed")
    times = _rounds.alternate({**contenders, "limit": lambda: read_weights(written_out, n)}, chosen.rounds)
    speed = {name: [n / t for t in values] for name, values in times.items()}
    size = f"{config.n_parameters() / 1e6:.1f} M weights, {n} tokens after {len(prompt)}"
    _rounds.show([_rounds.Row(f"greedy decoding, fp32, attend={name}, against transformers generate", size, "tok/s",
                              speed[name], speed.get("peer"), speed["limit"]) for name in models])


if __name__ == "__main__":
    main()
