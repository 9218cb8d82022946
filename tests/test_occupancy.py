"""The model of occupancy against values worked out by hand."""

import pytest
from occupancy import resident_warps


@pytest.mark.parametrize(
    ("target", "registers", "shared", "num_warps", "warps"),
    [
        ("sm_90", 64, 0, 4, 32),  # 65,536 / (64 · 32)
        ("sm_90", 81, 0, 4, 20),  # as 88
        ("sm_90", 255, 0, 8, 8),
        ("sm_90", 255, 0, 16, 0),  # cannot be launched
        ("sm_90", 24, 0, 4, 64),  # all
        ("sm_90", 16, 0, 1, 32),  # programs
        ("sm_90", 32, 32 * 1024, 4, 24),  # 228 / 33 programs
        ("sm_80", 40, 0, 4, 48),  # 12 in each partition, where 12.8 would fit
        ("sm_86", 40, 0, 4, 48),
        ("sm_89", 16, 0, 1, 24),
        ("sm_120", 80, 0, 4, 24),
        ("sm_75", 40, 32 * 1024, 4, 8),
        ("gfx942", 64, 0, 2, 32),
        ("gfx942", 81, 0, 2, 20),  # 5 waves a SIMD unit
        ("gfx942", 173, 0, 2, 8),
        ("gfx90a", 16, 0, 1, 32),
        ("gfx950", 64, 64 * 1024, 4, 8),
        ("gfx1100", 92, 0, 4, 32),  # 16 waves of 96 registers
        ("gfx1100", 121, 0, 4, 20),
    ],
)
def test_by_hand(target, registers, shared, num_warps, warps):
    assert resident_warps(target, registers, shared, num_warps) == warps
