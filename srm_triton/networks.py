"""Networks from their notation in the papers, with the constants, gradients and read-out that learn best here."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Unpack, get_args

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number, check_option
from srm_triton.initialization import longest_time_constant, time_constants
from srm_triton.layers import LayerOptions, SRMConv2d, SRMLinear
from srm_triton.parameters import SRMParameters
from srm_triton.pooling import SpikeAvgPool2d
from srm_triton.readout import SRMReadout
from srm_triton.recurrent import SRMRecurrent

Readout = Literal["membrane", "spikes"]

_LAYER = re.compile(
    r"(?:(?P<channels>\d+)C(?P<kernel>\d+)(?:S(?P<stride>\d+))?|P(?P<window>\d+)|(?P<neurons>\d+)(?P<recurrent>R?))"
    r"(?:x(?P<times>\d+))?"
)


def spiking_network(
    notation: str,
    inputs: int | tuple[int, ...],
    classes: int,
    *,
    steps: int,
    readout: Readout = "membrane",
    parameters: SRMParameters | None = None,
    bias: bool = True,
    padding: int | Literal["same"] = "same",
    dropout: float = 0.0,
    **options: Unpack[LayerOptions],
) -> nn.Sequential:
    """A network for sequences of a given length, with defaults that were measured to learn best (`docs/results.md`).

    Surrogate gradients; time constants from two steps to half the sequence in each hidden layer (`time_constants`);
    biases; and as the read-out the membrane potential of neurons that do not fire, of which the last step is the
    answer: ``F.cross_entropy(network(x)[:, -1], labels)``. Call `calibrate_gain` on a first batch before training.

    Args:
        notation: hidden layers from the inputs on, with ``-`` between them: ``100``, fully connected neurons; ``100R``,
            with recurrence; ``32C5``, 32 channels of a 5×5 convolution; ``64C3S2``, with stride 2; ``P2``, average
            pooling over 2×2; each with ``x3`` behind it for three times. ``""`` for none.
        inputs: number of features, or (channels, height, width).
        classes: number of outputs.
        steps: length of the sequences.
        readout: ``"membrane"`` or ``"spikes"``, output neurons that fire, of which the counts are the answer.
        parameters: constants of all spiking neurons; None for `time_constants`.
        bias: whether currents have a learned bias.
        padding: zeros around the inputs of convolutions, or ``"same"``.
        dropout: probability at which an output of a hidden layer is dropped in training, in all steps at once.
        **options: as in `SRMLayer`, for all layers; `spike_dtype` for the hidden ones.

    Shape:
        [batch, time, inputs] to [batch, time, classes].

    Raises:
        TypeError: for values of another type.
        ValueError: for a notation that cannot be read, or sizes that do not fit.

    Example:
        >>> import torch
        >>> spiking_network("100-100", 12, 9, steps=29)(torch.rand(2, 29, 12)).shape
        torch.Size([2, 29, 9])
        >>> spiking_network("4C3-P2-8C3-P2-20", (1, 8, 8), 10, steps=5)(torch.rand(2, 5, 1, 8, 8)).shape
        torch.Size([2, 5, 10])
    """
    classes = check_number("classes", classes, 1, whole=True)
    steps = check_number("steps", steps, 1, whole=True)
    dropout = _check_probability("dropout", dropout)
    check_option("readout", readout, get_args(Readout))
    if padding != "same":
        padding = check_number("padding", padding, 0, whole=True)
    builder = _Builder(inputs, steps, parameters, {"gradient": "surrogate", "bias": bias, **options})
    for text, layer in _layers(notation):
        builder.add(text, layer, padding)
        if dropout and not layer.window:
            builder.append("dropout", DropoutOverTime(dropout, batch_first=builder.batch_first))
    builder.add_output(classes, readout)
    return builder.network


OF_OUTPUT: LayerOptions = {"output": True, "spike_dtype": None}  # a loss sums its spikes


def averages_of(options: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of what pooling returns behind layers with such options: one that does not round it."""
    return None if options.get("spike_dtype") is None else torch.get_default_dtype()


