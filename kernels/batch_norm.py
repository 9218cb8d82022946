"""Triton kernels of batch normalisation: a matrix [samples, features] of any strides, normalised over the samples.

A column's mean is kept as an unevaluated sum, a high and a low part: (x − high) − low is exact to rounding however
large the mean. Moments are merged from those of parts, never from sums of squares, so nothing cancels.

Where one tile holds whole columns, one launch reads the matrix once. Otherwise the samples are split: a first launch
finds each split's sums, a second one adds them in a fixed order and streams over the matrix again. The tile may be
tuned; another tile adds in another order, so results differ by rounding.
Equations and names: `srm_triton/ops/batch_norm.py`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from triton import language as tl

from . import launch
from .configurations import Tunable

TILE = 2048  # elements that a program holds at a time
WHOLE = 8192  # the most that it holds where that spares a second pass, twice in one column of adjacent samples
MAX_SPLITS = 64
PROGRAMS = 512  # as many as fill a device
SECTOR = 32  # bytes that a memory access moves at least
MOST_WARPS = 16
PER_WARP = 512  # elements; half in float64


@triton.jit
def _columns(features, BLOCK_FEATURES: tl.constexpr):
    columns = tl.program_id(0).to(tl.int64) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    return columns, columns < features


@triton.jit
def _rows(tile, tiles, samples, BLOCK_SAMPLES: tl.constexpr):
    """The rows of a tile of this program's split, and which of them exist."""
    first = (tl.program_id(1).to(tl.int64) * tiles + tile) * BLOCK_SAMPLES
    rows = (first + tl.arange(0, BLOCK_SAMPLES))[:, None]
    return rows, rows < samples


@triton.jit
def _load_column(pointer, columns, inside, accumulator: tl.constexpr):
    return tl.load(pointer + columns, mask=inside, other=0.0).to(accumulator)


@triton.jit
def _merge(count, pivot, offset, squares):
    """Merges parts along axis 0: `count` samples each (or none), mean pivot + offset, squared deviations `squares`."""
    total = tl.sum(count, 0)
    mean = tl.sum(count * offset, 0) / total
    high = pivot + mean
    low = (pivot - high) + mean
    deviation = offset - mean
    return high, low, tl.sum(squares + count * deviation * deviation, 0)


@triton.jit
def _tile_moments(x, exists, accumulator: tl.constexpr):
    """Mean (high, low) and squared deviations of a tile's columns; `exists` is [rows, 1]."""
    count = exists.to(accumulator)
    pivot = tl.sum(x, 0) / tl.sum(count, 0)
    return _merge(count, pivot, x - pivot, 0.0)


@triton.jit
def _load_partials(partials, sums, splits, features, columns, inside, accumulator: tl.constexpr, BLOCK: tl.constexpr):
    """The partial sums number `sums` of all splits, [splits, features]."""
    split = tl.arange(0, BLOCK).to(tl.int64)[:, None]
    partials += (sums * splits + split) * features + columns
    return tl.load(partials, mask=(split < splits) & inside, other=0.0).to(accumulator)


