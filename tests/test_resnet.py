"""ResNet-18 with its three heads, and the spiking one: names, forward, gradients, checkpoints, training."""

import copy
import pickle
import re
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton import SRMLinear, SRMParameters, batch_norm, calibrate_gain, count_loss, predict, srm_conv2d, srm_linear
from srm_triton.resnet import SpikingBasicBlock2D, SpikingResNet18_2D
from srm_triton.sparse.code import SparseRepresentation
from srm_triton.sparse.linear import SparseLinear
from srm_triton.sparse.resnet import BasicBlock2D, ResNet18_2D

HEADS = ("sparse", "linear", "sparse-linear")
BLOCKS = {f"layer{layer}.{block}": (1 + (layer > 1)) ** (1 - block) for layer in range(1, 5) for block in (0, 1)}
"""The stride of each by its name."""


def published_shapes(width: int = 64, in_channels: int = 1, outputs: int = 512) -> dict[str, tuple[int, ...]]:
    """The state of the published network, in its order."""

    def normalisation(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        vectors = {f"{name}.{vector}": (channels,) for vector in ("weight", "bias", "running_mean", "running_var")}
        return vectors | {f"{name}.num_batches_tracked": ()}

    shapes = {"conv1.weight": (width, in_channels, 7, 7)} | normalisation("bn1", width)
    channels = width
    for name, stride in BLOCKS.items():
        before, channels = channels, stride * channels
        for convolution, inputs in ((1, before), (2, channels)):
            shapes[f"{name}.conv{convolution}.weight"] = (channels, inputs, 3, 3)
            shapes |= normalisation(f"{name}.bn{convolution}", channels)
        if stride > 1:
            shapes[f"{name}.shortcut.0.weight"] = (channels, before, 1, 1)
            shapes |= normalisation(f"{name}.shortcut.1", channels)
    return shapes | {"fc.weight": (outputs, 8 * width), "fc.bias": (outputs,)}


def published_state(**sizes: int) -> dict[str, Tensor]:
    """As a checkpoint of the published network holds it: variances are positive."""
    return {name: torch.rand(shape) if shape else torch.tensor(7) for name, shape in published_shapes(**sizes).items()}


def features(state: dict[str, Tensor], images: Tensor, training: bool) -> Tensor:
    """What stands before fc, written out; running statistics are left as they are."""

    def normalise(name: str, x: Tensor) -> Tensor:
        statistics = (None, None) if training else (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(x, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], training, eps=1e-5)

    x = F.conv2d(images, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(normalise("bn1", x).relu(), 3, 2, 1)
    for name, stride in BLOCKS.items():
        y = normalise(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)).relu()
        y = normalise(f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1))
        if f"{name}.shortcut.0.weight" in state:
            x = normalise(f"{name}.shortcut.1", F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=stride))
        x = (y + x).relu()
    return x.mean((2, 3))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class TestResNet:
    def test_state_is_the_published_one(self):
        model = ResNet18_2D(head="linear")
        assert [(name, tuple(value.shape)) for name, value in model.state_dict().items()] == list(
            published_shapes().items()
        )
        assert ResNet18_2D(head="linear").load_state_dict(published_state(), strict=True)

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("training", [True, False])
    def test_forward_is_the_written_out_one(self, head, training):
        model = ResNet18_2D(10, 3, head, width=4).double().train(training)
        state = published_state(width=4, in_channels=3, outputs=10)
        backbone = {name: value.double() for name, value in state.items() if not name.startswith("fc.")}
        result = model.load_state_dict(backbone, strict=False)
        assert not result.unexpected_keys
        assert set(result.missing_keys) == {name for name in model.state_dict() if name.startswith("fc.")}
        images = torch.randn(3, 3, 33, 17, dtype=torch.float64)
        expected = model.fc(features(backbone, images, training))
        torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-10)
        assert isinstance(model.fc, {"sparse": SparseRepresentation, "linear": nn.Linear}.get(head, SparseLinear))

    @pytest.mark.parametrize(
        ("head", "missing", "unexpected"),
        [
            ("sparse", ["fc.dictionary"], ["fc.weight", "fc.bias"]),
            ("sparse-linear", ["fc.values", "fc.crow_indices", "fc.col_indices"], ["fc.weight"]),
        ],
    )
    def test_a_whole_checkpoint_leaves_another_head_as_it_is(self, head, missing, unexpected):
        model = ResNet18_2D(10, head=head, width=4)
        before = copy.deepcopy(model.fc.state_dict())
        result = model.load_state_dict(published_state(width=4, outputs=10), strict=False)
        assert result.unexpected_keys == unexpected and result.missing_keys == missing
        kept = set(before) - {"bias"}
        assert all(torch.equal(model.fc.state_dict()[name], before[name]) for name in kept)

    def test_the_names_of_torchvision_load(self):
        state = published_state(width=4, in_channels=3, outputs=10)
        renamed = {name.replace(".shortcut.", ".downsample."): value for name, value in state.items()}
        assert "layer2.0.downsample.1.running_var" in renamed and len(renamed) == len(state)
        expected, model = (ResNet18_2D(10, 3, "linear", width=4) for _ in range(2))
        expected.load_state_dict(state)
        model.load_state_dict(copied := dict(renamed))
        assert copied == renamed  # which is left as it was
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in expected.state_dict().items())
        wrapped = nn.Sequential(OrderedDict(module=ResNet18_2D(10, 3, "linear", width=4)))
        wrapped.load_state_dict({f"module.{name}": value for name, value in renamed.items()})
        assert torch.equal(
            wrapped.state_dict()["module.layer4.0.shortcut.0.weight"], state["layer4.0.shortcut.0.weight"]
        )
        for odd in ("layer2.0.downsample.0.bias", "layer1.0.downsample.0.weight", "layer2.0.downsampled.0.weight"):
            with pytest.raises(RuntimeError, match="Unexpected key"):
                model.load_state_dict(renamed | {odd: torch.ones(1)})
        with pytest.raises(RuntimeError, match=r"Unexpected key.*layer2\.0\.downsample\.0\.weight"):
            model.load_state_dict(state | {"layer2.0.downsample.0.weight": torch.ones(8, 4, 1, 1)})

    def test_training_updates_the_running_statistics(self):
        model = ResNet18_2D(4, head="linear", width=4)
        before = copy.deepcopy(model.state_dict())
        model.eval()(torch.randn(2, 1, 32, 32))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.train()(torch.randn(2, 1, 32, 32))
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if re.search("running|tracked", name)}

    @pytest.mark.parametrize("head", HEADS)
    def test_gradients_reach_every_parameter(self, head):
        model = ResNet18_2D(12, head=head, width=4)
        images = torch.randn(4, 1, 32, 32, requires_grad=True)
        model(images).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name
        assert images.grad.isfinite().all() and images.grad.any()

    def test_options_reach_the_head(self):
        sparse = ResNet18_2D(20, width=4, sparsity=0.3, iterations=7).fc
        assert (sparse.sparsity, sparse.iterations, sparse.dictionary.shape) == (0.3, 7, (32, 20))
        assert len(ResNet18_2D(20, head="sparse-linear", width=4, density=0.05).fc.values) == 32

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    def test_compiles(self):
        model = ResNet18_2D(10, head="sparse-linear", width=2).eval().requires_grad_(False)
        model.layer3 = model.layer4 = nn.Sequential()  # one block of either kind will do
        model.layer1, model.layer2, model.fc = model.layer1[:1], model.layer2[:1], SparseLinear(4, 10)
        images = torch.randn(2, 1, 16, 16)
        assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(images), model(images))

    def test_block_by_its_shapes(self):
        images = torch.randn(2, 4, 7, 6)
        for out_channels, stride, shortcut in ((4, 1, False), (6, 1, True), (4, 2, True)):
            for block, inputs in (
                (BasicBlock2D(4, out_channels, stride), images),
                (SpikingBasicBlock2D(4, out_channels, stride), images[:, None].expand(-1, 3, -1, -1, -1)),
            ):
                outputs = block(inputs)
                assert outputs.shape[-3:] == (out_channels, -(-7 // stride), -(-6 // stride))
                assert bool(len(block.shortcut)) == shortcut


STEPS = 8
EARLY = SRMParameters(threshold=0.5)


def stripes(batch: int = 8, size: int = 16, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Noisy images of stripes, across or upright."""
    images = 0.2 * torch.rand(batch, 1, size, size)
    images[::2, :, ::4] += 1
    images[1::2, :, :, ::4] += 1
    return images[:, None].expand(-1, steps, -1, -1, -1), torch.arange(batch) % 2


class Half(nn.Module):
    """One half of the channels."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.chunk(2, 2)[self.index]


class TestSpikingResNet:
    def test_forward_is_the_written_out_one(self):
        model = SpikingResNet18_2D(5, 2, EARLY, width=4)
        for name, parameter in model.named_parameters():
            nn.init.uniform_(parameter, *((-0.1, 0.1) if name.endswith("norm_bias") else (0.5, 1.5)))
        state = model.state_dict()

        def weight(name: str) -> Tensor:
            scale, shift = state[f"{name}.norm_weight"], state[f"{name}.norm_bias"]
            return batch_norm(state[f"{name}.weight"].flatten(1), scale, shift, dim=1).view_as(state[f"{name}.weight"])

        def convolve(name: str, x: Tensor, stride: int, padding: int) -> Tensor:
            return srm_conv2d(x, weight(name), EARLY, stride=stride, padding=padding)

        inputs = torch.rand(2, STEPS, 2, 33, 17)
        x = convolve("conv1", inputs, 2, 3)
        x = F.avg_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, (2, STEPS))
        for name, stride in BLOCKS.items():
            y = convolve(f"{name}.conv2", convolve(f"{name}.conv1", x, stride, 1), 1, 1)
            x = y + (convolve(f"{name}.shortcut.0", x, stride, 0) if stride > 1 else x)
        x = x.mean((3, 4))
        assert x.std() > 0
        expected = srm_linear(x, weight("fc"), EARLY)
        assert 0.1 < expected.mean() < 0.9
        torch.testing.assert_close(model(inputs), expected)

    def test_a_sum_gives_each_branch_the_gradient_of_its_own_spikes(self):
        """A convolution of a sum is that of both terms side by side, with the same kernel for both."""
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(4, 3, 3, 3, generator=generator)
        branches = (torch.rand(2, STEPS, 6, 6, 6, generator=generator) < 0.3).float()
        grad = torch.randn(2, STEPS, 4, 4, 4, generator=generator)
        block = SpikingBasicBlock2D(6, 6)
        block.conv1, block.conv2, block.shortcut = nn.Identity(), Half(0), Half(1)
        results = []
        for join, kernel in ((block, weight), (nn.Identity(), weight.repeat(1, 2, 1, 1))):
            inputs = branches.clone().requires_grad_()
            spikes = srm_conv2d(join(inputs), kernel)
            results.append((spikes, *torch.autograd.grad(spikes, inputs, grad)))
        assert torch.equal(results[0][0], results[1][0])
        assert results[1][1].any()
        torch.testing.assert_close(results[0][1], results[1][1])

    @pytest.mark.parametrize(
        ("options", "much"), [({}, 0.5), ({"learn": ("threshold",)}, 0.5), ({"gradient": "event"}, 0.9)], ids=str
    )
    def test_trains_end_to_end(self, options, much):
        model = SpikingResNet18_2D(2, width=8, **options)
        inputs, labels = stripes()
        rates = calibrate_gain(model, inputs)
        assert len(rates) == 21 and all(0.1 < rate < 0.15 for rate in rates.values())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = count_loss(model(inputs), labels, desired=STEPS / 2, undesired=0)
            loss.backward()
            if not losses:
                for name, parameter in model.named_parameters():
                    assert parameter.grad.isfinite().all() and parameter.grad.any(), name
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < much * losses[0]
        assert (predict(model(inputs)) == labels).float().mean() > (0.7 if "gradient" in options else 0.99)

    def test_potentials_as_the_answer(self):
        model = SpikingResNet18_2D(2, width=8, gradient="surrogate", readout="membrane")
        inputs, labels = stripes()
        calibrate_gain(model, inputs)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(16):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs)[:, -1], labels).backward()
            optimizer.step()
        assert torch.equal(model(inputs)[:, -1].argmax(1), labels)

    @pytest.mark.parametrize(("gradient", "shares"), [("event", True), ("original", True), ("surrogate", False)])
    def test_the_sum_of_branches_follows_the_gradient(self, gradient, shares):
        block = SpikingBasicBlock2D(3, 3, gradient=gradient)
        a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
        block.add(a, b).sum().backward()
        assert a.grad.tolist() == b.grad.tolist() == ([0.5, 0.5] if shares else [1, 1])

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    def test_compiles(self):
        model = SpikingResNet18_2D(2, width=2)
        model.layer1, model.layer2 = model.layer1[:1], model.layer2[:1]
        model.layer3 = model.layer4 = nn.Sequential()  # as above
        model.fc = SRMLinear(4, 2, output=True)
        inputs, _ = stripes(2, steps=3)
        gradients = []
        for function in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
            spikes = function(inputs)
            gradients.append((spikes, *torch.autograd.grad(spikes.sum(), list(model.parameters()))))
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("spiking", [False, True])
def test_slices_are_the_features(spiking):
    model = SpikingResNet18_2D(3, 2, EARLY, width=2) if spiking else ResNet18_2D(3, 2, "linear", width=2)
    images = torch.rand(2, 4, 2, 33, 17) if spiking else torch.rand(2, 2, 33, 17)
    model.eval()
    features = model[:-1](images)
    assert features.shape == (*images.shape[:-3], 16)
    assert torch.equal(model.fc(features), model(images))
    assert torch.equal(model[-1:](model[2:-1](model[:2](images))), model(images))
    assert list(dict(model[::2].named_children())) == list(dict(model.named_children()))[::2]
    assert type(model[:-1]) is nn.Sequential and model[:-1].conv1 is model.conv1
    assert model[0] is model.conv1 and model[-1] is model.fc and model[1:1](images) is images


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (2, 64)])
def test_any_size_of_images_and_double_precision(size):
    for model, leading in ((ResNet18_2D(3, 3, "linear", width=2), (2,)), (SpikingResNet18_2D(3, 3, width=2), (2, 4))):
        outputs = model.double().eval()(torch.rand(*leading, 3, *size, dtype=torch.float64))
        assert outputs.shape == (*leading, 3) and outputs.dtype == torch.float64


