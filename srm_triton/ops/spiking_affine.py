"""An affine map and the neurons behind it, joined because the event-driven gradient takes two ways through them.

With x = W·inputs (a matrix product or a convolution) and the two results of the neuron's backward (`srm_scan`):

    grad_W      = grad_weight_path ⊗ inputs, summed over batch and time
    grad_inputs = time_gradient_scale · Wᵀ·grad_time_path              (a convolution also multiplies by the inputs)

so inputs receive gradients with respect to their spike times, damped by 0.85 in the published code. Inputs that repeat
over time (stride 0, as `expand` makes them) are mapped once: every step has the same current, and grad_weight_path is
summed over time before the product. The label spike: a silent neuron gets no gradient, so in training the labelled
output neuron may count as firing at the last step at which its potential rises (Δu > 0.05), although it does not.
Source: the code of Zhu et al., NeurIPS 2022 and 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from srm_triton.backend import requested_backend
from srm_triton.checks import (
    check_labels,
    check_number,
    check_pair,
    check_same,
    check_size,
    check_tensor,
    mark_labels,
    time_axes,
)
from srm_triton.functions import Function, Gradients, keep_results, once_differentiable
from srm_triton.ops.srm_scan import needs_gradient, resolve_parameters, scan_backward, scan_forward, srm_trace
from srm_triton.parameters import SRMParameters

LABEL_SPIKE_RISE = 0.05


class LabelledSpikes(NamedTuple):
    """What an output layer returns in training, when it is given labels."""

    spikes: Tensor
    """The neurons' own spikes, for metrics; no gradient passes through them."""
    training_spikes: Tensor
    """The same with one spike more for a labelled neuron, for the loss."""


