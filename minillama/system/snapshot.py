"""A file as it was when it was open_snapshot, however often it is replaced meanwhile.

Files here are replaced by renaming. A reader that opens a path twice may then see the beginning of one file and the
rest of another, in silence; one that keeps the file open reads the old one to its end.
"""

import contextlib
import os
import stat


@contextlib.contextmanager
def open_snapshot(path):
    """(file, name): the file opened for reading bytes, and a name by which others open this very file again, for
    libraries that map a path into memory. ValueError for what is not a regular file, before anything is read of it.

    /dev/fd/N names an open file on Linux and macOS. Windows replaces no open file, so that its own name does.
    Elsewhere that is not sure, and ValueError says afterwards that the file was replaced.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))  # a FIFO waits
    with open(descriptor, "rb") as file:
        ours = os.fstat(file.fileno())
        if not stat.S_ISREG(ours.st_mode):
            raise ValueError(f"{path} is not a regular file: give a file, or a link to one")
        name = f"/dev/fd/{file.fileno()}"
        if os.path.exists(name):
            yield file, name
            return
        yield file, os.fspath(path)
        if not os.path.samestat(ours, os.stat(path)):
            raise ValueError(f"{path} was replaced while it was read: start again")
