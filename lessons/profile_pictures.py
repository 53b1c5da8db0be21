"""Pictures of a profile of emulated kernels (`minillama.simt.profile_report.Profile`): where the lanes of a warp reach.

`levels(title, n, threads)` draws grid, block, warp and lane. `sectors(p, title)` and `banks(p, title)` draw the first
request of the access that has the most requests; op="load" or "store", line=12 and kernel="part of a name" choose among
accesses. `lanes(p, title)` draws a whole warp's time. `fragments`, `matrix_banks` and `stages` show what feeds tensor
cores (lesson 39).
"""

from collections import defaultdict

from minillama.plots import CONTEXT, CONTRAST, INK, OURS, WIDTH, column_of_panels, figure


def levels(title, n, threads):
    """The grid of ceil(n / threads) blocks, its last block's warps, and the last warp's lanes: those with an element
    below n in blue, those that a guard sends away in grey."""
    blocks, first = -(-n // threads), -(-n // threads) * threads - 32
    picture, axes = figure(title, figsize=(WIDTH, 3.6))
    rows = ((f"grid: {blocks} blocks of {threads} threads", range(blocks), range(blocks)),
            (f"block {blocks - 1}: {threads // 32} warps of 32 threads", range(threads // 32), range(threads // 32)),
            (f"warp {threads // 32 - 1} of block {blocks - 1}: 32 lanes, elements {first} to {first + 31}",
             [lane if lane % 8 == 0 or lane == 31 else "" for lane in range(32)], range(32)))
    for level, (name, labels, places) in enumerate(rows):
        top, wide = 3 * level, 32 / len(places)
        axes.text(31.6 if level else 0, top - 0.2, name, color=INK, va="bottom", ha="right" if level else "left")
        for place, label in zip(places, labels, strict=True):
            opened, used = level < 2 and place == places[-1], level < 2 or first + place < n
            axes.add_patch(_cell((place * wide, top), wide, CONTRAST if opened else OURS if used else CONTEXT))
            axes.text((place + 0.5) * wide, top + 0.5, label, color="white", ha="center", va="center")
        if level < 2:
            for left, below in ((32 - wide, 0), (32, 32)):
                axes.plot((left, below), (top + 1, top + 3), color=CONTRAST, linewidth=0.8, linestyle=":")
    axes.text(0, 7.3, f"blue: i < {n}, at work; grey: nothing to do", color=INK, va="top")
    axes.set(xlim=(-0.2, 32.2), ylim=(8, -1.1))
    axes.axis("off")
    return picture


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
    narrow = fold or places[-1] - places[0] < 256  # far-apart sectors are numbered in the order of their addresses
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


def fragments(title, A, B, C, lane):
    """Which lane holds which number of a product by mma.sync: A and C as {(row, column): lane}, B as {(column, row):
    lane}. B stands above C and A left of C, as on paper; a cell is two neighbours, those of `lane` are in contrast."""
    picture, axes = figure(title, figsize=(WIDTH, 5.6))
    up = {(row // 2, column): L for (column, row), L in B.items()}
    across = [{(row, column // 2): L for (row, column), L in matrix.items()} for matrix in (A, C)]
    for cells, left, top, wide in ((up, 8.6, 0, 0.5), (across[0], 0, 8.8, 1), (across[1], 8.6, 8.8, 1)):
        rows, columns = (1 + max(numbers) for numbers in zip(*cells, strict=True))
        axes.vlines([left + i * wide for i in range(columns + 1)], top, top + rows, color=CONTEXT, linewidth=0.6)
        axes.hlines([top + i for i in range(rows + 1)], left, left + columns * wide, color=CONTEXT, linewidth=0.6)
        for (row, column), L in cells.items():
            corner, mine = (left + column * wide, top + row), L == lane
            if mine:
                axes.add_patch(_cell(corner, wide, CONTRAST))
            axes.text(corner[0] + wide / 2, corner[1] + 0.54, str(L), ha="center", va="center",
                      color="white" if mine else INK)
    words = "The number of the lane\nthat holds two neighbours:\nof a row in A and C,\nof a column in B."
    axes.text(0, 4, words, color=INK, va="center")
    for name, x, y in (("A", 0, 8.5), ("B", 8.2, 0.9), ("C", 8.2, 9.7)):
        axes.text(x, y, name, color=INK, fontweight="bold", ha="left" if name == "A" else "right")
    axes.set(xlim=(-0.1, 12.7), ylim=(24.9, -0.1))
    axes.axis("off")
    return picture


def matrix_banks(title, profiles):
    """{name: profile} one above the other: the banks of the 8 rows that `ldmatrix` reads first, as one matrix; banks in
    which rows meet are in contrast."""
    picture, panels = column_of_panels(title, ["row"] * len(profiles))
    for axes, (name, profile) in zip(panels, profiles.items(), strict=True):
        rows = most_requested(profile, space="shared", op="load").offsets[:8]
        banks = [[(start // 4 + word) % 32 for word in range(4)] for start in rows]
        for row, four in enumerate(banks):
            meet = sum(bank == four[0] for others in banks for bank in others) > 1
            axes.scatter(four, [row] * 4, marker="s", s=40, color=CONTRAST if meet else OURS, linewidths=0)
        axes.lines[0].remove()  # the zero of the iterations
        axes.text(31.5, 0.2, name, color=INK, ha="right", va="center")
        axes.set(xlim=(-0.8, 31.8), ylim=(7.8, -0.8), yticks=(0, 3, 7), xticks=(0, 8, 16, 24, 31))
    panels[-1].set_xlabel("bank")
    return picture


def stages(title, order, copies, reads):
    """{name: "cc...rr..."}, a warp's copies and reads of shared memory in their order, one panel each: when each tile
    is copied, with so many copies, and read, with so many reads."""
    picture, panels = column_of_panels(title, [f"tile, {name}" for name in order])
    for axes, steps in zip(panels, order.values(), strict=True):
        axes.lines[0].remove()
        for kind, each, colour in (("c", copies, CONTRAST), ("r", reads, OURS)):
            places = [n for n, step in enumerate(steps) if step == kind]
            for tile in range(len(places) // each):
                mine = places[tile * each:(tile + 1) * each]
                axes.barh(tile + 1, mine[-1] - mine[0] + 1, left=mine[0], color=colour, height=0.6)
        tiles = len([step for step in steps if step == "c"]) // copies
        axes.set(ylim=(tiles + 0.6, 0.4), yticks=range(1, tiles + 1), xlim=(0, len(steps)))
        if axes is panels[0]:
            axes.text(copies / 2, 1.9, "copied", color=CONTRAST, ha="left", va="center")
        axes.text(steps.index("r") + 1, 1, "read", color="white", ha="left", va="center")
    panels[-1].set_xlabel("memory requests of the first warp, in order")
    return picture


def _cell(corner, wide, colour):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, wide, 1, facecolor=colour, edgecolor=CONTEXT, linewidth=0.6)
