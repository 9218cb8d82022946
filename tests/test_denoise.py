import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, lsq_linear
from skimage import data
from skimage.restoration import denoise_tv_bregman, denoise_tv_chambolle

from srm_triton import use_backend
from srm_triton.images.denoise import denoise_tv, tv_objective
from srm_triton.images.split_bregman import DenoisingState, SplitBregman
from srm_triton.kernels import native
from srm_triton.ops.shrink import Splitting
from srm_triton.ops.variation import Problem

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


def difference_matrix(shape, edges):
    """Differences of neighbours along x, y and, in volumes, z, of pixels in one row: [differences, pixels]."""
    pixels = np.arange(math.prod(shape)).reshape(shape)
    rows = []
    for axis in range(-1, -1 - len(shape), -1):
        here, there = pixels, np.roll(pixels, -1, axis)
        if edges == "mirrored":
            here, there = (places.take(range(shape[axis] - 1), axis) for places in (here, there))
        matrix = np.zeros((here.size, pixels.size))
        np.add.at(matrix, (range(here.size), there.ravel()), 1)
        np.add.at(matrix, (range(here.size), here.ravel()), -1)
        rows.append(matrix)
    return np.concatenate(rows)


def solved_by_scipy(image, weight, fidelity, edges, known=None):
    """The least objective of an image without channels: a linear programme, or the dual as bounded least squares."""
    f = image.numpy().ravel()
    known = np.ones(f.shape, bool) if known is None else known.numpy().ravel()
    matrix = difference_matrix(image.shape, edges)
    if fidelity == "l2" and known.all():  # u = f − λ/2·∂ᵀp of the p of magnitudes up to 1 that makes it smallest
        p = lsq_linear(weight / 2 * matrix.T, f, bounds=(-1, 1), tol=1e-14).x
        u = f - weight / 2 * matrix.T @ p
        return ((u - f) ** 2).sum() + weight * np.abs(matrix @ u).sum()
    assert fidelity == "l1"  # Σ e + λ·Σ t over u, e, t with |u − f| ≤ e where f is known and |∂u| ≤ t
    select = np.eye(f.size)[known]
    costs = np.concatenate((np.zeros(f.size), np.ones(len(select)), np.full(len(matrix), weight)))
    e, t = np.eye(len(select)), np.eye(len(matrix))
    none = np.zeros((len(select), len(matrix)))
    bounds = [
        np.hstack((sign * select, -e, none)) if part else np.hstack((sign * matrix, none.T, -t))
        for part in (True, False)
        for sign in (1, -1)
    ]
    limits = np.concatenate((f[known], -f[known], np.zeros(2 * len(matrix))))
    return linprog(costs, A_ub=np.vstack(bounds), b_ub=limits, bounds=(None, None)).fun


@pytest.mark.parametrize("edges", ["mirrored", "periodic"])
@pytest.mark.parametrize("shape", [(7, 9), (1, 8), (8, 1), (3, 4, 5)])
def test_no_image_has_a_smaller_objective(fidelity, noise, shape, edges):
    """As other solvers find it, and as the gap says."""
    noisy, _ = noisy_image(*shape, noise=noise)
    weight = 0.3 if fidelity == "l2" else 0.83
    options = {"edges": edges, "spatial_dims": 3 if len(shape) == 3 else 2}
    result = denoise_tv(noisy, weight, fidelity, tolerance=1e-6, max_iterations=20000, trace=True, **options)
    least = solved_by_scipy(noisy, weight, fidelity, edges)
    objective = tv_objective(result.image[None], noisy[None], weight, fidelity, **options)
    torch.testing.assert_close(result.trace.objective[-1], objective, rtol=1e-12, atol=1e-15)
    assert result.converged and result.gap <= 1e-6
    assert least * (1 - 1e-9) <= objective <= least * (1 + 1e-6)
    short = denoise_tv(noisy, weight, fidelity, tolerance=0, max_iterations=5, trace=True, **options)
    excess = short.trace.objective[-1] - least
    assert excess <= short.gap * short.trace.objective[-1] + 1e-9  # which the gap bounds, wherever it stops