@triton.jit
def batch_norm_partial_kernel(
    inputs,
    partials,
    tiles: tl.int32,
    splits: tl.int32,
    samples: tl.int64,
    features: tl.int64,
    stride_sample,
    stride_feature,
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """The mean (high, low) and the squared deviations of one split, as three planes of [splits, features]."""
    accumulator: tl.constexpr = tl.float64 if inputs.dtype.element_ty == tl.float64 else tl.float32
    columns, inside = _columns(features, BLOCK_FEATURES)
    inputs += columns * stride_feature
    rows, exists = _rows(0, tiles, samples, BLOCK_SAMPLES)
    x = tl.load(inputs + rows * stride_sample, mask=exists & inside, other=0.0).to(accumulator)
    pivot = tl.sum(x, 0) / tl.sum(exists.to(accumulator), 0)

    # Welford's recurrence in each place of the tile; the first tile is in registers already
    count = exists.to(accumulator)
    mean = x - pivot
    squares = tl.zeros((BLOCK_SAMPLES, BLOCK_FEATURES), accumulator)
    for tile in range(1, tiles):
        rows, exists = _rows(tile, tiles, samples, BLOCK_SAMPLES)
        x = tl.load(inputs + rows * stride_sample, mask=exists & inside, other=0.0).to(accumulator) - pivot
        present = exists.to(accumulator)
        count += present
        change = x - mean
        mean += change * (present / (tile + 1))
        squares += present * change * (x - mean)

    high, low, squares = _merge(count, pivot, mean, squares)
    partials += tl.program_id(1).to(tl.int64) * features + columns
    plane = splits.to(tl.int64) * features
    tl.store(partials, high, mask=inside)
    tl.store(partials + plane, low, mask=inside)
    tl.store(partials + 2 * plane, squares, mask=inside)


@triton.jit
def _merge_partials(
    partials,
    tiles,
    splits,
    samples,
    features,
    columns,
    inside,
    accumulator: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    high = _load_partials(partials, 0, splits, features, columns, inside, accumulator, BLOCK_SPLITS)
    low = _load_partials(partials, 1, splits, features, columns, inside, accumulator, BLOCK_SPLITS)
    squares = _load_partials(partials, 2, splits, features, columns, inside, accumulator, BLOCK_SPLITS)
    pivot = _load_column(partials, columns, inside, accumulator)
    length = tiles.to(tl.int64) * BLOCK_SAMPLES
    rest = samples - tl.arange(0, BLOCK_SPLITS).to(tl.int64)[:, None] * length
    count = tl.maximum(tl.minimum(rest, length), 0).to(accumulator)
    return _merge(count, pivot, high - pivot + low, squares)


@triton.jit
def _store_outputs(pointer, x, high, low, scale, bias, keep, mask):
    y = tl.where(keep & (x == 0), 0.0, ((x - high) - low) * scale + bias)
    tl.store(pointer, y.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def batch_norm_forward_kernel(
    inputs,
    weight,
    bias,
    partials,
    outputs,
    statistics,
    tiles: tl.int32,
    splits: tl.int32,
    samples: tl.int64,
    features: tl.int64,
    divisor: tl.int64,
    inputs_stride_sample,
    inputs_stride_feature,
    outputs_stride_sample,
    outputs_stride_feature,
    constants,
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Normalises one split; the statistics come from the tile itself where there are no `partials`."""
    accumulator: tl.constexpr = tl.float64 if inputs.dtype.element_ty == tl.float64 else tl.float32
    columns, inside = _columns(features, BLOCK_FEATURES)
    inputs += columns * inputs_stride_feature
    outputs += columns * outputs_stride_feature
    if partials is None:
        rows, exists = _rows(0, tiles, samples, BLOCK_SAMPLES)
        x = tl.load(inputs + rows * inputs_stride_sample, mask=exists & inside, other=0.0).to(accumulator)
        high, low, squares = _tile_moments(x, exists, accumulator)
    else:
        high, low, squares = _merge_partials(
            partials, tiles, splits, samples, features, columns, inside, accumulator, BLOCK_SAMPLES, BLOCK_SPLITS
        )  # fmt: skip
    variance = squares / divisor.to(accumulator)
    first = inside & (tl.program_id(1) == 0)
    tl.store(statistics + columns, high, mask=first)
    tl.store(statistics + features + columns, low, mask=first)
    tl.store(statistics + 2 * features + columns, variance, mask=first)

    scale = 1.0 / tl.sqrt(variance + constants[0])
    keep = constants[1] != 0
    beta = tl.zeros((BLOCK_FEATURES,), accumulator)
    if weight is not None:
        scale *= _load_column(weight, columns, inside, accumulator)
    if bias is not None:
        beta = _load_column(bias, columns, inside, accumulator)
    if partials is None:
        _store_outputs(outputs + rows * outputs_stride_sample, x, high, low, scale, beta, keep, exists & inside)
    else:
        for tile in range(tiles):
            rows, exists = _rows(tile, tiles, samples, BLOCK_SAMPLES)
            x = tl.load(inputs + rows * inputs_stride_sample, mask=exists & inside, other=0.0).to(accumulator)
            _store_outputs(outputs + rows * outputs_stride_sample, x, high, low, scale, beta, keep, exists & inside)


@triton.jit
def _load_pair(
    inputs,
    grads,
    inputs_stride_sample,
    grads_stride_sample,
    rows,
    mask,
    high,
    low,
    scale,
    keep,
    accumulator: tl.constexpr,
):
    """Normalised inputs x̂ and output gradients dy, both 0 where masked; dy also where an x of 0 is kept."""
    x = tl.load(inputs + rows * inputs_stride_sample, mask=mask, other=0.0).to(accumulator)
    dy = tl.load(grads + rows * grads_stride_sample, mask=mask, other=0.0).to(accumulator)
    return tl.where(mask, ((x - high) - low) * scale, 0.0), tl.where(keep & (x == 0), 0.0, dy)


@triton.jit
def _load_statistics(statistics, features, columns, inside, eps):
    high = tl.load(statistics + columns, mask=inside, other=0.0)
    low = tl.load(statistics + features + columns, mask=inside, other=0.0)
    variance = tl.load(statistics + 2 * features + columns, mask=inside, other=0.0)
    return high, low, 1.0 / tl.sqrt(variance + eps)


@triton.jit
def batch_norm_backward_partial_kernel(
    grads,
    inputs,
    statistics,
    partials,
    tiles: tl.int32,
    splits: tl.int32,
    samples: tl.int64,
    features: tl.int64,
    grads_stride_sample,
    grads_stride_feature,
    inputs_stride_sample,
    inputs_stride_feature,
    constants,
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """The sums of dy·x̂ and of dy over one split, as two planes of [splits, features]."""
    accumulator: tl.constexpr = tl.float64 if inputs.dtype.element_ty == tl.float64 else tl.float32
    columns, inside = _columns(features, BLOCK_FEATURES)
    high, low, scale = _load_statistics(statistics, features, columns, inside, constants[0])
    keep = constants[1] != 0
    inputs += columns * inputs_stride_feature
    grads += columns * grads_stride_feature
    grad_weight = tl.zeros((BLOCK_SAMPLES, BLOCK_FEATURES), accumulator)
    grad_bias = tl.zeros((BLOCK_SAMPLES, BLOCK_FEATURES), accumulator)
    for tile in range(tiles):
        rows, exists = _rows(tile, tiles, samples, BLOCK_SAMPLES)
        normalised, dy = _load_pair(
            inputs, grads, inputs_stride_sample, grads_stride_sample, rows, exists & inside, high, low, scale,
            keep, accumulator,
        )  # fmt: skip
        grad_weight += dy * normalised
        grad_bias += dy
    partials += tl.program_id(1).to(tl.int64) * features + columns
    tl.store(partials, tl.sum(grad_weight, 0), mask=inside)
    tl.store(partials + splits.to(tl.int64) * features, tl.sum(grad_bias, 0), mask=inside)


@triton.jit
def _store_grads(pointer, normalised, dy, scale, mean_grad, projection, mask):
    dx = scale * (dy - mean_grad - normalised * projection)
    tl.store(pointer, dx.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def batch_norm_backward_kernel(
    grads,
    inputs,
    weight,
    statistics,
    partials,
    grad_inputs,
    grad_affine,
    tiles: tl.int32,
    splits: tl.int32,
    samples: tl.int64,
    features: tl.int64,
    divisor: tl.int64,
    grads_stride_sample,
    grads_stride_feature,
    inputs_stride_sample,
    inputs_stride_feature,
    outputs_stride_sample,
    outputs_stride_feature,
    constants,
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Input gradients of one split; the sums come from the tile itself where there are no `partials`."""
    accumulator: tl.constexpr = tl.float64 if inputs.dtype.element_ty == tl.float64 else tl.float32
    columns, inside = _columns(features, BLOCK_FEATURES)
    high, low, scale = _load_statistics(statistics, features, columns, inside, constants[0])
    keep = constants[1] != 0
    inputs += columns * inputs_stride_feature
    grads += columns * grads_stride_feature
    grad_inputs += columns * outputs_stride_feature
    if partials is None:
        rows, exists = _rows(0, tiles, samples, BLOCK_SAMPLES)
        normalised, dy = _load_pair(
            inputs, grads, inputs_stride_sample, grads_stride_sample, rows, exists & inside, high, low, scale,
            keep, accumulator,
        )  # fmt: skip
        grad_weight = tl.sum(dy * normalised, 0)
        grad_bias = tl.sum(dy, 0)
    else:
        partial_weight = _load_partials(partials, 0, splits, features, columns, inside, accumulator, BLOCK_SPLITS)
        partial_bias = _load_partials(partials, 1, splits, features, columns, inside, accumulator, BLOCK_SPLITS)
        grad_weight = tl.sum(partial_weight, 0)
        grad_bias = tl.sum(partial_bias, 0)
    first = inside & (tl.program_id(1) == 0)
    tl.store(grad_affine + columns, grad_weight, mask=first)
    tl.store(grad_affine + features + columns, grad_bias, mask=first)

    mean_grad = grad_bias / samples.to(accumulator)
    projection = grad_weight / divisor.to(accumulator)
    factor = scale
    if weight is not None:
        factor = scale * _load_column(weight, columns, inside, accumulator)
    if partials is None:
        pointer = grad_inputs + rows * outputs_stride_sample
        _store_grads(pointer, normalised, dy, factor, mean_grad, projection, exists & inside)
    else:
        for tile in range(tiles):
            rows, exists = _rows(tile, tiles, samples, BLOCK_SAMPLES)
            normalised, dy = _load_pair(
                inputs, grads, inputs_stride_sample, grads_stride_sample, rows, exists & inside, high, low, scale,
                keep, accumulator,
            )  # fmt: skip
            pointer = grad_inputs + rows * outputs_stride_sample
            _store_grads(pointer, normalised, dy, factor, mean_grad, projection, exists & inside)


class Tile(NamedTuple):
    """The elements that a program holds at a time, the most programs that share a column, and a program's warps."""

    block_samples: int
    block_features: int
    splits: int
    num_warps: int

    def shares(self, samples: int) -> tuple[int, int]:
        """The tiles that a program takes in turn, and the programs of a column; one and one hold whole columns."""
        blocks = triton.cdiv(samples, self.block_samples)
        tiles = triton.cdiv(blocks, self.splits)
        return tiles, triton.cdiv(blocks, tiles)


def candidates(
    warp: int | None, dtype: torch.dtype, samples_exponent: int, features_exponent: int, adjacent: str
) -> list[Tile]:
    """Tiles for up to 2^exponent samples and features, of which the `adjacent` ones are; the usual tile first.

    It holds whole columns where that leaves accesses coalesced. The others are its neighbours, within the same bounds.
    """
    samples, features = 1 << samples_exponent, 1 << features_exponent
    double = 1 + (dtype == torch.float64)
    most = WHOLE // double**2
    target, programs = (most, 1) if warp is None else (TILE, PROGRAMS)  # interpreted programs cost the same
    narrowest = 1 if adjacent == "samples" else min(SECTOR // dtype.itemsize, features)

    def tile(rows: int, columns: int, splits: int = 1, warps: int = 1) -> Tile:
        return Tile(rows, columns, splits, min(max(rows * columns * double // PER_WARP, 1), MOST_WARPS) * warps)

    def holds(rows: int, columns: int) -> bool:  # addresses of values that are not adjacent take registers
        return rows * columns <= most * (1 + (adjacent == "samples" and columns == 1))

    def fits(tile: Tile) -> bool:
        return (
            narrowest <= tile.block_features <= features
            and 1 <= tile.splits <= min(samples // tile.block_samples, MAX_SPLITS)
            and tile.num_warps <= MOST_WARPS
            and holds(tile.block_samples, tile.block_features)
        )

    columns = 1 if adjacent == "samples" else min(32, features)
    rows = min(target // columns, samples)
    splits = min(samples // rows, MAX_SPLITS, max(math.isqrt(samples // rows), programs // (features // columns)))
    split = tile(rows, columns, splits)
    wide = min(max(target // samples, narrowest), features)
    if holds(samples, wide):
        widths = wide // 2, wide * 2, wide // 4
        found = [tile(samples, wide, 1, warps) for warps in (1, 2, 4)] + [tile(samples, width) for width in widths]
        found.append(split)
    else:
        shapes = (rows // 2, columns), (rows * 2, columns), (rows // 2, columns * 2)
        found = [split, tile(rows, columns, splits, 2), *(tile(*shape, splits) for shape in shapes)]
        found += [tile(rows, columns, splits // 2), tile(rows, columns, splits * 2)]
    return list(dict.fromkeys(filter(fits, found)))


_SIZES, _TOLERANCE = "samples ≤ 2^{}, features ≤ 2^{}, {} adjacent", 16.0
FORWARD = Tunable("batch_norm_forward", _SIZES, candidates, _TOLERANCE)
BACKWARD = Tunable("batch_norm_backward", _SIZES, candidates, _TOLERANCE)


def _samples_adjacent(matrix: torch.Tensor) -> bool:
    return matrix.stride(0) < matrix.stride(1)


def _run(
    tunable: Tunable,
    inputs: torch.Tensor,
    tile: Tile | None,
    start: Callable[[Tile], None],
    outputs: Sequence[torch.Tensor],
) -> None:
    """Starts with a tile; without one, with the tuned or the usual one."""
    with launch.device_of(inputs):
        if tile is None:
            exponents = ((size - 1).bit_length() for size in inputs.shape)
            size_class = *exponents, "samples" if _samples_adjacent(inputs) else "features"
            tile = tunable.choose(inputs, size_class, start, outputs)
        start(tile)


def _grid(tile: Tile, splits: int, features: int) -> tuple[int, int]:
    return triton.cdiv(features, tile.block_features), splits


def _blocks(tile: Tile) -> dict[str, Any]:
    return {
        "BLOCK_SAMPLES": tile.block_samples,
        "BLOCK_FEATURES": tile.block_features,
        "num_warps": tile.num_warps,
    }


def forward(
    inputs: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    outputs: torch.Tensor,
    statistics: torch.Tensor,
    eps: float,
    divisor: int,
    keep_zeros: bool,
    tile: Tile | None = None,
) -> None:
    """Fills `outputs` and `statistics`, the [3, features] high and low part of the mean and the variance.

    Matrices are [samples, features]; `divisor` is that of the variance; with `keep_zeros` an input of 0 gives 0.
    Without a `tile`, the tuned or the usual one serves.
    """
    samples, features = inputs.shape

    def start(tile: Tile) -> None:
        tiles, splits = tile.shares(samples)
        grid, blocks, sizes = _grid(tile, splits, features), _blocks(tile), (tiles, splits, samples, features)
        partials = None
        if tiles * splits > 1:
            partials = statistics.new_empty(3, splits, features)
            batch_norm_partial_kernel[grid](inputs, partials, *sizes, *inputs.stride(), **blocks)
        batch_norm_forward_kernel[grid](
            inputs,
            weight,
            bias,
            partials,
            outputs,
            statistics,
            *sizes,
            divisor,
            *inputs.stride(),
            *outputs.stride(),
            launch.scalars(inputs.dtype, (eps, float(keep_zeros))),
            BLOCK_SPLITS=triton.next_power_of_2(splits),
            **blocks,
        )

    _run(FORWARD, inputs, tile, start, (outputs, statistics))


def backward(
    grads: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor | None,
    statistics: torch.Tensor,
    grad_inputs: torch.Tensor,
    grad_affine: torch.Tensor,
    eps: float,
    divisor: int,
    keep_zeros: bool,
    tile: Tile | None = None,
) -> None:
    """Fills `grad_inputs` and `grad_affine`, the [2, features] gradients of weight and bias.

    `divisor` is the one under the sum of dy·x̂ in the gradient of the inputs. Without a `tile`, the tuned or the usual
    one serves.
    """
    samples, features = inputs.shape
    constants = launch.scalars(inputs.dtype, (eps, float(keep_zeros)))
    order_differs = _samples_adjacent(grads) != _samples_adjacent(inputs) and 0 not in grads.stride()

    def start(tile: Tile) -> None:
        tiles, splits = tile.shares(samples)
        grid, blocks, sizes = _grid(tile, splits, features), _blocks(tile), (tiles, splits, samples, features)
        dy, partials = grads, None
        if tiles * splits > 1:
            if order_differs:  # both launches read them, in the order of the inputs
                dy = torch.empty_like(inputs).copy_(grads)
            partials = statistics.new_empty(2, splits, features)
            batch_norm_backward_partial_kernel[grid](
                dy,
                inputs,
                statistics,
                partials,
                *sizes,
                *dy.stride(),
                *inputs.stride(),
                constants,
                **blocks,
            )
        batch_norm_backward_kernel[grid](
            dy,
            inputs,
            weight,
            statistics,
            partials,
            grad_inputs,
            grad_affine,
            *sizes,
            divisor,
            *dy.stride(),
            *inputs.stride(),
            *grad_inputs.stride(),
            constants,
            BLOCK_SPLITS=triton.next_power_of_2(splits),
            **blocks,
        )

    _run(BACKWARD, inputs, tile, start, (grad_inputs, grad_affine))
