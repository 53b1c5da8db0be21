"""`python -m minillama`: the command line."""

import sys

from minillama.cli import main

sys.exit(main())
