"""What is compared: this package's backends, the published rule as a plain loop, that loop compiled, other libraries.

A neuron is a function of a current [batch, time, ...] (some: [time, batch, ...]) that returns spikes of that shape. The
docstrings of the functions that `Contender` names are printed with the results.
"""

import functools
import shutil
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from bench.harness import DEVICE, Contender, Function, UnavailableError
from srm_triton import srm_scan, use_backend

TAU_M, TAU_S, TAU_G, THRESHOLD, MEMBRANE_SLOPE_LIMIT, GRADIENT_SLOPE_LIMIT = 5.0, 3.0, 2.5, 1.0, 4.0, 123456789.0
DECAYS = [1 - 1 / tau for tau in (TAU_M, TAU_S, TAU_G)]
AMPLITUDE = TAU_M / (TAU_M - TAU_S)


def on_backends(function: Function, names: tuple[str, ...] = ("triton", "native", "reference")) -> list[Contender]:
    """Contenders that run the function on one of this package's backends each, the fastest first."""
    return [Contender(name, lambda name=name: _on_backend(name, function)) for name in names]


def _on_backend(name: str, function: Function) -> Function:
    if name == "triton" and DEVICE.type != "cuda":
        raise UnavailableError("needs a GPU")
    try:
        with use_backend(name):
            srm_scan(torch.ones(1, 1, 1, device=DEVICE))
    except (ValueError, RuntimeError) as error:
        raise UnavailableError(str(error)) from None

    def run(*tensors: Tensor) -> Tensor:
        with use_backend(name):
            return function(*tensors)

    return run


def on_cpu(function: Any) -> Function:
    """A function of NumPy arrays as one of tensors, with PyTorch's number of threads."""
    if DEVICE.type != "cpu":
        raise UnavailableError("runs on the CPU")
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController()  # NumPy and SciPy have threads of their own

    def run(*tensors: Tensor) -> Tensor:
        with libraries.limit(limits=torch.get_num_threads()):
            return torch.from_numpy(function(*(tensor.numpy() for tensor in tensors))).float()

    return run


def compiled(function: Any) -> Any:
    """Compiles with Inductor."""
    if DEVICE.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UnavailableError("needs a C++ compiler")
    return torch.compile(function, dynamic=False)


# The published rule, its weight path with the sign that this package gives it


