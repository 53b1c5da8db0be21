"""One profile within another counts for both and ends neither."""

import pytest
import torch
from test_simt_profile import patterns, pytestmark, twins  # noqa: F401

from minillama import kernels


def test_a_profile_within_another_counts_for_both_and_ends_neither(patterns):  # noqa: F811
    rows = torch.zeros(512), torch.zeros(32)
    with kernels.profile(patterns) as whole:
        patterns.row(*rows)
        with kernels.profile(patterns) as part, pytest.raises(KeyError):
            patterns.row(*rows)
            patterns.row(*rows)
            raise KeyError
        with kernels.profile(patterns) as nothing:
            pass
        patterns.row(*rows)
        assert patterns.profiled
    assert not patterns.profiled
    assert [p.global_load.requests for p in (whole, part, nothing)] == [4, 2, 0]
    launches = [sum(kernel["launches"] for kernel in p.kernels.values()) for p in (whole, part, nothing)]
    assert launches == [4, 2, 0]


def test_what_is_found_within_counts_for_both(twins):  # noqa: F811
    with kernels.profile(twins) as whole:
        for _ in range(2):
            with kernels.profile(twins) as part:
                twins.read_before_written(torch.zeros(256), torch.zeros(256), 0)
    assert len(part.findings) == len(whole.findings) > 0
    assert [2 * found.times for found in part.findings] == [found.times for found in whole.findings]


def test_a_source_that_does_not_compile_is_not_left_profiled():
    broken = kernels.CudaSource('extern "C" void f() {\n  nothing;\n}\n')
    with pytest.raises(RuntimeError), kernels.profile(broken):
        pass
    assert not broken.profiled
