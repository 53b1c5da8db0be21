"""AdamW whose state lives in a file and is in memory piece by piece: the paged optimizer of QLoRA, on a CPU.

m and v take 8 bytes a trained weight, twice the fp32 weight itself, and are needed once in a step. QLoRA (arXiv
2305.14314, section 3) lets bitsandbytes keep them in CUDA's unified memory: one address for GPU and main memory,
between which the driver moves pages when they are touched, out to main memory when the GPU is full. On a CPU
the memory that runs out is the main memory, and what lies beyond it is the disk. So the state is a file, and at any
moment one piece of it is mapped: updated there, unmapped, written back by the system when it likes.

An optimizer touches all of its state in the same order in every step. For such a scan the pages used last are those
needed latest again, and an LRU cache smaller than the state would miss every time; so there is no cache to tune.
"""

import mmap
import os
import tempfile

import torch

from minillama.system.files import reserve
from minillama.train.optimizer import AdamW

PAGE = mmap.ALLOCATIONGRANULARITY
LEAST = 16 * PAGE  # three mappings, each with two pages cut at its ends, and some numbers
STRIDE = 64  # pieces begin at multiples of it, where a CPU's vectors begin too: the same instructions everywhere


class PagedAdamW(AdamW):
    """`AdamW` bit for bit, with at most `resident_bytes` of its state in memory during a step.

    The state (m, v, and the fp32 copies of shorter weights) lies in a nameless file in `folder`, the system's folder
    for temporary files if None (which may itself be memory): it is gone with the process, however that ends. Its
    room is reserved here; OSError where the disk has too little. Beside the state a step needs half a piece for the
    denominator, and gradients stay in memory as always. `state_dict` gives mapped tensors of AdamW's own form: either
    class takes up the other's run. While it is saved the system may hold more of the file in memory, but can drop it.

    ValueError for a cap below 16 pages (64 KiB on most systems) or a parameter that is not contiguous.
    """

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, resident_bytes=2**26,
                 folder=None):
        if resident_bytes < LEAST:
            raise ValueError(f"resident_bytes is {resident_bytes}: allowed are {LEAST} and more")
        self.resident_bytes, self.folder = resident_bytes, folder
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def _allocate(self):
        if not all(p.is_contiguous() for p in self.parameters):
            raise ValueError("a parameter is not contiguous: give AdamW its .contiguous() copy")
        self.dtypes = [torch.promote_types(p.dtype, torch.float32) for p in self.parameters]
        self.sections = [2 if p.dtype == dtype else 3 for p, dtype in zip(self.parameters, self.dtypes, strict=True)]
        self.places, size = [], 0  # where m, v and the copy of each parameter begin in the file
        for p, dtype, sections in zip(self.parameters, self.dtypes, self.sections, strict=True):
            length = -(-p.numel() * dtype.itemsize // 64) * 64  # bytes, so that the next section begins aligned
            self.places.append([size + k * length for k in range(sections)])
            size += sections * length
        if self.folder is not None:
            os.makedirs(self.folder, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=self.folder, prefix=".adamw.", suffix=".partial")
        try:
            reserve(self.file, size)  # zeros, as m and v are to begin
        except OSError as error:
            self.file.close()
            raise OSError(error.errno, f"{size} bytes for the optimizer's state find no room in {self.folder or 'the'} "
                          f"{'' if self.folder else 'folder for temporary files'}: {error.strerror}") from None
        for i, p in enumerate(self.parameters):
            if self.sections[i] == 3:
                for begin, end in self._pieces(i):
                    self._mapped(i, 2, begin, end).copy_(p.detach().view(-1)[begin:end])

    def _pieces(self, i):
        """(begin, end) of the parts of a tensor whose state fits under the cap, the pages at their ends included."""
        room = self.resident_bytes // self.sections[i] - 2 * PAGE
        length = room // self.dtypes[i].itemsize // STRIDE * STRIDE
        n = self.parameters[i].numel()
        return [(begin, min(begin + length, n)) for begin in range(0, n, length)]

    def _mapped(self, i, section, begin, end):
        """Elements of m (section 0), v (1) or the fp32 copy (2) as a flat tensor on the file; its death unmaps it."""
        dtype = self.dtypes[i]
        if begin == end:
            return torch.empty(0, dtype=dtype)
        place = self.places[i][section] + begin * dtype.itemsize
        slack = place % PAGE
        block = mmap.mmap(self.file.fileno(), slack + (end - begin) * dtype.itemsize, offset=place - slack)
        return torch.frombuffer(block, dtype=dtype, count=end - begin, offset=slack)

    def _whole(self, i, section):
        return self._mapped(i, section, 0, self.parameters[i].numel()).view(self.parameters[i].shape)

    @property
    def m(self):
        """Of every parameter, mapped anew: nothing is in memory before it is touched."""
        return [self._whole(i, 0) for i in range(len(self.parameters))]

    @property
    def v(self):
        """As `m`."""
        return [self._whole(i, 1) for i in range(len(self.parameters))]

    @property
    def weights(self):
        """The parameters, or their fp32 copies, mapped."""
        return [p if self.sections[i] == 2 else self._whole(i, 2) for i, p in enumerate(self.parameters)]

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient, piece by piece."""
        for i, p in enumerate(self.parameters):
            if p.grad is None:
                continue
            self.steps[i] += 1
            for begin, end in self._pieces(i):
                self._step_piece(i, begin, end)

    def _step_piece(self, i, begin, end):
        """A function of its own: when it returns, its mappings are gone, before the next piece makes any."""
        p = self.parameters[i]
        own, gradient = p.detach().view(-1)[begin:end], p.grad.reshape(-1)[begin:end]
        mapped = [self._mapped(i, section, begin, end) for section in range(self.sections[i])]
        state = [tensor.to(p.device) for tensor in mapped]  # the same tensor on a CPU
        exact = state[2] if self.sections[i] == 3 else own
        self._update([i], [exact], [gradient.to(exact.dtype)], state[:1], state[1:2])
        if exact is not own:
            own.copy_(exact)
        for tensor, new in zip(mapped, state, strict=True):
            if new is not tensor:
                tensor.copy_(new)
