"""The parts of the native kernel, timed."""

import pytest

from benchmarks import native_parts
from tests.conftest import needs_native

pytestmark = [needs_native, pytest.mark.slow]


def test_every_part_is_timed():
    parts = native_parts.measure(native_parts.Flags((12, 14, 1), (5, 3), rounds=20))
    assert all(time > 0 for time in parts.values())
    kernels = [name for name in parts if "kernel's" in name]
    assert kernels == ["input's gradient 2, kernel's 1"] + [
        f"kernel's gradient {layer}" for layer in (5, 4, 3, 2)
    ]
    # Together they are the whole, to what the cache and the timer do to parts of microseconds.
    whole, weights = parts.pop("all of a batch"), parts.pop("weights")
    assert 0.3 * whole < sum(parts.values()) < 3 * whole
    assert weights < whole
