"""Files that are either whole or absent: a crash in the middle of a write never leaves half a file.

What is being made lies beside what it will become, as `.NAME.XXXXXXXX.partial`, and is locked (flock) while its
process lives. So what a killed process left is told from what is in use, and the next writer of that name removes it.
Where there is no flock (Windows, some network drives) nothing is locked and nothing removed.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.partial", re.DOTALL)
LONGEST_NAME = 200  # bytes of a name that go into a temporary's, of the 255 that file systems allow


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary neighbour of `path`; on a clean exit flush it to disk and rename it into place.

    A reader sees the old file or the new one, nothing between; if the block raises, the old file
    stays and the temporary is removed. `mode` is "wb" or "w" (UTF-8, newlines untranslated). A link is followed.
    An OSError names `path`; so does one that `torch.save` has turned into an error of its own.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode {mode!r} is not allowed: use 'wb' for bytes or 'w' for text")
    target = follow_link(require_regular(path))
    with name_errors(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _locked_temporary(target, tempfile.mkstemp)
    raw = _RememberingFile(handle, "wb")
    file = io.BufferedWriter(raw)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="") if mode == "w" else None
    try:
        yield text or file
        with name_errors(path):
            (text or file).flush()
            os.fsync(handle)
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files; results are ordinary ones
            if fcntl is None:
                file.close()  # Windows renames no open file; elsewhere it stays locked until it has its name
            os.replace(temporary, target)
    except Exception as error:
        if raw.error:
            raise OSError(raw.error.errno, raw.error.strerror, os.fspath(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            (text or file).close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def atomic_folder(path):
    """A temporary neighbour of the folder `path`, renamed to it on a clean exit and removed if the block raises.

    FileExistsError if there is something at `path` already that is not an empty folder. A link is followed.
    """
    require_absent(path)
    target = follow_link(path)
    with name_errors(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _locked_temporary(target, tempfile.mkdtemp)
    try:
        yield Path(temporary)
        with name_errors(path):
            os.chmod(temporary, 0o777 & ~_umask())
            if fcntl is None and target.is_dir():
                target.rmdir()  # Windows renames over nothing; elsewhere a rename takes an empty folder's place
            os.rename(temporary, target)
    except OSError as error:
        name = os.fsdecode(error.filename or "")
        if name.startswith(temporary):  # the name under which the user will look for it
            raise OSError(error.errno, error.strerror, os.fspath(path) + name[len(temporary):]) from error
        raise
    finally:
        if handle is not None:
            os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


class _RememberingFile(io.FileIO):
    """Names itself in an error of writing, and keeps the first one: PyTorch's C++ code swallows it and reports a wrong
    position instead."""

    error = None

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            error.filename = self.name
            self.error = self.error or error
            raise


def open_to_append(path):
    """A text file (UTF-8) to whose end lines are added. What the system refuses to take, at a flush or in closing, is
    an OSError that names `path`."""
    return io.TextIOWrapper(io.BufferedWriter(_RememberingFile(os.fspath(path), "a")), encoding="utf-8", newline="")


@contextlib.contextmanager
def name_errors(path):
    """Within it, an OSError tells of `path`, whatever name or none the system gave."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def require_regular(path):
    """The path back. ValueError if there is something at it that is no regular file: a pipe may never begin, and a
    device never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{os.fspath(path)!r} is {kind}: give the path of a file")
    return path


def require_absent(path):
    """FileExistsError if there is something at `path` that is not an empty folder."""
    if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise FileExistsError(f"{path} exists: choose another place, or remove it first")


def follow_link(path):
    """What a link at `path` leads to, which need not be there yet; any other path as it is."""
    target = Path(path)
    if target.is_symlink() or target.name in ("", ".."):
        target = Path(os.path.realpath(target))
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return target


def reserve(file, size):
    """Give an open file so many bytes, zeros. OSError where the disk has too little room: of a mapped file's hole that
    cannot be filled later, the system would tell by killing the process."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)


def lock(handle, wait=False):
    """Lock an open file or folder for this process -> True; False where another has it; None where there are no locks.
    The system gives the lock back when the handle is closed, or the process ends, however it does."""
    if fcntl is None or handle is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_dead(folder, name=None):
    """Remove the temporaries that killed processes left in `folder`: all, or those of the file `name`."""
    for entry in os.scandir(folder):
        found = TEMPORARY.fullmatch(entry.name)
        if fcntl is None or not found or (name is not None and found[1] != temporary_stem(name)) or entry.is_symlink():
            continue
        with contextlib.suppress(OSError):  # gone in the meantime, or somebody else's
            handle = os.open(entry.path, os.O_RDONLY)
            try:
                if lock(handle):
                    shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
            finally:
                os.close(handle)


def _locked_temporary(target, make):
    """(handle, name) of a new temporary for `target`, made by mkstemp or mkdtemp."""
    remove_dead(target.parent, target.name)
    while True:
        made = make(dir=target.parent, prefix=f".{temporary_stem(target.name)}.", suffix=".partial")
        handle, name = made if isinstance(made, tuple) else (os.open(made, os.O_RDONLY) if fcntl else None, made)
        lock(handle, wait=True)
        if os.path.exists(name):
            return handle, name
        os.close(handle)  # a cleaner was there between its making and its locking


def temporary_stem(name):
    """The name as it stands in a temporary's name; a digest of one that would make that too long."""
    raw = os.fsencode(name)
    return name if len(raw) <= LONGEST_NAME else hashlib.sha256(raw).hexdigest()[:32]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
