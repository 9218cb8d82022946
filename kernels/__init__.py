"""Kernels in Triton and C and their launchers; a leaf that imports torch and triton only.

What every Triton kernel here keeps to:

- Values are converted to the accumulator type as they are loaded: float64 for float64 tensors, else float32.
- Every masked load states `other`.
- Offsets are int64 from the program id on: a tensor may hold more than 2³¹ elements.
- Sizes and strides are run-time arguments: a new batch size or sequence length compiles nothing.
- No atomics: sums are taken in two stages, so results are the same in every run.
- The scan is compiled without fused multiply-add: its spikes equal those of the eager reference bit for bit.
- A launcher checks nothing about its arguments: the operation in `srm_triton.ops` has done so.
"""

SRM_SCAN_CHUNK = 16  # steps held in registers; the Triton backward restarts from a state stored once per chunk
