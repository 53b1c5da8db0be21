"""Tuning few parameters: LoRA, and its files in the form that the peft library reads and writes.

`lora` holds the layers and the formula, `lora_file` the folder of an adapter. Read `lora` first.
"""

FLOOR = 4  # imports from its own floor or a lower one