@dataclass(frozen=True)
class _Linear:
    def forward(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return F.linear(inputs, weight)

    def weight_gradient(self, grad: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        return grad.flatten(0, 1).t() @ inputs.flatten(0, 1)

    def input_gradient(self, grad: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        return grad @ weight


@dataclass(frozen=True)
class _Conv2d:
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def forward(self, inputs: Tensor, weight: Tensor) -> Tensor:
        images = F.conv2d(inputs.flatten(0, 1), weight, None, self.stride, self.padding, self.dilation, self.groups)
        return images.unflatten(0, inputs.shape[:2])

    def weight_gradient(self, grad: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        return self._gradients(grad, inputs, weight, (False, True, False))[1]

    def input_gradient(self, grad: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        images = self._gradients(grad, inputs, weight, (True, False, False))[0]
        return images.unflatten(0, inputs.shape[:2]) * inputs

    def _gradients(self, grad: Tensor, inputs: Tensor, weight: Tensor, which: tuple[bool, ...]) -> Sequence[Tensor]:
        gradients: Sequence[Tensor] = torch.ops.aten.convolution_backward(
            grad.flatten(0, 1), inputs.flatten(0, 1), weight, None, self.stride, self.padding, self.dilation,
            False, (0, 0), self.groups, which,
        )  # fmt: skip
        return gradients


class _SpikingAffine(Function):
    """Returns the spikes to learn from and what the backward needs; with labels, last, the neurons' own spikes."""

    @staticmethod
    def forward(
        inputs: Tensor,
        weight: Tensor,
        labels: Tensor | None,
        affine: _Linear | _Conv2d,
        parameters: SRMParameters,
        time_axis: int,
        time_gradient_scale: float,
        keep: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        mapped = affine.forward(_distinct(inputs, time_axis), weight)
        current = _repeat(mapped, inputs, time_axis)
        spikes, states = scan_forward(current, parameters, time_axis, keep)
        if labels is None:
            return spikes, mapped, states
        label_steps = _label_steps(current, labels, parameters, time_axis)
        return _add_label_spikes(spikes, label_steps, time_axis), mapped, states, label_steps, spikes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        inputs, weight, _, affine, parameters, time_axis, time_gradient_scale, _, backend = inputs
        _, mapped, states, *labelled = output
        keep_results(ctx, output)
        ctx.save_for_backward(inputs, weight, mapped, states, labelled[0] if labelled else None)
        ctx.constants = affine, parameters, time_axis, time_gradient_scale, backend

    @staticmethod
    @once_differentiable("spiking layers")
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad_spikes: Tensor, *_: Tensor) -> Gradients:
        inputs, weight, mapped, states, label_steps = saved
        affine, parameters, time_axis, time_gradient_scale, backend = ctx.constants
        time_path, weight_path = ctx.needs_input_grad[:2]
        current = _repeat(mapped, inputs, time_axis)
        grad_weight_path, grad_time_path = scan_backward(
            grad_spikes, current, states, label_steps, parameters, time_axis, weight_path, time_path, backend
        )
        grad_inputs = grad_weight = None
        if time_path:
            grad_inputs = time_gradient_scale * affine.input_gradient(grad_time_path, inputs, weight)
        if weight_path:
            if _repeats(inputs, time_axis):
                grad_weight_path = grad_weight_path.sum(time_axis, keepdim=True)
            grad_weight = affine.weight_gradient(grad_weight_path, _distinct(inputs, time_axis), weight)
        return grad_inputs, grad_weight, None, None, None, None, None, None, None


def _repeats(inputs: Tensor, time_axis: int) -> bool:
    if torch.compiler.is_exporting():  # an exported program would take all inputs for such, unlike a compiled one
        return False
    return inputs.stride(time_axis) == 0 and inputs.shape[time_axis] > 1


def _distinct(inputs: Tensor, time_axis: int) -> Tensor:
    return inputs.narrow(time_axis, 0, 1) if _repeats(inputs, time_axis) else inputs


def _repeat(current: Tensor, inputs: Tensor, time_axis: int) -> Tensor:
    """The current of every step, as a view."""
    shape = list(current.shape)
    shape[time_axis] = inputs.shape[time_axis]
    return current.expand(shape)


def _label_steps(current: Tensor, labels: Tensor, parameters: SRMParameters, time_axis: int) -> Tensor:
    """The step of each neuron's label spike, int32 [batch, out_features]; −1 where there is none."""
    steps = torch.arange(current.shape[time_axis], dtype=torch.int32, device=labels.device)
    sample = torch.arange(labels.shape[0], device=labels.device)
    currents = current.movedim(time_axis, 1)[sample, :, labels]
    rises = srm_trace(currents, parameters).membrane_change > LABEL_SPIKE_RISE
    last = F.pad(steps.where(rises, -1), (1, 0), value=-1).amax(1)  # padded, as there may be no step
    return torch.where(mark_labels(labels, current.shape[2]), last[:, None], -1)


def _add_label_spikes(spikes: Tensor, label_steps: Tensor, time_axis: int) -> Tensor:
    steps = torch.arange(spikes.shape[time_axis], device=spikes.device)
    at_label_step = label_steps[:, None] == steps[:, None]
    return spikes.masked_fill(at_label_step.movedim(1, time_axis), 1)


def _apply(
    inputs: Tensor,
    weight: Tensor,
    labels: Tensor | None,
    affine: _Linear | _Conv2d,
    parameters: SRMParameters | None,
    time_gradient_scale: float,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    check_number("time_gradient_scale", time_gradient_scale, 0)
    time_axis = 1 if batch_first else 0
    device = inputs.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and inputs.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        inputs, weight = _convert(inputs, dtype, time_axis), weight.to(dtype)
    check_same("inputs", inputs, "weight", weight)
    outputs: tuple[Tensor, ...] = _SpikingAffine.apply(
        inputs,
        weight,
        labels,
        affine,
        resolve_parameters(parameters),
        time_axis,
        float(time_gradient_scale),
        needs_gradient(inputs, weight),
        requested_backend(),
    )
    return outputs


def _convert(inputs: Tensor, dtype: torch.dtype, time_axis: int) -> Tensor:
    if _repeats(inputs, time_axis) and not inputs.requires_grad:  # which a conversion of all steps would hide
        return _distinct(inputs, time_axis).to(dtype).expand_as(inputs)
    return inputs.to(dtype)


@overload
def srm_linear(
    inputs: Tensor,
    weight: Tensor,
    parameters: SRMParameters | None = None,
    *,
    labels: None = None,
    time_gradient_scale: float = 0.85,
    batch_first: bool = True,
) -> Tensor: ...


@overload
def srm_linear(
    inputs: Tensor,
    weight: Tensor,
    parameters: SRMParameters | None = None,
    *,
    labels: Tensor,
    time_gradient_scale: float = 0.85,
    batch_first: bool = True,
) -> LabelledSpikes: ...


def srm_linear(
    inputs: Tensor,
    weight: Tensor,
    parameters: SRMParameters | None = None,
    *,
    labels: Tensor | None = None,
    time_gradient_scale: float = 0.85,
    batch_first: bool = True,
) -> Tensor | LabelledSpikes:
    """A matrix product followed by SRM neurons, with the event-driven gradient for both.

    Args:
        inputs: spikes or real values, [batch, time, in_features].
        weight: [out_features, in_features], in the dtype of `inputs` (under autocast both are converted).
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        labels: for an output layer in training, the class of each sample, int64 [batch]; adds the label spike.
        time_gradient_scale: factor on the gradient to the inputs' spike times.
        batch_first: False for inputs and spikes as [time, batch, ...].

    Returns:
        Spikes, [batch, time, out_features]; with `labels`, `LabelledSpikes`.

    Raises:
        TypeError: for tensors of other or different dtypes.
        ValueError: for shapes that do not fit, or labels outside 0 … out_features − 1.

    Example:
        >>> srm_linear(torch.ones(1, 4, 2), torch.ones(3, 2)).sum(1)
        tensor([[2., 2., 2.]])
    """
    check_tensor("inputs", inputs, time_axes(batch_first, "in_features"))
    check_tensor("weight", weight, "[out_features, in_features]")
    check_size("inputs", inputs, 2, weight.shape[1], "in_features of weight")
    if labels is None:
        return _apply(inputs, weight, None, _Linear(), parameters, time_gradient_scale, batch_first)[0]
    check_labels(labels, "inputs", inputs, inputs.shape[0 if batch_first else 1], weight.shape[0])
    outputs = _apply(inputs, weight, labels, _Linear(), parameters, time_gradient_scale, batch_first)
    return LabelledSpikes(spikes=outputs[-1], training_spikes=outputs[0])


def srm_conv2d(
    inputs: Tensor,
    weight: Tensor,
    parameters: SRMParameters | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    time_gradient_scale: float = 0.85,
    batch_first: bool = True,
) -> Tensor:
    """A 2-D convolution followed by SRM neurons, with the event-driven gradient for both.

    Args:
        inputs: spikes or real values, [batch, time, in_channels, height, width].
        weight: [out_channels, in_channels / groups, kernel_height, kernel_width], in the dtype of `inputs` (under
            autocast both are converted).
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        stride: an int or a pair, as in `torch.nn.functional.conv2d`; likewise `padding` (zeros) and `dilation`.
        padding: see `stride`.
        dilation: see `stride`.
        groups: number of blocks of channels.
        time_gradient_scale: factor on the gradient to the inputs' spike times.
        batch_first: False for inputs and spikes as [time, batch, ...].

    Returns:
        Spikes, [batch, time, out_channels, out_height, out_width].

    Raises:
        TypeError: for tensors of other or different dtypes.
        ValueError: for shapes that do not fit.

    Example:
        >>> srm_conv2d(torch.ones(1, 4, 1, 5, 5), torch.ones(2, 1, 3, 3)).shape
        torch.Size([1, 4, 2, 3, 3])
    """
    check_tensor("inputs", inputs, time_axes(batch_first, "in_channels, height, width"))
    check_tensor("weight", weight, "[out_channels, in_channels / groups, kernel_height, kernel_width]")
    check_number("groups", groups, 1, whole=True)
    check_size("inputs", inputs, 2, weight.shape[1] * groups, "in_channels of weight")
    affine = _Conv2d(
        check_pair("stride", stride, 1), check_pair("padding", padding, 0), check_pair("dilation", dilation, 1), groups
    )
    return _apply(inputs, weight, None, affine, parameters, time_gradient_scale, batch_first)[0]
