"""Networks from their notation: the layers that it names, what they start with, and that they learn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srm_triton import (
    SpikeAvgPool2d,
    SRMConv2d,
    SRMLinear,
    SRMParameters,
    SRMReadout,
    SRMRecurrent,
    calibrate_gain,
    encode_direct,
    predict,
    spiking_network,
    time_constants,
)
from srm_triton.data import load_digits
from srm_triton.networks import DropoutOverTime


def test_fashion_mnist_of_the_papers():
    network = spiking_network("32C5-P2-64C5-P2-1024", (1, 28, 28), 10, steps=5)
    assert list(network._modules) == ["conv1", "pool1", "conv2", "pool2", "flatten1", "hidden1", "output"]
    assert [type(layer) for layer in network] == [
        SRMConv2d, SpikeAvgPool2d, SRMConv2d, SpikeAvgPool2d, nn.Flatten, SRMLinear, SRMReadout,
    ]  # fmt: skip
    assert network.conv2.weight.shape == (64, 32, 5, 5) and network.hidden1.weight.shape == (1024, 64 * 7 * 7)
    for layer in (network.conv1, network.conv2, network.hidden1):
        assert layer.rules.gradient == "surrogate" and layer.bias.any()
        assert layer.neuron.srm_parameters == time_constants(5, len(layer.weight))
    assert network.pool1.gradient == "surrogate"
    assert network.output.neuron.tau_m == 8 and network.output.neuron.tau_s == 1


@pytest.mark.parametrize(
    ("notation", "inputs", "options"),
    [
        ("", 6, {}),
        ("20-30R", 6, {}),
        ("20x3", 6, {"readout": "spikes"}),
        ("20", (2, 5, 6), {"batch_first": False}),
        ("4C3-6C3S2-P2-20", (2, 9, 10), {"gradient": "event"}),
        ("4C2-6C4", (2, 9, 10), {"bias": False}),
        ("4C3x2-P2x2", (2, 11, 12), {"padding": 1, "dropout": 0.5}),
        ("4C3-6C3S2", (2, 9, 10), {"padding": 0, "learn": ("threshold",)}),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_every_part_of_the_notation(notation, inputs, options):
    """Sizes that did not fit would fail here."""
    network = spiking_network(notation, inputs, 3, steps=7, **options)
    shape = inputs if isinstance(inputs, tuple) else (inputs,)
    samples = torch.rand(2, 7, *shape) if options.get("batch_first", True) else torch.rand(7, 2, *shape)
    outputs = network(samples)
    assert outputs.shape == (*samples.shape[:2], 3)
    outputs.sum().backward()
    spiking = [layer for layer in network if hasattr(layer, "rules")]
    assert all((layer.bias is None) == (options.get("bias") is False) for layer in spiking)
    assert all(layer.learn == options.get("learn", ()) for layer in (layer.neuron for layer in spiking))
    assert {layer.rules.gradient for layer in spiking} <= {options.get("gradient", "surrogate")}
    assert sum(isinstance(layer, SRMRecurrent) for layer in network) == notation.count("R")
    assert sum(isinstance(layer, DropoutOverTime) for layer in network) == (2 if "dropout" in options else 0)


def test_strides_and_biases_that_begin_with_a_third_of_the_weights():
    network = spiking_network("400C3S2-400", (2, 9, 10), 3, steps=7)
    assert network[0](torch.rand(1, 7, 2, 9, 10)).shape == (1, 7, 400, 5, 5)
    for layer in (network.conv1, network.hidden1):
        assert layer.bias.std().item() == pytest.approx(0.3 * layer.effective_weight().std().item(), rel=0.15)


def test_constants_of_the_caller():
    parameters = SRMParameters(7.0, 4.0)
    network = spiking_network("8-8", 3, 2, steps=9, readout="spikes", parameters=parameters)
    assert all(layer.neuron.srm_parameters == parameters for layer in network) and network.output.rules.output


@pytest.mark.parametrize("batch_first", [True, False])
def test_dropout_takes_the_same_neurons_at_every_step(batch_first):
    dropout = DropoutOverTime(0.25, batch_first=batch_first)
    dropped = dropout(torch.ones(50, 60, 7))
    steps = dropped if batch_first else dropped.transpose(0, 1)
    assert torch.equal(steps, steps[:, :1].expand_as(steps)) and not torch.equal(steps, steps[:1].expand_as(steps))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert steps[:, 0].mean().item() == pytest.approx(1, abs=0.1)
    assert dropout.eval()(inputs := torch.rand(2, 3)) is inputs


@pytest.mark.parametrize(("readout", "least"), [("membrane", 0.93), ("spikes", 0.9)])
def test_learns_digits_in_five_epochs(readout, least):
    data = load_digits()
    network = spiking_network("64", 64, 10, steps=8, readout=readout)
    inputs, tests = (encode_direct(images.flatten(1), 8) for images in (data.train_images, data.test_images))
    calibrate_gain(network, inputs[:128])
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)

    def answer(outputs):
        return outputs[:, -1] if readout == "membrane" else outputs.sum(1)

    for _ in range(5):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(answer(network(inputs[batch])), data.train_labels[batch]).backward()
            optimizer.step()
    outputs = network(tests)
    predictions = outputs[:, -1].argmax(1) if readout == "membrane" else predict(outputs)
    assert (predictions == data.test_labels).float().mean() > least


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("100-", 3, 2), {}, ValueError, "notation must consist of layers such as .*, got '' in '100-'"),
        (("32K5", 3, 2), {}, ValueError, "got '32K5' in '32K5'"),
        (("0", 3, 2), {}, ValueError, "notation must have sizes ≥ 1, got '0' in '0'"),
        (("10x0", 3, 2), {}, ValueError, "notation must have sizes ≥ 1, got '10x0'"),
        ((100, 3, 2), {}, TypeError, "notation must be a str such as '32C5-P2-100', got 100"),
        (("8C3", 3, 2), {}, ValueError, "notation must have '8C3' before fully connected layers, of images, not of"),
        (("9-P2", (1, 8, 8), 2), {}, ValueError, "notation must have 'P2' before fully connected layers"),
        (
            ("P2x4", (1, 8, 8), 2),
            {},
            ValueError,
            r"notation must leave something of inputs .*, got 'P2x4'",
        ),
        (("8", (8, 8), 2), {}, ValueError, r"inputs must be a number of features or .*, got \(8, 8\)"),
        (("8", 0, 2), {}, ValueError, "inputs must be finite and ≥ 1, got 0"),
        (("8", 2, 0), {}, ValueError, "classes must be finite and ≥ 1, got 0"),
        (("8", 2, 3), {"steps": 0}, ValueError, "steps must be finite and ≥ 1, got 0"),
        (("8", 2, 3), {"readout": "count"}, ValueError, "readout must be one of .*, got 'count'"),
        (("8", 2, 3), {"dropout": 1.0}, ValueError, "dropout must be below 1, got 1.0"),
        (("8", 2, 3), {"padding": "valid"}, TypeError, "padding must be an int, got 'valid'"),
        (("8", 2, 3), {"tau": 3}, TypeError, "unexpected keyword argument 'tau'"),
    ],
)
def test_bad_networks(arguments, options, error, message):
    with pytest.raises(error, match=message):
        spiking_network(*arguments, **{"steps": 4, **options})
