"""The SRM scan: equations written out in Python floats, autograd of the recursion, reference, C and Triton alike."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import srm_triton
from srm_triton import SRMParameters, SRMState, srm_scan, srm_trace, use_backend
from srm_triton.kernels import native
from srm_triton.ops.srm_scan import Scanned, _scan, _scan_backward, _trace, scan

DEFAULT = SRMParameters()
NEURONS = {
    "default": DEFAULT,
    "nearly equal": SRMParameters(tau_m=20.0, tau_s=19.0, tau_g=4.0, threshold=0.5),
    "slow synapse": SRMParameters(tau_m=3.0, tau_s=5.0),
    "alpha": SRMParameters(tau_m=4.0, tau_s=4.0),
    "leaky": SRMParameters(tau_m=4.0, tau_s=1.0),
    "not leaky": SRMParameters(tau_m=math.inf, tau_s=2.0, tau_g=math.inf, threshold=2.0),
}
# the C library takes CPU tensors only, and is absent where there is no compiler (test_native.py looks into that)
HAS_NATIVE = native.problem() is None and not torch.cuda.is_available()
BACKENDS = ["reference", "triton", *(["native"] if HAS_NATIVE else [])]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def random(*shape: int, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale + shift


def run(
    current: Tensor,
    grad: Tensor,
    parameters: SRMParameters = DEFAULT,
    backend: str = "auto",
    *,
    rule: str = "event",
    output: bool = False,
    time_axis: int = 1,
    state: SRMState | None = None,
    grad_state: SRMState | None = None,
) -> tuple[Tensor, ...]:
    """Spikes, weight path and time path; with a state, also the final one and the gradients of the initial one."""
    current = current.detach().requires_grad_()
    earlier = torch.zeros_like(current).requires_grad_()
    leaves = [current, earlier]
    if state is not None:
        state = SRMState(*(part.detach().requires_grad_() for part in state))
        leaves += state
    options = {"rule": rule, "output": output, "return_state": True, "batch_first": time_axis == 1}
    with use_backend(backend):
        spikes, final = scan(current, earlier, parameters, state, **options)
    outputs, grads = [spikes], [grad]
    if grad_state is not None:
        outputs, grads = [spikes, *final], [grad, *grad_state]
    gradients = torch.autograd.grad(outputs, leaves, grads)
    return (spikes.detach(), *gradients[:2], *(() if state is None else (*final, *gradients[2:])))


def written_out(
    current: list[float], grad: list[float], p: SRMParameters, start=(0.0, 0.0, 0.0), *, rule="event", output=False
) -> tuple[list, list, list]:
    """One neuron under an event rule, in Python floats and powers: nothing shared with the package."""
    tau_m, tau_s, tau_g, threshold, membrane_limit, gradient_limit = (
        getattr(p, name).item()
        for name in ("tau_m", "tau_s", "tau_g", "threshold", "membrane_slope_limit", "gradient_slope_limit")
    )
    a_m, a_s, a_g = (1 - 1 / tau for tau in (tau_m, tau_s, tau_g))
    u, s, g = start
    spikes, events, last_rise = [], {}, {}
    for t, x in enumerate(current):
        previous = u
        s += x
        u, s, g = a_m * u + s * (1 / tau_s), s * a_s, (g + x) * a_g
        spikes.append(float(u > threshold))
        both = (u - previous, membrane_limit), (g, gradient_limit)
        slopes = [min(max(1 / value if value else math.inf, 0), limit) * grad[t] for value, limit in both]
        if u - previous > 0.05:
            last_rise = {t: slopes}
        if u > threshold:
            events[t] = slopes
            u = s = g = 0.0
    if output and not events:
        events = last_rise
    weight_path, time_path = [0.0] * len(current), [0.0] * len(current)
    for t in range(len(current)):
        following = [event for event in events if event >= t]
        if following:
            k = following[0] - t
            w, v = events[following[0]]
            # c·(a_m^(k+1) − a_s^(k+1)), as the sum that it is, which equal time constants allow; and that for k
            after, before = (sum(a_m**i * a_s ** (n - i) for i in range(n + 1)) / tau_s for n in (k, k - 1))
            weight_path[t] = w * after
            time_path[t] = v * a_g ** (k + 1) if rule == "event" else w * (after - before)
    return spikes, weight_path, time_path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("steps", "rule"), [(1, "event"), (8, "original"), (9, "event"), (9, "original"), (40, "event")]
)
@pytest.mark.parametrize("name", NEURONS)
def test_equals_the_equations_written_out(name, steps, rule, backend, device):
    """From a state handed in, and with silent neurons that count as firing."""
    parameters = NEURONS[name]
    current, grad = random(2, steps, 3, seed=steps, shift=0.35), random(2, steps, 3, seed=1)
    state = SRMState(*(random(2, 3, seed=number, scale=0.1) for number in range(3)))
    start = SRMState(*(part.to(device) for part in state))
    results = run(current.to(device), grad.to(device), parameters, backend, rule=rule, output=True, state=start)
    for b, n in itertools.product(range(2), range(3)):
        values = current[b, :, n].tolist(), grad[b, :, n].tolist()
        expected = written_out(*values, parameters, [part[b, n].item() for part in state], rule=rule, output=True)
        for result, path in zip(results, expected, strict=False):
            torch.testing.assert_close(
                result[b, :, n].cpu(),
                torch.tensor(path, dtype=torch.float64),
                rtol=1e-12,
                atol=0 if rule == "event" else 1e-15,
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_neuron_that_falls_and_yet_fires(backend, device):
    """From a state above the threshold: the slope is 0, and the gradient of what follows stops there."""
    current = random(2, 20, 3, shift=0.8).to(device)
    state = SRMState(*(torch.full((2, 3), value, dtype=torch.float64, device=device) for value in (5.0, 0.0, 0.0)))
    results = run(current, torch.ones_like(current), backend=backend, state=state, grad_state=state)
    assert results[0][:, 0].all() and not results[1][:, 0].any()
    for result, expected in zip(
        results, run(current, torch.ones_like(current), backend="reference", state=state, grad_state=state), strict=True
    ):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_silent_neuron_counts_above_a_rise_of_a_twentieth(backend, device):
    rise = torch.tensor([0.05], dtype=torch.float32)
    current = 2 * torch.stack((rise, rise.nextafter(torch.ones(1))), -1)[:, None].to(device)
    weight_path = run(current, torch.ones_like(current), SRMParameters(tau_s=2.0), backend, output=True)[1]
    assert weight_path.ne(0).tolist() == [[[False, True]]]


def recursion(current: Tensor, p: SRMParameters, state: SRMState, surrogate: str) -> tuple[Tensor, SRMState]:
    """The recursion with PyTorch's operations, where only the derivative of the spike is another: for autograd."""
    u, s, g = state
    spikes = []
    for x in current.unbind(1):
        s = s + x
        u = (1 - 1 / p.tau_m) * u + s / p.tau_s
        v = (u - p.threshold) * p.sharpness
        soft = torch.atan(math.pi * v) / math.pi if surrogate == "arctan" else v / (1 + 2 * v.abs())
        hard = (u > p.threshold).double()
        spikes.append(hard + soft - soft.detach())
        u, s, g = u * (1 - hard), s * (1 - 1 / p.tau_s) * (1 - hard), (g + x) * (1 - 1 / p.tau_g) * (1 - hard)
    return torch.stack(spikes, 1), SRMState(u, s, g)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("surrogate", "sharpness"), [("arctan", 1.0), ("arctan", 3.0), ("fast_sigmoid", 2.5)])
