"""What PyTorch offers to modules, with all of the package's in one network: compiler, exporter, threads, copies."""

import copy
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from test_srm_scan import BACKENDS
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils import prune

from srm_triton import (
    BatchNorm1d,
    SpikeAvgPool2d,
    SRMConv1d,
    SRMConv2d,
    SRMConv3d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMReadout,
    SRMRecurrent,
    SRMState,
    batch_norm,
    count_loss,
    srm_linear,
    srm_scan,
    srm_trace,
    use_backend,
)
from srm_triton.sparse import SparseLinear, SparseRepresentation

EARLY = SRMParameters(threshold=0.1)


class Network(nn.Module):
    """Every module of the package; inputs are [batch, 16, time]."""

    def __init__(self) -> None:
        super().__init__()
        self.normalisation = BatchNorm1d(16)
        self.neurons = nn.Sequential(nn.Linear(16, 16), SRMNeuron(EARLY))
        convolution = SRMConv2d(1, 4, 3, padding="same", parameters=EARLY)
        self.convolution = nn.Sequential(nn.Unflatten(2, (1, 4, 4)), convolution, SpikeAvgPool2d(2), nn.Flatten(2))
        self.hidden = SRMLinear(16, 8, EARLY, weight_norm=False, bias=True)
        self.output = SRMLinear(8, 3, EARLY, learn=("tau_m",), output=True)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.hidden(self.convolution(self.neurons(self.normalisation(inputs).transpose(1, 2))))
        return self.output(hidden)


def network(seed: int = 0, device: torch.device | None = None) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network().to(device)


