"""Quantized weights: `nf4` (4-bit normal floats with double quantization, QLoRA) and `int8` (LLM.int8).

`quantized_linear` is a linear layer over either, and `quantize_linears` puts a whole model into it. Read `nf4` first.
"""

FLOOR = 2  # imports from its own floor or a lower one
