"""Affine map and neurons together: both gradient paths, any module, repeated inputs, compiler, exporter, autocast."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from test_layers import fresh
from test_srm_scan import random, run
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from srm_triton import (
    SpikeAvgPool2d,
    SRMAffine,
    SRMConv1d,
    SRMConv2d,
    SRMConv3d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMRecurrent,
    srm_conv2d,
    srm_linear,
    srm_scan,
    use_backend,
)

ignores_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("output", [True, False])
def test_linear_gradients(output, batch_first, backend, device):
    inputs = random(4, 6, 5, shift=0.3).abs().to(device).requires_grad_()
    weight, bias = ((random(*shape) / 2 + 0.2).to(device).requires_grad_() for shape in ((3, 5), (3,)))
    with use_backend(backend):
        options = {"output": output, "time_gradient_scale": 0.5, "batch_first": batch_first}
        spikes = srm_linear(inputs, weight, bias=bias, **options)
    current = (torch.einsum("oi,abi->abo", weight, inputs) + bias).detach()
    grad = random(*spikes.shape, seed=3).to(device)
    spikes.backward(grad)
    axis = 1 if batch_first else 0
    expected, weight_path, time_path = run(current, grad, backend="reference", output=output, time_axis=axis)
    assert torch.equal(spikes, expected) and 0.05 < spikes.mean() < 0.6
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(weight.grad, torch.einsum("abo,abi->oi", weight_path, inputs))
    close(bias.grad, weight_path.sum((0, 1)))
    close(inputs.grad, 0.5 * torch.einsum("oi,abo->abi", weight, time_path))


def network(module: nn.Module, **options) -> nn.Module:
    return SRMAffine(module.double(), **options)


MODULES = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "convolution": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), groups=2), (4, 8, 7)),
    "dilated, 1-d": (lambda: nn.Conv1d(4, 3, 3, dilation=2, padding="same", padding_mode="circular"), (4, 9)),
    "3-d": (lambda: nn.Conv3d(1, 3, 2, padding="same"), (1, 4, 3, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (2, 3, 4)),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
    "several": (lambda: nn.Sequential(nn.Flatten(1), nn.Linear(6, 5), nn.Linear(5, 3)), (2, 3)),
    "convolution in a container": (lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 3, 3)), (2, 4, 4)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", MODULES)
def test_any_affine_module(name, device):
    """Its parameters receive what the weight path gives an ordinary layer, its inputs the transposed time path."""
    torch.manual_seed(0)
    make, shape = MODULES[name]
    layer = network(make(), time_gradient_scale=0.7).to(device)
    inputs = (random(2, 5, *shape) > 0).double().mul_(8).to(device).requires_grad_()
    spikes = layer(inputs)
    samples = inputs.detach().flatten(0, 1).requires_grad_()
    mapped = layer.affine(samples)
    current = mapped.detach().unflatten(0, (2, 5))
    grad = random(*spikes.shape).to(device)
    expected, weight_path, time_path = run(current, grad)
    assert torch.equal(spikes, expected) and 0.01 < spikes.mean() < 0.9
    spikes.backward(grad)
    parameters = list(layer.affine.parameters())
    gradients = torch.autograd.grad(mapped, parameters, weight_path.flatten(0, 1), retain_graph=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)
    (of_inputs,) = torch.autograd.grad(mapped, samples, time_path.flatten(0, 1))
    if name not in ("linear", "parametrized", "several"):
        of_inputs = of_inputs * samples
    torch.testing.assert_close(inputs.grad, 0.7 * of_inputs.unflatten(0, (2, 5)), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("ours", "theirs", "arguments", "shape"),
    [
        (SRMLinear, nn.Linear, {"in_features": 4, "out_features": 3}, (4,)),
        (SRMConv1d, nn.Conv1d, {"in_channels": 2, "out_channels": 3, "kernel_size": 4, "padding": "same"}, (2, 9)),
        (
            SRMConv2d,
            nn.Conv2d,
            {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": 2, "padding": (1, 0), "groups": 2},
            (4, 6, 7),
        ),
        (
            SRMConv2d,
            nn.Conv2d,
            {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
            (2, 6, 7),
        ),
        (SRMConv2d, nn.Conv2d, {"in_channels": 2, "out_channels": 3, "kernel_size": 2, "padding": "same"}, (2, 5, 5)),
        (SRMConv3d, nn.Conv3d, {"in_channels": 1, "out_channels": 2, "kernel_size": 2, "dilation": 2}, (1, 4, 5, 6)),
    ],
)
def test_layers_are_wrapped_modules(ours, theirs, arguments, shape, device):
    torch.manual_seed(0)
    layer = ours(**arguments, weight_norm=False, bias=True, dtype=torch.float64).to(device)
    wrapped = network(theirs(**arguments)).to(device)
    with torch.no_grad():
        layer.bias.uniform_(0, 0.2)
        layer.weight.mul_(2)
    state = {f"affine.{name}": value for name, value in layer.state_dict().items() if "neuron" not in name}
    wrapped.load_state_dict(state, strict=False)
    inputs = [random(2, 7, *shape, shift=0.5).to(device).requires_grad_() for _ in range(2)]
    results = [module(x) for module, x in zip((layer, wrapped), inputs, strict=True)]
    assert torch.equal(*results) and 0.02 < results[0].mean() < 0.9
    grad = random(*results[0].shape).to(device)
    for result in results:
        result.backward(grad)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.weight.grad, wrapped.affine.weight.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.bias.grad, wrapped.affine.bias.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"input_gradient": "value"}, {"gradient": "surrogate"}])
def test_inputs_that_are_values_receive_the_derivative(options, device):
    """As an ordinary module before neurons alone hands it back: undamped, of the weight path, by inputs of 0 too."""
    torch.manual_seed(0)
    layer = SRMConv2d(2, 3, 3, weight_norm=False, dtype=torch.float64, **options).to(device)
    inputs = [random(2, 6, 2, 5, 5, shift=0.5).clamp(min=0).to(device).requires_grad_() for _ in range(2)]
    neurons = SRMNeuron(gradient=options.get("gradient", "event")).to(device)
    current = F.conv2d(inputs[1].flatten(0, 1), layer.weight).unflatten(0, (2, 6))
    results = [layer(inputs[0]), neurons(current)]
    grad = random(*results[0].shape).to(device)
    gradients = [torch.autograd.grad(r, [x, layer.weight], grad) for r, x in zip(results, inputs, strict=True)]
    for result, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert gradients[0][0][inputs[0] == 0].any()


def test_an_ordinary_encoder_before_and_a_decoder_behind_train_downhill(device):
    """Any loss on spikes does: of a small step along the gradients, the sign of the change is that of descent."""
    torch.manual_seed(0)
    encoder, hidden = nn.Linear(6, 12), SRMLinear(12, 32, input_gradient="value")
    output, decoder = SRMLinear(32, 16, output=True), nn.Linear(16, 3)
    model = nn.ModuleList([encoder, hidden, output, decoder]).to(device)
    inputs, labels = torch.rand(60, 6, device=device), torch.arange(60, device=device) % 3
    inputs[torch.arange(60), labels] += 1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        encoded = encoder(inputs)[:, None].expand(-1, 10, -1)
        loss = F.cross_entropy(decoder(output(hidden(encoded)).mean(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_events_of_integer_types_are_inputs_without_gradient():
    torch.manual_seed(0)
    early = SRMParameters(threshold=0.1)
    layers = SRMLinear(6, 9), SRMConv2d(2, 3, 2), SRMAffine(nn.Linear(6, 9), early), SRMAffine(nn.Identity(), early)
    for layer, shape in zip(layers, ((6,), (2, 4, 4), (6,), (6,)), strict=True):
        events = torch.rand(2, 8, *shape) < 0.4
        expected = layer(events.float())
        for dtype in (torch.bool, torch.uint8, torch.int64):
            spikes = layer(events.to(dtype))
            assert torch.equal(spikes, expected) and spikes.any()
        if spikes.requires_grad:
            spikes.sum().backward()
        assert all(p.grad.any() for p in layer.parameters())
    events = torch.rand(2, 3, 4, 6, 6) < 0.4
    assert torch.equal(SpikeAvgPool2d(2)(events), SpikeAvgPool2d(2)(events.float()))


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


def test_each_step_of_inputs_that_repeat_has_its_own_derivative(device):
    weight = torch.rand(5, 6, device=device)
    leaf = torch.rand(4, 1, 6, device=device).expand(4, 9, 6).requires_grad_()
    dense = leaf.detach().contiguous().requires_grad_()
    for options in ({"input_gradient": "value"}, {"gradient": "surrogate"}):
        gradients = [torch.autograd.grad(srm_linear(x, weight, **options).sum(), x)[0] for x in (leaf, dense)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)
        assert gradients[0][:, 1:].any()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_a_layer_keeps(dtype, device):
    """The inputs' and the weight's own memory, and the current: once for all steps where the inputs repeat."""
    weight = torch.rand(5, 6, device=device, requires_grad=True)
    for inputs, times in (
        (torch.rand(4, 1, 6, device=device).expand(4, 9, 6), 1),
        (torch.rand(4, 9, 6, device=device), 9),
    ):
        saved: list[Tensor] = []
        with (
            torch.autocast(device.type, dtype, enabled=dtype is not None),
            torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t),
        ):
            srm_linear(inputs.requires_grad_(times == 9), weight)
        new = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        for known in (inputs, weight):
            new.pop(known.untyped_storage().data_ptr(), None)
        current = 4 * times * 5 * (4 if dtype is None else 2)
        assert sum(new.values()) == current + 8 * 4  # the constants


def test_inputs_without_gradient_cost_no_time_path(device, monkeypatch):
    from srm_triton.ops import srm_scan as operation

    asked = []
    original = operation._scan_backward
    monkeypatch.setattr(operation, "_scan_backward", lambda *a: asked.append(a[-2][:2]) or original(*a))
    for inputs_need, weight_needs in ((False, True), (True, False), (True, True)):
        inputs = torch.rand(1, 3, 2, device=device, requires_grad=inputs_need)
        weight = torch.rand(2, 2, device=device, requires_grad=weight_needs)
        srm_linear(inputs, weight).sum().backward()
    assert asked == [[True, False], [False, True], [True, True]]


# Compiler, exporter, autocast


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = nn.Sequential(SRMConv2d(1, 4, 3, padding="same"), nn.Flatten(2), SRMLinear(4 * 16, 8))
    return nn.Sequential(hidden, SRMLinear(8, 3, learn=("threshold", "tau_m"), output=True))


def train(model: nn.Module, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        inputs = torch.rand(4, 6, 1, 4, 4, generator=generator)
        loss = (model(inputs).sum(1) - 2).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@ignores_warnings
def test_compiled_model_trains_like_the_eager_one():
    model = small_model()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(train(compiled, 5), train(model, 5), rtol=1e-6, atol=0)


@ignores_warnings
@pytest.mark.parametrize("layer", [SRMLinear(4, 5), SRMRecurrent(4, 5), SRMAffine(nn.Linear(4, 5))])
def test_compiled_evaluation_of_inputs_that_require_a_gradient(layer):
    inputs = torch.rand(2, 4, 4, requires_grad=True)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(inputs), layer(inputs))


@ignores_warnings
@pytest.mark.parametrize("way", ["argument", "closure", "buffer", "layers", "number"])
def test_twelve_thresholds_compile_once(way):
    """In whatever way the threshold changes; a Python float is special to the compiler the first time only."""
    torch._dynamo.reset()
    current, thresholds = random(2, 7, 5, shift=0.7), [0.3 + 0.1 * number for number in range(12)]
    layers = [SRMLinear(5, 4, SRMParameters(threshold=threshold), dtype=torch.float64) for threshold in thresholds]
    compiled = torch.compile(lambda x, p: srm_scan(x, p), fullgraph=True, backend="aot_eager")
    by_number = torch.compile(lambda x, t: srm_scan(x, SRMParameters(threshold=t)), fullgraph=True, backend="aot_eager")
    by_closure = torch.compile(lambda x: srm_scan(x, parameters), fullgraph=True, backend="aot_eager")
    layer = torch.compile(layers[0], fullgraph=True, backend="aot_eager")
    for number, threshold in enumerate(thresholds):
        parameters = SRMParameters(threshold=threshold)
        stance = "default" if number < (2 if way == "number" else 1) else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            if way == "argument":
                result, expected = compiled(current.requires_grad_(), parameters), srm_scan(current, parameters)
            elif way == "closure":
                result, expected = by_closure(current), srm_scan(current, parameters)
            elif way == "number":
                result, expected = by_number(current, threshold), srm_scan(current, parameters)
            elif way == "buffer":
                layers[0].neuron.threshold.fill_(threshold)
                result, expected = layer(current), layers[0](current)
            else:
                result = torch.compile(layers[number], fullgraph=True, backend="aot_eager")(current)
                expected = layers[number](current)
        assert torch.equal(result, expected) and expected.any()


@ignores_warnings
@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize(("strict", "repeats"), [(False, True), (True, False)])
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
@pytest.mark.parametrize("layer", [SRMLinear(16, 8), SRMAffine(nn.Linear(16, 8)), SRMConv1d(2, 8, 3)])
def test_autocast(layer, dtype, device):
    torch.manual_seed(0)
    layer = fresh(layer).to(device)
    shape = (4, 7, 2, 8) if isinstance(layer, SRMConv1d) else (4, 7, 16)
    inputs = (4 * torch.rand(shape, device=device)).requires_grad_()
    with torch.autocast(device.type, dtype=dtype):
        spikes = layer(inputs)
    assert spikes.dtype == dtype and spikes.any()
    spikes.float().sum().backward()
    for tensor in (inputs, *layer.parameters()):
        assert tensor.grad.dtype == torch.float32 and tensor.grad.isfinite().all() and tensor.grad.count_nonzero()
    if isinstance(layer, SRMLinear):
        with torch.no_grad():
            expected = srm_linear(inputs.to(dtype), layer.effective_weight().to(dtype))
        assert torch.equal(spikes, expected)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_channels_last_convolution_with_rearranged_saved_tensors(backend, device):
    """Hooks such as save_on_cpu change strides; beyond a chunk of time the kernels also save states."""
    images = random(2, 19, 3, 6, 6).abs().to(device)
    images = images.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, 19))
    weight = (random(4, 3, 3, 3) / 3 + 0.1).to(device).requires_grad_()
    weights = torch.linspace(0, 1, 19, device=device)[:, None, None, None]
    gradients = []
    for hook in (lambda t: t, lambda t: t.contiguous()):
        with use_backend(backend), torch.autograd.graph.saved_tensors_hooks(hook, lambda t: t):
            spikes = srm_conv2d(images, weight)
        gradients += torch.autograd.grad((spikes * weights).sum(), weight)
    with use_backend("reference"):
        expected = srm_conv2d(images.contiguous(), weight)
    assert torch.equal(spikes, expected) and 0.05 < spikes.mean() < 0.5
    (reference,) = torch.autograd.grad((expected * weights).sum(), weight)
    for gradient in gradients:
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)


def test_second_derivatives_are_refused(device):
    inputs = torch.rand(2, 5, 3, device=device, requires_grad=True)
    weight = torch.rand(2, 3, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(srm_linear(inputs, weight).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="spiking layers cannot be differentiated twice"):
        first.square().sum().backward()


def test_empty_batches_pass_through():
    for shape in ((0, 5, 4), (2, 0, 4)):
        inputs, weight = torch.ones(shape, requires_grad=True), torch.ones(3, 4, requires_grad=True)
        srm_linear(inputs, weight, output=True).sum().backward()
        assert torch.equal(weight.grad, torch.zeros(3, 4)) and inputs.grad.shape == shape


def test_functional_call_swaps_weights_and_constants():
    layer, inputs = SRMLinear(6, 4), torch.rand(3, 8, 6)
    other = SRMLinear(6, 4, SRMParameters(tau_m=9.0, threshold=0.3))
    swapped = functional_call(layer, {**dict(other.named_parameters()), **dict(other.named_buffers())}, inputs)
    assert torch.equal(swapped, other(inputs)) and not torch.equal(swapped, layer(inputs))


class TestBadInput:
    def test_linear(self):
        weight = torch.ones(3, 4)
        cases = [
            ((torch.ones(2, 4), weight), ValueError, r"inputs must have the shape \[batch, time, in_features\]"),
            ((torch.ones(2, 3, 5), weight), ValueError, "inputs must have 4 entries on axis 2 .* got .2, 3, 5."),
            ((torch.ones(2, 3, 4).double(), weight), TypeError, "inputs must have the dtype of weight"),
            ((torch.ones(2, 3, 4).to(torch.complex64), weight), TypeError, "inputs must have one of the dtypes"),
            (([1.0], weight), TypeError, r"inputs must be a torch\.Tensor, got list"),
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
        ("options", "error", "message"),
        [
            (
                {"gradient": "spikes"},
                ValueError,
                r"gradient must be one of \('event', 'original', 'surrogate'\), got 'spikes'",
            ),
            ({"input_gradient": "weight"}, ValueError, r"input_gradient must be one of \('time', 'value'\), got"),
            ({"output": 1}, ValueError, "output must be one of .* got 1"),
            ({"time_gradient_scale": -1}, ValueError, "time_gradient_scale must be finite and ≥ 0, got -1"),
            ({"labels": torch.tensor([0])}, TypeError, "unexpected keyword argument 'labels'"),
        ],
    )
    def test_options(self, options, error, message):
        for call in (partial(srm_linear, torch.ones(1, 2, 3), torch.ones(2, 3)), partial(SRMLinear, 3, 2)):
            with pytest.raises(error, match=message):
                call(**options)

    def test_labels_passed_to_a_layer(self):
        with pytest.raises(TypeError, match="state must be an SRMState or None, got a Tensor; layers take no labels"):
            SRMLinear(4, 3)(torch.rand(2, 5, 4), torch.tensor([0, 1]))
        with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
            SRMLinear(4, 3)(torch.rand(2, 5, 4), labels=torch.tensor([0, 1]))

    def test_modules_that_are_not_affine_in_training(self):
        for module in (nn.BatchNorm1d(3), nn.Dropout()):
            layer = SRMAffine(nn.Sequential(nn.Linear(4, 3), module))
            with pytest.raises(TypeError, match=f"affine must be affine in its inputs, got {type(module).__name__} in"):
                layer(torch.rand(2, 5, 4))
            assert layer.eval()(torch.rand(2, 5, 4)).shape == (2, 5, 3)

    def test_what_is_no_module(self):
        with pytest.raises(TypeError, match=r"affine must be a torch\.nn\.Module, got function"):
            SRMAffine(lambda x: x)
