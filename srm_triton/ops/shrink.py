"""The soft threshold, alone and in a step of split-Bregman denoising.

    S_t(v) = sign(v)·max(|v| − t, 0) = v − clamp(v, −t, t)

It is the proximal map of t·|·|, and so the nonlinearity of sparse codes; its derivative is 1 where it is not 0, else 0.

Total-variation denoising minimises over images u, with periodic differences ∂x and ∂y,

    F(u − f) + λ·(‖∂x u‖₁ + ‖∂y u‖₁)        F = ‖·‖₁ or ‖·‖₂²

Split Bregman gives ∂x u, ∂y u and (for F = ‖·‖₁) u − f variables d of their own, tied to their values by Bregman
variables b and a penalty. Both are kept in one tensor, a split v = penalty·(d + b): then penalty·d = S₁(v) and
penalty·b = v − S₁(v). With g = penalty·(∂x u, ∂y u, u − f), a step is

    v ← v + ρ·(g − S₁(v))        ρ: relaxation, 1 for split Bregman itself
    w = 2·S₁(v) − v              what the splits ask of the next estimate, penalty·(d − b)
    target = 2f + λ·(∂xᵀ w_x + ∂yᵀ w_y)                 F = ‖·‖₂²
    target = penalty·f + w_f + λ·(∂xᵀ w_x + ∂yᵀ w_y)    F = ‖·‖₁

and the next estimate u solves a linear system with that right-hand side (`srm_triton/denoise.py`).

Sources: Goldstein and Osher, "The Split Bregman Method for L1-Regularized Problems", SIAM J. Imaging Sciences 2009;
relaxation: Eckstein and Bertsekas, Mathematical Programming 1992.
"""

from typing import Any

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import check_number, check_tensor
from srm_triton.functions import Function
from srm_triton.kernels.layout import accumulator_dtype

# Soft threshold


@torch.library.custom_op("srm_triton::soft_threshold", mutates_args=(), device_types=("cpu", "cuda"))
def _shrink(values: Tensor, threshold: float, backend: str) -> Tensor:
    outputs = _allocate(values, threshold, backend)
    if values.numel() and resolve_backend(values.device, backend) == "triton":
        from srm_triton.kernels import shrink as kernel

        kernel.forward(values if values.stride() == outputs.stride() else outputs.copy_(values), outputs, threshold)
    elif values.numel():
        _reference_shrink(values, outputs, threshold)
    return outputs


@_shrink.register_fake
def _allocate(values: Tensor, threshold: float, backend: str) -> Tensor:
    return torch.empty_like(values)


def _reference_shrink(values: Tensor, outputs: Tensor, threshold: float) -> None:
    v = values.to(accumulator_dtype(values.dtype))
    outputs.copy_(v - v.clamp(-threshold, threshold))


def _map(info: Any, in_dims: tuple[int | None, ...], values: Tensor, *constants: Any) -> tuple[Tensor, int | None]:
    return _shrink(values, *constants), in_dims[0]


_shrink.register_vmap(_map)