@pytest.mark.parametrize(("steps", "each"), [(1, True), (21, True), (33, False)])
def test_surrogate_equals_autograd_of_the_recursion(steps, each, surrogate, sharpness, backend, device):
    shape = (4,) if each else ()
    leaves = [
        random(3, steps, 4, 2, shift=0.6).requires_grad_(),
        *(random(3, 4, 2, seed=number, shift=0.3).requires_grad_() for number in range(3)),
        *(
            (value + torch.arange(4.0 if each else 1.0).double().view(shape) / 7).requires_grad_()
            for value in (5, 3, 1)
        ),
    ]
    grad, grad_state = random(3, steps, 4, 2, seed=5), [random(3, 4, 2, seed=number) for number in (6, 7)]
    results = []
    for ours in (True, False):
        current, *state, tau_m, tau_s, threshold = (leaf.to(device) for leaf in leaves)
        if ours:
            constants = SRMParameters(tau_m, tau_s, threshold=threshold, sharpness=sharpness)
            with use_backend(backend):
                spikes, final = srm_scan(
                    current, constants, SRMState(*state), gradient="surrogate", surrogate=surrogate, return_state=True
                )
        else:
            rows = (tau_m.view(-1, 1), tau_s.view(-1, 1), 2.5, threshold.view(-1, 1), 4.0, 1e8, sharpness)
            named = dict(zip(srm_triton.parameters.NAMES, rows, strict=True))
            spikes, final = recursion(current, type("Constants", (), named), SRMState(*state), surrogate)
        outputs = [spikes, *final[:2]]
        grads = [each.to(device) for each in (grad, *grad_state)]
        results.append([*outputs, *torch.autograd.grad(outputs, leaves[:3] + leaves[4:], grads)])
    assert torch.equal(results[0][0], results[1][0].round()) and 0.03 < results[0][0].mean() < 0.6
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_event_gradients_are_those_of_spike_times(name, backend, device):
    """Against finite differences of the time at which the potential, between two steps a line, meets the threshold.

    With the threshold at the potential of the step of the spike: elsewhere the rule is an approximation.
    """
    usual = NEURONS[name]
    current = random(1, 12, 5, seed=3, shift=1.2, scale=0.2)
    u = srm_trace(current, SRMParameters(usual.tau_m, usual.tau_s, threshold=1e9)).membrane
    threshold = u[0, 5] * (1 - 1e-12)
    learned = [usual.tau_m.expand(5), usual.tau_s.expand(5), threshold, torch.zeros(1, 5), torch.zeros(1, 5), current]
    learned = [tensor.double() for tensor in learned]

    def times(tau_m, tau_s, threshold, u, s, current) -> Tensor:
        state = SRMState(u, s, torch.zeros_like(s))
        trace = srm_trace(current, SRMParameters(tau_m, tau_s, threshold=threshold * (1 + 1e-6)), state)
        crossed = trace.membrane[0, 5] - threshold  # at step 5, where the first spike is
        return 5 - crossed / trace.membrane_change[0, 5]

    leaves = [tensor.clone().to(device).requires_grad_() for tensor in learned]
    tau_m, tau_s, theta, start, synapse, x = leaves
    with use_backend(backend):
        parameters = SRMParameters(tau_m, tau_s, threshold=theta, membrane_slope_limit=1e9)
        spikes = srm_scan(x, parameters, SRMState(start, synapse, torch.zeros_like(start)))
    assert spikes[0, :6].argmax(0).eq(5).all() and spikes[0, 5].all()
    gradients = torch.autograd.grad(spikes[0, 5].sum(), leaves)
    for number, (value, gradient) in enumerate(zip(learned, gradients, strict=True)):
        if math.isinf(value.flatten()[0]) or (number == 1 and name == "leaky"):
            continue
        for index in np.ndindex(*value.shape[:-1]):  # neurons are independent: one difference serves all
            step = torch.zeros_like(value)
            step[index] = 1e-5
            moved = [times(*(v + sign * step if i == number else v for i, v in enumerate(learned))) for sign in (1, -1)]
            expected = -(moved[0] - moved[1]) / 2e-5
            torch.testing.assert_close(gradient[index].cpu(), expected, rtol=1e-7, atol=1e-9)