@pytest.mark.parametrize("head", [*HEADS, "spiking"])
def test_checkpoints_and_pickles(head, tmp_path):
    inputs = torch.randn(2, 1, 32, 32)

    def build() -> nn.Module:
        if head == "spiking":
            return SpikingResNet18_2D(2, width=2)
        options = {"sparsity": 1e-3} if head == "sparse" else {}
        return ResNet18_2D(10, head=head, width=4, **options).eval()

    model = build()
    if head == "spiking":
        inputs = stripes(2)[0]
        calibrate_gain(model, inputs, spikes_per_neuron=0.5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = build()
    assert not torch.equal(fresh(inputs), model(inputs))
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    for same in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(inputs), model(inputs))


@pytest.mark.parametrize("network", [ResNet18_2D, SpikingResNet18_2D])
def test_bad_sizes(network):
    for sizes, error, message in (
        ({"out_features": 0}, ValueError, "out_features must be finite and ≥ 1, got 0"),
        ({"out_features": 10.0}, TypeError, "out_features must be an int, got 10.0 of type float"),
        ({"in_channels": 0}, ValueError, "in_channels must be finite and ≥ 1, got 0"),
        ({"in_channels": "1"}, TypeError, "in_channels must be an int, got '1'"),
        ({"width": 0}, ValueError, "width must be finite and ≥ 1, got 0"),
    ):
        with pytest.raises(error, match=message):
            network(**sizes)


