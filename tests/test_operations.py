"""Operations counted by hand, connection by connection, and by NeuroBench."""

import itertools

import pytest
import torch
from neurobench.hooks.layer import LayerHook
from neurobench.metrics.workload import SynapticOperations as TheirOperations
from neurobench.models import TorchModel
from torch import nn

from srm_triton import (
    SpikeAvgPool2d,
    SpikingResNet18_2D,
    SRMAffine,
    SRMConv2d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMReadout,
    SRMRecurrent,
    spiking_network,
    synaptic_operations,
)
from srm_triton.convert import to_torch
from srm_triton.energy import Energy, EnergyCosts, LayerOperations

BATCH, STEPS = 2, 5
NEURON = SRMParameters(4.0, 1.0, threshold=0.6)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def prune(weight):
    with torch.no_grad():
        weight[torch.rand_like(weight) < 0.3] = 0
    return weight


def spikes(*shape):
    return (torch.rand(BATCH, STEPS, *shape) < 0.4).float()


def by_hand(weight, inputs):
    """Effective and dense operations of a matrix, [features out, features in]."""
    effective = dense = 0
    for b, t, i, o in itertools.product(range(len(inputs)), range(inputs.shape[1]), *map(range, weight.T.shape)):
        dense += 1
        effective += bool(inputs[b, t, i]) and bool(weight[o, i])
    return effective, dense


def windows(size, kernel, stride, padding, dilation):
    """Which pixel each place of the kernel sees, at each position of a side."""
    positions = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return [[start * stride - padding + dilation * k for k in range(kernel)] for start in range(positions)]


def by_hand_2d(weight, inputs, stride, padding, dilation=(1, 1), groups=1):
    """The same of a kernel [channels out, channels in, height, width]; nothing is beyond the edge."""
    effective = dense = 0
    *_, height, width = inputs.shape
    rows = windows(height, weight.shape[2], stride[0], padding[0], dilation[0])
    columns = windows(width, weight.shape[3], stride[1], padding[1], dilation[1])
    within = weight.shape[0] // groups
    for image in inputs.flatten(0, 1):
        for o, c, above, beside in itertools.product(range(len(weight)), range(weight.shape[1]), rows, columns):
            channel = o // within * weight.shape[1] + c
            for (i, row), (j, column) in itertools.product(enumerate(above), enumerate(beside)):
                if 0 <= row < height and 0 <= column < width:
                    dense += 1
                    effective += bool(image[channel, row, column]) and bool(weight[o, c, i, j])
    return effective, dense


def layer_of(model, data):
    (layer,) = synaptic_operations(model, data).layers
    return layer


@pytest.mark.parametrize("kind", [SRMLinear, SRMReadout, nn.Linear])
def test_linear(kind):
    model, inputs = kind(7, 4), spikes(7)
    prune(model.weight)
    effective, dense = by_hand(model.weight, inputs)
    found = layer_of(model, inputs)
    assert (found.accumulates, found.multiply_accumulates, found.dense) == (effective / BATCH, 0, dense / BATCH)
    assert found.neuron_updates == (0 if kind is nn.Linear else STEPS * 4)
    assert 0 < effective < dense / 2
    found = layer_of(model, inputs * 1.5)
    assert (found.accumulates, found.multiply_accumulates) == (0, effective / BATCH)
    for same in (-inputs, inputs.bool(), inputs.to(torch.uint8)) if kind is not nn.Linear else (-inputs,):
        assert layer_of(model, same).accumulates == effective / BATCH


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((1, 1), (0, 0), (1, 1), 1), ((2, 1), (1, 2), (1, 1), 1), ((1, 3), (2, 0), (2, 1), 2)],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_convolution(stride, padding, dilation, groups, wrapped):
    sizes = (2, 4, (3, 2), stride, padding, dilation, groups)
    model = SRMAffine(nn.Conv2d(*sizes), NEURON) if wrapped else SRMConv2d(*sizes, parameters=NEURON, bias=True)
    weight = prune(model.affine.weight if wrapped else model.weight)
    inputs = spikes(2, 7, 6)
    effective, dense = by_hand_2d(weight, inputs, stride, padding, dilation, groups)
    found = layer_of(model, inputs)
    assert (found.accumulates, found.dense) == (effective / BATCH, dense / BATCH)
    assert found.neuron_updates == model(inputs).numel() / BATCH


