"""Kernels in Triton and C and their launchers; a leaf that imports torch and triton only.

What every Triton kernel here keeps to:

- Values are converted to the accumulator type as they are loaded: float64 for float64 tensors, else float32.
- Every masked load states `other`.
- Offsets are int64 from the program id on: a tensor may hold more than 2³¹ elements.
- Sizes, strides and the neurons' constants are run-time arguments: another batch, length or threshold compiles nothing.
- A program's tile is bounded in elements a thread, whatever the shape.
- No atomics: sums are taken in two stages, so results are the same in every run.
- The scan is compiled without fused multiply-add: its spikes equal those of the eager reference bit for bit.
- A launcher checks nothing about its arguments: the operation in `srm_triton.ops` has done so.
"""

SRM_SCAN_RULES = {"event": 0, "arctan": 1, "fast_sigmoid": 2, "original": 3}  # how a spike passes its gradient on
SRM_SCAN_RISE = 0.05  # the rise of the potential at which a silent output neuron counts as firing, in the backward

MOST_LEVELS = 16  # different values of a tensor that is kept in codes


def srm_scan_chunk(steps: int, itemsize: int) -> int:
    """Steps held in registers, half as many in float64; the Triton backward restarts from a state kept once a chunk."""
    return 8 if steps <= 8 or itemsize == 8 else 16
