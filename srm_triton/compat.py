"""The published names and signatures, for code that was written for them: change the import, and it runs.

Results are the published ones, up to rounding, and so is the sign: layers hand on ∂L/∂(spike time), so a loss on
spikes needs its gradient reversed where the network ends, as the published losses do. The gradient of the weight
normalisation is the published one too, which divides by M where its own forward divides by M − 1. Two things differ: a
neuron that never fires gets exact zeros, where the published kernels read past the end of their tables; and arguments
are checked. For new code use `srm_triton.SRMLinear` and its siblings.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from srm_triton.affine import srm_conv2d, srm_linear
from srm_triton.checks import check_number, check_size, check_sizes, check_tensor
from srm_triton.functions import Function, Gradients, once_differentiable
from srm_triton.ops.batch_norm import batch_norm, batch_norm_with_statistics
from srm_triton.ops.srm_scan import srm_trace
from srm_triton.parameters import SRMParameters

__all__ = ["BN1dBackward", "BN1dForward", "srmConv2d", "srmLinear", "srmLinearFunc", "srmNeuronFunc"]

_TIME_GRADIENT_SCALE = 0.85
_GRADIENT_SLOPE_LIMIT = 123456789.0


def BN1dForward(
    inputs: Tensor, weight: Tensor, bias: Tensor, eps: Tensor | float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises each column of a matrix by its mean and unbiased variance.

    Args:
        inputs: [M, C], M ≥ 2.
        weight: gain of each column, [C].
        bias: offset of each column, [C].
        eps: added to the variance, a float or a tensor with one element.

    Returns:
        The result, the normalised inputs before gain and offset (both [M, C]), and the variance [C].

    Raises:
        TypeError: for tensors that are not floating point.
        ValueError: for other shapes.

    Example:
        >>> y, normx, varx = BN1dForward(torch.tensor([[1.0], [3.0]]), torch.ones(1), torch.zeros(1))
        >>> varx
        tensor([2.])
    """
    check_tensor("inputs", inputs, "[samples, features]")
    for name, vector in (("weight", weight), ("bias", bias)):
        check_tensor(name, vector, "[features]")
        check_size(name, vector, 0, inputs.shape[-1], "columns of inputs")
    eps = check_number("eps", eps, 0, above=True)
    normx, _, varx = batch_norm_with_statistics(inputs, dim=0, eps=float(eps), correction=1)
    return normx * weight + bias, normx, varx.to(inputs.dtype)


