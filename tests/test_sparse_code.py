import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import sparse_encode as sparse_encode_of_scikit_learn

from srm_triton import use_backend
from srm_triton.sparse.code import SparseRepresentation, sparse_encode, sparse_statistics


def problem(features=20, atoms=30, samples=12, dtype=torch.float64, seed=0):
    """Unit-norm atoms and samples that few of them make up, with noise."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = F.normalize(torch.randn(features, atoms, generator=generator, dtype=torch.float64), dim=0)
    codes = torch.randn(samples, atoms, generator=generator, dtype=torch.float64)
    codes *= torch.rand(samples, atoms, generator=generator) < 0.1
    noise = 0.05 * torch.randn(samples, features, generator=generator, dtype=torch.float64)
    return (codes @ dictionary.t() + noise).to(dtype), dictionary.to(dtype)


def fista_in_numpy(x, dictionary, sparsity, iterations):
    """The module's equations for one sample, in units of its own."""
    step = 1 / np.linalg.norm(dictionary, 2) ** 2
    z = y = np.zeros(dictionary.shape[1])
    t = 1.0
    for _ in range(iterations):
        v = y + step * dictionary.T @ (x - dictionary @ y)
        z_next = np.sign(v) * np.maximum(np.abs(v) - sparsity * step, 0)
        if (y - z_next) @ (z_next - z) > 0:
            t = 1.0
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        z, y, t = z_next, z_next + (t - 1) / t_next * (z_next - z), t_next
    return z


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("iterations", [1, 2, 30])
def test_equals_the_equations(backend, iterations, device):
    inputs, dictionary = problem()
    with use_backend(backend):
        codes = sparse_encode(inputs.to(device), dictionary.to(device), 0.1, iterations).cpu()
    for x, code in zip(inputs.numpy(), codes.numpy(), strict=True):
        np.testing.assert_allclose(code, fista_in_numpy(x, dictionary.numpy(), 0.1, iterations), rtol=0, atol=1e-13)
    assert 0.01 < (codes != 0).double().mean() < 0.6


@pytest.mark.filterwarnings("ignore:all codes are 0")
@pytest.mark.parametrize(("features", "atoms"), [(20, 10), (20, 20), (20, 80), (1, 3), (5, 1)])
@pytest.mark.parametrize(("sparsity", "dtype"), [(0.01, torch.float64), (0.1, torch.float32), (1.0, torch.float64)])
def test_converges_to_the_objective_of_scikit_learn(features, atoms, sparsity, dtype):
    inputs, dictionary = problem(features, atoms, dtype=dtype)
    codes = sparse_encode(inputs, dictionary, sparsity, iterations=2500)
    expected = sparse_encode_of_scikit_learn(
        inputs.double().numpy(), dictionary.double().t().numpy(), algorithm="lasso_cd", alpha=sparsity, max_iter=20000
    )  # fmt: skip
    exact = inputs.double(), dictionary.double()
    ours, theirs = (
        sparse_statistics(*exact, z, sparsity).objective.sum() for z in (codes.double(), torch.from_numpy(expected))
    )
    assert abs(ours - theirs) <= 1e-4 * theirs
    # and by the condition of optimality, which says nothing of how the code was found
    correlation = (exact[0] - codes.double() @ exact[1].t()) @ exact[1]
    slack = 1e-3 * sparsity + (1e-5 if dtype == torch.float32 else 0)
    assert (correlation.abs() <= sparsity + slack).all()
    used = codes != 0
    assert (correlation[used] - sparsity * codes[used].sign()).abs().max() <= slack if used.any() else True


def test_gradients():
    inputs, dictionary = problem(6, 8, 3)
    inputs.requires_grad_(), dictionary.requires_grad_()
    for iterations in (1, 5, 40):
        assert torch.autograd.gradcheck(lambda x, d: sparse_encode(x, d, 0.1, iterations), (inputs, dictionary))  # noqa: B023


def test_the_layer_learns_its_dictionary():
    torch.manual_seed(0)
    inputs, _ = problem(20, 30, 200, dtype=torch.float32)
    layer = SparseRepresentation(20, 30, sparsity=0.1, iterations=20)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    objectives = []
    for _ in range(40):
        codes = layer(inputs)
        loss = sparse_statistics(inputs, layer.atoms(), codes, layer.sparsity).objective.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objectives.append(loss.item())
        torch.testing.assert_close(layer.atoms().norm(dim=0), torch.ones(30))
    assert objectives[-1] < 0.85 * objectives[0]
    statistics = layer.statistics(inputs)
    assert statistics.objective.shape == statistics.nonzero_share.shape == (200,)
    torch.testing.assert_close(statistics.nonzero_share, (layer(inputs) != 0).float().mean(1))
    assert not statistics.objective.requires_grad


