"""Pictures of a profile of emulated kernels (`minillama.simt.profile_report.Profile`): where the lanes of a warp reach.

`sectors(p, title)` and `banks(p, title)` draw the first request of the access that has the most requests; op="load" or
"store", line=12 and kernel="part of a name" choose among accesses. `lanes(p, title)` draws a whole warp's time.
"""

from collections import defaultdict

from minillama.plots import CONTEXT, CONTRAST, OURS, figure


def most_requested(profile, line=None, space=None, op=None, kernel=None):
    """The access with the most requests that fits. ValueError if none does."""
    chosen = [access for access in profile.accesses if line in (None, access.line) and space in (None, access.space)
              and op in (None, access.op) and (kernel is None or kernel in access.kernel)]
    if not chosen:
        raise ValueError(f"no access fits line={line}, space={space}, op={op}, kernel={kernel}")
    return max(chosen, key=lambda access: access.counts.requests)


def sectors(profile, title, **which):
    """Lanes against the 32-byte sectors of one access's first request; `which` as for `most_requested`."""
    access = most_requested(profile, space="global", **which)
    return _grid(title, "sector of 32 bytes", access, lambda byte: byte // 32, fold=None)


def banks(profile, title, **which):
    """Lanes against the 32 banks of one access's first request; `which` as for `most_requested`."""
    access = most_requested(profile, space="shared", **which)
    start = min(offset for other in profile.accesses if other.space == "shared" and other.kernel == access.kernel
                for offset in other.offsets if offset is not None) // 4  # where the kernel's shared memory begins
    return _grid(title, "bank", access, lambda byte: (byte // 4 - start) % 32, fold=32)


def lanes(profile, title, kernel=None):
    """Active lanes of the first warp, request by request."""
    one = next(data for name, data in profile.kernels.items() if kernel is None or kernel in name)
    active = [count for _, count in one["timeline"]]
    picture, axes = figure(title, "memory request of the first warp, in order", "active lanes")
    axes.fill_between(range(1, len(active) + 2), active + active[-1:], step="post", color=OURS, linewidth=0)
    axes.axhline(32, color=CONTEXT, linewidth=1)
    axes.set(ylim=(0, 34), yticks=(0, 8, 16, 24, 32), xlim=(1, max(len(active) + 1, 2)))
    return picture


def _grid(title, label, access, place_of, fold):
    """Rows are lanes, columns sectors or banks; a column that several different words share is drawn in contrast."""
    picture, axes = figure(title, label, "lane", figsize=(5.4, 3.6))
    points = [(lane, byte) for lane, start in enumerate(access.offsets) if start is not None
              for byte in range(start, start + access.width, 4 if fold else 1)]
    words = defaultdict(set)
    for _, byte in points:
        words[place_of(byte)].add(byte // 4)
    places = sorted(words)
    first = 0 if fold else places[0]
    narrow = fold or places[-1] - places[0] < 200  # far-apart sectors are numbered in the order of their addresses
    column = (lambda place: place - first) if narrow else places.index
    for colour, crowded in ((OURS, False), (CONTRAST, True)):
        cells = sorted({(column(place_of(byte)), lane) for lane, byte in points
                        if (fold is not None and len(words[place_of(byte)]) > 1) == crowded})
        if cells:
            xs, ys = zip(*cells, strict=True)
            axes.scatter(xs, ys, marker="s", s=14, color=colour, linewidths=0)
    last = fold - 1 if fold else max(column(place) for place in places)
    axes.set(xlim=(-0.8, max(last, 7) + 0.8), ylim=(32, -1), yticks=(0, 8, 16, 24, 31))
    return picture
