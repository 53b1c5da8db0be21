"""A profile's numbers, words and pictures, from a small profile written by hand."""

import json

import pytest
from mutants import Mutant

from lessons import profile_pictures
from minillama.simt.profile_report import Counts, Profile

SOURCE = "__global__ void k(float* x) {\n  x[8 * threadIdx.x] = tile[2 * threadIdx.x];\n  __syncthreads();\n}\n"


def row(place, op, space, offsets, **counts):
    zeros = dict.fromkeys("requests lanes bytes sectors ideal_sectors compulsory wavefronts conflicts".split(), 0)
    return {"site": 0, "place": place, "op": op, "space": space, "width": 4, "offsets": offsets, **zeros, **counts}


@pytest.fixture
def by_hand(tmp_path):
    """One request of 32 lanes that stores 32 bytes apart what it loads from every second word."""
    path = tmp_path / "k.cu"
    path.write_text(SOURCE)
    store = row(f"{path}:2", "store", "global", [32 * i for i in range(32)], requests=2, lanes=48, bytes=192,
                sectors=48, ideal_sectors=6, compulsory=128)
    load = row(f"{path}:2", "load", "shared", [8 * i for i in range(32)], requests=1, lanes=32, bytes=128, wavefronts=2,
               conflicts=1)
    race = {"kind": "race", "place": f"{path}:2", "other": "", "times": 6,
            "text": "kernel k, block (0,0,0), thread (1,0,0), k.cu:2: reads what thread (0,0,0) wrote"}
    kernel = {"kernel": "k", "launches": 1, "grid": "(1,1,1)", "block": "(32,1,1)", "shared_bytes": 0,
              "accesses": [store, load], "timeline": [[0, 32], [1, 16]],
              "events": [{"place": f"{path}:3", "what": "barrier", "times": 5, "lanes": 160}]}
    profile = Profile()
    profile.add(json.dumps({"kernels": [kernel], "findings": [race]}))
    return profile


def test_ratios_follow_from_the_sums():
    c = Counts(requests=2, lanes=48, bytes=192, sectors=48, ideal_sectors=6, compulsory=128)
    assert (c.sectors_per_request, c.active_lanes, c.sector_efficiency) == (24, 24, 0.125)
    assert c.issued_over_compulsory == 32 * 48 / 128
    assert Counts().sector_efficiency == 1 and Counts().active_lanes == 0 == Counts().sectors_per_request
    assert Counts().issued_over_compulsory == 0
    assert c + c == Counts(4, 96, 384, 96, 12, 256)


def test_totals_choose_by_space_operation_and_line(by_hand):
    assert by_hand.global_store.requests == 2 and by_hand.shared_load.conflicts == 1
    assert by_hand.global_load == Counts() == by_hand.total(line=3) == by_hand.total(kernel="other")
    assert by_hand.total(line=2).requests == 3
    assert by_hand.barriers == 5 and by_hand.mma == 0


def test_a_finding_reads_as_its_sentence(by_hand):
    assert [(finding.kind, finding.times) for finding in by_hand.findings] == [("race", 6)]
    assert str(by_hand.findings[0]).endswith("reads what thread (0,0,0) wrote")


def test_the_table_has_a_row_for_each_kind_of_access(by_hand):
    lines = by_hand.table().splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["k", "global", "store", "2", "24.0", "24.00", "12.00", "-"]
    assert lines[2].split() == ["k", "shared", "load", "1", "32.0", "-", "-", "1"]
    assert lines[4].endswith("(6 times)")


def test_the_source_is_annotated_line_by_line(by_hand):
    lines = by_hand.annotate("k.cu").splitlines()
    assert lines[0].startswith(" ") and lines[0].endswith("|    1 __global__ void k(float* x) {")
    assert lines[1].startswith("GW 2 x 24.0, 24.00 sectors; SL 1 x 32.0, 1 conflicts; ! race")
    assert lines[2].startswith("barrier 5 ")
    with pytest.raises(ValueError, match="nothing was counted in 'other.cu'; there is .*k.cu"):
        by_hand.annotate("other.cu")


