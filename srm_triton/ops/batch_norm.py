"""Batch normalisation of a matrix over one of its axes, as layers apply it to data and to their weights.

A matrix x of M samples for each of C features, scale γ and shift β a feature; over the samples of each feature:

    μ = mean(x)    v = Σ(x − μ)²/(M − correction)    x̂ = (x − μ)/√(v + eps)    y = x̂·γ + β

Backward, from dy = ∂L/∂y, with d = M − correction:

    dβ = Σ dy      dγ = Σ dy·x̂      dx = γ/√(v + eps) · (dy − mean(dy) − x̂·Σ(dy·x̂)/d)

Source: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
Shift", ICML 2015, with a choice of correction. The published code of the event-driven layers (see `srm_scan`) has
correction = 1 but d = M, which is not the gradient of its own forward; ``gradient="seed"`` repeats it.

With `keep_zeros` an x of exactly 0 counts as missing behind the statistics: its y is 0, and its dy counts as 0.

The gradients can be differentiated again, through these equations as PyTorch's own operations.

μ is kept as an unevaluated sum of a high and a low part, so that x − μ = (x − high) − low stays exact where the mean is
large; the backward needs x, γ and, for each feature, these two and v.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import check_goes_with, check_number, check_option, check_size, check_tensor
from srm_triton.functions import Function, Gradients, custom_op, fake_of, keep_results
from srm_triton.kernels import native
from srm_triton.kernels.layout import accumulator_dtype

Gradient = Literal["exact", "seed"]
Vector = Tensor | None

# Eager reference, on x as [samples, features]; in place, since fresh memory costs more than arithmetic


def _reference_forward(
    inputs: Tensor,
    weight: Vector,
    bias: Vector,
    outputs: Tensor,
    statistics: Tensor,
    eps: float,
    divisor: int,
    keep_zeros: bool,
) -> None:
    x = inputs.to(statistics.dtype)
    y = outputs.to(statistics.dtype)  # outputs itself, if it has the type
    high = x.mean(0)
    torch.sub(x, high, out=y)
    low = y.mean(0)
    y.sub_(low)
    variance = (y * y).sum(0) / divisor
    y.div_((variance + eps).sqrt())
    if weight is not None:
        y.mul_(weight)
    if bias is not None:
        y.add_(bias)
    if keep_zeros:
        y.masked_fill_(x == 0, 0)
    if y is not outputs:
        outputs.copy_(y)
    torch.stack((high, low, variance), out=statistics)


def _reference_backward(
    grad_outputs: Tensor,
    inputs: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    grad_inputs: Tensor,
    grad_affine: Tensor,
    eps: float,
    divisor: int,
    keep_zeros: bool,
) -> None:
    high, low, variance = statistics
    deviation = (variance + eps).sqrt()
    dy = grad_outputs.to(statistics.dtype)
    if keep_zeros:
        dy = dy.masked_fill(inputs == 0, 0)
    dx = grad_inputs.to(statistics.dtype)  # grad_inputs itself, if it has the type
    normalised = torch.sub(inputs.to(statistics.dtype), high, out=dx).sub_(low).div_(deviation)
    grad_weight = (dy * normalised).sum(0)
    grad_bias = dy.sum(0)
    scale = 1 / deviation if weight is None else weight / deviation
    normalised.mul_(-grad_weight / divisor).add_(dy).sub_(grad_bias / len(inputs)).mul_(scale)
    if dx is not grad_inputs:
        grad_inputs.copy_(dx)
    torch.stack((grad_weight, grad_bias), out=grad_affine)


# Custom ops


@custom_op("batch_norm")
def normalise(
    inputs: Tensor,
    weight: Vector,
    bias: Vector,
    dim: int,
    eps: float,
    correction: int,
    gradient_correction: int,
    keep_zeros: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Outputs and statistics: the high and low part of the mean and the variance of each feature, [3, features]."""
    outputs, statistics = _allocate(inputs, weight, bias, dim)
    if inputs.numel() == 0:
        return outputs, statistics
    x, y = inputs.movedim(dim, 0), outputs.movedim(dim, 0)
    chosen = resolve_backend(inputs.device, backend, has_native=True)
    settings = eps, len(x) - correction, keep_zeros
    if chosen == "triton":
        from srm_triton.kernels import batch_norm as kernel

        kernel.forward(x, _contiguous(weight), _contiguous(bias), y, statistics, *settings)
    elif chosen == "native":
        native.batch_norm_forward(x, weight, bias, y, statistics, *settings)
    else:
        _reference_forward(x, weight, bias, y, statistics, *settings)
    return outputs, statistics


