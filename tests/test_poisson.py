import math

import pytest
import torch
from torch import Tensor

from srm_triton import use_backend
from srm_triton.kernels import native
from srm_triton.ops.poisson import PoissonEquation

BACKENDS = ["reference", *(["native"] if native.problem() is None else [])]
SIZES = [(1, 1), (1, 5), (5, 1), (2, 2), (1, 2), (6, 7), (7, 6), (40, 3), (3, 300), (65, 130)]
VOLUMES = [(1, 1, 1), (3, 4, 5), (4, 1, 6)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


EDGES = pytest.mark.parametrize("edges", ["mirrored", "periodic"])


def left_side(u: Tensor, distance: Tensor, weight: Tensor, edges: str) -> Tensor:
    """Of the equation, in differences: with neighbours beyond the edges from the other end, or the pixels there."""
    along = torch.zeros_like(u)
    for axis in range(2, u.dim()):
        before, after = u.roll(1, axis), u.roll(-1, axis)
        if edges == "mirrored":
            before.select(axis, 0).copy_(u.select(axis, 0))
            after.select(axis, -1).copy_(u.select(axis, -1))
        along += 2 * u - before - after
    ones = [1] * (u.dim() - 1)
    return distance.view(-1, *ones) * u + weight.view(-1, *ones) * along


def constants(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@EDGES
@pytest.mark.parametrize("size", [*SIZES, *VOLUMES])
@pytest.mark.parametrize("scale", [1e-30, 0.01, 1.0, 100.0, 1e6])
def test_the_solution_satisfies_the_equation(backend, size, scale, edges):
    """Samples with constants of their own, several channels; solutions of both signs and with a mean."""
    u = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    distance, weight = constants(2.0, 0.5, 7.0), scale * constants(1.0, 3.0, 0.2)
    equation = PoissonEquation(distance, weight, size, torch.float64, edges)
    target = left_side(u, distance, weight, edges)
    before = target.clone()
    solution = equation.solve(target)
    torch.testing.assert_close(solution, u, rtol=0, atol=1e-14 * max(10, scale))
    assert torch.equal(target, before)
    torch.testing.assert_close(equation.solve(2 * target), 2 * solution, rtol=0, atol=0)


@EDGES
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight", [1.0, 1e4, 1e12])
def test_centred(backend, size, weight, edges):
    """What rounding makes of a mean of 0 would grow by weight over distance."""
    target = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target -= target.mean((-1, -2), keepdim=True)
    equation = PoissonEquation(constants(2.0), constants(weight), size, torch.float64, edges, centred=True)
    u = equation.solve(target + 1e-3)
    assert u.mean((-1, -2)).abs().max() <= 1e-15 * max(1, u.abs().max())
    remaining = left_side(u, constants(2.0), constants(weight), edges) - target
    assert remaining.abs().max() <= 1e-13 * max(size) * target.abs().max()


@EDGES
@pytest.mark.parametrize(("weight", "bound"), [(0.1, 4e-7), (5.0, 4e-7), (100.0, 4e-7), (1e4, 4e-6), (1e6, 4e-5)])
def test_in_float32(weight, bound, edges):
    """Recursions lose digits where smoothing is strong."""
    target = torch.randn(1, 1, 200, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for name in BACKENDS:
        with use_backend(name):
            exact, rounded = (
                PoissonEquation(constants(2.0), constants(weight), (200, 300), dtype, edges).solve(target.to(dtype))
                for dtype in (torch.float64, torch.float32)
            )
        assert rounded.dtype == torch.float32
        errors.append(float((rounded - exact).norm() / exact.norm()))
    assert max(errors) < bound and errors[0] < 2e-6


@EDGES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("distance", "weight"), [(1.0, 1e-320), (1e-3, 1e30), (1e30, 1e-3), (1e30, 1e30)])
def test_constants_that_are_far_apart(backend, distance, weight, dtype, edges):
    target = torch.randn(1, 1, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target -= target.mean()
    equation = PoissonEquation(constants(distance), constants(weight), (6, 5), dtype, edges, centred=True)
    u = equation.solve(target.to(dtype))
    remaining = left_side(u.double(), constants(distance), constants(weight), edges) - target
    assert remaining.abs().max() <= 50 * torch.finfo(dtype).eps


@EDGES
@pytest.mark.skipif("native" not in BACKENDS, reason="the C library is missing")
def test_every_number_of_threads_gives_the_same(number_of_threads, edges):
    target = torch.randn(2, 3, 100, 300, generator=torch.Generator().manual_seed(0))
    results = []
    with use_backend("native"):
        for threads in (1, 2, 3):
            number_of_threads(threads)
            equation = PoissonEquation(constants(1.0, 2.0), constants(3.0, 0.1), (100, 300), torch.float32, edges)
            results.append(equation.solve(target))
    assert target.numel() >= native._PARALLEL_FROM
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert math.isfinite(results[0].sum())


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.ones(1, 1, 4, 5), TypeError, "target must have the dtype of the equation, torch.float64, got torch.flo"),
        (torch.ones(2, 1, 4, 5).double(), ValueError, r"shape \[1, channels, 4, 5\] .* equation, got \[2, 1, 4, 5\]"),
        (torch.ones(1, 1, 5, 4).double(), ValueError, r"shape \[1, channels, 4, 5\] .* equation, got \[1, 1, 5, 4\]"),
        (torch.ones(1, 4, 5).double(), ValueError, r"shape \[1, channels, 4, 5\] of the equation, got \[1, 4, 5\]"),
        (torch.ones(1, 1, 4, 5, device="meta").double(), ValueError, "device of the equation, cpu, got meta"),
        ([1.0], TypeError, "target must be a torch.Tensor, got list"),
    ],
)
def test_bad_input(backend, target, error, message):
    with pytest.raises(error, match=message):
        PoissonEquation(constants(1.0), constants(1.0), (4, 5), torch.float64, "mirrored").solve(target)
