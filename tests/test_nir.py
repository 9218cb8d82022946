"""Graphs of NIR: their equations stepped in NumPy, round trips, and what other libraries read and write."""

import nir
import numpy as np
import pytest
import snntorch
import torch
from snntorch import utils
from snntorch.export_nir import export_to_nir as snntorch_export
from snntorch.import_nir import import_from_nir as snntorch_import
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir as spikingjelly_export
from spikingjelly.activation_based.nir_exchange import import_from_nir as spikingjelly_import
from torch import nn

from srm_triton import (
    SpikeAvgPool2d,
    SRMAffine,
    SRMConv1d,
    SRMConv2d,
    SRMConv3d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMReadout,
    SRMRecurrent,
    spiking_network,
)
from srm_triton.layers import SRMLayer
from srm_triton.nir import from_nir, to_nir

LEAKY = SRMParameters(tau_m=7.3, tau_s=1.0, threshold=0.8)
CHANNELS = SRMParameters(torch.tensor([3.1, 9.7, 40.0, 2.2]), 1.0, threshold=torch.tensor([0.5, 0.7, 0.9, 1.3]))
WHOLE = SRMParameters(torch.inf, 1.0)
SYNAPTIC = SRMParameters(6.0, 2.5, threshold=0.7)


def networks():
    """Name, network, shape of a step."""
    conv = {"parameters": CHANNELS, "bias": True}
    return [
        ("linear", nn.Sequential(SRMLinear(6, 4, CHANNELS), SRMLinear(4, 3, WHOLE, bias=True)), (6,)),
        ("conv", nn.Sequential(SRMConv2d(2, 4, 3, (2, 1), 1, (1, 2), 2, **conv), SpikeAvgPool2d(2, (2, 1))), (2, 8, 9)),
        (
            "same",
            nn.Sequential(SRMConv2d(1, 4, (2, 3), padding="same", **conv), nn.Flatten(2), nn.Linear(80, 2)),
            (1, 4, 5),
        ),
        ("conv1d", nn.Sequential(SRMConv1d(2, 4, 3, 2, 1, parameters=CHANNELS)), (2, 9)),
        ("recurrent", nn.Sequential(SRMRecurrent(5, 4, CHANNELS, bias=True), SRMReadout(4, 3, LEAKY)), (5,)),
        ("integrator", nn.Sequential(SRMLinear(5, 4, LEAKY), SRMReadout(4, 3, WHOLE)), (5,)),
        ("synapse", nn.Sequential(SRMLinear(5, 4, LEAKY), SRMReadout(4, 3, SYNAPTIC)), (5,)),
        ("neurons", nn.Sequential(SRMNeuron(LEAKY)), (3,)),
        ("module", nn.Sequential(SRMAffine(nn.Conv2d(1, 2, 2), LEAKY)), (1, 4, 4)),
        ("nested", nn.Sequential(nn.Sequential(SRMLinear(5, 4, LEAKY), nn.Dropout(0.5)), SRMLinear(4, 2, LEAKY)), (5,)),
        ("one", SRMLinear(5, 4, LEAKY), (5,)),
    ]


def events(shape, steps=30, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(3, steps, *shape, generator=generator) < 0.4).to(dtype) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "network", "shape"), networks(), ids=[case[0] for case in networks()])
def test_a_round_trip_keeps_every_spike(name, network, shape, dtype, tmp_path):
    torch.manual_seed(1)
    for module in network.modules():
        if hasattr(module, "reset_parameters") and module is not network:
            module.reset_parameters()
    network = network.to(dtype).eval()
    inputs = events(shape, dtype=dtype)
    expected = network(inputs)
    graph = to_nir(network, shape)
    nir.write(tmp_path / "network.nir", graph)
    for found in (graph, nir.read(tmp_path / "network.nir", type_check=name not in ("conv", "same"))):
        copy = from_nir(found)
        assert copy(inputs).dtype == expected.dtype
        assert torch.equal(copy(inputs), expected)
        layers = [module for module in copy.modules() if isinstance(module, SRMLinear | SRMConv2d)]
        assert all(layer.norm_weight is None and layer.rules.gradient == "surrogate" for layer in layers)
    spikes = (module for module in network.modules() if isinstance(module, SRMNeuron | SRMLayer))
    hidden = next(spikes)(inputs)
    assert 0.05 < hidden.count_nonzero() / hidden.numel() < 0.95


