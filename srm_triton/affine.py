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

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp

from srm_triton.backend import requested_backend
from srm_triton.checks import (
    check_held,
    check_number,
    check_option,
    check_same,
    check_size,
    check_sizes,
    check_tensor,
    time_axes,
)
from srm_triton.functions import (
    Function,
    Gradients,
    once_differentiable,
    refuse_random_numbers,
    traced,
    transforms_active,
)
from srm_triton.levels import KEEPS, Keep, decode, encode, mark
from srm_triton.ops.batch_norm import batch_norm, check_vector, normalise, normalise_backward
from srm_triton.ops.gather_linear import gather_linear
from srm_triton.ops.srm_scan import (
    Gradient,
    Scan,
    Surrogate,
    check_fits,
    check_gradient,
    check_spike_dtype,
    needs_gradient,
)
from srm_triton.parameters import SRMParameters, SRMState, check_parameters, stack_state, unstack_state
from srm_triton.precision import as_autocast, autocast_of

InputGradient = Literal["time", "value"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Map(Protocol):
    """An affine map of samples [samples, ...], with the tensors that it is made of."""

    @property
    def eps(self) -> float | None:
        """If given, the tensors are weight, bias, gain and offset, and the weight is normalised (see `applied`)."""

    def __call__(self, samples: Tensor, *tensors: Any) -> Tensor:
        """What it maps the samples to; autograd sees all of it."""

    def transpose(self, grad: Tensor, samples: Tensor, scale: float, *tensors: Any) -> Tensor:
        """The time path of the samples, given that of the current, times `scale`."""

    def derivatives(self, grad: Tensor, samples: Tensor, needed: Sequence[bool], *tensors: Any) -> Gradients:
        """Gradients of the samples and of each tensor, as far as they are `needed`, given that of the current."""


@dataclass(frozen=True)
class Linear:
    """A matrix product with a weight and a bias or None."""

    eps: float | None = None

    def __call__(self, samples: Tensor, *tensors: Any) -> Tensor:
        """[samples, in_features] to [samples, out_features]."""
        gathered = None if needs_gradient(samples, *tensors) else gather_linear(samples, *tensors)
        return F.linear(_as_computed(samples, tensors), *tensors) if gathered is None else gathered

    def transpose(self, grad: Tensor, samples: Tensor, scale: float, *tensors: Any) -> Tensor:
        """See `Map`."""
        return torch.addmm(grad.new_empty(1), grad, tensors[0].to(grad.dtype), beta=0, alpha=scale)

    def derivatives(self, grad: Tensor, samples: Tensor, needed: Sequence[bool], *tensors: Any) -> Gradients:
        """See `Map`."""
        return (
            grad @ tensors[0] if needed[0] else None,
            grad.t() @ samples if needed[1] else None,
            grad.sum(0) if needed[2] else None,
        )


@dataclass(frozen=True)
class Convolution:
    """A convolution with a weight and a bias or None, in 1 to 3 dimensions."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    eps: float | None = None

    def __call__(self, samples: Tensor, *tensors: Any) -> Tensor:
        """[samples, in_channels, ...] to [samples, out_channels, ...]."""
        convolve: Callable[..., Tensor] = CONVOLUTIONS[len(self.stride)]
        return convolve(_as_computed(samples, tensors), *tensors, self.stride, self.padding, self.dilation, self.groups)

    def transpose(self, grad: Tensor, samples: Tensor, scale: float, *tensors: Any) -> Tensor:
        """See `Map`; the scale is taken by the weight, which is smaller."""
        samples, weight = samples.to(grad.dtype), tensors[0].to(grad.dtype) * scale
        return self._backward(grad, samples, weight, (True, False, False))[0].mul_(samples)

    def derivatives(self, grad: Tensor, samples: Tensor, needed: Sequence[bool], *tensors: Any) -> Gradients:
        """See `Map`."""
        return tuple(self._backward(grad, samples, tensors[0], needed))

    def _backward(self, grad: Tensor, samples: Tensor, weight: Tensor, needed: Sequence[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            grad, samples, weight, (len(weight),), self.stride, self.padding, self.dilation, False,
            (0,) * len(self.stride), self.groups, needed,
        )  # fmt: skip


@dataclass(frozen=True)
class ModuleMap:
    """A module that is affine in its inputs; the tensors are its parameters, by name."""

    module: nn.Module
    names: tuple[str, ...]
    by_inputs: bool
    """Whether the time path is multiplied by the inputs, as a convolution's is."""

    modes: tuple[bool, ...] = ()
    """Which of its parts are in training, for the layer that runs it again in the backward."""

    eps = None

    def __call__(self, samples: Tensor, *tensors: Any) -> Tensor:
        """What the module returns, its hooks included."""
        current: Tensor = self.module(_as_computed(samples, tensors))
        return current

    def transpose(self, grad: Tensor, samples: Tensor, scale: float, *tensors: Any) -> Tensor:
        """See `Map`; an affine map's derivative does not depend on where it is taken."""
        samples = samples.to(tensors[0].dtype) if tensors else samples  # small spikes

        def apply(x: Tensor) -> Tensor:
            return functional_call(self.module, dict(zip(self.names, tensors, strict=True)), x).to(grad.dtype)

        grad_samples: Tensor = vjp(apply, samples)[1](grad)[0] * scale
        return grad_samples * samples if self.by_inputs else grad_samples

    def check_again(self) -> None:
        """Checks, in the backward, that the module maps as it did.

        Raises:
            RuntimeError: if parts of the module changed between training and evaluation.
        """
        if self.modes != modes_of(self.module):
            raise RuntimeError('affine must be in the mode, training or evaluation, of its forward with keep="spikes"')

    def derivatives(self, grad: Tensor, samples: Tensor, needed: Sequence[bool], *tensors: Any) -> Gradients:
        """See `Map`; the module runs once more."""
        with torch.enable_grad():
            leaves = [
                tensor.detach().requires_grad_(wanted)
                for tensor, wanted in zip((samples, *tensors), needed, strict=True)
            ]
            current = functional_call(self.module, dict(zip(self.names, leaves[1:], strict=True)), leaves[0])
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(current, wanted, grad.to(current.dtype), allow_unused=True))
        return tuple(next(found) if leaf.requires_grad else None for leaf in leaves)


