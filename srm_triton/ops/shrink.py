"""The soft threshold, alone and in a step of split-Bregman denoising.

    S_t(v) = sign(v)·max(|v| − t, 0) = v − clamp(v, −t, t)

It is the proximal map of t·|·|, and so the nonlinearity of sparse codes; its derivative is 1 where it is not 0, else 0.

Total-variation denoising minimises over images u, with differences of neighbours ∂x and ∂y,

    F(u − f) + λ·(‖∂x u‖₁ + ‖∂y u‖₁)        F = ‖·‖₁ or ‖·‖₂²

Split Bregman gives ∂x u, ∂y u and (for F = ‖·‖₁) u − f variables d of their own, tied to their values by Bregman
variables b and a penalty. Both are kept in one tensor, a split v = penalty·(d + b): then penalty·d = S₁(v) and
penalty·b = v − S₁(v). With g = penalty·(∂x u, ∂y u, u − f), a step is

    v ← v + ρ·(g − S₁(v))        ρ: relaxation, 1 for split Bregman itself
    w = 2·S₁(v) − v              what the splits ask of the next estimate, penalty·(d − b)
    target = 2f + λ·(∂xᵀ w_x + ∂yᵀ w_y)                 F = ‖·‖₂²
    target = penalty·f + w_f + λ·(∂xᵀ w_x + ∂yᵀ w_y)    F = ‖·‖₁

and the next estimate u solves a linear system with that right-hand side (`srm_triton/ops/poisson.py`). Beyond its edges
an image repeats itself, or is its mirror image: differences across them are then 0, and their splits, once 0, stay so.
One stem serves both, as a step is the soft threshold of each split, and the kernels share how they compute it.

Variants change S₁ only. Where differences are coupled, the norm of several at a pixel takes the place of a magnitude:
S₁(v) = v − v / max(‖v‖, 1). Where pixels are unknown, u − f is split off for F = ‖·‖₂² too, by S(v) = v·penalty /
(penalty + 2), and S(v) = v at unknown pixels. Kernels serve images without them; variants, and volumes, take the eager
reference.

Sources: Goldstein and Osher, "The Split Bregman Method for L1-Regularized Problems", SIAM J. Imaging Sciences 2009;
relaxation: Eckstein and Bertsekas, Mathematical Programming 1992.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import check_number, check_tensor
from srm_triton.functions import Function, custom_op, fake_of
from srm_triton.kernels import native
from srm_triton.kernels.layout import accumulator_dtype

Edges = Literal["mirrored", "periodic"]
Fidelity = Literal["l1", "l2"]

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
        `sign(v)·max(|v| − threshold, 0)`, in the shape and dtype of `values`. NaN stays NaN. The derivative is 1 where
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


class Splitting(NamedTuple):
    """What is split off, and how its size is measured."""

    fidelity: Fidelity
    edges: Edges
    coupled: tuple[int, ...] = ()
    """Axes of the splits over which differences have one norm: 1 for directions, 2 for channels."""
    known: Tensor | None = None
    """Which pixels are known, in the shape of the images, bool; None for all."""


class StepSizes(NamedTuple):
    """Norms that tell how far a step's splits are from where they settle, of each sample, [samples]."""

    primal: Tensor
    """Of S(v) − g."""
    dual: Tensor
    """Of what S(v) moved by."""
    splits: Tensor
    """Of S(v)."""
    bregman: Tensor
    """Of v − S(v)."""


