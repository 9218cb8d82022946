"""The membrane filter and the read-out layer: the recursion written out, its derivatives, and networks that learn."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from test_srm_scan import BACKENDS, random
from torch import Tensor, nn

from srm_triton import SRMLinear, SRMParameters, SRMReadout, SRMState, calibrate_gain, srm_membrane, use_backend
from srm_triton.data import load_digits
from srm_triton.encoders import encode_direct

NEURONS = {"default": (5.0, 3.0), "leaky": (4.0, 1.0), "alpha": (4.0, 4.0), "no leak": (math.inf, 3.0)}


def membrane_by_hand(
    current: Tensor, tau_m: float, tau_s: float, u: float = 0.0, s: float = 0.0
) -> tuple[list[float], float]:
    """The potentials of one neuron, and the synaptic current left."""
    potentials = []
    for x in current.tolist():
        s = s + x
        u = (1 - 1 / tau_m) * u + s / tau_s
        s = s * (1 - 1 / tau_s)
        potentials.append(u)
    return potentials, s


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NEURONS)
def test_equals_the_recursion(name, backend, device):
    tau_m, tau_s = NEURONS[name]
    parameters, current = SRMParameters(tau_m, tau_s), random(2, 30, 3, scale=100.0)  # far above any threshold
    state = SRMState(*random(3, 2, 3, seed=1).to(device))
    leaf, weights = current.to(device).requires_grad_(), random(2, 30, 3, seed=2)
    with use_backend(backend):
        fresh = srm_membrane(leaf, parameters)
        continued, last = srm_membrane(leaf, parameters, state, return_state=True)
        (gradient,) = torch.autograd.grad(fresh, leaf, weights.to(device))
    current, fresh, continued = current.detach(), fresh.detach(), continued.detach()
    response, _ = membrane_by_hand(torch.eye(30)[0], tau_m, tau_s)
    for sample in range(2):
        for neuron in range(3):
            x, u, s = current[sample, :, neuron], *(part[sample, neuron].item() for part in state[:2])
            expected, _ = membrane_by_hand(x, tau_m, tau_s)
            assert fresh[sample, :, neuron].tolist() == pytest.approx(expected, rel=1e-13, abs=1e-12)
            expected, left = membrane_by_hand(x, tau_m, tau_s, u, s)
            assert continued[sample, :, neuron].tolist() == pytest.approx(expected, rel=1e-13, abs=1e-12)
            assert last.membrane[sample, neuron].item() == pytest.approx(expected[-1], rel=1e-13, abs=1e-12)
            assert last.synapse[sample, neuron].item() == pytest.approx(left, rel=1e-13, abs=1e-12)
            w = weights[sample, :, neuron].tolist()
            expected = [sum(w[t] * response[t - i] for t in range(i, 30)) for i in range(30)]
            assert gradient[sample, :, neuron].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert not last.gradient_trace.any()


@pytest.mark.parametrize("name", NEURONS)
def test_derivatives(name, device):
    """By finite differences, the second one too; the filter is linear."""
    parameters, current = SRMParameters(*NEURONS[name]), random(2, 6, 2).to(device).requires_grad_()
    membrane, synapse, trace = (part.requires_grad_() for part in random(3, 2, 2, seed=1).to(device))

    def run(current: Tensor, membrane: Tensor, synapse: Tensor) -> tuple[Tensor, ...]:
        output, last = srm_membrane(current, parameters, SRMState(membrane, synapse, trace), return_state=True)
        return output, last.membrane, last.synapse

    assert torch.autograd.gradcheck(run, (current, membrane, synapse))
    assert torch.autograd.gradgradcheck(lambda x: srm_membrane(x, parameters).square(), (current,))


def test_long_sequences_in_single_precision():
    current = random(4, 1000, 5)
    exact, single = srm_membrane(current), srm_membrane(current.float())
    assert (single - exact).abs().max() < 2e-6 * exact.abs().max() and single.dtype == torch.float32


def test_every_layout():
    """Time first, no features or several axes of them, a constant for each channel, half precision, no steps."""
    parameters, current = SRMParameters(torch.tensor([2.0, 9.0]), 3.0), random(3, 7, 2, 4)
    state = SRMState(*random(3, 3, 2, 4, seed=1))
    membrane, last = srm_membrane(current, parameters, state, return_state=True)
    for channel, tau in enumerate((2.0, 9.0)):
        of_channel = SRMState(*(part[:, channel] for part in state))
        alone, end = srm_membrane(current[:, :, channel], SRMParameters(tau, 3.0), of_channel, return_state=True)
        torch.testing.assert_close(membrane[:, :, channel], alone, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(last.synapse[:, channel], end.synapse, rtol=1e-14, atol=1e-14)
    turned = srm_membrane(current.transpose(0, 1), parameters, state, batch_first=False)
    assert torch.equal(turned.transpose(0, 1), membrane)
    one = srm_membrane(current[..., 0, 0], SRMParameters(2.0, 3.0), SRMState(*(part[:, 0, 0] for part in state)))
    torch.testing.assert_close(one, membrane[..., 0, 0], rtol=1e-14, atol=1e-14)
    half = srm_membrane(current.bfloat16(), parameters)
    assert half.dtype == torch.float32 and torch.equal(half, srm_membrane(current.bfloat16().float(), parameters))
    empty, unchanged = srm_membrane(current[:, :0], parameters, state, return_state=True)
    assert empty.shape == (3, 0, 2, 4) and torch.equal(unchanged.membrane, state.membrane)
    assert not unchanged.gradient_trace.any() and torch.equal(unchanged.synapse, state.synapse)
    assert not srm_membrane(current[:, :0], return_state=True)[1].membrane.any()
    assert torch.equal(srm_membrane(current, parameters, tuple(state)), membrane)


def test_a_sequence_in_pieces():
    layer, inputs = SRMReadout(4, 3, dtype=torch.float64), random(2, 20, 4)
    whole, state, pieces = layer(inputs), None, []
    for piece in inputs.split(6, 1):
        output, state = layer(piece, state, return_state=True)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-13, atol=1e-13)
    gradients = [torch.autograd.grad(total.sum(), layer.weight)[0] for total in (whole, torch.cat(pieces, 1))]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)


def test_what_is_not_finite_stays_where_it_is():
    current = random(2, 9, 3)
    expected = srm_membrane(current)
    current[0, 4, 1] = math.nan
    result = srm_membrane(current)
    assert result[0, 4:, 1].isnan().all() and int(result.isnan().sum()) == 5
    assert torch.equal(result.nan_to_num(0), expected * ~result.isnan())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transforms_and_compilation(device):
    current = random(4, 2, 6, 3).to(device)
    assert torch.equal(torch.vmap(srm_membrane)(current), torch.stack([srm_membrane(one) for one in current]))
    layer = SRMReadout(3, 2, dtype=torch.float64, device=device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = [torch.autograd.grad(run(current[0]).square().sum(), layer.weight)[0] for run in (layer, compiled)]
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)


def test_the_layer_is_an_affine_map_and_the_filter():
    layer = SRMReadout(3, 2, SRMParameters(tau_m=torch.tensor([2.0, 9.0])), dtype=torch.float64)
    inputs = random(4, 8, 3).requires_grad_()
    current = inputs.detach() @ layer.weight.T + layer.bias
    output = layer(inputs)
    for neuron, tau in enumerate((2.0, 9.0)):
        expected, _ = membrane_by_hand(current[1, :, neuron], tau, 3.0)
        assert output[1, :, neuron].tolist() == pytest.approx(expected, rel=1e-13)
    assert torch.autograd.gradcheck(layer, (inputs,))
    assert torch.equal(SRMReadout(3, 2, bias=False)(torch.zeros(1, 4, 3)), torch.zeros(1, 4, 2))
    first = SRMReadout(3, 2, SRMParameters(tau_m=torch.ones(2) * 3), batch_first=False, dtype=torch.float64)
    first.load_state_dict(layer.state_dict(), strict=True)  # the constants too
    torch.testing.assert_close(first(inputs.transpose(0, 1)).transpose(0, 1), output, rtol=1e-14, atol=1e-14)
    events = torch.rand(2, 5, 3) < 0.5
    assert torch.equal(layer(events), layer(events.double()))


@pytest.mark.parametrize("gradient", ["event", "surrogate"])
def test_a_network_learns(gradient):
    """Digits in three epochs; with the hidden layer's weights frozen, the same network knows less."""
    data, accuracies = load_digits(), []
    images, labels = data.train_images.flatten(1), data.train_labels
    for frozen in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(SRMLinear(64, 30, gradient=gradient), SRMReadout(30, 10))
        calibrate_gain(network, encode_direct(images[:200], 8))
        network[0].requires_grad_(not frozen)
        optimizer = torch.optim.Adam(network.parameters(), 5e-3)
        for batch in torch.cat([torch.randperm(len(images)) for _ in range(3)]).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(encode_direct(images[batch], 8)).mean(1), labels[batch]).backward()
            optimizer.step()
        predicted = network(encode_direct(data.test_images.flatten(1), 8)).mean(1).argmax(1)
        accuracies.append((predicted == data.test_labels).float().mean().item())
    assert accuracies[0] > 0.85 and accuracies[0] > accuracies[1] + 0.05, accuracies