def ties(current: Tensor, parameters: SRMParameters) -> Tensor:
    """Neurons whose potential in float64 comes within float32's rounding of the threshold before anything differs."""
    trace = srm_trace(current.double(), parameters)
    return ((trace.membrane - parameters.threshold).abs() < 3e-6).any(1)


CLOSE = [(20.0, 19.0), (5.0, 3.0), (5.0, 4.999), (5.0, 4.99999), (3.0, 5.0), (4.0, 4.0)]


@pytest.mark.parametrize(
    ("backend", "constants"),
    [
        *itertools.product([b for b in BACKENDS if b != "triton"], CLOSE),
        ("triton", CLOSE[0]),
    ],  # interpreted, it takes long
)
def test_float32_spikes_are_those_of_float64(constants, backend, device):
    """But for ties, with time constants however close; c·(m − s), as published, is wrong there."""
    parameters = SRMParameters(*constants)
    current = random(64, 40, 256, shift=0.45, scale=0.5).float().to(device)
    with use_backend(backend):
        spikes = srm_scan(current, parameters)
    differ = (spikes != srm_scan(current.double(), parameters)).any(1)
    tied = ties(current, parameters)
    assert not (differ & ~tied).any() and tied.sum() < 50 and spikes.sum() > 50_000
    assert differ.sum() <= 2


