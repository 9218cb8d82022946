"""Exchange of networks with snnTorch.

    snn.Leaky    u ← β·u + x     spike = u > θ     with reset_mechanism="zero" u counts as 0 at the step after a spike

so it is the neuron with τ_s = 1 and τ_m = 1/(1 − β), in the same order of floating-point operations. snn.RLeaky adds
the spikes of the step before; with reset_delay=True it also loses the input of the step after a spike, and differs.
"""

from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from srm_triton.convert.chain import Before, Neurons, join, plain_parts, split
from srm_triton.layers import LayerOptions
from srm_triton.parameters import SRMParameters

_DIFFERENCES = {
    "Synaptic": "resets the membrane potential and leaves the synaptic current, where an SRM neuron resets both",
    "RSynaptic": "resets the membrane potential and leaves the synaptic current, where an SRM neuron resets both",
    "Alpha": "fires by the difference of two currents, of which it resets neither as an SRM neuron does",
    "Lapicque": "scales its input by its resistance; use Leaky, with the scale in the weights",
}


def from_snntorch(network: nn.Module, **options: Unpack[LayerOptions]) -> nn.Module:
    """The layers that a network of snnTorch consists of; spikes are the same bit for bit where sums are.

    Args:
        network: `nn.Linear`, convolutions and so on with `snn.Leaky` or `snn.RLeaky` behind them, in `nn.Sequential`,
            as they process one step; or a neuron alone, which becomes an `SRMNeuron`.
        **options: as in `SRMLayer`, for all layers, but for the gradient, which is ``"surrogate"`` unless given, and
            ``output``, which the last layer has.

    Raises:
        TypeError: for modules without a counterpart.
        ValueError: for neurons with another reset or other options that SRM neurons do not have.

    Example:
        >>> import snntorch as snn
        >>> from_snntorch(nn.Sequential(nn.Linear(6, 4), snn.Leaky(beta=0.75, reset_mechanism="zero")))
        Sequential(
          (0): SRMLinear(
            in_features=6, out_features=4, bias=True, weight_norm=False, input_gradient=time
            (neuron): SRMNeuron(SRMParameters(tau_m=4.0, tau_s=1.0, tau_g=2.5, threshold=1.0), \
gradient=surrogate (arctan), output=True, batch_first=True)
          )
        )
    """
    layers = join(plain_parts(network, _from_leaky), options)
    return layers if isinstance(network, nn.Sequential) else layers[0]


def to_snntorch(network: nn.Module) -> nn.Sequential:
    """A network as modules of `torch.nn` and `snn.Leaky` or `snn.RLeaky` with ``init_hidden=True``, for one step.

    An `SRMReadout`, which must be last, becomes a Leaky with ``reset_mechanism="none"`` and ``output=True``, which
    returns spikes, without a meaning here, and potentials. Constants of gradients are left out, and dropout too.

    Args:
        network: layers of this package, in `nn.Sequential`, in evaluation if it holds dropout.

    Raises:
        TypeError: for modules without a counterpart.
        ValueError: for neurons with τ_s > 1.

    Example:
        >>> from snntorch import utils
        >>> from srm_triton import SRMLinear
        >>> network = nn.Sequential(SRMLinear(6, 4, SRMParameters(tau_m=10.0, tau_s=1.0))).eval()
        >>> inputs, steps = torch.rand(2, 20, 6), to_snntorch(network)
        >>> utils.reset(steps)
        >>> torch.equal(torch.stack([steps(step) for step in inputs.unbind(1)], 1), network(inputs))
        True
    """
    modules, before = nn.Sequential(), Before(torch.get_default_dtype())
    parts = split(network)
    for number, (name, part) in enumerate(parts.items(), 1):
        if isinstance(part, Neurons):
            modules.add_module(name, _to_leaky(name, part, before, last=number == len(parts)))
            continue
        modules.add_module(name, part)
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            before = Before(part.weight.dtype, part.weight.dim() - 2)
        elif isinstance(part, nn.Flatten):
            before = Before(before.dtype)
    return modules


