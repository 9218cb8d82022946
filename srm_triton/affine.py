"""An affine map and the neurons behind it, joined because the event-driven gradient takes two ways through them.

With current = W·inputs + b and the two results of the neurons' backward (`srm_triton.ops.srm_scan`):

    grad_W, grad_b = those of an ordinary layer whose current received the weight path
    grad_inputs    = time_gradient_scale · Wᵀ·time path          (a convolution also multiplies by the inputs)

so inputs that are spikes receive gradients with respect to their times, damped by 0.85 in the published code. Inputs
that are values, computed by ordinary layers, receive Wᵀ·weight path, the derivative: `input_gradient="value"`. With the
surrogate gradient there is one path, and nothing is damped.

Inputs that repeat over time (stride 0, as `expand` makes them) are mapped once, and every step has the same current.
Source: the code of Zhu et al., NeurIPS 2022 and 2023.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp

from srm_triton.checks import check_number, check_option, check_same, check_size, check_sizes, check_tensor, time_axes
from srm_triton.functions import Function, Gradients, once_differentiable, transforms_active
from srm_triton.ops.srm_scan import Gradient, Surrogate, check_gradient, scan
from srm_triton.parameters import SRMParameters, SRMState, check_parameters

InputGradient = Literal["time", "value"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Map(Protocol):
    """An affine map of samples [samples, ...], with the tensors that it is made of."""

    def __call__(self, samples: Tensor, *tensors: Any) -> Tensor:
        """What it maps the samples to; autograd sees all of it."""

    def transpose(self, grad: Tensor, samples: Tensor, *tensors: Any) -> Tensor:
        """The time path of the samples, given that of the current."""


@dataclass(frozen=True)
class Linear:
    """A matrix product with a weight and a bias or None."""

    def __call__(self, samples: Tensor, *tensors: Any) -> Tensor:
        """[samples, in_features] to [samples, out_features]."""
        return F.linear(samples, *tensors)

    def transpose(self, grad: Tensor, samples: Tensor, *tensors: Any) -> Tensor:
        """See `Map`."""
        return grad @ tensors[0].to(grad.dtype)


@dataclass(frozen=True)
class Convolution:
    """A convolution with a weight and a bias or None, in 1 to 3 dimensions."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, samples: Tensor, *tensors: Any) -> Tensor:
        """[samples, in_channels, ...] to [samples, out_channels, ...]."""
        convolve: Callable[..., Tensor] = CONVOLUTIONS[len(self.stride)]
        return convolve(samples, *tensors, self.stride, self.padding, self.dilation, self.groups)

    def transpose(self, grad: Tensor, samples: Tensor, *tensors: Any) -> Tensor:
        """See `Map`."""
        grad_samples: Tensor = torch.ops.aten.convolution_backward(
            grad, samples.to(grad.dtype), tensors[0].to(grad.dtype), None, self.stride, self.padding, self.dilation,
            False, (0,) * len(self.stride), self.groups, (True, False, False),
        )[0]  # fmt: skip
        return grad_samples * samples


@dataclass(frozen=True)
class ModuleMap:
    """A module that is affine in its inputs; the tensors are its parameters, by name."""

    module: nn.Module
    names: tuple[str, ...]
    by_inputs: bool
    """Whether the time path is multiplied by the inputs, as a convolution's is."""

    def __call__(self, samples: Tensor, *tensors: Any) -> Tensor:
        """What the module returns, its hooks included."""
        current: Tensor = self.module(samples)
        return current

    def transpose(self, grad: Tensor, samples: Tensor, *tensors: Any) -> Tensor:
        """See `Map`; an affine map's derivative does not depend on where it is taken."""

        def apply(x: Tensor) -> Tensor:
            return functional_call(self.module, dict(zip(self.names, tensors, strict=True)), x).to(grad.dtype)

        grad_samples: Tensor = vjp(apply, samples)[1](grad)[0]
        return grad_samples * samples if self.by_inputs else grad_samples