def test_convolution_that_keeps_the_size():
    model, inputs = SRMConv2d(1, 3, (2, 4), padding="same"), spikes(1, 5, 6)
    padded = torch.nn.functional.pad(inputs, (1, 2, 0, 1))  # one more behind than before
    effective, _ = by_hand_2d(model.weight, padded, (1, 1), (0, 0))
    assert layer_of(model, inputs).accumulates == effective / BATCH
    around = SRMConv2d(1, 3, 3, padding=1, padding_mode="circular")
    wrapped = torch.nn.functional.pad(inputs.flatten(0, 1), (1, 1, 1, 1), "circular").unflatten(0, inputs.shape[:2])
    effective, dense = by_hand_2d(around.weight, wrapped, (1, 1), (0, 0))
    found = layer_of(around, inputs)
    assert (found.accumulates, found.dense) == (effective / BATCH, dense / BATCH)


@pytest.mark.parametrize("kind", [SpikeAvgPool2d, nn.AvgPool2d])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 2), (1, 1))])
def test_pooling(kind, kernel, stride, padding):
    inputs = spikes(2, 6, 4)
    data = inputs if kind is SpikeAvgPool2d else inputs.flatten(0, 1)
    effective, dense = by_hand_2d(torch.ones(2, 1, *kernel), inputs, stride, padding, groups=2)
    found = layer_of(kind(kernel, stride, padding), data)
    samples = len(data)
    assert (found.accumulates, found.dense, found.neuron_updates) == (effective / samples, dense / samples, 0)
    assert layer_of(kind(kernel, stride, padding), data * 0.3).multiply_accumulates == 0


@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrence(batch_first):
    model, inputs = SRMRecurrent(6, 5, NEURON, batch_first=batch_first), spikes(6)
    prune(model.weight), prune(model.recurrent_weight)
    data = inputs if batch_first else inputs.transpose(0, 1)
    fired = model(data) if batch_first else model(data).transpose(0, 1)
    outer, dense = by_hand(model.weight, inputs)
    before = torch.cat((torch.zeros(BATCH, 1, 5), fired[:, :-1]), 1)
    own, more = by_hand(model.recurrent_weight, before)
    found = layer_of(model, data)
    assert (found.accumulates, found.dense) == ((outer + own) / BATCH, (dense + more) / BATCH)
    assert own > 0 and found.neuron_updates == STEPS * 5
    found = layer_of(model, data * 0.9)
    fired = model(data * 0.9) if batch_first else model(data * 0.9).transpose(0, 1)
    own, _ = by_hand(model.recurrent_weight, torch.cat((torch.zeros(BATCH, 1, 5), fired[:, :-1]), 1))
    assert (found.multiply_accumulates, found.accumulates) == (outer / BATCH, own / BATCH)


