"""Membrane potentials as a read-out."""

from typing import Any

import torch
from torch import Tensor, nn

from srm_triton.affine import linear, prepare_inputs
from srm_triton.checks import check_number, check_option, check_size, time_axes
from srm_triton.levels import KEEPS, Keep
from srm_triton.neuron import SRMNeuron
from srm_triton.ops.srm_membrane import srm_membrane
from srm_triton.parameters import SRMParameters, SRMState


class SRMReadout(nn.Linear):
    """A fully connected layer of neurons that neither fire nor reset; returns their membrane potentials.

    They are a linear filter of the current W·inputs + b, see `srm_membrane`. As the last layer of a network it makes
    ordinary losses of their mean, last or maximum over time, or `stepwise_cross_entropy`. Weights and inputs receive
    ordinary derivatives: inputs that are spikes ∂L/∂spike, as from any loss, so the layers before may have either
    gradient. None of them needs ``output=True``, as no output neuron can be silent.

    Choose it for regression, for classes told by potentials rather than spikes, or where an output layer falls silent.

    Args:
        in_features: size of each input.
        out_features: number of neurons.
        parameters: constants of the neurons, of which `tau_m` and `tau_s` matter; None stands for `SRMParameters()`.
        bias: whether the current has a learned bias.
        batch_first: False for [time, batch, ...].
        keep: as in `SRMLayer`: with ``"spikes"`` the inputs are kept in the levels that spikes have, and nothing else.
        device: of the parameters, as in `torch.nn.Linear`.
        dtype: of the parameters.

    Attributes:
        neuron: an `SRMNeuron` with the constants.

    Shape:
        [batch, time, in_features] to [batch, time, out_features], in float64 for float64, else in float32.

    Raises:
        TypeError: for values of another type.
        ValueError: for sizes below 1 or another option.

    Example:
        >>> from srm_triton import SRMLinear
        >>> network = nn.Sequential(SRMLinear(64, 128), SRMReadout(128, 10))
        >>> network(torch.rand(2, 8, 64)).mean(1).shape  # ready for F.cross_entropy
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        parameters: SRMParameters | None = None,
        *,
        bias: bool = True,
        batch_first: bool = True,
        keep: Keep = "current",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_features = check_number("in_features", in_features, 1, whole=True)
        out_features = check_number("out_features", out_features, 1, whole=True)
        super().__init__(in_features, out_features, bias, device, dtype)
        check_option("keep", keep, KEEPS)
        self.batch_first, self.keep = batch_first, keep
        self.neuron = SRMNeuron(parameters, channels=out_features, batch_first=batch_first, device=device)

    def forward(self, inputs: Tensor, state: SRMState | None = None, *, return_state: bool = False) -> Any:
        """Returns the membrane potentials, and with `return_state` the state after the last step.

        Args:
            inputs: spikes or values; bool and integer events too.
            state: what the neurons begin with, each tensor [batch, out_features]; None for 0.
            return_state: whether to return the state too.
        """
        inputs = prepare_inputs(inputs, self.weight, time_axes(self.batch_first, "in_features"))
        check_size("inputs", inputs, 2, self.in_features, "in_features")
        return srm_membrane(
            linear(inputs, self.weight, self.bias, self.keep),
            self.neuron.srm_parameters,
            state,
            return_state=return_state,
            batch_first=self.batch_first,
        )
