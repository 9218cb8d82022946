"""Networks from their notation in the papers, with the constants, gradients and read-out that learn best here."""

import re
from collections.abc import Iterator
from typing import Any, Literal, Unpack, get_args

from torch import nn

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
        **options: as in `SRMLayer`, for all layers.

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
    check_number("classes", classes, 1, whole=True)
    check_number("steps", steps, 1, whole=True)
    check_number("dropout", dropout, 0)
    check_option("readout", readout, get_args(Readout))
    if padding != "same":
        check_number("padding", padding, 0, whole=True)
    if dropout >= 1:
        raise ValueError(f"dropout must be below 1, got {dropout}")
    shape = _shape(inputs)
    options = {"gradient": "surrogate", **options}
    batch_first = options.get("batch_first", True)
    shared: dict[str, Any] = {"bias": bias, **options}
    network = nn.Sequential()

    def constants(channels: int) -> SRMParameters:
        return time_constants(steps, channels) if parameters is None else parameters

    def append(name: str, module: nn.Module) -> None:
        network.add_module(f"{name}{sum(key.startswith(name) for key in network._modules) + 1}", module)

    for text, layer in _layers(notation):
        size = {key: int(value) for key, value in layer.items() if value and key != "recurrent"}
        if "channels" in size or "window" in size:
            if len(shape) != 3:
                raise ValueError(
                    f"notation must not have {text!r} behind fully connected layers or for inputs {inputs}"
                )
            channels, *sides = shape
        if "channels" in size:
            kernel, stride = size["kernel"], size.get("stride", 1)
            if padding == "same":
                added = kernel // 2 if stride > 1 else "same"
                sides = [(side + 2 * (kernel // 2) - kernel) // stride + 1 if stride > 1 else side for side in sides]
            else:
                added = padding
                sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
            module = SRMConv2d(
                channels, size["channels"], kernel, stride, added, parameters=constants(size["channels"]), **shared
            )
            append("conv", module)
            shape = (size["channels"], *sides)
        elif "window" in size:
            append("pool", SpikeAvgPool2d(size["window"], gradient=options["gradient"]))
            shape = (channels, *(side // size["window"] for side in sides))
        else:
            if len(shape) == 3:
                append("flatten", nn.Flatten(2))
                shape = (shape[0] * shape[1] * shape[2],)
            kind = SRMRecurrent if layer["recurrent"] else SRMLinear
            append("hidden", kind(shape[0], size["neurons"], constants(size["neurons"]), **shared))
            shape = (size["neurons"],)
        if min(shape) < 1:
            raise ValueError(f"notation {notation!r} leaves nothing of inputs {inputs} at {text!r}")
        if dropout and "window" not in size:
            append("dropout", DropoutOverTime(dropout, batch_first=batch_first))
    if len(shape) == 3:
        append("flatten", nn.Flatten(2))
        shape = (shape[0] * shape[1] * shape[2],)
    if readout == "spikes":
        output = SRMLinear(shape[0], classes, constants(classes), **{**shared, "output": True})
        network.add_module("output", output)
    else:
        slow = SRMParameters(longest_time_constant(steps), 1.0)
        network.add_module("output", SRMReadout(shape[0], classes, slow, batch_first=batch_first))
    return network


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
        self.probability, self.batch_first = probability, batch_first

    def forward(self, inputs: Any) -> Any:
        """Returns the inputs with some of them 0."""
        if not self.training:
            return inputs
        step = inputs.select(1 if self.batch_first else 0, 0)
        return inputs * nn.functional.dropout(step.new_ones(step.shape), self.probability).unsqueeze(
            1 if self.batch_first else 0
        )

    def extra_repr(self) -> str:
        """The options, as the module prints them."""
        return f"{self.probability}, batch_first={self.batch_first}"


def _shape(inputs: Any) -> tuple[int, ...]:
    shape = inputs if isinstance(inputs, tuple) else (inputs,)
    if len(shape) not in (1, 3):
        raise ValueError(f"inputs must be a number of features or (channels, height, width), got {inputs}")
    for size in shape:
        check_number("inputs", size, 1, whole=True)
    return shape


def _layers(notation: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    if not isinstance(notation, str):
        raise TypeError(f"notation must be a str such as '32C5-P2-100', got {notation!r}")
    for text in notation.split("-") if notation else ():
        match = _LAYER.fullmatch(text)
        if match is None:
            raise ValueError(
                f"notation must consist of layers such as 100, 100R, 32C5, 64C3S2 and P2 with - between them, "
                f"got {text!r} in {notation!r}"
            )
        layer = match.groupdict()
        sizes = [int(value) for key, value in layer.items() if value and key != "recurrent"]
        if min(sizes) < 1:
            raise ValueError(f"notation must have sizes ≥ 1, got {text!r} in {notation!r}")
        yield from [(text, layer)] * int(layer.pop("times") or 1)
