"""Linear regression with the mean squared error: its gradients in one pass, and a fit by gradient descent.

M samples of features x and targets y, with the residual r = x·w + b − y:

    loss = 1/M · Σ r²      grad_w = 2/M · xᵀ·r      grad_b = 2/M · Σ r

The squares are summed over the targets and averaged over the samples, so several targets have the gradients that each
would have alone.
"""

import math
import warnings
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number, check_same, check_size, check_tensor
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
    _check_data(x, y)
    _check_parameter("weight", weight, x, x.shape[1:] + y.shape[1:], "the features of x, then the targets of y")
    _check_parameter("bias", bias, x, y.shape[1:], "the targets of y")
    exact = torch.promote_types(x.dtype, torch.float32)
    inputs = x.to(exact)
    with without_autocast(x):
        residual = _affine(inputs, weight.to(exact), bias.to(exact)) - y.to(exact)
    loss = residual.square().sum() / len(x)
    # any value that is not finite reaches the loss, so good data are spared a search
    if _is_readable(loss) and not math.isfinite(loss.item()):
        _check_finite(x=x, y=y, weight=weight, bias=bias)
    slope = 2 / len(x) * residual
    with without_autocast(x):
        grad_weight = inputs.movedim(0, -1) @ slope
    return MSEGradients(grad_weight.to(x.dtype), slope.sum(0).to(x.dtype), loss)


class ConvergenceWarning(UserWarning):
    """The descent ended before the gradient was small enough."""


