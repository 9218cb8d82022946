import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.restoration import denoise_tv_bregman

from srm_triton import use_backend
from srm_triton.denoise import DenoisingState, _SplitBregman, denoise_tv, tv_objective
from srm_triton.kernels import native

NAN = math.nan
NATIVE = ["native"] if native.problem() is None and not torch.cuda.is_available() else []


def noisy_image(*shape, noise="gauss", seed=0, dtype=torch.float64):
    """A bright rectangle on a dark gradient, the same in every channel, with noise; and the image without it."""
    generator = torch.Generator().manual_seed(seed)
    height, width = shape[-2:]
    clean = torch.linspace(0.1, 0.4, width, dtype=torch.float64).expand(shape).clone()
    clean[..., height // 4 : height // 2, width // 3 : 2 * width // 3] = 0.9
    if noise == "gauss":
        noisy = clean + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    else:
        noisy = clean.clone()
        drawn = torch.rand(shape, generator=generator)
        noisy[drawn < 0.05], noisy[drawn > 0.95] = 0, 1
    return noisy.to(dtype), clean.to(dtype)


@pytest.fixture(params=["l2", "l1"])
def fidelity(request):
    return request.param


@pytest.fixture
def noise(fidelity):
    return "gauss" if fidelity == "l2" else "pepper"


def dual_bound(noisy, state, weight, fidelity):
    """A lower bound of the objective of every image, which feasible Bregman variables prove wherever they come from.

    min_u F(u − f) + λ‖∇u‖₁ ≥ ⟨f, ∇ᵀp⟩ − F*(∇ᵀp) for every |p| ≤ λ; F*(q) = ‖q‖²/4 for l2, and for l1 0 where |q| ≤ 1.
    """
    p = weight * state.splits[:, :2].clamp(-1, 1)
    divergence = p[:, 0].roll(1, -1) - p[:, 0] + p[:, 1].roll(1, -2) - p[:, 1]
    linear = (noisy * divergence).flatten(1).sum(1)
    if fidelity == "l2":
        return linear - divergence.square().flatten(1).sum(1) / 4
    return linear / divergence.abs().flatten(1).amax(1).clamp(min=1)


@pytest.mark.parametrize(("shape", "weight"), [((2, 1, 16, 13), 0.3), ((1, 3, 8, 8), 0.02), ((3, 1, 1, 20), 2.0)])
def test_no_image_has_a_smaller_objective(fidelity, noise, shape, weight):
    """Proved by duality, independently of how the image was found."""
    noisy, _ = noisy_image(*shape, noise=noise)
    result = denoise_tv(noisy, weight, fidelity, tolerance=1e-6, max_iterations=5000, trace=True)
    assert result.converged.all()
    objective = tv_objective(result.image, noisy, weight, fidelity)
    bound = dual_bound(noisy, result.state, weight, fidelity)
    assert (objective >= bound * (1 - 1e-12)).all()
    assert (objective - bound <= (1e-5 if fidelity == "l2" else 2e-3) * objective.clamp(min=1e-3)).all()
    torch.testing.assert_close(result.trace.objective[-1], objective, rtol=1e-12, atol=1e-15)


def seed_in_numpy(f, weight, fidelity, iterations):
    """The seed text's MATLAB for [height, width, channels]; returns the image, cost and error to f."""

    def spectrum(image):
        return np.fft.fft2(image, axes=(0, 1))

    def difference(image, axis, step=-1):  # forward; with step 1 its adjoint
        return np.roll(image, step, axis) - image

    def shrunk(values, threshold):
        size = np.abs(values).sum(2, keepdims=True)
        with np.errstate(invalid="ignore"):
            return np.where(size > 0, np.maximum(size - threshold, 0) * (values / size), 0)

    kernels = np.zeros((2, *f.shape[:2], 1))
    kernels[:, 0, 0] += 1
    kernels[0, 0, -1] -= 1
    kernels[1, -1, 0] -= 1
    denominator = sum(np.abs(spectrum(kernel)) ** 2 for kernel in kernels)
    diff_r_i, grad_x, grad_y, aux_r_i, aux_x, aux_y = np.zeros((6, *f.shape))
    alpha, beta = 500.0, 50.0
    costs, errors = [], []
    for _ in range(iterations):
        backward = difference(grad_x + aux_x / alpha, 1, 1) + difference(grad_y + aux_y / alpha, 0, 1)
        numerator = spectrum(diff_r_i + aux_r_i / beta) + spectrum(f) + alpha / beta * spectrum(backward)
        u = np.real(np.fft.ifft2(numerator / (1 + alpha / beta * denominator), axes=(0, 1)))
        u_x, u_y = difference(u, 1), difference(u, 0)
        grad_x, grad_y = shrunk(u_x - aux_x / alpha, weight / alpha), shrunk(u_y - aux_y / alpha, weight / alpha)
        diff_r_i = u - f - aux_r_i / beta
        diff_r_i = shrunk(diff_r_i, 1 / beta) if fidelity == "l1" else beta / (2 + beta) * diff_r_i
        aux_r_i = aux_r_i + beta * (diff_r_i - (u - f))
        aux_x, aux_y = aux_x + alpha * (grad_x - u_x), aux_y + alpha * (grad_y - u_y)
        distance = np.abs(u - f) if fidelity == "l1" else (u - f) ** 2
        costs.append(distance.sum() + weight * (np.abs(u_x) + np.abs(u_y)).sum())
        errors.append(np.sqrt(((u - f) ** 2).mean()))
    return u, costs, errors


@pytest.mark.parametrize("channels", [1, 3])
def test_the_seeds_iteration_step_for_step(fidelity, noise, channels):
    noisy, _ = noisy_image(channels, 12, 15, noise=noise)
    for iterations in (1, 2, 7, 60):
        expected, costs, errors = seed_in_numpy(noisy.permute(1, 2, 0).numpy(), 0.5, fidelity, iterations)
        result = denoise_tv(
            noisy, 0.5, fidelity, method="seed", tolerance=1, max_iterations=iterations, reference=noisy, trace=True
        )  # fmt: skip
        np.testing.assert_allclose(result.image.permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-13)
        np.testing.assert_allclose(result.trace.objective.numpy(), costs, rtol=1e-12)
        np.testing.assert_allclose(result.trace.error.numpy(), errors, rtol=1e-9, atol=1e-15)
        assert result.iterations == iterations and not result.converged and result.state is None
    together = denoise_tv(torch.stack([noisy / 2, noisy]), 0.5, fidelity, method="seed", max_iterations=iterations)
    torch.testing.assert_close(together[1], result.image, rtol=0, atol=1e-13)
    assert costs[0] > costs[-1]


def test_both_methods_go_to_the_same_image(fidelity, noise):
    noisy, _ = noisy_image(1, 12, 15, noise=noise)
    best = tv_objective(denoise_tv(noisy, 0.5, fidelity, tolerance=1e-7, max_iterations=3000), noisy, 0.5, fidelity)
    seed = denoise_tv(noisy, 0.5, fidelity, method="seed", max_iterations=1500, trace=True).trace.objective
    assert abs(seed[-1] - best) <= 1e-4 * best
    assert seed[20] > best * 1.01  # which is why the other method exists


def test_each_image_of_a_batch_is_treated_alone(fidelity):
    images = torch.stack([noisy_image(2, 10, 11, noise=noise)[0] for noise in ("gauss", "pepper", "gauss")])
    images[2] = 0.02 * images[2].round() + 0.5
    references = images.flip(0)
    batch, clean = images.reshape(3, 1, 2, 10, 11), references.reshape(3, 1, 2, 10, 11)
    together = denoise_tv(batch, 0.2, fidelity, tolerance=0.01, reference=clean, trace=True)
    assert together.image.shape == (3, 1, 2, 10, 11) and together.iterations.shape == (3, 1)
    assert len(together.iterations.unique()) > 1
    for i, image in enumerate(images):
        alone = denoise_tv(image, 0.2, fidelity, tolerance=0.01, reference=references[i], trace=True)
        torch.testing.assert_close(alone.image, together.image[i, 0], rtol=0, atol=1e-13)
        assert alone.iterations == together.iterations[i, 0] and alone.converged == together.converged[i, 0]
        own = together.trace.objective[: int(alone.iterations), i, 0]
        torch.testing.assert_close(alone.trace.objective, own, rtol=1e-10, atol=0)
        torch.testing.assert_close(alone.state.splits[0], together.state.splits[i], rtol=0, atol=1e-10)
        torch.testing.assert_close(alone.state.penalty[0], together.state.penalty[i], rtol=1e-10, atol=0)
        last = together.trace.error[int(alone.iterations) - 1, i, 0]
        torch.testing.assert_close(alone.trace.error[-1], last, rtol=1e-10, atol=0)
        assert (together.trace.objective[int(alone.iterations) :, i, 0] == own[-1]).all()


def test_channels_are_denoised_by_the_same_penalty_but_apart():
    noisy, _ = noisy_image(3, 10, 11)
    result = denoise_tv(noisy, 0.2, tolerance=1e-8, max_iterations=3000)
    for channel, image in enumerate(noisy):
        alone = denoise_tv(image, 0.2, tolerance=1e-8, max_iterations=3000)
        assert alone.shape == (10, 11)
        torch.testing.assert_close(alone, result[channel], rtol=0, atol=1e-6)


def test_tracing_changes_nothing():
    noisy, clean = noisy_image(1, 20, 20)
    traced = denoise_tv(noisy, 0.2, reference=clean, trace=True)
    assert torch.equal(traced.image, denoise_tv(noisy, 0.2))
    steps = int(traced.iterations)
    assert all(row.shape == (steps,) and row.isfinite().all() for row in traced.trace)
    error = (traced.image - clean).square().mean().sqrt()
    torch.testing.assert_close(traced.trace.error[-1], error)
    torch.testing.assert_close(traced.trace.psnr[-1], -20 * error.log10())
    assert error < 0.5 * (noisy - clean).square().mean().sqrt()
    assert max(traced.trace.primal_residual[-1], traced.trace.dual_residual[-1]) <= 0.01
    without = denoise_tv(noisy, 0.2, trace=True).trace
    assert without.error is None and without.psnr is None


def test_stops_at_the_tolerance_or_the_last_iteration():
    noisy, _ = noisy_image(1, 20, 20)
    counts = [int(denoise_tv(noisy, 0.2, tolerance=t, trace=True).iterations) for t in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert counts == sorted(counts) and counts[0] < counts[-1]
    seen = []
    short = denoise_tv(noisy, 0.2, max_iterations=7, trace=True, after_iteration=lambda: seen.append(None))
    assert short.iterations == 7 == len(seen) == len(short.trace.objective) and not short.converged
    assert not denoise_tv(noisy, 0.2, tolerance=0.0, max_iterations=300, trace=True).converged


def test_another_penalty_changes_neither_differences_nor_bregman_variables():
    start = DenoisingState(torch.zeros(2, 3, 1, 9, 12).double(), torch.tensor([0.5, 200.0]).double())
    solver = _SplitBregman(noisy_image(2, 1, 9, 12)[0], 0.3, "l1", start)
    for _ in range(5):
        solver.step(measured=True)
    before, after = solver.state.splits.clone(), solver.state.splits
    penalty = solver.state.penalty.clone()
    solver.adapt()
    factor = (solver.state.penalty / penalty)[:, None, None, None, None]
    assert (factor != 1).all() and factor[0] != factor[1]
    torch.testing.assert_close(after.clamp(-1, 1), before.clamp(-1, 1), rtol=0, atol=1e-14)
    shrunk = before - before.clamp(-1, 1)
    torch.testing.assert_close(after - after.clamp(-1, 1), factor * shrunk, rtol=1e-12, atol=1e-14)


def test_warm_start(fidelity):
    noisy, _ = noisy_image(2, 1, 20, 20)
    cold = denoise_tv(noisy, 0.2, fidelity, tolerance=1e-4, trace=True)
    splits = cold.state.splits.clone()
    warm = denoise_tv(noisy + 1e-4, 0.2, fidelity, tolerance=1e-4, start=cold.state, trace=True)
    assert (warm.iterations <= cold.iterations // 3).all() and warm.converged.all()
    torch.testing.assert_close(warm.image, cold.image, rtol=0, atol=2e-3)
    assert torch.equal(splits, cold.state.splits)  # of the caller
    permuted = cold.state._replace(splits=splits.mT.contiguous().mT)
    small = noisy[..., :2, :3]
    with use_backend("triton"):
        again = denoise_tv(small, 0.2, fidelity, max_iterations=1, trace=True)
        state = again.state._replace(splits=again.state.splits.mT.contiguous().mT)
        first, second = (denoise_tv(small, 0.2, fidelity, start=s, max_iterations=5) for s in (again.state, state))
        assert torch.equal(first, second)
    assert torch.equal(
        denoise_tv(noisy, 0.2, fidelity, start=permuted), denoise_tv(noisy, 0.2, fidelity, start=cold.state)
    )
    halfway = denoise_tv(noisy, 0.2, fidelity, max_iterations=20, tolerance=0.0, trace=True)
    rest = denoise_tv(noisy, 0.2, fidelity, max_iterations=20, tolerance=0.0, start=halfway.state, trace=True)
    assert rest.trace.objective[0].sum() < halfway.trace.objective[2].sum()


@pytest.mark.parametrize("backend", ["triton", *NATIVE])
def test_every_backend_equals_the_reference(backend, fidelity, device):
    noisy = noisy_image(2, 1, 9, 12)[0].to(device)
    results = []
    for name in ("reference", backend):
        with use_backend(name):
            results.append(denoise_tv(noisy, 0.2, fidelity, max_iterations=10, tolerance=0, trace=True))
    expected, result = results
    torch.testing.assert_close(result.image, expected.image, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.state.penalty, expected.state.penalty, rtol=1e-10, atol=0)
    first = denoise_tv(noisy, 0.2, fidelity, max_iterations=4, trace=True).state.penalty
    assert (result.state.penalty != first).any()  # it was adapted
    for row, other in zip(result.trace[:3], expected.trace[:3], strict=True):
        torch.testing.assert_close(row, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precision(dtype):
    noisy, _ = noisy_image(1, 20, 20, dtype=dtype)
    result = denoise_tv(noisy, 0.2, max_iterations=20, tolerance=0)
    assert result.dtype == dtype
    exact = denoise_tv(noisy.double(), 0.2, max_iterations=20, tolerance=0)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2 * torch.finfo(dtype).eps + 1e-6)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (torch.uint8, [0, 51, 255], [0, 0.2, 1]),
        (torch.int16, [-32768, 0, 32767], [-1, 0, 1]),
        (torch.uint16, [0, 13107, 65535], [0, 0.2, 1]),
        (torch.bool, [False, True, True], [0, 1, 1]),
    ],
)
def test_integers_become_numbers_up_to_1(dtype, values, expected):
    image = torch.tensor(values).to(dtype).reshape(1, 1, 3)
    expected = torch.tensor(expected, dtype=torch.float32).reshape(1, 1, 3)
    result = denoise_tv(image, 0.0, trace=True, reference=image)
    assert result.image.dtype == torch.float32
    torch.testing.assert_close(result.image, expected)
    torch.testing.assert_close(denoise_tv(image, 0.1), denoise_tv(expected, 0.1))


def test_results_that_need_no_iteration():
    noisy, _ = noisy_image(3, 1, 5, 4)
    result = denoise_tv(noisy, 0, trace=True)
    assert torch.equal(result.image, noisy) and result.converged.all() and not result.iterations.any()
    assert result.trace.objective.shape == (0, 3)
    empty = denoise_tv(noisy[:0], 0.3, trace=True)
    assert empty.image.shape == (0, 1, 5, 4) and empty.iterations.shape == (0,)
    assert denoise_tv(noisy[:0], 0.3, start=empty.state).shape == (0, 1, 5, 4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (1, 6, 7)])
