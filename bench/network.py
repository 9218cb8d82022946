"""Whole networks: a training step, which is forward and backward to every parameter, and inference.

The contenders are our networks with their spiking layers exchanged, so all have the same sizes. Inputs are spikes, one
in ten values; our networks are calibrated to fire in one step of eight. An element is a neuron at a step.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.contenders import PEERS, SNNTORCH_LEAKY, PublishedLayer
from bench.harness import DEVICE, WORK, Contender, Function, over
from srm_triton import SpikingResNet18_2D, SRMConv2d, SRMLinear, calibrate_gain, spiking_network
from srm_triton.layers import spiking_layers
from srm_triton.levels import Keep

# notation of the hidden layers, inputs at a step, and samples times steps
CASES: dict[str, tuple[str, dict[str, int], int]] = {
    "784-1000-10": ("1000", {"features": 784}, 640),
    "32C5-P2-64C5-P2-1024-10": ("32C5-P2-64C5-P2-1024", {"channels": 1, "height": 28, "width": 28}, 320),
    "spiking ResNet-18": ("ResNet-18", {"channels": 3, "height": 32, "width": 32}, 160),
}
STEPS = (5, 20, 100)
LONG = {"100-6 x 500-10": ("500-500-500-500-500-500", {"features": 100}, 8000)}  # where memory matters most
RUNS = [*itertools.product(STEPS, CASES), *itertools.product((1000,), LONG)]
SCALE = max(1, WORK // 4)  # the published gradient of a weight is one product a sample, all kept at once
MODES = {"training": True, "inference": False}
Exchange = Callable[[nn.Linear | nn.Conv2d], nn.Module]


class Layer(nn.Module):
    """An affine map at every step and neurons behind it."""

    def __init__(self, affine: nn.Module, neurons: Function) -> None:
        super().__init__()
        self.affine, self.neurons = affine, neurons

    def forward(self, inputs: Tensor) -> Tensor:
        return self.neurons(self.affine(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]))


class InBFloat16(nn.Module):
    """A network under autocast."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return self.network(inputs)


def build(hidden: str, steps: int, width: int, *inputs: int, keep: Keep = "current") -> nn.Module:
    """Our network."""
    if hidden == "ResNet-18":
        return SpikingResNet18_2D(10, inputs[0], width=width, keep=keep)
    sizes = inputs if len(inputs) > 1 else inputs[0]
    return spiking_network(hidden, sizes, 10, steps=steps, readout="spikes", keep=keep)


def exchanged(network: nn.Module, exchange: Exchange) -> nn.Module:
    """The network with another layer of the same size in the place of each spiking one."""
    for name, layer in spiking_layers(network):
        bias = layer.bias is not None
        if isinstance(layer, SRMConv2d):
            sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
            affine: nn.Linear | nn.Conv2d = nn.Conv2d(*sizes, bias=bias)
        else:
            assert isinstance(layer, SRMLinear)
            affine = nn.Linear(layer.in_features, layer.out_features, bias)
        network.set_submodule(name, exchange(affine))
    return network


def neurons_times_steps(network: nn.Module, inputs: Tensor) -> int:
    """Spikes that there may be."""
    counts: list[int] = []
    for _, layer in spiking_layers(network):
        layer.register_forward_hook(lambda layer, inputs, spikes: counts.append(spikes.numel()))
    with torch.no_grad():
        network(inputs)
    return sum(counts)


# An element is a neuron at a step.
@over("steps, name, mode", [(*run, mode) for run in RUNS for mode in MODES])
def test_network(measure, shrink, steps, name, mode):
    hidden, sizes, samples = (CASES | LONG)[name]
    shape = shrink({"batch": SCALE * samples // steps, "steps": steps, "width of ResNet": 64} | sizes)
    batch, steps, width, *size = shape.values()
    inputs = (torch.rand(batch, steps, *size, device=DEVICE) < 0.1).float()

    def network(keep: Keep = "current") -> nn.Module:
        torch.manual_seed(0)  # so that those of ours compute the same
        return build(hidden, steps, width, *size, keep=keep)

    def ready(module: nn.Module) -> nn.Module:
        return module.to(DEVICE).train(MODES[mode])

    def ours(keep: Keep = "current") -> nn.Module:
        """`spiking_network` with its defaults but spikes as the answer, and `SpikingResNet18_2D`."""
        module = network(keep).to(DEVICE)
        calibrate_gain(module, inputs)
        return ready(module)

    def lean() -> nn.Module:
        """The same with ``keep="spikes"``."""
        return ours("spikes")

    def of(peer: Contender) -> Contender:
        def build() -> nn.Module:
            return ready(exchanged(network(), lambda affine: Layer(affine, peer.build())))

        build.__doc__ = peer.about
        return Contender(peer.name, build, peer.time_first, comparable=False)

    def published() -> nn.Module:
        """Weights normalised by a formula, and the published loop; of a weight's gradient one product a sample."""
        return ready(exchanged(network(), PublishedLayer))

    def products() -> nn.Module:
        """The affine maps and pooling, without neurons and normalisation: the limit."""
        return ready(exchanged(network(), lambda affine: Layer(affine, nn.Identity())))

    def in_bfloat16(contender: Contender) -> Contender:
        def build() -> nn.Module:
            """The same under autocast."""
            return InBFloat16(contender.build())

        return Contender(f"{contender.name}, bfloat16", build, contender.time_first, comparable=False)

    peers = [of(SNNTORCH_LEAKY if peer.name == "snnTorch" else peer) for peer in PEERS]
    own, limit = Contender("srm-triton", ours), Contender("products alone", products, comparable=False)
    contenders = [
        own,
        in_bfloat16(own),
        *([Contender("srm-triton, lean", lean)] if MODES[mode] else []),
        *peers,
        in_bfloat16(peers[0]),
        Contender("published network", published, comparable=False),
        limit,
        in_bfloat16(limit),
    ]
    elements = neurons_times_steps(network().to(DEVICE), inputs)
    shown = {axis: length for axis, length in shape.items() if axis not in ("steps", "width of ResNet")}
    options = {"backward": MODES[mode], "elements": elements, "peak": True}
    measure(f"{name}, T = {steps}, {mode}", shown, contenders, [inputs], **options)
