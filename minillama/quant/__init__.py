"""Quantized weights: `nf4` (4-bit normal floats, QLoRA) and `int8` (LLM.int8)."""
