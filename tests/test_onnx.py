"""Exported networks in onnxruntime, against the recursion written out in NumPy."""

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from srm_triton import SpikeAvgPool2d, SRMConv2d, SRMLinear, SRMNeuron, SRMParameters, SRMReadout, SRMRecurrent
from srm_triton.onnx import export
from srm_triton.sparse import SparseRepresentation

PARAMETERS = SRMParameters(tau_m=5.0, tau_s=3.0, threshold=1.0)


def run(program, *inputs):
    """What onnxruntime makes of inputs, from the file's bytes alone."""
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, (one.numpy() for one in inputs), strict=True)))


def neurons(current, tau_m=5.0, tau_s=3.0, threshold=1.0, dtype=np.float32):
    """Spikes and potentials of [batch, time, channels, ...], one operation after another."""
    fall_m, fall_s, rise = dtype(1 - 1 / tau_m), dtype(1 - 1 / tau_s), dtype(1 / tau_s)
    u = s = np.zeros_like(current[:, 0], dtype=dtype)
    spikes, potentials = [], []
    for t in range(current.shape[1]):
        s = s + current[:, t]
        u = fall_m * u + s * rise
        s = s * fall_s
        fires = u > dtype(threshold)
        potentials.append(u)
        spikes.append(fires.astype(dtype))
        u, s = np.where(fires, dtype(0), u), np.where(fires, dtype(0), s)
    return np.stack(spikes, 1), np.stack(potentials, 1)


