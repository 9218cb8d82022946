"""A network as a chain of parts that other formats know too: plain maps of a single step, and neurons.

`split` takes the layers of this package apart, with weights as they are applied, normalised or not; `join` makes layers
of parts. A format then needs to know its own names of neurons only.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from srm_triton.layers import LayerOptions, SRMAffine, SRMConv1d, SRMConv2d, SRMConv3d, SRMLinear
from srm_triton.networks import DropoutOverTime
from srm_triton.neuron import SRMNeuron
from srm_triton.parameters import SRMParameters
from srm_triton.pooling import SpikeAvgPool2d
from srm_triton.readout import SRMReadout
from srm_triton.recurrent import SRMRecurrent


@dataclass(frozen=True)
class Before:
    """What stands before neurons of another library."""

    dtype: torch.dtype
    """In which it computes."""
    space: int = 0
    """Number of its axes behind the channels."""


@dataclass(frozen=True)
class Neurons:
    """Neurons, without the map before them."""

    parameters: SRMParameters
    fires: bool = True
    """False for those of an `SRMReadout`."""
    recurrent: Tensor | None = None
    """Weight of their own spikes of the step before, [features, features]."""


Part = nn.Module | Neurons
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Affine = nn.Linear | Convolution

LAYERS: dict[type[nn.Module], Any] = {
    nn.Linear: SRMLinear,
    nn.Conv1d: SRMConv1d,
    nn.Conv2d: SRMConv2d,
    nn.Conv3d: SRMConv3d,
}
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, DropoutOverTime)


def split(network: nn.Module) -> dict[str, Part]:
    """The parts of a network of this package, by name, with copies of its weights; neurons are called `…_neurons`.

    Raises:
        TypeError: for a module that is no layer of this package, pooling, flattening or `nn.Linear`.
        ValueError: for a module that is not the same at every step, such as dropout in training.
    """
    parts: dict[str, Part] = {}
    for name, module in leaves(network):
        kind = next((kind for kind, layer in LAYERS.items() if type(module) is layer), None)
        layer = cast("Any", module)
        if kind is not None or type(module) is SRMRecurrent:
            parts[name] = affine_like(layer, layer.effective_weight(), kind or nn.Linear)
            own = layer.effective_recurrent_weight() if type(module) is SRMRecurrent else None
            parts[f"{name}_neurons"] = Neurons(layer.neuron.srm_parameters, recurrent=own)
        elif type(module) is SRMReadout:
            parts[name] = affine_like(module, module.weight, nn.Linear)
            parts[f"{name}_neurons"] = Neurons(module.neuron.srm_parameters, fires=False)
        elif type(module) is SRMAffine and type(module.affine) in LAYERS:
            parts[name] = module.affine
            parts[f"{name}_neurons"] = Neurons(module.neuron.srm_parameters)
        elif type(module) is SRMNeuron:
            parts[name] = Neurons(module.srm_parameters)
        elif type(module) is SpikeAvgPool2d:
            parts[name] = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
        elif type(module) is nn.Flatten:
            parts[name] = _flatten(name, module, -1)
        elif type(module) is nn.Linear:
            parts[name] = module
        elif not _is_identity(name, module, type(module)):
            raise TypeError(
                f"network must consist of layers of this package, SpikeAvgPool2d, nn.Flatten and nn.Linear, in "
                f"nn.Sequential, got {type(module).__name__} at {name!r}"
            )
    return parts


def join(parts: Mapping[str, Part], options: LayerOptions) -> nn.Sequential:
    """The layers that consist of these parts; those whose spikes are the network's output have ``output=True``.

    Raises:
        TypeError: for an option that layers do not have.
        ValueError: for an affine map without neurons behind it, but for an `nn.Linear` at the end.
    """
    if unknown := set(options) - LayerOptions.__optional_keys__:
        raise TypeError(f"options must be among {', '.join(LayerOptions.__annotations__)}, got {min(unknown)}")
    options = {"gradient": "surrogate", **options}
    network, affine = nn.Sequential(), cast("tuple[str, Affine] | None", None)
    for number, (name, part) in enumerate(parts.items(), 1):
        if isinstance(part, Neurons):
            network.add_module(*_layer(name, part, affine, options, last=number == len(parts)))
            affine = None
            continue
        if affine is not None:
            raise ValueError(f"{affine[0]}: must have neurons behind it, got {type(part).__name__}")
        if type(part) in LAYERS:
            affine = name, cast("Affine", part)
        elif isinstance(part, nn.AvgPool2d):
            network.add_module(name, _pool(name, part, options))
        else:
            network.add_module(name, _flatten(name, cast("nn.Flatten", part), 1))
    if affine is not None:
        name, last = affine
        if not isinstance(last, nn.Linear):
            raise ValueError(f"{name}: must have neurons behind it, got {type(last).__name__} as the last part")
        network.add_module(name, last)
    return network


def leaves(network: nn.Module, *containers: type[nn.Module], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules within `nn.Sequential`s and other containers, in their order, with names that have no dots.

    Raises:
        TypeError: for anything but a module.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    if type(network).forward is not nn.Sequential.forward and type(network) not in containers:
        yield name or "0", network
        return
    for key, module in network.named_children():
        yield from leaves(module, *containers, name=f"{name}_{key}" if name else key)


def plain_parts(
    network: nn.Module,
    neurons: Callable[[str, nn.Module, Before], Neurons | None],
    kinds: Mapping[type[nn.Module], type[nn.Module]] | None = None,
    *containers: type[nn.Module],
) -> dict[str, Part]:
    """The parts of another library's network, batch normalisation taken into the weights before it.

    Args:
        network: modules of `torch.nn` and of that library, in nested `nn.Sequential`s, or one of them.
        neurons: what a module with a name is, by what stands before it; None for what is no neuron.
        kinds: what else counts as a module of `torch.nn`.
        *containers: what else counts as `nn.Sequential`.

    Raises:
        TypeError: for other modules, and dtypes other than float32 and float64.
        ValueError: for modules in training that are then not the same at every step, or nothing to normalise.
    """
    parts: dict[str, Part] = {}
    before, last = Before(torch.get_default_dtype()), ""
    for name, module in leaves(network, *containers):
        kind = (kinds or {}).get(type(module), type(module))
        found = neurons(name, module, before)
        if found is not None:
            parts[name] = found
        elif kind in LAYERS:
            affine = cast("Affine", module)
            if affine.weight.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"{name}: must have weights in float32 or float64, got {affine.weight.dtype}")
            before = Before(affine.weight.dtype, 0 if kind is nn.Linear else affine.weight.dim() - 2)
            parts[name] = affine_like(affine, affine.weight, kind)
        elif kind in _NORMALIZATIONS:
            parts[last] = _normalised(name, cast("nn.BatchNorm2d", module), parts.get(last))
            continue
        elif kind is nn.AvgPool2d:
            parts[name] = module
        elif kind is nn.Flatten:
            parts[name], before = module, Before(before.dtype)
        elif not _is_identity(name, module, kind):
            raise TypeError(
                f"network must consist of nn.Linear, convolutions, batch normalisation, nn.AvgPool2d, nn.Flatten and "
                f"neurons, in nn.Sequential, got {type(module).__name__} at {name!r}"
            )
        else:
            continue
        last = name
    return parts


def affine_like(module: Affine, weight: Tensor, kind: type[nn.Module]) -> Affine:
    """The map of `torch.nn` with the sizes and the bias of a module, and a copy of another weight."""
    names = ["in_features", "out_features"]
    if not issubclass(kind, nn.Linear):
        names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
        names.append("padding_mode")
    sizes = {name: getattr(module, name) for name in names}
    affine = cast("Affine", kind(**sizes, bias=module.bias is not None).to(weight.device, weight.dtype))
    _copy(affine, weight, module.bias)
    return affine


def _copy(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)


def _layer(
    name: str, neurons: Neurons, before: tuple[str, Affine] | None, options: LayerOptions, *, last: bool
) -> tuple[str, nn.Module]:
    if before is None and neurons.fires and neurons.recurrent is None:
        allowed = ("learn", "gradient", "surrogate", "batch_first")
        chosen: Any = {key: value for key, value in options.items() if key in allowed}
        return name, SRMNeuron(neurons.parameters, **chosen)
    affine = before[1] if before else None
    if affine is None or not (isinstance(affine, nn.Linear) or (neurons.fires and neurons.recurrent is None)):
        what = "neurons that do not fire" if neurons.recurrent is None else "recurrent neurons"
        raise ValueError(f"{name}: {what} must have an nn.Linear before them, got {type(affine).__name__}")
    like: Any = {"device": affine.weight.device, "dtype": affine.weight.dtype, "bias": affine.bias is not None}
    layer: Any
    if not neurons.fires and isinstance(affine, nn.Linear):
        chosen = {key: value for key, value in options.items() if key in ("keep", "batch_first")}
        layer = SRMReadout(affine.in_features, affine.out_features, neurons.parameters, **chosen, **like)
    else:
        like |= {"parameters": neurons.parameters, "weight_norm": False}
        if isinstance(affine, nn.Linear):
            sizes: tuple[Any, ...] = (affine.in_features, affine.out_features)
        else:
            sizes = affine.in_channels, affine.out_channels, affine.kernel_size, affine.stride, affine.padding
            sizes += affine.dilation, affine.groups
            like["padding_mode"] = affine.padding_mode
        if neurons.recurrent is not None:
            layer = SRMRecurrent(*sizes, **like, **options)
            with torch.no_grad():
                layer.recurrent_weight.copy_(neurons.recurrent)
        else:
            layer = LAYERS[type(affine)](*sizes, **like, **{**options, "output": last})
    _copy(layer, affine.weight, affine.bias)
    return cast("tuple[str, Affine]", before)[0], layer


def _pool(name: str, pool: nn.AvgPool2d, options: LayerOptions) -> SpikeAvgPool2d:
    if pool.ceil_mode or not pool.count_include_pad or pool.divisor_override is not None:
        raise ValueError(
            f"{name}: must divide by the size of the whole window, which no window leaves; got {pool} with "
            f"ceil_mode={pool.ceil_mode}, count_include_pad={pool.count_include_pad}"
        )
    chosen: Any = {key: value for key, value in options.items() if key in ("gradient", "keep")}
    return SpikeAvgPool2d(cast("Any", pool.kernel_size), cast("Any", pool.stride), cast("Any", pool.padding), **chosen)


def _flatten(name: str, flatten: nn.Flatten, further: int) -> nn.Flatten:
    """The same with an axis of time behind that of the batch, or without it."""
    dims = [dim + further if dim >= 0 else dim for dim in (flatten.start_dim, flatten.end_dim)]
    if min(dims[0], flatten.start_dim) == 0 or dims[1] == 0 or (further < 0 and flatten.start_dim == 1):
        raise ValueError(f"{name}: must leave batch and time as they are, got {flatten}")
    return nn.Flatten(*dims)


def _is_identity(name: str, module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does nothing, as dropout in evaluation."""
    if kind not in _IDENTITIES:
        return False
    if module.training and kind is not nn.Identity:
        raise ValueError(f"{name}: must not drop outputs, got {type(module).__name__} in training; call .eval() first")
    return True


def _normalised(name: str, norm: nn.BatchNorm2d, affine: Part | None) -> Affine:
    if norm.training or norm.running_mean is None:
        raise ValueError(f"{name}: must have fixed statistics, got {type(norm).__name__} in training; call .eval()")
    if isinstance(affine, nn.Linear):
        return fusion.fuse_linear_bn_eval(affine.eval(), norm)
    if not isinstance(affine, nn.Module) or type(affine) not in LAYERS:
        raise ValueError(f"{name}: must stand behind an affine map, got {type(affine).__name__} before it")
    return fusion.fuse_conv_bn_eval(cast("Any", affine).eval(), norm)
