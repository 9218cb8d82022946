"""Mean-squared-error gradients against written-out sums and autograd; the fit against scikit-learn's."""

import operator
import warnings
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from sklearn import linear_model
from torch.func import vmap

from srm_triton.regression import ConvergenceWarning, LinearRegression, mse_gradients

SHAPES = [((), ()), ((), (2,)), ((3,), ()), ((3,), (2,)), ((1,), (1,))]  # axes of a sample of x, of y


def drawn(features, targets, dtype=torch.float64, samples=7):
    torch.manual_seed(0)
    shapes = (samples, *features), (samples, *targets), (*features, *targets), targets
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def with_condition(condition, samples=60, features=5):
    """Features whose singular values go from 1 down to 1/condition, not centred."""
    torch.manual_seed(1)
    u, _, v = torch.linalg.svd(torch.randn(samples, features).double() + 0.5, full_matrices=False)
    return u * torch.logspace(0, -1, features, base=condition).double() @ v


def exactly(x, y, sample_weight=None, fit_intercept=True):
    """Weights and bias from the normal equations, in fractions."""
    rows = [[*map(Fraction, row), *([Fraction(1)] * fit_intercept)] for row in x.tolist()]
    importance = [Fraction(1)] * len(rows) if sample_weight is None else [*map(Fraction, sample_weight.tolist())]
    targets, size = [*map(Fraction, y.tolist())], len(rows[0])
    system = [
        [sum(w * row[i] * row[j] for w, row in zip(importance, rows, strict=True)) for j in range(size)]
        + [sum(w * row[i] * target for w, row, target in zip(importance, rows, targets, strict=True))]
        for i in range(size)
    ]
    for i in range(size):  # Gauss and Jordan
        system[i] = [value / system[i][i] for value in system[i]]
        for j in range(size):
            if j != i:
                system[j] = [a - system[j][i] * b for a, b in zip(system[j], system[i], strict=True)]
    solution = [float(row[-1]) for row in system]
    return (solution[:-1], solution[-1]) if fit_intercept else (solution, 0.0)


def assert_fits_like_scikit_learn(x, y, tolerance=1e-6):
    model = LinearRegression().fit(x, y)
    matrix = x.reshape(len(x), -1).double().numpy()
    expected = linear_model.LinearRegression().fit(matrix, y.double().numpy())
    assert model.converged
    assert model.weight.dtype == model.bias.dtype == x.dtype
    for value, reference, relative in (
        (model.weight, expected.coef_.T, 0),
        (model.bias, expected.intercept_, tolerance),
        (model.predict(x), expected.predict(matrix), 0),
    ):
        reference = torch.as_tensor(reference).reshape(value.shape)
        scale = float(abs(expected.coef_).max() if value is model.bias else reference.abs().max())
        torch.testing.assert_close(value.double(), reference, rtol=relative, atol=tolerance * scale)
    return model


# Gradients


def test_gradients_by_hand():
    x, y = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[1.0, 0.0], [2.0, 5.0]])
    weight, bias = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([0.0, 1.0])
    result = mse_gradients(x, y, weight, bias)  # residuals [[2, 5], [0, −6]], M = 2
    assert result.grad_weight.tolist() == [[2, 5 - 18], [4, 10 + 6]]
    assert result.grad_bias.tolist() == [2, -1]
    assert result.loss.item() == (4 + 25 + 36) / 2


@pytest.mark.parametrize(("features", "targets"), SHAPES)
def test_gradients_are_the_slopes_of_the_written_out_loss(features, targets):
    x, y, weight, bias = drawn(features, targets)

    def loss(weight, bias):
        columns = weight.reshape(x[0].numel(), -1).t().tolist()
        total = 0.0
        for sample, targets in zip(x.reshape(len(x), -1).tolist(), y.reshape(len(y), -1).tolist(), strict=True):
            for column, offset, target in zip(columns, bias.flatten().tolist(), targets, strict=True):
                total += (sum(map(operator.mul, sample, column)) + offset - target) ** 2
        return total / len(x)

    result = mse_gradients(x, y, weight, bias)
    assert result.loss.item() == pytest.approx(loss(weight, bias), rel=1e-14)
    for gradient, parameter in ((result.grad_weight, weight), (result.grad_bias, bias)):
        assert gradient.shape == parameter.shape
        for index, value in enumerate(parameter.flatten().tolist()):
            losses = []
            for changed in (value - 1e-3, value + 1e-3, value):
                parameter.view(-1)[index] = changed
                losses.append(loss(weight, bias))
            slope = (losses[1] - losses[0]) / 2e-3  # exact for a parabola
            assert gradient.flatten()[index].item() == pytest.approx(slope, abs=1e-10)