@pytest.mark.parametrize("dt", [1e-4, 1e-3, 0.3])
def test_constants_come_back_to_the_last_bit(dt):
    for tau in (*np.random.default_rng(0).uniform(1.01, 300, 60), 5.0, 20.0, 1.1):
        network = SRMLinear(2, 1, SRMParameters(tau, 1.0, threshold=tau / 3))
        neurons = from_nir(to_nir(network, 2, dt=dt), dt=dt)[0].neuron
        assert (neurons.tau_m, neurons.tau_s, neurons.threshold) == (tau, 1, tau / 3)


def test_a_network_with_defaults_of_the_package():
    torch.manual_seed(0)
    parameters = SRMParameters(5.0, 1.0)
    network = spiking_network("4C3-P2-20R-8", (1, 8, 8), 3, steps=20, parameters=parameters, dropout=0.2).eval()
    inputs = events((1, 8, 8), 20)
    assert torch.equal(from_nir(to_nir(network, (1, 8, 8)))(inputs), network(inputs))
    assert [name for name, _ in from_nir(to_nir(network, (1, 8, 8))).named_children()] == [
        *("conv1", "pool1", "flatten1", "hidden1", "hidden2", "output_layer"),
    ]


def euler(node, current, dt):
    """The equations of NIR by steps of length dt; [steps, ...] of spikes, or of potentials where nothing fires."""
    zero = np.zeros_like(node.r)
    v, synapse, out = getattr(node, "v_leak", zero) + zero, zero.copy(), []
    for x in current:
        if hasattr(node, "tau_syn"):
            synapse = synapse + dt / node.tau_syn * (-synapse + node.w_in * x)
            # the input acts on the potential at its own step, and decays from the next one on
            v = v + dt / node.tau_mem * (node.v_leak - v + node.r * synapse)
        elif hasattr(node, "tau"):
            v = v + dt / node.tau * (node.v_leak - v + node.r * x)
        else:
            v = v + dt * node.r * x
        if hasattr(node, "v_threshold"):
            out.append(v > node.v_threshold)
            v = np.where(out[-1], node.v_reset, v)
        else:
            out.append(v)
    return np.array(out, dtype=float)


@pytest.mark.parametrize("parameters", [LEAKY, CHANNELS, WHOLE])
@pytest.mark.parametrize("dt", [1e-4, 0.5])
def test_nodes_fire_by_the_equations_of_nir(parameters, dt):
    current = torch.rand(1, 200, 4, dtype=torch.float64)
    node = to_nir(SRMNeuron(parameters), 4, dt=dt).nodes["0"]
    spikes = SRMNeuron(parameters)(current)
    np.testing.assert_array_equal(euler(node, current[0].numpy(), dt), spikes[0].numpy())
    assert spikes.mean() > 0.1


@pytest.mark.parametrize("parameters", [LEAKY, WHOLE, SYNAPTIC])
def test_potentials_follow_the_equations_of_nir(parameters):
    current = torch.randn(1, 50, 3, dtype=torch.float64)
    network = SRMReadout(3, 3, parameters, bias=False, dtype=torch.float64)
    nn.init.eye_(network.weight)
    node = to_nir(network, 3, dt=0.01).nodes["0_neurons"]
    found = euler(node, current[0].numpy(), 0.01)
    np.testing.assert_allclose(found, network(current)[0].detach().numpy(), rtol=0, atol=1e-14)


NODES = {
    "gain of 1": nir.LIF(*np.array([[8e-3], [1.0], [0.0], [0.3], [0.0]])),
    "other gain": nir.LIF(*np.array([[8e-3, 4e-3], [3.0, 5.0], [0.0, 0.0], [0.9, 0.8], [0.0, 0.0]])),
    "rest": nir.LIF(*np.array([[8e-3], [8.0], [-0.7], [0.3], [-0.7]])),
    "integrator": nir.IF(*np.array([[300.0], [0.6], [0.0]])),
    "instant synapse": nir.CubaLIF(*np.array([[1e-3], [5e-3], [2.0], [0.0], [0.5], [0.0]]), w_in=np.array([1.5])),
}


@pytest.mark.parametrize("name", NODES)
def test_neurons_with_other_resistance_and_rest(name):
    node, dt = NODES[name], 1e-3
    current = torch.rand(1, 300, len(node.r), dtype=torch.float64)
    layers = from_nir(nir.NIRGraph.from_list(node), dt=dt)
    np.testing.assert_array_equal(euler(node, current[0].numpy(), dt), layers(current)[0].numpy())
    assert layers(current).mean() > 0.05