def _from_leaky(name: str, module: Any, before: Before) -> Neurons | None:
    import snntorch

    if not isinstance(module, snntorch.SpikingNeuron):
        return None
    kind = type(module).__name__
    if type(module) not in (snntorch.Leaky, snntorch.RLeaky):
        difference = _DIFFERENCES.get(kind, "has no counterpart here")
        raise TypeError(f"{name}: must be a Leaky or RLeaky of snnTorch, got {kind}, which {difference}")
    if module.reset_mechanism != "zero":
        how = "subtracts the threshold at a spike" if module.reset_mechanism == "subtract" else "does not reset"
        raise ValueError(
            f"{name}: must have reset_mechanism='zero', as an SRM neuron starts from 0 after a spike, got a {kind} "
            f"with {module.reset_mechanism!r}, which {how}"
        )
    recurrent = None
    if type(module) is snntorch.RLeaky:
        recurrent = _own_weight(name, module)
    for option, usual in (("inhibition", False), ("state_quant", False)):
        if getattr(module, option) is not usual and getattr(module, option):
            raise ValueError(f"{name}: must have {option}={usual}, which SRM neurons do not know, got a {kind} with it")
    if (torch.as_tensor(module.graded_spikes_factor) != 1).any():
        raise ValueError(f"{name}: must have graded_spikes_factor=1, as spikes of SRM neurons are 0 or 1")
    beta = _per_channel(name, "beta", module.beta, before).clamp(0, 1)
    if not (beta > 0).all():
        raise ValueError(f"{name}: must have beta > 0, got {module.beta.tolist()}: tau_m = 1/(1 − beta) must be > 1")
    threshold = _per_channel(name, "threshold", module.threshold, before)
    return Neurons(SRMParameters(1 / (1 - beta), 1.0, threshold=threshold), recurrent=recurrent)


def _own_weight(name: str, module: Any) -> Tensor:
    if module.reset_delay:
        raise ValueError(
            f"{name}: must have reset_delay=False, got an RLeaky with reset_delay=True, which also loses the input of "
            "the step after a spike"
        )
    own = module.recurrent
    if not isinstance(own, nn.Linear):
        raise ValueError(f"{name}: must have an nn.Linear of its spikes, got an RLeaky with {type(own).__name__}")
    if own.bias is not None and own.bias.any():
        raise ValueError(f"{name}: must have recurrent.bias = 0, as SRMRecurrent has one bias, got another")
    return own.weight.detach()


def _per_channel(name: str, key: str, value: Tensor, before: Before) -> Tensor:
    """A constant of neurons, which broadcasts over [channels, ...], as one value or one for each channel."""
    value = torch.as_tensor(value).detach().to(torch.float64)
    if value.numel() == 1:
        return value.flatten()[0]
    shape = [value.numel(), *[1] * before.space]
    if list(value.shape) != shape:
        raise ValueError(
            f"{name}: {key} must hold one value or one for each channel, [channels{', 1' * before.space}], "
            f"got {list(value.shape)}"
        )
    return value.flatten()


def _to_leaky(name: str, part: Neurons, before: Before, *, last: bool) -> nn.Module:
    import snntorch

    parameters = part.parameters
    if (parameters.tau_s != 1).any():
        raise ValueError(f"{name}: Leaky has no synaptic current, tau_s must be 1, got {parameters}")
    if not part.fires and not last:
        raise ValueError(f"{name}: an SRMReadout must be the last layer")
    shape = (-1, *[1] * before.space)
    beta, threshold = (
        (value.to(before.dtype).reshape(shape) if value.dim() else value.to(before.dtype))
        for value in (1 - 1 / parameters.tau_m.detach(), parameters.threshold.detach())
    )
    if not part.fires:
        return cast("nn.Module", snntorch.Leaky(beta, reset_mechanism="none", init_hidden=True, output=True))
    options: Any = {"threshold": threshold, "reset_mechanism": "zero", "init_hidden": True, "reset_delay": False}
    if part.recurrent is None:
        return cast("nn.Module", snntorch.Leaky(beta, **options))
    module = snntorch.RLeaky(beta, linear_features=len(part.recurrent), **options)
    own = skip_init(nn.Linear, *part.recurrent.shape, bias=False, dtype=part.recurrent.dtype)
    own.weight.data.copy_(part.recurrent)
    module.recurrent = own
    return cast("nn.Module", module)
