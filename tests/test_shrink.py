import math
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import Tensor

from srm_triton import use_backend
from srm_triton.kernels import launch, native
from srm_triton.kernels import shrink as kernel
from srm_triton.ops.shrink import Splitting, _shrink, bregman_step, soft_threshold

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


def forward_differences(u, edges):
    """Along x, along y and, in volumes, along z."""
    for axis in range(-1, 1 - u.ndim, -1):
        difference = np.roll(u, -1, axis) - u
        if edges == "mirrored":
            np.moveaxis(difference, axis, -1)[..., -1] = 0
        yield difference


def shrunk(values, kind, penalty, coupled, fidelity, known):
    """The minimum over d of its norm + penalty/2·(d − values)², for splits of a kind."""
    if kind == "residual" and fidelity == "l2":
        result = values * penalty / (penalty + 2)
    elif kind == "residual" or not coupled:
        result = np.sign(values) * np.maximum(np.abs(values) - 1 / penalty, 0)
    else:
        size = np.sqrt((values**2).sum(coupled, keepdims=True))
        result = values * np.maximum(size - 1 / penalty, 0) / np.where(size > 0, size, 1)
    return np.where(known, result, values) if kind == "residual" else result


def step_by_step(u, f, d, b, penalty, weight, relaxation, splitting):
    """The step as textbooks write it, with splits d and Bregman variables b in units of their own, in NumPy."""
    directions, ones = u.ndim - 2, [1] * (u.ndim - 1)
    p, known = penalty.reshape(-1, 1, *ones), True if splitting.known is None else splitting.known.numpy()[:, None]
    values = np.stack([*forward_differences(u, splitting.edges), u - f][: d.shape[1]], 1)
    relaxed = relaxation * values + (1 - relaxation) * d
    parts = [("difference", slice(0, directions)), ("residual", slice(directions, None))]
    new_d = np.concatenate(
        [shrunk((relaxed + b)[:, part], kind, p, splitting.coupled, splitting.fidelity, known) for kind, part in parts],
        axis=1,
    )
    new_b = b + relaxed - new_d
    wanted = p * (new_d - new_b)
    target = weight.reshape(-1, *ones) * sum(
        np.roll(wanted[:, kind], 1, -1 - kind) - wanted[:, kind] for kind in range(directions)
    )
    if d.shape[1] > directions:
        return new_d, new_b, values, target + p[:, 0] * f + wanted[:, -1]
    return new_d, new_b, values, target + 2 * f


def case(shape, kinds, splitting):
    """Arguments of a step, in float64: estimate, image, splits, penalty, weight."""
    generator = torch.Generator().manual_seed(shape[-1])
    estimate, image = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    penalty, weight = torch.rand(2, shape[0], generator=generator, dtype=torch.float64) + 0.3
    splits = 2 * torch.randn(shape[0], kinds, *shape[1:], generator=generator, dtype=torch.float64)
    if splitting.edges == "mirrored":
        for kind in range(len(shape) - 2):
            splits[:, kind].select(-1 - kind, -1).zero_()
    return estimate, image, splits, penalty, weight