def test_pixels_that_are_unknown_are_filled_in():
    noisy, _ = noisy_image(7, 9, noise="pepper")
    mask = torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) < 0.6
    least = solved_by_scipy(noisy, 0.83, "l1", "mirrored", mask)
    hidden = noisy.where(mask, NAN)
    result = denoise_tv(hidden, 0.83, "l1", mask=mask, tolerance=1e-6, max_iterations=20000, trace=True)
    assert result.converged and abs(result.trace.objective[-1] - least) <= 1e-6 * least
    torch.testing.assert_close(
        tv_objective(result.image[None], hidden[None], 0.83, "l1", mask=mask), result.trace.objective[-1]
    )
    for iterations in range(1, 12):
        short = denoise_tv(hidden, 0.83, "l1", mask=mask, tolerance=0, max_iterations=iterations, trace=True)
        assert short.trace.objective[-1] * (1 - short.gap) <= least * (1 + 1e-9)
    flat = torch.ones(5, 6, dtype=torch.float64)
    hole = torch.ones(5, 6, dtype=torch.bool)
    hole[1:4, 2:4] = False
    filled = denoise_tv(flat.where(hole, 7.0), 0.1, mask=hole, tolerance=1e-4)
    torch.testing.assert_close(filled, flat, rtol=0, atol=1e-3)
    everything = torch.ones_like(mask)
    torch.testing.assert_close(
        denoise_tv(noisy, 0.3, mask=everything, tolerance=1e-8, max_iterations=2000),
        denoise_tv(noisy, 0.3, tolerance=1e-8, max_iterations=2000),
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.parametrize("coupled", [(), (1, 2)])
def test_bound_by_hand(fidelity, coupled):
    """The minimum of each pixel by itself, for Bregman variables that belong to no solution."""
    noisy, _ = noisy_image(2, 2, 4, 5)
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(2, 2, 4, 5, generator=generator) < 0.6
    noisy = noisy.where(known, 0)
    splits = 2 * torch.randn(2, 3, 2, 4, 5, generator=generator, dtype=torch.float64)
    splits[:, 0, ..., -1] = splits[:, 1, ..., -1, :] = 0
    weight, penalty = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0, 3.0]).double()
    p = splits[:, :2]
    p = p / p.norm(dim=coupled, keepdim=True).clamp(min=1) if coupled else p.clamp(-1, 1)
    expected = torch.zeros(2, dtype=torch.float64)
    for sample, channel in itertools.product(range(2), range(2)):
        x, y = p[sample, :, channel].numpy()
        q = float(weight[sample]) * (np.roll(x, 1, 1) - x + np.roll(y, 1, 0) - y)
        values = noisy[sample, channel][known[sample, channel]]
        for place in itertools.product(range(4), range(5)):
            f, slope = float(noisy[sample, channel][place]), float(q[place])
            if not known[sample, channel][place]:
                best = min(slope * float(end) for end in (values.min(), values.max()))
            elif fidelity == "l2":
                best = slope * f - slope**2 / 4  # at u = f − q/2
            else:
                best = min(abs(u - f) + slope * u for u in (f, float(values.min()), float(values.max())))
            expected[sample] += best
    problem = Problem(noisy, weight, Splitting(fidelity, "mirrored", coupled, known))
    torch.testing.assert_close(problem.bound(splits, penalty), expected, rtol=1e-12, atol=1e-12)


