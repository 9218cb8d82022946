"""What a small layer costs the host: operations that PyTorch dispatches, launch plans, in place of times."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from test_srm_scan import random, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from srm_triton import SpikeAvgPool2d, SRMAffine, SRMConv2d, SRMLinear, SRMParameters, SRMRecurrent, srm_scan
from srm_triton.kernels import native
from srm_triton.kernels.native import scan_plan

needs_library = pytest.mark.skipif(native.problem() is not None, reason=f"the C library is {native.problem()}")
FREE = {"aten::detach", "aten::view", "aten::unflatten", "aten::t", "aten::unbind.int", "aten::select.int"}  # views


class Count(TorchDispatchMode):
    """Counts what is dispatched, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.from_host: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name()
        if name not in FREE:
            self.found[name] += 1
        results = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, results)) if isinstance(each, torch.Tensor)]
        self.from_host |= {name for tensor in tensors if tensor.is_cpu and tensor.dim()}
        return results


def dispatched(module: Any, inputs: torch.Tensor) -> Counter[str]:
    gradient = torch.ones_like(module(inputs))  # which packs the constants
    with Count() as count:
        spikes = module(inputs)
        sources = [inputs, *getattr(module, "parameters", list)()]
        torch.autograd.grad(spikes, sources, gradient)
    return count.found


ITEMS = {"aten::_local_scalar_dense": 7}  # the constants are looked at


def test_a_scan_is_one_operation_a_direction():
    found = dispatched(srm_scan, torch.rand(2, 4, 8, requires_grad=True))
    assert found == {"srm_triton::srm_scan": 1, "srm_triton::srm_scan_backward": 1, **ITEMS}


@pytest.mark.parametrize("gradient", ["event", "surrogate"])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_layer_adds_its_products(gradient, requires_grad):
    """One forward, one for the weight, one for the inputs, into which the factor 0.85 is folded."""
    layer = SRMLinear(8, 8, weight_norm=False, gradient=gradient).train()
    inputs = torch.rand(2, 4, 8, requires_grad=requires_grad)
    if not requires_grad:
        layer(inputs)
        with Count() as count:
            layer(inputs).sum().backward()
        assert count.found["aten::mm"] == 2 and not count.found["aten::addmm"]
        return
    found = dispatched(layer, inputs)
    products = {"aten::mm": 2, "aten::addmm": 1} if gradient == "event" else {"aten::mm": 3}
    empty = {"aten::new_empty": 1} if gradient == "event" else {}
    assert found == {"srm_triton::srm_scan": 1, "srm_triton::srm_scan_backward": 1, **products, **empty, **ITEMS}


@pytest.mark.parametrize("layer", [SRMLinear(8, 8), SRMConv2d(2, 3, 3)])
def test_normalising_the_weight_adds_an_operation_a_direction(layer):
    inputs = torch.rand(2, 4, 8) if isinstance(layer, SRMLinear) else torch.rand(2, 4, 2, 6, 6)
    plain = copy.deepcopy(layer)
    plain.norm_weight = plain.norm_bias = None
    added = dispatched(layer, inputs.requires_grad_()) - dispatched(plain, inputs)
    assert added == {"srm_triton::batch_norm": 1, "srm_triton::batch_norm_backward": 1}


def test_a_convolution_passes_over_its_inputs_gradient_once():
    """As a product with the inputs, in place; the factor 0.85 is taken by the weight."""
    layer = SRMConv2d(2, 3, 3, weight_norm=False)
    found = dispatched(layer, torch.rand(2, 4, 2, 6, 6, requires_grad=True))
    assert found["aten::mul.Tensor"] == found["aten::mul_.Tensor"] == 1
    assert found["aten::convolution_backward"] == 2 and found["aten::convolution"] == 1
    assert sum(found.values()) == 7 + 2 + 1 + 2 + 2


