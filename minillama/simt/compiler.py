"""What the emulator and the lessons need of a C++ compiler, and the folder where what it made is kept.

Whatever was compiled is run later, so nobody else may be able to put a file there: a folder that others can write is
not used, and of a file only one of this user's own.
"""

import atexit
import functools
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

INSTALL = {"apt-get": "sudo apt install g++", "dnf": "sudo dnf install gcc-c++", "pacman": "sudo pacman -S gcc",
           "zypper": "sudo zypper install gcc-c++", "apk": "sudo apk add g++"}  # package manager -> how to get g++


class NotBuilt(RuntimeError):
    """Something that is compiled is not here and cannot be made; the message says what makes it."""


def require_compiler(command="g++", linux_only=True):
    """NotBuilt, with the line that installs one, where this compiler is not in PATH (or the system is not Linux)."""
    if linux_only and sys.platform != "linux":
        raise NotBuilt(f"emulated kernels and programs are compiled with g++ on Linux, not on {sys.platform}: on "
                       "Windows use WSL, elsewhere a virtual machine or a container")
    if not shutil.which(command):
        ways = [way for tool, way in INSTALL.items() if shutil.which(tool)]
        way = "xcode-select --install" if sys.platform == "darwin" else (ways or list(INSTALL.values()))[0]
        raise NotBuilt(f"there is no {command} in PATH, and this is compiled on the spot: {way}")


def contraction(contracted):
    """g++'s flags: is a * b + c in device code one operation, as nvcc makes it? NotBuilt where a CPU has none."""
    x86 = contracted and platform.machine() == "x86_64"
    if x86 and " fma " not in Path("/proc/cpuinfo").read_text():
        raise NotBuilt("this CPU cannot compute a * b + c in one operation, as device code does: --fmad=false")
    return ["-DSIMT_CONTRACT"] * contracted + ["-mfma"] * x86


def gcc(arguments, text, target):
    """Run g++, which reads `text` on stdin, into a neighbour of `target` and rename it: who looks sees a whole file or
    none. What it says where it fails, in English; "" where it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / target.name
        done = subprocess.run(["g++", *arguments, "-o", str(partial)], input=text, capture_output=True, text=True,
                              env={**os.environ, "LC_ALL": "C"})
        if done.returncode:
            return done.stderr or "g++ failed"
        os.chmod(partial, 0o700)
        os.replace(partial, target)
    return ""


def is_own(path):
    """Whether this file is there, and neither is nor was anyone else's to write."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and _only_ours(found)


def private_folder(folder):
    """`folder`, made for this user alone; where others can put files into it, or change what is on its path, a fresh
    one that is removed at the end of this process, and one line that says so."""
    try:
        for part in (folder.parent, folder):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "geteuid"):
            if os.lstat(folder).st_uid == os.geteuid() and not folder.is_symlink():
                os.chmod(folder, 0o700)
            if not _only_ours(os.lstat(folder)) or not all(map(_cannot_be_swapped, folder.absolute().parents)):
                return _fresh_folder(folder)
        return folder
    except OSError:
        return _fresh_folder(folder)


def _only_ours(found):
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def _cannot_be_swapped(folder):
    """Others can rename nothing in it: it is ours or root's, and who else may write it may touch only his own."""
    found = os.lstat(folder)
    others = found.st_mode & 0o002 or (found.st_mode & 0o020 and found.st_gid != os.getegid())
    return found.st_uid in (0, os.geteuid()) and (not others or bool(found.st_mode & stat.S_ISVTX))


@functools.cache
def _fresh_folder(instead):
    folder = tempfile.mkdtemp(prefix="minillama-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    print(f"{instead} cannot be kept from others: what is compiled now is used once; set XDG_CACHE_HOME to a folder of "
          "your own", file=sys.stderr)
    return Path(folder)
