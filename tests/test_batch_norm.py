import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from triton.runtime.interpreter import ReduceOps

from srm_triton import use_backend
from srm_triton.kernels import batch_norm as kernel
from srm_triton.kernels import launch
from srm_triton.kernels.configurations import Tunable
from srm_triton.ops.batch_norm import batch_norm, batch_norm_with_statistics, normalise, normalise_backward

BACKENDS = ("reference", "native", "triton")
EPS = 1e-5
LONG = 20011  # more than a tile holds
SHAPES = [
    ((3, 1), 0),
    ((1, 3), 1),
    ((7, 5), 0),
    ((5, 7), 1),
    ((1000, 33), 0),
    ((33, 1000), 1),
    ((3001, 70), 0),
    ((LONG, 3), 0),
    ((3, LONG), 1),
    ((LONG, 3), 1),
    ((3, LONG), 0),
]


def make(shape, dim, dtype, affine=True, mean=0.0):
    generator = torch.Generator().manual_seed(shape[0])

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weight, bias = (draw(shape[1 - dim]), draw(shape[1 - dim])) if affine else (None, None)
    return (draw(*shape) + mean).to(dtype), weight, bias, draw(*shape)


def differentiate(function, inputs, weight, bias, grad):
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in (inputs, weight, bias)]
    outputs = function(*leaves)
    gradients = torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf is not None], grad)
    return outputs.detach(), *gradients


def run(backend, device, tensors, **options):
    tensors = [None if tensor is None else tensor.to(device) for tensor in tensors]
    with use_backend(backend):
        return [result.cpu() for result in differentiate(lambda *t: batch_norm(*t, **options), *tensors)]


def expected(tensors, dim=0, correction=1, eps=EPS):
    """Autograd through the definition in float64."""

    def definition(x, weight, bias):
        variance = x.var(dim, correction=correction, keepdim=True)
        y = (x - x.mean(dim, keepdim=True)) / (variance + eps).sqrt()
        y = y if weight is None else y * weight.unsqueeze(dim)
        return y if bias is None else y + bias.unsqueeze(dim)

    return differentiate(definition, *(None if tensor is None else tensor.double() for tensor in tensors))


def error(actual: Tensor, exact: Tensor) -> float:
    return ((actual.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-3)).item()


def errors(actual, exact):
    assert len(actual) == len(exact)
    return [error(a, e) for a, e in zip(actual, exact, strict=True)]


