"""`SparseLinear` against dense layers: pruning, forward, gradients, copies, data types, bad input."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton.ops.sparse_linear import _product, _sampled_product
from srm_triton.sparse import SparseLinear


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pruned(weight: Tensor, count: int) -> Tensor:
    """Zeroes all but the `count` weights of greatest magnitude, by sorting."""
    least = sorted(weight.detach().abs().flatten().tolist())[-count]
    return torch.where(weight.detach().abs() >= least, weight.detach(), 0)


@pytest.mark.parametrize(
    ("density", "count"), [(1.0, 63), (1, 63), (0.5, 32), (0.3, 19), (0.008, 1), (1e-9, 1), (0.95, 60)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_pruning_keeps_the_weights_of_greatest_magnitude(density, count, bias):
    linear = nn.Linear(9, 7, bias=bias, dtype=torch.float64)
    layer = SparseLinear.from_dense(linear, density)
    assert torch.equal(layer.weight.to_dense(), pruned(linear.weight, count))
    assert layer.values.shape == (count,)
    assert (layer.bias is not None) == bias
    if bias:
        assert torch.equal(layer.bias, linear.bias) and layer.bias is not linear.bias


def test_pruning_keeps_as_many_where_magnitudes_are_equal_or_zero():
    linear = nn.Linear(6, 4)
    nn.init.zeros_(linear.weight)
    layer = SparseLinear.from_dense(linear, 0.5)
    assert layer.values.shape == (12,) and layer.weight.to_dense().shape == (4, 6)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5), (2, 0, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_dense_layer_with_the_pruned_weight(shape, bias):
    linear = nn.Linear(5, 8, bias=bias, dtype=torch.float64)
    layer = SparseLinear.from_dense(linear, 0.3)
    weight = pruned(linear.weight, 12).requires_grad_()
    inputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    outputs, expected = layer(inputs), F.linear(inputs, weight, linear.bias)
    torch.testing.assert_close(outputs, expected, rtol=1e-14, atol=1e-14)
    assert outputs.is_contiguous()
    grad = torch.randn_like(outputs)
    results = torch.autograd.grad(outputs, [inputs, *layer.parameters()], grad)
    dense = torch.autograd.grad(expected, [inputs, weight, *([linear.bias] if bias else [])], grad)
    assert [name for name, _ in layer.named_parameters()] == ["values", "bias"][: 1 + bias]
    kept = weight.detach() != 0
    for result, reference in zip(results, (dense[0], dense[1][kept], *dense[2:]), strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-14, atol=1e-14)


def test_gradients_numerically():
    layer = SparseLinear(6, 4, density=0.4, dtype=torch.float64)
    inputs = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)

    def apply(inputs: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (inputs,))

    assert torch.autograd.gradcheck(apply, (inputs, layer.values, layer.bias))
    (gradient,) = torch.autograd.grad(layer(inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="sparse products cannot be differentiated twice"):
        gradient.sum().backward()


def test_inputs_of_any_strides():
    layer = SparseLinear(6, 4, density=0.4)
    inputs = torch.randn(6, 3, 2).permute(2, 1, 0)
    assert torch.equal(layer(inputs), layer(inputs.contiguous()))
    expanded = torch.randn(2, 1, 6).expand(-1, 5, -1)
    assert torch.equal(layer(expanded), layer(expanded.contiguous()))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_other_precisions_round_once(dtype, error):
    exact = SparseLinear(64, 32, density=0.2, dtype=torch.float64).to(dtype).double()
    layer = copy.deepcopy(exact).to(dtype)
    assert layer.col_indices.dtype == layer.order.dtype == torch.int64
    inputs = torch.randn(5, 64, dtype=dtype, requires_grad=True)
    wide = inputs.detach().double().requires_grad_()
    outputs, expected = layer(inputs), exact(wide)
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs.double(), expected, rtol=error, atol=error)
    outputs.sum().backward()
    expected.sum().backward()
    assert inputs.grad.dtype == layer.values.grad.dtype == dtype
    torch.testing.assert_close(inputs.grad.double(), wide.grad, rtol=error, atol=error)
    torch.testing.assert_close(layer.values.grad.double(), exact.values.grad, rtol=error, atol=error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_nothing_is_rounded(dtype):
    layer = SparseLinear(16, 8, density=0.3)
    inputs = torch.randn(3, 16, dtype=dtype, requires_grad=True)
    expected = layer(inputs.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = layer(inputs)
        gradients = torch.autograd.grad(outputs.sum(), [inputs, layer.values])
    assert torch.equal(outputs, expected)
    references = torch.autograd.grad(expected.sum(), [inputs, layer.values])
    assert all(torch.equal(*pair) for pair in zip(gradients, references, strict=True))


def test_fresh_layers_have_the_variance_of_dense_ones():
    layer, dense = SparseLinear(400, 300, density=0.1, bias=False), nn.Linear(400, 300, bias=False)
    inputs = torch.randn(100, 400)
    assert layer(inputs).std().item() == pytest.approx(dense(inputs).std().item(), rel=0.03)
    assert layer.values.abs().max() <= 40**-0.5
    of_outputs, of_inputs = layer.crow_indices.diff().double(), layer.ccol_indices.diff().double()
    for counts in (of_outputs, of_inputs):  # anywhere: binomial
        assert counts.std() == pytest.approx((counts.mean().item() * 0.9) ** 0.5, rel=0.2)
    torch.manual_seed(3)
    first = SparseLinear(9, 7)
    torch.manual_seed(3)
    assert torch.equal(first.weight.to_dense(), SparseLinear(9, 7).weight.to_dense())
    assert SparseLinear(3, 900, density=0.01).values.abs().max() <= 1


def test_trains():
    layer = SparseLinear(8, 4, density=0.5)
    teacher = copy.deepcopy(layer)
    layer.reset_parameters()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    inputs = torch.randn(64, 8)
    for _ in range(200):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(inputs), teacher(inputs).detach())
        loss.backward()
        optimizer.step()
    assert loss < 1e-4
    assert torch.equal(layer.weight.to_dense() != 0, teacher.weight.to_dense() != 0)


def test_checkpoints_copies_and_pickles(tmp_path):
    model = nn.Sequential(SparseLinear(9, 7, density=0.3), nn.ReLU(), SparseLinear(7, 5, density=0.3, bias=False))
    inputs = torch.randn(4, 9)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(state) == [
        *(f"0.{name}" for name in ("values", "bias", "crow_indices", "col_indices")),
        *(f"2.{name}" for name in ("values", "crow_indices", "col_indices")),
    ]
    fresh = nn.Sequential(SparseLinear(9, 7, density=0.3), nn.ReLU(), SparseLinear(7, 5, density=0.3, bias=False))
    assert not torch.equal(fresh[0].col_indices, model[0].col_indices)
    assigned = copy.deepcopy(fresh)
    fresh.load_state_dict(state)
    assigned.load_state_dict(state, assign=True)
    expected = gradients(model, inputs)
    for same in (fresh, assigned, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(*pair) for pair in zip(gradients(same, inputs), expected, strict=True))


def gradients(model: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    inputs = inputs.clone().requires_grad_()
    outputs = model(inputs)
    return outputs, *torch.autograd.grad(outputs.square().sum(), [inputs, *model.parameters()])


def test_a_state_that_does_not_fit_is_refused():
    layer = SparseLinear(9, 7, density=0.3)
    inputs = torch.randn(4, 9)
    before, good = gradients(layer, inputs), layer.state_dict()
    message = "0.crow_indices and 0.col_indices must be the CSR pattern of 19 weights in a matrix of 7 × 9: "
    for bad in (
        SparseLinear(7, 9, density=0.3).state_dict(),
        good | {"col_indices": good["col_indices"] + 1},
        good | {"col_indices": good["col_indices"] - 1},
        good | {"col_indices": torch.zeros_like(good["col_indices"])},
        good | {"crow_indices": good["crow_indices"].flip(0)},
        good | {"crow_indices": good["crow_indices"].double()},
        good | {"crow_indices": [0, 19]},
        good | {"col_indices": torch.tensor(19)},
    ):
        with pytest.raises(RuntimeError, match=message):
            nn.Sequential(layer).load_state_dict({f"0.{name}": value for name, value in bad.items()})
        assert all(torch.equal(*pair) for pair in zip(gradients(layer, inputs), before, strict=True))
    result = layer.load_state_dict({"bias": torch.zeros(7)}, strict=False)
    assert set(result.missing_keys) == {"values", "crow_indices", "col_indices"}
    assert not layer.bias.any()


@pytest.mark.parametrize("density", [0.2, 1, 0.01])
def test_a_state_of_another_density_says_so_in_one_line(density):
    other = SparseLinear(9, 7, density=density)
    model = nn.Sequential(SparseLinear(9, 7, density=0.3))
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict({f"0.{name}": value for name, value in other.state_dict().items()})
    lines = str(caught.value).split("\n\t")
    assert lines[0] == "Error(s) in loading state_dict for Sequential:"
    pattern = re.fullmatch(r"0\.crow_indices .*: the state has (\d+); make the layer with density=([\d.]+)", lines[1])
    assert len(lines) == 2 and int(pattern[1]) == len(other.values)
    assert SparseLinear(9, 7, density=float(pattern[2])).load_state_dict(other.state_dict())


def test_copying_a_dense_layer_draws_no_random_numbers():
    linear = nn.Linear(9, 7)
    state = torch.get_rng_state()
    layer = SparseLinear.from_dense(linear, 0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, _ in layer.named_buffers()] == [name for name, _ in SparseLinear(9, 7).named_buffers()]
    assert str(layer) == str(SparseLinear(9, 7, density=0.3)) and layer.training


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiles_and_exports():
    layer = SparseLinear(6, 4, density=0.4)
    inputs = torch.randn(2, 3, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    pairs = zip(gradients(compiled, inputs), gradients(layer, inputs), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    with torch.no_grad():
        assert torch.equal(compiled(inputs), layer(inputs))
    assert torch.equal(torch.export.export(layer, (inputs,)).module()(inputs), layer(inputs))


def test_custom_ops():
    layer = SparseLinear(6, 4, density=0.4)
    pattern = layer.crow_indices, layer.col_indices
    for dtype in (torch.float64, torch.float16):
        inputs, grad = torch.randn(5, 6, dtype=dtype), torch.randn(5, 4, dtype=dtype)
        torch.library.opcheck(_product, (inputs, layer.values.detach().to(dtype), *pattern))
        torch.library.opcheck(_sampled_product, (grad, inputs, *pattern))


BAD_INPUT = [
    (lambda: SparseLinear(4, 3, density=0), ValueError, "density must be finite and > 0, got 0"),
    (lambda: SparseLinear(4, 3, density=1.5), ValueError, "density must be at most 1, got 1.5"),
    (lambda: SparseLinear(4, 3, density=float("nan")), ValueError, "density must be finite and > 0, got nan"),
    (lambda: SparseLinear(4, 3, density="all"), TypeError, "density must be a number, got 'all' of type str"),
    (lambda: SparseLinear(0, 3), ValueError, "in_features must be finite and ≥ 1, got 0"),
    (lambda: SparseLinear(4, 0), ValueError, "out_features must be finite and ≥ 1, got 0"),
    (lambda: SparseLinear(4.0, 3), TypeError, "in_features must be an int, got 4.0 of type float"),
    (lambda: SparseLinear.from_dense(nn.Linear(4, 3), 2), ValueError, "density must be at most 1, got 2"),
    (lambda: SparseLinear.from_dense(nn.Identity(), 0.5), TypeError, "linear must be a torch.nn.Linear, got Identity"),
    (
        lambda: SparseLinear(4, 3)(torch.ones(2, 5)),
        ValueError,
        r"have 4 entries on axis -1 \(in_features\), got \[2, 5",
    ),
    (lambda: SparseLinear(4, 3)(torch.tensor(1.0)), ValueError, r"have the shape \[..., in_features\], got \[\]"),
    (
        lambda: SparseLinear(4, 3)(torch.ones(2, 4).double()),
        TypeError,
        "have the dtype of values, torch.float32, got t",
    ),
    (lambda: SparseLinear(4, 3)(torch.ones(2, 4).long()), TypeError, "have one of the dtypes float64, .* got int64"),
    (lambda: SparseLinear(4, 3)([1.0, 2.0, 3.0, 4.0]), TypeError, "inputs must be a torch.Tensor, got list"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_INPUT)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
