"""How much memory a model needs and how much there is: said before it is used, refused before it runs out."""

import ctypes
import errno
import re
import subprocess
import sys
import traceback
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

GIB = 2**30
SPACIOUS = 16 * GIB  # of address space: PyTorch loads and has threads, its builds for GPUs too
TRIAL = "import torch; (torch.ones(512, 512) @ torch.ones(512, 512)).exp(); torch.empty(1 << 27, dtype=torch.uint8)"
SHORTAGE = re.compile("can't allocate memory|cannot allocate memory|out of memory|failed to map segment|unable to mmap"
                      "|not enough memory", re.IGNORECASE)
THRIFTY = ("batch_size", "prompts_per_iteration", "seq_len", "max_length", "max_new_tokens", "vocab_size", "rank",
           "block_size", "dtype", "load_8bit", "load_4bit")  # options that can be given a smaller value, or switched on
# Bits per weight of a linear layer: NF4 with double quantization stores 4 + 8/64 + 32/(64*256) (arXiv 2305.14314)
BITS = {"fp32": 32.0, "fp16": 16.0, "int8": 8.0, "nf4": 4 + 8 / 64 + 32 / (64 * 256)}


def weights_bytes(config, kind="fp16", rest=2):
    """Bytes of a model's weights; int8 and nf4 shrink the linear layers only, of the tables and norms each number
    keeps `rest` bytes."""
    if kind not in BITS:
        raise ValueError(f"kind {kind!r} is not known: choose one of {', '.join(BITS)}")
    if kind in ("fp32", "fp16"):
        return int(config.n_parameters() * BITS[kind] / 8)
    attention = 2 * config.dim * config.head_dim * (config.n_heads + config.n_kv_heads)
    linears = config.n_layers * (attention + 3 * config.dim * config.hidden_dim)
    row_scales = 4 * linears / config.dim if kind == "int8" else 0  # about one fp32 scale for each row
    return int(linears * BITS[kind] / 8 + row_scales + rest * (config.n_parameters() - linears))


def cache_bytes(config, tokens, batch=1, bytes_per_number=2):
    """Bytes of a KV cache: keys and values, every layer, every key/value head: 2 L B K d T numbers."""
    return 2 * config.n_layers * batch * config.n_kv_heads * config.head_dim * tokens * bytes_per_number


def activation_bytes(config, rows, tokens, size=4, vocabulary=True, recompute=False):
    """The least that a training step on `rows` x `tokens` keeps for its way back, in numbers of `size` bytes: of every
    block q, k, v, what attention gives, three of the feed-forward's width and two of the model's (`recompute`: the
    block's input alone), and the scores of the vocabulary with their gradient in fp32. Short of the true peak."""
    heads = config.n_heads + config.n_kv_heads
    block = config.dim if recompute else 2 * heads * config.head_dim + 3 * config.hidden_dim + 2 * config.dim
    return rows * tokens * (size * config.n_layers * block + 8 * config.vocab_size * vocabulary)


def require_step_memory(config, rows, batches, tokens, device, **kept):
    """ValueError with the estimate where `batches`, one after another, of `rows` x `tokens` do not fit."""
    require_memory(activation_bytes(config, rows, tokens, **kept), f"a step of {rows} x {tokens:.0f} tokens", device,
                   "lower --batch-size")
    require_memory(24 * rows * batches * tokens, f"drawing {batches} batches of {rows}", "cpu",
                   "lower --batch-size or --grad-accumulation")


def require_device(device):
    """ValueError where PyTorch finds no such device here."""
    import torch

    asked = torch.device(device)
    count = {"cuda": torch.cuda.device_count, "mps": torch.backends.mps.is_available}.get(asked.type, lambda: 1)()
    if (asked.index or 0) >= count:
        raise ValueError(f"device {str(device)!r} is not present on this machine: use cpu, or one that `info` lists")


