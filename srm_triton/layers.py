"""Spiking layers as `torch.nn` modules; the mathematics is in `srm_triton.ops`."""

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton.checks import check_number, check_pair, check_tensor, time_axes
from srm_triton.functions import Function
from srm_triton.ops.batch_norm import batch_norm, batch_norm_with_statistics
from srm_triton.ops.spiking_affine import LabelledSpikes, srm_conv2d, srm_linear
from srm_triton.ops.srm_scan import srm_scan
from srm_triton.parameters import SRMParameters, check_parameters


class SRMNeuron(nn.Module):
    """SRM neurons alone: input current in, spikes out.

    The gradient with respect to the current is the weight path of the event-driven rule. It is right for the weights of
    whatever stands directly before the neurons (an affine map, a normalisation). It is not the gradient with respect to
    earlier spike times: an `nn.Linear` between two `SRMNeuron`s would pass the weight path on to the spikes before it.
    `SRMLinear` and `SRMConv2d` keep the two paths apart; stack those.

    Args:
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        batch_first: False for [time, batch, ...].

    Shape:
        [batch, time, ...] to the same.

    Example:
        >>> SRMNeuron()(torch.full((1, 5, 3), 1.5)).sum(1)
        tensor([[2., 2., 2.]])
    """

    def __init__(self, parameters: SRMParameters | None = None, *, batch_first: bool = True) -> None:
        super().__init__()
        self.neuron = check_parameters(parameters)
        self.batch_first = batch_first

    def forward(self, current: Tensor) -> Tensor:
        """Returns the spikes of `srm_scan`."""
        return srm_scan(current, self.neuron, batch_first=self.batch_first)

    def extra_repr(self) -> str:
        """The constants, as the module prints them."""
        return f"{self.neuron}, batch_first={self.batch_first}"


class SRMLayer(nn.Module):
    """What `SRMLinear` and `SRMConv2d` share: a weight, its normalisation over the fan-in, constants of the neurons."""

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        parameters: SRMParameters | None,
        weight_norm: bool,
        eps: float,
        time_gradient_scale: float,
        batch_first: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if min(weight_shape) < 1:
            raise ValueError(f"the sizes of the weight must be positive, got {list(weight_shape)}")
        fan_in = torch.Size(weight_shape[1:]).numel()
        if weight_norm and fan_in < 2:
            raise ValueError(f"weight_norm=True needs a fan-in of at least 2, got {fan_in}; pass weight_norm=False")
        check_number("eps", eps, 0, above=True)
        check_number("time_gradient_scale", time_gradient_scale, 0)
        self.neuron = check_parameters(parameters)
        self.eps = eps
        self.time_gradient_scale = time_gradient_scale
        self.batch_first = batch_first
        self.weight = nn.Parameter(torch.empty(weight_shape, device=device, dtype=dtype))
        channels = weight_shape[0]
        self.norm_weight: nn.Parameter | None = None
        self.norm_bias: nn.Parameter | None = None
        if weight_norm:
            self.norm_weight = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
            self.norm_bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets an orthogonal weight, gains of 1 and offsets of 0."""
        exact = torch.promote_types(self.weight.dtype, torch.float32)  # the decomposition knows no half precision
        with torch.no_grad():
            self.weight.copy_(nn.init.orthogonal_(torch.empty_like(self.weight, dtype=exact)))
        if self.norm_weight is not None and self.norm_bias is not None:
            nn.init.ones_(self.norm_weight)
            nn.init.zeros_(self.norm_bias)

    def effective_weight(self) -> Tensor:
        """The weight that the layer applies: normalised over each output's fan-in, or the raw one."""
        if self.norm_weight is None:
            return self.weight
        rows = self.weight.flatten(1)
        return batch_norm(rows, self.norm_weight, self.norm_bias, dim=1, eps=self.eps).view_as(self.weight)

    def extra_repr(self) -> str:
        """Sizes and constants, as the module prints them."""
        return (
            f"weight={list(self.weight.shape)}, {self.neuron}, weight_norm={self.norm_weight is not None}, "
            f"time_gradient_scale={self.time_gradient_scale}, batch_first={self.batch_first}"
        )


