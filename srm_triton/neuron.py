"""SRM neurons as a `torch.nn` module, which holds their constants; the mathematics is in `srm_triton.ops.srm_scan`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number, check_option
from srm_triton.functions import refuse_script, traced
from srm_triton.ops.srm_scan import Gradient, Surrogate, check_gradient, check_spike_dtype, scan
from srm_triton.parameters import (
    LOWER_BOUNDS,
    NAMES,
    SRMParameters,
    SRMState,
    as_tensor,
    check_parameters,
    check_range,
)

LEARNABLE = ("threshold", "tau_m", "tau_s")


class SRMNeuron(nn.Module):
    """SRM neurons alone: input current in, spikes out.

    The constants are buffers in float64 under their names, or, if they are learned, functions of parameters
    `raw_<name>` with a value for each channel, value = lower bound + exp(raw), so that they keep within their range;
    `neuron.threshold` is the value in either case, and may be set to another. All are part of the `state_dict`.

    The gradient with respect to the current is the weight path of the event rule, or the surrogate gradient. With the
    event rule it is right for whatever computes the current from parameters or from values, but it is not the gradient
    with respect to earlier spike times: an `nn.Linear` between two `SRMNeuron`s would pass the weight path on to the
    spikes before it. `SRMLinear`, `SRMConv2d` and `SRMAffine` keep the two paths apart; stack those. With
    ``gradient="surrogate"`` there is one path, and any module may stand between.

    Args:
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        learn: which of ``"threshold"``, ``"tau_m"`` and ``"tau_s"`` are learned.
        channels: for how many channels, the axis behind batch and time; needed to learn one value into several.
        gradient: ``"event"``, ``"original"`` or ``"surrogate"``, as in `srm_scan`; likewise the next two.
        surrogate: ``"arctan"`` or ``"fast_sigmoid"``.
        output: whether silent neurons count as firing once in the backward.
        spike_dtype: of the spikes, as in `srm_scan`; None for that of the current.
        batch_first: False for [time, batch, ...].
        device: of the constants.
        dtype: of the learned ones, at least float32.

    Shape:
        [batch, time, channels, ...] to the same.

    Raises:
        TypeError: for other `parameters`.
        ValueError: for another option, constants that require a gradient, or a learned one at a bound of its range.

    Example:
        >>> SRMNeuron()(torch.full((1, 5, 3), 1.5)).sum(1)
        tensor([[2., 2., 2.]])
        >>> SRMNeuron(learn=("threshold",), channels=3).threshold
        tensor([1., 1., 1.], grad_fn=<AddBackward0>)
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        parameters: SRMParameters | None = None,
        *,
        learn: Iterable[str] = (),
        channels: int | None = None,
        gradient: Gradient = "event",
        surrogate: Surrogate = "arctan",
        output: bool = False,
        spike_dtype: torch.dtype | None = None,
        batch_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        parameters = check_parameters(parameters)
        if isinstance(learn, str) or not isinstance(learn, Iterable):
            raise TypeError(f"learn must be a tuple of names such as ('threshold',), got {learn!r}")
        self.learn = tuple(learn)
        for name in self.learn:
            check_option("learn", name, LEARNABLE)
        if channels is not None:
            channels = check_number("channels", channels, 1, whole=True)
        self.rule = check_gradient(gradient, surrogate)
        for name, flag in (("output", output), ("batch_first", batch_first)):
            check_option(name, flag, (False, True))
        self.gradient, self.surrogate, self.output, self.batch_first = gradient, surrogate, output, batch_first
        self.spike_dtype = check_spike_dtype(spike_dtype)
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        self._start = {}
        for name in NAMES:
            value = getattr(parameters, name).detach()
            if value.is_meta:
                raise ValueError(
                    f"{name} must hold values for the layer to begin with, got a tensor on the meta device"
                )
            self._start[name] = value = value.to("cpu", torch.float64, copy=True)
            if getattr(parameters, name).requires_grad:
                raise ValueError(
                    f"{name} must not require a gradient, which a module would cut off; pass learn=({name!r},)"
                )
            if value.numel() not in (1, channels or value.numel()):
                raise ValueError(f"{name} must hold one value or one for each of {channels} channels, got {len(value)}")
            if name in self.learn:
                if channels is None and not value.dim():
                    raise ValueError(f"channels must be given to learn {name}, a value for each")
                shape = channels or value.numel()
                self.register_parameter(f"raw_{name}", nn.Parameter(torch.empty(shape, device=device, dtype=wide)))
            else:
                self.register_buffer(name, torch.empty(value.shape, device=device, dtype=value.dtype))
        self._fixed: SRMParameters | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the constants to those that the module was made with."""
        with torch.no_grad():
            for name, value in self._start.items():
                if name in self.learn:
                    setattr(self, name, value)
                else:
                    getattr(self, name).copy_(value)

    def spread_threshold(self, channels: int) -> None:
        """Gives each channel a threshold of its own, that of before.

        Raises:
            ValueError: if the threshold is learned.
        """
        if "threshold" in self.learn:
            raise ValueError("carry_scale=True sets the threshold, which learn must not hold")
        self._start["threshold"] = self._start["threshold"].expand(channels).clone()
        self.threshold = self._buffers["threshold"].expand(channels).clone()  # type: ignore[union-attr]

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a constant to a number or a tensor, which is checked; what else a module has, as any module does."""
        if name not in NAMES:
            return super().__setattr__(name, value)
        if isinstance(value, nn.Parameter):
            raise TypeError(
                f"{name} must be a number or a tensor, got a Parameter; to learn it, pass learn=({name!r},)"
            )
        where = value.device if isinstance(value, Tensor) else self._held(name).device
        value, raw = as_tensor(name, value).detach().to(where, torch.float64), self._parameters.get(f"raw_{name}")
        if raw is None:
            # a number sets every channel, as state_dict and carry_scale know them
            return super().__setattr__(name, value if value.dim() else value.expand_as(self._held(name)).clone())
        if value.numel() not in (1, raw.numel()):
            raise ValueError(
                f"{name} must hold one value or one for each of {raw.numel()} channels, got {value.numel()}"
            )
        inverse = (value - LOWER_BOUNDS[name]).log()
        if not (value.is_meta or inverse.abs().max() < 15):
            raise ValueError(
                f"{name} must lie inside of its range to be learned, above {LOWER_BOUNDS[name]:g} and finite, "
                f"got {value.flatten()[inverse.abs().argmax()].item():g}"
            )
        with torch.no_grad():
            raw.copy_(inverse)

    def _held(self, name: str) -> Tensor:
        """The buffer of a constant, or the parameter that it is learned by."""
        held = self._buffers.get(name)
        if held is None:
            held = self._parameters[f"raw_{name}"]
        assert held is not None
        return held

    def __getattr__(self, name: str) -> Any:
        raw = self.__dict__.get("_parameters", {}).get(f"raw_{name}")
        if raw is None:
            return super().__getattr__(name)
        return raw.clamp(-15, 15).exp() + LOWER_BOUNDS[name]  # beyond, float32 leaves the range

    @property
    def srm_parameters(self) -> SRMParameters:
        """The constants as they are now.

        Raises:
            ValueError: if one is no longer in its range; of learned ones on a GPU a NaN silences its neurons instead.
        """
        compiled = traced()
        if not compiled and self._fixed is not None and self._fixed.consists_of(self._buffers):
            return self._fixed
        values = {name: getattr(self, name) for name in NAMES}
        if compiled:
            return SRMParameters(**values)
        for name in self.learn:
            if values[name].device.type == "cpu":  # elsewhere it would wait for the device
                check_range(name, values[name])
        parameters = SRMParameters.unchecked(values, keep=not self.learn)
        self._fixed = None if self.learn else parameters
        return parameters

    def forward(
        self,
        current: Tensor,
        state: SRMState | None = None,
        *,
        earlier: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Returns the spikes of `srm_scan`, and with `return_state` the state after the last step.

        For layers: `earlier`, in the shape of the current, receives the time path.
        """
        return scan(
            current,
            earlier,
            self.srm_parameters,
            state,
            rule=self.rule,
            output=self.output,
            return_state=return_state,
            batch_first=self.batch_first,
            spike_dtype=self.spike_dtype,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SRMNeuron":
        """As any module, but constants stay in float32 or float64: half precision cannot hold them."""

        def keep(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype in (torch.float32, torch.float64) else tensor.to(changed.device)

        super()._apply(keep, recurse)
        return self

    def extra_repr(self) -> str:
        """The constants, as the module prints them."""
        constants = SRMParameters.unchecked({name: getattr(self, name) for name in NAMES}, keep=False)
        rule = f"surrogate ({self.surrogate})" if self.gradient == "surrogate" else self.gradient
        learned = f", learn={self.learn}" if self.learn else ""
        return f"{constants}, gradient={rule}{learned}, output={self.output}, batch_first={self.batch_first}"
