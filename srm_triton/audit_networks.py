"""Small networks drawn from a seed, and the gradient of their spike times four ways; what `srm_triton.audit` compares.

A loss is L = Σ c_ik·t_ik over the times of the k-th spikes of the outputs, c normally distributed. One output is kept
silent; it contributes nothing to L, and a rule that counts it as firing sees c_i0 at each step. Everything is float64.

- `exact_gradients`: EventProp in continuous time; `exact_differences`: finite differences of the roots of u − θ
- `rule_gradients`: the event-driven rule written out, with its choices switched, at steps of 1/n
- `package_gradients`: the package's layers, backward
- `interpolated_differences`: finite differences of interpolated spike times at steps of 1/n
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton import event_rule, eventprop
from srm_triton.event_rule import NEURON, Rule
from srm_triton.layers import SRMConv2d, SRMLinear
from srm_triton.parameters import SRMParameters
from srm_triton.pooling import SpikeAvgPool2d

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


def exact_gradients(case: Case) -> list[Tensor]:
    """EventProp's gradient of each layer's weights.

    Args:
        case: the network and its loss.
    """
    matrices, inputs, values = _continuous(case, case.weights)
    layers = eventprop.simulate(matrices, inputs, values, NEURON, DURATION)
    found = eventprop.gradients(matrices, layers, values, _coefficients(case, layers[-1]), NEURON, DURATION)
    return [
        part.of_weights(torch.tensor(grad, dtype=torch.float64)[None] @ part.pool.t())[0]
        for part, grad in zip(case.parts, found, strict=True)
    ]


def exact_differences(case: Case, number: int = 0, change: float = 2e-5) -> Tensor:
    """Finite differences, of fourth order, of the loss of exact spike times.

    Args:
        case: the network and its loss.
        number: of the layer whose weights change.
        change: of a weight.
    """

    def loss(weight: Tensor) -> float:
        weights = [*case.weights[:number], weight, *case.weights[number + 1 :]]
        last = eventprop.simulate(*_continuous(case, weights), NEURON, DURATION)[-1]
        return sum(c * spike.time for c, spike in zip(_coefficients(case, last), last, strict=True))

    weight, stencil = case.weights[number], ((-2, 1), (-1, -8), (1, 8), (2, -1))
    sums = [sum(factor * loss(weight + k * unit) for k, factor in stencil) for unit in change * _identity(len(weight))]
    return torch.tensor(sums, dtype=torch.float64) / (12 * change)


def _continuous(case: Case, weights: Sequence[Tensor]) -> tuple[list[Any], list[eventprop.Spike], list[float]]:
    layers = [part.matrix(weight[None]) for part, weight in zip(case.parts, weights, strict=True)]
    inputs = [eventprop.Spike(float(time), source) for time, source in case.impulses.nonzero().tolist()]
    return [(layer.matrix[0] @ layer.pool).tolist() for layer in layers], inputs, case.values.tolist()


def _coefficients(case: Case, spikes: Sequence[eventprop.Spike]) -> list[float]:
    """∂L/∂t of each of these spikes."""
    table, count = case.coefficients.tolist(), [0] * len(case.coefficients)
    found = []
    for spike in spikes:
        found.append(table[spike.source][count[spike.source]])
        count[spike.source] += 1
    return found


def rule_gradients(cases: Sequence[Case], refinement: int, rules: dict[str, Rule]) -> dict[str, list[Tensor]]:
    """The gradient of each layer's weights, [cases, weights], by each rule.

    Args:
        cases: of one network.
        refinement: n, steps in a unit of time.
        rules: by name.
    """
    parts = cases[0].parts
    layers = [part.matrix(weight) for part, weight in zip(parts, _weights(cases), strict=True)]
    records = event_rule.simulate(layers, *_inputs(cases, refinement), refinement)
    grad = _time_gradients(records[-1].spikes, torch.stack([case.coefficients for case in cases])) / -refinement
    return {
        name: [
            part.of_weights(matrix)
            for part, matrix in zip(parts, event_rule.gradients(layers, records, grad, refinement, rule), strict=True)
        ]
        for name, rule in rules.items()
    }


def interpolated_differences(cases: Sequence[Case], refinement: int, change: float = 1e-6) -> Tensor:
    """Finite differences of the loss of interpolated spike times, for the first layer's weights, [cases, weights].

    Args:
        cases: of one network.
        refinement: n, steps in a unit of time.
        change: of a weight.
    """
    parts, weights = cases[0].parts, _weights(cases)
    units = torch.eye(weights[0].shape[1], dtype=torch.float64) * change
    changed = weights[0][:, None] + torch.cat((units, -units))
    copies = len(changed[0])
    layers = [
        part.matrix(changed.flatten(0, 1) if part is parts[0] else weight.repeat_interleave(copies, 0))
        for part, weight in zip(parts, weights, strict=True)
    ]
    impulses, values = (inputs.repeat_interleave(copies, 0) for inputs in _inputs(cases, refinement))
    last = event_rule.simulate(layers, impulses, values, refinement, interpolated=True)[-1]
    coefficients = torch.stack([case.coefficients for case in cases]).repeat_interleave(copies, 0)
    times = (torch.arange(last.spikes.shape[1])[:, None] + last.fraction) / refinement
    losses = (_time_gradients(last.spikes, coefficients) * last.spikes * times).sum((1, 2)).view(len(cases), 2, -1)
    return (losses[:, 0] - losses[:, 1]) / (2 * change)


def _weights(cases: Sequence[Case]) -> list[Tensor]:
    """Of each layer, [cases, weights]."""
    return [torch.stack(weights) for weights in zip(*(case.weights for case in cases), strict=True)]


def _inputs(cases: Sequence[Case], refinement: int) -> tuple[Tensor, Tensor]:
    impulses = torch.zeros(len(cases), DURATION * refinement, len(cases[0].values), dtype=torch.float64)
    impulses[:, ::refinement] = torch.stack([case.impulses for case in cases])
    return impulses, torch.stack([case.values for case in cases])


def _time_gradients(spikes: Tensor, coefficients: Tensor) -> Tensor:
    """∂L/∂t of each spike; at every step of a silent neuron that of a first one."""
    rank = (spikes.cumsum(1) - 1).clamp(min=0).long()
    found = coefficients.gather(2, rank.transpose(1, 2)).transpose(1, 2)
    return torch.where((spikes != 0) | ~(spikes != 0).any(1, keepdim=True), found, 0)


def package_gradients(case: Case, refinement: int, *, published: bool) -> list[Tensor]:
    """The package's gradient of each layer's weights.

    Args:
        case: the network and its loss.
        refinement: n, steps in a unit of time.
        published: the published choices, with would-be events if n is 1; or all off that options can switch off.
    """
    n = refinement
    parameters = SRMParameters(
        NEURON.tau_m * n,
        NEURON.tau_s * n,
        event_rule.TAU_G * n,
        NEURON.threshold,
        event_rule.SLOPE_LIMIT * n if published else 1e300,
        event_rule.TIME_SLOPE_LIMIT * n,
    )
    options: dict[str, Any] = {"parameters": parameters, "weight_norm": False, "dtype": torch.float64}
    options["time_gradient_scale"] = event_rule.TIME_GRADIENT_SCALE if published else 1.0
    modules, layers = list[nn.Module](), []
    for part, weight in zip(case.parts, case.weights, strict=True):
        options["output"] = published and n == 1 and part is case.parts[-1]
        if part.layer.window > 1:
            modules.append(SpikeAvgPool2d(part.layer.window, gradient="event" if published else "surrogate"))
        inputs, outputs = part.shape[0], part.layer.outputs
        if not part.layer.kernel:
            modules.append(nn.Flatten(2))
        layer = (
            SRMConv2d(inputs, outputs, part.layer.kernel, **options)
            if part.layer.kernel
            else SRMLinear(inputs, outputs, **options)
        )
        layer.weight.data.copy_(weight.view(part.weight_shape))
        modules.append(layer)
        layers.append(layer)
    impulses, values = _inputs([case], n)
    spikes = nn.Sequential(*modules)((impulses + values[:, None] / n).unflatten(2, case.network.inputs)).flatten(2)
    grad = _time_gradients(spikes.detach(), case.coefficients[None]) / -n
    return [weight.flatten() for weight in torch.autograd.grad(spikes, [layer.weight for layer in layers], grad)]