@pytest.mark.parametrize(("features", "targets"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_gradients_equal_autograd(device, features, targets, dtype, tolerance):
    x, y, weight, bias = (tensor.to(device) for tensor in drawn(features, targets, dtype, samples=50))
    leaves = weight.requires_grad_(), bias.requires_grad_()
    prediction = x.reshape(50, -1) @ weight.reshape(-1, y[0].numel()) + bias
    loss = F.mse_loss(prediction.reshape(y.shape), y) * y[0].numel()
    result = mse_gradients(x, y, weight, bias)
    expected = *torch.autograd.grad(loss, leaves), loss
    for value, reference in zip(result, expected, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_result_only(dtype):
    arguments = drawn((3,), (2,), dtype, samples=300)
    arguments[1] *= 300  # squares that float16 cannot hold
    result = mse_gradients(*arguments)
    expected = mse_gradients(*(tensor.float() for tensor in arguments))
    assert result.loss.dtype == torch.float32
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.grad_weight, expected.grad_weight.to(dtype))
    assert torch.equal(result.grad_bias, expected.grad_bias.to(dtype))
    x, y, _, _ = drawn((3,), (), dtype, samples=40)
    exact = LinearRegression().fit(x.double(), y.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model = LinearRegression().fit(x, y)
    assert torch.equal(model.weight, exact.weight.to(dtype)) and torch.equal(model.bias, exact.bias.to(dtype))


def test_gradients_are_differentiable():
    arguments = [tensor.requires_grad_() for tensor in drawn((3,), (2,))]
    assert torch.autograd.gradcheck(mse_gradients, arguments)


@pytest.mark.parametrize(("features", "targets"), SHAPES)
def test_gradients_under_compile_and_vmap(features, targets):
    arguments = drawn(features, targets)
    expected = mse_gradients(*arguments)
    compiled = torch.compile(mse_gradients, fullgraph=True, backend="aot_eager")(*arguments)
    several = [torch.stack([tensor, 2 * tensor]) for tensor in arguments]
    mapped = vmap(mse_gradients)(*several)
    second = mse_gradients(*(tensor[1] for tensor in several))
    for i, value in enumerate(expected):
        torch.testing.assert_close(compiled[i], value, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(mapped[i], torch.stack([value, second[i]]), rtol=1e-14, atol=1e-14)


# Fit


@pytest.mark.parametrize(("features", "targets"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fit_equals_scikit_learn(features, targets, dtype):
    x, y, _, _ = drawn(features, targets, dtype, samples=40)
    model = assert_fits_like_scikit_learn(x, y)
    assert model.weight.shape == (*features, *targets)
    assert model.bias.shape == targets


@pytest.mark.parametrize("condition", [10, 100, 300])
def test_fit_of_ill_conditioned_features(condition):
    x = with_condition(condition)
    y = x @ torch.arange(1.0, 6.0).double() + 0.01 * torch.randn(60).double()
    model = assert_fits_like_scikit_learn(x, y, tolerance=1e-8)
    assert model.iterations < 40 * condition


def test_fit_without_one_solution_takes_the_smallest_weights():
    x, y, _, _ = drawn((3,), (2,), samples=40)
    dependent = x.sum(1, keepdim=True)
    groups = F.one_hot(torch.arange(40) % 4).double()  # each row sums to 1, as the bias does
    wide, wide_targets, _, _ = drawn((30,), (2,), samples=8)
    for features in (torch.cat([x, x], 1), torch.cat([x, dependent], 1), torch.cat([x, groups], 1)):
        assert_fits_like_scikit_learn(features, y, tolerance=1e-12)
    model = assert_fits_like_scikit_learn(wide, wide_targets, tolerance=1e-12)
    torch.testing.assert_close(model.predict(wide), wide_targets, rtol=0, atol=1e-12)


def test_what_is_constant_weighs_nothing():
    x, y, _, _ = drawn((3,), (2,), samples=40)
    y[:, 1] = 0.1
    model = assert_fits_like_scikit_learn(x, y)
    assert model.weight[:, 1].tolist() == [0, 0, 0] and model.bias[1] == 0.1
    x, y, _, _ = drawn((3,), (), samples=40)
    constants = torch.tensor([0.1, 1e9, 0.0]).double().expand(40, 3)
    model = assert_fits_like_scikit_learn(torch.cat([x, constants], 1), y)
    assert model.weight[3:].tolist() == [0, 0, 0]
    alone = LinearRegression().fit(constants, y)
    assert alone.weight.tolist() == [0, 0, 0]
    assert alone.bias.item() == pytest.approx(y.mean().item(), rel=1e-14)
    assert (alone.iterations, alone.converged) == (0, True)
    one_sample = LinearRegression().fit(x[:1], y[:1])
    assert (one_sample.weight.tolist(), one_sample.bias) == ([0, 0, 0], y[0])


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_offsets_and_scales_cost_nothing(scale):
    x, y, _, _ = drawn((3,), (2,), samples=40)
    plain, sizes = LinearRegression().fit(x, y), torch.tensor([1.0, 1e-9]).double()
    moved = LinearRegression().fit(x + 2.0**30, y - 2.0**20)
    assert abs(moved.iterations - plain.iterations) <= 2
    torch.testing.assert_close(moved.weight, plain.weight, rtol=0, atol=1e-6)  # x + 2³⁰ is rounded to 2e-7
    both = LinearRegression().fit(x * scale, y * scale * sizes)
    torch.testing.assert_close(both.weight, plain.weight * sizes, rtol=1e-11, atol=0)
    assert abs(both.iterations - plain.iterations) <= 2


def test_each_target_converges_as_if_alone():
    x = with_condition(100)
    weights = torch.linalg.svd(x - x.mean(0)).Vh[[0, -1]].mT  # found at once, and found last
    y = x @ weights * torch.tensor([1.0, 1e-30]).double()
    model, alone = LinearRegression().fit(x, y), LinearRegression().fit(x, y[:, 1])
    assert model.iterations <= 1.5 * alone.iterations
    torch.testing.assert_close(model.weight[:, 1], alone.weight, rtol=0, atol=1e-40)


def test_fit_starts_anew_and_leaves_no_graph():
    x, y, _, _ = drawn((3,), (2,), samples=40)
    model = LinearRegression().fit(x.requires_grad_(), y)
    first = model.weight
    assert not first.requires_grad
    assert torch.equal(model.fit(x[:, :1], y[:, 0]).fit(x, y).weight, first)
    assert torch.equal(model.fit(x + y.sum(1, keepdim=True), -y).fit(x, y).weight, first)
    model.predict(x).sum().backward()
    torch.testing.assert_close(x.grad, first.sum(1).expand(40, 3))
    assert torch.equal(torch.nn.Sequential(model)(x), model.predict(x))


def test_end_without_convergence_is_reported():
    x, y = with_condition(100), torch.randn(60).double()
    model = LinearRegression(tolerance=1e-20, max_iterations=7)
    message = "the gradient is .*e-1. of its scale after max_iterations = 7, more than tolerance = 1e-20"
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        model.fit(x, y)
    assert caught[0].filename == __file__
    assert (model.iterations, model.converged) == (7, False)
    loose = LinearRegression(tolerance=1e-3).fit(x, y)
    assert loose.converged and 0 < loose.iterations < 7
    torch.testing.assert_close(loose.weight, model.weight, rtol=1e-9, atol=0)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("scales", [(1, 1e6), (1e6, 1), (1e-150, 1e150), (1, 1e20)])
def test_scales_of_features_cost_neither_time_nor_digits(scales, weighted, fit_intercept):
    x, y, _, _ = drawn((2,), (), samples=40)
    x = (x + torch.tensor([0.3, -2.0]).double()) * torch.tensor(scales, dtype=torch.float64)
    sample_weight = torch.rand(40).double() if weighted else None
    model = LinearRegression(fit_intercept=fit_intercept).fit(x, y, sample_weight)
    assert model.converged and model.iterations <= 2
    weight, bias = exactly(x, y, sample_weight, fit_intercept)
    assert model.weight.tolist() == pytest.approx(weight, rel=1e-13, abs=0)
    assert model.bias.item() == pytest.approx(bias, rel=1e-13, abs=0)


@pytest.mark.parametrize("condition", [1e5, 1e8, 1e11])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_nearly_dependent_features_are_solved_and_reported(condition, noise):
    x = with_condition(condition)
    y = x @ torch.arange(1.0, 6.0).double() + noise * torch.randn(60).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LinearRegression().fit(x, y)
    assert model.converged and model.iterations <= 4
    weight, _ = exactly(x, y)
    assert model.weight.tolist() == pytest.approx(weight, rel=1e-16 * condition * (1e3 if noise == 0 else 1e5))
    assert (condition, len(caught)) in ((1e5, 0), (1e8, 1), (1e11, 1))
    for warning in caught:
        assert warning.category is ConvergenceWarning and warning.filename == __file__
        assert "nearly dependent, their condition number is " in str(warning.message)


def test_a_large_residual_is_reported_where_it_costs_digits():
    """It stands at right angles to all features; rounding of the features turns some of it into weights."""
    x = with_condition(3e4)
    u = torch.linalg.svd(torch.cat([x, torch.ones(60, 1).double()], 1))[0][:, 6]
    y = x @ torch.linalg.svd(x - x.mean(0)).Vh[0]
    LinearRegression().fit(x, y + 1e-3 * u)
    with pytest.warns(ConvergenceWarning, match="nearly dependent"):
        LinearRegression().fit(x, y + 1e3 * u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_that_are_dependent_but_for_rounding_get_the_smallest_weights(dtype):
    x, y, _, _ = drawn((3,), (2,), dtype, samples=60)
    x = torch.cat([x, x.sum(1, keepdim=True)], 1)
    x[:, 2] = x[:, 2] + 0  # the sum is rounded
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LinearRegression().fit(x, y)
    assert len(caught) == (dtype == torch.float32)  # in float64 such a sum is as dependent as any
    matrix = x.double() - x.double().mean(0)
    expected = torch.linalg.pinv(matrix, rtol=1e-5) @ (y.double() - y.double().mean(0))
    torch.testing.assert_close(model.weight.double(), expected, rtol=0, atol=1e-6)


def test_the_smallest_weights_are_those_in_the_units_of_the_user():
    x, y, _, _ = drawn((3,), (), samples=40)
    scaled = torch.cat([x, 1000 * x[:, :1], x[:, 1:2] - 5, torch.ones(40, 1).double()], 1)
    model = assert_fits_like_scikit_learn(scaled, y, tolerance=1e-12)
    assert model.weight[3].item() == pytest.approx(1000 * model.weight[0].item(), abs=1e-10)
    model = LinearRegression(fit_intercept=False).fit(scaled, y)
    expected = torch.linalg.pinv(scaled, rtol=1e-12) @ y
    torch.testing.assert_close(model.weight, expected, rtol=0, atol=1e-12)
    assert model.bias == 0


def test_the_smallest_weights_of_features_of_all_scales():
    """Two samples, against w = Xᵀ·(X·Xᵀ)⁻¹·y in fractions."""
    torch.manual_seed(0)
    x = torch.randn(2, 8).double() * torch.logspace(-6, 6, 8).double()[torch.randperm(8)]
    y = x @ torch.randn(8).double() + 7
    weight = LinearRegression(fit_intercept=False).fit(x, y).weight
    first, second = ([Fraction(value) for value in row] for row in x.tolist())
    p, q, r = (sum(map(operator.mul, *rows)) for rows in ((first, first), (first, second), (second, second)))
    u, v = map(Fraction, y.tolist())
    on = (r * u - q * v) / (p * r - q * q), (p * v - q * u) / (p * r - q * q)
    expected = [float(on[0] * a + on[1] * b) for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(weight, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(x @ weight, y, rtol=1e-14, atol=0)


def test_what_varies_by_rounding_alone_is_constant():
    x, y, _, _ = drawn((2,), (), samples=40)
    jitter = 0.3 + 2.0**-54 * (torch.arange(40) % 2).double()
    assert len(set(jitter.tolist())) == 2
    model = LinearRegression().fit(torch.cat([x, jitter[:, None]], 1), y)
    plain = LinearRegression().fit(x, y)
    assert torch.equal(model.weight[:2], plain.weight) and model.weight[2] == 0 and torch.equal(model.bias, plain.bias)


@pytest.mark.parametrize(("features", "targets"), SHAPES)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_options_equal_scikit_learn(features, targets, fit_intercept, weighted):
    x, y, _, _ = drawn(features, targets, samples=40)
    sample_weight = torch.rand(40).double() * 1e3 if weighted else None
    ours = LinearRegression(fit_intercept=fit_intercept).fit(x, y, sample_weight)
    matrix, importance = x.reshape(40, -1).numpy(), None if sample_weight is None else sample_weight.numpy()
    theirs = linear_model.LinearRegression(fit_intercept=fit_intercept).fit(matrix, y.numpy(), importance)
    assert ours.weight.flatten().tolist() == pytest.approx(theirs.coef_.T.flatten(), rel=1e-12)
    assert ours.bias.shape == targets
    assert ours.bias.tolist() == pytest.approx(theirs.intercept_ if fit_intercept else torch.zeros(targets).tolist())
    for model in (ours, LinearRegression().fit(x + 1, y * 2)):  # the second is a poor one
        model.weight, model.bias = model.weight.clone(), model.bias.clone()
        theirs.coef_, theirs.intercept_ = model.weight.reshape(len(matrix[0]), -1).T.numpy(), model.bias.numpy()
        if not targets:
            theirs.coef_ = theirs.coef_[0]
        for each in (None, importance):
            expected = theirs.score(matrix, y.numpy(), each)
            score = model.score(x, y, None if each is None else sample_weight)
            assert isinstance(score, float) and score == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
def test_whole_sample_weights_are_copies(scale):
    x, y, _, _ = drawn((3,), (2,), samples=12)
    counts = torch.tensor([0, 3, 1, 2] * 3)
    x[0], y[0] = 1e9, -1e9  # which does not count
    repeated = x.repeat_interleave(counts, 0), y.repeat_interleave(counts, 0)
    model, expected = LinearRegression().fit(x, y, counts.double() * scale), LinearRegression().fit(*repeated)
    torch.testing.assert_close(model.weight, expected.weight, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(model.bias, expected.bias, rtol=1e-13, atol=1e-14)
    assert model.score(x, y, counts.double() * scale) == pytest.approx(expected.score(*repeated), rel=1e-13)


def test_scores_by_hand():
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 6.0])
    model = LinearRegression().fit(x, x)
    assert model.score(x, y) == pytest.approx(1 - 9 / 14)  # residuals 0, 0, 3; deviations −2, −1, 3
    assert model.score(x, y, torch.tensor([1.0, 1.0, 0.0])) == 1
    constant = torch.stack([torch.full((3,), 4.0), x], 1)
    both = LinearRegression().fit(x, constant)
    assert both.score(x, constant) == pytest.approx(1)
    assert both.score(x, constant + torch.tensor([1.0, 0.0])) == pytest.approx(0.5)
    assert LinearRegression().fit(x.half(), y.half()).score(x.half(), y.half() * 0 + 5) == 0


@pytest.mark.parametrize(("features", "targets"), SHAPES)
def test_save_and_load(tmp_path, features, targets):
    x, y, _, _ = drawn(features, targets)
    model = LinearRegression().fit(x, y)
    torch.save(torch.nn.Sequential(model).state_dict(), tmp_path / "model.pt")
    other = LinearRegression().fit(torch.rand(3), torch.rand(3))
    for loaded in (LinearRegression(), other):
        torch.nn.Sequential(loaded).load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        assert torch.equal(loaded.predict(x), model.predict(x))
    assert LinearRegression().state_dict() == {}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


# Bad input


def test_nothing_is_broadcast():
    x, y, weight, bias = drawn((3,), ())
    column = y[:, None]
    cases = [
        (x, column, weight, bias, r"weight must have the shape \[3, 1\] \(the features of x, then the targets"),
        (x, column, weight[:, None], bias, r"bias must have the shape \[1\] \(the targets of y\), got \[\]"),
        (x, y, weight[:, None], bias, r"weight must have the shape \[3\] .*, got \[3, 1\]"),
        (x, y, weight, bias[None], r"bias must have the shape \[\] .*, got \[1\]"),
        (x[:, 0], y, weight[:1], bias, r"weight must have the shape \[\] .*, got \[1\]"),
        (x[:, :1], y, weight[0], bias, r"weight must have the shape \[1\] .*, got \[\]"),
        (x, column, weight.expand(7, 3).mT, bias, r"weight must have the shape \[3, 1\] .*, got \[3, 7\]"),
    ]
    for *arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            mse_gradients(*arguments)


@pytest.mark.parametrize("function", [mse_gradients, lambda x, y, *_: LinearRegression().fit(x, y)])
def test_bad_data(function):
    x, y, weight, bias = drawn((3,), (2,))
    half = "must have one of the dtypes float64, float32, float16, bfloat16, got int64"
    cases = [
        ({"x": x.tolist()}, TypeError, "x must be a torch.Tensor, got list"),
        ({"y": y.numpy()}, TypeError, "y must be a torch.Tensor, got ndarray"),
        ({"x": x.long()}, TypeError, f"x {half}"),
        ({"y": y.long()}, TypeError, f"y {half}"),
        ({"y": y.float()}, TypeError, "y must have the dtype of x, torch.float64, got torch.float32"),
        ({"y": y.to("meta")}, ValueError, "y must be on the device of x, cpu, got meta"),
        ({"x": x[0, 0]}, ValueError, r"x must have the shape \[samples\] or \[samples, features\].*, got \[\]"),
        ({"x": x[None]}, ValueError, r"x must have the shape \[samples\] or .*, got \[1, 7, 3\]"),
        ({"x": x[:0], "y": y[:0]}, ValueError, r"x must .* and hold values, got \[0, 3\]"),
        ({"x": x[:, :0]}, ValueError, r"x must .* and hold values, got \[7, 0\]"),
        ({"y": y[:1]}, ValueError, r"y must have 7 entries on axis 0 \(the samples of x\), got \[1, 2\]"),
        ({"x": x[:1]}, ValueError, r"y must have 1 entries on axis 0 \(the samples of x\), got \[7, 2\]"),
        ({"y": y[..., None]}, ValueError, r"y must have the shape \[samples\] or"),
        ({"y": y[:, :0]}, ValueError, r"y must .* \[samples, targets\] and hold values, got \[7, 0\]"),
    ]
    for value in (float("nan"), float("inf"), -float("inf")):
        for name, tensor in (("x", x), ("y", y)):
            spoiled = tensor.clone()
            spoiled[2, 1] = value
            message = f"{name} must be finite, got 1 NaN or infinite values of {tensor.numel()}"
            cases.append(({name: spoiled}, ValueError, message))
    for changed, error, message in cases:
        with pytest.raises(error, match=message):
            function(*({"x": x, "y": y} | changed).values(), weight, bias)


@pytest.mark.parametrize("method", [LinearRegression.fit, LinearRegression.score])
def test_bad_sample_weights(method):
    x, y, _, _ = drawn((3,), (2,))
    model, ones = LinearRegression().fit(x, y), torch.ones(7).double()
    cases = [
        (ones.tolist(), TypeError, "sample_weight must be a torch.Tensor, got list"),
        (ones.long(), TypeError, "sample_weight must have one of the dtypes"),
        (ones.float(), TypeError, "sample_weight must have the dtype of x"),
        (ones[:6], ValueError, r"sample_weight must have 7 entries on axis 0 \(the samples of x\), got \[6\]"),
        (ones[:, None], ValueError, r"sample_weight must have the shape \[samples\], got \[7, 1\]"),
        (ones[:0], ValueError, "sample_weight must have 7 entries"),
        (ones * 0, ValueError, "sample_weight must be above 0 for at least one sample, got zeros"),
        (-ones, ValueError, r"sample_weight must be finite and at least 0, got -1 at \[0\] \(7 of 7"),
        (ones / 0, ValueError, "sample_weight must be finite and at least 0, got inf"),
        (ones.to("meta"), ValueError, "sample_weight must be on the device of x, cpu, got meta"),
    ]
    for sample_weight, error, message in cases:
        with pytest.raises(error, match=message):
            method(model, x, y, sample_weight)


def test_bad_parameters():
    x, y, weight, bias = drawn((3,), (2,))
    cases = [
        (lambda: mse_gradients(x, y, weight.long(), bias), TypeError, "weight must have one of the dtypes"),
        (lambda: mse_gradients(x, y, weight, 0.0), TypeError, "bias must be a torch.Tensor, got float"),
        (lambda: mse_gradients(x, y, weight.half(), bias), TypeError, "weight must have the dtype of x"),
        (lambda: mse_gradients(x, y, weight, bias.to("meta")), ValueError, "bias must be on the device of x"),
        (lambda: mse_gradients(x, y, weight / 0, bias), ValueError, "weight must be finite, got 6 NaN or infinite"),
        (lambda: mse_gradients(x, y, weight, bias / 0), ValueError, "bias must be finite, got 2 NaN or infinite"),
        (lambda: LinearRegression(tolerance=0), ValueError, "tolerance must be finite and > 0, got 0"),
        (lambda: LinearRegression(tolerance="1"), TypeError, "tolerance must be a number"),
        (lambda: LinearRegression(max_iterations=0), ValueError, "max_iterations must be finite and ≥ 1, got 0"),
        (lambda: LinearRegression(max_iterations=1.5), TypeError, "max_iterations must be an int"),
        (lambda: LinearRegression(fit_intercept=1), ValueError, r"fit_intercept must be one of \(True, False\), got 1"),
        (lambda: LinearRegression().score(x, y), RuntimeError, r"no weight before fit\(x, y\)"),
        (lambda: LinearRegression().fit(x, y).score(x, y[:, 0]), ValueError, r"y must have the shape \[7, 2\] of the"),
        (lambda: LinearRegression().fit(x, y).score(x, y / 0), ValueError, "y must be finite, got 14 NaN or infinite"),
        (lambda: LinearRegression().fit(x, y).score(x[:1], y[:1]), ValueError, "at least two samples .*, got 1"),
        (lambda: LinearRegression().predict(x), RuntimeError, r"no weight before fit\(x, y\)"),
        (lambda: LinearRegression().fit(x, y).predict(x.float()), TypeError, "x must have the dtype of weight"),
        (lambda: LinearRegression().fit(x, y).predict(x[0]), ValueError, r"shape \[samples, 3\], as in fit, got \[3\]"),
        (lambda: LinearRegression().fit(x[:, 0], y).predict(x), ValueError, r"shape \[samples\], as in fit"),
        (lambda: LinearRegression().fit(x[:, 0], y).predict(x[0, 0]), ValueError, r"shape \[samples\], .* got \[\]"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


def test_a_loss_too_large_for_its_dtype_is_no_bad_input():
    x, y, weight, bias = drawn((3,), ())
    result = mse_gradients(x, y * 1e200, weight, bias)
    assert result.loss.isinf()
    assert result.grad_weight.isfinite().all()
