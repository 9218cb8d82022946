"""Affine map and neurons together: both gradient paths, the label spike, compiler, exporter and autocast."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srm_triton import (
    LabelledSpikes,
    SRMConv2d,
    SRMLinear,
    SRMParameters,
    reverse_gradient,
    srm_conv2d,
    srm_linear,
    srm_scan,
    srm_trace,
    use_backend,
)
from srm_triton.ops.srm_scan import scan_backward, scan_forward

DEFAULT = SRMParameters()


def two_paths(current: Tensor, grad: Tensor, time_axis: int = 1) -> tuple[Tensor, Tensor]:
    _, states = scan_forward(current, DEFAULT, time_axis, keep_states=True)
    return scan_backward(grad, current, states, None, DEFAULT, time_axis, True, True, "reference")


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_linear_gradients(batch_first, backend, device):
    torch.manual_seed(0)
    inputs = torch.rand(4, 6, 5, dtype=torch.float64, device=device, requires_grad=True)
    weight = (0.5 + torch.randn(3, 5, dtype=torch.float64, device=device)).requires_grad_()
    with use_backend(backend):
        spikes = srm_linear(inputs, weight, time_gradient_scale=0.5, batch_first=batch_first)
    current = torch.einsum("oi,abi->abo", weight, inputs).detach()
    assert torch.equal(spikes, srm_scan(current, batch_first=batch_first))
    assert 0.05 < spikes.mean() < 0.6
    grad = torch.randn_like(spikes)
    spikes.backward(grad)
    weight_path, time_path = two_paths(current, grad, 1 if batch_first else 0)
    torch.testing.assert_close(weight.grad, torch.einsum("abo,abi->oi", weight_path, inputs), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        inputs.grad, 0.5 * torch.einsum("oi,abo->abi", weight, time_path), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((1, 1), (0, 0), (1, 1), 1), ((2, 1), (1, 2), (1, 1), 2), ((1, 2), (3, 0), (2, 1), 1)],
)
def test_convolution_gradients(stride, padding, dilation, groups, batch_first, device):
    options = (None, stride, padding, dilation, groups)
    inputs = torch.rand(2, 5, 4, 8, 7, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(6, 4 // groups, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    spikes = srm_conv2d(inputs, weight, **arguments, batch_first=batch_first)
    images = inputs.detach().flatten(0, 1).requires_grad_()
    kernel = weight.detach().clone().requires_grad_()
    current = F.conv2d(images, kernel, *options)
    stacked = current.detach().unflatten(0, (2, 5))
    assert torch.equal(spikes, srm_scan(stacked, batch_first=batch_first))
    grad = torch.randn_like(spikes)
    spikes.backward(grad)
    weight_path, time_path = two_paths(stacked, grad, 1 if batch_first else 0)
    (expected_weight,) = torch.autograd.grad(current, kernel, weight_path.flatten(0, 1), retain_graph=True)
    (expected_inputs,) = torch.autograd.grad(current, images, time_path.flatten(0, 1))
    torch.testing.assert_close(weight.grad, expected_weight, rtol=1e-12, atol=1e-12)
    expected = 0.85 * expected_inputs.unflatten(0, (2, 5)) * inputs
    torch.testing.assert_close(inputs.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_label_spike(batch_first, backend, device):
    torch.manual_seed(0)
    inputs = torch.rand(8, 12, 6, dtype=torch.float64, device=device)
    weight = (0.4 * torch.randn(4, 6, dtype=torch.float64, device=device)).requires_grad_()
    labels = torch.arange(8, device=device) % 4
    arranged = inputs if batch_first else inputs.transpose(0, 1)
    with use_backend(backend):
        result = srm_linear(arranged, weight, labels=labels, batch_first=batch_first)
    assert isinstance(result, LabelledSpikes) and not result.spikes.requires_grad
    time_axis = 1 if batch_first else 0
    spikes, training_spikes = (s.movedim(time_axis, 1) for s in result)
    current = (inputs @ weight.t()).detach()
    assert torch.equal(spikes, srm_scan(current))

    expected, label_steps = spikes.clone(), torch.full((8, 4), -1, dtype=torch.int32, device=device)
    change = srm_trace(current).membrane_change
    for sample, label in enumerate(labels.tolist()):
        rising = (change[sample, :, label] > 0.05).nonzero()
        if len(rising):
            expected[sample, rising[-1], label] = 1
            label_steps[sample, label] = rising[-1]
    assert torch.equal(training_spikes, expected)
    assert 0 < (expected - spikes).sum() < 8  # some are added, some fall on a spike or find no rise

    grad = torch.randn_like(expected)
    result.training_spikes.backward(grad.movedim(1, time_axis))
    states = current.new_empty(0)
    path, _ = scan_backward(grad, current, states, label_steps, DEFAULT, 1, True, False, "reference")
    torch.testing.assert_close(weight.grad, torch.einsum("bto,bti->oi", path, inputs), rtol=1e-12, atol=1e-12)


def test_a_silent_labelled_neuron_learns_only_by_the_label_spike(device):
    inputs = torch.ones(1, 8, 2, device=device)
    for labels, learns in ((None, False), (torch.tensor([0], device=device), True)):
        weight = torch.full((1, 2), 0.1, device=device, requires_grad=True)
        result = srm_linear(inputs, weight, labels=labels)
        spikes = result if labels is None else result.training_spikes
        loss = (reverse_gradient(spikes).sum() - 2) ** 2
        loss.backward()
        assert bool((weight.grad < 0).all()) == learns  # descent makes the weights larger


def count_operations(function, inputs: Tensor, weight: Tensor, batch_first: bool) -> tuple[int, Tensor, Tensor]:
    """Multiplications and additions of forward and backward, with the spikes and the weight's gradient."""
    weight.grad = None
    with FlopCounterMode(display=False) as counter:
        spikes = function(inputs, weight, batch_first=batch_first)
        spikes.backward(torch.linspace(-1, 1, spikes.numel(), dtype=spikes.dtype).view(spikes.shape).to(spikes.device))
    return counter.get_total_flops(), spikes.detach(), weight.grad


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("function", "features", "weight_shape"), [(srm_linear, (6,), (5, 6)), (srm_conv2d, (2, 6, 6), (3, 2, 3, 3))]
)
def test_inputs_that_repeat_are_mapped_once(function, features, weight_shape, batch_first, device):
    torch.manual_seed(0)
    steps, time_axis = 7, 1 if batch_first else 0
    image = torch.rand(4, *features, dtype=torch.float64, device=device)
    weight = (torch.rand(weight_shape, dtype=torch.float64, device=device) - 0.2).requires_grad_()
    repeated = image.unsqueeze(time_axis).expand(*([4, steps] if batch_first else [steps, 4]), *features)
    dense = repeated.contiguous()
    costs, spikes, grad_weight = count_operations(function, repeated, weight, batch_first)
    dense_costs, dense_spikes, dense_grad_weight = count_operations(function, dense, weight, batch_first)
    assert dense_costs == steps * costs > 0
    assert torch.equal(spikes, dense_spikes) and 0.05 < spikes.mean() < 0.95
    torch.testing.assert_close(grad_weight, dense_grad_weight, rtol=1e-12, atol=1e-12)

    # each step still has its own gradient, where one is asked for
    for inputs in (leaves := [repeated.detach().requires_grad_(), dense.requires_grad_()]):
        count_operations(function, inputs, weight, batch_first)
    assert leaves[0].stride(time_axis) == 0
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-12, atol=1e-12)


