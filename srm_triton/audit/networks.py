"""Small networks drawn from a seed, for `srm_triton.audit`; everything is float64."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from srm_triton.audit import event_rule

DURATION = 16
LAST_INPUT = 8


class Layer(NamedTuple):
    """A layer of a network to audit."""

    outputs: int
    """Neurons, or channels of a convolution."""
    kernel: int = 0
    """Side of the kernel of a convolution; 0 for a fully connected layer."""
    window: int = 1
    """Side of the window of an average pooling before it."""


class Network(NamedTuple):
    """A network to audit."""

    name: str
    """What the tables call it."""
    inputs: tuple[int, ...]
    """Shape of an input, features or channels, height, width."""
    layers: tuple[Layer, ...]
    """From the inputs to the outputs."""
    constant: bool = False
    """Whether inputs are constant values, else each gives impulses in two steps of the first eight."""
    spread: float = 0.4
    """Standard deviation of the weights, in units of their mean."""


NETWORKS = (
    Network("1 layer", (6,), (Layer(3),)),
    Network("2 layers", (6,), (Layer(4), Layer(3))),
    Network("3 layers", (6,), (Layer(4), Layer(4), Layer(3))),
    Network("both signs", (12,), (Layer(8), Layer(3)), spread=1.5),
    Network("conv-pool-linear", (1, 6, 6), (Layer(1, kernel=3), Layer(3, window=2))),
    Network("conv-pool-conv", (1, 6, 6), (Layer(1, kernel=3), Layer(3, kernel=2, window=2))),
    Network("constant inputs", (6,), (Layer(4), Layer(3)), constant=True),
)


class Part(NamedTuple):
    """A layer with its sizes."""

    layer: Layer
    """What it is made of."""
    shape: tuple[int, ...]
    """Of its inputs."""
    weight_shape: tuple[int, ...]
    """As the package has it."""
    basis: Tensor
    """The matrix that each weight alone makes, [weights, neurons, inputs]."""
    pool: Tensor
    """[inputs, neurons before]."""

    def matrix(self, weights: Tensor) -> event_rule.Layer:
        """The layer with weights [samples, weights]."""
        matrix = torch.einsum("bw,wni->bni", weights, self.basis)
        return event_rule.Layer(matrix, self.pool, self.layer.window > 1, self.layer.kernel > 0)

    def of_weights(self, grad: Tensor) -> Tensor:
        """The gradient of the weights, [samples, weights], from that of the matrices."""
        return torch.einsum("bni,wni->bw", grad, self.basis)


class Case(NamedTuple):
    """What is drawn for a network, in float64."""

    network: Network
    """Its kind."""
    parts: list[Part]
    """Its layers."""
    weights: list[Tensor]
    """Of each layer, [weights]."""
    impulses: Tensor
    """Into the first layer, at the start of each unit of time, [time, inputs]."""
    values: Tensor
    """What inputs give all the time, [inputs]."""
    coefficients: Tensor
    """The loss, [outputs, spikes]."""


def _parts(network: Network) -> list[Part]:
    shape, parts = network.inputs, []
    for layer in network.layers:
        images = _identity(*shape)
        if layer.window > 1:
            images = F.avg_pool2d(images, layer.window)
        shape = tuple(images.shape[1:]) if layer.kernel else (images[0].numel(),)
        weight_shape = (layer.outputs, shape[0], *[layer.kernel] * (2 if layer.kernel else 0))
        one_hot, inputs = _identity(*weight_shape), _identity(*shape)
        outputs = [F.conv2d(inputs, w) if layer.kernel else F.linear(inputs, w) for w in one_hot]
        basis = torch.stack([output.flatten(1).t() for output in outputs])
        parts.append(Part(layer, shape, weight_shape, basis, images.flatten(1).t()))
        shape = tuple(outputs[0].shape[1:])
    return parts


def _identity(*shape: int) -> Tensor:
    size = math.prod(shape)
    return torch.eye(size, dtype=torch.float64).view(size, *shape)


def draw(network: Network, seeds: Iterable[int]) -> list[Case]:
    """Networks whose neurons fire once or a few times, but for the last output, which is silent.

    Args:
        network: their kind.
        seeds: of what is drawn for each.
    """
    parts = _parts(network)
    return [_draw(network, parts, torch.Generator().manual_seed(seed)) for seed in seeds]


def _draw(network: Network, parts: list[Part], generator: torch.Generator) -> Case:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = []
    for part in parts:
        drive = 5.0 if part is parts[0] else 7.0
        weight = drive / math.prod(part.weight_shape[1:]) * (1 + network.spread * normal(*part.weight_shape))
        if part is parts[-1]:
            weight[-1] *= 0.1
        weights.append(weight.flatten())
    inputs, outputs = math.prod(network.inputs), parts[-1].basis.shape[1]
    times = torch.rand(inputs, LAST_INPUT, generator=generator).argsort(1)[:, :2]
    impulses = torch.zeros(DURATION, inputs, dtype=torch.float64).scatter(0, times.t(), float(not network.constant))
    values = 0.1 * (0.5 + torch.rand(inputs, generator=generator, dtype=torch.float64)) * network.constant
    return Case(network, parts, weights, impulses, values, normal(outputs, 2 * DURATION))