class _TimePath(Function):
    """Stands for the current where it depends on the times of earlier spikes; it takes no memory."""

    @staticmethod
    def forward(samples: Tensor, current: Tensor, affine: Map, scale: float, *tensors: Tensor | None) -> Tensor:
        return current.new_zeros(()).expand(samples.shape[0], *current.shape[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        samples, _, ctx.affine, ctx.scale, *tensors = inputs
        ctx.save_for_backward(samples, *tensors)

    @staticmethod
    @once_differentiable("spiking layers")
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> Gradients:
        samples, *tensors = saved
        grad_samples = ctx.affine.transpose(grad, samples, *tensors) * ctx.scale
        return grad_samples.to(samples.dtype), None, None, None, *[None] * len(tensors)


@dataclass(frozen=True)
class Rules:
    """How gradients pass a layer, checked once.

    Raises:
        TypeError: for a scale that is no number.
        ValueError: for another option.
    """

    gradient: Gradient = "event"
    surrogate: Surrogate = "arctan"
    output: bool = False
    input_gradient: InputGradient = "time"
    time_gradient_scale: float = 0.85

    def __post_init__(self) -> None:
        check_gradient(self.gradient, self.surrogate)
        check_option("output", self.output, (False, True))
        check_option("input_gradient", self.input_gradient, get_args(InputGradient))
        scale = check_number("time_gradient_scale", self.time_gradient_scale, 0)
        object.__setattr__(self, "time_gradient_scale", scale)

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Rules":
        """The rules that a caller's keyword arguments give.

        Raises:
            TypeError: for one that is no rule.
        """
        if unknown := options.keys() - {field.name for field in fields(cls)}:
            raise TypeError(
                f"unexpected keyword argument {min(unknown)!r}; rules are {', '.join(f.name for f in fields(cls))}, "
                "and constants of the neurons go into parameters=SRMParameters(…)"
            )
        return cls(**options)

    @property
    def name(self) -> str:
        """The rule as the scan takes it."""
        return self.surrogate if self.gradient == "surrogate" else self.gradient

    @property
    def splits(self) -> bool:
        """Whether inputs receive the time path."""
        return self.gradient != "surrogate" and self.input_gradient == "time"


def map_inputs(
    inputs: Tensor, affine: Map, tensors: tuple[Tensor | None, ...], rules: Rules, time_axis: int
) -> tuple[Tensor, Tensor | None]:
    """The current, and what stands for it on the way to earlier spike times, if there is one.

    Args:
        inputs: [batch, time, ...], or with time first.
        affine: maps [batch · time, ...].
        tensors: what it is made of.
        rules: how gradients pass.
        time_axis: 0 or 1.
    """
    # transforms hide what needs a gradient
    split = rules.splits and torch.is_grad_enabled() and (inputs.requires_grad or transforms_active())
    # inputs mapped once would receive the gradient of all steps at the first
    repeats = _repeats(inputs, time_axis) and (split or not inputs.requires_grad)
    distinct = inputs.narrow(time_axis, 0, 1) if repeats else inputs
    samples = (distinct.detach() if split else distinct).flatten(0, 1)
    mapped = affine(samples, *tensors)
    current = mapped.unflatten(0, distinct.shape[:2])
    if repeats:
        current = current.expand(*inputs.shape[:2], *mapped.shape[1:])
    if not split:
        return current, None
    detached = (None if tensor is None else tensor.detach() for tensor in tensors)
    earlier = _TimePath.apply(inputs.flatten(0, 1), mapped.detach(), affine, rules.time_gradient_scale, *detached)
    return current, earlier.unflatten(0, inputs.shape[:2])


def _spiking_affine(
    inputs: Tensor,
    affine: Map,
    weight: Tensor,
    bias: Tensor | None,
    parameters: SRMParameters | None,
    state: SRMState | None,
    options: dict[str, Any],
    return_state: bool,
    batch_first: bool,
) -> Any:
    if bias is not None:
        check_tensor("bias", bias, "[channels]")
        check_same("bias", bias, "weight", weight)
        check_size("bias", bias, 0, len(weight), "channels of weight")
    rules = Rules.of(options)
    current, earlier = map_inputs(inputs, affine, (weight, bias), rules, 1 if batch_first else 0)
    return scan(
        current,
        earlier,
        check_parameters(parameters),
        state,
        rule=rules.name,
        output=rules.output,
        return_state=return_state,
        batch_first=batch_first,
    )


def prepare_inputs(inputs: Any, weight: Tensor, axes: str) -> Tensor:
    """Checks inputs, and converts events (bool and integers, which need no gradient) to the weight's dtype.

    Raises:
        TypeError: for anything but a tensor of numbers, or of another floating-point dtype outside of autocast.
        ValueError: for another rank or device.
    """
    inputs = as_floats(inputs, weight.dtype)
    check_tensor("inputs", inputs, axes)
    kind = inputs.device.type
    if not (kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)):
        check_same("inputs", inputs, "weight", weight)
    return inputs


def as_floats(inputs: Any, dtype: torch.dtype) -> Any:
    """Events, bool or integers, in `dtype`; anything else as it is."""
    if isinstance(inputs, Tensor) and not inputs.is_floating_point() and not inputs.is_complex():
        return inputs.to(dtype)
    return inputs


def _repeats(inputs: Tensor, time_axis: int) -> bool:
    if torch.compiler.is_exporting():  # an exported program would take all inputs for such, unlike a compiled one
        return False
    return inputs.stride(time_axis) == 0 and inputs.shape[time_axis] > 1


def srm_linear(
    inputs: Tensor,
    weight: Tensor,
    parameters: SRMParameters | None = None,
    state: SRMState | None = None,
    *,
    bias: Tensor | None = None,
    return_state: bool = False,
    batch_first: bool = True,
    **rules: Any,
) -> Any:
    """A matrix product followed by SRM neurons, with either gradient for both.

    Args:
        inputs: spikes or values, [batch, time, in_features]; bool and integer events too.
        weight: [out_features, in_features], in the dtype of `inputs` (under autocast both are converted).
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        state: what the neurons begin with, as `srm_scan` takes it.
        bias: [out_features], or None.
        return_state: whether to return the state after the last step too.
        batch_first: False for inputs and spikes as [time, batch, ...].
        **rules: `gradient`, `surrogate`, `output`, `input_gradient` and `time_gradient_scale`, as in `SRMLayer`.

    Returns:
        Spikes, [batch, time, out_features], and with `return_state` the state.

    Raises:
        TypeError: for tensors of other or different dtypes.
        ValueError: for shapes that do not fit, or another option.

    Example:
        >>> srm_linear(torch.ones(1, 4, 2), torch.ones(3, 2)).sum(1)
        tensor([[2., 2., 2.]])
    """
    check_tensor("weight", weight, "[out_features, in_features]")
    inputs = prepare_inputs(inputs, weight, time_axes(batch_first, "in_features"))
    check_size("inputs", inputs, 2, weight.shape[1], "in_features of weight")
    return _spiking_affine(inputs, Linear(), weight, bias, parameters, state, rules, return_state, batch_first)


def srm_conv2d(
    inputs: Tensor,
    weight: Tensor,
    parameters: SRMParameters | None = None,
    state: SRMState | None = None,
    *,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    return_state: bool = False,
    batch_first: bool = True,
    **rules: Any,
) -> Any:
    """A 2-D convolution followed by SRM neurons, with either gradient for both.

    Args:
        inputs: spikes or values, [batch, time, in_channels, height, width]; bool and integer events too.
        weight: [out_channels, in_channels / groups, kernel_height, kernel_width], in the dtype of `inputs` (under
            autocast both are converted).
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        state: what the neurons begin with, as `srm_scan` takes it.
        bias: [out_channels], or None.
        stride: an int or a pair, as in `torch.nn.functional.conv2d`; likewise `padding` (zeros) and `dilation`.
        padding: see `stride`.
        dilation: see `stride`.
        groups: number of blocks of channels.
        return_state: whether to return the state after the last step too.
        batch_first: False for inputs and spikes as [time, batch, ...].
        **rules: as in `srm_linear`.

    Returns:
        Spikes, [batch, time, out_channels, out_height, out_width], and with `return_state` the state.

    Raises:
        TypeError: for tensors of other or different dtypes.
        ValueError: for shapes that do not fit, or another option.

    Example:
        >>> srm_conv2d(torch.ones(1, 4, 1, 5, 5), torch.ones(2, 1, 3, 3)).shape
        torch.Size([1, 4, 2, 3, 3])
    """
    check_tensor("weight", weight, "[out_channels, in_channels / groups, kernel_height, kernel_width]")
    inputs = prepare_inputs(inputs, weight, time_axes(batch_first, "in_channels, height, width"))
    groups = check_number("groups", groups, 1, whole=True)
    check_size("inputs", inputs, 2, weight.shape[1] * groups, "in_channels of weight")
    sizes = check_sizes("stride", stride, 1), check_sizes("padding", padding, 0), check_sizes("dilation", dilation, 1)
    convolution = Convolution(*sizes, groups)
    return _spiking_affine(inputs, convolution, weight, bias, parameters, state, rules, return_state, batch_first)
