"""Average pooling of spikes, with a gradient to their times."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton.checks import FLOATING, check_option, check_sizes, check_tensor
from srm_triton.functions import Function, Gradients, once_differentiable, refuse_script, traced
from srm_triton.levels import KEEPS, Keep, decode, encode, mark, parts_of
from srm_triton.ops.srm_scan import Gradient, check_gradient, needs_gradient

_PART = 1 << 18  # values that are converted at once

Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # size, stride and padding


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


def _in_blocks(shape: torch.Size, window: Window, device: torch.device) -> bool:
    """Whether windows neither overlap nor leave out a pixel; PyTorch takes four times as long for them on the CPU."""
    size, stride, padding = window
    covered = all(side % length == 0 for side, length in zip(shape[2:], size, strict=True))
    return device.type == "cpu" and stride == size and not any(padding) and covered


def _average(images: Tensor, window: Window, dtype: torch.dtype) -> Tensor:
    if images.dtype != dtype:
        whole = traced() or images.device.type != "cpu"  # else in parts, with no wide copy of all small spikes
        size = len(images) if whole else _PART // max(1, images.shape[1:].numel())
        return torch.cat([_average(part.to(dtype), window, dtype) for part in images.split(max(1, size))])
    if not _in_blocks(images.shape, window, images.device):
        return F.avg_pool2d(images, *window)
    ones = images.new_ones(images.shape[1], 1, *window[0])
    return F.conv2d(images, ones, stride=window[0], groups=images.shape[1]) / math.prod(window[0])


def _share(grad: Tensor, shape: torch.Size, stride: tuple[int, ...], window: Window) -> Tensor:
    """The gradient of the images, from that of their averages."""
    if _in_blocks(shape, window, grad.device):
        height, width = window[0]
        return (grad / (height * width)).repeat_interleave(width, -1).repeat_interleave(height, -2)
    like = torch.empty_strided(shape, stride, dtype=grad.dtype, device=grad.device)  # not looked at
    images: Tensor = torch.ops.aten.avg_pool2d_backward(grad, like, *window, False, True, None)
    return images


class _Average(Function):
    @staticmethod
    def forward(images: Tensor, window: Window, dtype: torch.dtype) -> Tensor:
        return _average(images, window, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, ctx.window, _ = inputs
        ctx.shape, ctx.stride = images.shape, images.stride()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        return _share(grad, ctx.shape, ctx.stride, ctx.window), None, None


class _KeptPool(Function):
    """The average and its gradient, of which only the average is kept, in the levels that it has."""

    @staticmethod
    def forward(images: Tensor, window: Window, dtype: torch.dtype, shares: bool) -> Tensor:
        return _average(images, window, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, ctx.window, _, ctx.shares = inputs
        ctx.shape, ctx.stride = images.shape, images.stride()
        if ctx.shares:
            saved, ctx.form = encode(output)
            ctx.save_for_backward(*saved)

    @staticmethod
    @once_differentiable("SpikeAvgPool2d")
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> Gradients:
        if ctx.shares:
            average = decode(saved, ctx.form)
            grad = torch.where(average == 0, 0, grad / average)
        return _share(grad, ctx.shape, ctx.stride, ctx.window), None, None, None


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
        keep: ``"current"``, or ``"spikes"`` to keep for the backward only the averages, in the few levels that they
            have; as in `SRMLayer`.
        dtype: of the averages, such as ``torch.float32`` for those of small spikes, which half precision may round;
            None for that of the inputs, and the default dtype for events, bool or integers.

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
        keep: Keep = "current",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = check_sizes("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else check_sizes("stride", stride, 1)
        self.padding = check_sizes("padding", padding, 0)
        check_gradient(gradient, "arctan")
        check_option("keep", keep, KEEPS)
        if dtype is not None:
            check_option("dtype", dtype, FLOATING)
        self.gradient, self.keep, self.dtype = gradient, keep, dtype
        self._window: Window = self.kernel_size, self.stride, self.padding

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the averages of the windows."""
        check_tensor("inputs", inputs, "[batch, time, channels, height, width]", events=True)
        dtype = self.dtype or (inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype())
        if self.keep == "spikes" and not traced():
            return self._lean(inputs, dtype)
        images = _Average.apply(inputs.flatten(0, 1), self._window, dtype)
        if self.gradient != "surrogate":
            images = _ShareByActivity.apply(images)
        return images.unflatten(0, inputs.shape[:2])

    def _lean(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        if needs_gradient(inputs):
            images: Tensor = _KeptPool.apply(inputs.flatten(0, 1), self._window, dtype, self.gradient != "surrogate")
        else:
            images = _average(inputs.flatten(0, 1), self._window, dtype)
        averages, parts = images.unflatten(0, inputs.shape[:2]), parts_of(inputs)
        exact = parts is not None and parts & (parts - 1) == 0  # sums of other parts, such as thirds, are rounded
        return mark(averages, parts * self.kernel_size[0] * self.kernel_size[1]) if exact and parts else averages

    def extra_repr(self) -> str:
        """The window, as the module prints it."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, gradient={self.gradient}"
