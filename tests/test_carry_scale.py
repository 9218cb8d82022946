"""Layers whose threshold carries the scale: they compute the same, keep it in checkpoints, and learn it by ratios."""

import pytest
import torch

from srm_triton import SRMConv2d, SRMLinear, SRMParameters, SRMRecurrent

LAYERS = {
    "linear": lambda **options: SRMLinear(6, 5, SRMParameters(threshold=0.8), **options),
    "biased": lambda **options: SRMLinear(6, 5, bias=True, **options),
    "convolution": lambda **options: SRMConv2d(6, 5, 1, bias=True, **options),
    "recurrent": lambda **options: SRMRecurrent(6, 5, bias=True, **options),
}


def pair(name):
    """A layer that carries the scale, with gains that differ, and the same layer as any other."""
    carrying, usual = (LAYERS[name](carry_scale=carry, dtype=torch.float64) for carry in (True, False))
    with torch.no_grad():
        for vector_name in ("norm_weight", "norm_bias", "recurrent_norm_weight", "bias"):
            if getattr(carrying, vector_name, None) is not None:
                getattr(carrying, vector_name).copy_(torch.linspace(0.2, 1.9, 5))
    state = carrying.state_dict()
    usual.load_state_dict({**state, "neuron.threshold": state["neuron.threshold"][0]})
    shape = (3, 12, 6, 1, 1) if name == "convolution" else (3, 12, 6)
    return carrying, usual, torch.rand(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_the_threshold_carries_the_scale(name):
    carrying, usual, inputs = pair(name)
    threshold, gain = carrying.neuron.threshold.clone(), carrying.norm_weight.detach().clone()
    assert torch.equal(carrying.eval()(inputs), usual(inputs)) and torch.equal(carrying.norm_weight, gain)
    spikes = carrying.train()(inputs)
    assert torch.equal(spikes, usual(inputs)) and 0 < spikes.mean() < 1
    assert torch.equal(carrying.norm_weight, torch.ones_like(gain))
    assert torch.equal(carrying.neuron.threshold, threshold / gain)
    torch.testing.assert_close(carrying.norm_bias, usual.norm_bias / gain)
    if carrying.bias is not None:
        torch.testing.assert_close(carrying.bias, usual.bias / gain)


def test_a_step_changes_the_threshold_by_a_ratio_and_a_checkpoint_keeps_it(tmp_path):
    layer, _, inputs = pair("linear")
    layer(inputs).sum().backward()
    threshold = layer.neuron.threshold.clone()
    step = 0.01 * layer.norm_weight.grad
    torch.optim.SGD(layer.parameters(), 0.01).step()
    spikes = layer(inputs)
    torch.testing.assert_close(layer.neuron.threshold, threshold / (1 - step))
    assert step.any()
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    loaded = LAYERS["linear"](carry_scale=True, dtype=torch.float64)
    loaded.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(loaded(inputs), spikes)


@pytest.mark.parametrize("name", LAYERS)
def test_several_forwards_before_a_backward(name):
    """As in a loss of two branches, and in pieces of a sequence whose state is handed on."""
    gradients = []
    for together in (True, False):
        torch.manual_seed(0)
        layer, _, inputs = pair(name)
        layer(inputs)
        batches = [torch.cat((inputs, inputs.flip(1)))] if together else [inputs, inputs.flip(1)]
        sum(
            (layer(batch) * torch.arange(12).view(1, -1, *[1] * (batch.dim() - 2))).sum() for batch in batches
        ).backward()
        first, state = layer(inputs[:, :5], return_state=True)
        (first.sum() + layer(inputs[:, 5:], state).sum()).backward()
        gradients.append(layer.weight.grad)
        torch.optim.SGD(layer.parameters(), 0.01).step()
        layer(inputs)
        assert torch.equal(layer.norm_weight, torch.ones(5).double())
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_transforms_see_the_same_layer_and_change_nothing():
    layer, usual, inputs = pair("biased")
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    def total(parameters, layer):
        return (torch.func.functional_call(layer, parameters, inputs) * torch.arange(12.0)[:, None]).sum()

    found, expected = (torch.func.grad(total)(dict(one.named_parameters()), one) for one in (layer, usual))
    assert all(torch.equal(found[name], expected[name]) for name in found) and found["weight"].any()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_threshold_that_is_set_is_carried_on():
    layer = SRMLinear(5, 4, carry_scale=True)
    layer.neuron.threshold = 0.5
    with torch.no_grad():
        layer.norm_weight.fill_(2)
        layer(torch.ones(1, 3, 5))
    assert layer.neuron.threshold.tolist() == [0.25] * 4
    layer.load_state_dict(SRMLinear(5, 4, carry_scale=True).state_dict())


def test_a_gain_that_is_not_positive_stays():
    layer, usual, inputs = pair("linear")
    with torch.no_grad():
        for each in (layer, usual):
            each.norm_weight[:2] = torch.tensor([0.0, -0.5])
    assert torch.equal(layer(inputs), usual(inputs))
    assert layer.norm_weight[:3].tolist() == [0, -0.5, 1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.compile
def test_reset_and_compiled():
    layer, usual, inputs = pair("biased")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs), usual(inputs)) and torch.equal(layer.norm_weight, torch.ones(5).double())
    layer.reset_parameters()
    assert torch.equal(layer.neuron.threshold, torch.ones(5).double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SRMLinear(6, 5, carry_scale=True, weight_norm=False), "carry_scale=True needs a normalised weight"),
        (lambda: SRMLinear(6, 5, carry_scale=True, learn=("threshold",)), "carry_scale=True sets the threshold, which"),
        (lambda: SRMLinear(6, 5, carry_scale=1), r"carry_scale must be one of \(False, True\), got 1"),
        (lambda: SRMRecurrent(6, 2, carry_scale=True), "carry_scale=True needs a normalised recurrent weight"),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()
