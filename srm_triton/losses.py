"""From output spikes to a loss: the readout that turns the gradient round."""

from typing import Any

import torch
from torch import Tensor


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def reverse_gradient(spikes: Tensor) -> Tensor:
    """The readout: returns the spikes unchanged and reverses the sign of their gradient.

    Spiking layers pass on ∂L/∂(spike time). A loss on spike counts or rates gives ∂L/∂(spike), and the two have opposite
    signs: the earlier a spike, the stronger it is. So every network ends with this, and ordinary losses follow.

    Args:
        spikes: output spikes, any shape.

    Example:
        >>> spikes = torch.ones(2, requires_grad=True)
        >>> reverse_gradient(spikes).sum().backward()
        >>> spikes.grad
        tensor([-1., -1.])
    """
    reversed_spikes: Tensor = _ReverseGradient.apply(spikes)
    return reversed_spikes
