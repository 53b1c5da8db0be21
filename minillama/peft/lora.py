"""LoRA: a frozen weight learns through a product of two thin matrices (arXiv 2106.09685).

    h = W0 x + (alpha / R) B A x        (eq. 3; A is R x in, B is out x R, R much smaller than either)

B starts at zero, so training starts from the base model exactly. Several adapters may hang on one base; one is active
at a time. The base may be fp32 to fp16, or quantized: NF4 with LoRA is QLoRA (arXiv 2305.14314).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from minillama.bounds import check_config, number
from minillama.quant.quantized_linear import QuantizedLinear, matching_modules, replace_module


@dataclass(frozen=True)
class LoRAConfig:
    """The shape of an adapter. The defaults are the paper's choice for attention: q and v of every layer."""

    rank: int = number(8, 1, 2**16)  # R
    alpha: float = number(16.0, 1e-6, 1e6)  # the product is scaled by alpha / R: R can change without a new rate
    dropout: float = number(0.0, 0, below=1)  # probability with which an input of A is dropped in training
    targets: tuple = ("attention.wq", "attention.wv")  # names of linear layers, whole or their ends, * for any text

    def __post_init__(self):
        object.__setattr__(self, "targets", _as_tuple(self.targets))
        check_config(self)

    @property
    def scaling(self):
        return self.alpha / self.rank


class LoRALinear(nn.Module):
    """A linear layer `base` (nn.Linear or QuantizedLinear, kept frozen) with named adapters beside it.

    A and B are fp32 whatever the base's dtype: their updates are too small for 8 or 11 bits of mantissa.
    The product is computed in fp32 and rounded once to the dtype of the base's output.
    """

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.A, self.B, self.configs = nn.ParameterDict(), nn.ParameterDict(), {}
        self.active = None  # name of the adapter in use, or None
        self.merged = False  # whether base.weight holds the active adapter's product
        self.unmerged_base = ()  # the base as it was, kept out of the module tree and so out of the state dict
        self.train(base.training)  # a new module starts in training mode: dropout in a model set to eval()

    def add(self, name, config):
        """A: Kaiming-uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)), as in the authors' code; B: 0."""
        like = {"device": _device(self.base), "dtype": _exact_dtype(self.base)}
        self.A[name] = nn.Parameter(torch.empty(config.rank, self.in_features, **like))
        self.B[name] = nn.Parameter(torch.zeros(self.out_features, config.rank, **like))
        nn.init.kaiming_uniform_(self.A[name], a=math.sqrt(5))
        self.configs[name] = config

    def forward(self, x):
        if self.active is None or self.merged:
            return self.base(x)
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.base.parameters()):
            raise ValueError("the base of an active adapter requires a gradient, and LoRA gives none: freeze it with "
                             "base.requires_grad_(False), or train it with set_adapter(model, None)")
        config = self.configs[self.active]
        A, B = self.A[self.active], self.B[self.active]
        dropped = None
        if config.dropout and self.training:
            dropped = nn.functional.dropout(x.to(A.dtype), config.dropout)
        return LowRankSum.apply(x, dropped, A, B, config.scaling, self.base)

    def product(self, name):
        """(alpha / R) B A, the change of weight that the adapter stands for, (out, in) fp32."""
        return self.configs[name].scaling * (self.B[name] @ self.A[name]).detach()

    def merge(self, keep_base=True):
        """Fold the active adapter into the base; return the share of the product that rounding took."""
        product = self.product(self.active)
        wanted = _weight(self.base) + product
        merged = _with_weight(self.base, wanted)
        self.unmerged_base, self.base, self.merged = (self.base,) if keep_base else (), merged, True
        return float((_weight(merged) - wanted).norm() / product.norm().clamp(min=1e-30))

    def unmerge(self):
        """Put the base back as it was, bit for bit."""
        if not self.unmerged_base:
            raise ValueError("the base was not kept: merge with keep_base=True to be able to unmerge")
        self.base, self.unmerged_base = self.unmerged_base[0].to(_device(self.base)), ()
        self.merged = False

    def extra_repr(self):
        return f"adapters={list(self.configs)}, active={self.active!r}, merged={self.merged}"