def test_default_spikes_are_those_of_the_published_form(device):
    current = random(64, 40, 256, shift=0.45, scale=0.5).float().to(device)
    m = s = torch.zeros_like(current[:, 0])
    spikes = []
    for x in current.unbind(1):
        m, s = (m + x) * 0.8, (s + x) * (1 - 1 / 3)
        spikes.append(2.5 * (m - s) > 1)
        m, s = (state.masked_fill(spikes[-1], 0) for state in (m, s))
    differ = (srm_scan(current) != torch.stack(spikes, 1)).any(1)
    assert not (differ & ~ties(current, DEFAULT)).any() and differ.sum() <= 2


def layouts(current: Tensor) -> dict[str, tuple[Tensor, int]]:
    """The same values [batch, time, neurons] under other strides, with the time axis."""
    batch, steps, neurons = current.shape
    padded = current.new_full((batch, steps, 2 * neurons + 1), float("nan"))
    padded[..., 1::2] = current
    return {
        "contiguous": (current, 1),
        "time first": (current.transpose(0, 1).contiguous(), 0),
        "time first, seen as batch first": (current.transpose(0, 1).contiguous().transpose(0, 1), 1),
        "neurons outermost": (current.permute(2, 0, 1).contiguous().permute(1, 2, 0), 1),
        "time innermost": (current.transpose(1, 2).contiguous().transpose(1, 2), 1),
        "every other neuron": (padded[..., 1::2], 1),
        "four feature axes": (current.reshape(batch, steps, 1, neurons, 1, 1), 1),
        "channels last": (current.reshape(batch, steps, -1, 1, 1).expand(-1, -1, -1, 2, 1).contiguous().mT.mT, 1),
        "no feature axis": (current[:, :, 0], 1),
        "constant over time": (current[:, :1].expand(-1, steps, -1), 1),
    }


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 1, 1), torch.float32),
        ((3, 16, 5), torch.float64),
        ((2, 19, 3), torch.float32),
        ((2, 9, 3), torch.bfloat16),
        ((200, 9, 3), torch.float16),
        ((70, 7, 90), torch.float32),
        ((2, 5, 4100), torch.bfloat16),
        ((1, 3, 2, 1500), torch.float32),
    ],
)
def test_kernels_equal_the_reference_in_every_layout(shape, dtype, device):
    values = random(*shape, scale=1.5, shift=0.5).to(dtype).to(device)
    chosen = layouts(values) if values.numel() < 300 else {"contiguous": (values, 1)}
    for number, (name, (current, time_axis)) in enumerate(chosen.items()):
        wide = torch.promote_types(dtype, torch.float32)
        neurons = [size for axis, size in enumerate(current.shape) if axis != time_axis]
        states = [
            SRMState(*(random(*neurons, seed=n + i, scale=0.3).to(device, wide) for i in range(3))) for n in (3, 6)
        ]
        channels = current.shape[2] if current.dim() > 2 else 1
        parameters = SRMParameters(
            5 + torch.rand(channels).to(device), 3, threshold=0.8 + torch.rand(channels).to(device)
        )
        rule = ("event", "arctan", "original")[number % 3]
        options = {"rule": rule, "output": True, "time_axis": time_axis, "state": states[0], "grad_state": states[1]}
        grad = random(*current.shape, seed=9).to(device, dtype)
        results = {backend: run(current, grad, parameters, backend, **options) for backend in BACKENDS}
        traces = {}
        for backend in BACKENDS:
            with use_backend(backend):
                traces[backend] = srm_trace(current, parameters, states[0], batch_first=time_axis == 1)
        for backend in BACKENDS[1:]:
            assert all(map(torch.equal, traces[backend], traces["reference"])), (backend, name)
            for place, (result, expected) in enumerate(zip(results[backend], results["reference"], strict=True)):
                assert result.stride() == expected.stride(), (backend, name)
                if (
                    dtype == torch.bfloat16 and backend == "triton"
                ):  # interpreted, it is rounded to one of two neighbours
                    torch.testing.assert_close(result, expected, rtol=2**-7, atol=0)
                else:
                    assert torch.equal(result, expected), (backend, name, place)