def test_what_a_layer_keeps_of_inputs_that_repeat(device):
    """One current for all steps, whatever the precision; the rest is the inputs' and the weight's own memory."""
    weight = torch.rand(5, 6, device=device, requires_grad=True)
    inputs = torch.rand(4, 1, 6, device=device).expand(4, 9, 6)
    saved: list[Tensor] = []
    for dtype in (None, torch.bfloat16):
        saved.clear()
        with (
            torch.autocast(device.type, dtype, enabled=dtype is not None),
            torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
        ):
            srm_linear(inputs, weight)
        new = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        for known in (inputs, weight):
            new.pop(known.untyped_storage().data_ptr(), None)
        current = 4 * 5 * (4 if dtype is None else 2)
        converted = 0 if dtype is None else 2 * (4 * 6 + 5 * 6)
        assert sum(new.values()) == current + converted


def test_a_label_spike_keeps_a_step_for_each_neuron(device):
    weight = torch.rand(5, 6, device=device, requires_grad=True)
    inputs, labels = torch.rand(4, 9, 6, device=device), torch.tensor([0, 1, 2, 4], device=device)
    kept = []
    for some_labels in (None, labels):
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            srm_linear(inputs, weight, labels=some_labels)
        kept.append(sum(tensor.nbytes for tensor in saved))
    assert kept[1] - kept[0] == 4 * 4 * 5


