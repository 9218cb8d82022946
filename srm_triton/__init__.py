"""Triton-accelerated PyTorch layers for the spike response model (SRM), trained from spike times."""

import importlib
import importlib.util
import os
import warnings
from typing import Any

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
from srm_triton.operations import synaptic_operations
from srm_triton.ops.batch_norm import batch_norm
from srm_triton.ops.srm_membrane import srm_membrane
from srm_triton.ops.srm_scan import SRMTrace, srm_scan, srm_trace
from srm_triton.parameters import SRMParameters, SRMState
from srm_triton.pooling import SpikeAvgPool2d
from srm_triton.readout import SRMReadout
from srm_triton.recurrent import SRMRecurrent, SRMRecurrentState
from srm_triton.resnet import SpikingResNet18_2D
from srm_triton.tuning import tune

__version__ = "0.2.0"

__all__ = [
    "BatchNorm1d",
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
    "SpikeAvgPool2d",
    "SpikingResNet18_2D",
    "Watcher",
    "batch_norm",
    "calibrate_gain",
    "count_loss",
    "encode_direct",
    "encode_latency",
    "encode_rate",
    "enhanced_count_loss",
    "first_spike_cross_entropy",
    "predict",
    "predict_first_spike",
    "rate_cross_entropy",
    "spike_counts",
    "spiking_network",
    "srm_conv2d",
    "srm_linear",
    "srm_membrane",
    "srm_scan",
    "srm_trace",
    "stepwise_cross_entropy",
    "synaptic_operations",
    "time_constants",
    "tune",
    "use_backend",
    "van_rossum_loss",
    "watch",
]

_SUBPACKAGES = {
    "images": ("Denoised", "DenoisingState", "DenoisingTrace", "denoise_tv", "tv_objective"),
    "regression": ("ConvergenceWarning", "LinearRegression", "MSEGradients", "mse_gradients"),
    "sparse": (
        *("ResNet18_2D", "SparseLinear", "SparseRepresentation", "SparseStatistics"),
        *("soft_threshold", "sparse_encode", "sparse_statistics"),
    ),
}


def __getattr__(name: str) -> Any:
    """Sub-packages about other things than spiking layers, imported at first use, and their names of version 0.1."""
    for subpackage, names in _SUBPACKAGES.items():
        home = f"srm_triton.{subpackage}"
        if name == subpackage:
            return importlib.import_module(home)
        if name in names:
            warnings.warn(f"srm_triton.{name} is {home}.{name} now", DeprecationWarning, stacklevel=2)
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'srm_triton' has no attribute {name!r}")
