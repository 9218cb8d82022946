"""The mean squared error of a linear map and its gradients, in one pass.

M samples of features x and targets y, with the residual r = x·w + b − y:

    loss = 1/M · Σ r²      grad_w = 2/M · xᵀ·r      grad_b = 2/M · Σ r

The squares are summed over the targets and averaged over the samples, so several targets have the gradients that each
would have alone.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from srm_triton.checks import check_same, check_size, check_tensor
from srm_triton.functions import transforms_active
from srm_triton.precision import without_autocast


class MSEGradients(NamedTuple):
    """What `mse_gradients` returns."""

    grad_weight: Tensor
    grad_bias: Tensor
    loss: Tensor


def mse_gradients(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> MSEGradients:
    """The gradients of the mean squared error of a linear map, and the error itself (equations: the module's).

    They are written out, so they need no backward pass; autograd, `torch.func` and `torch.compile` work through them.
    Half precision is computed in float32, and float32 stays so under autocast.

    Args:
        x: inputs, [samples], or [samples, features].
        y: targets, [samples], or [samples, targets], in the dtype of `x`, as all others.
        weight: [features, targets] without the axes that `x` and `y` do not have: a scalar if they have neither.
        bias: [targets], or a scalar.

    Returns:
        `grad_weight` and `grad_bias` in the shapes and the dtype of `weight` and `bias`; the loss, a scalar, float64
        for float64, else float32.

    Raises:
        TypeError: for anything but floating-point tensors of one dtype.
        ValueError: for shapes that do not fit exactly (nothing is broadcast), no samples, features or targets, several
            devices, or a value that is NaN or infinite. On a GPU, in compiled code and within transforms of
            `torch.func` such values are not looked for: they make the results NaN or infinite.

    Example:
        >>> x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])  # y = 2·x + 1
        >>> mse_gradients(x, y, weight=torch.tensor(2.0), bias=torch.tensor(0.0))
        MSEGradients(grad_weight=tensor(-3.), grad_bias=tensor(-2.), loss=tensor(1.))
    """
    check_data(x, y)
    _check_parameter("weight", weight, x, x.shape[1:] + y.shape[1:], "the features of x, then the targets of y")
    _check_parameter("bias", bias, x, y.shape[1:], "the targets of y")
    exact = torch.promote_types(x.dtype, torch.float32)
    inputs = x.to(exact)
    with without_autocast(x):
        residual = affine(inputs, weight.to(exact), bias.to(exact)) - y.to(exact)
    loss = residual.square().sum() / len(x)
    # any value that is not finite reaches the loss, so good data are spared a search
    if _is_readable(loss) and not math.isfinite(loss.item()):
        check_finite(x=x, y=y, weight=weight, bias=bias)
    slope = 2 / len(x) * residual
    with without_autocast(x):
        grad_weight = inputs.movedim(0, -1) @ slope
    return MSEGradients(grad_weight.to(x.dtype), slope.sum(0).to(x.dtype), loss)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x·w + b over all axes of `x` but the first."""
    return torch.tensordot(x, weight, x.dim() - 1) + bias


def check_data(x: Tensor, y: Tensor) -> None:
    """Raises unless `x` and `y` are samples of one count, dtype and device."""
    for name, value, axis in (("x", x, "features"), ("y", y, "targets")):
        check_tensor(name, value)
        if value.dim() not in (1, 2) or value.numel() == 0:
            raise ValueError(
                f"{name} must have the shape [samples] or [samples, {axis}] and hold values, got {list(value.shape)}"
            )
    check_same("y", y, "x", x)
    check_size("y", y, 0, len(x), "the samples of x")


def _check_parameter(name: str, value: Tensor, x: Tensor, shape: torch.Size, meaning: str) -> None:
    check_tensor(name, value)
    check_same(name, value, "x", x)
    if value.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)} ({meaning}), got {list(value.shape)}")


def check_finite(**tensors: Tensor) -> None:
    """Raises, with its name, for a tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if wrong := int((~tensor.isfinite()).sum()):
            raise ValueError(f"{name} must be finite, got {wrong} NaN or infinite values of {tensor.numel()}")


def _is_readable(value: Tensor) -> bool:
    """Whether its value is known here and now, without waiting for a GPU."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and not transforms_active()