def test_constant_images_stay(fidelity, shape):
    image = torch.full(shape, 0.3)
    result = denoise_tv(image, 0.5, fidelity, trace=True)
    torch.testing.assert_close(result.image, image, rtol=0, atol=1e-6)
    assert result.converged and result.iterations <= 5


@pytest.mark.parametrize("scale", [1e-36, 1e-3, 1e36])
def test_units_are_free(scale):
    noisy, _ = noisy_image(1, 20, 20, dtype=torch.float32)
    scaled, unscaled = denoise_tv(noisy * scale, 0.3 * scale, trace=True), denoise_tv(noisy, 0.3, trace=True)
    torch.testing.assert_close(scaled.image / scale, unscaled.image, rtol=0, atol=1e-5)
    assert scaled.iterations == unscaled.iterations


def test_sums_over_large_images(number_of_threads):
    """They leave float32 before the values do; and neither a batch nor the number of threads changes them."""
    noisy = torch.stack([noisy_image(1, 512, 512, seed=seed, dtype=torch.float32)[0] for seed in range(2)])
    results = []
    for threads in (1, 3):
        number_of_threads(threads)
        results += [denoise_tv(noisy, 0.3), torch.stack([denoise_tv(image, 0.3) for image in noisy])]
    if NATIVE:  # whose Fourier transforms are those of rows
        results.append(denoise_tv(noisy * 2.0**114, 0.3 * 2.0**114) / 2.0**114)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scale", "weight", "message"),
    [
        (1e-40, 0.1, r"image and weight must not be so large or small that torch\.float32"),
        (1.0, 1e38, r"image and weight must not be so large or small that torch\.float32"),
        (1.0, 1e300, r"image and weight must not be so large or small that torch\.float32"),
        (2.0**124, 0.3 * 2.0**124, r"must not be so large that torch\.float32 cannot hold its sums, got value"),
    ],
)
def test_units_that_are_too_far_apart_or_too_large_to_sum(scale, weight, message):
    noisy, _ = noisy_image(1, 512, 512, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        denoise_tv(noisy * scale, weight, max_iterations=5)


@pytest.mark.parametrize(("height", "base"), [(1.0, 0.0), (1e-3, 0.5)])
def test_drawings_that_are_flat_almost_everywhere(fidelity, height, base):
    """Where the mean difference says nothing of those there are, and float32 holds few digits of them."""
    image = torch.full((1, 128, 128), base)
    image[0, 10:13, 20:24] += height
    image[0, 100, 100] += height
    weight = 0.1 * height if fidelity == "l2" else 0.3
    result = denoise_tv(image, weight, fidelity, trace=True)
    best = denoise_tv(image.double(), weight, fidelity, tolerance=1e-4, max_iterations=2000, trace=True)
    assert result.converged and best.converged
    assert result.trace.objective[-1] <= 1.03 * best.trace.objective[-1]
    assert result.trace.objective[-1] < 0.99 * tv_objective(image, image, weight, fidelity)


def test_the_mean_stays_and_is_what_large_weights_give():
    noisy, _ = noisy_image(1, 20, 20, dtype=torch.float32)
    for weight in (0.3, 1e8):
        result = denoise_tv(noisy, weight, max_iterations=200)
        torch.testing.assert_close(result.mean(), noisy.mean(), rtol=1e-6, atol=0)
    flat = denoise_tv(noisy.double(), 1e4, tolerance=1e-6, max_iterations=2000)
    torch.testing.assert_close(flat, noisy.double().mean().expand_as(flat), rtol=0, atol=1e-5)


def test_layouts():
    noisy = noisy_image(2, 3, 8, 9, dtype=torch.float32)[0]
    for view in (noisy.to(memory_format=torch.channels_last), noisy.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(denoise_tv(view, 0.2), denoise_tv(noisy, 0.2))
    assert torch.equal(denoise_tv(noisy[:1].expand(3, 3, 8, 9), 0.2)[2], denoise_tv(noisy[0], 0.2))


@pytest.mark.parametrize(("fidelity", "weight"), [("l2", 0.15), ("l1", 1.0)])
def test_a_photograph_as_well_as_scikit_image_does_it_and_better(fidelity, weight):
    """And within 0.05 dB of where the iterations would end. By edges of its kind too, where nothing is periodic."""
    clean = torch.from_numpy(data.camera() / 255).float()
    generator = torch.Generator().manual_seed(0)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    if fidelity == "l1":
        drawn = torch.rand(clean.shape, generator=generator)
        noisy = torch.where(drawn < 0.05, 0.0, torch.where(drawn > 0.95, 1.0, clean))
    theirs = torch.from_numpy(denoise_tv_bregman(noisy.numpy(), weight=2 / weight, isotropic=False))
    result = denoise_tv(noisy, weight, fidelity, reference=clean, trace=True)
    assert result.converged and result.iterations <= 60

    def with_open_edges(image):
        residual = (image - noisy).double()
        distance = residual.square().sum() if fidelity == "l2" else residual.abs().sum()
        return distance + weight * sum(image.double().diff(dim=axis).abs().sum() for axis in (0, 1))

    assert with_open_edges(result.image) <= 1.001 * with_open_edges(theirs)
    bound = 1.001 * tv_objective(theirs[None], noisy[None], weight, fidelity)
    assert result.trace.objective[-1] <= bound
    assert (result.trace.objective[:12] <= bound).any()  # it takes no more iterations to be as good
    best = denoise_tv(noisy, weight, fidelity, tolerance=2e-4)
    psnr = -10 * (best - clean).square().mean().log10()
    assert abs(psnr - result.trace.psnr[-1]) < 0.05
    assert result.trace.objective[-1] <= 1.01 * tv_objective(best[None], noisy[None], weight, fidelity)


IMAGE = torch.ones(1, 4, 4)
STATE = DenoisingState(torch.zeros(1, 2, 1, 4, 4), torch.ones(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": [[1.0]]}, TypeError, "image must be a torch.Tensor, got list"),
        ({"image": torch.ones(4)}, ValueError, r"image must have the shape \[..., channels, height, .* \[4\]"),
        ({"image": torch.ones(1, 0, 4)}, ValueError, r"without empty axes but in front, got \[1, 0, 4\]"),
        ({"image": IMAGE.to(torch.complex64)}, TypeError, "image must have one of the dtypes .* got complex64"),
        ({"image": IMAGE * NAN}, ValueError, "image must be finite, got NaN or infinite values"),
        ({"image": torch.tensor([[1.0, -math.inf]])}, ValueError, "image must be finite, got NaN or infinite values"),
        ({"image": IMAGE.clone().requires_grad_()}, RuntimeError, "image must not require a gradient"),
        ({"weight": -0.1}, ValueError, "weight must be finite and ≥ 0, got -0.1"),
        ({"weight": "1"}, TypeError, "weight must be a number, got '1'"),
        ({"fidelity": "L2"}, ValueError, r"fidelity must be one of \('l1', 'l2'\), got 'L2'"),
        ({"method": "fast"}, ValueError, r"method must be one of \('adaptive', 'seed'\), got 'fast'"),
        ({"tolerance": -1e-3}, ValueError, "tolerance must be finite and ≥ 0"),
        ({"max_iterations": 0}, ValueError, "max_iterations must be finite and ≥ 1, got 0"),
        ({"max_iterations": 1.5}, TypeError, "max_iterations must be an int, got 1.5"),
        ({"reference": torch.ones(1, 4, 5)}, ValueError, r"reference must have the shape of image, \[1, 4, 4\], got"),
        ({"reference": IMAGE.double()}, TypeError, "reference must have the dtype of image"),
        ({"start": "yes"}, TypeError, "start must be a DenoisingState, got str"),
        ({"start": STATE, "fidelity": "l1"}, ValueError, r"start.splits must have the shape \[1, 3, 1, 4, 4\]"),
        ({"start": STATE, "method": "seed"}, ValueError, "start must be None with method=\"seed\""),
        ({"start": DenoisingState(None, None)}, TypeError, "start.splits must be a torch.Tensor, got NoneType"),
        ({"start": STATE._replace(splits=STATE.splits * NAN)}, ValueError, "start.splits must be finite, got other"),
        ({"start": STATE._replace(penalty=-STATE.penalty)}, ValueError, "start.penalty must be finite and positive"),
        ({"start": STATE, "image": IMAGE.double()}, TypeError, "start.splits must have the dtype of image"),
    ],
)  # fmt: skip
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        denoise_tv(**{"image": IMAGE, "weight": 0.1} | arguments)


def test_objective():
    image = torch.full((1, 4, 4), 300.0)
    assert tv_objective(image.half(), -image.half(), 0.1) == tv_objective(image, -image, 0.1)
    for arguments, error, message in (
        ((IMAGE, IMAGE, 0.1, "L1"), ValueError, "fidelity must be one of"),
        ((IMAGE, IMAGE, -1.0), ValueError, "weight must be finite and ≥ 0"),
        ((IMAGE.byte(), IMAGE.byte(), 0.1), TypeError, "image must have one of the dtypes"),
        ((IMAGE, IMAGE[0], 0.1), ValueError, r"must have one shape \[..., channels, height, width\], got"),
        ((IMAGE[0], IMAGE[0], 0.1), ValueError, r"must have one shape \[..., channels, height, width\], got"),
    ):
        with pytest.raises(error, match=message):
            tv_objective(*arguments)
