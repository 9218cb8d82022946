"""The gradient of the spike times of a network four ways.

A loss is L = Σ c_ik·t_ik over the times of the k-th spikes of the outputs, c normally distributed. One output is kept
silent; it contributes nothing to L, and a rule that counts it as firing sees c_i0 at each step.

- `exact_gradients`: EventProp in continuous time; `exact_differences`: finite differences of the roots of u − θ
- `rule_gradients`: the event-driven rule written out, with its choices switched, at steps of 1/n
- `package_gradients`: the package's layers, backward
- `interpolated_differences`: finite differences of interpolated spike times at steps of 1/n
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srm_triton.audit import event_rule, eventprop
from srm_triton.audit.event_rule import NEURON, Rule
from srm_triton.audit.networks import DURATION, Case
from srm_triton.layers import SRMConv2d, SRMLinear
from srm_triton.parameters import SRMParameters
from srm_triton.pooling import SpikeAvgPool2d


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
    sums = [
        sum(factor * loss(weight + k * unit) for k, factor in stencil)
        for unit in change * torch.eye(len(weight), dtype=torch.float64)
    ]
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


@torch.enable_grad()
@torch.random.fork_rng(devices=[])  # layers draw weights before they are given
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
    options["gradient"] = "event" if published else "original"
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