def BN1dBackward(
    grad_out: Tensor, normx: Tensor, varx: Tensor, eps: Tensor | float, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The published gradient of `BN1dForward` (it takes the variance for a biased one).

    Args:
        grad_out: gradient of the result, [M, C].
        normx: normalised inputs, [M, C].
        varx: variance, [C].
        eps: as in the forward.
        w: gain, [C].

    Returns:
        The gradients of inputs [M, C], weight [C] and bias [C].
    """
    eps = check_number("eps", eps, 0, above=True)
    grad_normx = grad_out * w
    correlation = (grad_normx * normx).mean(dim=0)
    grad_x = (grad_normx - grad_normx.mean(dim=0) - correlation * normx) / torch.sqrt(varx + eps)
    return grad_x, (grad_out * normx).sum(dim=0), grad_out.sum(dim=0)


class srmNeuronFunc:
    """The neuron over time, forward and backward as two static functions."""

    @staticmethod
    def forward(
        inputs: Tensor, taum: float, taus: float, e_taug: float, v_th: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the neurons.

        Args:
            inputs: input current, [batch, time, ...].
            taum: membrane time constant in steps, > 1.
            taus: synaptic time constant in steps, > 1, not `taum`.
            e_taug: decay of the gradient trace in one step, 1 − 1/τ_g, in (0, 1).
            v_th: threshold, a float or a tensor with one element.

        Returns:
            Spikes, the gradient trace Δu_t and the change Δu of the membrane potential, each like `inputs`.
        """
        trace = srm_trace(inputs, _parameters(taum, taus, e_taug, v_th))
        return trace.spikes, trace.gradient_trace.to(inputs.dtype), trace.membrane_change.to(inputs.dtype)

    @staticmethod
    def backward(
        grad_out: Tensor, delta_ut: Tensor, delta_u: Tensor, spikes: Tensor, epsw: Tensor, epst: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hands the gradient of each spike back to the steps before it.

        Args:
            grad_out: gradient with respect to the spikes, [batch, time, ...].
            delta_ut: Δu_t from the forward.
            delta_u: Δu from the forward.
            spikes: spikes from the forward.
            epsw: response of the membrane k steps after a unit current, k = 0 … T−1.
            epst: minus the decay of the gradient over k + 1 steps.

        Returns:
            The gradients along the path to the weights and along the path to earlier spike times.
        """
        steps = spikes.shape[1]
        if min(len(epsw), len(epst)) < steps:
            raise ValueError(f"epsw and epst must have at least {steps} entries, got {len(epsw)} and {len(epst)}")
        time = torch.arange(steps, device=spikes.device).view(1, -1, *[1] * (spikes.dim() - 2))
        next_spike = torch.where(spikes > 0, time, steps).flip(1).cummin(1).values.flip(1)
        follows = next_spike < steps
        next_spike = torch.where(follows, next_spike, time)
        precise = torch.promote_types(grad_out.dtype, torch.float32)
        w = (-1 / delta_u.to(precise)).clamp(-4, 0) * grad_out
        v = (-1 / delta_ut.to(precise)).clamp(-_GRADIENT_SLOPE_LIMIT, 0) * grad_out
        distance = next_spike - time
        grad_w = torch.where(follows, w.gather(1, next_spike) * epsw.to(w)[distance], 0)
        grad_t = torch.where(follows, v.gather(1, next_spike) * epst.to(v)[distance], 0)
        return grad_w.to(grad_out.dtype), grad_t.to(grad_out.dtype)


class srmLinearFunc(torch.autograd.Function):
    """Weight normalisation, matrix product and neurons as one differentiable function.

    `apply(inputs, weight, bn_weight, bn_bias, eps, v_th, taum, taus, e_taug, epsw, epst)` with inputs
    [batch, time, in_features] and weight [out_features, in_features] returns spikes [batch, time, out_features];
    `bn_weight` and `bn_bias` are None for a weight that is not normalised.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bn_weight: Tensor | None,
        bn_bias: Tensor | None,
        eps: Tensor | float,
        v_th: Tensor | float,
        taum: float,
        taus: float,
        e_taug: float,
        epsw: Tensor,
        epst: Tensor,
    ) -> Tensor:
        """See the class."""
        if (bn_weight is None) != (bn_bias is None):
            raise ValueError("bn_weight and bn_bias must both be tensors or both None")
        normx = varx = None
        effective = weight.t()
        if bn_weight is not None and bn_bias is not None:
            effective, normx, varx = BN1dForward(weight.t(), bn_weight, bn_bias, eps)
        spikes, delta_ut, delta_u = srmNeuronFunc.forward(inputs.matmul(effective), taum, taus, e_taug, v_th)
        ctx.save_for_backward(inputs, effective, bn_weight, normx, varx, spikes, delta_ut, delta_u, epsw, epst)
        ctx.eps = float(eps)
        return spikes

    @staticmethod
    @once_differentiable("spiking layers")
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad_out: Tensor) -> Gradients:
        """See the class."""
        inputs, effective, bn_weight, normx, varx, spikes, delta_ut, delta_u, epsw, epst = saved
        grad_w, grad_t = srmNeuronFunc.backward(grad_out, delta_ut, delta_u, spikes, epsw, epst)
        grad_inputs = _TIME_GRADIENT_SCALE * grad_t.matmul(effective.t())
        grad_weight = grad_w.flatten(0, 1).t() @ inputs.flatten(0, 1)
        grad_bn_weight = grad_bn_bias = None
        if bn_weight is not None:
            grad_x, grad_bn_weight, grad_bn_bias = BN1dBackward(grad_weight.t(), normx, varx, ctx.eps, bn_weight)
            grad_weight = grad_x.t()
        return grad_inputs, grad_weight, grad_bn_weight, grad_bn_bias, *[None] * 7