def test_bad_input():
    model, spiking = ResNet18_2D(4, head="linear", width=4), SpikingResNet18_2D(2, width=2)
    for call, error, message in (
        (lambda: ResNet18_2D(head="dense"), ValueError, r"head must be one of .*'sparse-linear'.*, got 'dense'"),
        (lambda: ResNet18_2D(head="linear", width=4, density=0.1), TypeError, "unexpected .* argument 'density'"),
        (lambda: ResNet18_2D(width=4, density=0.1), TypeError, "unexpected keyword argument 'density'"),
        (lambda: ResNet18_2D(head="sparse-linear", width=4, sparsity=1), TypeError, "argument 'sparsity'"),
        (lambda: model(torch.rand(1, 32, 32)), ValueError, r"inputs must have the shape \[batch, in_channels, hei"),
        (lambda: model(torch.rand(2, 3, 8, 8)), ValueError, r"inputs must have 1 entries on axis 1 \(in_channels"),
        (lambda: model(torch.ones(2, 1, 8, 8).long()), TypeError, "inputs must have one of the dtypes"),
        (lambda: SpikingResNet18_2D(parameters=5.0, width=2), TypeError, "parameters must be SRMParameters or None"),
        (lambda: spiking(torch.rand(2, 1, 8, 8)), ValueError, r"the shape \[batch, time, in_channels, height, w"),
        (lambda: spiking(torch.rand(1, 2, 2, 8, 8)), ValueError, "inputs must have 1 entries on axis 2"),
    ):
        with pytest.raises(error, match=message):
            call()
