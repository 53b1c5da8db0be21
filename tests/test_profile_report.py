"""A profile's numbers, words and pictures, from a small profile written by hand."""

import json

import pytest
from mutants import Mutant

from minillama.profile_report import Counts, Profile

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
    race = {"kind": "race", "place": f"{path}:2", "other": "", "times": 3,
            "text": "kernel k, block (0,0,0), thread (1,0,0), k.cu:2: reads what thread (0,0,0) wrote"}
    early = {**race, "kind": "uninitialised"}
    kernel = {"kernel": "k", "launches": 1, "grid": "(1,1,1)", "block": "(32,1,1)", "shared_bytes": 0,
              "accesses": [store, load], "timeline": [[0, 32], [1, 16]],
              "events": [{"place": f"{path}:3", "what": "barrier", "times": 5, "lanes": 160}]}
    profile = Profile()
    profile.add(json.dumps({"kernels": [kernel], "findings": [race, dict(race), early]}))
    return profile


def test_ratios_follow_from_the_sums():
    c = Counts(requests=2, lanes=48, bytes=192, sectors=48, ideal_sectors=6, compulsory=128)
    assert (c.sectors_per_request, c.active_lanes, c.sector_efficiency) == (24, 24, 0.125)
    assert c.issued_over_compulsory == 32 * 48 / 128
    assert Counts().sector_efficiency == 1 and Counts().active_lanes == 0
    assert c + c == Counts(4, 96, 384, 96, 12, 256)


def test_totals_choose_by_space_operation_and_line(by_hand):
    assert by_hand.global_store.requests == 2 and by_hand.shared_load.conflicts == 1
    assert by_hand.global_load == Counts() == by_hand.total(line=3) == by_hand.total(kernel="other")
    assert by_hand.total(line=2).requests == 3
    assert by_hand.barriers == 5 and by_hand.mma == 0


def test_findings_of_one_line_are_one_and_a_race_says_it_better_than_an_early_read(by_hand):
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


def test_pictures_show_the_first_request(by_hand):
    points = {"sectors": by_hand.sectors_picture("one sector a lane").axes[0].collections,
              "banks": by_hand.banks_picture("two words a bank").axes[0].collections}
    columns = [tuple(xy) for group in points["sectors"] for xy in group.get_offsets()]
    assert sorted(columns) == [(i, i) for i in range(32)]
    crowded = points["banks"][0].get_offsets()
    assert sorted(map(tuple, crowded)) == sorted((2 * i % 32, i) for i in range(32))
    assert by_hand.lanes_picture("half the warp leaves").axes[0].get_ylabel() == "active lanes"
    with pytest.raises(ValueError, match="no access fits line=9"):
        by_hand.sectors_picture("", line=9)


MUTANTS = [
    Mutant("minillama.profile_report", "return 32 * self.sectors", "return self.sectors",
           test_ratios_follow_from_the_sums),
    Mutant("minillama.profile_report", "self.ideal_sectors / self.sectors", "self.sectors / self.ideal_sectors",
           test_ratios_follow_from_the_sums),
    Mutant("minillama.profile_report", "return self.lanes / self.requests", "return 32.0",
           test_ratios_follow_from_the_sums),
]