@pytest.mark.parametrize(
    "node",
    [
        nir.LI(*np.array([[8e-3, 4e-3], [3.0, 5.0], [0.0, 0.0]])),
        nir.I(np.array([300.0, 20.0])),
        nir.CubaLI(*np.array([[2e-3, 5e-3], [9e-3, 4e-3], [3.0, 2.0], [0.0, 0.0]]), w_in=np.array([0.7, 1.0])),
    ],
)
def test_potentials_with_other_resistance(node):
    affine = nir.Affine(np.random.default_rng(0).normal(size=(2, 3)), np.array([0.1, -0.2]))
    inputs = torch.randn(1, 40, 3, dtype=torch.float64)
    current = inputs[0].numpy() @ affine.weight.T + affine.bias
    found = from_nir(nir.NIRGraph.from_list(affine, node), dt=1e-3)(inputs)[0].detach().numpy()
    np.testing.assert_allclose(found, euler(node, current, 1e-3), rtol=0, atol=1e-13)


def test_a_synaptic_current_outlives_a_spike_in_nir_only():
    torch.manual_seed(0)
    network = nn.Sequential(SRMNeuron(SYNAPTIC))
    current = torch.rand(1, 60, 50, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"0: NIR has no such node for tau_s > 1.*resets the membrane potential and"):
        to_nir(network, 50)
    graph = to_nir(network, 50, approximate=True)
    with pytest.raises(ValueError, match=r"leaves the synaptic current.*approximate=True"):
        from_nir(graph)
    spikes, theirs = network(current)[0].numpy(), euler(graph.nodes["0"], current[0].numpy(), 1e-4)
    assert torch.equal(from_nir(graph, approximate=True)(current), network(current))
    assert (theirs.argmax(0) == spikes.argmax(0)).all()  # the same until the first spike,
    assert theirs.sum() > spikes.sum()  # from which it is nearer to the next


def stepped(module, inputs):
    """A module of NIRTorch over the steps of [batch, time, ...]."""
    outputs, state = [], None
    for step in inputs.unbind(1):
        spikes, state = module(step, state)
        outputs.append(spikes)
    return torch.stack(outputs, 1)


def chain(*bias):
    torch.manual_seed(0)
    return nn.Sequential(SRMLinear(6, 5, LEAKY, bias=True), SRMLinear(5, 4, LEAKY)).eval()


def test_spikingjelly_reads_our_graphs():
    network = nn.Sequential(SRMConv2d(1, 4, 3, padding=1, parameters=LEAKY), SpikeAvgPool2d(2), nn.Flatten(2))
    network = network.append(SRMLinear(16, 5, WHOLE, bias=True)).eval()
    inputs = torch.rand(2, 30, 1, 4, 4) * 3
    module = spikingjelly_import(to_nir(network, (1, 4, 4)))
    assert torch.equal(stepped(module, inputs), network(inputs))
    assert network(inputs).mean() > 0.02


def test_snntorch_reads_our_graphs():
    network, inputs = chain(), torch.rand(2, 30, 6) * 2
    module = snntorch_import(to_nir(network, 6))
    assert torch.equal(stepped(module, inputs), network(inputs))
    assert network(inputs).mean() > 0.05


@pytest.mark.parametrize("decay_input", [False, True])
def test_graphs_of_spikingjelly(decay_input):
    torch.manual_seed(0)
    theirs = nn.Sequential(
        layer.Conv2d(1, 3, 3, stride=2, padding=1),
        neuron.LIFNode(3.7, decay_input, v_threshold=0.4, v_reset=0.0),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(3, 4, bias=False),
        neuron.IFNode(v_threshold=0.3),
    )
    inputs = torch.rand(2, 30, 1, 4, 4) * 3
    graph = spikingjelly_export(theirs, inputs[:, 0])
    functional.set_step_mode(theirs, "m")
    expected = theirs(inputs.transpose(0, 1)).transpose(0, 1)
    assert torch.equal(from_nir(graph)(inputs), expected)
    assert expected.mean() > 0.05