def test_json_holds_everything(by_hand):
    data = json.loads(by_hand.json())
    assert data["kernels"][0]["accesses"][0]["sectors"] == 48 and data["findings"][0]["times"] == 6


def kernel(name, path, accesses=(), events=(), timeline=()):
    return {"kernel": name, "launches": 1, "grid": "(1,1,1)", "block": "(32,1,1)", "shared_bytes": 0,
            "accesses": [dict(access, place=f"{path}:{access['place']}") for access in accesses],
            "timeline": list(timeline), "events": [dict(event, place=f"{path}:{event['place']}") for event in events]}


def profile_of(*kernels, findings=()):
    profile = Profile()
    profile.add(json.dumps({"kernels": kernels, "findings": findings}))
    return profile


LEFT, RIGHT = [8 * i for i in range(32)], [4 * i if i % 2 else None for i in range(32)]


@pytest.fixture
def two_kernels(tmp_path):
    """Line 7 of one file in two kernels, with loads, stores and atomics of both spaces; more lines, more events."""
    path = tmp_path / "two.cu"
    path.write_text("\n".join(f"line {n}" for n in range(1, 12)) + "\n")
    first = kernel("reduce_rows", path, [
        row(7, "load", "global", LEFT, requests=2, lanes=64, bytes=256, sectors=16, ideal_sectors=8, compulsory=256),
        row(7, "load", "global", RIGHT, requests=5, lanes=80, bytes=320, sectors=24, ideal_sectors=20, compulsory=64),
        row(7, "atomic", "shared", LEFT, requests=3, lanes=96, bytes=384, wavefronts=9, conflicts=6),
        row(9, "atomic", "global", RIGHT, requests=1, lanes=16, bytes=64, sectors=4, ideal_sectors=2)],
        [{"place": 8, "what": "barrier", "times": 4, "lanes": 128},
         {"place": 9, "what": "mma_bf16_16816()", "times": 6, "lanes": 192}], [[0, 32], [1, 7], [2, 1]])
    second = kernel("scale", path, [
        row(7, "store", "shared", RIGHT, requests=4, lanes=64, bytes=256, wavefronts=4),
        row(3, "load", "global", LEFT, requests=9, lanes=9, bytes=36, sectors=9, ideal_sectors=9, compulsory=36)],
        [{"place": 10, "what": "barrier", "times": 10, "lanes": 320},
         {"place": 10, "what": "wmma::mma_sync()", "times": 3, "lanes": 96}], [[0, 16]])
    return profile_of(first, second)


def test_sums_and_events_are_chosen_by_a_part_of_the_kernels_name(two_kernels):
    p = two_kernels
    assert [p.total(kernel=part).requests for part in ("reduce", "scale", "e", "rows", "none")] == [11, 13, 24, 11, 0]
    assert (p.total("shared").requests, p.total("global", line=7).requests, p.total(op="atomic").requests) == (7, 7, 4)
    assert (p.global_load.requests, p.global_store.requests, p.shared_load.requests) == (16, 0, 0)
    assert (p.shared_store.lanes, p.shared_store.wavefronts) == (64, 4)
    assert [p.events("barrier", part) for part in (None, "reduce", "scale")] == [14, 4, 10]
    assert (p.barriers, p.mma, p.events("mma_bf16"), p.events("mma_fp16")) == (14, 9, 6, 0)