def small_integers(layer, seed):
    """Gives a layer weights and a bias in quarters, so that its sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            tensor.copy_(torch.randint(-3, 5, tensor.shape, generator=generator) / 4)
    return layer


def spikes_like(*shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def axes(program):
    return [axis.dim_param for axis in program.model_proto.graph.input[0].type.tensor_type.shape.dim[:2]]


@functools.cache
def images_network():
    options = {"bias": True, "weight_norm": False, "parameters": PARAMETERS}
    network = nn.Sequential(
        small_integers(SRMConv2d(2, 3, 3, padding=1, **options), 0),
        SpikeAvgPool2d(2),
        nn.Flatten(2),
        small_integers(SRMLinear(12, 5, **options), 1),
    ).eval()
    return network, export(network, spikes_like(2, 3, 2, 4, 4))


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (5, 12)])
def test_spikes_equal_the_recursion_for_any_number_of_samples_and_steps(shape):
    network, program = images_network()
    inputs = spikes_like(*shape, 2, 4, 4)
    (found,) = run(program, inputs)

    convolution, _, _, linear = network
    padded = np.pad(inputs.numpy(), ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (3, 4))
    current = np.einsum("btiyxhw,oihw->btoyx", windows, convolution.weight.detach().numpy())
    hidden, _ = neurons(current + convolution.bias.detach().numpy()[:, None, None])
    pooled = hidden.reshape(*shape, 3, 2, 2, 2, 2).mean((4, 6)).reshape(*shape, 12)
    expected, _ = neurons(pooled @ linear.weight.detach().numpy().T + linear.bias.detach().numpy())
    np.testing.assert_array_equal(found, expected)
    assert shape != (5, 12) or 0.1 < expected.mean() < 0.9


def test_the_file_holds_standard_operators_weights_once_and_named_axes():
    _, program = images_network()
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    assert {one.domain for one in model.opset_import} <= {"", "ai.onnx"}
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Scan") == 2
    assert axes(program) == ["batch", "time"]
    sizes = [np.prod(one.dims, dtype=int) for one in model.graph.initializer]
    assert sum(sizes) < 54 + 3 + 60 + 5 + 100  # and small constants


def test_normalised_weights_and_constants_of_each_channel_are_those_that_the_layer_applies():
    torch.manual_seed(0)
    parameters = SRMParameters(torch.linspace(2, 9, 40), 2.0, threshold=torch.linspace(0.5, 1.5, 40))
    layer = SRMLinear(20, 40, parameters, learn=("threshold",), bias=True).eval()
    inputs = torch.rand(16, 30, 20)
    (found,) = run(export(layer, inputs), inputs)

    weight = layer.weight.detach().double().numpy()
    mean, deviation = weight.mean(1, keepdims=True), np.sqrt(weight.var(1, ddof=1, keepdims=True) + 1e-5)
    current = inputs.double().numpy() @ ((weight - mean) / deviation).T + layer.bias.detach().double().numpy()
    threshold = layer.neuron.threshold.detach().double().numpy()
    expected, potentials = neurons(current, np.linspace(2, 9, 40), 2.0, threshold, np.float64)
    clear = (np.abs(potentials - threshold) > 1e-5).all(1, keepdims=True).repeat(30, 1)
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert clear.mean() > 0.98 and 0.05 < expected.mean() < 0.6


class Streamed(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return self.layer(inputs, return_state=True)


def test_time_first_in_float64_with_the_state_returned():
    layer = SRMNeuron(PARAMETERS, batch_first=False)
    current = torch.rand(9, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    program = export(Streamed(layer).eval(), current)
    assert axes(program) == ["time", "batch"]
    spikes, membrane, synapse, trace = run(program, current)
    expected, potentials = neurons(current.movedim(0, 1).numpy(), dtype=np.float64)
    np.testing.assert_array_equal(spikes, np.moveaxis(expected, 1, 0))
    np.testing.assert_array_equal(membrane, np.where(expected[:, -1], 0, potentials[:, -1]))
    with torch.no_grad():
        state = layer(current, return_state=True)[1]
    np.testing.assert_array_equal(synapse, state.synapse)
    np.testing.assert_array_equal(trace, state.gradient_trace)
    assert 0.2 < expected.mean() < 0.8


def test_recurrence_and_readout_with_events_as_inputs():
    options = {"bias": True, "weight_norm": False}
    recurrent, readout = small_integers(SRMRecurrent(6, 8, PARAMETERS, **options), 2), SRMReadout(8, 3, PARAMETERS)
    with torch.no_grad():
        recurrent.recurrent_weight.copy_(torch.randint(-2, 3, (8, 8)) / 4)
    small_integers(readout, 3)
    events = spikes_like(4, 5, 6).bool()
    (found,) = run(export(nn.Sequential(recurrent, readout).eval(), events[:2]), events)

    tensors = recurrent.weight, recurrent.recurrent_weight, recurrent.bias, readout.weight, readout.bias
    weight, own, bias, out, out_bias = (one.detach().numpy() for one in tensors)
    current, spikes = events.numpy().astype(np.float32) @ weight.T + bias, np.zeros((4, 5, 8), np.float32)
    for t in range(5):  # the spikes of the first t steps do not depend on what follows
        whole, _ = neurons(current + np.concatenate((np.zeros((4, 1, 8), np.float32), spikes[:, :-1] @ own.T), 1))
        spikes[:, t] = whole[:, t]
    _, expected = neurons(spikes @ out.T + out_bias, threshold=np.inf)
    np.testing.assert_array_equal(found, expected)
    assert spikes[:, :-1].any()


@pytest.mark.parametrize(
    ("network", "inputs", "error", "message"),
    [
        (SRMLinear(3, 2), torch.rand(2, 2, 3), ValueError, "network must be in evaluation, got SRMLinear in training"),
        (nn.Sequential(SRMLinear(3, 2)).eval().append(nn.Dropout()), torch.rand(2, 2, 3), ValueError, "got 1 in train"),
        (SRMLinear(3, 2).half().eval(), torch.rand(2, 2, 3), TypeError, "got weight in torch.float16"),
        (SRMLinear(3, 2).eval(), torch.rand(2, 1, 3), ValueError, r"two samples and two steps at least.*\[2, 1, 3\]"),
        (SRMLinear(3, 2).eval(), torch.rand(1, 2, 3), ValueError, "two samples"),
        (SRMLinear(3, 2).eval(), torch.rand(3), ValueError, "inputs must have the shape"),
        (SRMLinear(3, 2).eval(), np.ones((2, 2, 3)), TypeError, "inputs must be a torch.Tensor, got ndarray"),
        (SRMLinear(3, 2).eval(), torch.rand(2, 2, 4), ValueError, "in_features"),
        (torch.relu, torch.rand(2, 2, 3), TypeError, "network must be a torch.nn.Module, got builtin_function"),
        (SparseRepresentation(3, 4).eval(), torch.rand(2, 2, 3), TypeError, "form in ONNX, got srm_triton.soft_thresh"),
    ],
)
def test_what_cannot_be_exported_is_named(network, inputs, error, message):
    if isinstance(network, nn.Sequential):
        assert network[1].training
    with pytest.raises(error, match=message):
        export(network, inputs)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript is missing; install it by: pip install 'srm-triton\[on"):
        export(SRMLinear(3, 2).eval(), torch.rand(2, 2, 3))
