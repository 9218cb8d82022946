"""The modules: constants, state, weights and their normalisation, checkpoints, the first gain."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from srm_triton import (
    BatchNorm1d,
    SpikeAvgPool2d,
    SRMAffine,
    SRMConv1d,
    SRMConv2d,
    SRMConv3d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMRecurrent,
    SRMState,
    srm_conv2d,
    srm_linear,
    srm_scan,
)

OTHER = SRMParameters(tau_m=8.0, threshold=0.7)


def fresh(module: nn.Module) -> nn.Module:
    """A copy with other starting values."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module


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
        torch.testing.assert_close(rows.std(1), layer.norm_weight.detach(), atol=1e-3, rtol=0)
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
    expected_names = {"weight"} | ({"norm_weight", "norm_bias"} if weight_norm else set())
    assert set(dict(linear.named_parameters())) == expected_names

    convolution = SRMConv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, **options)
    images = torch.rand(5, 2, 4, 7, 8)
    arguments = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2, "batch_first": False}
    expected = srm_conv2d(images, convolution.effective_weight(), OTHER, **arguments)
    assert torch.equal(convolution(images), expected)
    assert convolution.weight.shape == (6, 2, 3, 2)


# Constants


def test_constants_are_part_of_the_state_dict(tmp_path):
    """A network saved with one time constant does not load, in silence, into one with another."""
    saved = SRMLinear(4, 3, SRMParameters(tau_m=20.0, threshold=torch.tensor([0.5, 1.0, 2.0])))
    torch.save(saved.state_dict(), tmp_path / "layer.pt")
    state = torch.load(tmp_path / "layer.pt", weights_only=True)
    loaded, inputs = SRMLinear(4, 3, SRMParameters(threshold=torch.ones(3))), 5 * torch.rand(2, 9, 4)
    before = loaded(inputs)
    loaded.load_state_dict(state)
    assert torch.equal(loaded(inputs), saved(inputs)) and not torch.equal(before, saved(inputs))
    assert loaded.neuron.srm_parameters == saved.neuron.srm_parameters and loaded.neuron.tau_m == 20
    state["neuron.threshold"] = torch.tensor([1.0, -1.0, 1.0])
    loaded.load_state_dict(state)
    with pytest.raises(ValueError, match=r"threshold must be finite and > 0, got -1\.0 at channel 1"):
        loaded(inputs)


def test_constants_survive_half_precision():
    layer = SRMLinear(4, 3, SRMParameters(tau_m=2.3, tau_s=1.7), learn=("threshold",))
    raw = layer.neuron.raw_threshold
    layer.half()
    assert layer.neuron.raw_threshold is raw  # as an optimizer knows it
    assert layer.weight.dtype == torch.float16 and layer.neuron.raw_threshold.dtype == torch.float32
    assert layer.neuron.tau_m.item() == 2.3 and layer.neuron.gradient_slope_limit.item() == 123456789
    assert layer.double().neuron.raw_threshold.dtype == torch.float64
    spikes = layer.half()(torch.rand(2, 5, 4).half())
    spikes.sum().backward()
    assert spikes.dtype == torch.float16 and layer.neuron.raw_threshold.grad.dtype == torch.float64


