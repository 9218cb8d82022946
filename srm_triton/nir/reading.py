"""From a graph of NIR to layers; the equations stand in `srm_triton.nir`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack, cast

import nir
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from srm_triton.checks import check_number, check_option
from srm_triton.convert.chain import Neurons, Part, join
from srm_triton.layers import LayerOptions
from srm_triton.nir.writing import RESETS
from srm_triton.parameters import SRMParameters


def from_nir(
    graph: nir.NIRGraph, *, dt: float = 1e-4, approximate: bool = False, **options: Unpack[LayerOptions]
) -> nn.Sequential:
    """The layers that a graph of NIR describes, with weights that are not normalised.

    Args:
        graph: a chain from its input to its output, from `nir.read` or another library, of Affine, Linear, Conv1d,
            Conv2d, AvgPool2d, Flatten, LIF, IF, LI, I and CubaLI; neurons may have a Linear from themselves to
            themselves, in the graph or in one of their own.
        dt: length of a step in seconds, as the library has it that made the graph.
        approximate: whether a CubaLIF, whose synaptic current outlives a spike, may become a neuron whose does not.
        **options: as in `SRMLayer`, for all layers, but for the gradient, which is ``"surrogate"`` unless given, and
            ``output``, which the last layer has.

    Raises:
        TypeError: for anything but a graph.
        ValueError: for nodes without a counterpart, neurons with other equations, or a graph that is no chain.
    """
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph, such as nir.read(path) returns, got {type(graph).__name__}")
    dt = check_number("dt", dt, 0, above=True)
    check_option("approximate", approximate, (False, True))
    parts: dict[str, Part] = {}
    for name, node, recurrent in _chain(graph):
        if type(node) not in _NEURONS:
            parts[name] = _map_part(name, node)
            continue
        parameters, fires, gain = _neurons(name, node, dt, approximate)
        if not fires and not (gain == 1).all():
            _scale(name, next(reversed(parts.values()), None), gain)
        parts[name] = Neurons(parameters, fires, recurrent)
    return join(parts, options)


def _chain(graph: nir.NIRGraph) -> list[tuple[str, nir.NIRNode, Tensor | None]]:
    """Nodes from the input to the output, neurons with the weight from themselves to themselves."""
    nodes, edges = _inlined(graph)
    followers: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in dict.fromkeys(edges):
        followers[source].append(target)
    starts = [name for name, node in nodes.items() if isinstance(node, nir.Input)]
    if len(starts) != 1:
        raise ValueError(f"graph must have one input, got {len(starts)}")
    chain: list[tuple[str, nir.NIRNode, Tensor | None]] = []
    seen, here = {starts[0]}, starts[0]
    while True:
        loops = [name for name in followers[here] if followers[name] == [here]]
        after = [name for name in followers[here] if name not in loops]
        if here != starts[0]:
            chain.append((here.replace(".", "_"), nodes[here], _own_weight(here, nodes, loops)))
        seen |= {here, *loops}
        if len(after) != 1 or after[0] in seen:
            raise ValueError(f"graph must be a chain from its input to its output, got {here!r} with {followers[here]}")
        here = after[0]
        if isinstance(nodes[here], nir.Output):
            break
    if left := set(nodes) - seen - {here}:
        raise ValueError(f"graph must be a chain from its input to its output, got {sorted(left)} beside it")
    return chain


def _inlined(graph: nir.NIRGraph) -> tuple[dict[str, nir.NIRNode], list[tuple[str, str]]]:
    """Nodes and edges, those of a graph within the graph in its place."""
    nodes, edges = dict(graph.nodes), list(graph.edges)
    for name, inner in graph.nodes.items():
        if not isinstance(inner, nir.NIRGraph):
            continue
        del nodes[name]
        below, within = _inlined(inner)
        inputs = {key for key, node in below.items() if isinstance(node, nir.Input)}
        outputs = {key for key, node in below.items() if isinstance(node, nir.Output)}
        nodes |= {f"{name}_{key}": node for key, node in below.items() if key not in inputs | outputs}
        entries = [f"{name}_{b}" for a, b in within if a in inputs]
        exits = [f"{name}_{a}" for a, b in within if b in outputs]
        edges = [(a, b) for a, b in edges if name not in (a, b)] + [
            *((a, entry) for a, b in edges if b == name for entry in entries),
            *((leaving, b) for a, b in edges if a == name for leaving in exits),
            *((f"{name}_{a}", f"{name}_{b}") for a, b in within if a not in inputs and b not in outputs),
        ]
    return nodes, edges


def _own_weight(name: str, nodes: Mapping[str, nir.NIRNode], loops: list[str]) -> Tensor | None:
    if not loops:
        return None
    loop = nodes[loops[0]]
    bias = np.any(loop.bias) if isinstance(loop, nir.Affine) else False
    if len(loops) > 1 or not isinstance(loop, nir.Linear | nir.Affine) or bias or type(nodes[name]) not in _NEURONS:
        raise ValueError(
            f"{name}: neurons may have one Linear, without a bias, from themselves to themselves, "
            f"got {', '.join(type(nodes[each]).__name__ for each in loops)} there"
        )
    return torch.from_numpy(np.array(loop.weight))


def _map_part(name: str, node: nir.NIRNode) -> nn.Module:
    if isinstance(node, nir.Affine | nir.Linear):
        weight = np.asarray(node.weight)
        if weight.ndim != 2:
            raise ValueError(f"{name}: must have a weight [out_features, in_features], got {list(weight.shape)}")
        return _with_weights(nn.Linear, node, weight.shape[1], weight.shape[0])
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        kind = nn.Conv1d if isinstance(node, nir.Conv1d) else nn.Conv2d
        groups, shape = int(node.groups), np.shape(node.weight)
        sizes = [shape[1] * groups, shape[0], tuple(shape[2:])]
        sizes += [
            size if isinstance(size, str) else _sizes(size) for size in (node.stride, node.padding, node.dilation)
        ]
        return _with_weights(kind, node, *sizes, groups)
    if isinstance(node, nir.AvgPool2d):
        return nn.AvgPool2d(*map(_sizes, (node.kernel_size, node.stride, node.padding)))
    if isinstance(node, nir.Flatten):
        start, end = int(node.start_dim), int(node.end_dim)
        return nn.Flatten(*(dim + 1 if dim >= 0 else dim for dim in (start, end)))
    known = ["Affine", "Linear", "Conv1d", "Conv2d", "AvgPool2d", "Flatten", *(kind.__name__ for kind in _NEURONS)]
    raise ValueError(f"{name}: must be one of {', '.join(known)}, got {type(node).__name__}")


def _sizes(value: Any) -> Any:
    sizes = tuple(int(size) for size in np.atleast_1d(value))
    return sizes if len(sizes) > 1 else sizes[0]


def _with_weights(kind: type[nn.Module], node: Any, *sizes: Any) -> nn.Module:
    """A module with the weights of a node; a bias of zeros is none, as a convolution of NIR always has one."""
    weight, bias = torch.from_numpy(np.array(node.weight)), getattr(node, "bias", None)
    dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
    biased = bias is not None and bool(np.any(bias))
    module: Any = skip_init(kind, *sizes, bias=biased, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
        if biased:
            module.bias.copy_(torch.from_numpy(np.array(bias)))
    return cast("nn.Module", module)


class _Read(NamedTuple):
    parameters: SRMParameters
    fires: bool
    gain: Tensor
    """Of the potential, for neurons that do not fire."""


def _neurons(name: str, node: Any, dt: float, approximate: bool) -> _Read:
    """What a node of NIR is in steps."""
    kind = type(node)
    if kind is nir.CubaLIF and not approximate and not np.allclose(node.tau_syn, dt, rtol=1e-12, atol=0):
        raise ValueError(f"{name}: {RESETS}")
    value = {key: _per_channel(name, key, getattr(node, key)) for key in _NEURONS[kind]}
    resistance, zero = value["r"], torch.zeros((), dtype=torch.float64)
    tau_s = torch.ones((), dtype=torch.float64)
    if kind in (nir.IF, nir.I):
        tau_m, gain = torch.full_like(resistance, math.inf), _near_one(resistance * dt, node.r)
    else:
        tau_m, gain = _time_constant(value["tau" if "tau" in value else "tau_mem"], resistance, dt, node.r)
    if "tau_syn" in value:
        tau_s, rise = _time_constant(value["tau_syn"], value["w_in"], dt, node.w_in)
        gain = gain * rise * tau_s if kind is nir.CubaLIF else _near_one(gain * rise * tau_s, node.r)
    rest, reset = value.get("v_leak", zero), value.get("v_reset", value.get("v_leak", zero))
    if kind not in (nir.LIF, nir.CubaLIF, nir.IF) and (rest != 0).any():
        raise ValueError(f"{name}: must rest at v_leak = 0, as the potential of an SRM neuron does, got {node.v_leak}")
    if (reset != rest).any():
        raise ValueError(
            f"{name}: must reset to its resting potential v_leak (IF: 0), as an SRM neuron does, got v_reset = "
            f"{node.v_reset} and v_leak = {getattr(node, 'v_leak', 0)}"
        )
    if not (gain > 0).all():
        raise ValueError(f"{name}: must have a resistance and input weights above 0, got r = {node.r}")
    fires, gain = "v_threshold" in value, gain.flatten()[0] if (gain == 1).all() else gain
    try:
        threshold = (value["v_threshold"] - rest) / gain if fires else 1.0
        return _Read(SRMParameters(tau_m, tau_s, threshold=threshold), fires, gain)
    except ValueError as error:
        raise ValueError(f"{name}: its constants, in steps of dt = {dt:g} s, are out of range: {error}") from error


_NEURONS: dict[type[nir.NIRNode], tuple[str, ...]] = {
    nir.LIF: ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    nir.IF: ("r", "v_threshold", "v_reset"),
    nir.CubaLIF: ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    nir.LI: ("tau", "r", "v_leak"),
    nir.I: ("r",),
    nir.CubaLI: ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
}


def _time_constant(tau: Tensor, factor: Tensor, dt: float, source: Any) -> tuple[Tensor, Tensor]:
    """τ in steps, and the gain factor·dt/τ; where that is 1, τ is the factor, which has not been through seconds."""
    steps = tau / dt
    gain = _near_one(factor / steps, source)
    return torch.where(gain == 1, factor, steps), gain


def _near_one(gain: Tensor, source: Any) -> Tensor:
    """The gain, or 1 where it differs by no more than rounding."""
    kind = np.asarray(source).dtype
    epsilon = float(np.finfo(kind if kind.kind == "f" else np.float64).eps)
    return torch.where((gain - 1).abs() <= 8 * epsilon, 1.0, gain)


def _per_channel(name: str, key: str, value: Any) -> Tensor:
    """A constant of neurons [channels, ...], as one value or one for each channel."""
    values = torch.from_numpy(np.array(value, dtype=np.float64))
    if not values.numel():
        raise ValueError(f"{name}: {key} must hold a value for each neuron, got none")
    if (values == values.flatten()[0]).all():
        return values.flatten()[0]
    rows = values.flatten(1) if values.dim() > 1 else values[:, None]
    if (rows != rows[:, :1]).any():
        raise ValueError(f"{name}: must have one {key} for each channel, got several within a channel")
    return rows[:, 0].clone()


def _scale(name: str, before: Part | None, gain: Tensor) -> None:
    """Gives a map the gain of the potentials behind it."""
    if not isinstance(before, nn.Linear):
        raise ValueError(f"{name}: neurons that do not fire must have an Affine or Linear before them")
    with torch.no_grad():
        for tensor in before.parameters():
            tensor.mul_(gain.reshape(-1, *[1] * (tensor.dim() - 1)))
