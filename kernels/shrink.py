"""Triton kernels of the soft threshold: alone, for sparse codes, and in a split-Bregman step, for denoising.

The step reads an image once and writes each of its results once: a program computes again the two values of its
neighbours that the divergence needs, so it writes the new splits to memory that no program reads. Equations and names:
`srm_triton/ops/shrink.py`.
"""

import torch
import triton
from triton import language as tl

from . import launch

BLOCK = 1024  # elements that a program holds
MOST_COLUMNS = 256  # of them, in a row of an image


@triton.jit
def _load(pointer, offsets, inside):
    return tl.load(pointer + offsets, mask=inside, other=0.0)


@triton.jit
def _clamp(values, limit):
    return tl.maximum(tl.minimum(values, limit), -limit)  # what it makes of NaN does not matter: NaN − x is NaN


@triton.jit
def shrink_forward_kernel(values, outputs, size: tl.int64, constants, BLOCK: tl.constexpr):
    accumulator: tl.constexpr = tl.float64 if values.dtype.element_ty == tl.float64 else tl.float32
    (threshold,) = launch.convert(constants, accumulator)
    elements = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = elements < size
    v = _load(values, elements, inside).to(accumulator)
    tl.store(outputs + elements, v - _clamp(v, threshold), mask=inside)


@triton.jit
def _advance(split, value, relaxation):
    """A split after a step, and what it asks of the next estimate: 2·S(v) − v."""
    new = split + relaxation * (value + _clamp(split, 1.0) - split)
    return new, new - 2 * _clamp(new, 1.0)


@triton.jit
def _difference(later, earlier, penalty, across, MIRRORED: tl.constexpr):
    if MIRRORED:
        return tl.where(across, 0.0, penalty * (later - earlier))
    return penalty * (later - earlier)


@triton.jit(do_not_specialize=["rows", "channels", "height"])
def shrink_bregman_kernel(
    estimate,
    image,
    splits,
    penalty,
    weight,
    new_splits,
    target,
    rows: tl.int64,
    channels: tl.int64,
    height: tl.int64,
    width: tl.int64,
    constants,
    L1: tl.constexpr,
    MIRRORED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    accumulator: tl.constexpr = tl.float64 if estimate.dtype.element_ty == tl.float64 else tl.float32
    (relaxation,) = launch.convert(constants, accumulator)
    kinds: tl.constexpr = 3 if L1 else 2  # of splits: along x, along y, and of the residual
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]  # of all planes
    column = tl.program_id(1).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    y = row % height
    plane = row // height
    sample = plane // channels
    here = row * width + column
    left = tl.where(column > 0, here - 1, here + (width - 1))
    right = tl.where(column < width - 1, here + 1, here - (width - 1))
    above = tl.where(y > 0, here - width, here + (height - 1) * width)
    below = tl.where(y < height - 1, here + width, here - (height - 1) * width)

    u = _load(estimate, here, inside)
    u_left = _load(estimate, left, inside)
    u_right = _load(estimate, right, inside)
    u_above = _load(estimate, above, inside)
    u_below = _load(estimate, below, inside)
    f = _load(image, here, inside)
    # From a plane of the image to that of its first split: each sample has `channels` planes of each kind.
    along_x = sample * (kinds - 1) * channels * height * width
    along_y = along_x + channels * height * width
    x_here = _load(splits + along_x, here, inside)
    x_left = _load(splits + along_x, left, inside)
    y_here = _load(splits + along_y, here, inside)
    y_above = _load(splits + along_y, above, inside)
    penalty = _load(penalty, sample, row < rows)
    weight = _load(weight, sample, row < rows)

    x_new, x_wanted = _advance(x_here, _difference(u_right, u, penalty, column == width - 1, MIRRORED), relaxation)
    _, x_wanted_left = _advance(x_left, _difference(u, u_left, penalty, column == 0, MIRRORED), relaxation)
    y_new, y_wanted = _advance(y_here, _difference(u_below, u, penalty, y == height - 1, MIRRORED), relaxation)
    _, y_wanted_above = _advance(y_above, _difference(u, u_above, penalty, y == 0, MIRRORED), relaxation)
    divergence = (x_wanted_left - x_wanted) + (y_wanted_above - y_wanted)
    tl.store(new_splits + along_x + here, x_new, mask=inside)
    tl.store(new_splits + along_y + here, y_new, mask=inside)
    if L1:
        along_f = along_y + channels * height * width
        f_here = _load(splits + along_f, here, inside)
        f_new, f_wanted = _advance(f_here, penalty * (u - f), relaxation)
        tl.store(new_splits + along_f + here, f_new, mask=inside)
        tl.store(target + here, penalty * f + f_wanted + weight * divergence, mask=inside)
    else:
        tl.store(target + here, 2 * f + weight * divergence, mask=inside)


def forward(values: torch.Tensor, outputs: torch.Tensor, threshold: float) -> None:
    """Fills `outputs` with the soft threshold of `values`, which may be the same; both dense, in the same order."""
    constants = launch.scalars(values.dtype, (threshold,))
    with launch.device_of(values):
        shrink_forward_kernel[(triton.cdiv(values.numel(), BLOCK),)](
            values, outputs, values.numel(), constants, BLOCK=BLOCK
        )


def bregman_step(
    estimate: torch.Tensor,
    image: torch.Tensor,
    splits: torch.Tensor,
    penalty: torch.Tensor,
    weight: torch.Tensor,
    new_splits: torch.Tensor,
    target: torch.Tensor,
    relaxation: float,
    mirrored: bool,
) -> None:
    """Fills `new_splits` and `target`.

    Args:
        estimate: [samples, channels, height, width], as `image` and `target`; all contiguous, float32 or float64.
        image: the noisy image.
        splits: [samples, kinds, channels, height, width]; 3 kinds for the L1 norm of the residual, else 2.
        penalty: [samples].
        weight: of the total variation, [samples].
        new_splits: as `splits`, in other memory.
        target: right-hand side of the next estimate.
        relaxation: of the step.
        mirrored: whether differences across the edges are 0, as their splits must be; else images are periodic.
    """
    samples, channels, height, width = image.shape
    rows = samples * channels * height
    block_columns = min(triton.next_power_of_2(width), MOST_COLUMNS)
    block_rows = min(BLOCK // block_columns, triton.next_power_of_2(rows))
    columns = triton.cdiv(width, block_columns)
    if columns > launch.MAX_GRID_Y:
        raise ValueError(f"image must be at most {MOST_COLUMNS * launch.MAX_GRID_Y} wide, got {width}")
    with launch.device_of(image):
        shrink_bregman_kernel[triton.cdiv(rows, block_rows), columns](
            estimate, image, splits, penalty, weight, new_splits, target, rows, channels, height, width,
            launch.scalars(image.dtype, (relaxation,)),
            L1=splits.shape[1] == 3, MIRRORED=mirrored, BLOCK_ROWS=block_rows, BLOCK_COLUMNS=block_columns,
        )  # fmt: skip
