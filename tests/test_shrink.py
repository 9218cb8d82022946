import math
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import Tensor

from srm_triton import use_backend
from srm_triton.kernels import launch, native
from srm_triton.kernels import shrink as kernel
from srm_triton.ops.shrink import _shrink, bregman_step, soft_threshold

BACKENDS = ("reference", "triton")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INF, NAN = math.inf, math.nan


# for the step; the soft threshold alone has no C version
STEP_BACKENDS = (*BACKENDS, "native") if native.problem() is None and not torch.cuda.is_available() else BACKENDS


def chosen(request):
    with use_backend(request.param):
        yield request.param


backend = pytest.fixture(chosen, params=BACKENDS, name="backend")
step_backend = pytest.fixture(chosen, params=STEP_BACKENDS, name="step_backend")


# Soft threshold


def definition(values: Tensor, threshold: float) -> Tensor:
    v = values.double()
    return v.sign() * (v.abs() - threshold).clamp(min=0)


@pytest.mark.parametrize(("shape", "dtype"), list(zip([(), (1,), (3, 7), (2, 3, 700), (5, 0)], cycle(DTYPES))))
def test_equals_the_definition(backend, shape, dtype, device):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    result = soft_threshold(values, 0.5)
    assert result.dtype == dtype and result.shape == values.shape
    threshold = 0.5  # exact in every dtype: one rounding, of the result
    torch.testing.assert_close(result, definition(values, threshold).to(dtype), rtol=0, atol=0)
    assert result.numel() < 10 or 0 < (result == 0).sum() < result.numel()


def test_threshold_in_full_precision(backend, device):
    """float64 takes it in float64, half precision in float32."""
    values = torch.tensor([2.0, -3.0], dtype=torch.float64, device=device)
    assert soft_threshold(values, 0.1).tolist() == [2 - 0.1, -3 + 0.1]
    half = torch.tensor([1.0], dtype=torch.bfloat16, device=device)
    assert soft_threshold(half, 1 - 2**-10).item() == 2**-10