@pytest.mark.parametrize("shape", [(3, 1, 6), (1, 1, 1)])
def test_a_gradient_with_strides_of_zero(shape, device):
    current, grad = random(3, 20, 6, shift=1).to(device), random(*shape).to(device).expand(3, 20, 6)
    expected = run(current, grad.contiguous(), backend="reference")
    for backend in BACKENDS[1:]:
        for result, reference in zip(run(current, grad, backend=backend), expected, strict=True):
            assert torch.equal(result, reference)


# State


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("pieces", "rule", "dtype"),
    [
        ([1] * 6, "event", torch.float32),
        ([5, 17, 1, 10], "event", torch.float64),
        ([16, 8, 9], "arctan", torch.float32),
        ([5, 17, 11], "original", torch.float64),
        ([20, 13], "event", torch.bfloat16),
    ],
)
def test_pieces_of_a_sequence_are_the_whole(pieces, rule, dtype, backend, device):
    """Spikes and states bit for bit; gradients handed back through the state, of the constants too."""
    steps = sum(pieces)
    current, grad = (random(3, steps, 5, seed=n, shift=0.4).to(device, dtype) for n in range(2))
    results = []
    for lengths in ([steps], pieces):
        x = current.clone().requires_grad_()
        earlier = torch.zeros_like(x).requires_grad_()
        constants = [torch.full((5,), value, device=device).double().requires_grad_() for value in (5.0, 3.0, 1.0)]
        parameters = SRMParameters(constants[0], constants[1], threshold=constants[2])
        spikes, state = [], None
        with use_backend(backend):
            for part, part_earlier in zip(x.split(lengths, 1), earlier.split(lengths, 1), strict=True):
                options = {"rule": rule, "output": False, "return_state": True, "batch_first": True}
                out, state = scan(part, part_earlier, parameters, state, **options)
                spikes.append(out)
        whole = torch.cat(spikes, 1)
        (whole * grad).sum().backward()
        results.append(([whole, *state, x.grad, earlier.grad], [constant.grad for constant in constants]))
    assert all(map(torch.equal, results[0][0], results[1][0])) and results[0][0][0].any()
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=0)


def test_a_detached_state_truncates(device):
    current = random(2, 20, 3, shift=0.3).to(device).requires_grad_()
    spikes, state = srm_scan(current[:, :10], return_state=True, gradient="surrogate")
    later = srm_scan(current[:, 10:], state=SRMState(*(part.detach() for part in state)), gradient="surrogate")
    later.sum().backward()
    assert not current.grad[:, :10].any() and current.grad[:, 10:].any()
    assert torch.equal(torch.cat((spikes, later), 1), srm_scan(current))


def test_a_loss_on_the_state_has_its_gradient(device):
    """The potential is differentiable as it is where no spike is."""
    current = random(2, 9, 3, scale=0.1).to(device).requires_grad_()
    state = SRMState(*(torch.zeros(2, 3, dtype=torch.float64, device=device) for _ in range(3)))

    def potential(x: Tensor) -> Tensor:
        return torch.stack(srm_scan(x, state=state, return_state=True)[1])

    assert torch.autograd.gradcheck(lambda x: potential(x)[:2], current)


# Silent output neurons


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_silent_output_neuron_counts_as_firing_once(backend, device):
    """At its last rise, in the backward only; one that fires is as it was, and one that never rises gets nothing."""
    current = torch.zeros(1, 20, 3, dtype=torch.float64, device=device)
    current[0, :6, 0] = 0.3  # silent, rises to step 6 or so
    current[0, :6, 1] = 3.0  # fires
    current[0, :, 2] = 0.001  # never rises by 0.05
    grad = torch.ones_like(current)
    spikes, weight_path, time_path = run(current, grad, backend=backend, output=True)
    others = run(current, grad, backend=backend)
    assert spikes.sum((0, 1)).gt(0).tolist() == [False, True, False] and torch.equal(spikes, others[0])
    event = int((srm_trace(current).membrane_change[0, :, 0] > 0.05).nonzero().max())
    for path, plain in ((weight_path, others[1]), (time_path, others[2])):
        assert path[0, : event + 1, 0].gt(0).all() and not path[0, event + 1 :, 0].any()
        assert torch.equal(path[..., 1:], plain[..., 1:]) and not path[..., 2].any() and not plain[..., 0].any()
    surrogate = [run(current, grad, backend=backend, rule="arctan", output=output) for output in (False, True)]
    assert all(map(torch.equal, *surrogate))


