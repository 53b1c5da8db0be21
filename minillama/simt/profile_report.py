"""What a profile of emulated kernels holds: counts for each source line, findings as sentences, and tables.

A warp's load or store is one request. Global memory moves in sectors of 32 bytes; shared memory has 32 banks of 4 bytes
and serves a request in wavefronts, of which those beyond the fewest are conflicts. These are counts of the compiled
kernel's accesses, not times: docs/simt.md says what they leave out.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass
class Counts:
    """Sums over requests of one kind. Bytes are those the lanes asked for; compulsory ones are touched for the first
    time in their launch; sectors are fetched (32 bytes each), ideal_sectors the fewest that could hold the bytes."""

    requests: int = 0
    lanes: int = 0
    bytes: int = 0
    sectors: int = 0
    ideal_sectors: int = 0
    compulsory: int = 0
    wavefronts: int = 0
    conflicts: int = 0

    def __add__(self, other):
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def sectors_per_request(self):
        return self.sectors / self.requests if self.requests else 0.0

    @property
    def active_lanes(self):
        """Mean number of lanes, of 32, that take part in a request."""
        return self.lanes / self.requests if self.requests else 0.0

    @property
    def sector_efficiency(self):
        """Fewest possible sectors over fetched ones, at most 1."""
        return self.ideal_sectors / self.sectors if self.sectors else 1.0

    @property
    def issued_over_compulsory(self):
        """Bytes of all fetched sectors over bytes touched for the first time: 1 is the least a launch can move."""
        return 32 * self.sectors / self.compulsory if self.compulsory else 0.0


@dataclass
class Access:
    """One load, store or atomic in the source: `space` is "global" or "shared", `width` its bytes, `offsets` those of
    its first request's 32 lanes in their buffer (None: not active)."""

    kernel: str
    file: str
    line: int
    op: str
    space: str
    width: int
    offsets: list
    counts: Counts
    site: int = 0


@dataclass
class Finding:
    """One mistake: its kind ("race", "uninitialised", "out of bounds", "misaligned", "asynchronous copy" or "stopped"),
    the sentence that explains it, its place "file:line" and that of the other access of a race, and how often."""

    kind: str
    text: str
    place: str
    other: str
    times: int

    def __str__(self):
        return self.text


class Profile:
    """The result of `minillama.kernels.profile()`, complete when its block is left."""

    def __init__(self):
        self.kernels, self.accesses, self.findings = {}, [], []

    def add(self, text):
        """Take in what one library counted (its JSON)."""
        data = json.loads(text)
        for kernel in data["kernels"]:
            self.kernels[kernel["kernel"]] = kernel
            for row in kernel["accesses"]:
                file, line = _place(row["place"])
                counts = Counts(*(row[field.name] for field in fields(Counts)))
                self.accesses.append(Access(kernel["kernel"], file, line, row["op"], row["space"], row["width"],
                                            row["offsets"], counts, row["site"]))
        self.findings += [Finding(**row) for row in data["findings"]]

    # ---- numbers

    def total(self, space=None, op=None, kernel=None, line=None):
        """The sum of all accesses that fit: space "global" or "shared", op "load", "store" or "atomic", part of a
        kernel's name, a line number."""
        chosen = (access.counts for access in self.accesses if space in (None, access.space)
                  and op in (None, access.op) and (kernel is None or kernel in access.kernel)
                  and line in (None, access.line))
        return sum(chosen, Counts())

    global_load = property(lambda self: self.total("global", "load"))
    global_store = property(lambda self: self.total("global", "store"))
    shared_load = property(lambda self: self.total("shared", "load"))
    shared_store = property(lambda self: self.total("shared", "store"))

    def events(self, what, kernel=None):
        """How often blocks passed a "barrier", or warps another operation, such as "mma_bf16_16816()"; `what` may be
        the beginning of its name."""
        return sum(event["times"] for name, one in self.kernels.items() if kernel is None or kernel in name
                   for event in one["events"] if event["what"].startswith(what))

    barriers = property(lambda self: self.events("barrier"))
    mma = property(lambda self: self.events("mma_") + self.events("wmma::mma"))

    # ---- words

    def json(self):
        """All of it as JSON text."""
        findings = [vars(finding) for finding in self.findings]
        return json.dumps({"kernels": list(self.kernels.values()), "findings": findings}, indent=1)

    def table(self):
        """One row for each kernel and kind of access, and the findings below."""
        rows = ["kernel                     access         requests  lanes  sect/req  issued/comp  conflicts"]
        for kernel in self.kernels:
            for space in ("global", "shared"):
                for op in ("load", "store", "atomic"):
                    c = self.total(space, op, kernel)
                    if not c.requests:
                        continue
                    memory = (f"{c.sectors_per_request:>8.2f}  {c.issued_over_compulsory:>11.2f}  {'-':>9}"
                              if space == "global" else f"{'-':>8}  {'-':>11}  {c.conflicts:>9}")
                    rows.append(f"{kernel[:26]:<26} {space + ' ' + op:<13} {c.requests:>9}  {c.active_lanes:>5.1f}  "
                                f"{memory}")
            rows.append(f"{kernel[:26]:<26} barriers passed by blocks: {self.events('barrier', kernel)}, "
                        f"tensor-core products of warps: {self.events('mma_', kernel)}")
        rows += [f"{finding.text} ({finding.times} times)" for finding in self.findings] or ["nothing found wrong"]
        return "\n".join(rows)

    def annotate(self, file):
        """The source with counts beside its lines: G global, S shared, L load, W store, A atomic; then requests x mean
        lanes, and sectors per request or conflicts. `file` is a path or the end of one. ValueError if unknown."""
        paths = {access.file for access in self.accesses if access.file.endswith(str(file))}
        paths |= {_place(event["place"])[0] for one in self.kernels.values() for event in one["events"]
                  if _place(event["place"])[0].endswith(str(file))}
        if not paths:
            known = sorted({access.file for access in self.accesses})
            raise ValueError(f"nothing was counted in {str(file)!r}; there is {', '.join(known) or 'nothing'}")
        path, notes = min(paths), defaultdict(list)
        grouped = defaultdict(Counts)
        for access in self.accesses:
            if access.file == path:
                grouped[access.line, access.space, access.op] += access.counts
        for (line, space, op), c in sorted(grouped.items()):
            more = f"{c.sectors_per_request:.2f} sectors" if space == "global" else f"{c.conflicts} conflicts"
            kind = space[0].upper() + {"load": "L", "store": "W", "atomic": "A"}[op]
            notes[line].append(f"{kind} {c.requests} x {c.active_lanes:.1f}, {more}")
        for one in self.kernels.values():
            for event in one["events"]:
                if _place(event["place"])[0] == path:
                    notes[_place(event["place"])[1]].append(f"{event['what']} {event['times']}")
        for finding in self.findings:
            for place in {finding.place, finding.other}:
                if place and _place(place)[0] == path:
                    notes[_place(place)[1]].append(f"! {finding.kind}")
        width = max((len("; ".join(words)) for words in notes.values()), default=0)
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return "\n".join(f"{'; '.join(notes[n]):<{width}} | {n:>4} {text}".rstrip() for n, text in enumerate(lines, 1))


def _place(text):
    file, _, line = text.rpartition(":")
    return (file, int(line)) if line.isdigit() else (text, 0)