@pytest.mark.filterwarnings("ignore:nirtorch.extract_nir_graph is being deprecated")
def test_graphs_of_snntorch():
    torch.manual_seed(0)
    own = {"reset_mechanism": "zero", "init_hidden": True}
    recurrent = snntorch.RLeaky(0.75, linear_features=4, threshold=0.4, reset_delay=False, **own)
    recurrent.recurrent = nn.Linear(4, 4, bias=False)
    leaky = snntorch.Leaky(torch.full((5,), 0.875), threshold=torch.full((5,), 0.3), **own)
    theirs = nn.Sequential(nn.Linear(6, 5), leaky, nn.Linear(5, 4), recurrent)
    inputs = torch.rand(2, 30, 6)
    graph = snntorch_export(theirs, inputs[:, 0], ignore_dims=[0])
    utils.reset(theirs)
    expected = torch.stack([theirs(step) for step in inputs.unbind(1)], 1)
    layers = from_nir(graph)
    assert isinstance(layers[1], SRMRecurrent)
    assert torch.equal(layers(inputs), expected)
    assert expected.mean() > 0.05


def test_a_graph_within_a_graph():
    network = nn.Sequential(SRMLinear(6, 5, LEAKY), SRMRecurrent(5, 5, LEAKY), SRMLinear(5, 2, LEAKY)).eval()
    flat = to_nir(network, 6)
    inside = ("1_neurons", "1_neurons_recurrent")
    ends = {"start": nir.Input(np.array([5])), "end": nir.Output(np.array([5]))}
    own = [edge for edge in flat.edges if set(edge) <= set(inside)]
    own = [("start", "1_neurons"), *own, ("1_neurons", "end")]
    nodes = {name: node for name, node in flat.nodes.items() if name not in inside}
    nodes["cell"] = nir.NIRGraph(ends | {name: flat.nodes[name] for name in inside}, own)
    edges = [
        ("cell" if a in inside else a, "cell" if b in inside else b) for a, b in flat.edges if {a, b} - set(inside)
    ]
    nested = nir.NIRGraph(nodes, edges, type_check=False)
    inputs = 2 * torch.rand(2, 30, 6)
    assert len(nested.nodes) == len(flat.nodes) - 1
    assert torch.equal(from_nir(nested)(inputs), network(inputs))
    assert network(inputs).mean() > 0.02


def lif(**changes):
    values = {"tau": 5e-3, "r": 5.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changes
    return nir.LIF(**{name: np.atleast_1d(value) for name, value in values.items()})


def branched():
    nodes = {"input": nir.Input(np.array([1])), "a": lif(), "b": lif(), "output": nir.Output(np.array([1]))}
    return nir.NIRGraph(nodes, [("input", "a"), ("input", "b"), ("a", "output"), ("b", "output")])


def beside():
    nodes = {"input": nir.Input(np.array([1])), "a": lif(), "b": lif(), "output": nir.Output(np.array([1]))}
    return nir.NIRGraph(nodes, [("input", "a"), ("b", "a"), ("a", "output")], type_check=False)


def looped(*loops):
    """Neurons with maps from themselves to themselves."""
    nodes = {"input": nir.Input(np.array([1])), "a": lif(), "output": nir.Output(np.array([1]))}
    nodes |= {f"loop{number}": loop for number, loop in enumerate(loops)}
    edges = [edge for name in nodes if name.startswith("loop") for edge in (("a", name), (name, "a"))]
    return nir.NIRGraph(nodes, [("input", "a"), *edges, ("a", "output")])


ONE = np.ones((1, 1))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nir.NIRGraph.from_list(lif(v_reset=0.2)), r"lif: must reset to its resting potential.*v_reset = \[0.2\]"),
        (nir.NIRGraph.from_list(lif(v_leak=-0.2)), r"lif: must reset to its resting potential"),
        (nir.NIRGraph.from_list(lif(tau=1e-3)), r"lif: its constants, in steps of dt = 0.001 s.*tau_m must be > 1"),
        (nir.NIRGraph.from_list(lif(v_threshold=-1.0)), r"lif: its constants.*threshold must be"),
        (nir.NIRGraph.from_list(lif(r=-1.0)), r"lif: must have a resistance and input weights above 0"),
        (nir.NIRGraph.from_list(nir.IF(*np.array([[1e3], [1.0], [0.5]]))), r"if: must reset to its resting potential"),
        (
            nir.NIRGraph.from_list(nir.Linear(ONE), nir.LI(*np.array([[5e-3], [1.0], [0.5]]))),
            r"li: must rest at v_leak = 0",
        ),
        (
            nir.NIRGraph.from_list(nir.LI(*np.array([[5e-3], [1.0], [0.0]]))),
            r"li: neurons that do not fire must have an",
        ),
        (nir.NIRGraph.from_list(nir.Linear(ONE), nir.Linear(ONE), lif()), r"linear: must have neurons behind it"),
        (nir.NIRGraph.from_list(nir.Scale(np.ones(1)), lif()), r"scale: must be one of Affine, .*got Scale"),
        (nir.NIRGraph.from_list(nir.Delay(np.ones(1)), lif()), r"delay: must be one of Affine, .*got Delay"),
        (beside(), r"graph must be a chain.*got \['b'\] beside it"),
        (looped(nir.Linear(ONE), nir.Linear(ONE)), r"a: neurons may have one Linear.*got Linear, Linear there"),
        (looped(nir.Affine(ONE, np.ones(1))), r"a: neurons may have one Linear, without a bias"),
        (looped(nir.Scale(np.ones(1))), r"a: neurons may have one Linear.*got Scale there"),
        (looped(nir.Linear(ONE)), r"a: recurrent neurons must have an nn.Linear before them"),
        (nir.NIRGraph.from_list(nir.Linear(np.ones((2, 1, 1)))), r"linear: must have a weight \[out_features, in_fea"),
        (branched(), r"graph must be a chain.*got 'input' with \['a', 'b'\]"),
        (
            nir.NIRGraph.from_list(nir.LIF(*(np.full((2, 3), v) for v in (5e-3, 5.0, 0)), np.eye(2, 3) + 1)),
            r"lif: must have one v_threshold for each channel",
        ),
    ],
)
def test_graphs_that_are_no_such_network(graph, message):
    with pytest.raises(ValueError, match=message):
        from_nir(graph, dt=1e-3)


