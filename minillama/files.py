"""Files that are either whole or absent: a crash in the middle of a write never leaves half a file."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary neighbour of `path`; on a clean exit flush it to disk and rename it into place.

    A reader sees the old file or the new one, nothing between; if the block raises, the old file
    stays and the temporary is removed. `mode` is "wb" or "w" (UTF-8, newlines untranslated).
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode {mode!r} is not allowed: use 'wb' for bytes or 'w' for text")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    text = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
    try:
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; results are ordinary ones
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def atomic_folder(path):
    """A temporary neighbour of the folder `path`, renamed to it on a clean exit and removed if the block raises.

    FileExistsError if there is something at `path` already that is not an empty folder.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists: choose another place, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()  # empty: Windows renames over nothing
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