def available_bytes(device="cpu"):
    """Bytes that can be had now: a GPU's, or the main memory's within a container's limit. None: unknown."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        found = {"linux": _linux, "darwin": _macos, "win32": _windows}.get(sys.platform, lambda: None)()
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        return None
    return found


def peak_memory():
    """The most bytes of main memory that this process has held so far. None: the system does not tell (Windows)."""
    status = Path("/proc/self/status")  # Linux; getrusage would count what the process that started this one held, too
    if found := status.exists() and re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
        return int(found[1]) * 1024
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _linux():
    meminfo = Path("/proc/meminfo").read_text()
    free = int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo)[1]) * 1024
    group = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if all(path.exists() for path in group) and group[0].read_text().strip() != "max":
        free = min(free, int(group[0].read_text()) - int(group[1].read_text()))
    if limit := address_limit():
        held = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
        free = min(free, limit - int(held[1]) * 1024)
    return max(free, 0)


def address_limit():
    """Bytes of address space that this process may take (`ulimit -v`); None: as many as it likes."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
    return limit if limit >= 0 and limit != resource.RLIM_INFINITY else None


def _macos():
    report = subprocess.run(["vm_stat"], capture_output=True, text=True, timeout=5, check=True).stdout
    page = int(re.search(r"page size of (\d+)", report)[1])
    counts = [int(n) for n in re.findall(r"Pages (?:free|inactive|speculative):\s+(\d+)", report)]
    return page * sum(counts)


def _windows():
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.free


def require_memory(needed, what, device="cpu", way_out="close other programs, or choose a smaller model or --dtype"):
    """Refuse early what cannot fit; returns the sentence to print otherwise.

    Raises ValueError where `needed` bytes are more than there are, naming both and the ways out.
    """
    require_device(device)
    free = available_bytes(device)
    if free is not None and needed > free:
        raise ValueError(f"{what} needs {needed / GIB:.2f} GiB and {free / GIB:.2f} GiB are free on {device}: "
                         + way_out)
    beside = "" if free is None else f", {free / GIB:.1f} GiB free"
    return f"{what}: {needed / GIB:.2f} GiB{beside}"


def require_room_for_torch():
    """MemoryError where a limit on address space keeps PyTorch from loading and starting its threads.

    It would end this process without a word that Python could catch, so a child tries it first; without a limit, or
    under a wide one, nothing is tried.
    """
    limit = address_limit()
    if limit is None or limit >= SPACIOUS:
        return
    tried = subprocess.run([sys.executable, "-c", TRIAL], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           errors="replace")
    if tried.returncode and "ModuleNotFoundError" not in tried.stderr:
        raise MemoryError(f"PyTorch does not load within {limit >> 20} MiB of address space: raise the limit, "
                          "`ulimit -v unlimited`, or to 2 GiB at least: `ulimit -v 2097152`")


def explain_shortage(error, arguments):
    """One line where the error is one of too little memory: where, how much was asked for, the flags of the command
    that take less. None for any other error."""
    text = " ".join(str(error).split())
    told = isinstance(error, (OSError, RuntimeError, ImportError)) and SHORTAGE.search(text)
    if not (isinstance(error, MemoryError) or told or getattr(error, "errno", None) == errno.ENOMEM):
        return None
    if "ulimit" in text:
        return text
    frames, package = traceback.extract_tb(error.__traceback__), str(Path(__file__).parents[1])
    own = [frame for frame in frames if frame.filename.startswith(package)]
    where = f" in {own[-1].name} ({Path(own[-1].filename).name})" if own else ""
    asked = re.search(r"(?:tried to|unable to) (?:allocate|mmap) ([\d.]+) ?(bytes|[kMGTPE]?i?B)", text, re.IGNORECASE)
    number = asked and (f"{int(asked[1]) / GIB:.2f} GiB" if asked[2] == "bytes" else f"{asked[1]} {asked[2]}")
    size = f", {number} were asked for at once" if asked else ""
    free = available_bytes()
    flags = [f"--{name.replace('_', '-')}" for name in THRIFTY if hasattr(arguments, name)]
    less = f", or ask for less: {', '.join(flags)}" if flags else ", or raise the limit (`ulimit -v`)"
    return (f"out of memory{where}{size}{f', {free / GIB:.2f} GiB are free' if free is not None else ''}: "
            f"close other programs{less}")
