"""Triton-accelerated PyTorch layers for the spike response model (SRM), trained from spike times."""

from srm_triton.backend import use_backend
from srm_triton.ops.srm_scan import SRMTrace, srm_scan, srm_trace
from srm_triton.parameters import SRMParameters

__all__ = ["SRMParameters", "SRMTrace", "srm_scan", "srm_trace", "use_backend"]
