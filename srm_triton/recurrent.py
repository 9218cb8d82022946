"""Neurons that receive their own spikes, a step later."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srm_triton.affine import Linear, map_inputs
from srm_triton.checks import check_same, check_tensor
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.layers import SRMLinear
from srm_triton.parameters import SRMState


class SRMRecurrentState(NamedTuple):
    """What an `SRMRecurrent` layer carries from one step to the next."""

    neurons: SRMState
    """State of the neurons, each [batch, out_features]."""
    spikes: Tensor
    """Spikes of the last step, [batch, out_features]."""

    def detach(self) -> "SRMRecurrentState":
        """The same state without its history."""
        return SRMRecurrentState(self.neurons.detach(), self.spikes.detach())


class SRMRecurrent(SRMLinear):
    """A fully connected layer whose neurons also receive the layer's own spikes, a step later.

        current[t] = W·inputs[t] + R·spikes[t − 1]

    Both weights receive the weight path, inputs and spikes of the step before the time path (or, with the surrogate
    gradient, the one path there is). R is normalised as W is, with `recurrent_norm_weight` 1/√out_features at first, so
    that its rows begin with length 1. Time passes in a loop of single steps.

    Args:
        in_features: size of each input.
        out_features: number of neurons.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        bias: whether the current has a learned bias.
        weight_norm: as in `WeightedLayer`, for both weights; likewise the next two.
        carry_scale: see `weight_norm`.
        eps: see `weight_norm`.
        device: of the parameters.
        dtype: of the parameters.
        **options: as in `SRMLayer`, but for ``output=True`` and ``keep="spikes"``.

    Shape:
        [batch, time, in_features] to [batch, time, out_features].

    Raises:
        TypeError: as `SRMLinear`, or for another state than `SRMRecurrentState`.
        ValueError: as `SRMLinear`, or for ``output=True``, as it is not known at a step whether a neuron stays silent,
            or ``keep="spikes"``.

    Example:
        >>> layer = SRMRecurrent(6, 4)
        >>> spikes, state = layer(torch.rand(2, 8, 6), return_state=True)
        >>> spikes.shape, layer(torch.rand(2, 1, 6), state).shape
        (torch.Size([2, 8, 4]), torch.Size([2, 1, 4]))
    """

    def __init__(self, in_features: int, out_features: int, *arguments: Any, **options: Any) -> None:
        super().__init__(in_features, out_features, *arguments, **options)
        if self.rules.output:
            raise ValueError(
                "output must be False for SRMRecurrent, got True; let an SRMLinear(…, output=True) follow it"
            )
        if self.rules.keep == "spikes":
            raise ValueError('keep must be "current" for SRMRecurrent, whose steps need the states between them')
        out_features = self.out_features
        self.recurrent_weight = nn.Parameter(self.weight.new_empty(out_features, out_features))
        self.recurrent_norm_weight = self.recurrent_norm_bias = None
        if self.norm_weight is not None and out_features > 2:
            self.recurrent_norm_weight = nn.Parameter(torch.empty_like(self.norm_weight))
            self.recurrent_norm_bias = nn.Parameter(torch.empty_like(self.norm_weight))
        elif self.carry_scale:
            raise ValueError("carry_scale=True needs a normalised recurrent weight, of 3 neurons or more")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in the other layers, for both weights."""
        super().reset_parameters()
        if "recurrent_weight" not in self._parameters:
            return
        self._initialise(self.recurrent_weight, nn.init.orthogonal_)
        if self.recurrent_norm_weight is not None and self.recurrent_norm_bias is not None:
            nn.init.constant_(self.recurrent_norm_weight, self.out_features**-0.5)
            nn.init.zeros_(self.recurrent_norm_bias)

    def _beside_gain(self) -> list[Tensor]:
        recurrent = self.recurrent_norm_weight, self.recurrent_norm_bias
        return [*super()._beside_gain(), *(vector for vector in recurrent if vector is not None)]

    def effective_recurrent_weight(self) -> Tensor:
        """The weight that the layer applies to its own spikes."""
        return self._normalised("recurrent_weight", self.recurrent_norm_weight, self.recurrent_norm_bias)

    def fire(
        self,
        current: Tensor,
        state: SRMRecurrentState | None = None,  # type: ignore[override]
        *,
        earlier: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """As in the other layers, but for the state, an `SRMRecurrentState`; adds the current of the own spikes."""
        time_axis = 1 if self.batch_first else 0
        empty = current.narrow(time_axis, 0, 0)
        neurons, last = self._start(state, empty.sum(time_axis, keepdim=True))
        recurrent = self.effective_recurrent_weight(), None
        rules, spikes = replace(self.rules, input_gradient="time"), [empty.to(last.dtype)]
        for t in range(current.shape[time_axis]):
            x, times = current.narrow(time_axis, t, 1), None if earlier is None else earlier.narrow(time_axis, t, 1)
            own, own_times = map_inputs(last, Linear(), recurrent, rules, time_axis)
            times = own_times if times is None else times if own_times is None else times + own_times
            last, neurons = self.neuron(x + own, neurons, earlier=times, return_state=True)
            spikes.append(last)
        outputs = torch.cat(spikes, time_axis)
        return (outputs, SRMRecurrentState(neurons, last.squeeze(time_axis))) if return_state else outputs

    def _start(self, state: Any, zeros: Tensor) -> tuple[SRMState, Tensor]:
        """The state of the neurons, which the first step checks, and the last spikes, in the shape of `zeros`."""
        shape, spikes = zeros.flatten(0, 1), zeros.to(self.rules.spike_dtype or zeros.dtype)
        if state is None:
            silent = torch.zeros_like(shape, dtype=accumulator_dtype(zeros.dtype))
            return SRMState(silent, silent, silent), spikes
        if not isinstance(state, SRMRecurrentState):
            raise TypeError(f"state must be an SRMRecurrentState or None, got {type(state).__name__}")
        check_tensor("state.spikes", state.spikes, "[batch, out_features]", events=True)
        check_same("state.spikes", state.spikes, "spikes", spikes)
        if state.spikes.shape != shape.shape:
            raise ValueError(f"state.spikes must have the shape {list(shape.shape)}, got {list(state.spikes.shape)}")
        return state.neurons, state.spikes.unsqueeze(1 if self.batch_first else 0)