class Pieces(nn.Module):
    """Hands the state on."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        first, state = self.layer(inputs[:, :2], return_state=True)
        return torch.cat((first, self.layer(inputs[:, 2:], state)), 1)


def test_a_recurrent_layer_in_pieces_counts_the_same():
    layer, inputs = SRMRecurrent(6, 5, NEURON), spikes(6)
    assert layer_of(Pieces(layer), inputs).accumulates == layer_of(layer, inputs).accumulates


def network():
    return nn.Sequential(
        SRMConv2d(1, 4, 3, padding=1, parameters=NEURON),
        SpikeAvgPool2d(2),
        nn.Flatten(2),
        SRMLinear(16, 6, NEURON),
        SRMRecurrent(6, 5, NEURON),
        SRMReadout(5, 3),
    ).eval()


def test_neurobench_counts_the_same():
    model, inputs = network(), torch.rand(4, 8, 1, 4, 4) * (torch.rand(4, 8, 1, 4, 4) < 0.5)
    theirs = TorchModel(to_torch(model))
    theirs.connection_hooks = [LayerHook(layer) for layer in theirs.connection_layers()]
    counted = TheirOperations()(theirs, theirs(inputs), (inputs, None))
    ours = synaptic_operations(model, inputs)
    without_pooling = [layer for layer in ours.layers if layer.kind != "SpikeAvgPool2d"]
    for name, key in (
        ("multiply_accumulates", "Effective_MACs"),
        ("accumulates", "Effective_ACs"),
        ("dense", "Dense"),
    ):
        assert sum(getattr(layer, name) for layer in without_pooling) == counted[key] > 0


def test_batches_and_labels_are_as_good_as_a_tensor():
    model, inputs = network(), spikes(1, 4, 4).repeat(3, 1, 1, 1, 1)
    whole = synaptic_operations(model, inputs)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, torch.arange(6)), batch_size=4)
    for found in (synaptic_operations(model, data), synaptic_operations(model, iter(inputs.split(4)))):
        assert found == whole and found.samples == 6
    assert [layer.name for layer in whole.layers] == ["0", "1", "3", "4", "5"]


def test_a_model_is_left_as_it_was():
    model = spiking_network("6-5", 4, 3, steps=STEPS, dropout=0.5).train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    inputs = spikes(4)
    found = synaptic_operations(model, inputs)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert synaptic_operations(model.eval(), inputs) == found


def test_networks_that_are_no_chain():
    model = SpikingResNet18_2D(3, width=2)
    data = spikes(1, 8, 8) * 3
    found = synaptic_operations(model.eval(), data)
    assert len(found.layers) == 20 + 1 + 2  # convolutions, three of them shortcuts; the output; pooling
    last = dict(model.named_children())["layer4"](nn.Sequential(*list(model.children())[:5])(data))
    assert found.layers[-2].accumulates == last.count_nonzero() / BATCH and found.layers[-2].dense == STEPS * 16
    assert found.total.neuron_updates == sum(layer.neuron_updates for layer in found.layers)


def test_energy():
    layer = LayerOperations("a", "SRMLinear", 10.0, 100.0, 500.0, 20.0)
    arithmetic = 10 * (3.7 + 0.9) + 100 * 0.9 + 20 * (3 * 3.7 + 2 * 0.9)
    memory = 110 * 3 * 10 + 20 * 4 * 10
    assert layer.energy() == Energy(pytest.approx(arithmetic), pytest.approx(memory))
    assert layer.energy().total == pytest.approx(arithmetic + memory)
    assert layer.energy(EnergyCosts(word=0)).memory == 0
    assert layer.energy(EnergyCosts(addition=1, multiplication=2, word=0)).arithmetic == 10 * 3 + 100 + 20 * 8


def test_the_table():
    text = str(synaptic_operations(network(), spikes(1, 4, 4))).splitlines()
    assert text[0].split("  ")[-1].strip() == "of it memory"
    assert [line.split()[0] for line in text] == ["layer", "0", "1", "3", "4", "5", "total"]
    assert len({len(line) for line in text}) == 1
    silent = synaptic_operations(nn.Linear(2, 2), torch.zeros(1, 3, 2))
    assert str(silent).splitlines()[-1].split() == ["total", "0", "0", "12", "0", "0.0", "–"]


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        ("model", torch.rand(1, 2, 3), TypeError, r"model must be a torch\.nn\.Module, got str"),
        (SRMLinear(3, 2), [], ValueError, r"data must hold at least one sample, got none"),
        (SRMLinear(3, 2), ["a"], TypeError, r"data must be tensors, or tuples that begin with one, got str"),
        (nn.Sequential(nn.BatchNorm1d(3)), torch.rand(1, 2, 3), ValueError, r"got BatchNorm1d at '0'"),
        (
            nn.Sequential(SRMAffine(nn.ConvTranspose1d(1, 2, 2))),
            torch.rand(1, 2, 1, 3),
            ValueError,
            r"affine maps of torch\.nn, got ConvTranspose1d in '0'",
        ),
    ],
)
def test_what_cannot_be_counted(model, data, error, message):
    with pytest.raises(error, match=message):
        synaptic_operations(model, data)


def test_costs_are_checked():
    with pytest.raises(ValueError, match=r"word must be finite and ≥ 0, got -1"):
        EnergyCosts(word=-1)


def test_neurons_alone_are_updated_only():
    found = layer_of(SRMNeuron(), torch.rand(BATCH, STEPS, 4))
    assert (found.neuron_updates, found.dense, found.accumulates) == (STEPS * 4, 0, 0)