class SRMLinear(SRMLayer):
    """A fully connected layer of SRM neurons, trained from spike times.

    Args:
        in_features: size of each input.
        out_features: number of neurons.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        weight_norm: whether each neuron's weights are normalised to mean `norm_bias` (0 at first) and standard
            deviation `norm_weight` (1 at first), two learned vectors.
        eps: added to the variance in the normalisation.
        time_gradient_scale: factor on the gradient to the inputs' spike times.
        batch_first: False for [time, batch, ...].
        device: of the parameters, as in `torch.nn.Linear`.
        dtype: of the parameters.

    Shape:
        [batch, time, in_features] to [batch, time, out_features].

    Raises:
        ValueError: for sizes below 1, or `weight_norm` with a single input.

    Example:
        >>> layer = SRMLinear(64, 10)
        >>> layer(torch.rand(2, 8, 64)).shape
        torch.Size([2, 8, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        parameters: SRMParameters | None = None,
        *,
        weight_norm: bool = True,
        eps: float = 1e-5,
        time_gradient_scale: float = 0.85,
        batch_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (out_features, in_features)
        super().__init__(shape, parameters, weight_norm, eps, time_gradient_scale, batch_first, device, dtype)

    @overload
    def forward(self, inputs: Tensor) -> Tensor: ...

    @overload
    def forward(self, inputs: Tensor, labels: Tensor) -> LabelledSpikes: ...

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor | LabelledSpikes:
        """Returns spikes, or with `labels` (int64 [batch], an output layer in training) `LabelledSpikes`."""
        outputs: Tensor | LabelledSpikes = srm_linear(
            inputs,
            self.effective_weight(),
            self.neuron,
            labels=labels,
            time_gradient_scale=self.time_gradient_scale,
            batch_first=self.batch_first,
        )
        return outputs


class SRMConv2d(SRMLayer):
    """A 2-D convolution with SRM neurons at every output position, trained from spike times.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: an int or a pair (height, width), as the three below.
        stride: step of the kernel.
        padding: zeros around the input; ``"valid"`` for none, ``"same"`` (stride 1) for an output of the input's size.
        dilation: spacing of the kernel's elements.
        groups: number of blocks that input and output channels are split into.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        weight_norm: as in `SRMLinear`, over a channel's whole kernel.
        eps: added to the variance in the normalisation.
        time_gradient_scale: factor on the gradient to the inputs' spike times.
        batch_first: False for [time, batch, ...].
        device: of the parameters, as in `torch.nn.Conv2d`.
        dtype: of the parameters.

    Shape:
        [batch, time, in_channels, height, width] to [batch, time, out_channels, out_height, out_width].

    Raises:
        ValueError: for channels that `groups` does not divide, or `weight_norm` with a single weight for each neuron.

    Example:
        >>> layer = SRMConv2d(1, 4, 3, padding="same")
        >>> layer(torch.rand(2, 8, 1, 6, 6)).shape
        torch.Size([2, 8, 4, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        parameters: SRMParameters | None = None,
        *,
        weight_norm: bool = True,
        eps: float = 1e-5,
        time_gradient_scale: float = 0.85,
        batch_first: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got {groups} for {in_channels} and {out_channels}"
            )
        kernel = check_pair("kernel_size", kernel_size, 1)
        shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(shape, parameters, weight_norm, eps, time_gradient_scale, batch_first, device, dtype)
        self.stride = check_pair("stride", stride, 1)
        self.dilation = check_pair("dilation", dilation, 1)
        self.groups = groups
        self.padding, self.uneven_padding = _resolve_padding(padding, kernel, self.stride, self.dilation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the spikes of `srm_conv2d`."""
        if any(self.uneven_padding):
            check_tensor("inputs", inputs, time_axes(self.batch_first, "in_channels, height, width"))
            inputs = F.pad(inputs, self.uneven_padding)
        return srm_conv2d(
            inputs,
            self.effective_weight(),
            self.neuron,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            time_gradient_scale=self.time_gradient_scale,
            batch_first=self.batch_first,
        )

    def extra_repr(self) -> str:
        """Sizes and constants, as the module prints them."""
        convolution = f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        return f"{super().extra_repr()}, {convolution}"


def _resolve_padding(
    padding: int | tuple[int, int] | str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Returns the padding on both sides of (height, width), and what `F.pad` must add where the sides differ."""
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f'padding="same" needs stride 1, got {stride}')
        height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (height // 2, width // 2), (0, width % 2, 0, height % 2)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise ValueError(f'padding must be an int, a pair, "valid" or "same", got {padding!r}')
    return check_pair("padding", padding, 0), (0, 0, 0, 0)


class _ShareByActivity(Function):
    @staticmethod
    def forward(average: Tensor) -> Tensor:
        return average.view_as(average)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (average,) = ctx.saved_tensors
        return torch.where(average == 0, 0, grad / average)


class SpikeAvgPool2d(nn.Module):
    """Average pooling that keeps the sum of a window's gradients to spike times.

    The forward is `torch.nn.functional.avg_pool2d`. The backward divides the gradient by the output (0 where that is
    0), so that the spikes of a window share the whole of it instead of the fraction that a plain average hands back.
    Source: the code of Zhu et al., NeurIPS 2022.

    Args:
        kernel_size: an int or a pair (height, width), as the two below.
        stride: step of the window; None stands for `kernel_size`.
        padding: zeros around the input.

    Shape:
        [batch, time, channels, height, width], with either order of batch and time, to the same with pooled height and
        width.

    Raises:
        ValueError: for inputs of another rank.

    Example:
        >>> SpikeAvgPool2d(2)(torch.ones(1, 3, 1, 4, 4)).shape
        torch.Size([1, 3, 1, 2, 2])
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.kernel_size = check_pair("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else check_pair("stride", stride, 1)
        self.padding = check_pair("padding", padding, 0)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the averages of the windows."""
        check_tensor("inputs", inputs, "[batch, time, channels, height, width]")
        images = F.avg_pool2d(inputs.flatten(0, 1), self.kernel_size, self.stride, self.padding)
        shared: Tensor = _ShareByActivity.apply(images)
        return shared.unflatten(0, inputs.shape[:2])

    def extra_repr(self) -> str:
        """The window, as the module prints it."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class BatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on this package's batch-norm kernels: same arguments, statistics and `state_dict`.

    It differs in one point: in training it cannot be differentiated twice.

    Shape:
        [batch, features] or [batch, features, length] to the same.

    Raises:
        ValueError: for other shapes, or in training for a single value per feature.

    Example:
        >>> layer = BatchNorm1d(3)
        >>> layer(torch.rand(5, 3)).mean(0).abs().max() < 1e-6
        tensor(True)
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalises by the batch's statistics in training, by the running ones in evaluation."""
        by_batch = self.training or self.running_mean is None
        if not by_batch or inputs.numel() == 0:
            return super().forward(inputs)
        self._check_input_dim(inputs)
        check_tensor("inputs", inputs)
        if inputs.shape[1] != self.num_features:
            raise ValueError(f"inputs must have {self.num_features} features on axis 1, got {list(inputs.shape)}")
        samples = inputs.movedim(1, -1).reshape(-1, self.num_features)
        if samples.shape[0] == 1:
            raise ValueError(
                f"inputs must have more than one value per feature for a variance, got the shape {list(inputs.shape)}"
            )
        outputs, mean, variance = batch_norm_with_statistics(
            samples, self.weight, self.bias, dim=0, eps=self.eps, correction=0
        )
        if self.training and self.running_mean is not None:
            self._update_running_statistics(mean, variance, samples.shape[0])
        return outputs.unflatten(0, (inputs.shape[0], *inputs.shape[2:])).movedim(-1, 1).contiguous()

    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        momentum: Any = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / self.num_batches_tracked
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), momentum)
