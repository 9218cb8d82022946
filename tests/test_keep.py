"""`keep="spikes"`: the same results bit for bit in a fraction of the memory, and what is refused."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton import (
    SpikeAvgPool2d,
    SpikingResNet18_2D,
    SRMAffine,
    SRMConv1d,
    SRMConv2d,
    SRMLinear,
    SRMParameters,
    SRMReadout,
    SRMRecurrent,
    spiking_network,
    srm_linear,
    use_backend,
    watch,
)
from srm_triton.kernels import native
from srm_triton.resnet import SpikingBasicBlock2D


def spikes_of(*shape: int, rate: float = 0.2) -> Tensor:
    return (torch.rand(shape) < rate).float()


class Residual(nn.Module):
    """The sum of both ways, and dropout behind it."""

    def __init__(self, keep: str, gradient: str) -> None:
        super().__init__()
        self.layer = SRMLinear(32, 32, keep=keep, gradient=gradient)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.dropout(inputs + self.layer(inputs), 0.3)


def stacked(keep: str, gradient: str) -> nn.Module:
    pooling = {"keep": keep, "gradient": gradient}
    options = pooling | {"parameters": SRMParameters(threshold=0.2)}
    return nn.Sequential(
        SRMConv2d(2, 8, 3, padding=1, bias=True, **options),
        SpikeAvgPool2d(2, **pooling),
        SRMConv2d(8, 8, 3, padding="same", groups=2, learn=("tau_m", "threshold"), **options),
        SpikeAvgPool2d(3, 2, 1, **pooling),
        nn.Flatten(2),
        SRMLinear(8 * 4 * 4, 32, bias=True, **options),
        nn.Dropout(0.2),
        Residual(**pooling),
        SRMLinear(32, 10, output=True, **options),
        SRMAffine(nn.utils.parametrizations.weight_norm(nn.Linear(10, 12)), **options),
        SRMReadout(12, 5, keep=keep),
    )


def trained(model: nn.Module, inputs: Tensor, *, autocast: bool = False) -> tuple[list[Tensor], int]:
    """Results and gradients, and the bytes that autograd keeps beside the parameters and the inputs."""
    saved: list[Tensor] = []
    torch.manual_seed(0)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        outputs = model(inputs)
    outputs.float().square().mean().backward()
    assert outputs.any()
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    for known in model.parameters():
        sizes.pop(known.untyped_storage().data_ptr(), None)
    gradients = [p.grad for p in model.parameters()]
    assert sum(g is not None and bool(g.any()) for g in gradients) > len(gradients) / 2
    return [outputs, *gradients, inputs.grad], sum(sizes.values())


def equal(results: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def pair(make: Callable[[str], nn.Module]) -> list[nn.Module]:
    models = []
    for keep in ("current", "spikes"):
        torch.manual_seed(1)
        models.append(make(keep))
    return models


@pytest.mark.parametrize("gradient", ["event", "original", "surrogate"])
@pytest.mark.parametrize("autocast", [False, True])
def test_any_network_has_the_same_gradients(gradient, autocast):
    torch.manual_seed(5)
    inputs = spikes_of(3, 6, 2, 16, 16, rate=0.5)
    for given in (inputs, inputs.transpose(0, 1).contiguous().transpose(0, 1), inputs * torch.rand(16)):
        results = []
        for model in pair(partial(stacked, gradient=gradient)):
            results.append(trained(model, given.clone().requires_grad_(), autocast=autocast)[0])
        assert equal(*results)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_it_holds_on_every_backend(backend):
    inputs, results = spikes_of(2, 5, 9, rate=0.5), []
    for model in pair(lambda keep: nn.Sequential(SRMLinear(9, 8, keep=keep), SRMLinear(8, 4, keep=keep, output=True))):
        with use_backend(backend):
            spikes = model(inputs)
        spikes.sum().backward()  # whose scan runs where the forward did
        results.append([spikes, *[p.grad for p in model.parameters()]])
    assert equal(*results)


NETWORKS = {
    "linear": lambda keep: spiking_network("200-200-200", 100, 5, steps=100, keep=keep),
    "linear, dropout": lambda keep: spiking_network("200-200", 100, 5, steps=100, keep=keep, dropout=0.3),
    "convolutions": lambda keep: spiking_network("16C3-P2-16C3-P2-64", (1, 16, 16), 5, steps=100, keep=keep),
    "event": lambda keep: spiking_network(
        "16C3-P2-16C3-P2-64", (1, 16, 16), 5, steps=100, keep=keep, gradient="event", readout="spikes"
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_keeps(name):
    """Bytes a neuron and step, inputs of layers included, weights and what normalises them left out."""
    images = "conv" in name or name == "event"
    inputs = spikes_of(4, 100, *((1, 16, 16) if images else (100,)), rate=0.05)
    kept, results, neurons = [], [], 0
    for model in pair(NETWORKS[name]):
        weights = sum(9 * p.numel() for p in model.parameters() if p.dim() > 1)
        counts: list[int] = []
        hooks = [
            layer.register_forward_hook(lambda m, i, out, counts=counts: counts.append(out.numel()))
            for layer in model.modules()
            if isinstance(layer, SRMLinear | SRMConv2d)
        ]
        values, total = trained(model, inputs)
        neurons = sum(counts)
        kept.append((total - weights) / neurons)
        results.append(values)
        assert len(hooks) >= 2
    assert equal(*results)
    assert kept[1] <= 0.35 < 5 < kept[0]


def test_kept_bytes_of_a_residual_network():
    """Of each further step, so that weights do not count."""
    results, kept = [], []
    inputs = spikes_of(1, 6, 1, 32, 32, rate=0.5)
    parameters = SRMParameters(threshold=0.1)
    options = {"width": 4, "gradient": "event", "readout": "membrane"}
    for model in pair(lambda keep: SpikingResNet18_2D(4, 1, parameters, keep=keep, **options)):
        _, two = trained(model, inputs[:, :2])
        model.zero_grad()
        values, six = trained(model, inputs)
        results.append(values)
        kept.append(six - two)
    assert equal(*results)
    assert 0 < kept[1] < 0.12 * kept[0]


def test_inference_looks_at_nothing(monkeypatch):
    monkeypatch.setattr(native, "find_levels", lambda *a: pytest.fail("looks for levels"))
    model = stacked("spikes", "event")
    block = SpikingBasicBlock2D(2, 2, keep="spikes")
    with torch.no_grad():
        model(block(spikes_of(1, 3, 2, 16, 16)))


def test_state_in_pieces_and_repeated_inputs():
    image, pieces = torch.rand(3, 1, 7).expand(3, 12, 7), spikes_of(3, 9, 7, rate=0.6)
    results: list[list[Tensor]] = []
    for model in pair(lambda keep: SRMLinear(7, 6, keep=keep)):
        first, state = model(image[:, :5], return_state=True)
        spikes, state = model(pieces, state, return_state=True)
        spikes, state = model(pieces[:, 2:], state, return_state=True)
        (first.sum() + spikes.sum() + state.membrane.sum()).backward()
        results.append([first, spikes, *state, *[p.grad for p in model.parameters()]])
    assert equal(*results)


def test_gradients_of_each_sample_pass_a_module():
    """`vmap` of `grad`, in which nothing is computed again."""
    inputs = spikes_of(3, 1, 6, 5)
    for gradient in ("event", "surrogate"):
        layer = SRMAffine(nn.Linear(5, 4), SRMParameters(threshold=0.2), gradient=gradient, keep="spikes")
        loss = lambda x, layer=layer: layer(x).square().sum()  # noqa: E731
        found = torch.vmap(torch.func.grad(loss))(inputs)
        for sample, result in zip(inputs, found, strict=True):
            leaf = sample.clone().requires_grad_()
            torch.testing.assert_close(result, torch.autograd.grad(loss(leaf), leaf)[0])
            assert result.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transforms_compiled_code_and_second_derivatives():
    layer, lean = pair(lambda keep: SRMConv1d(3, 4, 3, keep=keep))
    inputs = spikes_of(2, 5, 3, 9, rate=0.5).requires_grad_()
    gradients = [torch.func.grad(lambda x, layer=layer: layer(x).square().sum())(inputs) for layer in (layer, lean)]
    assert torch.equal(*gradients) and gradients[0].any()
    compiled = torch.compile(copy.deepcopy(lean), fullgraph=True, backend="aot_eager")
    (expected,), (result,) = (torch.autograd.grad(each(inputs).sum(), inputs) for each in (lean, compiled))
    torch.testing.assert_close(result, expected)
    (first,) = torch.autograd.grad(lean(inputs).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="spiking layers cannot be differentiated twice"):
        first.sum().backward()


def test_events_of_other_dtypes():
    torch.manual_seed(0)
    events = torch.rand(2, 6, 9) < 0.5
    for given in (events, events.to(torch.uint8), events.long()):
        results = []
        for model in pair(lambda keep: SRMLinear(9, 4, keep=keep)):
            results.append(trained(model, given)[0])
        assert equal(*results)


def test_a_weight_that_changes_before_the_backward_is_noticed():
    weight = torch.rand(4, 9).requires_grad_()
    spikes = srm_linear(spikes_of(2, 6, 9, rate=0.5), weight, keep="spikes")
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spikes.sum().backward()


def test_watching_changes_nothing():
    results = []
    inputs = spikes_of(2, 6, 9, rate=0.5)
    low = SRMParameters(threshold=0.2)
    for model in pair(lambda keep: nn.Sequential(SRMLinear(9, 8, keep=keep), SRMLinear(8, 4, low, keep=keep))):
        with watch(model, show=None) as watcher:
            results.append(trained(model, inputs)[0])
        assert len(watcher.report().layers) == 2
    assert equal(*results)


class Noise(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.rand(inputs.shape)


class TestRefused:
    def test_options(self):
        for make in (partial(SRMLinear, 3, 2), partial(SRMReadout, 3, 2), partial(SpikeAvgPool2d, 2)):
            with pytest.raises(ValueError, match=r"keep must be one of \('current', 'spikes'\), got 'bits'"):
                make(keep="bits")
        with pytest.raises(ValueError, match='keep must be "current" for SRMRecurrent'):
            SRMRecurrent(3, 4, keep="spikes")
        with pytest.raises(ValueError, match='keep must be "current" for SRMRecurrent'):
            spiking_network("10R", 4, 2, steps=5, keep="spikes")

    @pytest.mark.parametrize("gradient", ["event", "surrogate"])
    def test_modules_that_compute_something_else_again(self, gradient):
        inputs = spikes_of(2, 6, 9, rate=0.5)
        for module in (nn.Dropout(0.5), nn.BatchNorm1d(9)):
            layer = SRMAffine(nn.Sequential(module, nn.Linear(9, 4)), keep="spikes", gradient=gradient)
            with pytest.raises(
                TypeError, match=rf"got {type(module).__name__} in training; .* choose keep=\"current\""
            ):
                layer(inputs)
            layer.eval()(inputs).sum().backward()
        layer = SRMAffine(nn.Sequential(Noise(), nn.Linear(9, 4)), keep="spikes", gradient=gradient)
        with pytest.raises(RuntimeError, match="must compute the same again, but it draws random numbers"):
            layer(inputs)

    def test_a_module_that_was_put_into_training_since(self):
        layer = SRMAffine(nn.Sequential(nn.Dropout(0.5), nn.Linear(9, 4)), keep="spikes").eval()
        spikes = layer(spikes_of(2, 6, 9, rate=0.5))
        layer.train()
        with pytest.raises(RuntimeError, match="affine must be in the mode, training or evaluation, of its forward"):
            spikes.sum().backward()

    def test_states_and_constants_that_do_not_fit(self):
        layer = SRMLinear(9, 4, keep="spikes")
        _, state = layer(spikes_of(3, 6, 9), return_state=True)
        with pytest.raises(ValueError, match=r"state.membrane must have the shape \[2, 4\], .* got \[3, 4\]"):
            layer(spikes_of(2, 6, 9), state)