@fake_of(normalise)
def _allocate(inputs: Tensor, weight: Vector, bias: Vector, dim: int, *constants: Any) -> tuple[Tensor, Tensor]:
    statistics = inputs.new_empty((3, inputs.shape[1 - dim]), dtype=accumulator_dtype(inputs.dtype))
    return torch.empty_like(inputs), statistics


@custom_op("batch_norm_backward")
def normalise_backward(
    grad_outputs: Tensor,
    inputs: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    dim: int,
    eps: float,
    gradient_correction: int,
    keep_zeros: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the inputs and, as [2, features], of weight and bias."""
    grad_inputs, grad_affine = _allocate_backward(grad_outputs, inputs, weight, statistics, dim)
    if inputs.numel() == 0:
        return grad_inputs, grad_affine
    dy, x, dx = (matrix.movedim(dim, 0) for matrix in (grad_outputs, inputs, grad_inputs))
    chosen = resolve_backend(inputs.device, backend, has_native=True)
    settings = eps, len(x) - gradient_correction, keep_zeros
    if chosen == "triton":
        from srm_triton.kernels import batch_norm as kernel

        kernel.backward(dy, x, _contiguous(weight), statistics, dx, grad_affine, *settings)
    elif chosen == "native":
        native.batch_norm_backward(dy, x, weight, statistics, dx, grad_affine, *settings)
    else:
        _reference_backward(dy, x, weight, statistics, dx, grad_affine, *settings)
    return grad_inputs, grad_affine


@fake_of(normalise_backward)
def _allocate_backward(
    grad_outputs: Tensor, inputs: Tensor, weight: Vector, statistics: Tensor, dim: int, *constants: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs), statistics.new_empty((2, inputs.shape[1 - dim]))


def _map(op: Any, *feature_axes: int | None) -> None:
    """Teaches an op to run under `torch.vmap`: the mapped matrices stand side by side, as more features of one.

    Args:
        op: its tensors come first, and then `dim`.
        feature_axes: of each tensor; None stands for 1 - dim.
    """

    def mapped(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], Any]:
        feature_axis = 1 - arguments[len(feature_axes)]

        def join(tensor: Tensor | None, dim: int | None, axis: int | None) -> Tensor | None:
            axis = feature_axis if axis is None else axis
            if tensor is None:
                return None
            if dim is None:
                tensor, dim = tensor.expand(info.batch_size, *tensor.shape), 0
            return tensor.movedim(dim, axis).flatten(axis, axis + 1)

        def split(result: Tensor, axis: int) -> Tensor:
            return result.unflatten(axis, (info.batch_size, result.shape[axis] // info.batch_size))

        joined = map(join, arguments, in_dims, feature_axes)  # ends with the tensors
        results = op(*joined, *arguments[len(feature_axes) :])
        return tuple(map(split, results, (feature_axis, 1))), (feature_axis, 1)

    torch.library.register_vmap(op, mapped)


_map(normalise, None, 0, 0)
_map(normalise_backward, None, None, 0, 1)


def _gradients(
    grad_outputs: Tensor,
    inputs: Tensor,
    weight: Vector,
    dim: int,
    eps: float,
    correction: int,
    gradient_correction: int,
    keep_zeros: bool,
) -> tuple[Tensor, Tensor]:
    """What `normalise_backward` returns, from operations that can be differentiated."""
    dtype, size = accumulator_dtype(inputs.dtype), inputs.shape[dim]
    x, dy = inputs.to(dtype), grad_outputs.to(dtype)
    if keep_zeros:
        dy = dy.masked_fill(inputs == 0, 0)
    centred = x - x.mean(dim, keepdim=True)
    centred = centred - centred.mean(dim, keepdim=True)  # which is not 0 beside a large mean
    deviation = (centred.square().sum(dim, keepdim=True) / (size - correction) + eps).sqrt()
    normalised = centred / deviation
    grad_weight = (dy * normalised).sum(dim, keepdim=True)
    grad_bias = dy.sum(dim, keepdim=True)
    grad_inputs = (dy - grad_bias / size - normalised * grad_weight / (size - gradient_correction)) / deviation
    if weight is not None:
        grad_inputs = grad_inputs * weight.to(dtype).unsqueeze(dim)
    return grad_inputs.to(inputs.dtype), torch.stack((grad_weight.squeeze(dim), grad_bias.squeeze(dim)))


class _Gradients(Function):
    """The backward as a function of its own, for a second derivative."""

    @staticmethod
    def forward(
        grad_outputs: Tensor,
        inputs: Tensor,
        weight: Vector,
        statistics: Tensor,
        dim: int,
        eps: float,
        correction: int,
        gradient_correction: int,
        keep_zeros: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        return normalise_backward(
            grad_outputs, inputs, weight, statistics, dim, eps, gradient_correction, keep_zeros, backend
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad_outputs, matrix, weight, _, *constants, _ = inputs
        ctx.constants = constants
        ctx.save_for_backward(grad_outputs, matrix, weight)

    @staticmethod
    def backward(ctx: Any, grad_inputs: Tensor, grad_affine: Tensor) -> Gradients:
        grad_outputs, matrix, weight = ctx.saved_tensors
        tensors = [grad_outputs, matrix] if weight is None else [grad_outputs, matrix, weight]

        def gradients(grad_outputs: Tensor, matrix: Tensor, weight: Vector = None) -> tuple[Tensor, Tensor]:
            return _gradients(grad_outputs, matrix, weight, *ctx.constants)

        pull_back = torch.func.vjp(gradients, *tensors)[1]
        results = pull_back((grad_inputs, grad_affine))
        return *results, *[None] * (10 - len(results))


class _BatchNorm(Function):
    @staticmethod
    def forward(  # with names, which torch.compile needs where nothing requires a gradient
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        dim: int,
        eps: float,
        correction: int,
        gradient_correction: int,
        keep_zeros: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        return normalise(inputs, weight, bias, dim, eps, correction, gradient_correction, keep_zeros, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        matrix, weight, bias, *ctx.constants = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        keep_results(ctx, output)
        ctx.save_for_backward(matrix, weight, output[1])

    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor | None, _: Tensor) -> Gradients:
        if grad_outputs is None:  # nothing depends on the result
            return (None,) * 9
        matrix, weight, statistics = ctx.saved_tensors
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # enabled by create_graph=True
            dim, eps, _, *others = ctx.constants
            grad_inputs, grad_affine = normalise_backward(grad_outputs, matrix, weight, statistics, dim, eps, *others)
        else:
            grad_inputs, grad_affine = _Gradients.apply(grad_outputs, matrix, weight, statistics, *ctx.constants)
        grad_weight = None if weight is None else grad_affine[0].to(weight.dtype)
        grad_bias = None if ctx.bias_dtype is None else grad_affine[1].to(ctx.bias_dtype)
        return grad_inputs, grad_weight, grad_bias, *[None] * 6


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


# Public function


def batch_norm(
    inputs: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    dim: int = 0,
    eps: float = 1e-5,
    correction: int = 1,
    gradient: Gradient = "exact",
    keep_zeros: bool = False,
) -> Tensor:
    """Normalises a matrix over one axis to mean 0 and variance 1, then scales and shifts it (equations: the module's).

    Args:
        inputs: the matrix, float64, float32, float16 or bfloat16, any strides. It is computed in float64 for float64,
            else in float32.
        weight: scale γ, [inputs.shape[1 - dim]], in the dtype of `inputs` or in float32 for half-precision inputs; None
            stands for 1.
        bias: shift β, as `weight`; None stands for 0.
        dim: the axis to normalise over. 0 normalises each column of [samples, features]; 1 each row, such as a weight
            [out_features, in_features] over its fan-in, in its own memory order.
        eps: what is added to the variance, positive.
        correction: 1 divides the squared deviations by one less than their number, 0 by their number.
        gradient: ``"exact"`` for the derivative; ``"seed"`` for the published formula, d = M whatever `correction` is.
        keep_zeros: whether an input of exactly 0, such as a pruned weight, gives 0; the statistics count it.

    Returns:
        The normalised matrix, in the shape and dtype of `inputs`; empty where there are no features. A NaN or infinite
        value makes NaN of its own feature only. A feature of equal values becomes its bias.

    Raises:
        TypeError: if a tensor has an unsupported dtype, weight or bias one that does not go with that of `inputs`, or
            `eps` is not a number.
        ValueError: for another rank, length, device, or option; if the axis holds `correction` values or fewer.

    Example:
        >>> batch_norm(torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
        tensor([[-1.0000,  0.0000],
                [ 0.0000,  0.0000],
                [ 1.0000,  0.0000]])
    """
    return _checked_normalise(inputs, weight, bias, dim, eps, correction, gradient, keep_zeros)[0]


def batch_norm_with_statistics(
    inputs: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    dim: int = 0,
    eps: float = 1e-5,
    correction: int = 1,
    gradient: Gradient = "exact",
    keep_zeros: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the result of `batch_norm`, and the mean and variance that it used; for layers that keep running ones.

    Mean and variance have the shape [inputs.shape[1 - dim]], are float64 for float64 inputs, else float32, and carry no
    gradient.
    """
    outputs, statistics = _checked_normalise(inputs, weight, bias, dim, eps, correction, gradient, keep_zeros)
    high, low, variance = statistics.detach()
    return outputs, high + low, variance


def _checked_normalise(
    inputs: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    dim: int,
    eps: float,
    correction: int,
    gradient: Gradient,
    keep_zeros: bool,
) -> tuple[Tensor, Tensor]:
    check_tensor("inputs", inputs, "[rows, columns]")
    dim = check_option("dim", dim, (0, 1))
    correction = check_option("correction", correction, (0, 1))
    check_option("gradient", gradient, get_args(Gradient))
    check_option("keep_zeros", keep_zeros, (False, True))
    eps = check_number("eps", eps, 0, above=True)
    check_vector("weight", weight, inputs, 1 - dim)
    check_vector("bias", bias, inputs, 1 - dim)
    if inputs.shape[dim] <= correction:
        raise ValueError(
            f"inputs must have more than correction = {correction} entries on axis dim = {dim} for a variance, "
            f"got {list(inputs.shape)}"
        )
    gradient_correction = correction if gradient == "exact" else 0
    outputs, statistics = _BatchNorm.apply(
        inputs, weight, bias, dim, float(eps), correction, gradient_correction, keep_zeros, requested_backend()
    )
    return outputs, statistics


def check_vector(name: str, vector: Tensor | None, inputs: Tensor, axis: int) -> None:
    """Checks that a scale or shift is [inputs.shape[axis]], in a dtype that goes with the inputs'.

    Raises:
        TypeError: for another dtype.
        ValueError: for another shape or device.
    """
    if vector is None:
        return
    check_tensor(name, vector, "[features]")
    check_size(name, vector, 0, inputs.shape[axis], f"axis {axis} of inputs")
    check_goes_with(name, vector, "inputs", inputs)
