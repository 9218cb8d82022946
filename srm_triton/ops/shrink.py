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

and the next estimate u solves a linear system with that right-hand side (`srm_triton/ops/poisson.py`). One stem serves
both, as a step is the soft threshold of each split, and the kernels share how they compute it.

Sources: Goldstein and Osher, "The Split Bregman Method for L1-Regularized Problems", SIAM J. Imaging Sciences 2009;
relaxation: Eckstein and Bertsekas, Mathematical Programming 1992.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import check_number, check_tensor
from srm_triton.functions import Function, custom_op, fake_of
from srm_triton.kernels import native
from srm_triton.kernels.layout import accumulator_dtype

# Soft threshold


@custom_op("soft_threshold")
def _shrink(values: Tensor, threshold: float, backend: str) -> Tensor:
    outputs = _allocate(values, threshold, backend)
    if values.numel() and resolve_backend(values.device, backend) == "triton":
        from srm_triton.kernels import shrink as kernel

        kernel.forward(values if values.stride() == outputs.stride() else outputs.copy_(values), outputs, threshold)
    elif values.numel():
        _reference_shrink(values, outputs, threshold)
    return outputs


@fake_of(_shrink)
def _allocate(values: Tensor, threshold: float, backend: str) -> Tensor:
    return torch.empty_like(values)


def _reference_shrink(values: Tensor, outputs: Tensor, threshold: float) -> None:
    v = values.to(accumulator_dtype(values.dtype))
    outputs.copy_(v - v.clamp(-threshold, threshold))


def _map(info: Any, in_dims: tuple[int | None, ...], values: Tensor, *constants: Any) -> tuple[Tensor, int | None]:
    return _shrink(values, *constants), in_dims[0]


torch.library.register_vmap(_shrink, _map)


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
    threshold = check_number("threshold", threshold, 0)
    outputs: Tensor = _SoftThreshold.apply(values, float(threshold), requested_backend())
    return outputs


# The step of split Bregman


class StepSizes(NamedTuple):
    """Norms that tell how far a step's splits are from where they settle, of each sample, [samples]."""

    primal: Tensor
    """Of S₁(v) − g."""
    dual: Tensor
    """Of what S₁(v) moved by."""
    splits: Tensor
    """Of S₁(v)."""
    bregman: Tensor
    """Of v − S₁(v)."""


def bregman_step(
    estimate: Tensor,
    image: Tensor,
    splits: Tensor,
    penalty: Tensor,
    work: Tensor,
    target: Tensor,
    weight: float,
    relaxation: float,
) -> tuple[Tensor, Tensor, Callable[[], StepSizes]]:
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
        The new splits, and memory to work with next time: the tensors `splits` and `work`, in either order; and what
        measures the step, if it is called before the next, for ρ > 0.
    """
    chosen = resolve_backend(image.device, requested_backend(), has_native=True)
    if chosen == "native":
        squares = native.bregman_step(estimate, image, splits, penalty, target, weight, relaxation)
        return splits, work, lambda: StepSizes(*squares.sqrt().to(image.dtype).unbind(1))
    if chosen == "triton":
        from srm_triton.kernels import shrink as kernel

        kernel.bregman_step(estimate, image, splits, penalty, work, target, weight, relaxation)
    else:
        _reference_step(estimate, image, splits, penalty, work, target, weight, relaxation)
    return work, splits, lambda: _reference_sizes(splits, work, relaxation)


def _reference_step(
    estimate: Tensor,
    image: Tensor,
    splits: Tensor,
    penalty: Tensor,
    new_splits: Tensor,
    target: Tensor,
    weight: float,
    relaxation: float,
) -> None:
    penalty = penalty[:, None, None, None]
    values = [estimate.roll(-1, -1) - estimate, estimate.roll(-1, -2) - estimate]
    if splits.shape[1] == 3:
        values.append(estimate - image)
    g = torch.stack([penalty * value for value in values], 1)  # after the difference: penalties may be large
    torch.add(splits, g - _shrunk(splits), alpha=relaxation, out=new_splits)
    w = 2 * _shrunk(new_splits) - new_splits
    fixed = 2 * image if splits.shape[1] == 2 else penalty * image + w[:, 2]
    divergence = (w[:, 0].roll(1, -1) - w[:, 0]) + (w[:, 1].roll(1, -2) - w[:, 1])
    torch.add(fixed, divergence, alpha=weight, out=target)


def _shrunk(splits: Tensor) -> Tensor:
    return splits - splits.clamp(-1, 1)


def _reference_sizes(before: Tensor, splits: Tensor, relaxation: float) -> StepSizes:
    d = _shrunk(splits)
    moved = d - _shrunk(before)
    missing = moved - (splits - before) / relaxation
    return StepSizes(*(torch.linalg.vector_norm(part.flatten(1), dim=1) for part in (missing, moved, d, splits - d)))
