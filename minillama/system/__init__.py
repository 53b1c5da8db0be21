"""What every command needs of the machine under it: files, memory, signals and the terminal.

A file is whole or absent (`files`), and one run at a time writes into a folder (`claim`). Requests to stop end a step
and save (`interrupts`), shortage of memory is told before it happens (`memory`), and what a stranger's file says is
shown on a terminal and never obeyed (`terminal`). Read `files` first.
"""

FLOOR = 0  # imports from its own floor or a lower one