class _PublishedSign(Function):
    """A weight whose gradient is of opposite sign, as it is where ∂L/∂(spike time) is handed on."""

    @staticmethod
    def forward(weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class _SeedLayer(nn.Module):
    """Weight, normalisation and constants under their published names; runs on this package's operations."""

    def __init__(
        self, shape: tuple[int, ...], v_th: float, taum: float, taus: float, taug: float, weight_norm: bool, eps: float
    ) -> None:
        super().__init__()
        eps = check_number("eps", eps, 0, above=True)
        self.v_th: float = check_number("v_th", v_th, 0, above=True)
        self.taum: float = check_number("taum", taum, 1, above=True)
        self.taus: float = check_number("taus", taus, 1)
        self.taug: float = check_number("taug", taug, 1, above=True)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(shape)))
        self.bn_weight = nn.Parameter(torch.ones(shape[0])) if weight_norm else None
        self.bn_bias = nn.Parameter(torch.zeros(shape[0])) if weight_norm else None
        self.register_buffer("eps", torch.tensor([eps]))
        self.eps: Tensor

    @property
    def _srm_parameters(self) -> SRMParameters:
        return SRMParameters(self.taum, self.taus, self.taug, self.v_th)

    def _effective_weight(self) -> Tensor:
        weight: Tensor = self.weight
        if self.bn_weight is not None:
            rows = self.weight.flatten(1), self.bn_weight, self.bn_bias
            weight = batch_norm(*rows, dim=1, eps=float(self.eps), gradient="seed").view_as(weight)
        published: Tensor = _PublishedSign.apply(weight)
        return published


class srmLinear(_SeedLayer):
    """A fully connected spiking layer; parameters `weight`, `bn_weight`, `bn_bias` and buffer `eps`.

    Args:
        in_features: size of each input.
        out_features: number of neurons.
        v_th: threshold.
        taum: membrane time constant in steps.
        taus: synaptic time constant in steps.
        taug: time constant of the gradient in steps.
        weight_norm: whether the weight is normalised; without it there is no `bn_weight` and `bn_bias`.
        eps: added to the variance.

    Example:
        >>> sorted(srmLinear(4, 2).state_dict())
        ['bn_bias', 'bn_weight', 'eps', 'weight']
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        v_th: float = 1.0,
        taum: float = 5.0,
        taus: float = 3.0,
        taug: float = 2.5,
        weight_norm: bool = True,
        eps: float = 1e-5,
    ) -> None:
        shape = tuple(
            check_number(name, size, 1, whole=True)
            for name, size in (("out_features", out_features), ("in_features", in_features))
        )
        super().__init__(shape, v_th, taum, taus, taug, weight_norm, eps)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [batch, time, in_features] to spikes [batch, time, out_features]."""
        spikes: Tensor = srm_linear(inputs, self._effective_weight(), self._srm_parameters)
        return spikes


class srmConv2d(_SeedLayer):
    """A convolutional spiking layer; parameters `weight`, `bn_weight`, `bn_bias` and buffer `eps`.

    A checkpoint that holds a `weight` alone belongs to a layer with ``weight_norm=False``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: an int or a pair, as the three below.
        stride: step of the kernel.
        padding: zeros around the input.
        dilation: spacing of the kernel's elements.
        groups: number of blocks of channels.
        v_th: threshold.
        taum: membrane time constant in steps.
        taus: synaptic time constant in steps.
        taug: time constant of the gradient in steps.
        weight_norm: whether the weight is normalised; without it there is no `bn_weight`, `bn_bias` and `eps`.
        eps: added to the variance.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        v_th: float = 1.0,
        taum: float = 5.0,
        taus: float = 3.0,
        taug: float = 2.5,
        weight_norm: bool = True,
        eps: float = 1e-5,
    ) -> None:
        in_channels, out_channels, groups = (
            check_number(name, size, 1, whole=True)
            for name, size in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups))
        )
        shape = (out_channels, in_channels // groups, *check_sizes("kernel_size", kernel_size, 1))
        super().__init__(shape, v_th, taum, taus, taug, weight_norm, eps)
        if not weight_norm:
            del self.eps
        self.stride: Any = check_sizes("stride", stride, 1)
        self.padding: Any = check_sizes("padding", padding, 0)
        self.dilation: Any = check_sizes("dilation", dilation, 1)
        self.groups = groups

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs [batch, time, in_channels, height, width] to spikes of the same layout."""
        return srm_conv2d(
            inputs,
            self._effective_weight(),
            self._srm_parameters,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


def _parameters(taum: float, taus: float, e_taug: float, v_th: Tensor | float) -> SRMParameters:
    e_taug = check_number("e_taug", e_taug, -math.inf)
    if not 0 < e_taug < 1:
        raise ValueError(f"e_taug must lie between 0 and 1 (it is a decay, 1 - 1/tau), got {e_taug}")
    taum, taus = check_number("taum", taum, 1, above=True), check_number("taus", taus, 1)
    return SRMParameters(taum, taus, 1 / (1 - e_taug), check_number("v_th", v_th, 0, above=True))
