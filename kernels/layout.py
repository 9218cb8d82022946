"""What every launcher needs to know of a tensor: its memory order and the type to compute in."""

import math

import torch


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that kernels compute in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def outer_time_inner(tensor: torch.Tensor, like: torch.Tensor, time_axis: int) -> torch.Tensor:
    """Views `tensor` as [outer, time, inner] in the memory order of the dense tensor `like`; copies only if it must."""
    if time_axis == 1 and like.is_contiguous() and tensor.is_contiguous():  # the usual case, in a tenth of the time
        return tensor.view(tensor.shape[0], tensor.shape[1], -1)
    permuted, shape = _in_memory_order(tensor, like, time_axis)
    return permuted.reshape(shape)


def rows_of(tensor: torch.Tensor, like: torch.Tensor, time_axis: int) -> torch.Tensor | None:
    """As `outer_time_inner`; None where it must copy."""
    permuted, shape = _in_memory_order(tensor, like, time_axis)
    try:
        return permuted.view(shape)
    except RuntimeError:
        return None


def _in_memory_order(
    tensor: torch.Tensor, like: torch.Tensor, time_axis: int
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    order = memory_order(like)
    position = order.index(time_axis)
    permuted = tensor.permute(order)
    outer, inner = permuted.shape[:position].numel(), permuted.shape[position + 1 :].numel()
    return permuted, (outer, permuted.shape[position], inner)


def memory_order(tensor: torch.Tensor) -> list[int]:
    """The axes of a dense tensor, from the outermost in memory to the innermost."""
    return sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))


class NeuronOrder:
    """The neurons of a scan, which are the axes of the dense tensor `like` but time, counted in its memory order."""

    def __init__(self, like: torch.Tensor, time_axis: int, channels: int) -> None:
        self.like, self.time_axis, self.channels = like, time_axis, channels
        self.axes = [axis - (axis > time_axis) for axis in memory_order(like) if axis != time_axis]
        shape = [size for axis, size in enumerate(like.shape) if axis != time_axis]
        behind = self.axes[self.axes.index(1) + 1 :] if channels > 1 else []
        self.channel_stride = math.prod(shape[axis] for axis in behind)

    def sequence(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor in the shape of `like` as [outer, time, inner]."""
        return outer_time_inner(tensor, self.like, self.time_axis)

    def flat(self, tensor: torch.Tensor | None, leading: int) -> torch.Tensor | None:
        """A tensor of `leading` axes and those of the neurons, with these in memory order; copies only if it must."""
        if tensor is None or tensor.shape == (0,):
            return tensor
        return tensor.permute(*range(leading), *(leading + axis for axis in self.axes)).contiguous()

    def hand_over(self, flat: torch.Tensor | None, tensor: torch.Tensor | None, leading: int) -> None:
        """Copies what a kernel filled into the tensor that `flat` stands for, unless it is the same memory."""
        if tensor is not None and flat is not None and flat.data_ptr() != tensor.data_ptr():
            tensor.permute(*range(leading), *(leading + axis for axis in self.axes)).copy_(flat)