def _forward(current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m = s = g = previous = torch.zeros_like(current[:, 0])
    spikes, changes, rates = [], [], []
    for x in current.unbind(1):
        m = (m + x) * DECAYS[0]
        s = (s + x) * DECAYS[1]
        g = (g + x) * DECAYS[2]
        u = AMPLITUDE * (m - s)
        spike = (u > THRESHOLD).to(u.dtype)
        spikes.append(spike)
        changes.append(u - previous)
        rates.append(g)
        silent = 1 - spike
        m, s, g, previous = m * silent, s * silent, g * silent, u * silent
    return torch.stack(spikes, 1), torch.stack(changes, 1), torch.stack(rates, 1)


def _backward(
    grad: Tensor, spikes: Tensor, changes: Tensor, rates: Tensor, powers: Tensor, weight_path: bool, time_path: bool
) -> tuple[Tensor | None, Tensor | None]:
    w = v = torch.zeros_like(grad[:, 0])
    distance = torch.full_like(w, -1, dtype=torch.int64)  # steps to the next spike; w and v are 0 without one
    weights, times = [], []
    for t in reversed(range(grad.shape[1])):
        fired = spikes[:, t] > 0
        distance = torch.where(fired, 0, distance + 1)
        if weight_path:
            slope = (1 / changes[:, t]).clamp(0, MEMBRANE_SLOPE_LIMIT)
            w = torch.where(fired, slope * grad[:, t], w)
            weights.append(w * powers[0][distance])
        if time_path:
            slope = (1 / rates[:, t]).clamp(0, GRADIENT_SLOPE_LIMIT)
            v = torch.where(fired, slope * grad[:, t], v)
            times.append(v * powers[1][distance])
    weights.reverse()
    times.reverse()
    return torch.stack(weights, 1) if weight_path else None, torch.stack(times, 1) if time_path else None


@functools.cache
def _powers(steps: int) -> Tensor:
    """Responses of the membrane and of the spike time, 1 … `steps` steps later."""
    powers = torch.tensor(DECAYS, dtype=torch.float64)[:, None] ** torch.arange(1, steps + 1)
    responses = torch.stack([AMPLITUDE * (powers[0] - powers[1]), powers[2]])
    return responses.to(DEVICE, torch.float32)


class _PublishedNeuron(torch.autograd.Function):
    """The weight path is the gradient of `current`, the time path that of `earlier`, a leaf for it."""

    @staticmethod
    def forward(ctx: Any, forward: Any, backward: Any, current: Tensor, earlier: Tensor | None) -> Tensor:
        spikes, changes, rates = forward(current)
        ctx.rule = backward
        ctx.save_for_backward(spikes, changes, rates)
        return spikes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        powers = _powers(grad.shape[1])
        return None, None, *ctx.rule(grad, *ctx.saved_tensors, powers, *ctx.needs_input_grad[2:])


class _PublishedLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        spikes, changes, rates = _forward(inputs.matmul(weight.t()))
        ctx.save_for_backward(inputs, weight, spikes, changes, rates)
        return spikes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weight, *kept = ctx.saved_tensors
        to_weights, to_times = _backward(grad, *kept, _powers(grad.shape[1]), True, True)
        return 0.85 * to_times.matmul(weight), to_weights.transpose(1, 2).matmul(inputs).sum(0)


class _PublishedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.options = stride, padding
        current = F.conv2d(inputs.flatten(0, 1), weight, None, stride, padding)
        spikes, changes, rates = _forward(current.unflatten(0, inputs.shape[:2]))
        ctx.save_for_backward(inputs, weight, spikes, changes, rates)
        return spikes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, *kept = ctx.saved_tensors
        images = inputs.flatten(0, 1)
        paths = _backward(grad, *kept, _powers(grad.shape[1]), True, True)
        to_weights, to_times = (path.flatten(0, 1) for path in paths)
        to_inputs = conv2d_input(images.shape, weight, to_times, *ctx.options).view_as(inputs)
        return 0.85 * to_inputs * inputs, conv2d_weight(images, weight.shape, to_weights, *ctx.options), None, None


class PublishedLayer(nn.Module):
    """A layer as published: the weight normalised over its fan-in by the formula, the neurons a step at a time."""

    def __init__(self, affine: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.weight = affine.weight
        self.gain, self.offset = nn.Parameter(torch.ones(len(self.weight))), nn.Parameter(torch.zeros(len(self.weight)))
        self.options = ()
        if isinstance(affine, nn.Conv2d):
            padding = affine.kernel_size[0] // 2 if affine.padding == "same" else affine.padding[0]
            self.options = affine.stride[0], padding

    def forward(self, inputs: Tensor) -> Tensor:
        weight = normalised(self.weight.flatten(1), self.gain, self.offset, 1).view_as(self.weight)
        layer = _PublishedConvolution if self.options else _PublishedLayer
        return layer.apply(inputs, weight, *self.options)


def normalised(x: Tensor, gain: Tensor, offset: Tensor, axis: int) -> Tensor:
    """Batch normalisation over an axis as a formula."""
    variance, mean = torch.var_mean(x, axis, correction=1, keepdim=True)
    gain, offset = gain.unsqueeze(axis), offset.unsqueeze(axis)
    return (x - mean) / (variance + 1e-5).sqrt() * gain + offset


def _published_loop() -> Function:
    """The published rule a step at a time: keeps spikes, Δu and Δu_t, and looks powers of the decays up in a table."""
    return lambda current, earlier=None: _PublishedNeuron.apply(_forward, _backward, current, earlier)


def _compiled_loop() -> Function:
    """The published loop under `torch.compile` (Inductor), which unrolls it."""
    forward, backward = compiled(_forward), compiled(_backward)
    return lambda current, earlier=None: _PublishedNeuron.apply(forward, backward, current, earlier)


def _published_layer() -> Function:
    """The same behind a matrix product, with the published gradient of the weight: one product a sample, then a sum."""
    return _PublishedLayer.apply


PUBLISHED_LOOP = Contender("published loop", _published_loop)
COMPILED_LOOP = Contender("torch.compile", _compiled_loop)
PUBLISHED_LAYER = Contender("published layer", _published_layer)

# Other libraries: of each, the neuron nearest to the spike response model


def _spikingjelly() -> Function:
    """SpikingJelly's `LIFNode` over several steps: one state instead of three, sigmoid surrogate gradient, reset
    detached, which is faster."""
    from spikingjelly.activation_based import functional, neuron

    node = neuron.LIFNode(tau=TAU_M, decay_input=False, detach_reset=True, step_mode="m").to(DEVICE)

    def run(current: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(current)

    return run


def _snntorch() -> Function:
    """snnTorch's `Alpha`: the difference of two exponential states, arctangent surrogate gradient."""
    import snntorch

    return _step_by_step(snntorch.Alpha(alpha=DECAYS[0], beta=DECAYS[1], reset_mechanism="zero"))


def _snntorch_leaky() -> Function:
    """snnTorch's `Leaky`: one state, arctangent surrogate gradient; twice as fast as its `Alpha`."""
    import snntorch

    return _step_by_step(snntorch.Leaky(beta=DECAYS[0]))


def _step_by_step(neuron: Any) -> Function:
    """A neuron of snnTorch, over time."""
    neuron = neuron.to(DEVICE)

    def run(current: Tensor) -> Tensor:
        states, spikes = neuron.reset_mem(), []
        states = states if isinstance(states, tuple) else (states,)
        for x in current.unbind(1):
            spike, *states = neuron(x, *states)
            spikes.append(spike)
        return torch.stack(spikes, 1)

    return run


def _norse() -> Function:
    """Norse's `LIF`: a membrane behind a synapse (two states), SuperSpike surrogate gradient."""
    import norse.torch

    step = 0.001
    rates = {"tau_mem_inv": 1 / (step * TAU_M), "tau_syn_inv": 1 / (step * TAU_S)}
    constants = norse.torch.LIFParameters(**{name: torch.as_tensor(rate) for name, rate in rates.items()})
    neuron = norse.torch.LIF(p=constants, dt=step).to(DEVICE)
    return lambda current: neuron(current)[0]


def _sinabs() -> Function:
    """sinabs' `LIF` with a synapse: a membrane behind a synapse (two states), exponential surrogate gradient."""
    import sinabs.activation
    import sinabs.layers

    neuron = sinabs.layers.LIF(
        tau_mem=TAU_M,
        tau_syn=TAU_S,
        spike_fn=sinabs.activation.SingleSpike,
        reset_fn=sinabs.activation.MembraneReset(),
        norm_input=False,
    )
    neuron = neuron.requires_grad_(False).to(DEVICE)  # its time constants would learn too

    def run(current: Tensor) -> Tensor:
        neuron.reset_states()
        return neuron(current)

    return run


SNNTORCH_LEAKY = Contender("snnTorch, Leaky", _snntorch_leaky, comparable=False)
PEERS = [
    Contender("SpikingJelly", _spikingjelly, time_first=True, comparable=False),
    Contender("snnTorch", _snntorch, comparable=False),
    Contender("Norse", _norse, time_first=True, comparable=False),
    Contender("sinabs", _sinabs, comparable=False),
]


def peers_behind(affine: Function) -> list[Contender]:
    """The peers as layers: an affine map of (inputs, weight), then the neurons."""

    def layer(peer: Contender) -> Function:
        neuron = peer.build()
        return lambda inputs, weight: neuron(affine(inputs, weight))

    return [replace(peer, build=lambda peer=peer: layer(peer)) for peer in PEERS]