def variation_by_hand(image, isotropic, coupled):
    """Of [channels, height, width], pixel by pixel."""
    total = 0.0
    channels, height, width = image.shape
    for y in range(height):
        for x in range(width):
            along_x = [float(image[c, y, x + 1] - image[c, y, x]) if x + 1 < width else 0.0 for c in range(channels)]
            along_y = [float(image[c, y + 1, x] - image[c, y, x]) if y + 1 < height else 0.0 for c in range(channels)]
            if isotropic and coupled:
                total += math.hypot(*along_x, *along_y)
            elif isotropic:
                total += sum(map(math.hypot, along_x, along_y))
            elif coupled:
                total += math.hypot(*along_x) + math.hypot(*along_y)
            else:
                total += sum(map(abs, along_x + along_y))
    return total


@pytest.mark.parametrize(("isotropic", "coupling"), [(True, "none"), (False, "channels"), (True, "channels")])
def test_norms_of_several_differences(fidelity, noise, isotropic, coupling):
    """Proved by duality, independently of how the image was found: p = (F′(u − f)) / λ must be one that is allowed."""
    noisy, _ = noisy_image(3, 6, 7, noise=noise)
    noisy += 0.1 * torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight, options = 0.4, {"isotropic": isotropic, "coupling": coupling}
    result = denoise_tv(noisy, weight, fidelity, tolerance=1e-5, max_iterations=20000, trace=True, **options)
    residual = result.image - noisy
    distance = residual.square().sum() if fidelity == "l2" else residual.abs().sum()
    expected = distance + weight * variation_by_hand(result.image, isotropic, coupling == "channels")
    torch.testing.assert_close(result.trace.objective[-1], expected, rtol=1e-12, atol=0)
    assert result.converged
    generator = torch.Generator().manual_seed(2)
    for size in (1e-1, 1e-2, 1e-3, 1e-4):  # nothing nearby is better
        for _ in range(10):
            other = result.image + size * torch.randn(noisy.shape, generator=generator, dtype=torch.float64)
            assert tv_objective(other, noisy, weight, fidelity, **options) >= expected * (1 - 1e-5)
    plain = denoise_tv(noisy, weight, fidelity, tolerance=1e-5, max_iterations=20000)
    assert tv_objective(plain, noisy, weight, fidelity, **options) > expected * (1 + 1e-3)


def test_isotropic_variation_as_scikit_image_has_it():
    noisy, _ = noisy_image(3, 12, 15)
    weight = 0.2  # theirs minimises ½‖u − f‖² + weight·‖∂u‖, of each channel alone
    theirs = denoise_tv_chambolle(noisy.numpy(), weight=weight, eps=1e-12, max_num_iter=2000, channel_axis=0)
    ours = denoise_tv(noisy, 2 * weight, isotropic=True, tolerance=1e-5, max_iterations=500)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=2e-3)
    plain = denoise_tv(noisy, 2 * weight, tolerance=1e-5, max_iterations=500)
    assert (plain - torch.from_numpy(theirs)).abs().max() > 2e-2


def test_coupled_channels_have_their_edges_together():
    """A faint edge in one channel stays where another has a strong one."""
    image = torch.zeros(2, 8, 16, dtype=torch.float64)
    image[0, :, 8:], image[1, :, 8:] = 1.0, 0.04
    apart, together = (
        denoise_tv(image, 0.4, coupling=coupling, tolerance=1e-7, max_iterations=9000)[1]
        for coupling in ("none", "channels")
    )
    height = [float(x[:, 8:].mean() - x[:, :8].mean()) for x in (apart, together)]
    assert height[0] < 1e-3 and height[1] > 0.025


