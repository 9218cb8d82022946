"""Triton-accelerated PyTorch layers for the spike response model (SRM), trained from spike times."""

import importlib.util
import os
import warnings

if importlib.util.find_spec("srm_triton.kernels") is None:  # an installation maps kernels/ to it
    raise ImportError(
        "srm_triton is not installed, and in a clone its kernels lie elsewhere; run: "
        f"pip install --editable {os.path.dirname(__path__[0])}"
    )

with warnings.catch_warnings():  # torch says so whenever it is imported; NumPy is needed by extras only
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    import torch  # noqa: F401

from srm_triton.affine import srm_conv2d, srm_linear
from srm_triton.backend import use_backend
from srm_triton.denoise import Denoised, DenoisingTrace, denoise_tv, tv_objective
from srm_triton.diagnosis import Watcher, watch
from srm_triton.encoders import encode_direct, encode_latency, encode_rate
from srm_triton.initialization import calibrate_gain, time_constants
from srm_triton.layers import SRMAffine, SRMConv1d, SRMConv2d, SRMConv3d, SRMLinear
from srm_triton.losses import (
    count_loss,
    enhanced_count_loss,
    first_spike_cross_entropy,
    predict,
    predict_first_spike,
    rate_cross_entropy,
    spike_counts,
    stepwise_cross_entropy,
    van_rossum_loss,
)
from srm_triton.networks import spiking_network
from srm_triton.neuron import SRMNeuron
from srm_triton.normalization import BatchNorm1d
from srm_triton.ops.batch_norm import batch_norm
from srm_triton.ops.shrink import soft_threshold
from srm_triton.ops.srm_membrane import srm_membrane
from srm_triton.ops.srm_scan import SRMTrace, srm_scan, srm_trace
from srm_triton.parameters import SRMParameters, SRMState
from srm_triton.pooling import SpikeAvgPool2d
from srm_triton.readout import SRMReadout
from srm_triton.recurrent import SRMRecurrent, SRMRecurrentState
from srm_triton.regression import ConvergenceWarning, LinearRegression, MSEGradients, mse_gradients
from srm_triton.resnet import ResNet18_2D, SpikingResNet18_2D
from srm_triton.sparse_code import SparseRepresentation, SparseStatistics, sparse_encode, sparse_statistics
from srm_triton.sparse_linear import SparseLinear
from srm_triton.split_bregman import DenoisingState

__version__ = "0.2.0"

__all__ = [
    "BatchNorm1d",
    "ConvergenceWarning",
    "Denoised",
    "DenoisingState",
    "DenoisingTrace",
    "LinearRegression",
    "MSEGradients",
    "ResNet18_2D",
    "SRMAffine",
    "SRMConv1d",
    "SRMConv2d",
    "SRMConv3d",
    "SRMLinear",
    "SRMNeuron",
    "SRMParameters",
    "SRMReadout",
    "SRMRecurrent",
    "SRMRecurrentState",
    "SRMState",
    "SRMTrace",
    "SparseLinear",
    "SparseRepresentation",
    "SparseStatistics",
    "SpikeAvgPool2d",
    "SpikingResNet18_2D",
    "Watcher",
    "batch_norm",
    "calibrate_gain",
    "count_loss",
    "denoise_tv",
    "encode_direct",
    "encode_latency",
    "encode_rate",
    "enhanced_count_loss",
    "first_spike_cross_entropy",
    "mse_gradients",
    "predict",
    "predict_first_spike",
    "rate_cross_entropy",
    "soft_threshold",
    "sparse_encode",
    "sparse_statistics",
    "spike_counts",
    "spiking_network",
    "srm_conv2d",
    "srm_linear",
    "srm_membrane",
    "srm_scan",
    "srm_trace",
    "stepwise_cross_entropy",
    "time_constants",
    "tv_objective",
    "use_backend",
    "van_rossum_loss",
    "watch",
]
