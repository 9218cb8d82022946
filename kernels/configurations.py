"""What the launchers of the scan may choose, none of which changes a result, and the choices worth timing.

Batch normalisation has no such choice: its tiles and warps decide the order of its sums.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Configuration:
    """How many neurons a program takes, a power of 2, and with how many warps."""

    block: int
    num_warps: int


# Up to four neurons a thread in the forward. In the backward, whose registers hold no more, one a thread, where a warp
# has 32 threads (NVIDIA) or 64 (AMD).
CANDIDATES = {
    "srm_scan_forward": (
        Configuration(32, 1),
        Configuration(64, 1),
        Configuration(128, 1),
        Configuration(128, 2),
        Configuration(128, 4),
        Configuration(256, 4),
        Configuration(512, 4),
        Configuration(512, 8),
    ),
    "srm_scan_backward": (
        Configuration(32, 1),
        Configuration(64, 1),
        Configuration(64, 2),
        Configuration(128, 2),
        Configuration(128, 4),
        Configuration(256, 4),
        Configuration(256, 8),
        Configuration(512, 16),
    ),
}