class LinearRegression(nn.Module):
    """Least squares by full-batch gradient descent: the weight and the bias that minimise the mean squared error.

    The descent starts at zero on centred data, with the step 1/L, where L = 2/M · σ² and σ is the largest singular
    value of the features, and with Nesterov's momentum, which restarts whenever it points uphill (O'Donoghue and
    Candès, "Adaptive Restart for Accelerated Gradient Schemes", 2015). It ends when ‖xᵀ·r‖ ≤ tolerance·σ·‖y‖ for each
    target. Of several solutions (constant or dependent features, fewer samples than features) it reaches the one with
    the smallest weights, as scikit-learn's `LinearRegression` does; a constant feature weighs 0.

    The number of iterations grows with the condition number κ of the centred features, and the relative error of the
    weights is up to tolerance·κ²: scale features alike. All is computed in float64 and then rounded.

    Args:
        tolerance: where the descent ends, > 0; rounding allows little less than the default.
        max_iterations: where it ends anyway, with a `ConvergenceWarning`, ≥ 1.

    Attributes:
        weight: as `mse_gradients` takes it, in the dtype and on the device of the data; None before `fit`. It and the
            bias are buffers: `state_dict` holds them, and `load_state_dict` takes them in any shape.
        bias: likewise.
        iterations: the steps of the last `fit`.
        converged: whether it reached `tolerance`.

    Shape:
        [samples] or [samples, features] to [samples] or [samples, targets], as in `fit`.

    Raises:
        TypeError: if `tolerance` is not a number or `max_iterations` not an int.
        ValueError: if one is out of range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
        >>> model = LinearRegression().fit(x, y=2 * x[:, 0] - x[:, 1] + 5)
        >>> model.weight, model.bias, model.converged
        (tensor([ 2., -1.]), tensor(5.), True)
        >>> model.predict(torch.tensor([[10.0, 1.0]]))
        tensor([24.])
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, *, tolerance: float = 1e-14, max_iterations: int = 100_000) -> None:
        super().__init__()
        self.tolerance: float = check_number("tolerance", tolerance, 0, above=True)
        self.max_iterations: int = check_number("max_iterations", max_iterations, 1, whole=True)
        self.iterations = 0
        self.converged = False
        self.register_buffer("weight", None)
        self.register_buffer("bias", None)

    def fit(self, x: Tensor, y: Tensor) -> Self:
        """Sets `weight` and `bias` to the solution, whatever they were, without a gradient.

        Args:
            x: inputs, [samples], or [samples, features].
            y: targets, [samples], or [samples, targets], in the dtype of `x`.

        Returns:
            The module itself.

        Raises:
            TypeError: for anything but floating-point tensors of one dtype.
            ValueError: for shapes that do not fit, no samples, features or targets, several devices, or a value that is
                NaN or infinite.
        """
        _check_data(x, y)
        _check_finite(x=x, y=y)
        inputs, inputs_mean = _centre(x)
        targets, targets_mean = _centre(y)
        # in units in which nothing overflows: σ = 1, and 1 is the largest target
        inputs_scale = _positive(torch.linalg.matrix_norm(inputs, ord=2))
        targets_scale = _positive(targets.abs().max())
        weight = self._descend(inputs / inputs_scale, targets / targets_scale) * (targets_scale / inputs_scale)
        bias = targets_mean - inputs_mean @ weight
        self.weight = weight.reshape(x.shape[1:] + y.shape[1:]).to(x.dtype)
        self.bias = bias.reshape(y.shape[1:]).to(x.dtype)
        return self

    def _descend(self, x: Tensor, y: Tensor) -> Tensor:
        """The weight, [features, targets], for centred x, [samples, features], with σ = 1 and y, [samples, targets]."""
        point = weight = x.new_zeros(x.shape[1], y.shape[1])
        bias = y.new_zeros(y.shape[1])
        scale = _positive(y.norm(dim=0))
        self.iterations = age = 0
        while True:
            descent = mse_gradients(x, y, point, bias).grad_weight * (len(x) / 2)  # 1/L = M/2
            remaining = float((descent.norm(dim=0) / scale).max())
            self.converged = remaining <= self.tolerance
            if self.converged:
                return point
            if self.iterations == self.max_iterations:
                warnings.warn(
                    f"the gradient is {remaining:.1e} of its scale after max_iterations = {self.max_iterations}, more "
                    f"than tolerance = {self.tolerance:g}: the features are nearly dependent or of unlike scales",
                    ConvergenceWarning,
                    stacklevel=3,
                )
                return point
            self.iterations += 1
            step = point - descent - weight
            weight = weight + step
            age = 0 if (descent * step).sum() > 0 else age + 1
            point = weight + age / (age + 3) * step

    def predict(self, x: Tensor) -> Tensor:
        """Returns x·weight + bias.

        Args:
            x: inputs, as in `fit`, in the dtype and on the device of `weight`.

        Returns:
            Predictions, [samples] or [samples, targets].

        Raises:
            RuntimeError: before `fit`.
            TypeError: for anything but a tensor of the dtype of `weight`.
            ValueError: for another shape or device.
        """
        if self.weight is None or self.bias is None:
            raise RuntimeError("LinearRegression has no weight before fit(x, y) or load_state_dict")
        check_tensor("x", x)
        check_same("x", x, "weight", self.weight)
        features = self.weight.shape[: self.weight.dim() - self.bias.dim()]
        if x.dim() == 0 or x.shape[1:] != features:
            expected = ", ".join(["samples", *map(str, features)])
            raise ValueError(f"x must have the shape [{expected}], as in fit, got {list(x.shape)}")
        with without_autocast(x):
            return _affine(x, self.weight, self.bias)

    forward = predict

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """The options, as the module prints them."""
        return f"tolerance={self.tolerance}, max_iterations={self.max_iterations}"


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tensordot(x, weight, x.dim() - 1) + bias


def _centre(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the values as float64 [samples, columns], less their mean, and the mean."""
    columns = values.detach().double().reshape(len(values), -1)
    offsets = columns - columns[0]  # exactly zero in a constant column, and as precise beside a large mean
    mean = offsets.mean(0)
    return offsets - mean, columns[0] + mean


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1)


def _check_data(x: Tensor, y: Tensor) -> None:
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


def _check_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if wrong := int((~tensor.isfinite()).sum()):
            raise ValueError(f"{name} must be finite, got {wrong} NaN or infinite values of {tensor.numel()}")


def _is_readable(value: Tensor) -> bool:
    """Whether its value is known here and now, without waiting for a GPU."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and not transforms_active()
