"""What the porting guide says of other libraries: equal weights give equal spikes, and gradients where it says so.

Each peer's network is evaluated by the peer's own code, in float64 but for snnTorch, whose spikes are float32.
"""

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from srm_triton import SpikeAvgPool2d, SRMAffine, SRMConv2d, SRMLinear, SRMNeuron, SRMParameters, srm_membrane

functional = pytest.importorskip("spikingjelly.activation_based.functional")
snntorch = pytest.importorskip("snntorch")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*torch.jit.*deprecated", DeprecationWarning)
    norse = pytest.importorskip("norse.torch")

from norse.torch.functional.reset import reset_subtract  # noqa: E402
from spikingjelly.activation_based import layer, neuron, surrogate  # noqa: E402

BATCH, STEPS, INPUTS, HIDDEN, OUTPUTS = 4, 40, 12, 16, 5
TAU, THRESHOLD = 3.7, 0.8


@pytest.fixture(autouse=True)
def _float64(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.manual_seed(0)
    if "snntorch" not in request.node.name:
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def maps() -> tuple[nn.Linear, nn.Linear]:
    """Two linear maps whose neurons fire at a moderate rate."""
    first, second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
    with torch.no_grad():
        first.weight.mul_(8)
        second.weight.mul_(16)
    return first, second


def ours(parameters: SRMParameters, first: nn.Linear, second: nn.Linear, **options: object) -> nn.Sequential:
    """The guide's port: SRMNeuron in the place of the peer's neurons, the maps as they are."""
    options = {"gradient": "surrogate", **options}
    return nn.Sequential(first, SRMNeuron(parameters, **options), second, SRMNeuron(parameters, **options))


def gradients(spikes: Tensor, first: nn.Linear, second: nn.Linear) -> list[Tensor]:
    """Of all weights and biases, of a loss that tells all output spikes apart."""
    weights = torch.linspace(-1, 2, spikes.numel()).view_as(spikes)
    return list(torch.autograd.grad((spikes * weights).sum(), [*first.parameters(), *second.parameters()]))


def check_same(theirs: Tensor, own: Tensor, first: nn.Linear, second: nn.Linear, *, factor: float | None = 1) -> None:
    """Equal spikes, neither all nor none; gradients equal to rounding, but for a factor a spiking layer."""
    assert 0.02 < own.mean() < 0.9
    assert torch.equal(theirs, own)
    if factor is None:
        return
    expected, found = gradients(theirs, first, second), gradients(own, first, second)
    tolerance = 1e-12 if own.dtype == torch.float64 else 2e-6
    powers = (2, 2, 1, 1)  # spiking layers between a parameter and the loss
    for one, other, power in zip(expected, found, powers, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(other / factor**power, one, rtol=tolerance, atol=tolerance * one.abs().max().item())


def steps_of_snntorch(layers: list[nn.Module], inputs: Tensor) -> Tensor:
    """snnTorch's loop over time, [batch, time, ...]."""
    states: dict[int, tuple[Tensor, ...]] = {
        i: (value if isinstance(value := module.reset_mem(), tuple) else (value,))
        for i, module in enumerate(layers)
        if isinstance(module, snntorch.SpikingNeuron)
    }
    outputs = []
    for x in inputs.unbind(1):
        for i, module in enumerate(layers):
            if i in states:
                x, *state = module(x, *states[i])
                states[i] = tuple(state)
            else:
                x = module(x)
        outputs.append(x)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("reset", [0.0, -0.3])
def test_lif_node_of_spikingjelly(decay_input: bool, reset: float) -> None:
    first, second = maps()
    inputs = torch.rand(BATCH, STEPS, INPUTS)
    alpha, scale = 1.6, TAU if decay_input else 1.0
    nodes = [
        neuron.LIFNode(
            TAU,
            decay_input,
            THRESHOLD,
            reset,
            surrogate.ATan(alpha=alpha),
            detach_reset=True,
            step_mode="m",
        )
        for _ in range(2)
    ]
    theirs = nn.Sequential(first, nodes[0], second, nodes[1])(inputs.transpose(0, 1)).transpose(0, 1)
    parameters = SRMParameters(
        tau_m=TAU, tau_s=1.0, threshold=scale * (THRESHOLD - reset), sharpness=alpha / (2 * scale)
    )
    check_same(theirs, ours(parameters, first, second)(inputs), first, second)


def test_the_reset_of_spikingjelly_passes_a_gradient_unless_it_is_detached() -> None:
    first, second = maps()
    inputs = torch.rand(BATCH, STEPS, INPUTS)
    nodes = [neuron.LIFNode(TAU, False, surrogate_function=surrogate.ATan(), step_mode="m") for _ in range(2)]
    theirs = nn.Sequential(first, nodes[0], second, nodes[1])(inputs.transpose(0, 1)).transpose(0, 1)
    own = ours(SRMParameters(tau_m=TAU, tau_s=1.0), first, second)(inputs)
    check_same(theirs, own, first, second, factor=None)
    expected, found = gradients(theirs, first, second), gradients(own, first, second)
    assert (expected[0] - found[0]).abs().max() > 0.01 * expected[0].abs().max()


def test_if_node_of_spikingjelly() -> None:
    first, second = maps()
    inputs = torch.rand(BATCH, STEPS, INPUTS)
    options = {"surrogate_function": surrogate.ATan(), "detach_reset": True, "step_mode": "m"}
    nodes = [neuron.IFNode(**options) for _ in range(2)]
    theirs = nn.Sequential(first, nodes[0], second, nodes[1])(inputs.transpose(0, 1)).transpose(0, 1)
    parameters = SRMParameters(tau_m=math.inf, tau_s=1.0)
    check_same(theirs, ours(parameters, first, second)(inputs), first, second)


def test_parametric_lif_node_of_spikingjelly() -> None:
    inputs = torch.rand(BATCH, STEPS, INPUTS) * 2
    node = neuron.ParametricLIFNode(TAU, False, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m")
    own = SRMNeuron(SRMParameters(TAU, 1.0), learn=("tau_m",), channels=INPUTS, gradient="surrogate")
    theirs = node(inputs.transpose(0, 1)).transpose(0, 1)
    found = own(inputs)
    assert torch.equal(theirs, found)
    weights = torch.linspace(-1, 2, found.numel()).view_as(found)
    (theirs * weights).sum().backward()
    (found * weights).sum().backward()
    # 1/τ = sigmoid(w) there, τ = 1 + exp(raw) here: w = −raw, and one of them for all
    torch.testing.assert_close(node.w.grad, -own.raw_tau_m.grad.sum(), rtol=1e-10, atol=0)


def test_convolutions_of_spikingjelly() -> None:
    functional_inputs = (torch.rand(2, 10, 1, 8, 8) > 0.5).double()
    convolution, pool = layer.Conv2d(1, 4, 3, padding=1, step_mode="m"), layer.AvgPool2d(2, step_mode="m")
    with torch.no_grad():
        convolution.weight.mul_(3)
    node = neuron.LIFNode(2.0, step_mode="m")
    network = nn.Sequential(convolution, node, pool)
    functional.reset_net(network)
    theirs = network(functional_inputs.transpose(0, 1)).transpose(0, 1)
    parameters = SRMParameters(tau_m=2.0, tau_s=1.0, threshold=2.0)
    own = SRMConv2d(1, 4, 3, padding=1, parameters=parameters, bias=True, weight_norm=False)
    own.load_state_dict(convolution.state_dict(), strict=False)
    copied = nn.Sequential(own, SpikeAvgPool2d(2))(functional_inputs)
    assert 0.02 < copied.mean() < 0.9
    assert torch.equal(theirs, copied)
    wrapped = SRMAffine(nn.Conv2d(1, 4, 3, padding=1), parameters)
    wrapped.affine.load_state_dict(convolution.state_dict())
    assert torch.equal(theirs, SpikeAvgPool2d(2)(wrapped(functional_inputs)))


@pytest.mark.parametrize("beta", [0.9, 0.35])
def test_leaky_of_snntorch(beta: float) -> None:
    first, second = maps()
    inputs = torch.rand(BATCH, STEPS, INPUTS)
    alpha = 1.6
    spiking = [
        snntorch.Leaky(beta, THRESHOLD, snntorch.surrogate.atan(alpha), reset_mechanism="zero") for _ in range(2)
    ]
    theirs = steps_of_snntorch([first, spiking[0], second, spiking[1]], inputs)
    parameters = SRMParameters(tau_m=1 / (1 - beta), tau_s=1.0, threshold=THRESHOLD, sharpness=alpha / 2)
    check_same(theirs, ours(parameters, first, second)(inputs), first, second)


def test_fast_sigmoid_of_snntorch() -> None:
    first, second = maps()
    inputs = torch.rand(BATCH, STEPS, INPUTS)
    slope = 5.0
    spiking = [
        snntorch.Leaky(0.8, 1.0, snntorch.surrogate.fast_sigmoid(slope), reset_mechanism="zero") for _ in range(2)
    ]
    theirs = steps_of_snntorch([first, spiking[0], second, spiking[1]], inputs)
    parameters = SRMParameters(tau_m=5.0, tau_s=1.0, sharpness=slope / 2)
    own = ours(parameters, first, second, surrogate="fast_sigmoid")(inputs)
    check_same(theirs, own, first, second, factor=slope / 2)


def test_snntorch_subtracts_the_threshold_unless_it_is_told_otherwise() -> None:
    first, second = maps()
    inputs = torch.rand(BATCH, STEPS, INPUTS)
    theirs = steps_of_snntorch([first, snntorch.Leaky(0.8), second, snntorch.Leaky(0.8)], inputs)
    assert not torch.equal(theirs, ours(SRMParameters(5.0, 1.0), first, second)(inputs))


def before_the_second_spike(spikes: Tensor) -> Tensor:
    """Which steps come before a neuron's first spike, or are it."""
    return spikes.cumsum(1) - spikes == 0


@pytest.mark.parametrize("peer", ["snntorch", "norse"])
def test_with_a_synapse_the_first_spikes_agree_and_later_ones_do_not(peer: str) -> None:
    """The peers reset the membrane alone, and this neuron its synapse too."""
    tau_m, tau_s = 10.0, 5.0
    current = torch.rand(BATCH, STEPS, HIDDEN) * 0.6
    if peer == "snntorch":
        synaptic = snntorch.Synaptic(1 - 1 / tau_s, 1 - 1 / tau_m, 1.0, reset_mechanism="zero")
        theirs, threshold = steps_of_snntorch([synaptic], current), 1 / tau_s
    else:
        theirs = norse.LIF()(current.transpose(0, 1))[0].transpose(0, 1)  # its defaults are 10 and 5 steps
        threshold = tau_m / tau_s
    own = SRMNeuron(SRMParameters(tau_m, tau_s, threshold=threshold))(current)
    first = before_the_second_spike(own)
    assert first.any(1).all() and own.any(1).all()
    assert torch.equal(theirs[first], own[first])
    assert not torch.equal(theirs, own)


@pytest.mark.parametrize("leak", [0.0, 0.4])
def test_lif_box_cell_of_norse(leak: float) -> None:
    first, second = maps()
    inputs = torch.rand(BATCH, STEPS, INPUTS)
    step = 0.001
    p = norse.LIFBoxParameters(
        tau_mem_inv=torch.as_tensor(1 / (step * TAU)),
        v_th=torch.as_tensor(THRESHOLD),
        v_leak=torch.as_tensor(leak),
        v_reset=torch.as_tensor(leak),
    )
    network = norse.SequentialState(first, norse.LIFBoxCell(p), second, norse.LIFBoxCell(p))
    state, outputs = None, []
    for x in inputs.unbind(1):
        spikes, state = network(x, state)
        outputs.append(spikes)
    theirs = torch.stack(outputs, 1)
    parameters = SRMParameters(tau_m=TAU, tau_s=1.0, threshold=TAU * (THRESHOLD - leak))
    own = ours(parameters, first, second)(inputs)
    check_same(theirs, own, first, second, factor=None)
    subtracting = norse.LIFBoxCell(p._replace(reset_method=reset_subtract))
    assert subtracting(inputs[:, 0])[0].shape == inputs[:, 0].shape


def test_superspike_of_norse_ignores_its_alpha_and_is_twice_ours() -> None:
    current = torch.rand(BATCH, 1, HIDDEN, requires_grad=True)  # one step, so that no reset takes part
    p = norse.IAFParameters(v_th=torch.as_tensor(0.5), alpha=torch.as_tensor(100.0))
    weights = torch.linspace(-1, 2, current.numel()).view_as(current)
    spikes = norse.IAFCell(p)(current[:, 0])[0][:, None]
    (theirs,) = torch.autograd.grad((spikes * weights).sum(), current)
    parameters = SRMParameters(math.inf, 1.0, threshold=0.5, sharpness=0.5)
    own = SRMNeuron(parameters, gradient="surrogate", surrogate="fast_sigmoid")(current)
    assert torch.equal(spikes, own)
    (found,) = torch.autograd.grad((own * weights).sum(), current)
    torch.testing.assert_close(theirs, 2 * found, rtol=1e-12, atol=0)


def test_iaf_cell_of_norse() -> None:
    inputs, cell = torch.rand(BATCH, STEPS, INPUTS), norse.IAFCell()
    state, outputs = None, []
    for x in inputs.unbind(1):
        spikes, state = cell(x, state)
        outputs.append(spikes)
    own = SRMNeuron(SRMParameters(math.inf, 1.0))(inputs)
    assert torch.equal(torch.stack(outputs, 1), own)


def test_alpha_of_snntorch_responds_a_step_later() -> None:
    tau_m, tau_s = 10.0, 4.0
    alpha, beta = 1 - 1 / tau_m, 1 - 1 / tau_s
    current = torch.rand(BATCH, STEPS, HIDDEN) * 0.1  # of which none fires
    neuron = snntorch.Alpha(alpha, beta, threshold=1e6)
    state, potentials = neuron.reset_mem(), []
    for x in current.unbind(1):
        _, *state = neuron(x, *state)
        potentials.append(state[2])
    own = srm_membrane(current, SRMParameters(tau_m, tau_s))
    c = tau_m / (tau_m - tau_s)
    scale = (math.log(alpha) / (math.log(beta) - math.log(alpha)) + 1) / c
    theirs = torch.stack(potentials, 1)
    assert not theirs[:, 0].any()
    torch.testing.assert_close(theirs[:, 1:], scale * own[:, :-1], rtol=2e-5, atol=2e-6)


def test_potentials() -> None:
    """Of neurons that do not fire: an `SRMReadout` behind the same map."""
    tau_m, tau_s = 10.0, 5.0
    current = torch.rand(BATCH, STEPS, HIDDEN)
    theirs = norse.LI()(current.transpose(0, 1))[0].transpose(0, 1)
    own = srm_membrane(current, SRMParameters(tau_m, tau_s))
    torch.testing.assert_close(theirs, own * tau_s / tau_m, rtol=3e-8, atol=0)  # its rates are float32
    theirs = torch.stack(neuron.NonSpikingLIFNode(TAU)(current.transpose(0, 1)), 1)
    own = srm_membrane(current, SRMParameters(TAU, 1.0)) / TAU
    torch.testing.assert_close(theirs, own, rtol=1e-12, atol=0)


def test_potentials_of_snntorch() -> None:
    leaky, current = snntorch.Leaky(0.8, reset_mechanism="none"), torch.rand(BATCH, STEPS, HIDDEN)
    membrane, potentials = leaky.reset_mem(), []
    for x in current.unbind(1):
        _, membrane = leaky(x, membrane)
        potentials.append(membrane)
    assert torch.equal(torch.stack(potentials, 1), srm_membrane(current, SRMParameters(5.0, 1.0)))


def test_which_fire_at_the_threshold_itself() -> None:
    at = torch.ones(1, 1, dtype=torch.float32)
    assert neuron.IFNode()(at) == 1
    assert norse.IAFCell()(at)[0] == 0
    assert snntorch.Leaky(0.5)(at)[0] == 0
    assert SRMNeuron(SRMParameters(math.inf, 1.0))(at[:, None]) == 0


def test_the_guide_s_layers_are_the_guide_s_neurons() -> None:
    """`SRMLinear` with the weights of the maps fires as `SRMNeuron` behind them, and learns by either gradient."""
    first, second = maps()
    inputs = torch.rand(BATCH, STEPS, INPUTS)
    parameters = SRMParameters(5.0, 1.0)
    layers = nn.Sequential(
        SRMLinear(INPUTS, HIDDEN, parameters, bias=True, weight_norm=False),
        SRMLinear(HIDDEN, OUTPUTS, parameters, bias=True, weight_norm=False, output=True),
    )
    for one, linear in zip(layers, (first, second), strict=True):
        missing = one.load_state_dict(linear.state_dict(), strict=False)
        assert not missing.unexpected_keys
    assert torch.equal(layers(inputs), ours(parameters, first, second)(inputs))


def test_time_first() -> None:
    inputs = torch.rand(STEPS, BATCH, INPUTS)
    first = SRMNeuron(batch_first=False)(inputs)
    assert torch.equal(first, SRMNeuron()(inputs.transpose(0, 1)).transpose(0, 1))