class _SoftThreshold(Function):
    @staticmethod
    def forward(values: Tensor, threshold: float, backend: str) -> Tensor:
        return _shrink(values, threshold, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (outputs,) = ctx.saved_tensors
        return torch.where(outputs != 0, grad, 0), None, None


def soft_threshold(values: Tensor, threshold: float) -> Tensor:
    """Moves every value towards 0 by `threshold`, and to 0 what is nearer than that.

    Args:
        values: any shape, float64, float32, float16 or bfloat16.
        threshold: at least 0.

    Returns:
        sign(v)·max(|v| − threshold, 0), in the shape and dtype of `values`. NaN stays NaN. The derivative is 1 where
        the result is not 0, else 0, and can be differentiated again.

    Raises:
        TypeError: for values of another dtype, or a threshold that is no number.
        ValueError: for another device, or a threshold that is negative or not finite.

    Example:
        >>> soft_threshold(torch.tensor([-3.0, -0.5, 0.0, 2.0]), 1.0)
        tensor([-2.,  0.,  0.,  1.])
    """
    check_tensor("values", values)
    check_number("threshold", threshold, 0)
    outputs: Tensor = _SoftThreshold.apply(values, float(threshold), requested_backend())
    return outputs


# The step of split Bregman


def bregman_step(
    estimate: Tensor,
    image: Tensor,
    splits: Tensor,
    penalty: Tensor,
    work: Tensor,
    target: Tensor,
    weight: float,
    relaxation: float,
) -> tuple[Tensor, Tensor]:
    """Advances the splits by the step above, and fills `target`.

    Args:
        estimate: [samples, channels, height, width], float32 or float64 and contiguous, as all of these.
        image: the noisy image f, in the shape of `estimate`.
        splits: [samples, kinds, channels, height, width]: along x, along y and, for F = ‖·‖₁, of the residual.
        penalty: of each sample, [samples].
        work: memory in the shape of `splits`.
        target: memory in the shape of `estimate`.
        weight: λ.
        relaxation: ρ.

    Returns:
        The new splits, and memory to work with next time: the tensors `splits` and `work`, in either order.
    """
    if resolve_backend(image.device, requested_backend()) == "triton":
        from srm_triton.kernels import shrink as kernel

        kernel.bregman_step(estimate, image, splits, penalty, work, target, weight, relaxation)
        return work, splits
    _reference_step(estimate, image, splits, penalty, work, target, weight, relaxation)
    return splits, work


def _reference_step(
    estimate: Tensor,
    image: Tensor,
    splits: Tensor,
    penalty: Tensor,
    work: Tensor,
    target: Tensor,
    weight: float,
    relaxation: float,
) -> None:
    """In place; `work` holds g + (v − S₁(v)), towards which v moves by ρ, and then w."""
    torch.clamp(splits, -1, 1, out=work)
    _add_scaled_differences(work, estimate, image, penalty, target)
    splits.lerp_(work, relaxation)
    torch.clamp(splits, -1, 1, out=work)
    torch.sub(splits, work, alpha=2, out=work)
    _subtract(work[:, 0], -1, 1, target)
    _add_shifted(target, work[:, 1], -2, 1)
    target.sub_(work[:, 1]).mul_(weight)
    if splits.shape[1] == 3:
        target.add_(work[:, 2]).addcmul_(image, penalty[:, None, None, None])
    else:
        target.add_(image, alpha=2)


def _add_scaled_differences(sums: Tensor, estimate: Tensor, image: Tensor, penalty: Tensor, scratch: Tensor) -> None:
    """Adds g, in the shape of the splits; `scratch` is memory in the shape of `estimate`."""
    factor = penalty[:, None, None, None]
    for kind, axis in enumerate((-1, -2)):
        _subtract(estimate, axis, -1, scratch)  # before the product: a penalty may be large
        sums[:, kind].addcmul_(scratch, factor)
    if sums.shape[1] == 3:
        sums[:, 2].addcmul_(torch.sub(estimate, image, out=scratch), factor)


def _parts(axis: int, shift: int, sums: Tensor, values: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Where sums meet values as those of `values.roll(shift, axis)`, for a shift of 1 or −1, without a copy."""
    rest = values.shape[axis] - 1
    to, source = (1, 0) if shift == 1 else (0, 1)
    return (
        (sums.narrow(axis, to, rest), values.narrow(axis, source, rest)),
        (sums.narrow(axis, rest * source, 1), values.narrow(axis, rest * to, 1)),
    )


def _add_shifted(sums: Tensor, values: Tensor, axis: int, shift: int) -> None:
    """Adds `values.roll(shift, axis)`."""
    for part, shifted in _parts(axis, shift, sums, values):
        part.add_(shifted)


def _subtract(values: Tensor, axis: int, shift: int, outputs: Tensor) -> None:
    """Fills `outputs` with `values.roll(shift, axis) - values`."""
    places = _parts(axis, shift, outputs, values)
    own = _parts(axis, shift, values, values)
    for (part, shifted), (value, _) in zip(places, own, strict=True):
        torch.sub(shifted, value, out=part)
