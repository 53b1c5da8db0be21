"""PyTorch's `.pth` and `.bin` files, read without running anything they contain and without loading them.

Such a file is a zip archive: a pickle that names the tensors and one uncompressed entry of bytes per tensor.
`weights_only` builds tensors and nothing else from the pickle; memory mapping leaves the bytes on disk until
they are used.
"""

import os
import zipfile

import torch

from minillama.system.snapshot import open_snapshot

MAX_PICKLE_BYTES = 100_000_000  # names and shapes only; the largest published model needs under 1 MB


def read_pth(path):
    """{name: tensor} of the file, memory-mapped (private: changing a tensor never changes the file).

    ValueError for a file that is cut short, compressed (its real size would be unknown), not a dictionary of
    tensors, or whose pickle asks for anything but tensors.
    """
    state = read_plain(path)
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path}: holds a {type(state).__name__}{' of nothing' * (state == {})}, not a dictionary of "
                         "tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise ValueError(f"{path}: entry {str(name)[:80]!r} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(f"{path}: {name} is a {tensor.layout} on {tensor.device}: expected a plain one")
    return {name: tensor.detach() for name, tensor in state.items()}


def read_plain(path):
    """What `torch.save` wrote there, plain values and tensors alone; nothing in it runs. The file is opened once: one
    that is replaced meanwhile is read as it was. Errors as in `read_pth`."""
    with open_snapshot(path) as (file, name):
        _check_zip(file, path)
        try:
            return torch.load(name, map_location="cpu", weights_only=True, mmap=True)
        except MemoryError:
            raise
        except Exception:  # a hostile pickle can provoke any; none has run anything. PyTorch's text tells how to let it
            raise ValueError(f"{path}: its pickle is damaged or asks for more than tensors") from None


def _check_zip(file, path):
    """Entries stored as they are and inside the file, so that sizes mean what they say."""
    size = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: not a .pth file, or cut short ({error}): fetch it again; one written "
                         "before PyTorch 1.6 must be saved again with a newer PyTorch") from None
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{path}: entry {entry.filename[:80]!r} is compressed: PyTorch writes none such")
        if entry.filename.endswith("data.pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"{path}: a pickle of {entry.file_size} bytes (at most {MAX_PICKLE_BYTES})")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError(f"{path}: its entries claim more than the {size} bytes there are: it is damaged")
