"""From layers to a graph of NIR; the equations stand in `srm_triton.nir`."""

from typing import Any, cast

import nir
import numpy as np
import torch
from torch import Tensor, nn

from srm_triton.checks import check_number, check_option
from srm_triton.convert.chain import Neurons, split

RESETS = (
    "a CubaLIF resets the membrane potential and leaves the synaptic current, where an SRM neuron resets both; pass "
    "approximate=True to take one for the other"
)


def to_nir(
    network: nn.Module, inputs: int | tuple[int, ...], *, dt: float = 1e-4, approximate: bool = False
) -> nir.NIRGraph:
    """A network as a graph of NIR, which `nir.write` stores in a file.

    Weights are those that the layers apply, normalised; constants of gradients are left out, and dropout too. Files of
    networks with kernels that are not square, or groups, need `nir.read(path, type_check=False)`: nir 1.0.8 takes the
    shapes of their outputs for others.

    Args:
        network: layers of this package, in `nn.Sequential`, in evaluation if it holds dropout.
        inputs: shape of the inputs at a step, a number of features or (channels, height, width).
        dt: length of a step in seconds, > 0.
        approximate: whether a neuron with τ_s > 1 may become a CubaLIF, which leaves the synaptic current at a spike.

    Raises:
        TypeError: for modules that NIR cannot express.
        ValueError: for neurons that it has no node for, or another shape of the inputs.

    Example:
        >>> from srm_triton import SRMLinear, SRMParameters
        >>> from srm_triton.nir import from_nir
        >>> network = nn.Sequential(SRMLinear(6, 4, SRMParameters(tau_m=10.0, tau_s=1.0)))
        >>> graph = to_nir(network, 6)
        >>> [type(node).__name__ for node in graph.nodes.values()]
        ['Input', 'Linear', 'LIF', 'Output']
        >>> inputs = torch.rand(2, 20, 6)
        >>> torch.equal(from_nir(graph)(inputs), network.eval()(inputs))
        True
    """
    dt = check_number("dt", dt, 0, above=True)
    check_option("approximate", approximate, (False, True))
    shape = tuple(check_number("inputs", size, 1, whole=True) for size in np.atleast_1d(np.asarray(inputs)).tolist())
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input(np.array(shape))}
    edges, before = [], "input"
    values = torch.zeros(1, *shape)
    for key, part in split(network).items():
        name = f"{key}_layer" if key in ("input", "output") else key
        if isinstance(part, Neurons):
            nodes[name] = _neuron_node(name, part, values.shape[1:], dt, approximate)
            if part.recurrent is not None:
                nodes[f"{name}_recurrent"] = nir.Linear(_array(part.recurrent))
                edges += [(name, f"{name}_recurrent"), (f"{name}_recurrent", name)]
        else:
            node = nodes[name] = _map_node(name, part, values.shape[1:])
            node.input_type = {"input": np.array(values.shape[1:])}  # as nir takes kernels for square and ungrouped
            values = _apply(name, part, values, shape)
            node.output_type = {"output": np.array(values.shape[1:])}
        edges.append((before, name))
        before = name
    nodes["output"] = nir.Output(np.array(values.shape[1:]))
    return nir.NIRGraph(nodes, [*edges, (before, "output")])


def _array(tensor: Tensor) -> Any:
    """As NumPy has it, in float32 or float64."""
    exact = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to("cpu", exact, copy=True).numpy()


def _apply(name: str, part: nn.Module, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    weight = next(part.parameters(), values)
    if isinstance(part, nn.Conv1d | nn.Conv2d) and part.padding == "same":
        part = type(part)(part.in_channels, part.out_channels, 1, device=weight.device, dtype=weight.dtype)
    try:
        with torch.no_grad():
            return cast("Tensor", part(values.to(weight.device, weight.dtype)))
    except RuntimeError as error:
        raise ValueError(
            f"inputs must be the shape of a step, [features] or [channels, height, width], got {list(shape)}, of which "
            f"{list(values.shape[1:])} arrives at {name!r}: {error}"
        ) from error


def _map_node(name: str, part: nn.Module, shape: tuple[int, ...]) -> nir.NIRNode:
    if isinstance(part, nn.Linear):
        if part.bias is None:
            return nir.Linear(_array(part.weight))
        return nir.Affine(_array(part.weight), _array(part.bias))
    if isinstance(part, nn.Conv1d | nn.Conv2d):
        if part.padding_mode != "zeros":
            raise ValueError(f"{name}: must be padded by zeros, as in NIR, got padding_mode={part.padding_mode!r}")
        bias = torch.zeros(part.out_channels, dtype=part.weight.dtype) if part.bias is None else part.bias
        sizes: Any = part.stride, part.padding, part.dilation
        space: Any = tuple(shape[1:])
        if isinstance(part, nn.Conv1d):
            sizes, space = ((size if isinstance(size, str) else size[0]) for size in sizes), space[0]
        kind = nir.Conv1d if isinstance(part, nn.Conv1d) else nir.Conv2d
        return kind(space, _array(part.weight), *sizes, part.groups, _array(bias))
    if isinstance(part, nn.AvgPool2d):
        pairs = (
            size if isinstance(size, tuple) else (size, size) for size in (part.kernel_size, part.stride, part.padding)
        )
        return nir.AvgPool2d(*map(np.array, pairs))
    if isinstance(part, nn.Flatten):
        start, end = (dim - 1 if dim > 0 else dim for dim in (part.start_dim, part.end_dim))
        return nir.Flatten({"input": np.array(shape)}, start, end)
    raise TypeError(f"{name}: NIR has no node for {type(part).__name__}")


def _neuron_node(name: str, part: Neurons, shape: tuple[int, ...], dt: float, approximate: bool) -> nir.NIRNode:
    tau_m, tau_s, threshold = (
        value.detach().to("cpu", torch.float64).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).numpy().copy()
        for value in (part.parameters.tau_m, part.parameters.tau_s, part.parameters.threshold)
    )
    zero, infinite = np.zeros(shape), np.isinf(tau_m)
    if infinite.any() and not infinite.all():
        raise ValueError(f"{name}: must leak in all channels or in none, as a node of NIR does, got {part.parameters}")
    if (tau_s == 1).all():
        if infinite.all():
            rise = np.full(shape, 1 / dt)
            return nir.IF(rise, threshold, zero) if part.fires else nir.I(rise)
        tau = tau_m * dt, tau_m, zero
        return nir.LIF(*tau, threshold, zero) if part.fires else nir.LI(*tau)
    if infinite.all():
        raise ValueError(
            f"{name}: NIR has no node with a synaptic current whose membrane does not leak, got {part.parameters}"
        )
    both = tau_s * dt, tau_m * dt, tau_m, zero
    if not part.fires:
        return nir.CubaLI(*both, w_in=np.ones(shape))
    if not approximate:
        raise ValueError(f"{name}: NIR has no such node for tau_s > 1, got {part.parameters}: {RESETS}")
    return nir.CubaLIF(*both, threshold * tau_s, zero, w_in=tau_s)  # the gain 1 that other libraries insist on
