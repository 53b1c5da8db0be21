"""LoRA: a frozen weight learns through a product of two thin matrices (arXiv 2106.09685).

    h = W0 x + (alpha / R) B A x        (eq. 3; A is R x in, B is out x R; the LoRA rank R is small)

B starts at zero, so training starts from the base model exactly. The base may be fp32 to fp16, or quantized: NF4 with
LoRA is QLoRA (arXiv 2305.14314).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from minillama.config_checks import check_config, number
from minillama.quant.quantized_linear import QuantizedLinear, matching_modules, replace_module, wrap_linears


def low_rank_sum(x, base, A, B, scaling):
    """h = W0 x + s B A x, with s = alpha / R: what `LoRALinear` computes, in the formula's own words.

    x: (..., in); base: the frozen layer W0; A: (R, in); B: (out, R), both fp32. Returns (..., out) in base's dtype.
    """
    low = x.to(A.dtype) @ A.T  # (..., in) -> (..., R)
    change = scaling * low @ B.T  # (..., R) -> (..., out)
    h = base(x)
    return h + change.to(h.dtype)


@dataclass(frozen=True)
class LoRAConfig:
    """The shape of an adapter. The defaults are the paper's choice for attention: q and v of every layer."""

    rank: int = number(8, 1, 2**16)  # R
    alpha: float = number(16.0, 1e-6, 1e6)  # the product is scaled by alpha / R: R can change without a new rate
    dropout: float = number(0.0, 0, below=1)  # probability with which an input of A is dropped in training
    targets: tuple = ("attention.wq", "attention.wv")  # names of linear layers, whole or their ends, * for any text
    rank_stabilized: bool = False  # rsLoRA (arXiv 2312.03732): alpha / sqrt(R), so that a large R learns as fast

    def __post_init__(self):
        object.__setattr__(self, "targets", _as_tuple(self.targets))
        check_config(self)

    @property
    def scaling(self):
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoRALinear(nn.Module):
    """A linear layer `base` (nn.Linear or QuantizedLinear, kept frozen) with an adapter beside it.

    A and B are fp32 whatever the base's dtype: their updates are too small for 8 or 11 bits of mantissa.
    The product is computed in fp32 and rounded once to the dtype of the base's output.
    A: Kaiming-uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)), as in the authors' code; B: 0.
    """

    def __init__(self, base, config):
        super().__init__()
        self.base, self.config = base.requires_grad_(False), config
        self.in_features, self.out_features = base.in_features, base.out_features
        like = device_and_dtype_of(base)
        self.A = nn.Parameter(torch.empty(config.rank, self.in_features, **like))
        self.B = nn.Parameter(torch.zeros(self.out_features, config.rank, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.merged = False  # whether base.weight holds the adapter's product
        self.unmerged_base = ()  # the base as it was, kept out of the module tree and so out of the state dict
        self.train(base.training)  # a new module starts in training mode: dropout in a model set to eval()

    def forward(self, x):
        if self.merged:
            return self.base(x)
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.base.parameters()):
            raise ValueError("the base of an adapter requires a gradient, and LoRA gives none: freeze it with "
                             "base.requires_grad_(False), or train it without the adapter (remove_lora)")
        dropped = None
        if self.config.dropout and self.training:
            dropped = nn.functional.dropout(x.to(self.A.dtype), self.config.dropout)
        return LowRankSum.apply(x, dropped, self.A, self.B, self.config.scaling, self.base)

    def product(self):
        """s B A, the change of weight that the adapter stands for, (out, in) fp32."""
        return self.config.scaling * (self.B @ self.A).detach()

    def adapted_weight(self):
        """W0 + s B A, (out, in) fp32."""
        product = self.product()
        return exact_weight(self.base).to(product.dtype) + product

    def merge(self, keep_base=True):
        """Fold the adapter into the base; return the share of the change that rounding took."""
        wanted, base = self.adapted_weight(), self.base
        merged = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        merged.weight, merged.bias = nn.Parameter(wanted.to(base.weight.dtype), requires_grad=False), base.bias
        self.unmerged_base, self.base, self.merged = (base,) if keep_base else (), merged, True
        change = wanted - exact_weight(base)
        return float((merged.weight - wanted).norm() / change.norm().clamp(min=1e-30))

    def unmerge(self):
        """Put the base back as it was, bit for bit."""
        if not self.unmerged_base:
            raise ValueError("the base was not kept: merge with keep_base=True to be able to unmerge")
        self.base, self.unmerged_base = self.unmerged_base[0].to(device_and_dtype_of(self.base)["device"]), ()
        self.merged = False


class LowRankSum(torch.autograd.Function):
    """`low_rank_sum`, where A may read what dropout left of x: gradients to x, to that, to A and to B.

    The product is added in place to the base's, as its gradient is to dy W: spelled out in single operations, autograd
    would make four more tensors of the size of y on the way there and back, which costs more than their arithmetic.
    """

    @staticmethod
    def forward(ctx, x, dropped, A, B, scaling, base):
        y = base(x)
        read = x if dropped is None else dropped
        low_NR = (read.reshape(-1, A.shape[1]).to(A.dtype) @ A.T).mul_(scaling)
        _add_product(y.view(-1, B.shape[0]), low_NR, B.T)
        ctx.base, ctx.scaling, ctx.with_dropout = base, scaling, dropped is not None
        ctx.save_for_backward(read, low_NR, A, B)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        read, low_NR, A, B = ctx.saved_tensors
        wide_NO = dy.reshape(-1, B.shape[0]).to(A.dtype)
        d_low_NR = (wide_NO @ B).mul_(ctx.scaling)
        dA, dB = d_low_NR.T @ read.reshape(-1, A.shape[1]).to(A.dtype), wide_NO.T @ low_NR
        dx = _product_backward(ctx.base, dy) if ctx.needs_input_grad[0] else None
        if ctx.with_dropout:
            return dx, (d_low_NR @ A).view_as(read), dA, dB, None, None
        if dx is not None:
            _add_product(dx.view(-1, A.shape[1]), d_low_NR, A)
        return dx, None, dA, dB, None, None


def _add_product(rows, a, b):
    """rows += a b in place; where rows are shorter than fp32 the product is rounded to them once."""
    rows.addmm_(a, b) if rows.dtype == a.dtype else rows.add_((a @ b).to(rows.dtype))


def _product_backward(base, dy):
    """dy W, a new tensor: the gradient of a frozen base's input."""
    if isinstance(base, QuantizedLinear):
        return base.packed_weight().product_backward(dy)
    return getattr(base, "multiply", nn.functional.linear)(dy, base.weight.T)


def add_lora(model, config, kind=None):
    """Attach an adapter of that kind (LoRALinear, or dora's DoRALinear where it is given) to every linear layer that
    `config.targets` names, in place.

    Everything else in the model is frozen. Returns the names of the layers. ValueError if a target
    matches no layer, or if the model has an adapter already.
    """
    if lora_layers(model):
        raise ValueError("the model has an adapter already: remove_lora takes it away, merge_lora and remove_lora keep "
                         "it in the weights")
    if getattr(getattr(model, "config", None), "tie_embeddings", False) and "output" in matching_modules(
            model, config.targets, (nn.Linear, QuantizedLinear)):
        raise ValueError("the output head is tied to the embedding table, which an adapter on the head alone would "
                         "untie: leave 'output' out of the targets")
    return wrap_linears(model, config.targets, lambda name, base: (kind or LoRALinear)(base, config))


def merge_lora(model, keep_base=True):
    """Fold the adapter into the weights: the same function, at the speed of the base.

    Returns {layer name: share lost}, |stored - (W0 + P)| / |P| for the product P = (alpha/R) B A: about 1e-6 on fp32.
    keep_base: hold the old weights in memory for `unmerge_lora`. ValueError for a quantized base: rounded to its steps
    again, most of P would vanish.
    """
    layers = lora_layers(model)
    if not layers or any(layer.merged for layer in layers.values()):
        raise ValueError("there is no adapter to merge, or it is merged already: add one with add_lora, or call "
                         "unmerge_lora")
    if any(isinstance(layer.base, QuantizedLinear) for layer in layers.values()):
        raise ValueError("the base is quantized, and would lose most of the adapter: dequantize_linears(model) first")
    return {name: layer.merge(keep_base) for name, layer in layers.items()}


def unmerge_lora(model):
    """Undo `merge_lora`: the base weights come back bit for bit."""
    for layer in lora_layers(model).values():
        if layer.merged:
            layer.unmerge()


def remove_lora(model):
    """Put plain layers back in place of LoRA's: the base weights, or the merged ones if merged."""
    for name, layer in lora_layers(model).items():
        replace_module(model, name, layer.base)


def lora_layers(model):
    """{name: LoRALinear} of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def device_and_dtype_of(base):
    """Device and dtype of what is trained beside a frozen layer: fp32, or float64 beside float64."""
    device = next(tensor.device for tensor in [*base.parameters(), *base.buffers()])
    dtype = torch.float32 if isinstance(base, QuantizedLinear) else base.weight.dtype
    return {"device": device, "dtype": torch.promote_types(dtype, torch.float32)}


def exact_weight(base):
    """The weight that a frozen linear layer multiplies with, (out, in); of a quantized one in fp32."""
    return base.dequantize() if isinstance(base, QuantizedLinear) else base.weight.detach()


def _as_tuple(targets):
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    if not targets or not all(isinstance(target, str) and target for target in targets):
        raise ValueError(f"targets {targets!r} are not allowed: give names such as ('attention.wq', 'attention.wv')")
    return targets
