"""Flags to calls: `python -m minillama COMMAND`. Nothing else in the package knows argparse.

Each file holds one group of commands, `flags` makes flags from the fields of a config, and `model_arguments` opens the
model that a command is given. `info` tells what a file or this machine can do. Read `command_line` first.
"""

FLOOR = 7  # imports from its own floor or a lower one
