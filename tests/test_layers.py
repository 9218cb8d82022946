"""The modules: shapes, parameters, normalisation, pooling, checkpoints and the initial gain."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srm_triton import (
    BatchNorm1d,
    SpikeAvgPool2d,
    SRMConv2d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    calibrate_gain,
    srm_conv2d,
    srm_linear,
    srm_scan,
)

OTHER = SRMParameters(tau_m=8.0, threshold=0.7)


def test_neuron_runs_the_scan():
    current = torch.randn(3, 9, 4) + 1
    assert torch.equal(SRMNeuron(OTHER)(current), srm_scan(current, OTHER))
    assert torch.equal(SRMNeuron(batch_first=False)(current), srm_scan(current, batch_first=False))


def test_effective_weight_has_the_gain_and_offset_of_each_output():
    for layer in (SRMLinear(30, 5), SRMConv2d(2, 5, 3)):
        with torch.no_grad():
            layer.norm_weight.copy_(torch.arange(1.0, 6.0))
            layer.norm_bias.copy_(torch.arange(-2.0, 3.0))
        rows = layer.effective_weight().flatten(1)
        torch.testing.assert_close(rows.mean(1), layer.norm_bias.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rows.std(1), layer.norm_weight.detach(), atol=2e-3, rtol=2e-3)
        assert rows.shape == layer.weight.flatten(1).shape


@pytest.mark.parametrize("weight_norm", [True, False])
def test_layers_call_the_functions_with_their_constants(weight_norm):
    options = {"parameters": OTHER, "weight_norm": weight_norm, "time_gradient_scale": 0.3, "batch_first": False}
    linear = SRMLinear(6, 4, **options)
    inputs = torch.rand(5, 2, 6, requires_grad=True)
    spikes = linear(inputs)
    expected = srm_linear(inputs, linear.effective_weight(), OTHER, time_gradient_scale=0.3, batch_first=False)
    assert torch.equal(spikes, expected)
    gradients = [torch.autograd.grad(output.sum(), [inputs, linear.weight]) for output in (spikes, expected)]
    for result, reference in zip(*gradients, strict=True):
        assert torch.equal(result, reference)
    assert set(dict(linear.named_parameters())) == {"weight"} | ({"norm_weight", "norm_bias"} if weight_norm else set())

    convolution = SRMConv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, **options)
    images = torch.rand(5, 2, 4, 7, 8)
    arguments = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2, "batch_first": False}
    expected = srm_conv2d(images, convolution.effective_weight(), OTHER, **arguments)
    assert torch.equal(convolution(images), expected)
    assert convolution.weight.shape == (6, 2, 3, 2)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (2, 1), ((4, 3), (1, 2)), (5, 2)])
def test_same_padding_is_that_of_torch(kernel, dilation):
    layer = SRMConv2d(2, 3, kernel, padding="same", dilation=dilation, weight_norm=False)
    images = torch.randn(2, 4, 2, 9, 8, requires_grad=True)
    current = F.conv2d(images.flatten(0, 1), layer.weight, padding="same", dilation=dilation)
    spikes = layer(images)
    assert torch.equal(spikes, srm_scan(current.unflatten(0, (2, 4))))
    spikes.sum().backward()
    assert images.grad.shape == images.shape


def test_pooling_hands_each_window_the_whole_gradient():
    spikes = (torch.rand(2, 3, 4, 6, 6) < 0.3).float().requires_grad_()
    pooled = SpikeAvgPool2d(2)(spikes)
    assert torch.equal(pooled, F.avg_pool2d(spikes.flatten(0, 1), 2).unflatten(0, (2, 3)))
    grad = torch.randn_like(pooled)
    pooled.backward(grad)
    expected = grad / (4 * pooled)
    expected[pooled == 0] = 0
    torch.testing.assert_close(spikes.grad, expected.repeat_interleave(2, -1).repeat_interleave(2, -2))
    kept = F.avg_pool2d((spikes.grad * spikes).flatten(0, 1), 2).unflatten(0, (2, 3)) * 4
    torch.testing.assert_close(kept, torch.where(pooled == 0, 0, grad))


def test_overlapping_pooling_windows_add_up():
    spikes = torch.ones(1, 1, 1, 1, 3, requires_grad=True)
    SpikeAvgPool2d((1, 2), stride=1)(spikes).sum().backward()
    assert spikes.grad.flatten().tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (6, 5)),
        ({}, (6, 5, 7)),
        ({"momentum": None, "eps": 1e-3}, (6, 5)),
        ({"affine": False}, (6, 5)),
        ({"track_running_stats": False}, (6, 5, 2)),
        ({"dtype": torch.float64}, (6, 5)),
    ],
)
def test_batch_norm_is_interchangeable_with_torch(arguments, shape):
    ours, theirs = BatchNorm1d(5, **arguments), nn.BatchNorm1d(5, **arguments)
    dtype = arguments.get("dtype", torch.float32)
    if arguments.get("affine", True):
        with torch.no_grad():
            theirs.weight.uniform_(0.5, 2)
            theirs.bias.normal_()
    assert ours.load_state_dict(theirs.state_dict(), strict=True)
    for training in (True, True, False):
        inputs = (3 * torch.randn(shape, dtype=dtype) + 2).requires_grad_()
        copied = inputs.detach().clone().requires_grad_()
        result, expected = ours.train(training)(inputs), theirs.train(training)(copied)
        torch.testing.assert_close(result, expected, rtol=2e-5, atol=2e-6)
        grad = torch.randn_like(result)
        result.backward(grad)
        expected.backward(grad)
        torch.testing.assert_close(inputs.grad, copied.grad, rtol=2e-5, atol=2e-6)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=2e-5, atol=2e-6)
    for result, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(result.grad, expected.grad, rtol=2e-5, atol=2e-5)
    assert theirs.load_state_dict(ours.state_dict(), strict=True)


def test_batch_norm_of_nothing_and_layout():
    for arguments in ({}, {"track_running_stats": False}):
        for shape in ((0, 4), (0, 4, 5), (3, 4, 0)):
            assert BatchNorm1d(4, **arguments)(torch.ones(shape)).shape == shape
    assert BatchNorm1d(5)(torch.randn(4, 5, 7)).is_contiguous()
    with pytest.raises(ValueError, match=r"more than one value per feature for a variance, got the shape \[1, 4\]"):
        BatchNorm1d(4, track_running_stats=False).eval()(torch.ones(1, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_layers_in_other_precisions(dtype):
    for layer, inputs in (
        (SRMLinear(8, 4, dtype=dtype), torch.rand(2, 5, 8, dtype=dtype)),
        (SRMConv2d(2, 4, 3, dtype=dtype), torch.rand(2, 5, 2, 4, 4, dtype=dtype)),
    ):
        spikes = layer(inputs)
        spikes.sum().backward()
        assert spikes.dtype == layer.weight.dtype == layer.weight.grad.dtype == dtype
        rows = layer.weight.detach().flatten(1).double()
        torch.testing.assert_close(rows @ rows.t(), torch.eye(4, dtype=torch.float64), rtol=0, atol=2e-2)


def test_checkpoints_copies_and_pickles(tmp_path):
    model = nn.Sequential(SRMConv2d(1, 4, 3), SpikeAvgPool2d(2), nn.Flatten(2), SRMLinear(16, 3, OTHER))
    inputs = torch.rand(2, 6, 1, 6, 6)
    expected = model(inputs)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = nn.Sequential(SRMConv2d(1, 4, 3), SpikeAvgPool2d(2), nn.Flatten(2), SRMLinear(16, 3, OTHER))
    assert not torch.equal(fresh[0].weight, model[0].weight)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    for same in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(inputs), expected)


def test_calibration_keeps_a_deep_network_alive():
    torch.manual_seed(0)
    model = nn.Sequential(SRMConv2d(1, 8, 3), nn.Flatten(2), *[SRMLinear(288 if i == 0 else 64, 64) for i in range(6)])
    inputs = 0.1 * torch.rand(16, 9, 1, 8, 8)
    before = [layer.norm_weight.clone() for layer in model if hasattr(layer, "norm_weight")]
    rates = calibrate_gain(model, inputs, spikes_per_neuron=1.5)
    assert list(rates) == ["0", "2", "3", "4", "5", "6", "7"]
    layer_inputs = inputs
    for name, layer in model.named_children():
        layer_inputs = layer(layer_inputs)
        if name in rates:
            rate = layer_inputs[:, 6:].mean().item()
            assert rates[name] == pytest.approx(rate)
            assert 0.8 * 1.5 / 9 < rate < 1.2 * 1.5 / 9
            assert not layer._forward_pre_hooks
    after = [layer.norm_weight for layer in model if hasattr(layer, "norm_weight")]
    assert all(not torch.equal(a, b) and a.requires_grad for a, b in zip(after, before, strict=True))


class TestBadInput:
    def test_layers(self):
        cases = [
            (lambda: SRMLinear(0, 3), r"sizes of the weight must be positive, got \[3, 0\]"),
            (lambda: SRMLinear(1, 3), "weight_norm=True needs a fan-in of at least 2, got 1"),
            (lambda: SRMLinear(2, 3, time_gradient_scale=-1), "time_gradient_scale must be finite and ≥ 0, got -1"),
            (lambda: SRMLinear(2, 3, eps=0.0), "eps must be finite and > 0, got 0.0"),
            (
                lambda: SRMConv2d(4, 6, 3, groups=4),
                "groups must divide in_channels and out_channels, got 4 for 4 and 6",
            ),
            (lambda: SRMConv2d(4, 6, 3, padding="full"), "padding must be an int, a pair, .* got 'full'"),
            (lambda: SRMConv2d(4, 6, 3, padding="same", stride=2), 'padding="same" needs stride 1'),
            (lambda: SpikeAvgPool2d(2)(torch.ones(1, 2, 3, 3)), r"inputs must have the shape \[batch, time, channels"),
            (lambda: BatchNorm1d(3)(torch.ones(2, 4)), r"inputs must have 3 features on axis 1, got \[2, 4\]"),
            (
                lambda: BatchNorm1d(3)(torch.ones(1, 3)),
                r"more than one value per feature for a variance, got the shape \[1, 3\]",
            ),
            (lambda: BatchNorm1d(3)(torch.ones(3)), "expected 2D or 3D input"),
        ]
        for call, message in cases:
            with pytest.raises(ValueError, match=message):
                call()

    def test_sizes_of_windows(self):
        cases = [
            (lambda: SRMConv2d(1, 1, 3, stride=0), ValueError, "stride must be finite and ≥ 1, got 0"),
            (lambda: SRMConv2d(1, 1, 3, padding=-1), ValueError, "padding must be finite and ≥ 0, got -1"),
            (lambda: SRMConv2d(1, 1, (3, 3, 3)), TypeError, r"kernel_size must be an int or a pair .* got \(3, 3, 3\)"),
            (lambda: SRMConv2d(1, 1, 3, dilation=1.5), TypeError, "dilation must be an int or a pair"),
            (lambda: SpikeAvgPool2d((2, "2")), TypeError, "kernel_size must be an int, got '2' of type str"),
            (lambda: SRMLinear(2, 2, eps="a"), TypeError, "eps must be a number, got 'a' of type str"),
        ]
        for call, error, message in cases:
            with pytest.raises(error, match=message):
                call()

    def test_parameters(self):
        for layer in (SRMNeuron, lambda p: SRMLinear(2, 2, p), lambda p: SRMConv2d(1, 1, 2, parameters=p)):
            with pytest.raises(TypeError, match="parameters must be SRMParameters or None, got float"):
                layer(5.0)

    def test_calibration(self):
        torch.manual_seed(0)
        inputs = torch.rand(2, 6, 4)
        with pytest.raises(ValueError, match="model must contain an SRMLinear or SRMConv2d with weight_norm=True"):
            calibrate_gain(nn.Sequential(SRMLinear(4, 4, weight_norm=False)), inputs)
        layer = SRMLinear(4, 4)
        reach = "spikes_per_neuron must be within reach of layer '', .* in 6 steps at 0.05 to 500 times its gain, got "
        for arguments, message in (
            ((inputs, 0), "spikes_per_neuron must be finite and > 0, got 0"),
            ((0 * inputs, 1), f"{reach}1"),
            ((inputs, 7), f"{reach}7"),
            ((1e6 * inputs, 0.01), f"{reach}0.01"),
            ((inputs[:0], 1), r"inputs of layer '' must not be empty, got the shape \[0, 6, 4\]"),
        ):
            with pytest.raises(ValueError, match=message):
                calibrate_gain(layer, arguments[0], spikes_per_neuron=arguments[1])
            assert torch.equal(layer.norm_weight, torch.ones(4)) and not layer._forward_pre_hooks
        with pytest.raises(ValueError, match=r"layer .0. runs twice in the model; one gain cannot suit both"):
            calibrate_gain(nn.Sequential(layer, layer), inputs, spikes_per_neuron=0.1)
