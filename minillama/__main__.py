"""`python -m minillama`: the command line."""

import sys

from minillama.cli.command_line import main

sys.exit(main())