# Special currents


@pytest.mark.parametrize("backend", BACKENDS)
class TestSpecialCurrents:
    def test_silent_neurons_get_exact_zeros(self, backend, device):
        current = torch.full((2, 20, 3), 0.01, device=device)
        assert not any(result.any() for result in run(current, random(2, 20, 3).float().to(device), backend=backend))

    def test_a_spike_at_every_step(self, backend, device):
        current = torch.full((2, 20, 3), 50.0, device=device)
        spikes, weight_path, time_path = run(current, torch.ones_like(current), backend=backend)
        assert spikes.all()
        torch.testing.assert_close(weight_path, torch.full_like(current, 1 / 50))
        torch.testing.assert_close(time_path, torch.full_like(current, 1 / 50))

    def test_nothing_after_the_last_spike(self, backend, device):
        current = torch.zeros(1, 24, 1, device=device)
        current[:, :18] = 1.0
        spikes, *paths = run(current, torch.ones_like(current), backend=backend)
        last = int(spikes.flatten().nonzero().max())
        for result in paths:
            assert last < 23 and result[:, : last + 1].all() and not result[:, last + 1 :].any()

    @pytest.mark.parametrize(("start", "slope"), [(8.0, 4.0), (9.0, 0.0), (7.75, 4.0), (4.0, 8 / 15)])
    def test_a_potential_that_does_not_rise_at_a_spike(self, start, slope, backend, device):
        """Handed in above the threshold; with these constants every value is exact in binary."""
        parameters = SRMParameters(tau_m=4.0, tau_s=2.0, threshold=1.0)
        state = SRMState(*(torch.full((1, 1), v, dtype=torch.float64, device=device) for v in (start, 0, -0.0)))
        current = torch.full((1, 1, 1), 4.0 if start > 5 else 5.75, dtype=torch.float64, device=device)
        spikes, weight_path, time_path, *_ = run(current, torch.ones_like(current), parameters, backend, state=state)
        assert spikes.all() and time_path.isfinite().all()
        assert weight_path.item() == pytest.approx(slope / 2, rel=1e-15)

    def test_slopes_of_zero_of_either_sign(self, backend, device):
        """At an event of a trace of 0, and of a potential that stays: the limits count, for −0 too."""
        for zero in (0.0, -0.0):
            state = SRMState(*(torch.full((1, 1), v, dtype=torch.float64, device=device) for v in (2.0, 2.0, zero)))
            current = torch.full((1, 1, 1), zero, dtype=torch.float64, device=device)
            parameters = SRMParameters(tau_m=2.0, tau_s=2.0)  # u: 2 → 1 + 2/2
            spikes, weight_path, time_path, *_ = run(
                current, torch.ones_like(current), parameters, backend, state=state
            )
            assert spikes.all() and weight_path.item() == 2.0
            assert time_path.item() == pytest.approx(123456789 * 0.6, rel=1e-15)

    def test_a_potential_at_the_threshold_does_not_fire(self, backend, device):
        current = torch.tensor([[1.0, 0.0]], device=device)
        for threshold, fires in ((0.5, 0.0), (0.5 - 2**-25, 1.0)):  # u = 0.5 exactly
            with use_backend(backend):
                spikes = srm_scan(current, SRMParameters(tau_m=4.0, tau_s=2.0, threshold=threshold))
            assert spikes[0, 0] == fires

    def test_slope_limits(self, backend, device):
        parameters = SRMParameters(threshold=0.01, membrane_slope_limit=2.0, gradient_slope_limit=3.0)
        current = torch.full((1, 1, 1), 0.1, dtype=torch.float64, device=device)
        _, weight_path, time_path = run(current, torch.ones_like(current), parameters, backend)
        assert weight_path.item() == pytest.approx(2.0 / 3.0, rel=1e-12)
        assert time_path.item() == pytest.approx(3.0 * 0.6, rel=1e-12)

    @pytest.mark.parametrize("rule", ["event", "arctan", "original"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_bad_current_stays_in_its_neuron(self, value, rule, backend, device):
        clean = random(3, 20, 5, shift=1).float().to(device)
        current = clean.clone()
        current[1, 4, 2] = value
        others = torch.ones(3, 5, dtype=torch.bool, device=device)
        others[1, 2] = False
        results, expected = (run(x, torch.ones_like(clean), backend=backend, rule=rule) for x in (current, clean))
        for result, reference in zip(results, expected, strict=True):
            assert torch.equal(result.movedim(1, 2)[others], reference.movedim(1, 2)[others])
        if value != math.inf:  # which fires, as any large current does, and is forgotten
            assert not results[0][1, 4:, 2].any()
        assert rule != "event" or all(result.isfinite().all() for result in results)

    @pytest.mark.parametrize("value", [math.nan, -math.inf])
    def test_a_bad_current_stays_out_of_the_gradients_of_constants(self, value, backend, device):
        current = random(3, 20, 5, shift=1).to(device)
        gradients = []
        for spoiled in (False, True):
            x = current.clone()
            x[1, 4:, 2] = value if spoiled else -100  # silent from there on in either case
            constants = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (5.0, 3.0, 1.0)]
            with use_backend(backend):
                srm_scan(x, SRMParameters(constants[0], constants[1], threshold=constants[2])).sum().backward()
            gradients.append([constant.grad for constant in constants])
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0)])
    def test_axes_of_length_zero(self, shape, backend, device):
        current = torch.zeros(shape, device=device, requires_grad=True)
        state = SRMState(*(torch.ones(*shape[:1], *shape[2:], device=device, requires_grad=True) for _ in range(3)))
        threshold = torch.ones((), requires_grad=True)
        with use_backend(backend):
            spikes, final = srm_scan(current, SRMParameters(threshold=threshold), state, return_state=True)
            assert srm_trace(current).membrane_change.shape == shape
        (spikes.sum() + sum(part.sum() for part in final)).backward()
        assert spikes.shape == current.grad.shape == shape and threshold.grad == 0
        assert all(map(torch.equal, final, state)) or shape[1:2] != (0,)
        assert all(torch.equal(part.grad, torch.ones_like(part)) for part in state) or shape[1:2] != (0,)


