"""Networks of other libraries as layers of this package, and the reverse, where the mathematics agrees.

A leaky integrate-and-fire neuron of this package is one with τ_s = 1, whose recursion (`srm_triton.ops.srm_scan`) is

    u ← a·u + x          spike = u > θ          at a spike: u = 0          a = 1 − 1/τ_m

Networks are chains in `nn.Sequential`: affine maps with neurons behind them, average pooling, flattening. Batch
normalisation in evaluation is taken into the weights before it. What is not the same gets an error that names the
difference. Constants that are learned are taken as they are.

SpikingJelly and snnTorch are needed by the functions with their names only. Graphs of NIR: `srm_triton.nir`.
"""

from srm_triton.convert.pytorch import to_torch
from srm_triton.convert.snntorch import from_snntorch, to_snntorch
from srm_triton.convert.spikingjelly import from_spikingjelly, to_spikingjelly

__all__ = ["from_snntorch", "from_spikingjelly", "to_snntorch", "to_spikingjelly", "to_torch"]
