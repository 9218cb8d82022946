"""Exchange of networks as graphs of NIR, the neuromorphic intermediate representation; needs the extra `nir`.

NIR states neurons in continuous time. With the forward Euler steps of length dt that SpikingJelly and snnTorch take,
the recursion of `srm_triton.ops.srm_scan` is that of

    τ_s = 1, τ_m finite    LIF    τ = τ_m·dt    r = τ_m     v_leak = v_reset = 0    v_threshold = θ
    τ_s = 1, τ_m = ∞       IF     r = 1/dt      v_reset = 0    v_threshold = θ
    τ_s > 1                CubaLIF, but for the reset: it sets the potential to 0 and leaves the synaptic current

and that of an `SRMReadout`, which resets nothing, of LI, I and CubaLI. A neuron of NIR with another gain g of its input
(LIF: r·dt/τ) fires with the threshold θ/g; one that rests at v_leak = v_reset with θ − v_leak. Source: Pedersen et al.,
"Neuromorphic intermediate representation: A unified instruction set for interoperable brain-inspired computing", Nature
Communications 2024.
"""

from srm_triton.nir.reading import from_nir
from srm_triton.nir.writing import to_nir

__all__ = ["from_nir", "to_nir"]
