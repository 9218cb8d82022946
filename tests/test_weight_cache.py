"""The normalised weight in evaluation: computed once, and again after whatever changes it."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize, prune

from srm_triton import SRMConv2d, SRMLinear, SRMRecurrent, affine, use_backend
from srm_triton.weight_cache import WeightCache


@pytest.fixture
def normalised(monkeypatch):
    """How many weights have been normalised so far."""
    calls = []
    for name in ("batch_norm", "normalise"):  # alone, and as a part of a layer's operation
        original = getattr(affine, name)
        counted = lambda *a, original=original, **options: calls.append(1) or original(*a, **options)  # noqa: E731
        monkeypatch.setattr(affine, name, counted)
    return lambda: len(calls)


def fresh(layer, inputs):
    """What the layer returns without a cache."""
    layer = copy.deepcopy(layer)
    with torch.enable_grad():
        return layer(inputs).detach()


INPUTS = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_normalised_once(normalised, mode):
    layer = SRMLinear(6, 4).eval()
    with mode():
        first = layer(INPUTS)
        assert normalised() == 1 and layer.weight_cache.names == ("weight",)
        assert torch.equal(layer(INPUTS), first) and normalised() == 1
    assert torch.equal(first, fresh(layer, INPUTS)) and first.sum() > 0


@pytest.mark.parametrize("layer", [SRMConv2d(2, 3, 3), SRMRecurrent(6, 4)])
def test_every_kind_of_layer(layer, normalised):
    inputs = INPUTS if isinstance(layer, SRMRecurrent) else torch.rand(2, 5, 2, 4, 4)
    with torch.no_grad():
        layer.eval()(inputs)
        before = normalised()
        layer(inputs)
    assert normalised() == before == len(layer.weight_cache.names)


CHANGES = {
    "optimiser": lambda layer: layer.weight.sub_(torch.rand_like(layer.weight)),
    "gain": lambda layer: layer.norm_weight.mul_(3),
    "offset": lambda layer: layer.norm_bias.add_(1),
    "checkpoint": lambda layer: layer.load_state_dict(SRMLinear(6, 4).state_dict()),
    "new parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.rand_like(layer.weight))),
    "new data": lambda layer: setattr(layer.weight, "data", torch.rand_like(layer.weight)),
    "dtype": lambda layer: layer.double().float().weight.mul_(torch.rand(6)),
    "eps": lambda layer: setattr(layer, "eps", 1.0),
    "hidden, then eval": lambda layer: (layer.weight.data.mul_(torch.rand(6)), layer.eval()),
    "hidden, then clear": lambda layer: (layer.weight.data.mul_(torch.rand(6)), layer.weight_cache.clear()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    layer = SRMLinear(6, 4).eval()
    with torch.no_grad():
        before = layer.current(INPUTS)
        CHANGES[change](layer)
        after = layer.current(INPUTS)
        assert not torch.allclose(before, after, atol=1e-2)
        assert torch.equal(after, copy.deepcopy(layer).current(INPUTS))


def test_each_backend_computes_its_own(normalised):
    layer = SRMLinear(6, 4).eval()
    with torch.no_grad():
        for count, backend in enumerate(("reference", "triton", "triton", "auto")):
            with use_backend(backend):
                layer.current(INPUTS)
            assert normalised() == count + (count < 2)


def test_gradients_are_never_those_of_a_kept_weight(normalised):
    layer = SRMLinear(6, 4, gradient="surrogate").eval()
    with torch.no_grad():
        layer(INPUTS)
    layer(INPUTS).sum().backward()
    assert layer.weight.grad.abs().sum() > 0 and normalised() == 2
    layer.weight_cache.clear()
    with torch.inference_mode():
        layer(INPUTS)
    layer.requires_grad_(False)
    inputs = INPUTS.clone().requires_grad_()
    layer.current(inputs).sum().backward()  # would fail with a weight made in inference mode
    assert inputs.grad.abs().sum() > 0


def test_training_keeps_none(normalised):
    layer = SRMLinear(6, 4)
    with torch.no_grad():
        layer(INPUTS), layer(INPUTS)
        assert normalised() == 2
        layer.eval()(INPUTS)
        assert layer.weight_cache.names and not layer.train().weight_cache.names


def test_weights_that_something_computes_are_not_kept():
    pruned, parametrised = SRMLinear(6, 4).eval(), SRMLinear(6, 4).eval()
    prune.random_unstructured(pruned, "weight", 0.5)
    parametrize.register_parametrization(parametrised, "weight", nn.Tanh())
    with torch.no_grad():
        for layer in (pruned, parametrised):
            layer(INPUTS)
            assert layer.weight_cache.names == ()


def test_swapped_parameters_are_those_that_count():
    layer = SRMLinear(6, 4).eval()
    with torch.no_grad():
        for seed in range(5):
            torch.manual_seed(seed)
            other = SRMLinear(6, 4).eval()
            swapped = functional_call(layer, {name: value.clone() for name, value in other.named_parameters()}, INPUTS)
            assert torch.equal(swapped, other(INPUTS))


def test_another_tensor_in_the_same_memory_is_another():
    cache, memory = WeightCache(), torch.zeros(3)
    for value in (1.0, 2.0):
        memory.fill_(value)
        found = cache.get("weight", (memory.data,), memory.clone)  # each with a count of its own, of 0
        assert found[0] == value


def test_copies_and_files_hold_none():
    layer = SRMLinear(6, 4).eval()
    with torch.no_grad():
        layer(INPUTS)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert other.weight_cache.names == () and torch.equal(other.weight, layer.weight)
    assert len(layer.state_dict()) == len(SRMLinear(6, 4).state_dict())