def test_special_values(backend, device):
    values = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 1e-45], device=device)
    expected = torch.tensor([NAN, INF, -INF, 0.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(soft_threshold(values, 1.0).cpu(), expected, rtol=0, atol=0, equal_nan=True)
    unchanged = soft_threshold(values, 0.0).cpu()
    torch.testing.assert_close(unchanged, values.cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", ["transposed", "every other", "expanded", "channels last", "overlapping"])
def test_layouts(backend, layout, device):
    values = torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(1)).to(device)
    values = {
        "transposed": values.transpose(0, 2),
        "every other": values[:, ::2, :, 1:],
        "expanded": values[:1].expand(4, 6, 3, 5),
        "channels last": values.to(memory_format=torch.channels_last),
        "overlapping": values.flatten().as_strided((5, 8), (1, 2)),
    }[layout]
    assert torch.equal(soft_threshold(values, 0.5), soft_threshold(values.contiguous(), 0.5))
    torch.testing.assert_close(soft_threshold(values, 0.5), definition(values, 0.5).float(), rtol=0, atol=0)


def test_derivatives(backend, device):
    values = torch.tensor([-2.0, -0.4, 0.0, 0.3, 1.0, 5.0], dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: soft_threshold(v, 0.5), values)
    assert torch.autograd.gradgradcheck(lambda v: soft_threshold(v * v, 0.5), values)
    (grad,) = torch.autograd.grad(soft_threshold(values, 1.0).sum(), values)  # 0 at the threshold itself
    assert grad.tolist() == [1, 0, 0, 0, 0, 1]


def test_opcheck(backend, device):
    for values in (torch.randn(3, 4, device=device), torch.randn(3, 4, device=device).t()):
        torch.library.opcheck(_shrink, (values, 0.5, backend))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_and_transforms(backend, device):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(device)
    compiled = torch.compile(soft_threshold, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(values, 0.5), soft_threshold(values, 0.5))
    mapped = torch.func.vmap(lambda v: soft_threshold(v, 0.5), in_dims=1, out_dims=1)(values)
    assert torch.equal(mapped, soft_threshold(values, 0.5))
    gradients = torch.func.vmap(torch.func.grad(lambda v: soft_threshold(v, 0.5).sum()))(values)
    assert torch.equal(gradients, (values.abs() > 0.5).float())


@pytest.mark.parametrize(
    ("values", "threshold", "error", "message"),
    [
        ([1.0], 0.5, TypeError, "values must be a torch.Tensor, got list"),
        (torch.ones(2, dtype=torch.int32), 0.5, TypeError, "values must have one of the dtypes float64, .* got int32"),
        (torch.ones(2), -0.5, ValueError, "threshold must be finite and ≥ 0, got -0.5"),
        (torch.ones(2), NAN, ValueError, "threshold must be finite and ≥ 0, got nan"),
        (torch.ones(2), torch.ones(2), TypeError, "threshold must be a number, got tensor"),
    ],
)
def test_bad_input(values, threshold, error, message):
    with pytest.raises(error, match=message):
        soft_threshold(values, threshold)


# The step of split Bregman


SHAPES = [(1, 1, 1, 1), (1, 1, 1, 5), (2, 1, 4, 1), (2, 3, 5, 7), (1, 2, 2, 2), (3, 1, 2, 300), (1, 1, 40, 33)]


def step_by_step(u, f, d, b, penalty, weight, relaxation):
    """The step as textbooks write it, with splits d and Bregman variables b in units of their own, in NumPy."""
    p = penalty[:, None, None, None]
    values = [np.roll(u, -1, 3) - u, np.roll(u, -1, 2) - u, u - f][: d.shape[1]]
    new_d, new_b = np.empty_like(d), np.empty_like(b)
    for kind, value in enumerate(values):
        relaxed = relaxation * value + (1 - relaxation) * d[:, kind]
        magnitude = np.abs(relaxed + b[:, kind])
        new_d[:, kind] = np.sign(relaxed + b[:, kind]) * np.maximum(magnitude - 1 / p, 0)
        new_b[:, kind] = b[:, kind] + relaxed - new_d[:, kind]
    x, y = p * (new_d - new_b)[:, 0], p * (new_d - new_b)[:, 1]
    target = weight * (np.roll(x, 1, 3) - x + np.roll(y, 1, 2) - y)
    if d.shape[1] == 3:
        return new_d, new_b, target + p * f + p * (new_d - new_b)[:, 2]
    return new_d, new_b, target + 2 * f


@pytest.mark.parametrize(("shape", "kinds", "relaxation"), list(zip(SHAPES, cycle((2, 3)), cycle((1.0, 1.7, 0.0)))))
def test_step_equals_the_textbook(step_backend, kinds, shape, relaxation, device):
    generator = np.random.default_rng(shape[-1])
    samples, channels, height, width = shape
    u, f = generator.normal(size=(2, *shape))
    penalty = generator.uniform(0.5, 2, samples)
    p = penalty[:, None, None, None, None]
    v = 2 * generator.normal(size=(samples, kinds, channels, height, width))
    b = np.clip(v, -1, 1) / p
    d = v / p - b
    new_d, new_b, expected = step_by_step(u, f, d, b, penalty, 0.3, relaxation)

    estimate, image, splits, penalty = (torch.from_numpy(array).to(device) for array in (u, f, v.copy(), penalty))
    work, target = torch.full_like(splits, NAN), torch.full_like(image, NAN)
    new, other, measure = bregman_step(estimate, image, splits, penalty, work, target, 0.3, relaxation)
    assert {new.data_ptr(), other.data_ptr()} == {splits.data_ptr(), work.data_ptr()}
    assert new.data_ptr() == splits.data_ptr() or step_backend != "native"  # in place
    tolerance = {"rtol": 0, "atol": 1e-13 * max(1, np.abs(v).max())}
    np.testing.assert_allclose(new.cpu().numpy(), p * (new_d + new_b), **tolerance)
    np.testing.assert_allclose(target.cpu().numpy(), expected, **tolerance)
    assert np.array_equal(estimate.cpu().numpy(), u) and np.array_equal(image.cpu().numpy(), f)
    if relaxation > 0:
        values = [np.roll(u, -1, 3) - u, np.roll(u, -1, 2) - u, u - f][:kinds]
        parts = (p * (new_d - np.stack(values, 1)), p * (new_d - d), p * new_d, p * new_b)
        for size, part in zip(measure(), parts, strict=True):
            expected = np.sqrt((part**2).reshape(samples, -1).sum(1))
            np.testing.assert_allclose(size.cpu().numpy(), expected, rtol=1e-13, atol=1e-13)


def test_step_in_float32(step_backend, device):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(2, 1, 6, 9)] * 2]
    splits, penalty = torch.randn(2, 3, 1, 6, 9, generator=generator, dtype=torch.float64), torch.rand(2).double() + 1
    results = []
    for dtype in (torch.float64, torch.float32):
        arguments = [tensor.to(device, dtype, copy=True) for tensor in (*tensors, splits, penalty)]
        work, target = torch.empty_like(arguments[2]), torch.empty_like(arguments[0])
        new, _, measure = bregman_step(*arguments, work, target, 0.3, 1.8)
        assert new.dtype == target.dtype == dtype
        results.append([part.cpu().double() for part in (new, target, *measure())])
    for exact, rounded in zip(*results, strict=True):
        torch.testing.assert_close(rounded, exact, rtol=1e-6, atol=3e-6)


@pytest.mark.skipif("native" not in STEP_BACKENDS, reason="the C library is missing or serves no GPU")
@pytest.mark.parametrize("shape", [(1, 1, 257, 131), (2, 3, 5, 2000), (1, 1, 1, 40000), (1, 1, 40000, 1)])
def test_every_number_of_threads_gives_the_same(shape, number_of_threads):
    """However images are cut into bands, whose first rows need splits that another thread advances."""
    kinds = 2 if shape[1] == 3 else 3
    generator = torch.Generator().manual_seed(0)
    estimate, image = torch.randn(2, *shape, generator=generator)
    splits, penalty = torch.randn(shape[0], kinds, *shape[1:], generator=generator), torch.rand(shape[0]) + 0.5
    assert image.numel() >= native._PARALLEL_FROM
    results = []
    for backend, threads in (("reference", 1), *(("native", threads) for threads in (1, 2, 3, 7))):
        number_of_threads(threads)
        with use_backend(backend):
            target = torch.empty_like(image)
            arguments = (estimate, image, splits.clone(), penalty, torch.empty_like(splits), target, 0.3, 1.5)
            new, _, measure = bregman_step(*arguments)
            results.append((new, target, *measure()))
    for expected, result in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert all(all(map(torch.equal, result, results[1])) for result in results[2:])


def test_images_that_are_too_wide_for_a_grid():
    wide = torch.empty(1, 1, 1, kernel.MOST_COLUMNS * launch.MAX_GRID_Y + 1, device="meta")
    with pytest.raises(ValueError, match="image must be at most 16776960 wide, got 16776961"):
        kernel.bregman_step(wide, wide, wide[None], torch.empty(1), wide[None], wide, 1.0, 1.0)
