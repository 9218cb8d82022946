"""Triton-accelerated PyTorch layers for the spike response model (SRM), trained from spike times."""

from srm_triton.backend import use_backend
from srm_triton.initialization import calibrate_gain
from srm_triton.layers import BatchNorm1d, SpikeAvgPool2d, SRMConv2d, SRMLinear, SRMNeuron
from srm_triton.losses import count_loss, predict, reverse_gradient, spike_counts
from srm_triton.ops.batch_norm import batch_norm
from srm_triton.ops.spiking_affine import LabelledSpikes, srm_conv2d, srm_linear
from srm_triton.ops.srm_scan import SRMTrace, srm_scan, srm_trace
from srm_triton.parameters import SRMParameters

__all__ = [
    "BatchNorm1d",
    "LabelledSpikes",
    "SRMConv2d",
    "SRMLinear",
    "SRMNeuron",
    "SRMParameters",
    "SRMTrace",
    "SpikeAvgPool2d",
    "batch_norm",
    "calibrate_gain",
    "count_loss",
    "predict",
    "reverse_gradient",
    "spike_counts",
    "srm_conv2d",
    "srm_linear",
    "srm_scan",
    "srm_trace",
    "use_backend",
]