def data(batch: int, steps: int, seed: int = 0, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(batch, 16, steps, generator=generator).to(device), (torch.arange(batch) % 3).to(device)


def run(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[Tensor]:
    """Spikes and gradients."""
    model.zero_grad()
    spikes = model(inputs)
    count_loss(spikes, labels, desired=inputs.shape[2], undesired=0).backward()
    return [spikes.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def train(model: nn.Module, steps: int, device: torch.device) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        run(model, *data(4, 6, step, device))
        optimizer.step()


def same(results: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


def test_the_network_of_these_tests_is_awake(device):
    spikes, *gradients = run(network(device=device), *data(5, 7, device=device))
    assert 0.1 < spikes.mean() < 0.5 and all(gradient.count_nonzero() > gradient.numel() / 2 for gradient in gradients)


class WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spikes: Tensor) -> Tensor:
        return spikes.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> None:
        return None


def test_only_gradients_that_mean_something_are_made(device):
    weight = torch.randn(5, 6, device=device).requires_grad_()
    spikes = srm_linear(torch.rand(4, 9, 6, device=device), weight, output=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        spikes.backward(torch.ones_like(spikes), retain_graph=True)
    # what else the function returns gets no gradient, not even of zeros
    assert [4, 9, 5] not in [event.input_shapes[0] for event in profiler.events() if event.name == "aten::zero_"]
    weight.grad = None
    WithoutGradient.apply(spikes).sum().backward()
    assert weight.grad is None


# Compiler and exporter

ignores_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@ignores_warnings
def test_compiled_once_for_all_batches_and_times(device):
    model = network(device=device)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, steps in ((3, 6), (4, 9), (7, 20)):
        inputs, labels = data(batch, steps, device=device)
        with torch.compiler.set_stance("default" if batch == 3 else "fail_on_recompile"):
            assert same(run(compiled, inputs, labels), run(model, inputs, labels))


@ignores_warnings
def test_compiled_where_nothing_requires_a_gradient(device):
    model = network(device=device).requires_grad_(False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs, _ = data(3, 6, device=device)
    with torch.no_grad():
        assert torch.equal(compiled(inputs), model(inputs))


@ignores_warnings
@pytest.mark.parametrize("label", [-100, -1, 3])
@pytest.mark.parametrize("transform", [partial(torch.compile, backend="eager"), vmap])
def test_labels_out_of_range_where_no_check_can_look(label, transform, device):
    labels = torch.tensor([[label, 0], [0, 1]], device=device)
    spikes = torch.ones(2, 2, 5, 3, device=device)
    function = lambda spikes, labels: count_loss(spikes, labels, desired=4, undesired=1)  # noqa: E731
    arguments = (spikes, labels) if transform is vmap else (spikes[0], labels[0])
    with pytest.raises((RuntimeError, IndexError), match=r"out of bounds|out of range"):
        transform(function)(*arguments)


@ignores_warnings
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_compiled_by_the_default_backend(device):
    torch.manual_seed(0)
    layer = SRMLinear(6, 3, EARLY, learn=("threshold", "tau_s"), output=True).to(device)
    inputs = torch.rand(4, 5, 6, device=device).requires_grad_()

    def differentiate(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        spikes = function(inputs)
        return spikes, torch.autograd.grad(spikes.sum(), [inputs, *layer.parameters()])

    (spikes, gradients), expected = differentiate(torch.compile(layer, fullgraph=True)), differentiate(layer)
    assert torch.equal(spikes, expected[0]) and spikes.any()
    torch.testing.assert_close(gradients, expected[1], rtol=1e-6, atol=1e-6)


LOADED = """
import sys, torch, srm_triton
inputs, expected = torch.load(sys.argv[2])
outputs = torch.export.load(sys.argv[1]).module()(inputs)
assert torch.equal(outputs, expected), (outputs - expected).abs().sum()
"""


@ignores_warnings
def test_exported_and_loaded_by_another_process(tmp_path):
    model = network()
    train(model, 2, torch.device("cpu"))
    model.eval()
    dynamic = {0: torch.export.Dim("batch", min=1, max=64), 2: torch.export.Dim("steps", min=2, max=512)}
    program = torch.export.export(model, (data(4, 6)[0],), dynamic_shapes=(dynamic,))
    torch.export.save(program, tmp_path / "program.pt2")
    inputs, _ = data(7, 20, seed=1)
    expected = model(inputs)
    assert 0.01 < expected.mean() < 0.5
    torch.save((inputs, expected), tmp_path / "expected.pt")
    subprocess.run([sys.executable, "-c", LOADED, tmp_path / "program.pt2", tmp_path / "expected.pt"], check=True)


# Pruning, old tracers, inference


LAYERS = {
    "linear": (lambda: SRMLinear(6, 4, EARLY), (2, 5, 6)),
    "linear, plain": (lambda: SRMLinear(6, 4, EARLY, weight_norm=False, bias=True), (2, 5, 6)),
    "convolution 1": (lambda: SRMConv1d(2, 3, 3, parameters=EARLY), (2, 5, 2, 6)),
    "convolution 2": (lambda: SRMConv2d(2, 3, 3, parameters=EARLY), (2, 5, 2, 6, 6)),
    "convolution 3": (lambda: SRMConv3d(2, 3, 2, parameters=EARLY), (2, 5, 2, 3, 3, 3)),
    "recurrent": (lambda: SRMRecurrent(6, 4, EARLY), (2, 5, 6)),
    "readout": (lambda: SRMReadout(6, 4), (2, 5, 6)),
    "neurons": (lambda: SRMNeuron(EARLY, learn=("threshold",), channels=6), (2, 5, 6)),
    "batch norm": (lambda: BatchNorm1d(6), (4, 6)),
    "sparse": (lambda: SparseLinear(6, 4, density=0.5), (4, 6)),
    "codes": (lambda: SparseRepresentation(6, 9, 0.01), (4, 6)),
    "pooling": (lambda: SpikeAvgPool2d(2), (2, 5, 2, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_pruned_parameters_stay_pruned(name):
    make, shape = LAYERS[name]
    layer, inputs = make(), 5 * torch.randn(shape)
    names = [
        name for name, parameter in layer.named_parameters(recurse=False) if parameter.dim() > 1 or "values" in name
    ]
    for parameter in names:
        prune.l1_unstructured(layer, parameter, 0.5)
    masks = {parameter: getattr(layer, f"{parameter}_mask") for parameter in names}
    optimizer = torch.optim.SGD([*layer.parameters(), torch.zeros(1, requires_grad=True)], lr=0.01)
    for _ in range(2):
        outputs = layer.train()(inputs)
        if outputs.requires_grad:
            optimizer.zero_grad()
            outputs.square().sum().backward()
        for parameter, mask in masks.items():
            assert mask.mean().item() == pytest.approx(0.5, abs=0.05)
            assert not getattr(layer, parameter)[mask == 0].any()
            assert not getattr(layer, f"{parameter}_orig").grad[mask == 0].any()
        if isinstance(layer, SRMLinear | SRMConv2d):
            assert not layer.effective_weight()[masks["weight"] == 0].any()
        optimizer.step()
    with torch.no_grad():
        before = layer.eval()(inputs)
        for parameter in names:
            prune.remove(layer, parameter)
        assert torch.equal(layer(inputs), before) and before.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_torch_jit_says_what_to_use_instead(name):
    make, shape = LAYERS[name]
    layer, inputs = make().eval(), 5 * torch.randn(shape)
    for module in (layer, nn.Sequential(nn.Sequential(layer))):
        with pytest.raises(
            RuntimeError, match=rf"torch.jit.script .* {type(layer).__name__}: use torch.compile, or torc"
        ):
            torch.jit.script(module)
    if any(isinstance(module, SRMNeuron) for module in layer.modules()):
        with pytest.raises(RuntimeError, match=r"torch.jit.trace does not know spiking neurons: use torch.compile, or"):
            torch.jit.trace(layer, (inputs,))
    else:
        torch.testing.assert_close(torch.jit.trace(layer, (inputs,))(2 * inputs), layer(2 * inputs))


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_made_in_inference_mode(name):
    make, shape = LAYERS[name]
    layer = make()
    with torch.inference_mode():
        inputs = 5 * torch.randn(shape)
    copied = inputs.clone()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(layer(inputs), layer(copied))
    if name == "pooling":  # which learns nothing
        assert torch.equal(layer(inputs), layer(copied))
    else:
        with pytest.raises(RuntimeError, match=r"Inference tensors cannot be saved for backward.* make a clone"):
            layer(inputs)
    layer.requires_grad_(False)
    assert torch.equal(layer(inputs), layer(copied))


# torch.func


def assert_close(results: dict[str, Tensor], expected: list[dict[str, Tensor]], tolerance: float) -> None:
    """Compares what is stacked with what came one after the other."""
    for name, result in results.items():
        stacked = torch.stack([one[name] for one in expected])
        assert stacked.count_nonzero()
        torch.testing.assert_close(result, stacked, rtol=tolerance, atol=tolerance * stacked.abs().max().item())


def loss_of(parameters: dict[str, Tensor], model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    spikes = functional_call(model, parameters, (inputs,))
    return count_loss(spikes, labels, desired=inputs.shape[2], undesired=0)


def gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    run(model, inputs, labels)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_each_sample(backend, device):
    model = network(device=device).eval()  # in training the normalisation mixes samples
    inputs, labels = data(3, 20, device=device)
    expected = [gradient(model, *sample) for sample in zip(inputs.split(1), labels.split(1), strict=True)]
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with use_backend(backend):
        results = vmap(grad(lambda p, *sample: loss_of(p, model, *sample)), in_dims=(None, 0, 0))(
            parameters, inputs[:, None], labels[:, None]
        )
    assert_close(results, expected, 3e-6)  # up to 2e-6, interpreted


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_networks_at_once(backend, device):
    models = [network(seed, device).eval() for seed in range(3)]
    arguments = data(3, 20, device=device)
    expected = [gradient(model, *arguments) for model in models]
    parameters, buffers = stack_module_state(models)

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        return vmap(lambda p, b: loss_of({**p, **b}, models[0], *arguments))(parameters, buffers).sum()

    with use_backend(backend):
        results = grad(losses)(parameters)
    assert_close(results, expected, 3e-6)  # up to 2e-6, interpreted


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mapped", [0, 1, 2, 3])
def test_mapped_scans(mapped, backend, device):
    current = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(device) + 0.7
    current = current.movedim(0, mapped)
    constants = SRMParameters(threshold=torch.linspace(0.5, 1.5, 6))
    functions = (
        lambda x: srm_scan(x, constants),
        srm_trace,
        lambda x: srm_scan(x, batch_first=False),
        lambda x: srm_scan(x[:, :, 0], return_state=True)[1],
    )
    for function in functions:
        with use_backend(backend):
            results = vmap(function, in_dims=mapped)(current)
            expected = [function(one) for one in current.unbind(mapped)]
        if isinstance(results, Tensor):
            results, expected = [results], [[one] for one in expected]
        assert same(list(results), [torch.stack(ones) for ones in zip(*expected, strict=True)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("features", [(), (6,), (6, 2)])
@pytest.mark.parametrize("each", [False, True])
def test_mapped_constants_and_states(each, features, backend, device):
    """Several neurons on one current, with the gradients of each; some stay silent."""
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(4, 5, *features, dtype=torch.float64, generator=generator).to(device) + 0.4
    channels = features[0] if each and features else 1
    thresholds = torch.rand(3, channels, dtype=torch.float64, generator=generator).to(device) + 0.7
    states = torch.rand(3, 3, 4, *features, dtype=torch.float64, generator=generator).to(device)

    def loss(threshold: Tensor, state: Tensor, current: Tensor) -> Tensor:
        parameters = SRMParameters(threshold=threshold)
        spikes, final = srm_scan(current, parameters, SRMState(*state), return_state=True, output=True)
        return spikes.sum() + sum(part.square().sum() for part in final)

    gradients = grad(loss, argnums=(0, 1, 2))
    with use_backend(backend):
        results = vmap(gradients, in_dims=(0, 0, None))(thresholds, states, current)
        expected = [gradients(*one, current) for one in zip(thresholds, states, strict=True)]
    for result, ones in zip(results, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(result, torch.stack(ones), rtol=1e-12, atol=1e-12)
        assert result.count_nonzero()


@pytest.mark.parametrize("backend", BACKENDS)
def test_mapped_gradients_of_one_scan(backend, device):
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(4, 5, 6, generator=generator).to(device) + 0.7
    grads = torch.randn(3, 4, 5, 6, generator=generator).to(device)
    with use_backend(backend):
        _, pull_back = torch.func.vjp(srm_scan, current)
        (results,) = vmap(pull_back)(grads)
        expected = [pull_back(one)[0] for one in grads]
    assert same(list(results), expected) and results.any()


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (2, None, 1), (None, 0, None), (1, 0, None)])
def test_mapped_batch_norms(in_dims, dim, backend, device):
    generator = torch.Generator().manual_seed(0)
    matrices, weights, biases = (
        torch.randn(3, *shape, dtype=torch.float64, generator=generator) for shape in ((6, 4), *[((4, 6)[dim],)] * 2)
    )
    arguments = [
        (one[0] if to is None else one.movedim(0, to)).to(device)
        for one, to in zip((matrices, weights, biases), in_dims, strict=True)
    ]

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        return grad(lambda *t: batch_norm(*t, dim=dim).pow(3).sum(), argnums=(0, 1, 2))(*tensors)

    with use_backend(backend):
        results = vmap(gradients, in_dims=in_dims)(*arguments)
    for i, result in enumerate(zip(*results, strict=True)):
        leaves = [
            (one if to is None else one.select(to, i)).detach().requires_grad_()
            for one, to in zip(arguments, in_dims, strict=True)
        ]
        expected = torch.autograd.grad(batch_norm(*leaves, dim=dim).pow(3).sum(), leaves)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_gradients_at_once(backend, device):
    current = torch.randn(2, 20, 3, dtype=torch.float64, device=device).add(0.5).requires_grad_()
    gradients = torch.randn(4, 2, 20, 3, dtype=torch.float64, device=device)
    with use_backend(backend):
        spikes = srm_scan(current)
        batched = torch.autograd.grad(spikes, current, gradients, is_grads_batched=True, retain_graph=True)[0]
        single = [torch.autograd.grad(spikes, current, gradient, retain_graph=True)[0] for gradient in gradients]
    assert torch.equal(batched, torch.stack(single)) and batched.any()


FUNCTIONS = {
    "srm_scan": srm_scan,
    "spiking layers": lambda x: srm_linear(x, torch.ones(2, 3, dtype=x.dtype, device=x.device)),
}


@ignores_warnings
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_cannot_be_differentiated(name, device):
    inputs = torch.rand(2, 5, 3, dtype=torch.float64, device=device, requires_grad=True)

    def total(x: Tensor) -> Tensor:
        return FUNCTIONS[name](x).sum()

    message = f"{name} cannot be differentiated twice"
    (first,) = torch.autograd.grad(total(inputs), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=message):
        first.sum().backward()
    second = grad(lambda x: grad(total)(x).sum())
    for function, argument in ((second, inputs.detach()), (vmap(second), inputs.detach()[None])):
        with pytest.raises(RuntimeError, match=message):
            function(argument)
    with pytest.raises(NotImplementedError, match="forward mode"):
        jvp(total, (inputs.detach(),), (torch.ones_like(inputs),))


# Copies


@pytest.mark.parametrize("steps", [0, 3])
def test_copies_before_and_after_training(steps, device, tmp_path):
    model = network(device=device)
    train(model, steps, device)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    loaded = network(seed=1, device=device)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    arguments = data(5, 7, seed=9, device=device)
    expected = run(copy.deepcopy(model), *arguments)
    train(model, 2, device)  # which no copy notices
    for same_model in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert same(run(same_model, *arguments), expected)
    assert not same(run(model, *arguments), expected)


def test_copies_of_parameters():
    for copied in (copy.copy(EARLY), copy.deepcopy(EARLY), pickle.loads(pickle.dumps(EARLY))):
        assert copied == EARLY and hash(copied) == hash(EARLY) and torch.equal(copied.threshold, EARLY.threshold)
        with pytest.raises(AttributeError):
            copied.threshold = 1.0


# Numbers


def test_deterministic_algorithms(device):
    """In this mode PyTorch fills fresh memory with NaN, so nothing unwritten may reach a result."""
    arguments = data(5, 20, device=device)
    expected = run(network(device=device), *arguments)
    torch.use_deterministic_algorithms(True)
    try:
        for backend in BACKENDS:
            with use_backend(backend):
                results = [run(network(device=device), *arguments) for _ in range(2)]
            assert same(*results) and torch.equal(results[0][0], expected[0])
            torch.testing.assert_close(results[0], expected, rtol=1e-5, atol=1e-5)
    finally:
        torch.use_deterministic_algorithms(False)


def test_channels_last_is_kept(device):
    torch.manual_seed(0)
    model = nn.Sequential(SRMConv2d(3, 4, 3, padding="same", parameters=EARLY), SpikeAvgPool2d(2)).to(device)
    images = torch.rand(2, 5, 3, 6, 6, device=device)
    rearranged = images.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, 5))
    results = []
    for inputs in (images, rearranged):
        leaf = inputs.clone().requires_grad_()
        outputs = [model[0](leaf)]
        outputs.append(model[1](outputs[0]))
        outputs.append(*torch.autograd.grad(outputs[1].square().sum(), leaf))
        assert leaf.stride() == inputs.stride()
        results.append(outputs)
    for expected, result in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
        assert result.count_nonzero() and expected.is_contiguous()
        assert result.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


# Threads


@pytest.mark.parametrize("backend", BACKENDS)
def test_sixteen_threads_at_once(backend, device):
    def work(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.rand(8, 5, 8, generator=generator).to(device).requires_grad_()
        spikes = layers[seed](inputs)
        grad = torch.randn(8, 5, 1024, generator=generator).to(device)  # large enough for threads of its own
        return [spikes, *torch.autograd.grad(spikes, [inputs, *layers[seed].parameters()], grad)]

    def together(seed: int) -> bool:
        barrier.wait()
        return all(
            same(work(seed), expected[seed]) for _ in range({"reference": 10, "native": 40, "triton": 1}[backend])
        )

    torch.manual_seed(0)
    layers = [SRMLinear(8, 1024).to(device) for _ in range(16)]
    barrier = threading.Barrier(16)
    with use_backend(backend):
        expected = [work(seed) for seed in range(16)]
        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(together, range(16)))
    assert all(spikes.any() for spikes, *_ in expected)
