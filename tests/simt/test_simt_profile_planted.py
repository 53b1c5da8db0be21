"""The laws of the profiler see every planted fault of its C++: one wrong expression makes a count or a verdict wrong.

csrc/simt/profile is compiled once more, each marked expression as `planted == n ? wrong : right`.
"""

import ctypes
import shutil

import pytest
import test_simt_profile as laws
import torch
from planted_sources import plant_all
from test_simt_profile import (
    test_each_mistake_is_named_with_its_lines_under_every_schedule_and_its_sound_twin_is_not_accused as twin_law,
)

from minillama import kernels
from minillama.simt import emulator_build

pytestmark = [pytest.mark.long, laws.pytestmark]
COUNTS, SHADOW, ACCESSES = "requests.cpp", "shadow.cpp", "accesses.cpp"

FAULTS = [  # file; text that occurs there once, with @what is right@ in it; what is wrong instead; who must see it
    (COUNTS, "all.ideal_sectors += @uint64_t(addresses.count * site.bytes + kSector - 1)@ / kSector",
     "uint64_t(addresses.count * site.bytes)", "broadcast"),
    (COUNTS, "word = @request.address(__builtin_ctz(rest)) / 4@;",
     "request.address(__builtin_ctz(rest)) / 8", "banks 2"),
    (COUNTS, "site.bytes == 8 ? @16@ : kWarp;", "kWarp", "banks 6"),
    (COUNTS, "site.bytes >= 16 ? @8@ : site.bytes", "16", "banks 8"),
    (COUNTS, "site.counters.conflicts += @uint64_t(most - 1)@;", "uint64_t(most)", "banks 6"),
    (COUNTS, "fresh += uint64_t(__builtin_popcountll(@mask & ~bits[word]@));", "mask", "again"),
    (COUNTS, "all.lanes += @uint64_t(lanes)@;", "uint64_t(kWarp)", "divergent"),
    (SHADOW, "if (mark.thread / kWarp != warp) return @true@;", "false", "read_before_written"),
    (SHADOW, "all_met[w] = @now@;", "0", "no_syncwarp"),
    (SHADOW, "const bool unwritten = @writer.epoch < block_epoch@;", "false", "halo_not_loaded"),
    (SHADOW, "const bool same = @std::memcmp(doubt.address, doubt.old, size_t(doubt.bytes)) == 0@;", "true",
     "two_values_stored"),
    (SHADOW, "cell.in_flight = begins ? @block_epoch@ : 0;", "0", "no_wait"),
    (ACCESSES, "if (aligned && (address & uintptr_t(@bytes - 1@)))", "3", "global_vector"),
    (ACCESSES, "if (address >= buffer.begin && address + uintptr_t(bytes) <= @buffer.end@) return", "buffer.end + 64",
     "reads_past_the_end"),
]


def with_faults(folder):
    """A copy of csrc in `folder` in which fault n is in force while the variable `planted` is n."""
    shutil.copytree(emulator_build.source_folder(), folder)
    plant_all((number, folder / "simt" / "profile" / name, text, wrong)
              for number, (name, text, wrong, _) in enumerate(FAULTS, 1))
    library = folder / "simt" / "profile" / "library.cpp"
    library.write_text('extern "C" int planted;\nint planted = 0;\n' + library.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(number) -> (patterns, twins): the sources of the laws over the profiler with that fault; 0 is none."""
    folder = tmp_path_factory.mktemp("planted")
    with_faults(folder / "csrc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulator_build, "source_folder", lambda: folder / "csrc")
        patch.setattr(emulator_build, "build_folder", lambda: folder / "build")
        sources = [kernels.CudaSource(laws.FOLDER / f"{name}.cu") for name in ("patterns", "twins")]

        def plant(number):
            for source in sources:
                source.profiled = True
                ctypes.c_int.in_dll(source.library(), "planted").value = number
            return sources

        yield plant


def check(law, patterns, twins):
    """The law of that name holds: a count of `patterns`, or the verdict on one of `twins`."""
    if law in laws.TWINS:
        twin_law(twins, law)
    elif law.startswith("banks"):
        number = int(law.split()[1])
        [(wavefronts, conflicts)] = [(w, c) for version, w, c in BANKS if version == number]
        laws.test_lanes_that_want_different_words_of_a_bank_take_turns(patterns, number, wavefronts, conflicts)
    elif law == "broadcast":
        laws.test_a_request_fetches_the_sectors_its_lanes_touch(patterns, law, torch.float32, 1, 4)
    elif law == "again":
        laws.test_compulsory_bytes_are_counted_once_in_a_launch_and_issued_ones_each_time(patterns)
    else:
        laws.test_lanes_that_do_not_take_part_are_not_counted(patterns)


BANKS = [(2, 2, 1), (6, 2, 0), (8, 4, 0)]  # version of the kernel, wavefronts, conflicts


def test_without_a_fault_every_law_holds(planted):
    sources = planted(0)
    for law in {law for *_, law in FAULTS}:
        check(law, *sources)


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{name}: {text} -> {wrong}"
                                                                   for name, text, wrong, _ in FAULTS])
def test_every_fault_breaks_its_law(planted, number):
    with pytest.raises(AssertionError):
        check(FAULTS[number - 1][3], *planted(number))