def test_bad_input():
    current, layer = torch.zeros(2, 4, 3), SRMReadout(3, 2)
    constants = SRMParameters(tau_m=torch.tensor([2.0, 3.0]))
    cases = [
        (lambda: SRMReadout(0, 2), ValueError, "in_features must be finite and ≥ 1, got 0"),
        (lambda: SRMReadout(3, 2.0), TypeError, "out_features must be an int"),
        (lambda: SRMReadout(3, 3, constants), ValueError, "tau_m must hold one value or one for each of 3 channels"),
        (lambda: SRMReadout(3, 2, 5.0), TypeError, "parameters must be SRMParameters or None, got float"),
        (lambda: SRMReadout(3, 2, batch_first=1), ValueError, "batch_first must be one of"),
        (lambda: layer(current[..., :2]), ValueError, "inputs must have 3 entries on axis 2"),
        (lambda: layer(current[0]), ValueError, r"inputs must have the shape \[batch, time, in_features\]"),
        (lambda: layer(current.double()), TypeError, "inputs must have the dtype of weight"),
        (lambda: layer(current, current), TypeError, "state must be an SRMState or None, got a Tensor"),
        (lambda: layer(current, return_state=None), ValueError, "return_state must be one of"),
        (lambda: srm_membrane(current, constants), ValueError, "tau_m must hold one value or one for each of 3"),
        (
            lambda: srm_membrane(current, SRMParameters(torch.tensor(2.0).requires_grad_())),
            ValueError,
            "must not require",
        ),
        (lambda: srm_membrane(current.long()), TypeError, "current must have one of the dtypes"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


def test_the_layer_is_saved_copied_and_made_without_memory(tmp_path):
    """Constants that differ from those of the new layer are restored, after it has run too."""
    layer, inputs = SRMReadout(3, 2, SRMParameters(tau_m=torch.tensor([2.0, 9.0]))), torch.rand(4, 6, 3)
    expected = layer(inputs)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    saved = torch.load(tmp_path / "layer.pt", weights_only=True)
    constants = SRMParameters(tau_m=torch.full((2,), 3.0))
    made = {device: SRMReadout(3, 2, constants, device=device) for device in ("cpu", "meta")}
    made["cpu"](inputs)
    assert made["meta"](inputs.to("meta")).shape == (4, 6, 2)
    for device, other in made.items():
        other.load_state_dict(saved, assign=device == "meta")
        for one in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
            assert torch.equal(one(inputs), expected)
    halved = copy.deepcopy(layer).bfloat16()
    assert torch.equal(halved.neuron.tau_m, layer.neuron.tau_m)
    torch.testing.assert_close(halved(inputs.bfloat16()), expected, rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(inputs), expected, rtol=0.02, atol=0.02)
    assert layer(inputs[:0]).shape == (0, 6, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute")
def test_a_compiled_layer_goes_on_and_an_exported_one_agrees():
    layer, inputs = SRMReadout(3, 2), torch.rand(4, 6, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    first, state = compiled(inputs[:, :2], return_state=True)
    rest = compiled(inputs[:, 2:], state)
    torch.testing.assert_close(torch.cat((first, rest), 1), layer(inputs))
    torch.testing.assert_close(torch.export.export(layer, (inputs,)).module()(inputs), layer(inputs))