def test_the_table_is_in_the_order_of_kernels_spaces_and_operations(two_kernels):
    lines = [line.split() for line in two_kernels.table().splitlines()]
    assert lines[1:] == [
        ["reduce_rows", "global", "load", "7", "20.6", "5.71", "4.00", "-"],  # 144 / 7 lanes, 40 / 7; 32 40 / 320
        ["reduce_rows", "global", "atomic", "1", "16.0", "4.00", "0.00", "-"],
        ["reduce_rows", "shared", "atomic", "3", "32.0", "-", "-", "6"],
        "reduce_rows barriers passed by blocks: 4, tensor-core products of warps: 6".split(),
        ["scale", "global", "load", "9", "1.0", "1.00", "8.00", "-"],
        ["scale", "shared", "store", "4", "16.0", "-", "-", "0"],
        "scale barriers passed by blocks: 10, tensor-core products of warps: 0".split(), "nothing found wrong".split()]
    assert len({len(line) for line in two_kernels.table().splitlines()[:4]}) == 1, "the columns stand under their heads"


def test_beside_a_line_stand_all_its_counts_by_space_and_operation(two_kernels):
    lines = two_kernels.annotate("two.cu").splitlines()
    notes = [line.split(" | ")[0].rstrip() for line in lines]
    assert notes[6] == "GL 7 x 20.6, 5.71 sectors; SA 3 x 32.0, 6 conflicts; SW 4 x 16.0, 0 conflicts"
    assert notes[2] == "GL 9 x 1.0, 1.00 sectors" and notes[8] == "GA 1 x 16.0, 4.00 sectors; mma_bf16_16816() 6"
    assert (notes[7], notes[9], notes[0]) == ("barrier 4", "barrier 10; wmma::mma_sync() 3", "")
    assert {line.index(" | ") for line in lines} == {len(notes[6])} and lines[10].endswith(" |   11 line 11")


def test_a_race_is_noted_at_both_its_places_and_a_file_of_events_alone_is_known(tmp_path):
    path = tmp_path / "k.cu"
    path.write_text("a\nb\nc")
    race = {"kind": "race", "place": f"{path}:1", "other": f"{path}:3", "times": 1, "text": "kernel k, block (0,0,0)"}
    barrier = {"place": 2, "what": "barrier", "times": 1, "lanes": 32}
    found = profile_of(kernel("k", path, (), [barrier]), findings=[race])
    assert [line.split("|")[0].strip() for line in found.annotate("k.cu").splitlines()] == ["! race", "barrier 1",
                                                                                          "! race"]
    with pytest.raises(ValueError, match="in 'x.cu'; there is nothing"):
        found.annotate("x.cu")


def test_the_access_with_the_most_requests_is_drawn(two_kernels):
    p, most = two_kernels, profile_pictures.most_requested
    assert most(p).counts.requests == 9 and most(p, line=7).offsets == RIGHT and most(p, line=7).site == 0
    assert most(p, space="shared").counts.requests == 4 and most(p, op="atomic").space == "shared"
    assert most(p, kernel="reduce").counts.requests == 5 and most(p, kernel="rows", op="atomic").line == 7
    for which in ({"line": 4}, {"kernel": "none"}, {"op": "store", "space": "global"}):
        with pytest.raises(ValueError, match="no access fits"):
            most(p, **which)


def drawn(axes):
    """{colour: points} of a picture."""
    return {tuple(group.get_facecolor()[0][:3]): {tuple(map(int, xy)) for xy in group.get_offsets()}
            for group in axes.collections}


def test_sectors_are_counted_from_the_first_and_far_ones_stand_in_their_order(tmp_path):
    for far, columns in ((64, [0, 2]), (255 * 32, [0, 255]), (256 * 32, [0, 1])):
        offsets = [96, None, 96 + far + 28, *[None] * 29]
        p = profile_of(kernel("k", "f", [dict(row(1, "load", "global", offsets, requests=1), width=8)]))
        axes = profile_pictures.sectors(p, "near").axes[0]
        points = {(0, 0), (columns[1], 2), (columns[1] + 1, 2)}  # 8 bytes from byte 28 lie in two sectors
        if far == 255 * 32:
            points = {(0, 0), (1, 2), (2, 2)}  # the second of them is 256 away
        (found,) = drawn(axes).values()
        assert found == points
        assert axes.get_xlim() == pytest.approx((-0.8, max(max(x for x, _ in points), 7) + 0.8))
        assert tuple(axes.get_ylim()) == (32, -1) and list(axes.get_yticks()) == [0, 8, 16, 24, 31]
        assert (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()) == ("near", "sector of 32 bytes", "lane")


