"""Training of a classifier of spiking layers: configuration, network, the loop over epochs, and checkpoints that resume it.

An interrupted run that is resumed ends with the weights and the history of one that was not: a checkpoint holds everything
that the next epoch depends on, and is written after each epoch.
"""

import contextlib
import math
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn

from srm_triton.data import LabelledImages, encode_direct
from srm_triton.initialization import calibrate_gain
from srm_triton.layers import SpikeAvgPool2d, SRMConv2d, SRMLayer, SRMLinear
from srm_triton.losses import count_loss, predict

DataName = Literal["digits", "fashion-mnist"]
ModelName = Literal["mlp", "conv"]

_FORMAT = "srm-triton training run"
_VERSION = 1
_GRADIENT_NORM = 1.0
_EVALUATION_BATCH = 500
_USUAL_HIDDEN = {"mlp": (256,), "conv": (16, 32)}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file, what was found and what is allowed."""


@dataclass(frozen=True)
class TrainingConfig:
    """What determines a training run, given the data and the machine.

    Args:
        data: name of the data set.
        model: ``"mlp"``, fully connected layers, or ``"conv"``, convolutions of 3×3 with pooling and one layer behind.
        hidden: sizes of the hidden layers, neurons or channels; empty for those usual with the model.
        steps: number of time steps T.
        epochs: passes through the training samples.
        batch_size: samples in a batch.
        learning_rate: of AdamW at the start; it falls to 0 along a cosine.
        desired_rate: spikes per step wanted of the labelled output neuron.
        undesired_rate: spikes per step allowed to the other output neurons.
        spikes_per_neuron: spikes in a sequence to which `calibrate_gain` sets a fresh network.
        seed: of the starting weights and the order of the samples.

    Raises:
        TypeError: if a value has another type.
        ValueError: if a value is out of its range.

    Example:
        >>> TrainingConfig(steps=4).hidden
        (256,)
    """

    data: DataName = "digits"
    model: ModelName = "mlp"
    hidden: tuple[int, ...] = ()
    steps: int = 8
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 3e-3
    desired_rate: float = 0.625
    undesired_rate: float = 0.125
    spikes_per_neuron: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            _check_value(name, getattr(self, name), kind)
        if not self.hidden:
            object.__setattr__(self, "hidden", _USUAL_HIDDEN[self.model])
        if not 0 <= self.undesired_rate < self.desired_rate <= 1:
            raise ValueError(
                "desired_rate and undesired_rate must satisfy 0 ≤ undesired_rate < desired_rate ≤ 1, "
                f"got desired_rate={self.desired_rate} and undesired_rate={self.undesired_rate}"
            )


def _check_value(name: str, value: Any, kind: Any) -> None:
    if choices := get_args(kind) if kind in (DataName, ModelName) else ():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        return
    values = value if isinstance(value, tuple) else (value,)
    allowed = (int, float) if kind is float else int
    if isinstance(value, tuple) != (name == "hidden") or not all(type(v) in _types(allowed) for v in values):
        raise TypeError(f"{name} must be {_words(kind)}, got {value!r}")
    if not all(
        math.isfinite(v) and (v >= 0 if name in ("seed", "undesired_rate") else v > 0) for v in values
    ):
        raise ValueError(f"{name} must be finite and positive, got {value!r}")
