"""The product with inputs that are mostly 0: sums in NumPy, what it serves and what it leaves to the dense product."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton import SRMLinear, SRMParameters, SRMRecurrent, srm_linear, use_backend
from srm_triton.kernels import native
from srm_triton.ops.gather_linear import _MOST, by_inputs, gather_linear

pytestmark = pytest.mark.skipif(native.problem() is not None, reason=f"the C library is {native.problem()}")

PANEL, BLOCK, SAMPLES = (
    native._layout(native._library(), "gather_linear")[1:] if native.problem() is None else (1, 1, 1)
)


def drawn(
    samples: int, inputs: int, outputs: int, rate: float = 0.06, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Spikes, weight and bias."""
    generator = torch.Generator().manual_seed(samples + inputs + outputs)
    spikes = (torch.rand(samples, inputs, generator=generator) < rate).to(dtype)
    return [spikes, *(torch.randn(*shape, generator=generator).to(dtype) for shape in ((outputs, inputs), (outputs,)))]


def in_order(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> np.ndarray:
    """The sums, a row at a time from the first input on, rounded as the dtype does."""
    x, w = inputs.to(weight.dtype).numpy(), weight.numpy()
    results = np.zeros((len(x), len(w)), w.dtype) + (0 if bias is None else bias.numpy())
    for sample, result in zip(x, results, strict=True):
        for i in np.flatnonzero(sample):
            result += sample[i] * w[:, i]
    return results


SHAPES = [
    (1, BLOCK + 7, PANEL + 1),
    (3, 700, 100),
    (SAMPLES + 5, BLOCK + 1, 3 * PANEL - 1),
    (9, 3 * BLOCK, PANEL),
    (5, 700, 5 * PANEL + 3),
    (0, 1100, 64),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_sum_in_the_order_of_inputs(shape, dtype, number_of_threads, monkeypatch):
    monkeypatch.setattr(native, "_PARALLEL_FROM", 1)
    spikes, weight, bias = drawn(*shape, dtype=dtype)
    values = spikes * torch.randn(spikes.shape).to(dtype)  # and −0
    for inputs in (spikes, values, values.t().contiguous().t()):
        for given in (bias, None):
            expected = in_order(inputs, weight, given)
            for threads in (1, 2, 3):
                number_of_threads(threads)
                result = gather_linear(inputs, by_inputs(weight), given)
                assert result.dtype == dtype and np.array_equal(result.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.bool])
def test_small_spikes_give_the_same(dtype):
    for wide in (torch.float32, torch.float64):
        spikes, weight, bias = drawn(7, 1500, 130, dtype=wide)
        weight = by_inputs(weight)
        result = gather_linear(spikes.to(dtype), weight, bias)
        assert torch.equal(result, gather_linear(spikes, weight, bias)) and result.any()
        if dtype != torch.bool:  # counts too
            assert torch.equal(gather_linear((3 * spikes).to(dtype), weight), gather_linear(3 * spikes, weight))


def test_it_is_the_dense_product_up_to_rounding():
    spikes, weight, bias = drawn(50, 2000, 300)
    exact = F.linear(spikes.double(), weight.double(), bias.double())
    error = (gather_linear(spikes, by_inputs(weight), bias) - exact).abs().max()
    assert 0 < error < 4e-5  # measured 3.3e-5, the dense product's 1.4e-5


def test_values_that_are_no_numbers():
    spikes, weight, _ = drawn(4, 1500, 100)
    spikes[1, 3], spikes[2, 4] = torch.nan, torch.inf
    result, expected = gather_linear(spikes, by_inputs(weight)), F.linear(spikes, weight)
    assert torch.equal(result.isnan(), expected.isnan()) and torch.equal(result.isinf(), expected.isinf())
    assert result[1].isnan().all() and result[2].isinf().all()


def test_a_weight_by_inputs_is_the_same_weight():
    weight = torch.randn(130, 1000)
    rows = by_inputs(weight)
    assert torch.equal(rows, weight) and rows.stride() == (1, native.row_of_panels(130))
    for other in (weight[:63], weight[:, :500], weight.bfloat16(), weight.view(130, 10, 100), weight.to("meta")):
        assert by_inputs(other) is other
    for wrong in (torch.nan, torch.inf):  # 0 times it is no number
        weight[5, 5] = wrong
        assert by_inputs(weight) is weight
    with use_backend("reference"):
        finite = torch.randn(130, 1000)
        assert by_inputs(finite) is finite


def test_what_is_left_to_the_dense_product():
    spikes, weight, bias = drawn(16, 1024, 128, rate=0.0)
    rows = by_inputs(weight)
    spikes.view(-1)[: spikes.numel() // _MOST] = 1
    assert gather_linear(spikes, rows, bias) is not None
    more = spikes.clone()
    more.view(-1)[-1] = 1
    for inputs, given in ((more, rows), (spikes, weight), (spikes.double(), rows)):
        assert gather_linear(inputs, given, bias) is None
    with use_backend("reference"):
        assert gather_linear(spikes, rows, bias) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert gather_linear(spikes, rows, bias) is None
    torch.func.vmap(lambda x: gather_linear(x, rows, bias) or x)(spikes[:, None])


def seen(monkeypatch) -> list[bool]:
    """Whether each product from now on is a sum of rows."""
    import srm_triton.affine as module

    calls: list[bool] = []

    def note(*arguments):
        result = gather_linear(*arguments)
        calls.append(result is not None)
        return result

    monkeypatch.setattr(module, "gather_linear", note)
    return calls


def test_layers_use_it_in_evaluation(monkeypatch):
    calls = seen(monkeypatch)
    layer, inputs = SRMLinear(900, 120, SRMParameters(threshold=2.0), bias=True), drawn(24, 900, 1)[0].view(4, 6, 900)
    with torch.no_grad():
        expected = layer(inputs)
    assert calls == [False]
    layer.eval()
    layer(inputs.requires_grad_()).sum().backward()
    assert not any(calls)
    inputs = inputs.detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            weight = layer.effective_weight()
            current = layer.current(inputs)
            assert torch.equal(current, gather_linear(inputs.flatten(0, 1), weight, layer.bias).view(current.shape))
            for given in (inputs, inputs.to(torch.uint8), inputs.bfloat16()):
                calls.clear()
                assert torch.equal(layer(given), expected) and calls == [True]
            assert not torch.equal(layer(1 - inputs), expected) and calls == [True, False]
    assert 0.01 < expected.mean() < 0.5
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
        calls.clear()
        assert layer.current(inputs)[..., 0].isnan().all() and calls == [False]


def test_pieces_and_single_steps_are_those_of_the_whole(monkeypatch):
    calls = seen(monkeypatch)
    for kind in (SRMLinear, SRMRecurrent):
        torch.manual_seed(0)
        layer, inputs = kind(700, 300, SRMParameters(threshold=9.0)).eval(), drawn(40, 700, 1, 0.05)[0].view(2, 20, 700)
        with torch.no_grad():
            whole, pieces, state = layer(inputs), [], None
            for piece in inputs.split(1, dim=1):
                spikes, state = layer(piece, state, return_state=True)
                pieces.append(spikes)
        assert torch.equal(torch.cat(pieces, 1), whole) and 0.005 < whole.mean() < 0.1
    assert sum(calls) > 60


def test_a_weight_that_lies_so_in_training_has_its_gradients():
    spikes, weight, _ = drawn(8, 1024, 100)
    for compute in (
        lambda layer, x: srm_linear(x, layer.weight, SRMParameters(threshold=5.0)),
        lambda layer, x: layer.current(x),
    ):
        results = []
        for given in (weight, by_inputs(weight)):
            layer = SRMLinear(1024, 100, weight_norm=False)
            layer.weight = nn.Parameter(given)
            compute(layer, spikes.view(2, 4, 1024)).square().sum().backward()
            results.append(layer.weight.grad)
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
        assert results[0].any()


def test_what_is_counted():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        values = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.nan, torch.finfo(dtype).tiny] * 5000, dtype=dtype)
        assert native.count_nonzero(values) == 20_000
    assert native.count_nonzero(torch.tensor([0, 1, 128, 255] * 9000, dtype=torch.uint8)) == 27_000
    assert native.count_nonzero(torch.tensor([True, False] * 9)) == 9


def test_exported_layers_are_dense():
    layer, inputs = SRMLinear(700, 100, SRMParameters(threshold=3.0)).eval(), drawn(8, 700, 1)[0].view(2, 4, 700)
    with torch.no_grad():
        expected = layer(inputs)
        program = torch.export.export(nn.Sequential(layer), (inputs,)).module()
        assert torch.equal(program(inputs), expected) and "gather" not in str(program.graph)
