"""Least squares by gradient descent on whitened features; the gradients are those of `srm_triton/regression/mse.py`."""

import warnings
from typing import Any, Self

import torch
from torch import Tensor, nn

from srm_triton.checks import check_entries, check_number, check_option, check_same, check_size, check_tensor
from srm_triton.functions import refuse_script
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.precision import without_autocast
from srm_triton.regression.mse import affine, check_data, check_finite, mse_gradients

_ROUNDINGS = 16
"""What is smaller than so many roundings counts as 0."""
_DOUBTFUL = 1e-6
"""The relative error of weights, and the inverse condition number, that `fit` warns of."""


class ConvergenceWarning(UserWarning):
    """Weights that may be less exact than they look, and why."""


class LinearRegression(nn.Module):
    """Least squares by full-batch gradient descent: the weight and the bias that minimise the mean squared error.

    The features are centred, standardised and whitened: from X = U·Σ·Vᵀ, the descent is over the weights of X·V·Σ⁻¹,
    whose condition number is 1 but for rounding. Steps of 1/L, with L = 2/M there, then end after a few iterations,
    whatever the scales of the features: when the gradient of each target is at most `tolerance` times the length of
    that target. The result is in units of the data.

    Of several solutions (constant or dependent features, fewer samples than features) it takes the one with the
    smallest weights, as scikit-learn's `LinearRegression` does; a constant feature weighs 0. Both are judged to within
    rounding of the data's dtype, for half precision of float32. All is computed in float64 and then rounded.

    Args:
        fit_intercept: whether there is a bias; without one it stays 0, and nothing is centred.
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
        ValueError: if one is out of range, or `fit_intercept` is no bool.

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

    __prepare_scriptable__ = refuse_script

    def __init__(self, *, fit_intercept: bool = True, tolerance: float = 1e-14, max_iterations: int = 100) -> None:
        super().__init__()
        self.fit_intercept: bool = check_option("fit_intercept", fit_intercept, (True, False))
        self.tolerance: float = check_number("tolerance", tolerance, 0, above=True)
        self.max_iterations: int = check_number("max_iterations", max_iterations, 1, whole=True)
        self.iterations = 0
        self.converged = False
        self.register_buffer("weight", None)
        self.register_buffer("bias", None)

    def fit(self, x: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> Self:
        """Sets `weight` and `bias` to the solution, whatever they were, without a gradient.

        A `ConvergenceWarning` says where the standardised features are nearly, but not quite, dependent: where their
        condition number κ is above 1e6, or rounding may have cost the weights more than 1e-6 of their length, which is
        estimated by ε·κ·(1 + κ·‖r‖/(σ·‖w‖)), with ε = 2⁻⁵² and their largest singular value σ (Golub and Van Loan,
        "Matrix Computations", 2013, section 5.3).

        Args:
            x: inputs, [samples], or [samples, features].
            y: targets, [samples], or [samples, targets], in the dtype of `x`.
            sample_weight: how much each sample counts, [samples], at least 0, in the dtype of `x`: a whole number is
                as good as so many copies of the sample. None stands for 1.

        Returns:
            The module itself.

        Raises:
            TypeError: for anything but floating-point tensors of one dtype.
            ValueError: for shapes that do not fit, no samples, features or targets, several devices, a value that is
                NaN or infinite, or sample weights that are negative or all 0.
        """
        check_data(x, y)
        check_finite(x=x, y=y)
        importance = _check_sample_weight(sample_weight, x)
        counted = importance > 0
        importance = (importance[counted] / importance.max()).unsqueeze(1)
        features, features_mean = _centre(x[counted], importance, self.fit_intercept)
        targets, targets_mean = _centre(y[counted], importance, self.fit_intercept)
        dtype = accumulator_dtype(x.dtype)
        spread, size = features.abs().amax(0), (features + features_mean).abs().amax(0)
        varies = spread > _ROUNDINGS * torch.finfo(dtype).eps * size
        # in units in which nothing overflows: 1 is the length of each feature and the largest target
        root = importance.sqrt()
        features = features[:, varies] / spread[varies] * root
        length = torch.linalg.vector_norm(features, dim=0)
        scale = spread[varies] * length
        targets_scale = _positive(targets.abs().amax(0))
        found = self._solve(features / length, targets / targets_scale * root, scale, torch.finfo(dtype).eps)
        weight = features.new_zeros(len(varies), targets.shape[1])
        weight[varies] = found * (targets_scale / scale.unsqueeze(1))
        bias = targets_mean - features_mean @ weight
        self.weight = weight.reshape(x.shape[1:] + y.shape[1:]).to(x.dtype)
        self.bias = bias.reshape(y.shape[1:]).to(x.dtype)
        return self

    def _solve(self, x: Tensor, y: Tensor, scale: Tensor, rounding: float) -> Tensor:
        """The weight, [features, targets], for features of length 1; `scale` has their lengths in the user's units."""
        if not len(scale):
            self.iterations, self.converged = 0, True
            return x.new_zeros(0, y.shape[1])
        _, sizes, axes = torch.linalg.svd(torch.linalg.qr(x, mode="r").R, full_matrices=False)
        least, exact = _ROUNDINGS * len(scale) ** 0.5 * sizes[0], torch.finfo(sizes.dtype).eps
        condition = float(sizes[0] / sizes[sizes > least * exact][-1])
        told_apart = sizes > least * rounding
        sizes, axes = sizes[told_apart], axes[told_apart].mT
        whitened = x @ (axes / sizes)
        on_axes = self._descend(whitened, y)
        weight = axes @ (on_axes / sizes.unsqueeze(1))
        residual = (y - whitened @ on_axes).norm(dim=0) / _positive(sizes[0] * weight.norm(dim=0))
        error = exact * condition * (1 + condition * float(residual.max()))
        if condition > 1 / _DOUBTFUL or error > _DOUBTFUL:
            warnings.warn(
                f"the standardised features are nearly dependent, their condition number is {condition:.1e}: other "
                "weights fit nearly as well, and rounding may have chosen these",
                ConvergenceWarning,
                stacklevel=3,
            )
        if len(sizes) < len(scale):  # of all solutions the smallest in the user's units lies in the span of the samples
            units, order = (scale / scale.max()).sort(descending=True)  # small rows of QR then keep their digits
            span, triangle = torch.linalg.qr(units.unsqueeze(1) * axes[order])
            on_span = torch.linalg.solve_triangular(triangle.mT, on_axes / sizes.unsqueeze(1), upper=False)
            weight[order] = units.unsqueeze(1) * (span @ on_span)
        return weight

    def _descend(self, x: Tensor, y: Tensor) -> Tensor:
        """The weight, [features, targets], for whitened x, [samples, features], and y, [samples, targets]."""
        weight = x.new_zeros(x.shape[1], y.shape[1])
        bias = y.new_zeros(y.shape[1])
        scale = _positive(y.norm(dim=0))
        self.iterations = 0
        while True:
            descent = mse_gradients(x, y, weight, bias).grad_weight * (len(x) / 2)  # 1/L = M/2
            remaining = float((descent.norm(dim=0) / scale).max())
            self.converged = remaining <= self.tolerance
            if self.converged:
                return weight
            if self.iterations == self.max_iterations:
                warnings.warn(
                    f"the gradient is {remaining:.1e} of its scale after max_iterations = {self.max_iterations}, more "
                    f"than tolerance = {self.tolerance:g}",
                    ConvergenceWarning,
                    stacklevel=4,
                )
                return weight
            self.iterations += 1
            weight = weight - descent

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
            return affine(x, self.weight, self.bias)

    forward = predict

    def score(self, x: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> float:
        """Returns the coefficient of determination R² = 1 − Σ(y − ŷ)²/Σ(y − ȳ)², for several targets their mean.

        Args:
            x: inputs, as in `predict`.
            y: targets, in the shape and dtype of the predictions.
            sample_weight: how much each sample counts, as in `fit`.

        Returns:
            1 where predictions are exact, 0 where they are no better than the mean of `y`, and less where they are
            worse. A target that is constant counts as 1 if it is predicted exactly, else as 0.

        Raises:
            RuntimeError: before `fit`.
            TypeError: for anything but floating-point tensors of the dtype of `weight`.
            ValueError: for shapes or devices that do not fit, fewer than two samples that count, values that are NaN or
                infinite, or sample weights that are negative or all 0.

        Example:
            >>> x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 9.0])
            >>> round(LinearRegression().fit(x, y).score(x, y), 4)
            0.9423
        """
        predictions = self.predict(x).detach()
        check_data(x, y)
        if y.shape != predictions.shape:
            raise ValueError(f"y must have the shape {list(predictions.shape)} of the predictions, got {list(y.shape)}")
        check_finite(x=x, y=y)
        importance = _check_sample_weight(sample_weight, x)
        counted = importance > 0
        if counted.sum() < 2:
            raise ValueError(f"x must have at least two samples that count for a variance, got {int(counted.sum())}")
        importance = (importance[counted] / importance.max()).unsqueeze(1)
        spread, _ = _centre(y[counted], importance)
        error = (y - predictions)[counted].double().reshape(len(spread), -1)
        scale = _positive(torch.maximum(spread.abs(), error.abs()).amax(0))
        missed, total = ((importance * (part / scale).square()).sum(0) for part in (error, spread))
        return float(torch.where(total > 0, 1 - missed / total, (missed == 0).double()).mean())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """The options, as the module prints them."""
        return f"fit_intercept={self.fit_intercept}, tolerance={self.tolerance}, max_iterations={self.max_iterations}"


def _centre(values: Tensor, importance: Tensor, fit_intercept: bool = True) -> tuple[Tensor, Tensor]:
    """Returns the values as float64 [samples, columns], less their mean, and the mean; 0 without an intercept."""
    columns = values.detach().double().reshape(len(values), -1)
    if not fit_intercept:
        return columns, columns.new_zeros(columns.shape[1])
    offsets = columns - columns[0]  # exactly zero in a constant column, and as precise beside a large mean
    mean = (importance * offsets).sum(0) / importance.sum()
    return offsets - mean, columns[0] + mean


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1)


def _check_sample_weight(value: Tensor | None, x: Tensor) -> Tensor:
    """Returns the weights of the samples as float64, [samples]."""
    if value is None:
        return torch.ones(len(x), dtype=torch.float64, device=x.device)
    check_tensor("sample_weight", value, "[samples]")
    check_same("sample_weight", value, "x", x)
    check_size("sample_weight", value, 0, len(x), "the samples of x")
    check_entries("sample_weight", value, value.isfinite() & (value >= 0), "be finite and at least 0")
    if not value.any():
        raise ValueError("sample_weight must be above 0 for at least one sample, got zeros")
    return value.detach().double()