@pytest.mark.parametrize("gradient", ["event", "surrogate"])
def test_learned_constants_stay_in_their_range(gradient):
    """However large the steps, in float32 too; and they learn what a loss asks for."""
    torch.manual_seed(0)
    layer = SRMLinear(8, 6, learn=("threshold", "tau_m", "tau_s"), gradient=gradient, output=True)
    assert [tuple(p.shape) for p in layer.neuron.parameters()] == [(6,)] * 3
    for name, value in (("threshold", 1.0), ("tau_m", 5.0), ("tau_s", 3.0)):
        torch.testing.assert_close(getattr(layer.neuron, name), torch.full((6,), value))
    inputs = torch.rand(16, 10, 8) * 2
    rate = layer(inputs).mean().item()
    for target in (0.0, 1.0):
        optimizer = torch.optim.SGD(layer.neuron.parameters(), lr=100.0)
        for _ in range(20):
            optimizer.zero_grad()
            (layer(inputs).mean() - target).square().backward()
            optimizer.step()
            constants = layer.neuron.srm_parameters
            constants.check()
    learned = SRMLinear(8, 6, learn=("threshold",), gradient=gradient, output=True)
    learned.load_state_dict({**learned.state_dict(), "weight": layer.weight.detach()})
    optimizer = torch.optim.Adam(learned.neuron.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        (learned(inputs).mean() - rate / 2).square().backward()
        optimizer.step()
    assert abs(learned(inputs).mean().item() - rate / 2) < rate / 8


def test_learned_constants_that_are_no_numbers():
    layer = SRMLinear(4, 3, learn=("tau_m",))
    with torch.no_grad():
        layer.neuron.raw_tau_m[1] = torch.nan
    with pytest.raises(ValueError, match="tau_m must be > 1, got nan at channel 1"):
        layer(torch.rand(2, 5, 4))
    assert "tau_m=[5.0, nan, 5.0]" in repr(layer) and "tau_m=meta" in repr(SRMLinear(4, 3, device="meta"))


@pytest.mark.parametrize(
    "make", [SRMNeuron, lambda **o: SRMLinear(4, 3, **o), lambda **o: SRMAffine(nn.Linear(4, 3), **o)]
)
def test_what_cannot_be_learned(make):
    options = {"channels": 3} if make is SRMNeuron else {}
    for learn, error, message in (
        (("tau_g",), ValueError, r"learn must be one of \('threshold', 'tau_m', 'tau_s'\), got 'tau_g'"),
        ("tau_m", TypeError, "learn must be a tuple of names such as .* got 'tau_m'"),
        (True, TypeError, "learn must be a tuple of names such as .* got True"),
    ):
        with pytest.raises(error, match=message):
            make(learn=learn, **options)
    with pytest.raises(ValueError, match="tau_s must lie inside of its range to be learned, above 1 and finite, got 1"):
        make(parameters=SRMParameters(tau_s=1.0), learn=("tau_s",), **options)
    with pytest.raises(ValueError, match="threshold must hold one value or one for each of 3 channels, got 2"):
        make(parameters=SRMParameters(threshold=torch.ones(2)), **options)
    with pytest.raises(ValueError, match=r"threshold must not require a gradient.*; pass learn=\('threshold',\)"):
        make(parameters=SRMParameters(threshold=torch.ones(3, requires_grad=True)), **options)
    with pytest.raises(ValueError, match="channels must be given to learn tau_m, a value for each"):
        SRMAffine(nn.Sequential(nn.Linear(4, 3)), learn=("tau_m",))


def test_constants_can_be_set_and_reset():
    layer = SRMLinear(4, 3, SRMParameters(tau_m=7.0), learn=("threshold",))
    layer.neuron.threshold, layer.neuron.tau_m = 0.5, 9
    torch.testing.assert_close(layer.neuron.threshold, torch.full((3,), 0.5))
    assert layer.neuron.srm_parameters.tau_m == 9 and layer.neuron.raw_threshold.requires_grad
    layer.neuron.threshold = torch.tensor([0.5, 1.0, 2.0])
    layer(torch.rand(2, 5, 4) * 9).sum().backward()
    assert layer.neuron.raw_threshold.grad.any()
    with pytest.raises(ValueError, match="threshold must hold one value or one for each of 3 channels, got 4"):
        layer.neuron.threshold = torch.ones(4)
    with pytest.raises(TypeError, match=r"tau_m must be a number or a tensor, got a Parameter; .* learn=\('tau_m',\)"):
        layer.neuron.tau_m = nn.Parameter(torch.ones(()))
    layer.neuron.tau_m = torch.tensor(9.0)
    assert layer.state_dict()["neuron.tau_m"].dtype == torch.float64
    for value, error in ((-1.0, ValueError), (torch.nan, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="threshold must"):
            layer.neuron.threshold = value
    layer.reset_parameters()
    assert layer.neuron.srm_parameters == SRMParameters(tau_m=7.0, threshold=torch.ones(3))
    empty = SRMRecurrent(4, 3, SRMParameters(tau_m=7.0), device="meta", learn=("tau_s",)).to_empty(device="cpu")
    empty.reset_parameters()
    assert empty.neuron.tau_m == 7 and empty(torch.rand(2, 5, 4)).isfinite().all()


def test_copies_and_moves_keep_their_own_constants():
    layer = SRMLinear(4, 3)
    layer(torch.rand(1, 5, 4))
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        copied.neuron.threshold.fill_(0.1)
        inputs = torch.rand(2, 9, 4)
        assert not torch.equal(copied(inputs), layer(inputs))
        assert torch.equal(copied.to(torch.float64)(inputs.double()).float(), copied.float()(inputs))


# State


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (SRMLinear(6, 4, output=False), (6,)),
        (SRMConv1d(2, 4, 3, padding=1), (2, 7)),
        (SRMConv3d(1, 4, 2), (1, 3, 4, 3)),
        (SRMAffine(nn.ConvTranspose2d(2, 3, 2)), (2, 3, 4)),
        (SRMRecurrent(6, 5), (6,)),
        (SRMRecurrent(6, 5, gradient="surrogate", weight_norm=False, bias=True), (6,)),
        (SRMNeuron(), (5,)),
    ],
)
def test_layers_hand_their_state_on(layer, shape):
    """A sequence in pieces, down to single steps, is the whole; gradients of the parameters too."""
    torch.manual_seed(0)
    layer = fresh(layer).double()
    inputs = (6 * torch.rand(3, 8, *shape, dtype=torch.float64)).requires_grad_()
    results = []
    for lengths in ([8], [1, 3, 4], [1] * 8):
        state, spikes = None, []
        for part in inputs.split(lengths, 1):
            out, state = layer(part, state, return_state=True)
            spikes.append(out)
        spikes = torch.cat(spikes, 1)
        grad = torch.linspace(-1, 1, spikes.numel(), dtype=torch.float64).view(spikes.shape)
        results.append([spikes, *torch.autograd.grad((spikes * grad).sum(), [inputs, *layer.parameters()])])
    assert results[0][0].any() and all(gradient.any() for gradient in results[0])
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        for gradient, expected in zip(result[1:], results[0][1:], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


# Weights


def test_pruned_weights_stay_zero_in_what_is_applied():
    """And in training, with a normalisation that would move them."""
    torch.manual_seed(0)
    layers = [SRMLinear(8, 4), SRMConv2d(2, 4, 3), SRMLinear(8, 4, weight_norm=False), SRMAffine(nn.Linear(8, 4))]
    for layer, inputs in zip(layers, [torch.rand(2, 9, 8), torch.rand(2, 9, 2, 4, 4), *[torch.rand(2, 9, 8)] * 2]):  # noqa: B905
        inputs = inputs * 3
        owner = layer.affine if isinstance(layer, SRMAffine) else layer
        prune.l1_unstructured(owner, "weight", 0.5)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(3):
            layer(inputs).sum().backward()
            optimizer.step()
        layer(inputs)
        applied = owner.weight if owner is not layer else layer.effective_weight()
        assert (applied[owner.weight_mask == 0] == 0).all() and applied[owner.weight_mask == 1].all()
        assert owner.weight_orig.grad[owner.weight_mask == 1].any()
        applied = applied.detach().clone()
        prune.remove(owner, "weight")  # which makes it permanent
        assert torch.equal(owner.weight if owner is not layer else layer.effective_weight(), applied)


def test_parametrized_weights_of_torch():
    layer = SRMLinear(8, 4, weight_norm=False)
    nn.utils.parametrizations.spectral_norm(layer)
    layer(torch.rand(2, 9, 8) * 5).sum().backward()
    assert layer.parametrizations.weight.original.grad.any()


@pytest.mark.parametrize(("fan_in", "normalised"), [(1, False), (2, False), (3, True)])
def test_a_small_fan_in_has_a_default(fan_in, normalised):
    """Of one or two weights the normalisation would leave nothing to learn but the gain."""
    torch.manual_seed(0)
    for layer in (SRMLinear(fan_in, 400), SRMConv1d(1, 400, fan_in), SRMRecurrent(fan_in, 400)):
        assert (layer.norm_weight is not None) == normalised
        assert 0.8 < layer.effective_weight().std() < 1.2  # the scale is the same in either case
    layer = SRMLinear(fan_in, 30, output=True)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    inputs = 2 * torch.rand(64, 1, fan_in).expand(-1, 10, -1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (layer(inputs).mean(1) - inputs[:, 0, :1] / 6).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# Convolutions


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
    tolerance = 20 * torch.finfo(dtype).eps
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    if arguments.get("affine", True):
        with torch.no_grad():
            theirs.weight.uniform_(0.5, 2)
            theirs.bias.normal_()
    assert ours.load_state_dict(theirs.state_dict(), strict=True)
    for training in (True, True, False):
        inputs = (3 * torch.randn(shape, dtype=dtype) + 2).requires_grad_()
        copied = inputs.detach().clone().requires_grad_()
        result, expected = ours.train(training)(inputs), theirs.train(training)(copied)
        close(result, expected)
        grad = torch.randn_like(result)
        result.backward(grad)
        expected.backward(grad)
        close(inputs.grad, copied.grad)
    for name, value in theirs.state_dict().items():
        close(ours.state_dict()[name], value)
    for result, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(result.grad, expected.grad)
    assert theirs.load_state_dict(ours.state_dict(), strict=True)


def test_batch_norm_of_nothing_and_layout():
    for arguments in ({}, {"track_running_stats": False}):
        for shape in ((0, 4), (0, 4, 5), (3, 4, 0)):
            assert BatchNorm1d(4, **arguments)(torch.ones(shape)).shape == shape
    assert BatchNorm1d(5)(torch.randn(4, 5, 7)).is_contiguous()
    with pytest.raises(ValueError, match=r"more than one value per feature for a variance, got the shape \[1, 4\]"):
        BatchNorm1d(4, track_running_stats=False).eval()(torch.ones(1, 4))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]
)
def test_layers_in_other_precisions(dtype, tolerance):
    for layer, inputs in (
        (SRMLinear(8, 4, dtype=dtype), torch.rand(2, 5, 8, dtype=dtype)),
        (SRMConv2d(2, 4, 3, dtype=dtype), torch.rand(2, 5, 2, 4, 4, dtype=dtype)),
    ):
        spikes = layer(inputs)
        spikes.sum().backward()
        assert spikes.dtype == layer.weight.dtype == layer.weight.grad.dtype == dtype
        rows = layer.weight.detach().flatten(1).double()
        torch.testing.assert_close(rows @ rows.t(), torch.eye(4, dtype=torch.float64), rtol=0, atol=tolerance)


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


