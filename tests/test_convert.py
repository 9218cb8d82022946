"""Networks of snnTorch and SpikingJelly against what they became, spike for spike, in both directions."""

import pytest
import snntorch as snn
import torch
from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity, Footprint
from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
from neurobench.models import TorchModel
from snntorch import utils
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from srm_triton import (
    SpikeAvgPool2d,
    SRMConv1d,
    SRMConv2d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMReadout,
    SRMRecurrent,
)
from srm_triton.convert import from_snntorch, from_spikingjelly, to_snntorch, to_spikingjelly, to_torch

LEAKY = SRMParameters(tau_m=7.3, tau_s=1.0, threshold=0.8)
CHANNELS = SRMParameters(torch.tensor([3.1, 9.7, 40.0, 2.2]), 1.0, threshold=torch.tensor([0.5, 0.7, 0.9, 1.3]))
WHOLE = SRMParameters(torch.inf, 1.0)
ZERO = {"reset_mechanism": "zero", "init_hidden": True}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def run_snntorch(network, inputs):
    utils.reset(network)
    return torch.stack([network(step) for step in inputs.unbind(1)], 1)


def run_spikingjelly(network, inputs):
    functional.reset_net(network)
    functional.set_step_mode(network, "m")
    return network(inputs.transpose(0, 1)).transpose(0, 1)


def check(spikes, expected, low=0.02):
    assert torch.equal(spikes, expected)
    assert low < expected.mean() < 1 - low


@pytest.mark.parametrize("delay", [False, True])
def test_leaky(delay):
    beta, threshold = torch.rand(5), torch.rand(5) + 0.1
    network = nn.Sequential(
        nn.Linear(6, 5),
        snn.Leaky(beta, threshold=threshold, reset_delay=delay, **ZERO),
        nn.Identity(),
        nn.Linear(5, 4, bias=False),
        snn.Leaky(0.9, threshold=0.2, reset_delay=delay, **ZERO),
    )
    inputs = 3 * torch.rand(2, 50, 6)
    layers = from_snntorch(network)
    check(layers(inputs), run_snntorch(network, inputs))
    assert [name for name, _ in layers.named_children()] == ["0", "3"]
    assert [(layer.rules.gradient, layer.rules.output) for layer in layers] == [
        ("surrogate", False),
        ("surrogate", True),
    ]


def test_leaky_behind_convolutions():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1, groups=1, bias=False),
        nn.BatchNorm2d(4),
        snn.Leaky(torch.rand(4, 1, 1), threshold=torch.rand(4, 1, 1) + 0.1, **ZERO),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(16, 4), nn.Dropout(0.3), snn.Leaky(1.0, threshold=0.3, **ZERO)),
    )
    network(torch.randn(20, 1, 8, 8))  # statistics
    network = network.eval()
    inputs = 3 * torch.rand(2, 40, 1, 8, 8)
    check(from_snntorch(network)(inputs), run_snntorch(network, inputs))


def test_recurrent_leaky():
    own = snn.RLeaky(0.8, linear_features=5, threshold=0.4, reset_delay=False, **ZERO)
    own.recurrent = nn.Linear(5, 5, bias=False)
    network, inputs = nn.Sequential(nn.Linear(6, 5), own), 2 * torch.rand(3, 40, 6)
    layers = from_snntorch(network)
    assert type(layers[0]) is SRMRecurrent
    check(layers(inputs), run_snntorch(network, inputs))
    check(run_snntorch(to_snntorch(layers), inputs), layers(inputs))


def test_a_neuron_alone():
    current = torch.rand(2, 30, 4)
    for module, run, convert in (
        (snn.Leaky(0.8, **ZERO), run_snntorch, from_snntorch),
        (neuron.LIFNode(2.0, decay_input=False), run_spikingjelly, from_spikingjelly),
    ):
        found = convert(module)
        assert type(found) is SRMNeuron
        check(found(current), run(module, current))


def around(parameters):
    return SRMConv2d(1, 4, 3, 2, 1, padding_mode="circular", parameters=parameters)