def test_autocast_keeps_the_gradient_of_each_step(device):
    weight = torch.rand(5, 6, device=device)
    inputs = torch.rand(4, 1, 6, device=device).expand(4, 9, 6).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        spikes = srm_linear(inputs, weight)
    spikes.sum().backward()
    assert (inputs.grad[:, :-1] != inputs.grad[:, 1:]).any() and inputs.grad[:, 1:].any()


def test_inputs_without_gradient_cost_no_time_path(device, monkeypatch):
    from srm_triton.ops import spiking_affine

    asked = []
    original = spiking_affine.scan_backward
    monkeypatch.setattr(spiking_affine, "scan_backward", lambda *a: asked.append(a[6:8]) or original(*a))
    for inputs_need, weight_needs in ((False, True), (True, False), (True, True)):
        inputs = torch.rand(1, 3, 2, device=device, requires_grad=inputs_need)
        weight = torch.rand(2, 2, device=device, requires_grad=weight_needs)
        srm_linear(inputs, weight).sum().backward()
    assert asked == [(True, False), (False, True), (True, True)]


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = nn.Sequential(SRMConv2d(1, 4, 3, padding="same"), nn.Flatten(2), SRMLinear(4 * 16, 8))
    return nn.Sequential(hidden, SRMLinear(8, 3))