@pytest.mark.filterwarnings("ignore:inputs of a layer with keep")
@pytest.mark.parametrize("keep", ["current", "spikes"])
@pytest.mark.parametrize("gradient", ["event", "original", "surrogate"])
def test_a_training_step_waits_for_no_device_and_copies_nothing_to_it(keep, gradient):
    """As CUDA graphs need it: on the meta device, where no value can be looked at, all runs from there to there."""
    options = {"keep": keep, "gradient": gradient}
    model = torch.nn.Sequential(
        SRMConv2d(2, 4, 3, learn=("threshold", "tau_m"), bias=True, **options),
        SpikeAvgPool2d(2, **options),
        torch.nn.Flatten(2),
        SRMAffine(torch.nn.Linear(16, 12), **options),
        SRMRecurrent(12, 8, gradient=gradient),
        SRMLinear(8, 6, carry_scale=True, **options),
        SRMLinear(6, 5, output=True, weight_norm=False, **options),
    )
    model = model.to("meta")
    inputs = torch.empty(3, 4, 2, 6, 6, device="meta", requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Count() as count:
        model(inputs).sum(1).square().mean().backward()
        optimizer.step()
    assert count.from_host <= {
        "aten::equal"
    }  # of the host's random numbers, which a module behind `SRMAffine` may draw
    assert not [name for name in count.found if "local_scalar" in name or "nonzero" in name]
    assert all(parameter.grad is not None for parameter in model.parameters())


@needs_library
class TestLaunchPlans:
    def test_they_are_kept_bounded_seen_and_cleared(self):
        scan_plan.cache_clear()
        current = torch.rand(2, 4, 8, requires_grad=True)
        assert scan_plan(current.shape, *[current.stride()] * 2, *[current.dtype] * 2, 1, 1, 1) is not None
        for _ in range(5):
            srm_scan(current).backward(torch.ones(2, 4, 8))
        info = scan_plan.cache_info()
        assert (info.misses, info.hits) == (1, 10) and info.maxsize == 512
        for steps in range(1, 600):
            srm_scan(torch.rand(1, steps))
        assert scan_plan.cache_info().currsize == 512
        scan_plan.cache_clear()
        assert scan_plan.cache_info().currsize == 0

    def test_they_differ_where_the_layout_does(self, number_of_threads):
        scan_plan.cache_clear()
        constants = SRMParameters(threshold=torch.ones(6)).pack(torch.ones(1))
        shape = 4, 9, 6
        layouts = [
            (torch.rand(shape), None),
            (torch.rand(9, 4, 6).transpose(0, 1), None),
            (torch.rand(shape).double(), None),
            (torch.rand(shape).bfloat16(), None),
            (torch.rand(shape), SRMParameters(threshold=torch.linspace(0.5, 1, 6))),
        ]
        for number, (current, parameters) in enumerate(layouts, 1):
            srm_scan(current, parameters)
            assert scan_plan.cache_info().misses == number
        assert constants.shape == (8, 6)
        number_of_threads(2)
        large = torch.rand(64, 8, 256)
        srm_scan(large)
        number_of_threads(1)
        srm_scan(large)
        assert scan_plan.cache_info().misses == len(layouts) + 2

    @pytest.mark.parametrize("planned", [True, False])
    @pytest.mark.parametrize("shape", [(3, 7, 5), (3, 35, 40), (40, 5, 3), (2, 5, 3, 4, 5), (2, 34)])
    def test_with_and_without_a_plan_the_results_are_those_of_the_reference(self, shape, planned, monkeypatch):
        if not planned:
            monkeypatch.setattr(native, "scan_plan", lambda *a: None)
        current, grad = random(*shape, shift=0.4).float(), random(*shape, seed=1).float()
        permuted = [axis for axis in (0, 1, *range(3, len(shape)), 2) if axis < len(shape)]
        back = [permuted.index(axis) for axis in range(len(shape))]
        sparse = torch.stack((grad, grad), -1)[..., 0]
        for given in (
            (current, grad),
            (current.permute(permuted).contiguous().permute(back), grad),
            (current, grad[:, :1].expand(shape)),
            (current, grad.new_ones(()).expand(shape)),
            (current, sparse),
            (current.transpose(0, 1).contiguous().transpose(0, 1), grad),
            (torch.stack((current, current), 1)[:, 1], grad),
        ):
            for time_axis in (0, 1):
                options = {"output": True, "time_axis": time_axis}
                results = [run(*given, backend=backend, **options) for backend in ("reference", "native")]
                assert all(map(torch.equal, *results))