# networks and the shape of their inputs at a step, made when the test has set the seed
OURS = {
    "linear": (lambda: [SRMLinear(6, 5, LEAKY), SRMLinear(5, 4, WHOLE, bias=True)], (6,)),
    "conv": (lambda: [around(LEAKY), SpikeAvgPool2d(2, 1), nn.Flatten(2)], (1, 8, 8)),
    "conv1d": (lambda: [SRMConv1d(2, 4, 3, padding="same", parameters=WHOLE, bias=True)], (2, 8)),
}
CHANNELWISE = {
    "channels": (lambda: [SRMLinear(6, 4, CHANNELS)], (6,)),
    "maps": (lambda: [SRMConv2d(1, 4, 3, parameters=CHANNELS), nn.Flatten(2), SRMLinear(64, 4, CHANNELS)], (1, 6, 6)),
    "recurrent": (lambda: [SRMRecurrent(6, 4, CHANNELS, bias=True)], (6,)),
}


@pytest.mark.parametrize("name", [*OURS, *CHANNELWISE])
def test_to_snntorch_and_back(name):
    layers, shape = (OURS | CHANNELWISE)[name]
    network, inputs = nn.Sequential(*layers()).eval(), 2 * torch.rand(2, 40, *shape)
    theirs = to_snntorch(network)
    check(run_snntorch(theirs, inputs), network(inputs))
    check(from_snntorch(theirs)(inputs), network(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OURS)
def test_to_spikingjelly_and_back(name, dtype):
    layers, shape = OURS[name]
    network = nn.Sequential(*layers()).to(dtype).eval()
    inputs = 2 * torch.rand(2, 40, *shape, dtype=dtype)
    theirs = to_spikingjelly(network)
    check(run_spikingjelly(theirs, inputs), network(inputs))
    back = from_spikingjelly(theirs)
    check(back(inputs), network(inputs))
    neurons = [module for module in network.modules() if isinstance(module, SRMNeuron)]
    copies = [module for module in back.modules() if isinstance(module, SRMNeuron)]
    for before, after in zip(neurons, copies, strict=True):
        assert (after.tau_m, after.threshold) == (before.tau_m, before.threshold.to(dtype))


def test_potentials_in_snntorch():
    network = nn.Sequential(SRMLinear(6, 4, LEAKY), SRMReadout(4, 4, CHANNELS)).eval()
    inputs, theirs = 2 * torch.rand(2, 40, 6), to_snntorch(network)
    utils.reset(theirs)
    potentials = torch.stack([theirs(step)[1] for step in inputs.unbind(1)], 1)
    assert torch.equal(potentials, network(inputs))


@pytest.mark.parametrize("node", [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("v_reset", [0.0, -0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nodes(node, decay_input, v_reset, dtype):
    options = {"v_threshold": 0.7, "v_reset": v_reset}
    options |= {neuron.LIFNode: {"tau": 3.7}, neuron.ParametricLIFNode: {"init_tau": 2.9}}.get(node, {})
    options |= {} if node is neuron.IFNode else {"decay_input": decay_input}
    network = nn.Sequential(layer.Linear(6, 50), node(**options)).to(dtype)
    inputs = 4 * torch.rand(4, 60, 6, dtype=dtype)
    check(from_spikingjelly(network)(inputs), run_spikingjelly(network, inputs))


def test_nodes_behind_convolutions():
    network = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)),
        neuron.LIFNode(2.0, v_threshold=0.3),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Dropout(0.4),
        layer.Linear(64, 10),
        layer.BatchNorm1d(10),
        neuron.IFNode(),
    )
    functional.set_step_mode(network, "m")
    network(torch.randn(4, 20, 1, 8, 8))  # statistics
    network = network.eval()
    inputs = 3 * torch.rand(2, 40, 1, 8, 8)
    check(from_spikingjelly(network)(inputs), run_spikingjelly(network, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nodes_fire_at_the_threshold_too(dtype):
    """Whole numbers meet the threshold exactly, all the time."""
    current = torch.randint(-1, 3, (4, 50, 20)).to(dtype)
    node = neuron.IFNode(v_threshold=2.0)
    expected = run_spikingjelly(node, current)
    ours = from_spikingjelly(nn.Sequential(layer.Linear(20, 20, bias=False).to(dtype), node))[0].neuron
    check(ours(current), expected)
    plain = SRMNeuron(SRMParameters(torch.inf, 1.0, threshold=2.0))(current)
    assert (plain != expected).float().mean() > 0.1
    node = to_spikingjelly(nn.Sequential(SRMLinear(20, 20, WHOLE, dtype=dtype)))[1]
    check(run_spikingjelly(node, current), SRMNeuron(WHOLE)(current))


def test_a_last_linear_layer_stays():
    network = nn.Sequential(layer.Linear(6, 5), neuron.LIFNode(2.0, v_threshold=0.2), layer.Linear(5, 3))
    inputs = 3 * torch.rand(2, 20, 6)
    assert torch.equal(from_spikingjelly(network)(inputs), run_spikingjelly(network, inputs))


def test_what_was_converted_learns_on_its_own():
    network = nn.Sequential(layer.Linear(6, 5), neuron.LIFNode(2.0, v_threshold=0.1))
    before = network[0].weight.clone()
    layers = from_spikingjelly(network, gradient="event", keep="spikes")
    layers(3 * torch.rand(2, 20, 6)).sum().backward()
    assert layers[0].rules.gradient == "event" and layers[0].rules.keep == "spikes"
    with torch.no_grad():
        layers[0].weight.sub_(layers[0].weight.grad)
    assert layers[0].weight.grad.any() and torch.equal(network[0].weight, before)
    assert layers[0].weight.ne(before).any()


def leaky(**options):
    return nn.Sequential(nn.Linear(4, 3), snn.Leaky(**{"beta": 0.5, **ZERO, **options}))


def rleaky(recurrent):
    module = snn.RLeaky(0.5, linear_features=3, reset_delay=False, **ZERO)
    module.recurrent = recurrent
    return module


INHIBITED = leaky()
INHIBITED[1].inhibition = True  # its constructor warns


def lif(**options):
    return nn.Sequential(nn.Linear(4, 3), neuron.LIFNode(**options))


@pytest.mark.parametrize(
    ("convert", "network", "error", "message"),
    [
        (
            from_snntorch,
            leaky(reset_mechanism="subtract"),
            ValueError,
            r"1: must have reset_mechanism='zero'.*subtracts",
        ),
        (
            from_snntorch,
            leaky(reset_mechanism="none"),
            ValueError,
            r"1: must have reset_mechanism='zero'.*does not reset",
        ),
        (from_snntorch, INHIBITED, ValueError, r"1: must have inhibition=False"),
        (from_snntorch, leaky(state_quant=lambda x: x), ValueError, r"1: must have state_quant=False"),
        (from_snntorch, leaky(graded_spikes_factor=2.0), ValueError, r"1: must have graded_spikes_factor=1"),
        (from_snntorch, leaky(beta=0.0), ValueError, r"1: must have beta > 0"),
        (from_snntorch, leaky(beta=torch.rand(3, 1)), ValueError, r"1: beta must hold one value or one for each chan"),
        (
            from_snntorch,
            nn.Sequential(nn.Conv2d(1, 3, 3), snn.Leaky(torch.rand(3), **ZERO)),
            ValueError,
            r"1: beta must hold one value or one for each channel, \[channels, 1, 1\], got \[3\]",
        ),
        (from_snntorch, snn.Synaptic(0.5, 0.5, **ZERO), TypeError, r"0: must be a Leaky.*leaves the synaptic current"),
        (from_snntorch, snn.RLeaky(0.5, linear_features=3, **ZERO), ValueError, r"0: must have reset_delay=False"),
        (from_snntorch, nn.ReLU(), TypeError, r"network must consist of nn.Linear.*got ReLU at '0'"),
        (
            from_snntorch,
            nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
            ValueError,
            r"1: must have fixed statistics",
        ),
        (from_snntorch, nn.Sequential(nn.BatchNorm1d(3)).eval(), ValueError, r"0: must stand behind an affine map"),
        (from_snntorch, nn.Sequential(nn.Dropout(0.5)), ValueError, r"0: must not drop outputs.*call \.eval\(\)"),
        (from_snntorch, nn.Sequential(nn.MaxPool2d(2)), TypeError, r"got MaxPool2d at '0'"),
        (from_snntorch, nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), ValueError, r"0: must divide by the size"),
        (from_snntorch, nn.Sequential(nn.Linear(4, 4), nn.Flatten()), ValueError, r"0: must have neurons behind it"),
        (from_snntorch, nn.Sequential(nn.Conv2d(1, 3, 3)), ValueError, r"0: must have neurons behind it, got Conv2d"),
        (from_snntorch, nn.Sequential(nn.Flatten(0)), ValueError, r"0: must leave batch and time"),
        (from_snntorch, leaky().half(), TypeError, r"0: must have weights in float32 or float64"),
        (from_snntorch, "network", TypeError, r"network must be a torch\.nn\.Module, got str"),
        (from_spikingjelly, lif(v_reset=None), ValueError, r"1: must have a v_reset.*v_reset=None, which subtracts"),
        (from_spikingjelly, lif(v_threshold=0.1, v_reset=0.2), ValueError, r"1: must have v_threshold above v_reset"),
        (from_spikingjelly, neuron.CUBALIFNode(), TypeError, r"0: must be an IFNode.*leaves the synaptic current"),
        (
            from_spikingjelly,
            neuron.EIFNode(),
            TypeError,
            r"0: must be an IFNode.*got EIFNode, which has other equations",
        ),
        (from_snntorch, rleaky(nn.Linear(3, 3)), ValueError, r"0: must have recurrent.bias = 0"),
        (from_snntorch, rleaky(nn.Conv2d(3, 3, 1)), ValueError, r"0: must have an nn.Linear of its spikes.*Conv2d"),
        (
            to_snntorch,
            nn.Sequential(SRMReadout(4, 3, LEAKY), SRMLinear(3, 2, LEAKY)),
            ValueError,
            r"0_neurons: an SRMReadout must be the last layer",
        ),
        (to_snntorch, SRMLinear(4, 3), ValueError, r"0_neurons: Leaky has no synaptic current, tau_s must be 1"),
        (to_spikingjelly, SRMLinear(4, 3), ValueError, r"0_neurons: LIFNode has no synaptic current"),
        (to_spikingjelly, SRMLinear(4, 4, CHANNELS), ValueError, r"0_neurons: must have one value for all neurons"),
        (to_spikingjelly, SRMReadout(4, 4, LEAKY), ValueError, r"no neurons whose potentials are the output"),
        (to_spikingjelly, SRMRecurrent(4, 4, LEAKY), ValueError, r"no neurons with recurrence"),
        (to_torch, nn.Sequential(SRMLinear(4, 4), nn.Tanh()), TypeError, r"got Tanh at '1'"),
    ],
)
def test_what_differs_is_named(convert, network, error, message):
    with pytest.raises(error, match=message):
        convert(network)


def whole():
    hidden = SRMLinear(16, 6, LEAKY, bias=True)
    with torch.no_grad():
        hidden.weight[0, :5] = 0  # pruned
    return nn.Sequential(
        SRMConv2d(1, 4, 3, padding="same", parameters=CHANNELS),
        SpikeAvgPool2d(2),
        nn.Flatten(2),
        hidden,
        SRMRecurrent(6, 4, CHANNELS),
        SRMReadout(4, 2),
    ).eval()


@pytest.mark.parametrize("batch_first", [False, True])
def test_plain_modules_compute_the_same(batch_first):
    network, inputs = whole(), 2 * torch.rand(3, 20, 1, 4, 4)
    if not batch_first:
        inputs = inputs.transpose(0, 1)
        for module in network.modules():
            if hasattr(module, "batch_first"):
                module.batch_first = False
    assert torch.equal(to_torch(network, batch_first=batch_first)(inputs), network(inputs))


def test_metrics_of_neurobench():
    """By hand: what the layers hold, and the spikes and inputs that reach every weight which is not 0."""
    network = whole()
    inputs, labels = (torch.rand(7, 20, 1, 4, 4) < 0.5).float() * 2, torch.arange(7) % 2
    plain = to_torch(network)
    model = TorchModel(plain)
    model.add_activation_module(SRMNeuron)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=4)
    metrics = [[Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations]]
    found = Benchmark(model, data, [], [], metrics).run(quiet=True)

    weights = [module.weight for module in plain.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    constants = sum(buffer.numel() for buffer in plain.buffers()) * 8
    assert found["Footprint"] == (sum(weight.numel() for weight in weights) + 6 + 2) * 4 + constants
    zeros, total = sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)
    assert zeros == 5 and found["ConnectionSparsity"] == round(zeros / total, 4)

    first, second = network[0](inputs), network[:4](inputs)
    third = network[:5](inputs)
    spiking = [first, second, third]
    fired = sum(int(spikes.sum()) for spikes in spiking)
    assert found["ActivationSparsity"] == pytest.approx(
        1 - fired / sum(spikes.numel() for spikes in spiking), rel=1e-12
    )
    operations = found["SynapticOperations"]
    accumulated = (
        4 * second.sum().item() + 4 * third[:, :-1].sum().item() + 2 * third.sum().item()
    )  # R has seen no spike at step 0
    assert operations["Effective_ACs"] * 7 == pytest.approx(accumulated)