def test_a_weight_for_each_image(fidelity, noise):
    noisy, _ = noisy_image(2, 2, 1, 9, 11, noise=noise)
    weight = torch.tensor([[0.0, 0.3], [0.8, 0.05]])
    batch = denoise_tv(noisy, weight, fidelity, tolerance=1e-4, max_iterations=2000, trace=True)
    for place in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        alone = denoise_tv(
            noisy[place], float(weight[place]), fidelity, tolerance=1e-4, max_iterations=2000, trace=True
        )
        torch.testing.assert_close(batch.image[place], alone.image, rtol=0, atol=1e-12)
        assert batch.iterations[place] == alone.iterations
        torch.testing.assert_close(batch.gap[place], alone.gap, rtol=1e-6, atol=1e-15)
    assert torch.equal(batch.image[0, 0], noisy[0, 0]) and batch.converged.all() and batch.gap[0, 0] == 0
    torch.testing.assert_close(tv_objective(batch.image, noisy, weight, fidelity)[1], batch.trace.objective[-1, 1])
    once = noisy[0, 0]
    assert torch.equal(denoise_tv(once, torch.tensor(0.25), fidelity), denoise_tv(once, 0.25, fidelity))


def test_opposite_edges_have_nothing_to_do_with_each_other():
    """A dark sky over a bright ground: the rows at either end stay as bright as their neighbours."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.full((40, 60), 0.2, dtype=torch.float64)
    clean[20:] = 0.8
    noisy = clean + 0.05 * torch.randn(40, 60, generator=generator, dtype=torch.float64)
    error = {edges: (denoise_tv(noisy, 0.3, edges=edges) - clean).abs().mean(1) for edges in ("mirrored", "periodic")}
    assert error["mirrored"][[0, -1]].max() < 0.007 and error["periodic"][[0, -1]].min() > 0.014
    turned = denoise_tv(noisy.rot90(1).contiguous(), 0.3, tolerance=1e-7, max_iterations=5000)
    torch.testing.assert_close(
        turned.rot90(-1), denoise_tv(noisy, 0.3, tolerance=1e-7, max_iterations=5000), rtol=0, atol=1e-4
    )


def mean_over_regions(values, image):
    """The mean of values over each region of neighbours whose pixels are the same; both [height, width]."""
    height, width = image.shape
    result, seen = torch.empty_like(values), torch.zeros(height, width, dtype=torch.bool)
    for start in itertools.product(range(height), range(width)):
        if seen[start]:
            continue
        seen[start], region = True, [start]
        for y, x in region:
            for neighbour in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                inside = 0 <= neighbour[0] < height and 0 <= neighbour[1] < width
                if inside and not seen[neighbour] and abs(image[neighbour] - image[y, x]) < 1e-5:
                    seen[neighbour] = True
                    region.append(neighbour)
        places = tuple(zip(*region, strict=True))
        result[places] = values[places].mean()
    return result


def test_gradient_is_the_mean_over_flat_regions():
    noisy, _ = noisy_image(6, 7)
    noisy.requires_grad_()
    image = denoise_tv(noisy, 0.2, tolerance=1e-12, max_iterations=9000)
    grad = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (result,) = torch.autograd.grad(image, noisy, grad)
    expected = mean_over_regions(grad, image.detach())
    assert 4 < len(expected.unique()) < 60
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"edges": "periodic"},
        {"isotropic": True},
        {"coupling": "channels", "isotropic": True},
        {"isotropic": True, "mask": True},
        {"isotropic": True, "fidelity": "l1"},
    ],
)
def test_gradient_by_differences(options):
    noisy, _ = noisy_image(2, 2, 4, 5)
    noisy += 0.1 * torch.rand(2, 2, 4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weight = torch.tensor([0.2, 0.3], dtype=torch.float64)
    if "mask" in options:
        options = options | {"mask": torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.7}
    generator = torch.Generator().manual_seed(0)
    grad, along = torch.randn(2, 2, 2, 4, 5, generator=generator, dtype=torch.float64)

    def function(image, weight):
        return denoise_tv(image, weight, tolerance=1e-12, max_iterations=3000, **options)

    leaves = noisy.clone().requires_grad_(), weight.clone().requires_grad_()
    by_image, by_weight = torch.autograd.grad(function(*leaves), leaves, grad)
    step = 1e-5
    change = (grad * (function(noisy + step * along, weight) - function(noisy - step * along, weight))).sum()
    torch.testing.assert_close((by_image * along).sum(), change / (2 * step), rtol=1e-3, atol=1e-4)
    change = (grad * (function(noisy, weight + step) - function(noisy, weight - step))).flatten(1).sum(1)
    torch.testing.assert_close(by_weight, change / (2 * step), rtol=1e-3, atol=1e-4)


def test_gradient_in_training():
    """Of a batch in half precision, through channels at the end; a second one is refused."""
    noisy = noisy_image(2, 9, 8, 3, dtype=torch.bfloat16)[0].requires_grad_()
    image = denoise_tv(noisy, 0.2, channel_axis=-1)
    (grad,) = torch.autograd.grad(image.float().sum(), noisy, create_graph=True)
    torch.testing.assert_close(grad, torch.ones_like(grad), rtol=0, atol=0.02)  # the mean stays
    with pytest.raises(RuntimeError, match="denoise_tv cannot be differentiated twice"):
        grad.sum().backward()
    with torch.no_grad():
        assert not denoise_tv(noisy, 0.2, channel_axis=-1).requires_grad
    still = denoise_tv(noisy, torch.zeros(2, requires_grad=True), channel_axis=-1)
    (grad,) = torch.autograd.grad(still.sum(), noisy)
    assert torch.equal(grad, torch.ones_like(grad))


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
    image = denoise_tv(noisy, 0.5, fidelity, edges="periodic", tolerance=1e-7, max_iterations=3000)
    best = tv_objective(image, noisy, 0.5, fidelity, edges="periodic")
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
    start = DenoisingState(torch.zeros(2, 3, 1, 9, 12).double(), torch.tensor([0.1, 200.0]).double())
    weight = torch.full((2,), 0.3, dtype=torch.float64)
    solver = SplitBregman(Problem(noisy_image(2, 1, 9, 12)[0], weight, Splitting("l1", "mirrored")), start)
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
    periodic = denoise_tv(noisy, 0.2, fidelity, edges="periodic", tolerance=1e-4, max_iterations=2000, trace=True)
    other = denoise_tv(noisy, 0.2, fidelity, tolerance=1e-4, start=periodic.state, max_iterations=2000, trace=True)
    assert other.converged.all() and (other.iterations < cold.iterations).all()
    torch.testing.assert_close(other.trace.objective[-1], cold.trace.objective[-1], rtol=1e-3, atol=0)
    halfway = denoise_tv(noisy, 0.2, fidelity, max_iterations=20, tolerance=0.0, trace=True)
    rest = denoise_tv(noisy, 0.2, fidelity, max_iterations=20, tolerance=0.0, start=halfway.state, trace=True)
    assert rest.trace.objective[0].sum() < halfway.trace.objective[2].sum()


@pytest.mark.parametrize("backend", ["triton", *NATIVE])
@pytest.mark.parametrize("edges", ["mirrored", "periodic"])
def test_every_backend_equals_the_reference(backend, fidelity, edges, device):
    noisy = noisy_image(2, 2, 9, 12)[0].to(device)
    weight, options = torch.tensor([0.02, 0.5]), {"edges": edges, "tolerance": 0, "trace": True}
    results = []
    for name in ("reference", backend):
        with use_backend(name):
            results.append(denoise_tv(noisy, weight, fidelity, max_iterations=10, **options))
    expected, result = results
    torch.testing.assert_close(result.image, expected.image, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.state.penalty, expected.state.penalty, rtol=1e-10, atol=0)
    torch.testing.assert_close(result.gap, expected.gap, rtol=1e-10, atol=0)
    first = denoise_tv(noisy, weight, fidelity, max_iterations=4, **options).state.penalty
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
        results.append(denoise_tv(noisy * 2.0**127, 0.3 * 2.0**127) / 2.0**127)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scale", "weight", "message"),
    [
        (1e-40, 0.1, r"image and weight must not be so large or small that torch\.float32"),
        (1.0, 1e38, r"image and weight must not be so large or small that torch\.float32"),
        (1.0, 1e300, r"image and weight must not be so large or small that torch\.float32"),
    ],
)
def test_units_that_are_too_far_apart(scale, weight, message):
    noisy, _ = noisy_image(1, 51, 52, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        denoise_tv(noisy * scale, weight, max_iterations=5)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
def test_channels_on_any_axis(axis):
    noisy, clean = noisy_image(5, 3, 9, 8)
    mask = torch.rand(noisy.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    options = {"mask": mask, "reference": clean, "coupling": "channels"}
    expected = denoise_tv(noisy, 0.2, max_iterations=7, trace=True, **options)
    moved = {
        key: value.movedim(1, axis) if isinstance(value, torch.Tensor) else value for key, value in options.items()
    }
    result = denoise_tv(noisy.movedim(1, axis), 0.2, max_iterations=7, trace=True, channel_axis=axis, **moved)
    assert torch.equal(result.image, expected.image.movedim(1, axis))
    assert torch.equal(result.trace.error, expected.trace.error) and result.gap.shape == (5,)
    small = noisy[..., :4]  # [5, 3, 9, 4], which says itself what is what
    assert torch.equal(denoise_tv(small, 0.2), denoise_tv(small, 0.2, channel_axis=1))
    wide = noisy_image(6, 9, 4)[0]
    assert denoise_tv(wide, 0.2, channel_axis=0).shape == (6, 9, 4)


@pytest.mark.parametrize(("height", "base"), [(1.0, 0.0), (1e-3, 0.5)])
def test_drawings_that_are_flat_almost_everywhere(fidelity, height, base):
    """Where the mean difference says nothing of those there are, and float32 holds few digits of them."""
    image = torch.full((1, 128, 128), base)
    image[0, 10:13, 20:24] += height
    image[0, 100, 100] += height
    weight = 0.1 * height if fidelity == "l2" else 0.3
    result = denoise_tv(image, weight, fidelity, trace=True)
    best = denoise_tv(image.double(), weight, fidelity, tolerance=5e-4, max_iterations=2000, trace=True)
    assert result.converged and best.converged
    assert result.trace.objective[-1] <= 1.01 * best.trace.objective[-1] / (1 - best.gap)
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
        ({"image": IMAGE.clone().requires_grad_(), "method": "seed"}, RuntimeError, "gradient with method=\"seed\""),
        ({"image": torch.ones(4, 5, dtype=torch.int64)}, TypeError, "image must be .* 8 or 16 bits, got torch.int64"),
        ({"image": torch.ones(4, 5, dtype=torch.uint32)}, TypeError, "divide by that, such as image / 255"),
        ({"image": torch.ones(9, 8, 3)}, ValueError, r"\[9, 8, 3\] looks like .* pass channel_axis=-1"),
        ({"image": torch.ones(2, 9, 8, 4)}, ValueError, r"looks like .* or channel_axis=-3 if these are not"),
        ({"channel_axis": 3}, ValueError, r"channel_axis must be one of the axes of image, .* got 3 for \[1, 4, 4\]"),
        ({"channel_axis": -4}, ValueError, "channel_axis must be finite and ≥ -3, got -4"),
        ({"channel_axis": 0, "spatial_dims": 3}, ValueError, "of which 3 remain for depth, height, width"),
        ({"channel_axis": 0.5}, TypeError, "channel_axis must be an int, got 0.5"),
        ({"channel_axis": True}, TypeError, "channel_axis must be an int, got True"),
        ({"spatial_dims": 1}, ValueError, r"spatial_dims must be one of \(2, 3\), got 1"),
        ({"spatial_dims": 3, "image": torch.ones(4, 4)}, ValueError, r"or \[depth, height, width\], without empty"),
        ({"edges": "reflect"}, ValueError, r"edges must be one of \('mirrored', 'periodic'\), got 'reflect'"),
        ({"edges": "mirrored", "method": "seed"}, ValueError, 'method="seed" must go without .* edges="mirrored"'),
        ({"isotropic": 1}, ValueError, r"isotropic must be one of \(False, True\), got 1"),
        ({"isotropic": True, "method": "seed"}, ValueError, 'method="seed" must go without start, isotropic'),
        ({"coupling": "colours"}, ValueError, "coupling must be one of"),
        ({"mask": torch.ones(4, 4)}, TypeError, "mask must be a bool tensor, got torch.float32"),
        ({"mask": [[True]]}, TypeError, "mask must be a bool tensor, got list"),
        ({"mask": torch.ones(4, 5).bool()}, ValueError, r"mask must have the shape of image, \[1, 4, 4\], or \[4, 4\]"),
        ({"mask": torch.zeros(4, 4).bool()}, ValueError, "mask must hold a known pixel in each channel of each image"),
        ({"mask": torch.ones(4, 4).bool(), "weight": 0}, ValueError, "weight must be > 0 with a mask"),
        ({"weight": torch.ones(3)}, ValueError, r"one for each image, \[\], got \[3\]"),
        ({"weight": torch.tensor(NAN)}, ValueError, "weight must be finite and ≥ 0, got nan"),
        ({"weight": torch.tensor(-1.0)}, ValueError, "weight must be finite and ≥ 0, got -1.0"),
        ({"weight": torch.tensor([-1.0, 2]), "image": torch.ones(2, 1, 4, 4)}, ValueError, "got values from -1 to 2"),
        ({"weight": torch.tensor([1, 2]), "image": torch.ones(2, 1, 4, 4)}, TypeError, "weight must have one of the"),
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
        ({"start": STATE, "method": "seed"}, ValueError, 'method="seed" must go without start'),
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
    step = torch.tensor([[[0.0, 3.0], [0.0, 4.0]]])  # 0 + 7 + 1 along the edges, across them as much again
    assert tv_objective(step, step, 1.0) == tv_objective(step[0], step[0], 1.0) == 8
    assert tv_objective(step, step, 1.0, edges="periodic") == 16
    for arguments, error, message in (
        ((IMAGE, IMAGE, 0.1, "L1"), ValueError, "fidelity must be one of"),
        ((IMAGE, IMAGE, -1.0), ValueError, "weight must be finite and ≥ 0"),
        ((IMAGE.byte(), IMAGE.byte(), 0.1), TypeError, "image must have one of the dtypes"),
        ((IMAGE, IMAGE[0], 0.1), ValueError, r"noisy must have the shape of image, \[1, 4, 4\], got \[4, 4\]"),
        ((IMAGE[0, 0], IMAGE[0, 0], 0.1), ValueError, r"image must have the shape \[..., channels, height, width\] or"),
        ((IMAGE, IMAGE.double(), 0.1), TypeError, "noisy must have the dtype of image"),
    ):
        with pytest.raises(error, match=message):
            tv_objective(*arguments)


def test_compiled_code_calls_it_as_it_is():
    """Traced, the C version would be handed memory that is none."""
    image = torch.rand(1, 6, 7)
    compiled = torch.compile(lambda x: denoise_tv(2 * x, 0.1) + 1, backend="eager")
    torch.testing.assert_close(compiled(image), denoise_tv(2 * image, 0.1) + 1)
    compiled = torch.compile(lambda x: tv_objective(x, x + 1, 0.1) + 1, backend="eager")
    torch.testing.assert_close(compiled(image), tv_objective(image, image + 1, 0.1) + 1)


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad])
def test_transforms_are_refused(transform):
    image = torch.rand(1, 6, 7)
    for function in (lambda x: denoise_tv(x, 0.1).sum(), lambda x: tv_objective(x, x, 0.1).sum()):
        with pytest.raises(RuntimeError, match=r"does not know the transforms of torch\.func"):
            transform(function)(image)