# Memory, tracing, PyTorch's checks


def test_what_is_saved_for_backward(device):
    """4 bytes a neuron and step in float32, 2 in bfloat16; the Triton kernel adds 12 for each chunk but the first."""
    for dtype, backend, steps, rule in zip(DTYPES * 3, BACKENDS * 4, (8, 16, 33) * 4, ("event", "surrogate") * 6):  # noqa: B905
        current = torch.ones(2, steps, 5, dtype=dtype, device=device, requires_grad=True)
        saved: list[int] = []
        with (
            use_backend(backend),
            torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t),
        ):
            srm_scan(current, gradient=rule, output=rule == "surrogate")  # which needs no event
        wide = 8 if dtype == torch.float64 else 4
        chunk = 8 if steps == 8 or dtype == torch.float64 else 16
        chunks = -(-steps // chunk) if backend == "triton" else 1
        assert sum(saved) == current.nbytes + wide * 3 * (chunks - 1) * 10 + 8 * wide, (dtype, backend, steps)


def test_trace_explains_the_spikes(device):
    current = random(2, 12, 3, shift=0.8).to(device)
    start, state = srm_scan(current[:, :5], return_state=True)
    trace, later = srm_trace(current), srm_trace(current[:, 5:], state=state)
    assert torch.equal(trace.spikes, (trace.membrane > 1).double()) and torch.equal(trace.spikes[:, :5], start)
    before = torch.where(trace.spikes[:, :-1] == 1, 0, trace.membrane[:, :-1])
    assert torch.equal(trace.membrane_change[:, 1:], trace.membrane[:, 1:] - before)
    assert torch.equal(trace.membrane_change[:, 0], trace.membrane[:, 0])
    for whole, part in zip(trace, later, strict=True):
        assert torch.equal(whole[:, 5:], part)
    half = srm_trace(torch.ones(1, 2, 1, dtype=torch.bfloat16, device=device))
    assert half.spikes.dtype == torch.bfloat16 and half.membrane.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, device):
    cases = (20, 0, "reference", True, None), (5, 1, "auto", False, torch.uint8), (18, 1, "triton", True, torch.float16)
    for steps, time_axis, backend, keep, spike_dtype in cases:
        current = random(2, steps, 3, shift=1).to(device, dtype)
        if time_axis == 0:
            current = current.transpose(0, 1).contiguous()
        constants = SRMParameters(threshold=torch.ones(3)).pack(current)
        initial = torch.zeros(3, 2, 3, dtype=constants.dtype, device=device) if keep else None
        arguments = (current, constants, initial, time_axis, [keep, keep, True], spike_dtype, backend)
        torch.library.opcheck(_scan, arguments)
        torch.library.opcheck(_trace, (current, constants, initial, time_axis, backend))
        _, final, events, checkpoints = Scanned.of(_scan(*arguments), [keep, keep, True])
        assert (checkpoints is not None) == (backend == "triton" or device.type == "cuda")
        gradients = random(*current.shape).to(device, dtype), final
        asked = [True, True, keep, True]
        arguments = (*gradients, current, constants, initial, events, checkpoints, time_axis, "event", asked, backend)
        torch.library.opcheck(_scan_backward, arguments)


