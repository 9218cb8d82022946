"""Calibration of fresh networks of every kind, and time constants by the length of the sequence."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from srm_triton import (
    SpikeAvgPool2d,
    SRMAffine,
    SRMConv2d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMRecurrent,
    calibrate_gain,
    time_constants,
)


def record(model, inputs):
    """The spikes of each layer by its name, by hooks."""
    spikes, handles = {}, []
    inner = [id(module.neuron) for module in model.modules() if hasattr(module, "neuron")]
    for name, module in model.named_modules():
        if hasattr(module, "neuron") or (isinstance(module, SRMNeuron) and id(module) not in inner):
            handles.append(module.register_forward_hook(lambda m, i, out, name=name: spikes.update({name: out})))
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return spikes


def dense(*sizes, **options):
    return nn.Sequential(*[SRMLinear(a, b, **options) for a, b in pairwise(sizes)])


def convolutional():
    return nn.Sequential(
        SRMConv2d(3, 8, 3, padding=1), SpikeAvgPool2d(2), SRMConv2d(8, 16, 3, bias=True), nn.Flatten(2),
        SRMLinear(16 * 14 * 14, 32), SRMLinear(32, 10),
    )  # fmt: skip


def images(scale=1.0, shift=0.0, steps=8):
    return (scale * (torch.rand(8, 3, 32, 32) + shift))[:, None].expand(-1, steps, -1, -1, -1)


CASES = {
    "images": (convolutional, images),
    "standardised": (convolutional, lambda: images(math.sqrt(12), -0.5)),
    "bytes": (convolutional, lambda: images(255)),
    "tiny": (convolutional, lambda: images(1e-6)),
    **{f"T = {steps}": (lambda: dense(784, 64, 64, 10), lambda steps=steps: repeat(steps)) for steps in (1, 2, 16, 99)},
    "a thousand steps of events": (lambda: dense(30, 64, 10), lambda: (torch.rand(4, 1000, 30) < 0.05).float()),
    "deeper than long": (lambda: dense(784, *[64] * 8), lambda: repeat(3)),
    "without normalisation": (lambda: dense(784, 64, 10, weight_norm=False), lambda: repeat(8)),
    "with biases": (lambda: biased(dense(784, 64, 10, weight_norm=False, bias=True)), lambda: repeat(8)),
    "normalised, with biases": (lambda: biased(dense(784, 64, 10, bias=True)), lambda: repeat(8)),
    "one feature": (lambda: dense(1, 64, 10), lambda: torch.randn(32, 50, 1)),
    "recurrent": (lambda: nn.Sequential(SRMRecurrent(784, 64), SRMLinear(64, 10)), lambda: repeat(8)),
    "recurrent, raw": (lambda: nn.Sequential(SRMRecurrent(784, 64, weight_norm=False)), lambda: repeat(8)),
    "wrapped": (
        lambda: nn.Sequential(SRMAffine(nn.Sequential(nn.Linear(784, 9), nn.Linear(9, 9))), SRMAffine(nn.Linear(9, 9))),
        lambda: repeat(8),
    ),
    "parametrised": (
        lambda: nn.Sequential(SRMAffine(nn.utils.parametrizations.spectral_norm(nn.Linear(784, 40)).eval())),
        lambda: repeat(8),
    ),
    "nothing to scale but the threshold": (lambda: nn.Sequential(SRMAffine(nn.Identity())), lambda: 1e-3 * repeat(8)),
    "learned thresholds": (
        lambda: nn.Sequential(SRMAffine(nn.Identity(), channels=784, learn=("threshold",))),
        lambda: 1e-3 * repeat(8),
    ),
    "neurons behind ordinary layers": (
        lambda: nn.Sequential(nn.Linear(784, 50), SRMNeuron(), nn.Linear(50, 10), SRMNeuron()),
        lambda: repeat(8),
    ),
    "half precision": (lambda: dense(784, 64, 10, dtype=torch.bfloat16), lambda: repeat(8).bfloat16()),
    "spread time constants": (
        lambda: nn.Sequential(SRMLinear(3, 64, time_constants(300, 64)), SRMLinear(64, 64, time_constants(300, 64))),
        lambda: torch.randn(8, 300, 3),
    ),
}  # fmt: skip


def repeat(steps):
    return torch.rand(32, 784)[:, None].expand(-1, steps, -1)


def biased(model):
    for layer in model:
        nn.init.normal_(layer.bias, std=0.1)
    return model


@pytest.mark.parametrize("case", CASES)
def test_every_layer_reaches_its_rate(case):
    build, inputs = CASES[case][0](), CASES[case][1]()
    rates = calibrate_gain(build, inputs)
    spikes = record(build, inputs)
    assert list(rates) == list(spikes)
    for name, reached in rates.items():
        assert spikes[name].float().mean().item() == pytest.approx(reached, rel=0.02)
        assert reached == pytest.approx(1 / 8, rel=0.2 if case == "spread time constants" else 0.05)
    assert not any(module._forward_pre_hooks for module in build.modules() if isinstance(module, SRMLinear))


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_wanted_number_in_the_wanted_window(batch_first):
    model = dense(784, 64, 10, batch_first=batch_first)
    inputs = repeat(12) if batch_first else repeat(12).transpose(0, 1)
    rates = calibrate_gain(model, inputs, spikes_per_neuron=1.0, window=(0, 5))
    for name, spikes in record(model, inputs).items():
        spikes = spikes if batch_first else spikes.transpose(0, 1)
        assert spikes[:, :5].mean().item() == pytest.approx(rates[name], rel=0.02) == pytest.approx(1 / 5, rel=0.05)


def test_batches_of_a_loader():
    inputs = repeat(8).contiguous()
    loader = DataLoader(TensorDataset(inputs, torch.zeros(32)), 32)
    models = [dense(784, 20) for _ in range(3)]
    for model, given in zip(models, (inputs, next(iter(loader)), loader), strict=True):
        model.load_state_dict(models[0].state_dict())
        if model is not models[0]:
            model[0].norm_weight.data.fill_(1.0)
        calibrate_gain(model, given)
    assert torch.equal(models[0][0].norm_weight, models[1][0].norm_weight)
    assert torch.equal(models[0][0].norm_weight, models[2][0].norm_weight)


def test_the_current_is_scaled_as_a_whole():
    """Gain, offset and bias of a normalised layer by one factor, what is recurrent not at all."""
    layer = biased(nn.Sequential(SRMRecurrent(784, 20, bias=True)))[0]
    nn.init.normal_(layer.norm_bias, std=0.01)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    calibrate_gain(layer, 100 * repeat(8))
    ratios = {name: layer.state_dict()[name] / before[name] for name in ("norm_weight", "norm_bias", "bias")}
    factor = ratios["bias"][0]
    assert factor < 0.2
    for ratio in ratios.values():
        torch.testing.assert_close(ratio, torch.full_like(ratio, factor.item()))
    for name in before.keys() - ratios.keys():
        assert torch.equal(layer.state_dict()[name], before[name]), name


def test_raw_recurrent_weights_stay():
    layer = SRMRecurrent(784, 20, weight_norm=False)
    before = layer.recurrent_weight.clone(), layer.weight.clone()
    calibrate_gain(layer, 100 * repeat(8))
    assert torch.equal(layer.recurrent_weight, before[0])
    torch.testing.assert_close(layer.weight / before[1], (layer.weight / before[1])[:1, :1].expand(20, 784))


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (dense(4, 8), torch.zeros(2, 8, 4), {}, "layer '0' fires 0 .* instead of 0.125: its inputs are all 0"),
        (
            nn.Sequential(SRMAffine(nn.Identity())),
            -torch.ones(2, 8, 4),
            {},
            "layer '0' fires 0 .*: it stays silent at any gain, as its inputs excite no neuron; give it a bias",
        ),
        (
            dense(784, 8),
            repeat(8),
            {"spikes_per_neuron": 7.9},
            "layer '0' fires 0.[345].* instead of 0.988: its neurons cannot fire more often; ask for fewer",
        ),
        (
            nn.Sequential(SRMAffine(nn.Identity())),
            torch.ones(1, 2, 1),
            {},
            r"layer '0' fires 0(.5)? .* instead of 0.125: its rate changes in steps; calibrate with a larger batch",
        ),
    ],
)
def test_rates_out_of_reach_come_near_with_a_warning(model, inputs, options, message):
    with pytest.warns(UserWarning, match=message) as warned:
        calibrate_gain(model, inputs, **options)
    assert len(warned) == len(model)
    for name, value in model.state_dict().items():
        assert value.isfinite().all() and (value.abs().max() < 1e3 or name.endswith("slope_limit"))


def test_bad_calibration():
    model, inputs = dense(4, 3), torch.rand(2, 6, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twice = nn.Sequential(model[0], nn.Linear(3, 4), model[0])
    bad = torch.rand(2, 6, 4)
    bad[1, 2, 3] = math.nan
    for arguments, options, error, message in (
        ((nn.Linear(4, 3), inputs), {}, ValueError, "model must contain a spiking layer"),
        ((model, inputs), {"spikes_per_neuron": 0}, ValueError, "spikes_per_neuron must be finite and > 0, got 0"),
        ((model, inputs), {"spikes_per_neuron": "1"}, TypeError, "spikes_per_neuron must be a number"),
        ((model, inputs), {"window": (4, 4)}, ValueError, r"window must end behind .*, got \(4, 4\)"),
        ((model, inputs), {"window": (4, 7)}, ValueError, r"window must end at step 6 of layer '0' or before, got \(4"),
        ((model, inputs), {"window": 1.0}, TypeError, "window must be an int or a tuple"),
        ((model, inputs[:0]), {}, ValueError, r"inputs of layer '0' must not be empty, got the shape \[0, 6, 4\]"),
        ((model, bad), {}, ValueError, "the current of layer '0' must be finite, got nan"),
        ((model, "batch"), {}, TypeError, "inputs must be a tensor, a batch .* or a DataLoader .*, got str"),
        ((twice, inputs), {}, ValueError, "layer '0' runs twice in the model; one gain cannot suit both"),
    ):
        with pytest.raises(error, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            calibrate_gain(*arguments, **options)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not model[0]._forward_pre_hooks


def test_time_constants_span_the_sequence():
    parameters = time_constants(100, 7, threshold=0.5)
    ratios = parameters.tau_m[1:] / parameters.tau_m[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(6))
    assert parameters.tau_m[0] == 2 and parameters.tau_m[-1] == pytest.approx(50) and parameters.threshold == 0.5
    torch.testing.assert_close(parameters.tau_s, 0.6 * parameters.tau_m)
    assert torch.equal(time_constants(10, 3, tau_g=2.5).tau_g, torch.tensor(2.5, dtype=torch.float64))
    for steps in (1, 2, 3, 1000):  # always a legal neuron
        SRMLinear(3, 5, time_constants(steps, 5))(torch.rand(2, steps, 3))
    assert time_constants(50, 1) == SRMParameters(*(torch.tensor([v], dtype=torch.float64) for v in (2.0, 1.2, 2.0)))
    for arguments, error, message in (
        ((0, 3), ValueError, "steps must be finite and ≥ 1, got 0"),
        ((8, 2.5), TypeError, "channels must be an int, got 2.5"),
        ((8, 3, 1.0), ValueError, "shortest must be finite and > 1, got 1.0"),
    ):
        with pytest.raises(error, match=message):
            time_constants(*arguments[:2], **({"shortest": arguments[2]} if len(arguments) > 2 else {}))
