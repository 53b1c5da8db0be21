"""DoRA: the direction of each row of a weight learns by LoRA, its length by a number of its own (arXiv 2402.09353).

    h = m (W0 + s B A) x / |W0 + s B A|        (eq. 5; |.| is the norm of each row of an (out, in) weight)

m starts as |W0| and B at zero, so the new model is the base, bit for bit. The norm gets no gradient (section 4.3).
Dropout, where it is asked for, acts on the input of A alone, as in LoRA.
"""

from torch import nn

from minillama.peft.lora import LoRALinear


class DoRALinear(LoRALinear):
    """`LoRALinear` with a length m, (out,) fp32, for each row; `add_lora(model, config, DoRALinear)` attaches it.
    Over a quantized base every pass dequantizes W0."""

    def __init__(self, base, config):
        super().__init__(base, config)
        self.m = nn.Parameter(self.row_norms())

    def row_norms(self):
        """|W0 + s B A| of each row, (out,) fp32, without a gradient; never 0, as rows of quantized weights may be."""
        return super().adapted_weight().norm(dim=1).clamp(min=1e-30)

    def forward(self, x):
        h = super().forward(x)
        return h if self.merged else (h * (self.m / self.row_norms())).to(h.dtype)

    def adapted_weight(self):
        return (self.m.detach() / self.row_norms())[:, None] * super().adapted_weight()