def modes_of(module: nn.Module) -> tuple[bool, ...]:
    """Which parts of a module are in training."""
    return tuple(part.training for part in module.modules())


class _Joint(NamedTuple):
    """How a map and its neurons run, the same in both directions."""

    affine: Map
    scan: Scan
    split: bool
    """Whether the inputs receive the time path."""
    scale: float
    """What that is multiplied by."""
    repeats: bool
    """Whether the inputs are the same at every step, and mapped once."""
    lean: bool
    """Whether inputs are kept in their levels, and the current is computed again."""
    autocast: torch.dtype | None
    """What products are converted to."""


class _MapAndFire(Function):
    """An affine map and the neurons behind it.

    Returns the spikes, the state after the last step, and what the backward needs.
    """

    traceable = False

    @staticmethod
    def forward(
        inputs: Tensor, constants: Tensor, initial: Tensor | None, how: _Joint, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        applied, statistics = _applied(how, tensors)
        again = how.lean and isinstance(how.affine, ModuleMap)
        with refuse_random_numbers("affine with keep='spikes'", inputs.device) if again else nullcontext():
            current = _current(inputs, how.affine, applied, how.scan.time_axis, how.repeats)
        check_fits(current, constants, initial, how.scan.time_axis)
        results = how.scan.forward(current, constants, initial)
        if how.lean:
            return tuple(results)
        return (*results, current) if statistics is None else (*results, current, applied[0], statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        mapped, constants, initial, ctx.how, *tensors = inputs
        kept = output[1 + ctx.how.scan.return_state :]
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.count = len(tensors)
        saved: tuple[Tensor, ...] = (mapped,)
        if ctx.how.lean:
            saved, ctx.form = encode(mapped)
        ctx.coded = len(saved)
        ctx.save_for_backward(constants, initial, *tensors, *saved, *kept)

    @staticmethod
    @once_differentiable("spiking layers")
    def backward(ctx: Any, saved: tuple[Tensor, ...], *gradients: Tensor | None) -> Gradients:
        how: _Joint = ctx.how
        constants, initial, *rest = saved
        given, rest = rest[: ctx.count], rest[ctx.count :]
        coded, kept = tuple(rest[: ctx.coded]), rest[ctx.coded :]
        if how.lean:
            inputs = decode(coded, ctx.form)
            tensors, current, statistics = _compute_again(how, inputs, given)
        else:
            inputs, tensors, statistics = coded[0], given, None
            if how.affine.eps is not None:
                *kept, weight, statistics = kept
                tensors = weight, given[1]
            *kept, current = kept
        of_inputs, of_constants, of_initial, _, *of_tensors = ctx.needs_input_grad
        needed = of_inputs and not how.split, *of_tensors
        if statistics is not None:
            of_weight, of_bias, *of_norm = of_tensors
            needed = needed[0], of_weight or any(of_norm), of_bias
        asked = [any(needed), of_inputs and how.split, of_initial, of_constants]
        dtype = current.dtype
        weight_path, time_path, grad_initial, grad_constants = how.scan.backward(
            gradients, current, constants, initial, kept, asked
        )
        del current, kept  # as below: each is as large as the sequence
        samples, shape = inputs.flatten(0, 1), inputs.shape[:2]
        originals = inputs, *tensors
        runs_again = isinstance(how.affine, ModuleMap)
        if not runs_again and (samples.dtype != dtype or tensors[0].dtype != dtype):  # under autocast
            samples = samples.to(dtype)
            tensors = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
        found: Gradients = (None,) * len(needed)
        if weight_path is not None:
            distinct = samples
            if how.repeats:
                weight_path = weight_path.sum(how.scan.time_axis, keepdim=True)
                distinct = samples.unflatten(0, shape).narrow(how.scan.time_axis, 0, 1).flatten(0, 1)
            with as_autocast(inputs, how.autocast) if runs_again else nullcontext():
                distinct = _as_computed(distinct, tensors)
                found = how.affine.derivatives(weight_path.flatten(0, 1), distinct, needed, *tensors)
            del weight_path
        if time_path is not None:
            found = how.affine.transpose(time_path.flatten(0, 1), samples, how.scale, *tensors), *found[1:]
        grad_inputs, *others = (None if g is None else _as(g, o) for g, o in zip(found, originals, strict=True))
        if statistics is not None:
            grad_weight, *of_norm = _normalise_backward(how, others[0], given, statistics)
            others = [grad_weight, others[1], *of_norm]
        grad_inputs = None if grad_inputs is None else grad_inputs.unflatten(0, shape)
        return grad_inputs, grad_constants, grad_initial, None, *others


def _applied(how: _Joint, tensors: Sequence[Tensor | None]) -> tuple[tuple[Any, ...], Tensor | None]:
    """The tensors that the map takes, and the statistics by which the weight was normalised, if it was."""
    if how.affine.eps is None:
        return tuple(tensors), None
    weight, bias, gain, offset = tensors
    assert weight is not None
    check_vector("norm_weight", gain, weight, 0)
    check_vector("norm_bias", offset, weight, 0)
    rows, statistics = normalise(_rows(weight), gain, offset, *_settings(how))
    return (rows.view(weight.shape), bias), statistics


def _normalise_backward(how: _Joint, grad: Tensor | None, given: Sequence[Any], statistics: Tensor) -> Gradients:
    """The gradients of weight, gain and offset, given that of the normalised weight."""
    weight, _, gain, offset = given
    if grad is None:
        return None, None, None
    dim, eps, _, *others = _settings(how)
    rows, of_norm = normalise_backward(_rows(grad), _rows(weight), gain, statistics, dim, eps, *others)
    of_gain, of_offset = of_norm.unbind()
    return rows.view(weight.shape), _as(of_gain, gain), _as(of_offset, offset)


def _rows(weight: Tensor) -> Tensor:
    return weight if weight.dim() == 2 else weight.flatten(1)


def _settings(how: _Joint) -> tuple[Any, ...]:
    return 1, how.affine.eps, 1, 1, True, how.scan.backend


def normalise_fan_in(weight: Tensor, gain: Tensor | None, offset: Tensor | None, eps: float) -> Tensor:
    """A weight [out_channels, ...] normalised over each fan-in; what is 0, as pruned, stays 0."""
    return batch_norm(weight.flatten(1), gain, offset, dim=1, eps=eps, keep_zeros=True).view_as(weight)


def _compute_again(how: _Joint, inputs: Tensor, tensors: Sequence[Tensor | None]) -> tuple[Any, Tensor, Tensor | None]:
    """What the map took, what it gave, and the statistics, as in the forward."""
    if isinstance(how.affine, ModuleMap):
        how.affine.check_again()
    with torch.no_grad(), as_autocast(inputs, how.autocast):
        applied, statistics = _applied(how, tensors)
        return applied, _current(inputs, how.affine, applied, how.scan.time_axis, how.repeats), statistics


def _as(gradient: Tensor, like: Tensor | None) -> Tensor:
    return gradient if like is None or gradient.dtype == like.dtype else gradient.to(like.dtype)


def _current(inputs: Tensor, affine: Map, tensors: tuple[Tensor | None, ...], time_axis: int, repeats: bool) -> Tensor:
    distinct = inputs.narrow(time_axis, 0, 1) if repeats else inputs
    current = affine(distinct.flatten(0, 1), *tensors).unflatten(0, distinct.shape[:2])
    return current.expand(*inputs.shape[:2], *current.shape[2:]) if repeats else current


def _computed_like(inputs: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
    """What has the dtype that a map computes in: its weight, but under autocast, where products convert floats."""
    weight = tensors[0] if tensors else None
    if weight is None or inputs.dtype == weight.dtype or (inputs.is_floating_point() and autocast_of(inputs)):
        return inputs
    return weight


def _as_computed(inputs: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
    """Inputs, such as small spikes, in the dtype that a map computes in, which holds them."""
    return inputs.to(_computed_like(inputs, tensors).dtype)


class _KeptLinear(Function):
    """A matrix product that keeps its inputs in the levels of spikes."""

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(_as_computed(inputs, (weight,)), weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        saved, ctx.form = encode(inputs[0])
        ctx.save_for_backward(inputs[1], *saved)

    @staticmethod
    @once_differentiable("layers with keep='spikes'")
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> Gradients:
        weight, *coded = saved
        inputs = decode(tuple(coded), ctx.form)
        path, samples = grad.flatten(0, 1), inputs.flatten(0, 1).to(grad.dtype)
        found = Linear().derivatives(path, samples, ctx.needs_input_grad, weight.to(grad.dtype))
        grad_inputs, *others = (
            None if g is None else _as(g, o) for g, o in zip(found, (inputs, weight, weight), strict=True)
        )
        return None if grad_inputs is None else grad_inputs.view(inputs.shape), *others


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, keep: Keep) -> Tensor:
    """`torch.nn.functional.linear` of [batch, time, in_features], with `keep` as in `SRMLayer`."""
    if keep == "current" or traced() or not needs_gradient(inputs, weight, bias):
        return F.linear(_as_computed(inputs, (weight,)), weight, bias)
    result: Tensor = _KeptLinear.apply(inputs, weight, bias)
    return result


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
        grad_samples = ctx.affine.transpose(grad, samples, ctx.scale, *tensors)
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
    keep: Keep = "current"
    spike_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_gradient(self.gradient, self.surrogate)
        check_option("output", self.output, (False, True))
        check_option("input_gradient", self.input_gradient, get_args(InputGradient))
        check_option("keep", self.keep, KEEPS)
        check_spike_dtype(self.spike_dtype)
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
    split, repeats = _ways(inputs, rules, time_axis)
    if affine.eps is not None:
        weight, bias, gain, offset = tensors
        assert weight is not None
        tensors = normalise_fan_in(weight, gain, offset, affine.eps), bias
    current = _current(inputs.detach() if split else inputs, affine, tensors, time_axis, repeats)
    if not split:
        return current, None
    detached = (None if tensor is None else tensor.detach() for tensor in tensors)
    mapped, scale = current.detach().flatten(0, 1), rules.time_gradient_scale
    path = _TimePath.apply(inputs.flatten(0, 1), mapped, affine, scale, *detached)
    earlier: Tensor = path.unflatten(0, inputs.shape[:2])
    return current, earlier


def _ways(inputs: Tensor, rules: Rules, time_axis: int) -> tuple[bool, bool]:
    """Whether inputs receive the time path, and whether they are mapped once, as they repeat."""
    # transforms hide what needs a gradient
    split = rules.splits and torch.is_grad_enabled() and (inputs.requires_grad or transforms_active())
    # inputs mapped once would receive the gradient of all steps at the first
    return split, _repeats(inputs, time_axis) and (split or not inputs.requires_grad)


def map_and_fire(
    inputs: Tensor,
    affine: Map,
    tensors: tuple[Tensor | None, ...],
    rules: Rules,
    parameters: SRMParameters,
    state: SRMState | None = None,
    *,
    return_state: bool,
    batch_first: bool,
) -> Any:
    """What `scan` makes of the current of `map_inputs`, in fewer steps; with ``keep="spikes"`` in less memory.

    Compiled code and transforms of `torch.func` keep the current in either case.
    """
    check_option("return_state", return_state, (False, True))
    time_axis = 1 if batch_first else 0
    like = _computed_like(inputs, tensors)
    constants, initial = parameters.pack(like), stack_state(state, like)
    split, repeats = _ways(inputs, rules, time_axis)
    keep = needs_gradient(inputs, constants, initial, *tensors)
    scan = Scan(time_axis, rules.name, rules.output, return_state, keep, rules.spike_dtype, requested_backend())
    if keep:
        lean = rules.keep == "spikes" and not traced()
        converted = autocast_of(inputs) if lean else None
        how = _Joint(affine, scan, split, rules.time_gradient_scale, repeats, lean, converted)
        results: Sequence[Tensor] = _MapAndFire.apply(inputs, constants, initial, how, *tensors)
    else:
        current = _current(inputs, affine, tensors, time_axis, repeats)
        check_fits(current, constants, initial, time_axis)
        results = scan.forward(current, constants, initial)
    spikes = mark(results[0]) if rules.keep == "spikes" else results[0]
    return (spikes, unstack_state(results[1])) if return_state else spikes


def _spiking_affine(
    inputs: Tensor,
    affine: Linear | Convolution,
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
    rules, parameters = Rules.of(options), check_parameters(parameters)
    flags = {"return_state": return_state, "batch_first": batch_first}
    return map_and_fire(inputs, affine, (weight, bias), rules, parameters, state, **flags)


def prepare_inputs(inputs: Any, weight: Tensor, axes: str) -> Tensor:
    """Checks inputs; events of more than a byte, which need no gradient, in the weight's dtype, all else as it is.

    Raises:
        TypeError: for anything but a tensor of numbers that the weight's dtype holds, but under autocast.
        ValueError: for another rank or device.
    """
    check_tensor("inputs", inputs, axes, events=True)
    if inputs.dtype == weight.dtype and inputs.device == weight.device:
        return inputs
    if inputs.itemsize > 1:
        inputs = as_floats(inputs, weight.dtype)
    if autocast_of(inputs) is None:
        check_held("inputs", inputs, "weight", weight)
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
        weight: [out_features, in_features], in the dtype of `inputs` or a wider one (under autocast both are
            converted).
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        state: what the neurons begin with, as `srm_scan` takes it.
        bias: [out_features], or None.
        return_state: whether to return the state after the last step too.
        batch_first: False for inputs and spikes as [time, batch, ...].
        **rules: `gradient`, `surrogate`, `output`, `input_gradient`, `time_gradient_scale`, `keep`, `spike_dtype`, as
            in `SRMLayer`.

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
        weight: [out_channels, in_channels / groups, kernel_height, kernel_width], in the dtype of `inputs` or a
            wider one (under autocast both are converted).
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
