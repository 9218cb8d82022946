"""What every launcher needs to know of a tensor: its memory order and the type to compute in."""

import torch


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that kernels compute in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def outer_time_inner(tensor: torch.Tensor, like: torch.Tensor, time_axis: int) -> torch.Tensor:
    """Views `tensor` as [outer, time, inner] in the memory order of the dense tensor `like`; copies only if it must."""
    if time_axis == 1 and like.is_contiguous() and tensor.is_contiguous():  # the usual case, in a tenth of the time
        return tensor.view(tensor.shape[0], tensor.shape[1], -1)
    order = memory_order(like)
    position = order.index(time_axis)
    permuted = tensor.permute(order)
    outer = permuted.shape[:position].numel()
    inner = permuted.shape[position + 1 :].numel()
    return permuted.reshape(outer, permuted.shape[position], inner)


def memory_order(tensor: torch.Tensor) -> list[int]:
    """The axes of a dense tensor, from the outermost in memory to the innermost."""
    return sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