@pytest.fixture(autouse=True)
def add_in_trees(monkeypatch):
    """Sums tiles pairwise, nearly as a GPU does; the interpreter adds row by row, with far larger rounding errors."""

    def pairwise(self, values):
        terms = np.ascontiguousarray(np.moveaxis(values.handle.data, self.axis, -1))
        return self.to_tensor(terms.sum(-1), values.dtype)

    monkeypatch.setattr(ReduceOps, "sum", pairwise)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Several splits of several tiles already in small matrices."""
    for name, value in (("TILE", 64), ("WHOLE", 128), ("MAX_SPLITS", 5)):
        monkeypatch.setattr(kernel, name, value)
    assert kernel.candidates(None, torch.float32, 10, 1, "features")[0].shares(1000) > (2, 2)


@pytest.mark.parametrize(("case", "dtype"), list(zip(SHAPES, itertools.cycle((torch.float64, torch.float32)))))
def test_values_and_gradients(backend, case, dtype, device):
    tensors = make(*case, dtype)
    limit = 1e-12 if dtype == torch.float64 else 1e-6
    assert max(errors(run(backend, device, tensors, dim=case[1]), expected(tensors, case[1]))) < limit


@pytest.mark.parametrize("shape", [(512, 48), (257, 1100), (640, 16), (300, 1024), (1536, 3)])
@pytest.mark.parametrize("order", ["any", "sorted", "first far"])
def test_tiles_of_the_native_version(shape, order, device):
    """Several samples in a row, several tiles, and samples whose first ones tell little of the rest."""
    inputs, *others = make(shape, 0, torch.float32, mean=500.0)
    inputs = inputs.sort(0)[0] if order == "sorted" else inputs
    if order == "first far":
        inputs[: shape[0] // 50] += 3000
    actual, exact = run("native", device, (inputs, *others)), expected((inputs, *others))
    assert max(errors(actual, exact)) < 5e-7
    with use_backend("native"):
        mean, variance = batch_norm_with_statistics(inputs)[1:]
    assert error(mean, inputs.double().mean(0)) < 1e-7 and error(variance, inputs.double().var(0)) < 1e-6


@pytest.mark.parametrize(("shape", "dim"), [((90, 40), 0), ((40, 90), 1), ((90, 3), 0), ((700, 20), 0)])
def test_zeros_are_kept(backend, shape, dim, device):
    inputs, weight, bias, grad = make(shape, dim, torch.float64)
    inputs[torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 0
    outputs, *gradients = expected((inputs, weight, bias, grad * (inputs != 0)), dim)
    actual = run(backend, device, (inputs, weight, bias, grad), dim=dim, keep_zeros=True)
    assert max(errors(actual, (outputs * (inputs != 0), *gradients))) < 1e-12


@pytest.mark.parametrize(
    ("shape", "dim", "given", "correction"),
    [((83, 5), 0, (1, 2), 0), ((2, 321), 1, (1,), 1), ((1000, 1), 0, (2,), 0), ((5, 83), 1, (), 1)],
)
def test_splits(small_blocks, shape, dim, correction, given, device):
    drawn = enumerate(make(shape, dim, torch.float64, mean=3.0))
    tensors = [tensor if place in (0, *given, 3) else None for place, tensor in drawn]
    actual = run("triton", device, tensors, dim=dim, correction=correction)
    assert max(errors(actual, expected(tensors, dim, correction))) < 1e-12


@pytest.mark.parametrize(("dtype", "mixed"), [(torch.float16, False), (torch.bfloat16, True)])
@pytest.mark.parametrize(("shape", "dim"), [((45, 6), 0), ((3, 20000), 1)])
def test_half_precision(backend, shape, dim, mixed, dtype, device):
    inputs, weight, bias, grad = make(shape, dim, dtype, mean=1.0)
    if mixed:
        weight, bias = weight.float(), bias.float()
    tensors = (inputs, weight, bias, grad)
    actual = run(backend, device, tensors, dim=dim)
    parameter = torch.float32 if mixed else dtype
    assert [result.dtype for result in actual] == [dtype, dtype, parameter, parameter]
    exact = expected(tensors, dim)
    assert max(errors(actual, exact)) < torch.finfo(dtype).eps  # the interpreter truncates to bfloat16
    if mixed:
        assert max(errors(actual[2:], exact[2:])) < 4e-6


@pytest.mark.parametrize("layout", ["transposed", "strided", "row of a larger one", "repeated"])
@pytest.mark.parametrize(
    ("backend", "blocks"), [("reference", "whole"), ("native", "whole"), ("triton", "whole"), ("triton", "splits")]
)
def test_strides(backend, layout, blocks, request, device):
    if blocks == "splits":
        request.getfixturevalue("small_blocks")
    view = {
        "transposed": lambda: (torch.randn(12, 90).t(), torch.randn(12, 90).t()),
        "strided": lambda: (torch.randn(180, 36)[::2, 1::3], torch.randn(90, 12)),
        "row of a larger one": lambda: (torch.randn(90, 12), torch.randn(3, 90, 24)[1, :, :12]),
        "repeated": lambda: (torch.randn(90, 12), torch.randn(90, 1).expand(90, 12)),
    }[layout]
    torch.manual_seed(0)
    inputs, grad = (tensor.to(device) for tensor in view())
    for dim, matrix, dy in ((0, inputs, grad), (1, inputs.t(), grad.t())):
        weight = torch.linspace(-1, 1, 24, device=device)[::2]
        tensors = (matrix, weight, weight, dy)
        actual = run(backend, device, tensors, dim=dim)
        assert max(errors(actual, expected([tensor.cpu() for tensor in tensors], dim))) < 1e-6
        if layout == "transposed":
            assert actual[0].stride() == matrix.stride()


@pytest.mark.parametrize(("dim", "correction"), [(0, 1), (1, 0)])
def test_gradcheck(backend, dim, correction, device):
    tensors = [tensor.to(device).requires_grad_() for tensor in make((4, 3), dim, torch.float64)[:3]]
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda *t: batch_norm(*t, dim=dim, correction=correction), tensors)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("shape", [(6, 4), (200, 3)])
def test_seed_gradient(small_blocks, backend, shape, correction, device):
    inputs, weight, bias, dy = make(shape, 0, torch.float64)
    std = (inputs.var(0, correction=correction) + EPS).sqrt()
    normalised = (inputs - inputs.mean(0)) / std
    grad_inputs = weight / std / shape[0] * (shape[0] * dy - dy.sum(0) - normalised * (dy * normalised).sum(0))
    actual = run(backend, device, (inputs, weight, bias, dy), correction=correction, gradient="seed")
    exact = (normalised * weight + bias, grad_inputs, (dy * normalised).sum(0), dy.sum(0))
    assert max(errors(actual, exact)) < 1e-12


@pytest.mark.parametrize("shape", [(300, 8), (9000, 40)])
def test_large_mean_as_accurate_as_pytorch(backend, shape, device):
    tensors = make(shape, 0, torch.float32, mean=1000.0)
    exact = expected(tensors, correction=0)
    peer = differentiate(lambda x, w, b: F.batch_norm(x, None, None, w, b, True, eps=EPS), *tensors)
    actual = run(backend, device, tensors, correction=0)
    for ours, theirs in zip(errors(actual, exact), errors(peer, exact), strict=True):
        assert ours < max(2 * theirs, 1e-6)


@pytest.mark.parametrize(("shape", "row"), [((9000, 8), 0), ((9000, 8), 8999), ((100, 8), 77)])
def test_outlier(backend, shape, row, device):
    inputs, *rest = make(shape, 0, torch.float32, mean=1000.0)
    inputs[row] = 1e6
    exact = expected((inputs, *rest))
    assert max(errors(run(backend, device, (inputs, *rest)), exact)) < 1e-6


@pytest.mark.parametrize("samples", [777, 20000])
def test_constant_columns_become_their_bias(backend, samples, device):
    inputs = torch.tensor([0.1, -1e4, 1 / 3]).expand(samples, 3).to(device)
    bias = torch.tensor([1.0, 2.0, 3.0], device=device)
    with use_backend(backend):
        outputs, mean, variance = batch_norm_with_statistics(inputs, bias=bias)
    assert torch.equal(outputs, bias.expand(samples, 3)) and not variance.any()
    assert torch.equal(mean, inputs[0])


def test_one_sample_without_correction_and_no_features(backend, device):
    outputs, grad_inputs, grad_weight, grad_bias = run(backend, device, make((1, 5), 0, torch.float32), correction=0)
    bias, grad = make((1, 5), 0, torch.float32)[2:]
    assert torch.equal(outputs[0], bias) and torch.equal(grad_bias, grad[0])
    assert not grad_inputs.any() and not grad_weight.any()
    outputs, *gradients = run(backend, device, make((4, 0), 0, torch.float32))
    assert outputs.shape == (4, 0) and [gradient.numel() for gradient in gradients] == [0, 0, 0]


@pytest.mark.parametrize(("shape", "dim"), [((50, 6), 0), ((6, 20000), 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_statistics(backend, shape, dim, dtype, device):
    inputs, weight, bias, _ = make(shape, dim, dtype, mean=4.0)
    with use_backend(backend):
        outputs, mean, variance = batch_norm_with_statistics(
            inputs.to(device).requires_grad_(), weight.to(device), bias.to(device), dim=dim, correction=0
        )
    assert outputs.requires_grad and not mean.requires_grad and not variance.requires_grad
    assert mean.dtype == variance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert mean.shape == variance.shape == (6,)
    limit = 1e-12 if dtype == torch.float64 else 1e-6
    assert error(mean.cpu(), inputs.double().mean(dim)) < limit
    assert error(variance.cpu(), inputs.double().var(dim, correction=0)) < limit


def test_nan_stays_in_its_column(small_blocks, backend, device):
    for samples in (8, 100):
        inputs, weight, bias, grad = make((samples, 6), 0, torch.float32)
        clean = run(backend, device, (inputs, weight, bias, grad))
        inputs[samples // 2, 2] = torch.nan
        others = [0, 1, 3, 4, 5]
        for before, after in zip(clean, run(backend, device, (inputs, weight, bias, grad)), strict=True):
            assert torch.equal(before[..., others], after[..., others])
        outputs, grad_inputs, *_ = run(backend, device, (inputs, weight, bias, grad))
        assert outputs[:, 2].isnan().all() and grad_inputs[:, 2].isnan().all()


@pytest.mark.parametrize("shape", [(40, 33), (20000, 3)])
def test_same_bits_in_every_run_and_for_every_memory_order_of_gradients(shape, device):
    """In one tile and in splits."""
    *tensors, grad = make(shape, 0, torch.float32)
    other = grad.t().contiguous().t()
    assert other.stride() != grad.stride()
    first, *others = (run("triton", device, (*tensors, g), dim=0) for g in (grad, grad, other))
    assert all(all(map(torch.equal, first, results)) for results in others)


@pytest.mark.parametrize(("dim", "affine"), [(0, False), (1, True)])
def test_opcheck(backend, affine, dim, device):
    inputs, weight, bias, grad = make((6, 4), dim, torch.float32, affine)
    matrix, weight, bias, grad = (None if t is None else t.to(device) for t in (inputs, weight, bias, grad))
    torch.library.opcheck(normalise, (matrix, weight, bias, dim, EPS, 1, 0, True, backend))
    statistics = normalise(matrix, weight, None, dim, EPS, 1, 0, True, backend)[1]
    torch.library.opcheck(normalise_backward, (grad, matrix, weight, statistics, dim, EPS, 1, True, backend))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_equals_eager(device):
    tensors = [tensor.to(device) for tensor in make((6, 4), 0, torch.float32)]
    compiled = torch.compile(batch_norm, fullgraph=True, backend="aot_eager")
    eager = differentiate(batch_norm, *tensors)
    assert all(torch.equal(a, b) for a, b in zip(differentiate(compiled, *tensors), eager, strict=True))


@pytest.mark.parametrize("samples", [6, 200])
def test_gradients_of_a_narrow_column_far_from_zero(small_blocks, backend, samples, device):
    """In one tile and in splits they need the low part of the mean: two float32 neighbours are 1/16 apart."""
    generator = torch.Generator().manual_seed(samples)
    inputs = 1e6 + torch.randint(0, 7, (samples, 3), generator=generator) / 16
    weight, bias, grad = (torch.randn(*shape, generator=generator) for shape in ((3,), (3,), (samples, 3)))
    actual = run(backend, device, (inputs, weight, bias, grad), eps=1e-12)
    assert max(errors(actual, expected((inputs, weight, bias, grad), eps=1e-12))) < 5e-7


@pytest.mark.parametrize("warp", [None, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tiles_cover_the_matrix_within_bounds(warp, dtype):
    sizes = (1, 2, 7, 64, 1000, 1025, 2048, 16384, 16385, 65536, 10**7)
    for samples, features, adjacent in itertools.product(sizes, sizes, ("samples", "features")):
        exponents = ((size - 1).bit_length() for size in (samples, features))
        tiles = kernel.candidates(warp, dtype, *exponents, adjacent)
        assert 1 <= len(set(tiles)) == len(tiles) <= 8
        for tile in tiles:
            taken, splits = tile.shares(samples)
            rows = tile.block_samples * taken
            assert (splits - 1) * rows < samples <= splits * rows
            elements = tile.block_samples * tile.block_features
            column = adjacent == "samples" and tile.block_features == 1
            a_thread = (32 if column else 16) // (1 + (dtype == torch.float64))
            assert warp is None or elements <= a_thread * warp * tile.num_warps
            assert tile.num_warps <= 16 and 1 <= splits <= tile.splits <= kernel.MAX_SPLITS <= launch.MAX_GRID_Y
            run = tile.block_samples if adjacent == "samples" else tile.block_features
            assert run * dtype.itemsize >= 32 or run >= (samples if adjacent == "samples" else features)


@pytest.mark.parametrize(
    ("dtype", "shape", "adjacent"),
    [
        (torch.float64, (2100, 3), "features"),
        (torch.float32, (2100, 3), "features"),
        (torch.float32, (300, 9), "samples"),
        (torch.bfloat16, (130, 20), "features"),
    ],
)
def test_every_tile_is_as_accurate(monkeypatch, dtype, shape, adjacent, device):
    tensors = make(shape, 0, dtype, mean=3.0)
    inputs = tensors[0] if adjacent == "features" else tensors[0].t().contiguous().t()
    tensors = (inputs, *tensors[1:])
    limit = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    exact, found = expected(tensors), []
    tiles = kernel.candidates(32, dtype, *((size - 1).bit_length() for size in shape), adjacent)
    for tile in tiles:
        monkeypatch.setattr(Tunable, "choose", lambda self, *_, tile=tile: found.append(self.name) or tile)
        assert max(errors(run("triton", device, tensors), exact)) < limit, tile
    assert found == ["batch_norm_forward", "batch_norm_backward"] * len(tiles)


MATRIX = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "exception", "words"),
    [
        (([[1.0]],), {}, TypeError, ("inputs", "torch.Tensor", "list")),
        ((torch.ones(4),), {}, ValueError, ("inputs", "[rows, columns]", "[4]")),
        ((torch.ones(2, 3, 4),), {}, ValueError, ("inputs", "[rows, columns]", "[2, 3, 4]")),
        ((torch.ones(4, 3, dtype=torch.int64),), {}, TypeError, ("inputs", "float32", "int64")),
        ((MATRIX, torch.ones(4)), {}, ValueError, ("weight", "3 entries", "[4]")),
        ((MATRIX, torch.ones(3)), {"dim": 1}, ValueError, ("weight", "4 entries", "[3]")),
        ((MATRIX, torch.ones(3, 1)), {}, ValueError, ("weight", "[features]", "[3, 1]")),
        ((MATRIX, None, torch.ones(2)), {}, ValueError, ("bias", "3 entries", "[2]")),
        ((MATRIX, 1.0), {}, TypeError, ("weight", "torch.Tensor", "float")),
        ((MATRIX, torch.ones(3).double()), {}, TypeError, ("weight", "float32", "float64")),
        ((MATRIX, None, torch.ones(3).half()), {}, TypeError, ("bias", "float32", "float16")),
        ((MATRIX.half(), torch.ones(3).bfloat16()), {}, TypeError, ("weight", "float16 or torch.float32", "bfloat16")),
        ((MATRIX, torch.ones(3, device="meta")), {}, ValueError, ("weight", "device", "cpu", "meta")),
        ((MATRIX,), {"dim": 2}, ValueError, ("dim", "(0, 1)", "2")),
        ((MATRIX,), {"dim": 1.0}, ValueError, ("dim", "(0, 1)", "1.0")),
        ((MATRIX,), {"correction": 2}, ValueError, ("correction", "(0, 1)", "2")),
        ((MATRIX,), {"gradient": "approximate"}, ValueError, ("gradient", "'exact', 'seed'", "approximate")),
        ((MATRIX,), {"eps": 0.0}, ValueError, ("eps", "> 0", "0.0")),
        ((MATRIX,), {"eps": float("nan")}, ValueError, ("eps", "finite", "nan")),
        ((MATRIX,), {"eps": "small"}, TypeError, ("eps", "number", "str")),
        ((torch.ones(1, 3),), {}, ValueError, ("inputs", "dim = 0", "correction = 1", "[1, 3]")),
        ((torch.ones(3, 1),), {"dim": 1}, ValueError, ("inputs", "dim = 1", "correction = 1", "[3, 1]")),
        ((torch.ones(0, 3),), {"correction": 0}, ValueError, ("inputs", "dim = 0", "correction = 0", "[0, 3]")),
    ],
)
@pytest.mark.parametrize("function", [batch_norm, batch_norm_with_statistics])
def test_bad_input(function, arguments, options, exception, words):
    with pytest.raises(exception) as caught:
        function(*arguments, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
