"""RoPE of queries and keys on the CPU: one call of the kernel, beside eager RoPE and beside copying the same bytes.

T = 2048, 32 + 8 heads of width 128. Every number is read once and written once, so the limit is memcpy of q and k into
two other tensors, a share of each for every thread, in the same rounds. "into" writes into tensors that are there, as
the copy does; new tensors, as the peer makes them, cost page faults besides; in place touches half as many places.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import _rounds  # first: it speaks to OpenMP before torch loads
import torch

from minillama import kernels
from minillama.rope import apply_rope_half_split, apply_rope_qk, rope_frequencies, rope_rotations


def half_split_qk(q, k, rotations):
    return apply_rope_half_split(q, rotations), apply_rope_half_split(k, rotations)


def copier(sources, targets, threads):
    """A function that copies dense tensors by memcpy: this thread takes the first share, those of a pool the rest."""
    shares = [[(target.view(-1).chunk(threads)[n], source.view(-1).chunk(threads)[n])
               for source, target in zip(sources, targets, strict=True)] for n in range(threads)]
    pool = ThreadPoolExecutor(max(1, threads - 1))

    def copy(share):
        for target, source in share:
            ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)  # other threads go on meanwhile

    def work():
        others = [pool.submit(copy, share) for share in shares[1:]]
        copy(shares[0])
        for other in others:
            other.result()

    return work


def rows(dtype, interleaved, T, chosen):
    """What came out for one dtype and layout: into given tensors, into new ones, and in place."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, T, heads, 128).to(dtype) for heads in (32, 8))
    rotations = rope_rotations(torch.arange(T), rope_frequencies(128))
    peer = apply_rope_qk if interleaved else half_split_qk
    there, written_over = ([x.clone() for x in (q, k)] for _ in range(2))
    contenders = {
        "into": lambda: kernels.fused_rope_qk(q, k, rotations, interleaved=interleaved, out=there),
        "new tensors": lambda: kernels.fused_rope_qk(q, k, rotations, interleaved=interleaved),
        "in place": lambda: kernels.fused_rope_qk(*written_over, rotations, interleaved=interleaved, in_place=True),
        "peer": lambda: peer(q, k, rotations),
        "limit": copier((q, k), [torch.empty_like(x) for x in (q, k)], chosen.threads),
    }
    for ours, theirs in zip(contenders["new tensors"](), contenders["peer"](), strict=True):
        torch.testing.assert_close(ours, theirs)  # the same numbers, or nothing is timed
    with torch.inference_mode():
        seconds = _rounds.alternate(contenders, chosen.rounds)
    times = {name: [1e3 * s for s in values] for name, values in seconds.items()}
    size = f"T={T}, 32 + 8 heads, d=128, {str(dtype).removeprefix('torch.')}"
    what = f"RoPE, {'interleaved, against eager complex' if interleaved else 'half-split, against eager'} RoPE"
    return [_rounds.Row(f"{what}, {place}", size, "ms", times[place], times["peer"], times["limit"],
                        more_is_better=False) for place in ("into", "new tensors", "in place")]


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    kernels.require("cpu")
    T = 16 if chosen.small else 2048
    _rounds.show([row for dtype in (torch.bfloat16, torch.float32) for interleaved in (True, False)
                  for row in rows(dtype, interleaved, T, chosen)])


if __name__ == "__main__":
    main()