def bregman_step(
    estimate: Tensor,
    image: Tensor,
    splits: Tensor,
    penalty: Tensor,
    weight: Tensor,
    work: Tensor,
    target: Tensor,
    relaxation: float,
    splitting: Splitting,
) -> tuple[Tensor, Tensor, Callable[[], StepSizes]]:
    """Advances the splits by the step above, and fills `target`.

    Args:
        estimate: [samples, channels, height, width] (volumes: depth before height), float32 or float64 and contiguous,
            as all of these.
        image: the noisy image f, in the shape of `estimate`.
        splits: [samples, kinds, channels, height, width]: along each axis, the last first, and, where it is split off,
            of the residual. Those across mirrored edges must be 0.
        penalty: of each sample, [samples].
        weight: λ of each sample, [samples].
        work: memory in the shape of `splits`.
        target: memory in the shape of `estimate`.
        relaxation: ρ.
        splitting: what is split off.

    Returns:
        The new splits, and memory to work with next time: the tensors `splits` and `work`, in either order; and what
        measures the step, if it is called before the next, for ρ > 0.
    """
    fused = image.dim() == 4 and not splitting.coupled and splitting.known is None
    chosen = resolve_backend(image.device, requested_backend(), has_native=fused)
    if fused and chosen == "native":
        squares = native.bregman_step(
            estimate, image, splits, penalty, weight, target, relaxation, splitting.edges == "mirrored"
        )
        return splits, work, lambda: StepSizes(*squares.sqrt().to(image.dtype).unbind(1))
    if fused and chosen == "triton":
        from srm_triton.kernels import shrink as kernel

        kernel.bregman_step(
            estimate, image, splits, penalty, weight, work, target, relaxation, splitting.edges == "mirrored"
        )
    else:
        work.copy_(advance_splits(estimate, image, splits, penalty, relaxation, splitting))
        target.copy_(next_target(image, work, penalty, weight, splitting))
    return work, splits, lambda: _reference_sizes(splits, work, penalty, relaxation, splitting)


def advance_splits(
    estimate: Tensor, image: Tensor, splits: Tensor, penalty: Tensor, relaxation: float, splitting: Splitting
) -> Tensor:
    """The splits after a step, differentiable; arguments as those of `bregman_step`."""
    values = differences(estimate, splitting.edges)
    if splits.shape[1] > len(values):
        values.append(estimate - image)
    of_images = penalty.view(-1, *[1] * (image.dim() - 1))
    g = torch.stack([of_images * value for value in values], 1)  # after the difference: penalties may be large
    return splits + relaxation * (g - (splits - bregman_part(splits, penalty, splitting)))


def next_target(image: Tensor, splits: Tensor, penalty: Tensor, weight: Tensor, splitting: Splitting) -> Tensor:
    """What splits ask of the next estimate, differentiable; arguments as those of `bregman_step`."""
    of_images = [-1, *[1] * (image.dim() - 1)]
    w = splits - 2 * bregman_part(splits, penalty, splitting)
    fixed = penalty.view(of_images) * image + w[:, -1] if splits.shape[1] > image.dim() - 2 else 2 * image
    return fixed + weight.view(of_images) * divergence(w)


def bregman_part(splits: Tensor, penalty: Tensor, splitting: Splitting) -> Tensor:
    """Returns v − S(v), the Bregman variables times the penalty."""
    if not splitting.coupled and splitting.known is None:
        return splits.clamp(-1, 1)
    directions = splits.dim() - 3
    along, residual = splits[:, :directions], splits[:, directions:]
    if splitting.coupled:
        along = along / torch.linalg.vector_norm(along, dim=splitting.coupled, keepdim=True).clamp(min=1)
    else:
        along = along.clamp(-1, 1)
    if splitting.fidelity == "l1":
        residual = residual.clamp(-1, 1)
    else:
        residual = residual * (2 / (penalty + 2)).view(-1, *[1] * (splits.dim() - 1))
    if splitting.known is not None:
        residual = residual * splitting.known[:, None]
    return torch.cat((along, residual), 1)


def differences(images: Tensor, edges: Edges) -> list[Tensor]:
    """Of each pixel's neighbour from the pixel along each axis, the last first, in the shape of the images."""
    results = []
    for axis in range(-1, 1 - images.dim(), -1):
        first, last = (images.narrow(axis, place, 1) for place in (0, -1))
        results.append(images.diff(dim=axis, append=first if edges == "periodic" else last))
    return results


def divergence(splits: Tensor) -> Tensor:
    """∂xᵀ v_x + ∂yᵀ v_y of splits, which across mirrored edges are 0; a residual's split is left out."""
    along = splits[:, : splits.dim() - 3].unbind(1)
    parts = [part.roll(1, axis) - part for axis, part in zip(range(-1, -len(along) - 1, -1), along, strict=True)]
    return sum(parts[1:], parts[0])


def _reference_sizes(
    before: Tensor, splits: Tensor, penalty: Tensor, relaxation: float, splitting: Splitting
) -> StepSizes:
    b = bregman_part(splits, penalty, splitting)
    d = splits - b
    moved = d - (before - bregman_part(before, penalty, splitting))
    missing = moved - (splits - before) / relaxation
    return StepSizes(*(torch.linalg.vector_norm(part.flatten(1), dim=1) for part in (missing, moved, d, b)))