def test_second_derivatives_are_refused(device):
    current = torch.ones(1, 5, 1, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(srm_scan(current).sum(), current, create_graph=True)
    with pytest.raises(RuntimeError, match="srm_scan cannot be differentiated twice: the first gradient has a rule"):
        first.sum().backward()


class TestBadInput:
    def test_currents(self):
        for function in (srm_scan, srm_trace):
            with pytest.raises(TypeError, match=r"current must be a torch\.Tensor, got list"):
                function([1.0])
            with pytest.raises(TypeError, match=r"current must have one of the dtypes float64, .* got int64"):
                function(torch.ones(1, 2, dtype=torch.int64))
            with pytest.raises(ValueError, match=r"current must have the shape \[batch, time, \.\.\.\], got \[3\]"):
                function(torch.ones(3))
            with pytest.raises(ValueError, match=r"\[time, batch, \.\.\.\]"):
                function(torch.ones(3), batch_first=False)
            with pytest.raises(TypeError, match="parameters must be SRMParameters or None, got dict"):
                function(torch.ones(1, 2), {"tau_m": 5.0})

    @pytest.mark.parametrize(
        ("parts", "error", "message"),
        [
            ((torch.ones(3, 4),) * 3, ValueError, r"state.membrane must have the shape \[2, 4\], .* got \[3, 4\]"),
            (
                (torch.ones(2, 4), torch.ones(2, 4), torch.ones(2)),
                ValueError,
                r"state.gradient_trace must have .* got \[2\]",
            ),
            ((torch.ones(2, 4).double(),) * 3, TypeError, "state.membrane must have the dtype torch.float32"),
            (
                (torch.ones(2, 4, device="meta"),) * 3,
                ValueError,
                "state.membrane must be on the device of current, cpu",
            ),
            ((torch.ones(2, 4).to_sparse(),) * 3, ValueError, "state.membrane must be a dense tensor"),
            ((torch.ones(2, 4),) * 2, TypeError, "state must be an SRMState of three tensors or None, got tuple"),
        ],
    )
    def test_states(self, parts, error, message):
        state = SRMState(*parts) if len(parts) == 3 else parts
        with pytest.raises(error, match=message):
            srm_scan(torch.ones(2, 5, 4), state=state)

    def test_labels_are_no_state(self):
        with pytest.raises(
            TypeError, match=r"state must be an SRMState or None, got a Tensor; layers take no labels: .* output=True"
        ):
            srm_scan(torch.ones(2, 5, 4), None, torch.tensor([1, 0]))

    def test_options(self):
        with pytest.raises(
            ValueError, match=r"gradient must be one of \('event', 'original', 'surrogate'\), got 'spike'"
        ):
            srm_scan(torch.ones(1, 2), gradient="spike")
        for name in ("output", "return_state", "batch_first"):
            with pytest.raises(ValueError, match=f"{name} must be True or False, got 'yes'"):
                srm_scan(torch.ones(1, 2), **{name: "yes"})
        with pytest.raises(ValueError, match=r"current must be a dense tensor, got one of .*sparse_coo"):
            srm_scan(torch.ones(1, 2).to_sparse())
        with pytest.raises(ValueError, match=r"surrogate must be one of \('arctan', 'fast_sigmoid'\), got 'relu'"):
            srm_scan(torch.ones(1, 2), surrogate="relu")
        with pytest.raises(ValueError, match=r"name must be one of \('auto', 'reference', 'native', 'triton'\), got"):
            use_backend("cuda").__enter__()
