"""Average pooling of spikes, with a gradient to their times."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton.affine import as_floats
from srm_triton.checks import check_sizes, check_tensor
from srm_triton.functions import Function, Gradients, once_differentiable, refuse_script
from srm_triton.ops.srm_scan import Gradient, check_gradient


class _ShareByActivity(Function):
    @staticmethod
    def forward(average: Tensor) -> Tensor:
        return average.view_as(average)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable("SpikeAvgPool2d")
    def backward(ctx: Any, saved: tuple[Tensor], grad: Tensor) -> Gradients:
        (average,) = saved
        return (torch.where(average == 0, 0, grad / average),)


class _AverageOfBlocks(Function):
    """Averages of windows that neither overlap nor leave out a pixel; PyTorch takes four times as long."""

    @staticmethod
    def forward(images: Tensor, height: int, width: int) -> Tensor:
        ones = images.new_ones(images.shape[1], 1, height, width)
        return F.conv2d(images, ones, stride=(height, width), groups=images.shape[1]) / (height * width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.height, ctx.width = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        share = grad / (ctx.height * ctx.width)
        return share.repeat_interleave(ctx.width, -1).repeat_interleave(ctx.height, -2), None, None


class SpikeAvgPool2d(nn.Module):
    """Average pooling that keeps the sum of a window's gradients to spike times.

    The forward is `torch.nn.functional.avg_pool2d`. With the event rule the backward divides the gradient by the output
    (0 where that is 0), so that the spikes of a window share the whole of it instead of the fraction that a plain
    average hands back. Source: the code of Zhu et al., NeurIPS 2022. With the surrogate gradient it is plain.

    Args:
        kernel_size: an int or a pair (height, width), as the two below.
        stride: step of the window; None stands for `kernel_size`.
        padding: zeros around the input.
        gradient: ``"event"``, ``"original"`` or ``"surrogate"``, as in the layers around it.

    Shape:
        [batch, time, channels, height, width], with either order of batch and time, to the same with pooled height and
        width.

    Raises:
        TypeError: for windows that are neither an int nor a pair.
        ValueError: for inputs of another rank, or another `gradient`.

    Example:
        >>> SpikeAvgPool2d(2)(torch.ones(1, 3, 1, 4, 4)).shape
        torch.Size([1, 3, 1, 2, 2])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        *,
        gradient: Gradient = "event",
    ) -> None:
        super().__init__()
        self.kernel_size = check_sizes("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else check_sizes("stride", stride, 1)
        self.padding = check_sizes("padding", padding, 0)
        check_gradient(gradient, "arctan")
        self.gradient = gradient

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the averages of the windows."""
        inputs = as_floats(inputs, torch.get_default_dtype())
        check_tensor("inputs", inputs, "[batch, time, channels, height, width]")
        images = self._average(inputs.flatten(0, 1))
        if self.gradient != "surrogate":
            images = _ShareByActivity.apply(images)
        return images.unflatten(0, inputs.shape[:2])

    def _average(self, images: Tensor) -> Tensor:
        covered = all(side % window == 0 for side, window in zip(images.shape[2:], self.kernel_size, strict=True))
        if self.stride == self.kernel_size and not any(self.padding) and covered and images.device.type == "cpu":
            return _AverageOfBlocks.apply(images, *self.kernel_size)
        return F.avg_pool2d(images, self.kernel_size, self.stride, self.padding)

    def extra_repr(self) -> str:
        """The window, as the module prints it."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, gradient={self.gradient}"