def test_a_classifier_on_the_code():
    layer = SparseRepresentation(6, 9, classes=4)
    inputs = torch.rand(2, 3, 6)
    assert layer(inputs).shape == (2, 3, 4)
    torch.testing.assert_close(layer(inputs), layer.classifier(layer.encode(inputs)))
    layer(inputs).sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in layer.parameters())


@pytest.mark.parametrize("shape", [(6,), (0, 6), (1, 6), (2, 0, 6), (2, 3, 4, 6)])
def test_shapes(shape):
    layer = SparseRepresentation(6, 9)
    inputs = torch.rand(shape)
    codes = layer(inputs)
    assert codes.shape == (*shape[:-1], 9)
    if codes.numel():
        torch.testing.assert_close(codes.reshape(-1, 9)[-1], layer(inputs.reshape(-1, 6)[-1]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    inputs, dictionary = (tensor.to(dtype) for tensor in problem())
    codes = sparse_encode(inputs, dictionary, 0.1)
    assert codes.dtype == dtype
    assert torch.equal(codes, sparse_encode(inputs.float(), dictionary.float(), 0.1).to(dtype))
    layer = SparseRepresentation(20, 30)
    expected = layer(inputs.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(inputs.float()), expected) and torch.equal(layer(inputs), expected.to(dtype))
    assert torch.equal(codes, sparse_encode(inputs, dictionary.float(), 0.1))


def test_special_inputs():
    _, dictionary = problem()
    inputs = torch.zeros(4, 20, dtype=torch.float64)
    inputs[1, 3], inputs[2] = math.nan, dictionary[:, 7]
    codes = sparse_encode(inputs, dictionary, 0.1, 200)
    assert not codes[0].any() and codes[1].isnan().any() and not codes[3].any()
    torch.testing.assert_close(codes[2, 7].item(), 0.9, rtol=0, atol=1e-9)
    assert not sparse_encode(inputs[2:], torch.zeros_like(dictionary), 0.1).any()
    dictionary[:, 5] = 0
    assert not sparse_encode(inputs[2:], dictionary, 0.01)[:, 5].any()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_positive_codes_are_those_of_scikit_learn(backend):
    inputs, dictionary = problem()
    with use_backend(backend):
        codes = sparse_encode(inputs, dictionary, 0.1, iterations=2500, positive=True)
    expected = sparse_encode_of_scikit_learn(
        inputs.numpy(), dictionary.t().numpy(), algorithm="lasso_cd", alpha=0.1, max_iter=20000, positive=True
    )  # fmt: skip
    assert (codes >= 0).all() and 0.05 < (codes != 0).double().mean() < 0.5
    ours, theirs = (
        sparse_statistics(inputs, dictionary, z, 0.1).objective for z in (codes, torch.from_numpy(expected))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    correlation = (inputs - codes @ dictionary.t()) @ dictionary  # λ where a code is positive, at most λ where it is 0
    assert (correlation <= 0.1 + 1e-6).all() and (correlation[codes > 0] - 0.1).abs().max() < 1e-6
    free = sparse_encode(inputs, dictionary, 0.1, iterations=2500)
    assert (free < 0).any() and sparse_statistics(inputs, dictionary, free, 0.1).objective.sum() < ours.sum()


def test_positive_codes_of_the_layer():
    torch.manual_seed(0)
    inputs = torch.randn(50, 6).double()
    layer = SparseRepresentation(6, 9, 0.2, positive=True).double()
    assert torch.equal(layer(inputs), sparse_encode(inputs, layer.atoms(), 0.2, positive=True))
    assert (layer(inputs) >= 0).all() and "positive=True" in str(layer)
    inputs.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sparse_encode(x, layer.atoms(), 0.2, 5, positive=True), (inputs[:3],))


def test_silence_is_warned_of():
    inputs, dictionary = problem(dtype=torch.float32)
    correlation = inputs @ dictionary
    for positive, largest in ((False, correlation.abs().max().item()), (True, correlation.max().item())):
        with pytest.warns(UserWarning, match=f"all codes are 0: sparsity = .* must be below {largest:g}") as caught:
            assert not sparse_encode(inputs, dictionary, 1.01 * largest, positive=positive).any()
        assert caught[0].filename == __file__
        assert sparse_encode(inputs, dictionary, 0.99 * largest, positive=positive).any()
    with pytest.warns(UserWarning, match="must be below -.*, the largest correlation with an atom"):
        sparse_encode(-torch.ones(1, 3), torch.eye(3), 0.1, positive=True)
    with pytest.warns(UserWarning, match=r"the largest \|correlation\| with"):
        SparseRepresentation(6, 9, 100.0)(torch.rand(2, 6))
    for right in (torch.zeros(2, 20), torch.zeros(0, 20), torch.tensor(math.nan).expand(2, 20)):  # whatever λ is
        sparse_encode(right, dictionary, 100.0)


def test_state_is_kept(tmp_path):
    layer, other = (SparseRepresentation(6, 9, classes=2) for _ in range(2))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(other(torch.ones(3, 6)), layer(torch.ones(3, 6)))
    assert layer.double()(torch.ones(3, 6).double()).dtype == torch.float64


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_and_transforms():
    layer = SparseRepresentation(6, 9, iterations=4).double()
    inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), layer(inputs))
    mapped = torch.func.vmap(lambda x: sparse_encode(x, layer.atoms(), 0.1, 4))(inputs)
    torch.testing.assert_close(mapped, sparse_encode(inputs, layer.atoms(), 0.1, 4))
    gradients = torch.func.vmap(torch.func.grad(lambda x: sparse_encode(x, layer.atoms(), 0.1, 4).sum()))(inputs)
    leaf = inputs.clone().requires_grad_()
    torch.testing.assert_close(gradients, torch.autograd.grad(layer(leaf).sum(), leaf)[0])


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sparse_encode([1.0], torch.eye(3), 0.1), TypeError, "inputs must be a torch.Tensor"),
        (lambda: sparse_encode(ONES.long(), torch.eye(3), 0.1), TypeError, "inputs must have one of the dtypes"),
        (lambda: sparse_encode(ONES, torch.eye(3).double(), 0.1), TypeError, "dictionary must have the dtype"),
        (lambda: sparse_encode(ONES, torch.ones(3), 0.1), ValueError, "dictionary must have the shape"),
        (lambda: sparse_encode(ONES, torch.eye(4), 0.1), ValueError, r"inputs must have 4 entries on axis -1"),
        (lambda: sparse_encode(ONES, torch.ones(3, 0), 0.1), ValueError, "at least one feature and one atom"),
        (lambda: sparse_encode(torch.tensor(1.0), torch.eye(1), 0.1), ValueError, r"inputs must have the shape"),
        (lambda: sparse_encode(ONES, torch.eye(3), 0), ValueError, "sparsity must be finite and > 0, got 0"),
        (lambda: sparse_encode(ONES, torch.eye(3), 0.0), ValueError, "least-squares solution.*torch.linalg.lstsq"),
        (lambda: sparse_encode(ONES, torch.eye(3), False), TypeError, "sparsity must be a number, got False"),
        (lambda: sparse_encode(ONES, torch.eye(3), math.nan), ValueError, "sparsity must be finite and > 0, got nan"),
        (lambda: sparse_encode(ONES, torch.eye(3), -1), ValueError, "sparsity must be finite and > 0, got -1"),
        (lambda: sparse_encode(ONES, torch.eye(3), 0.1, positive=1), ValueError, "positive must be one of"),
        (lambda: sparse_statistics(ONES, torch.eye(3), ONES, 0), ValueError, "> 0, got 0: codes without it"),
        (lambda: SparseRepresentation(3, 3, positive="yes"), ValueError, "positive must be one of .*, got 'yes'"),
        (lambda: sparse_encode(ONES, torch.eye(3), "1"), TypeError, "sparsity must be a number"),
        (lambda: sparse_encode(ONES, torch.eye(3), 0.1, 0), ValueError, "iterations must be finite and ≥ 1, got 0"),
        (lambda: sparse_encode(ONES, torch.eye(3), 0.1, 1.5), TypeError, "iterations must be an int"),
        (lambda: sparse_statistics(ONES, torch.eye(3), ONES[:1], 0.1), ValueError, "codes must have the shape"),
        (lambda: SparseRepresentation(0, 3), ValueError, "in_features must be finite and ≥ 1, got 0"),
        (lambda: SparseRepresentation(3, 0), ValueError, "atoms must be finite and ≥ 1, got 0"),
        (lambda: SparseRepresentation(3, 3, 0.0), ValueError, "sparsity must be finite and > 0, got 0.0"),
        (lambda: SparseRepresentation(3, 3, iterations=0), ValueError, "iterations must be finite and ≥ 1, got 0"),
        (lambda: SparseRepresentation(3, 3, classes=0), ValueError, "classes must be finite and ≥ 1, got 0"),
        (lambda: SparseRepresentation(3, 3)(torch.ones(2, 4)), ValueError, "inputs must have 3 entries on axis -1"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