def test_banks_are_counted_from_where_shared_memory_begins_and_other_words_in_a_bank_are_in_contrast():
    from matplotlib.colors import to_rgb

    from minillama.plots import CONTRAST, OURS

    offsets = [1000, 1000, 1000 + 128, 1000 + 4, *[None] * 28]  # lanes 0 and 1: one word; lane 2: another in its bank
    accesses = [row(1, "load", "shared", offsets, requests=2), row(2, "store", "shared", [1000] + [None] * 31),
                row(2, "store", "global", [4] + [None] * 31)]
    other = kernel("other", "f", [row(1, "load", "shared", [8] + [None] * 31)])
    axes = profile_pictures.banks(profile_of(kernel("k", "f", accesses), other), "").axes[0]
    assert drawn(axes) == {to_rgb(OURS): {(1, 3)}, to_rgb(CONTRAST): {(0, 0), (0, 1), (0, 2)}}
    assert axes.get_xlim() == pytest.approx((-0.8, 31.8))
    wide = dict(row(1, "load", "shared", [256, 256 + 8] + [None] * 30, requests=1), width=8)
    wide = profile_pictures.banks(profile_of(kernel("k", "f", [wide])), "").axes[0]
    assert drawn(wide) == {to_rgb(OURS): {(0, 0), (1, 0), (2, 1), (3, 1)}}


def test_lanes_are_drawn_request_by_request_and_the_last_to_its_end(two_kernels):
    for name, lanes in ((None, [32, 7, 1]), ("scale", [16])):
        axes = profile_pictures.lanes(two_kernels, "", name).axes[0]
        (area,) = axes.collections
        corners = {tuple(xy) for xy in area.get_paths()[0].vertices}
        for i, count in enumerate(lanes, 1):
            assert {(i, count), (i + 1, count)} <= corners
        assert max(x for x, _ in corners) == len(lanes) + 1 == axes.get_xlim()[1] and axes.get_xlim()[0] == 1
        assert list(axes.lines[0].get_ydata()) == [32, 32] and axes.get_ylim() == (0, 34)
        assert list(axes.get_yticks()) == [0, 8, 16, 24, 32]


def test_pictures_show_the_first_request(by_hand):
    points = {"sectors": profile_pictures.sectors(by_hand, "one sector a lane").axes[0].collections,
              "banks": profile_pictures.banks(by_hand, "two words a bank").axes[0].collections}
    columns = [tuple(xy) for group in points["sectors"] for xy in group.get_offsets()]
    assert sorted(columns) == [(i, i) for i in range(32)]
    crowded = points["banks"][0].get_offsets()
    assert sorted(map(tuple, crowded)) == sorted((2 * i % 32, i) for i in range(32))
    assert profile_pictures.lanes(by_hand, "half the warp leaves").axes[0].get_ylabel() == "active lanes"
    with pytest.raises(ValueError, match="no access fits line=9"):
        profile_pictures.sectors(by_hand, "", line=9)


MUTANTS = [
    Mutant("minillama.simt.profile_report", "return 32 * self.sectors", "return self.sectors",
           test_ratios_follow_from_the_sums),
    Mutant("minillama.simt.profile_report", "self.ideal_sectors / self.sectors", "self.sectors / self.ideal_sectors",
           test_ratios_follow_from_the_sums),
    Mutant("minillama.simt.profile_report", "return self.lanes / self.requests", "return 32.0",
           test_ratios_follow_from_the_sums),
]
