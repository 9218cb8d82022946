"""The constants of SRM neurons and their state: values of tensors, which can be learned, saved and handed on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srm_triton.checks import as_number, shown
from srm_triton.functions import traced
from srm_triton.kernels.layout import accumulator_dtype

Constant = float | Tensor
"""A number, or a tensor of one value or of one for each channel."""

# smallest value, whether it is allowed itself, and whether infinity is
_RANGES = {
    "tau_m": (1.0, False, True),
    "tau_s": (1.0, True, False),
    "tau_g": (1.0, False, True),
    "threshold": (0.0, False, False),
    "membrane_slope_limit": (0.0, False, False),
    "gradient_slope_limit": (0.0, False, False),
    "sharpness": (0.0, False, False),
}


LOWER_BOUNDS = {name: smallest for name, (smallest, _, _) in _RANGES.items()}


class SRMState(NamedTuple):
    """What neurons carry from one step to the next, each [batch, ...] as the current without its time axis.

    In float64 for float64 currents, else in float32; all 0 where a sequence begins.
    """

    membrane: Tensor
    """Membrane potential u."""
    synapse: Tensor
    """Synaptic current s."""
    gradient_trace: Tensor
    """Gradient trace g, which the event-driven gradient to earlier spike times divides by."""

    def detach(self) -> "SRMState":
        """The same state without its history: what follows is trained on its own (truncated backpropagation)."""
        return SRMState(*(part.detach() for part in self))


@dataclass(frozen=True, init=False, eq=False, repr=False)
class SRMParameters:
    """Constants of SRM neurons, each one value or one for each channel; time constants are in steps.

    The channels are the axis behind batch and time. Every constant is kept as a tensor: numbers in float64, tensors as
    they are, so that one which requires a gradient receives it.

    Args:
        tau_m: membrane time constant, > 1; infinity for a neuron that does not leak.
        tau_s: synaptic time constant, ≥ 1; 1 for a leaky integrate-and-fire neuron. It may equal `tau_m`.
        tau_g: time constant of the gradient between spike times, > 1; infinity is allowed.
        threshold: membrane potential above which the neuron fires, > 0.
        membrane_slope_limit: largest 1/Δu in the event-driven gradient to the weights, > 0.
        gradient_slope_limit: largest 1/Δu_t in the event-driven gradient to earlier spike times (κ), > 0.
        sharpness: of the surrogate gradient, > 0; its greatest value, taken at the threshold.

    Raises:
        TypeError: if a value is neither a number nor a tensor of numbers.
        ValueError: if a value is out of its range, has more than one axis, or another number of channels.

    Example:
        >>> SRMParameters(tau_m=10.0, threshold=torch.tensor([1.0, 0.5]))
        SRMParameters(tau_m=10.0, tau_s=3.0, tau_g=2.5, threshold=[1.0, 0.5])
    """

    tau_m: Tensor
    tau_s: Tensor
    tau_g: Tensor
    threshold: Tensor
    membrane_slope_limit: Tensor
    gradient_slope_limit: Tensor
    sharpness: Tensor

    def __init__(
        self,
        tau_m: Constant = 5.0,
        tau_s: Constant = 3.0,
        tau_g: Constant = 2.5,
        threshold: Constant = 1.0,
        membrane_slope_limit: Constant = 4.0,
        gradient_slope_limit: Constant = 123456789.0,
        sharpness: Constant = 1.0,
    ) -> None:
        values = (tau_m, tau_s, tau_g, threshold, membrane_slope_limit, gradient_slope_limit, sharpness)
        for name, value in zip(NAMES, values, strict=True):
            object.__setattr__(self, name, as_tensor(name, value))
        object.__setattr__(self, "_packed", {})  # what `pack` keeps; None: nothing, and nothing is checked
        self.check()

    @classmethod
    def non_leaky(cls, tau: Constant, threshold: Constant = 1.0, **constants: Constant) -> "SRMParameters":
        """Constants of the neuron that the code of Zhu et al. (NeurIPS 2023) calls non-leaky.

        There the potential adds up the gradient trace, u ← u + g with g ← a_g·(g + x) of time constant `tau`. That is
        this neuron with τ_m = ∞ and τ_s = τ_g = `tau`, but for the unit of the potential: τ_s·a_g = `tau` − 1 times as
        large. It fires at the same steps (but for rounding); event-driven gradients are those of this neuron's own
        response, where the published code keeps that of a leaky one.

        Args:
            tau: time constant of the trace, > 1.
            threshold: as the published code has it.
            **constants: the others.

        Raises:
            TypeError: as the class.
            ValueError: as the class.

        Example:
            >>> SRMParameters.non_leaky(4.0)
            SRMParameters(tau_m=inf, tau_s=4.0, tau_g=4.0, threshold=0.333333)
        """
        tau, threshold = as_tensor("tau", tau), as_tensor("threshold", threshold)
        if not (tau > 1).all():
            raise ValueError(f"tau must be finite and > 1, got {tau.min().item():g}")
        return cls(math.inf, tau, tau, threshold / (tau - 1), **constants)

    @classmethod
    def unchecked(cls, values: dict[str, Tensor], *, keep: bool) -> "SRMParameters":
        """Constants of tensors that a module holds; without `keep` they change with every call."""
        parameters = object.__new__(cls)
        parameters.__dict__.update(values, _packed={} if keep else None)
        return parameters

    def consists_of(self, tensors: Mapping[str, Tensor | None]) -> bool:
        """Whether the constants are these very tensors."""
        return all(tensors.get(name) is value for name, value in zip(NAMES, _tensors(self), strict=True))

    def check(self) -> None:
        """Checks that every value is in its range, as construction does; for tensors that have changed since.

        Raises:
            ValueError: if one is not, or the numbers of channels differ.
        """
        for name in NAMES:
            check_range(name, getattr(self, name))
        if empty := [name for name in NAMES if not getattr(self, name).numel()]:
            raise ValueError(f"{empty[0]} must hold one value or one for each channel, got none")
        lengths = {name: value.shape[0] for name in NAMES if (value := getattr(self, name)).dim()}
        if len(set(lengths.values()) - {1}) > 1:
            raise ValueError(f"constants must have the same number of channels or one value, got {lengths}")

    def pack(self, like: Tensor) -> Tensor:
        """What kernels take: a tensor [8, 1 or channels] in the type that `like` is computed in, on its device.

        Its rows are the decays a_m, a_s and a_g, 1/τ_s, θ, the two limits of slopes and the sharpness; they are
        computed in float64 and rounded once. Constants on the CPU are checked, and computed once for each value that
        they take, unless a gradient passes; elsewhere looking at them would wait for the device. As a_s = 1 − 1/τ_s,
        the row of 1/τ_s stands for both in the backward.

        Raises:
            ValueError: if a constant on the CPU has left its range.
        """
        values, key = _tensors(self), (accumulator_dtype(like.dtype), like.device)
        kept: dict[Any, tuple[list[Any], Tensor]] | None = self._packed  # type: ignore[attr-defined]
        if traced() or kept is None:
            return _pack(values, *key)
        found = kept.get(key)
        if found is not None and _same(values, found[0]):
            return found[1]
        if any(value.device.type != "cpu" for value in values):
            return _pack(values, *key)
        self.check()
        if any(value.requires_grad for value in values):
            return _pack(values, *key)
        with torch.inference_mode(False), torch.no_grad():  # it may serve in training next
            packed = _pack(values, *key)
        kept[key] = [value.clone() if value.dim() else value.item() for value in values], packed
        return packed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SRMParameters) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        values = dict(zip(NAMES, self._values(), strict=True))
        shown = {name: v for name, v in values.items() if name in NAMES[:4] or v != getattr(_DEFAULT, name).item()}
        return f"SRMParameters({', '.join(f'{name}={_rounded(value)}' for name, value in shown.items())})"

    def _values(self) -> tuple[Any, ...]:
        values = ("meta" if value.is_meta else value.tolist() for value in _tensors(self))
        return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _same(values: tuple[Tensor, ...], seen: list[Any]) -> bool:
    """Whether constants have the values seen, by looking: writing through .data or in a process counts no version."""
    for value, before in zip(values, seen, strict=True):
        if value.requires_grad or not value.is_cpu:
            return False
        if not (torch.equal(value, before) if value.dim() else value.item() == before):
            return False
    return True


def _pack(values: tuple[Tensor, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if len({value.device for value in values}) > 1:  # as of a tensor on a GPU beside numbers
        values = tuple(value.to(device) for value in values)
    stacked = torch.stack(torch.broadcast_tensors(*(value.to(torch.float64) for value in values)))
    rates = 1 / stacked[:3]
    return torch.cat((1 - rates, rates[1:2], stacked[3:])).view(8, -1).to(device, dtype)


NAMES = tuple(field.name for field in fields(SRMParameters))


def _tensors(parameters: SRMParameters) -> tuple[Tensor, ...]:
    return tuple([getattr(parameters, name) for name in NAMES])


def _rounded(value: Any) -> Any:
    """As it is printed: to 6 digits, at most four channels."""
    if isinstance(value, tuple):
        return f"[{', '.join(str(_rounded(v)) for v in value[:4])}{', …' if len(value) > 4 else ''}]"
    return value if isinstance(value, str) else float(f"{value:.6g}")


def as_tensor(name: str, value: Any) -> Tensor:
    """A number or tensor given for the constant `name`, as a tensor; its range is not checked.

    Raises:
        TypeError: for anything else.
        ValueError: for more than one axis, or a number beyond the range of floats.
    """
    if not isinstance(value, Tensor | int | float):
        value = as_number(value)
        if hasattr(value, "dtype") and value.dtype.kind in "iufbc":  # of several elements
            value = torch.tensor(value, device="cpu")  # a copy
    if isinstance(value, Tensor):
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{name} must be a number or a tensor of numbers, got one of {value.dtype}")
        if value.dim() > 1:
            raise ValueError(f"{name} must hold one value or one for each channel, [channels], got {list(value.shape)}")
        return value if value.is_floating_point() else value.to(torch.float64)
    if isinstance(value, bool) or not isinstance(value, int | float | Real):
        raise TypeError(
            f"{name} must be a number or a tensor of numbers, got {shown(value)} of type {type(value).__name__}"
        )
    try:
        # by a product, which compiled code traces for any value, where a constructor would specialise on each
        return torch.ones((), dtype=torch.float64, device="cpu") * float(value)
    except (OverflowError, RuntimeError):
        raise ValueError(f"{name} must be {_describe(name)}, got a number beyond the range of floats") from None


def _describe(name: str) -> str:
    smallest, included, infinite = _RANGES[name]
    return f"{'' if infinite else 'finite and '}{'≥' if included else '>'} {smallest:g}"


def check_range(name: str, value: Tensor) -> None:
    """Checks that the constant `name` has allowed values; compiled code and `torch.func` leave that to their caller.

    Raises:
        ValueError: if one is not allowed.
    """
    if traced() or value.is_meta:
        return
    smallest, included, infinite = _RANGES[name]
    allowed = value >= smallest if included else value > smallest
    if not infinite:
        allowed = allowed & (value < math.inf)
    if not allowed.all():
        first = int((~allowed).flatten().nonzero()[0])
        where = f" at channel {first}" if value.numel() > 1 else ""
        raise ValueError(f"{name} must be {_describe(name)}, got {value.flatten()[first].item()}{where}")


_DEFAULT = SRMParameters()


def check_parameters(parameters: SRMParameters | None) -> SRMParameters:
    """Returns the constants, the default ones for None.

    Raises:
        TypeError: for anything else; a subclass too, which kernels would take for its base.
    """
    if parameters is None:
        return _DEFAULT
    if type(parameters) is not SRMParameters:
        raise TypeError(f"parameters must be SRMParameters or None, got {type(parameters).__name__}")
    return parameters


def stack_state(state: Any, like: Tensor) -> Tensor | None:
    """The three tensors of a state as one, [3, batch, ...], for neurons computed in the type of `like`.

    Raises:
        TypeError: for anything but an `SRMState` of the right dtype, or None.
        ValueError: for different shapes, or another device or layout.
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        raise TypeError(
            "state must be an SRMState or None, got a Tensor; layers take no labels: those belong to the loss, and "
            "silent output neurons learn in a layer made with output=True"
        )
    if not isinstance(state, tuple) or len(state) != 3 or not all(isinstance(part, Tensor) for part in state):
        raise TypeError(f"state must be an SRMState of three tensors or None, got {type(state).__name__}")
    dtype = accumulator_dtype(like.dtype)
    for name, part in zip(SRMState._fields, state, strict=True):
        if part.dtype != dtype:
            raise TypeError(f"state.{name} must have the dtype {dtype} (current is {like.dtype}), got {part.dtype}")
        if part.layout != torch.strided:
            raise ValueError(f"state.{name} must be a dense tensor, got one of {part.layout}")
        if part.shape != state[0].shape:
            raise ValueError(
                f"state.{name} must have the shape {list(state[0].shape)} of state.membrane, got {list(part.shape)}"
            )
        if part.device != like.device:
            raise ValueError(f"state.{name} must be on the device of current, {like.device}, got {part.device}")
    return torch.stack(tuple(state))


def check_shape(stacked: Tensor | None, current: Tensor, time_axis: int) -> None:
    """Checks that a state which `stack_state` made is one of the neurons of a current.

    Raises:
        ValueError: if it is not.
    """
    if stacked is None:
        return
    shape = [*current.shape[:time_axis], *current.shape[time_axis + 1 :]]
    if list(stacked.shape[1:]) != shape:
        raise ValueError(
            f"state.membrane must have the shape {shape}, that of current without time, got {list(stacked.shape[1:])}"
        )


def unstack_state(state: Tensor) -> SRMState:
    """The state that `stack_state` made one tensor of."""
    parts: Sequence[Tensor] = state.unbind(0)
    return SRMState(*parts)
