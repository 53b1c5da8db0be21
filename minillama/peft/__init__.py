"""Tuning few parameters: LoRA, prefixes, prompts, adapters and more, and their files in the peft library's form.

`lora` holds its layers and the formula, `lora_file` the folder of an adapter. Read `lora` first; each other way has a
page of its own, `methods` sets them side by side, and `adapter_file` is the folder of any.
"""

FLOOR = 4  # imports from its own floor or a lower one