class TestBadInput:
    def test_layers(self):
        cases = [
            (lambda: SRMLinear(0, 3), "in_features must be finite and ≥ 1, got 0"),
            (lambda: SRMLinear(1, 3, weight_norm=True), "weight_norm=True needs a fan-in of at least 2, got 1"),
            (lambda: SRMRecurrent(4, 3, output=True), "output must be False for SRMRecurrent, got True"),
            (
                lambda: SRMConv2d(2, 3, 3)(torch.ones(2, 5, 4, 6, 6)),
                r"inputs must have 2 entries on axis 2 \(in_channels\)",
            ),
            (lambda: SRMNeuron(output=2), "output must be one of .* got 2"),
            (lambda: SRMLinear(4, 3, batch_first="x"), "batch_first must be one of .* got 'x'"),
            (lambda: SRMLinear(4, 3, weight_norm="no"), "weight_norm must be one of .* got 'no'"),
            (lambda: SpikeAvgPool2d(2, gradient="none"), "gradient must be one of .* got 'none'"),
            (lambda: SRMLinear(2, 3, time_gradient_scale=-1), "time_gradient_scale must be finite and ≥ 0, got -1"),
            (lambda: SRMLinear(2, 3, eps=0.0), "eps must be finite and > 0, got 0.0"),
            (lambda: SRMConv2d(4, 6, 3, groups=4), "out_channels must be divisible by groups"),
            (lambda: SRMConv2d(4, 6, 3, padding="full"), r"padding must be one of \('same', 'valid'\), got 'full'"),
            (lambda: SRMConv2d(4, 6, 3, padding="same", stride=2), "padding='same' is not supported for strided"),
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
            (
                lambda: SRMConv2d(1, 1, (3, 3, 3)),
                TypeError,
                r"kernel_size must be an int or a tuple .* got \(3, 3, 3\)",
            ),
            (lambda: SRMConv2d(1, 1, 3, dilation=1.5), TypeError, "dilation must be an int or a tuple"),
            (lambda: SpikeAvgPool2d((2, "2")), TypeError, "kernel_size must be an int, got '2' of type str"),
            (lambda: SRMLinear(2, 2, eps="a"), TypeError, "eps must be a number, got 'a' of type str"),
            (
                lambda: SRMLinear(4, 3, tau_m=4.0),
                TypeError,
                "unexpected keyword argument 'tau_m'; rules are .* constants",
            ),
            (lambda: SRMLinear(4, 3)(torch.ones(1, 2, 4).double()), TypeError, "inputs must have the dtype of weight"),
            (
                lambda: SRMAffine(nn.Linear(4, 3).bfloat16())(torch.ones(1, 2, 4).half()),
                TypeError,
                "inputs must have the dtype of",
            ),
            (
                lambda: srm_linear(torch.ones(1, 2, 4), torch.ones(3, 4), bias=torch.ones(2)),
                ValueError,
                "bias must have 3",
            ),
            (lambda: SRMLinear(4.0, 3), TypeError, "in_features must be an int, got 4.0 of type float"),
            (lambda: SRMConv2d(1, 2, "3"), TypeError, "kernel_size must be an int or a tuple of them .* got '3'"),
            (lambda: SRMConv2d(1, True, 3), TypeError, "out_channels must be an int, got True of type bool"),
            (
                lambda: SRMRecurrent(2, 3)(torch.ones(1, 2, 2), SRMState(*[torch.zeros(1, 3)] * 3)),
                TypeError,
                "state must be an SRMRecurrentState or None, got SRMState",
            ),
        ]
        for call, error, message in cases:
            with pytest.raises(error, match=message):
                call()

    def test_parameters(self):
        for layer in (SRMNeuron, lambda p: SRMLinear(2, 2, p), lambda p: SRMConv2d(1, 1, 2, parameters=p)):
            with pytest.raises(TypeError, match="parameters must be SRMParameters or None, got float"):
                layer(5.0)