class LowRankSum(torch.autograd.Function):
    """x W^T + s (x' A^T) B^T for a frozen W, where x' is x, or what dropout left of it; gradients to x, x', A and B.

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
    return base.stored().product_backward(dy) if isinstance(base, QuantizedLinear) else dy @ base.weight


def add_lora(model, config, name="default"):
    """Hang an adapter on every linear layer that `config.targets` names, in place, and make it the active one.

    Everything else in the model is frozen. Returns the names of the layers. ValueError if a target
    matches no layer, if the model has an adapter of that name already, or while one is merged.
    """
    if not name or "." in name:
        raise ValueError(f"adapter name {name!r} is not allowed: use a word without dots")
    if name in adapter_names(model):
        raise ValueError(f"the model has an adapter {name!r} already: choose another name than {adapter_names(model)}")
    _refuse_merged(model)
    inside = {id(layer.base) for layer in lora_layers(model).values()}
    linears = matching_modules(model, config.targets, (nn.Linear, QuantizedLinear, LoRALinear))
    linears = {path: linear for path, linear in linears.items() if id(linear) not in inside}
    if getattr(getattr(model, "config", None), "tie_embeddings", False) and "output" in linears:
        raise ValueError("the output head is tied to the embedding table, which an adapter on the head alone would "
                         "untie: leave 'output' out of the targets")
    for path, linear in linears.items():
        if not isinstance(linear, LoRALinear):
            linear = LoRALinear(linear)
            replace_module(model, path, linear)
        linear.add(name, config)
    set_adapter(model, name)
    return list(linears)


def set_adapter(model, name):
    """Use the adapter `name` and train it alone; None: the bare base, with nothing to train."""
    if name is not None and name not in adapter_names(model):
        raise ValueError(f"there is no adapter {name!r}: the model has {adapter_names(model)}")
    _refuse_merged(model)
    model.requires_grad_(False)
    for layer in lora_layers(model).values():
        layer.active = name if name in layer.configs else None
        if layer.active is not None:
            layer.A[name].requires_grad_()
            layer.B[name].requires_grad_()


def merge_lora(model, keep_base=True):
    """Fold the active adapter into the weights: the same function, at the speed of the base.

    Returns {layer name: share lost}, |stored - (W0 + P)| / |P| for the product P = (alpha/R) B A: about
    1e-6 on fp32. A quantized base is dequantized, added to and quantized again, and a product smaller
    than its steps vanishes: with normal weights and P of 12 % of their size NF4 loses 0.66 and int8 0.06;
    at 1.2 %, 1.08 and 0.53. Where the share is not small, leave the adapter beside the base or merge into
    full-precision weights. keep_base: hold the old weights in memory for `unmerge_lora`.
    """
    _refuse_merged(model)
    active = {name: layer for name, layer in lora_layers(model).items() if layer.active is not None}
    if not active:
        raise ValueError("there is no active adapter to merge: add one with add_lora or choose one with set_adapter")
    return {name: layer.merge(keep_base) for name, layer in active.items()}


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


def adapter_names(model):
    """Names of the model's adapters, in the order of their adding."""
    return list(dict.fromkeys(name for layer in lora_layers(model).values() for name in layer.configs))


def _refuse_merged(model):
    if any(layer.merged for layer in lora_layers(model).values()):
        raise ValueError("an adapter is merged into the weights: call unmerge_lora, or remove_lora to keep it there")


def _device(base):
    return next(tensor.device for tensor in [*base.parameters(), *base.buffers()])


def _exact_dtype(base):
    """fp32, or float64 for a base of float64."""
    return torch.float32 if isinstance(base, QuantizedLinear) else torch.promote_types(base.weight.dtype, torch.float32)


def _weight(base):
    return base.dequantize() if isinstance(base, QuantizedLinear) else base.weight.detach().to(_exact_dtype(base))


def _with_weight(base, weight):
    """A layer of the same kind, dtype and bias that holds `weight`."""
    if isinstance(base, QuantizedLinear):
        return base.with_weight(weight)
    layer = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(base.weight.dtype), requires_grad=False)
    layer.bias = base.bias
    return layer


def _as_tuple(targets):
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    if not targets or not all(isinstance(target, str) and target for target in targets):
        raise ValueError(f"targets {targets!r} are not allowed: give names such as ('attention.wq', 'attention.wv')")
    return targets