def check_step(arguments, relaxation, splitting, device, *, in_place=None):
    u, f, v, penalty, weight = (tensor.numpy() for tensor in arguments)
    samples, p = len(u), penalty.reshape(-1, *[1] * u.ndim)
    known = True if splitting.known is None else splitting.known.numpy()[:, None]
    directions = u.ndim - 2
    d = np.concatenate(
        [
            shrunk(v[:, part] / p, kind, p, splitting.coupled, splitting.fidelity, known)
            for kind, part in (("difference", slice(0, directions)), ("residual", slice(directions, None)))
        ],
        axis=1,
    )
    new_d, new_b, values, expected = step_by_step(u, f, d, v / p - d, penalty, weight, relaxation, splitting)
    estimate, image, splits, penalty, weight = (tensor.to(device, copy=True) for tensor in arguments)
    work, target = torch.full_like(splits, NAN), torch.full_like(image, NAN)
    new, other, measure = bregman_step(
        estimate, image, splits, penalty, weight, work, target, relaxation, splitting
    )  # fmt: skip
    assert {new.data_ptr(), other.data_ptr()} == {splits.data_ptr(), work.data_ptr()}
    assert new.data_ptr() == splits.data_ptr() or not in_place
    tolerance = {"rtol": 0, "atol": 1e-13 * max(1, np.abs(v).max())}
    np.testing.assert_allclose(new.cpu().numpy(), p * (new_d + new_b), **tolerance)
    np.testing.assert_allclose(target.cpu().numpy(), expected, **tolerance)
    assert np.array_equal(estimate.cpu().numpy(), u) and np.array_equal(image.cpu().numpy(), f)
    if relaxation > 0:
        parts = (p * (new_d - values), p * (new_d - d), p * new_d, p * new_b)
        for size, part in zip(measure(), parts, strict=True):
            expected = np.sqrt((part**2).reshape(samples, -1).sum(1))
            np.testing.assert_allclose(size.cpu().numpy(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("edges", ["mirrored", "periodic"])
@pytest.mark.parametrize(("shape", "kinds", "relaxation"), list(zip(SHAPES, cycle((2, 3)), cycle((1.0, 1.7, 0.0)))))
def test_step_equals_the_textbook(step_backend, kinds, shape, relaxation, edges, device):
    splitting = Splitting("l1" if kinds == 3 else "l2", edges)
    check_step(case(shape, kinds, splitting), relaxation, splitting, device, in_place=step_backend == "native")


@pytest.mark.parametrize("edges", ["mirrored", "periodic"])
@pytest.mark.parametrize(
    ("shape", "fidelity", "coupled", "masked"),
    [
        ((2, 3, 5, 7), "l2", (1,), False),
        ((2, 3, 5, 7), "l1", (2,), False),
        ((2, 3, 5, 7), "l2", (1, 2), True),
        ((2, 1, 5, 7), "l2", (), True),
        ((2, 2, 5, 7), "l1", (), True),
        ((2, 2, 3, 4, 5), "l2", (), False),
        ((1, 2, 3, 4, 5), "l1", (1, 2), True),
    ],
)
def test_variants_of_the_step_equal_the_textbook(shape, fidelity, coupled, masked, edges, device):
    known = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    splitting = Splitting(fidelity, edges, coupled, known)
    check_step(case(shape, len(shape) - 2 + (fidelity == "l1" or masked), splitting), 1.7, splitting, device)


def test_step_in_float32(step_backend, device):
    splitting = Splitting("l1", "mirrored")
    results = []
    for dtype in (torch.float64, torch.float32):
        arguments = [tensor.to(device, dtype, copy=True) for tensor in case((2, 1, 6, 9), 3, splitting)]
        work, target = torch.empty_like(arguments[2]), torch.empty_like(arguments[0])
        new, _, measure = bregman_step(*arguments, work, target, 1.8, splitting)
        assert new.dtype == target.dtype == dtype
        results.append([part.cpu().double() for part in (new, target, *measure())])
    for exact, rounded in zip(*results, strict=True):
        torch.testing.assert_close(rounded, exact, rtol=1e-6, atol=3e-6)


@pytest.mark.skipif("native" not in STEP_BACKENDS, reason="the C library is missing or serves no GPU")
@pytest.mark.parametrize("edges", ["mirrored", "periodic"])
@pytest.mark.parametrize("shape", [(1, 1, 257, 131), (2, 3, 5, 2000), (1, 1, 1, 40000), (1, 1, 40000, 1)])
def test_every_number_of_threads_gives_the_same(shape, edges, number_of_threads):
    """However images are cut into bands, whose first rows need splits that another thread advances."""
    kinds = 2 if shape[1] == 3 else 3
    splitting = Splitting("l1" if kinds == 3 else "l2", edges)
    arguments = [tensor.float() for tensor in case(shape, kinds, splitting)]
    assert arguments[0].numel() >= native._PARALLEL_FROM
    results = []
    for backend, threads in (("reference", 1), *(("native", threads) for threads in (1, 2, 3, 7))):
        number_of_threads(threads)
        with use_backend(backend):
            estimate, image, splits, penalty, weight = (tensor.clone() for tensor in arguments)
            target = torch.empty_like(image)
            new, _, measure = bregman_step(
                estimate, image, splits, penalty, weight, torch.empty_like(splits), target, 1.5, splitting
            )
            results.append((new, target, *measure()))
    for expected, result in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert all(all(map(torch.equal, result, results[1])) for result in results[2:])


def test_images_that_are_too_wide_for_a_grid():
    wide = torch.empty(1, 1, 1, kernel.MOST_COLUMNS * launch.MAX_GRID_Y + 1, device="meta")
    with pytest.raises(ValueError, match="image must be at most 16776960 wide, got 16776961"):
        kernel.bregman_step(wide, wide, wide[None], torch.empty(1), torch.empty(1), wide[None], wide, 1.0, True)