@pytest.mark.parametrize(
    ("network", "inputs", "error", "message"),
    [
        (SRMConv2d(1, 2, 3, padding=1, padding_mode="circular", parameters=LEAKY), (1, 4, 4), ValueError, "by zeros"),
        (SRMConv3d(1, 2, 3, parameters=LEAKY), (1, 4, 4, 4), TypeError, r"0: NIR has no node for Conv3d"),
        (SRMLinear(3, 2, LEAKY), 4, ValueError, r"inputs must be the shape of a step.*got \[4\]"),
        (nn.Sequential(nn.ReLU()), 4, TypeError, r"network must consist of layers.*got ReLU at '0'"),
        (nn.Sequential(SRMLinear(4, 2, LEAKY), nn.Dropout(0.1)), 4, ValueError, r"1: must not drop outputs"),
        (nn.Sequential(nn.Flatten(1), SRMLinear(4, 2, LEAKY)), 4, ValueError, r"0: must leave batch and time"),
        (
            SRMNeuron(SRMParameters(torch.tensor([3.0, torch.inf]), 1.0)),
            2,
            ValueError,
            r"leak in all channels or in no",
        ),
        (SRMNeuron(SRMParameters(torch.inf, 2.0)), 2, ValueError, r"a synaptic current whose membrane does not leak"),
        (SRMNeuron(LEAKY), 0, ValueError, r"inputs must be finite and ≥ 1"),
    ],
)
def test_networks_that_nir_cannot_express(network, inputs, error, message):
    with pytest.raises(error, match=message):
        to_nir(network, inputs)


def test_arguments():
    graph = to_nir(SRMNeuron(LEAKY), 2)
    with pytest.raises(TypeError, match=r"graph must be a nir\.NIRGraph.*got str"):
        from_nir("network.nir")
    with pytest.raises(ValueError, match=r"dt must be finite and > 0"):
        from_nir(graph, dt=0)
    with pytest.raises(ValueError, match=r"dt must be finite and > 0"):
        to_nir(SRMNeuron(LEAKY), 2, dt=-1e-3)
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module"):
        to_nir("network", 2)
    with pytest.raises(TypeError, match=r"options must be among learn, gradient,.*got parameters"):
        from_nir(graph, parameters=LEAKY)
    layers = from_nir(to_nir(chain(), 6), gradient="event", batch_first=False)
    assert [layer.rules.gradient for layer in layers] == ["event", "event"]
    assert [layer.rules.output for layer in layers] == [False, True]
    assert not layers[0].batch_first
