"""What the commands in this folder that go on after a stop have in common: how they end."""

import signal

from minillama.cli.flags import spelled_as_flags
from minillama.system.interrupts import Terminated, raise_on_signals
from minillama.system.terminal import explain, guard_streams, tell


def end_well(work, arguments, kept=True):
    """work(arguments)'s exit code. A bad input is one line and exit code 2; after a signal a line says that what is
    finished is kept in arguments.out (kept=False: that nothing is); the exit code is 128 and the signal's number."""
    with guard_streams():
        try:
            with raise_on_signals():
                return work(arguments)
        except (KeyboardInterrupt, Terminated) as stopped:
            tell(f"interrupted: what is finished is kept in {arguments.out}: the same command goes on" if kept else
                 "interrupted: nothing was written; the same command begins anew")
            return 128 + getattr(stopped, "signal", signal.SIGINT)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            tell(f"error: {spelled_as_flags(explain(error), arguments)}")
            return 2