def train(model: nn.Module, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        inputs = torch.rand(4, 6, 1, 4, 4, generator=generator)
        loss = (reverse_gradient(model(inputs)).sum(1) - 2).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_model_trains_like_the_eager_one():
    model = small_model()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(train(compiled, 5), train(model, 5), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_layer_returns_labelled_spikes_and_follows_the_backend():
    layer = SRMLinear(5, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs, labels = torch.rand(4, 7, 5), torch.tensor([0, 1, 2, 0])
    expected = layer(inputs, labels)
    for backend in ("auto", "triton", "auto"):
        with use_backend(backend):
            result = compiled(inputs, labels)
        assert torch.equal(result.spikes, expected.spikes)
        assert torch.equal(result.training_spikes, expected.training_spikes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("repeats", [False, True])
def test_export_with_dynamic_batch_and_time(repeats, strict, backend):
    model = small_model().eval()
    example = torch.rand(4, 1, 1, 4, 4).expand(4, 6, 1, 4, 4) if repeats else torch.rand(4, 6, 1, 4, 4)
    batch, steps = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("steps", min=2, max=512)
    with use_backend(backend):
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch, 1: steps},), strict=strict)
    for shape in ((1, 9), (7, 40)):
        inputs = torch.rand(*shape, 1, 4, 4)
        assert torch.equal(program.module()(inputs), model(inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    layer = SRMLinear(16, 8).to(device)
    inputs = torch.rand(4, 7, 16, device=device, requires_grad=True)
    with torch.autocast(device.type, dtype=dtype):
        spikes = layer(inputs)
    assert spikes.dtype == dtype
    with torch.no_grad():
        expected = srm_linear(inputs.to(dtype), layer.effective_weight().to(dtype))
    assert torch.equal(spikes, expected)
    spikes.float().sum().backward()
    assert layer.weight.grad.dtype == inputs.grad.dtype == torch.float32
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.count_nonzero()


class TestBadInput:
    def test_linear(self):
        weight = torch.ones(3, 4)
        cases = [
            ((torch.ones(2, 4), weight), ValueError, r"inputs must have the shape \[batch, time, in_features\]"),
            ((torch.ones(2, 3, 5), weight), ValueError, "inputs must have 4 entries on axis 2 .* got .2, 3, 5."),
            ((torch.ones(2, 3, 4).double(), weight), TypeError, "weight must have the dtype of inputs|inputs must"),
            ((torch.ones(2, 3, 4, dtype=torch.int32), weight), TypeError, "inputs must have one of the dtypes"),
            ((torch.ones(2, 3, 4), torch.ones(3)), ValueError, "weight must have the shape"),
        ]
        for arguments, error, message in cases:
            with pytest.raises(error, match=message):
                srm_linear(*arguments)

    def test_convolution(self):
        with pytest.raises(ValueError, match=r"inputs must have the shape \[batch, time, in_channels, height, width\]"):
            srm_conv2d(torch.ones(2, 3, 4, 4), torch.ones(1, 3, 2, 2))
        with pytest.raises(ValueError, match="inputs must have 4 entries on axis 2"):
            srm_conv2d(torch.ones(2, 3, 3, 4, 4), torch.ones(2, 2, 2, 2), groups=2)

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            (torch.tensor([0.0, 1.0]), TypeError, "labels must be an int64 tensor, got torch.float32"),
            ([0, 1], TypeError, "labels must be an int64 tensor, got list"),
            (torch.tensor([0]), ValueError, r"labels must have the shape \[batch\], here \[2\], got \[1\]"),
            (torch.tensor([0, 3]), ValueError, "labels must lie in 0 … 2, got values from 0 to 3"),
            (torch.tensor([-1, 0]), ValueError, "got values from -1 to 0"),
        ],
    )
    def test_labels(self, labels, error, message):
        with pytest.raises(error, match=message):
            srm_linear(torch.ones(2, 5, 4), torch.ones(3, 4), labels=labels)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_channels_last_convolution_with_rearranged_saved_tensors(backend, device):
    """Hooks such as save_on_cpu change strides; beyond a chunk of time the kernels also save states."""
    torch.manual_seed(0)
    images = torch.rand(2, 35, 3, 6, 6, dtype=torch.float64, device=device)
    images = images.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, 35))
    weight = (torch.randn(4, 3, 3, 3, dtype=torch.float64, device=device) / 3 + 0.1).requires_grad_()
    gradients = []
    for hook in (lambda t: t, lambda t: t.contiguous()):
        with use_backend(backend), torch.autograd.graph.saved_tensors_hooks(hook, lambda t: t):
            spikes = srm_conv2d(images, weight)
        gradients += torch.autograd.grad(
            (spikes * torch.linspace(0, 1, 35, device=device)[:, None, None, None]).sum(), weight
        )
    with use_backend("reference"):
        expected = srm_conv2d(images.contiguous(), weight)
    assert torch.equal(spikes, expected) and 0.05 < spikes.mean() < 0.5
    weights = torch.linspace(0, 1, 35, device=device)[:, None, None, None]
    (reference,) = torch.autograd.grad((expected * weights).sum(), weight)
    for gradient in gradients:
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)


def test_second_derivatives_are_refused(device):
    inputs = torch.rand(2, 5, 3, device=device, requires_grad=True)
    weight = torch.rand(2, 3, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(srm_linear(inputs, weight).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="spiking layers cannot be differentiated twice"):
        first.square().sum().backward()


def test_empty_batches_pass_through():
    for shape in ((0, 5, 4), (2, 0, 4)):
        inputs = torch.ones(shape, requires_grad=True)
        weight = torch.ones(3, 4, requires_grad=True)
        srm_linear(inputs, weight).sum().backward()
        assert torch.equal(weight.grad, torch.zeros(3, 4)) and inputs.grad.shape == shape
    labels = torch.zeros(2, dtype=torch.int64)
    assert srm_linear(torch.ones(2, 0, 4), torch.ones(3, 4), labels=labels).training_spikes.shape == (2, 0, 3)
    labels = labels[:0]
    assert srm_linear(torch.ones(0, 5, 4), torch.ones(3, 4), labels=labels).training_spikes.shape == (0, 5, 3)