class _Builder:
    """A network that grows, and the shape of what its last layer returns at a step."""

    def __init__(
        self, inputs: int | tuple[int, ...], steps: int, parameters: SRMParameters | None, options: dict[str, Any]
    ) -> None:
        sizes = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        if len(sizes) not in (1, 3):
            raise ValueError(f"inputs must be a number of features or (channels, height, width), got {inputs}")
        self.inputs = inputs
        self.shape = tuple(check_number("inputs", size, 1, whole=True) for size in sizes)
        self.steps, self.parameters, self.options = steps, parameters, options
        self.batch_first: bool = options.get("batch_first", True)
        self.kept: dict[str, Any] = {"keep": options.get("keep", "current")}
        self.averages = averages_of(options)
        self.network = nn.Sequential()

    def append(self, name: str, module: nn.Module) -> None:
        """Adds a module under a name with its number."""
        number = sum(key.startswith(name) for key, _ in self.network.named_children()) + 1
        self.network.add_module(f"{name}{number}", module)

    def add(self, text: str, layer: "_Layer", padding: int | Literal["same"]) -> None:
        """Adds a layer of the notation."""
        if layer.neurons:
            kind = SRMRecurrent if layer.recurrent else SRMLinear
            module = kind(self._flat(), layer.neurons, self._constants(layer.neurons), **self.options)
            self.append("hidden", module)
            self.shape = (layer.neurons,)
            return
        if len(self.shape) != 3:
            raise ValueError(
                f"notation must have {text!r} before fully connected layers, of images, not of inputs {self.inputs}"
            )
        channels, height, width = self.shape
        kernel, stride, added = layer.window, layer.window, 0
        if layer.channels:
            kernel, stride = layer.kernel, layer.stride
            added = kernel // 2 if padding == "same" else padding
        # an even kernel at stride 1 gets a row more on one side
        both = kernel - 1 if layer.channels and padding == "same" and stride == 1 else 2 * added
        sides = tuple((side + both - kernel) // stride + 1 for side in (height, width))
        if min(sides) < 1:
            raise ValueError(f"notation must leave something of inputs {self.inputs}, got {text!r} for {self.shape}")
        if layer.channels:
            around = "same" if padding == "same" and stride == 1 else added
            constants = self._constants(layer.channels)
            self.append(
                "conv",
                SRMConv2d(channels, layer.channels, kernel, stride, around, parameters=constants, **self.options),
            )
        else:
            self.append(
                "pool", SpikeAvgPool2d(kernel, gradient=self.options["gradient"], dtype=self.averages, **self.kept)
            )
        self.shape = (layer.channels or channels, *sides)

    def add_output(self, classes: int, readout: Readout) -> None:
        """Adds the last layer."""
        features = self._flat()
        if readout == "spikes":
            output = SRMLinear(features, classes, self._constants(classes), **{**self.options, **OF_OUTPUT})
            self.network.add_module("output", output)
        else:
            slow = SRMParameters(longest_time_constant(self.steps), 1.0)
            self.network.add_module(
                "output", SRMReadout(features, classes, slow, batch_first=self.batch_first, **self.kept)
            )

    def _constants(self, channels: int) -> SRMParameters:
        return time_constants(self.steps, channels) if self.parameters is None else self.parameters

    def _flat(self) -> int:
        if len(self.shape) == 3:
            self.append("flatten", nn.Flatten(2))
        return math.prod(self.shape)


class DropoutOverTime(nn.Module):
    """Dropout of the same neurons at every step of a sequence, as a pause would otherwise be noise in time.

    Args:
        probability: at which an output is dropped in training; the others are divided by 1 − `probability`.
        batch_first: False for [time, batch, ...].

    Shape:
        [batch, time, ...] to the same.
    """

    def __init__(self, probability: float, *, batch_first: bool = True) -> None:
        super().__init__()
        self.probability, self.batch_first = _check_probability("probability", probability), batch_first

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the inputs with some of them 0."""
        if not self.training:
            return inputs
        time_axis = 1 if self.batch_first else 0
        ones = inputs.new_ones(inputs.narrow(time_axis, 0, 1).shape)
        return inputs * nn.functional.dropout(ones, self.probability)

    def extra_repr(self) -> str:
        """The options, as the module prints them."""
        return f"{self.probability}, batch_first={self.batch_first}"


def _check_probability(name: str, value: Any) -> float:
    probability: float = check_number(name, value, 0)
    if probability >= 1:
        raise ValueError(f"{name} must be below 1, got {probability}")
    return probability


class _Layer(NamedTuple):
    """What a part of the notation says; 0 for what it does not."""

    channels: int
    kernel: int
    stride: int
    window: int
    neurons: int
    recurrent: bool


def _layers(notation: str) -> Iterator[tuple[str, _Layer]]:
    if not isinstance(notation, str):
        raise TypeError(f"notation must be a str such as '32C5-P2-100', got {notation!r}")
    for text in notation.split("-") if notation else ():
        match = _LAYER.fullmatch(text)
        if match is None:
            raise ValueError(
                "notation must consist of layers such as 100, 100R, 32C5, 64C3S2 and P2 with - between them, "
                f"got {text!r} in {notation!r}"
            )
        if any(number and not int(number) for number in re.findall(r"\d+", text)):
            raise ValueError(f"notation must have sizes ≥ 1, got {text!r} in {notation!r}")
        part = match.groupdict(default="0")
        numbers = {name: int(part[name]) for name in ("channels", "kernel", "window", "neurons")}
        layer = _Layer(**numbers, stride=int(match["stride"] or 1), recurrent=match["recurrent"] == "R")
        yield from [(text, layer)] * (int(part["times"]) or 1)
