"""The SRM scan: sums written out from the equations, eager reference, Triton kernels, PyTorch's own checks."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import srm_triton
from srm_triton import SRMParameters, srm_scan, srm_trace, use_backend
from srm_triton.kernels import launch, native
from srm_triton.kernels import srm_scan as srm_scan_kernel
from srm_triton.kernels.configurations import Configuration
from srm_triton.ops.srm_scan import _scan, _scan_backward, _trace, scan_backward, scan_forward

DEFAULT = SRMParameters()
NEARLY_EQUAL = SRMParameters(tau_m=20.0, tau_s=19.0, tau_g=4.0, threshold=0.5)
# the C library takes CPU tensors only, and is absent where there is no compiler (test_native.py looks into that)
HAS_NATIVE = native.problem() is None and not torch.cuda.is_available()
BACKENDS = ["reference", "triton", *(["native"] if HAS_NATIVE else [])]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def gradients(
    grad: Tensor, current: Tensor, backend: str, parameters=DEFAULT, time_axis=1, label_steps=None
) -> tuple[Tensor, Tensor]:
    with use_backend(backend):
        _, states = scan_forward(current, parameters, time_axis, keep_states=True)
    return scan_backward(grad, current, states, label_steps, parameters, time_axis, True, True, backend)


def sums_of_the_equations(
    grad: list[float], current: list[float], p: SRMParameters, label_step: int = -1
) -> tuple[list, list, list]:
    """One neuron, in Python floats and powers: nothing shared with the package."""
    a_m, a_s, a_g = (1 - 1 / tau for tau in (p.tau_m, p.tau_s, p.tau_g))
    c = p.tau_m / (p.tau_m - p.tau_s)
    m = s = g = u_previous = 0.0
    spikes, w, v = [], {}, {}
    for t, x in enumerate(current):
        m, s, g = (m + x) * a_m, (s + x) * a_s, (g + x) * a_g
        u = c * (m - s)
        spikes.append(float(u > p.threshold))
        if u > p.threshold or t == label_step:
            change = u - u_previous
            w[t] = min(max(-1 / change if change else -math.inf, -p.membrane_slope_limit), 0) * grad[t]
            v[t] = min(max(-1 / g if g else -math.inf, -p.gradient_slope_limit), 0) * grad[t]
        u_previous = u
        if u > p.threshold:
            m = s = g = u_previous = 0.0
    weight_path, time_path = [], []
    for t in range(len(current)):
        following = [spike for spike in w if spike >= t]
        if following:
            k = following[0] - t
            weight_path.append(w[following[0]] * c * (a_m ** (k + 1) - a_s ** (k + 1)))
            time_path.append(-v[following[0]] * a_g ** (k + 1))
        else:
            weight_path.append(0.0)
            time_path.append(0.0)
    return spikes, weight_path, time_path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parameters", [DEFAULT, NEARLY_EQUAL, SRMParameters(tau_m=3.0, tau_s=5.0)])
@pytest.mark.parametrize("steps", [1, 2, 16, 17, 40])
def test_equals_the_sums_of_the_equations(steps, parameters, backend, device):
    generator = torch.Generator().manual_seed(steps)
    current = torch.randn(2, steps, 3, dtype=torch.float64, generator=generator) + 0.7
    grad = torch.randn(2, steps, 3, dtype=torch.float64, generator=generator)
    with use_backend(backend):
        spikes = srm_scan(current.to(device), parameters).cpu()
    weight_path, time_path = (
        result.cpu() for result in gradients(grad.to(device), current.to(device), backend, parameters)
    )
    for b, n in itertools.product(range(2), range(3)):
        expected = sums_of_the_equations(grad[b, :, n].tolist(), current[b, :, n].tolist(), parameters)
        assert spikes[b, :, n].tolist() == expected[0]
        for result, values in zip((weight_path, time_path), expected[1:], strict=True):
            torch.testing.assert_close(result[b, :, n], torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=0)


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
        "no feature axis": (current[:, :, 0], 1),
        "constant over time": (current[:, :1].expand(-1, steps, -1), 1),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 16, 5), (2, 37, 3), (70, 7, 90), (2, 5, 4100)])
def test_kernels_equal_the_reference_in_every_layout(shape, dtype, device):
    generator = torch.Generator().manual_seed(sum(shape))
    values = (1.5 * torch.randn(shape, generator=generator) + 0.7).to(dtype).to(device)
    some = values.numel() > 300 or dtype == torch.float16
    chosen = {"contiguous": (values, 1)} if some else layouts(values)
    for name, (current, time_axis) in chosen.items():
        grad = torch.randn(current.shape, generator=generator).to(dtype).to(device)
        results = {}
        for backend in BACKENDS:
            with use_backend(backend):
                spikes, _ = scan_forward(current, DEFAULT, time_axis, keep_states=False)
                trace = srm_trace(current, batch_first=time_axis == 1)
            results[backend] = (spikes, *trace, *gradients(grad, current, backend, time_axis=time_axis))
        for backend, same in (("triton", 5), *([("native", 7)] if HAS_NATIVE else [])):
            for expected, result in zip(results["reference"], results[backend], strict=True):
                assert expected.stride() == result.stride(), name
            for expected, result in zip(results["reference"][:same], results[backend][:same], strict=True):
                assert torch.equal(expected, result), (backend, name)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        for expected, result in zip(results["reference"][5:], results["triton"][5:], strict=True):
            torch.testing.assert_close(result, expected, rtol=tolerance, atol=1e-6 if dtype == torch.float16 else 0)


@pytest.mark.parametrize("shape", [(3, 1, 6), (1, 1, 1)])
def test_a_gradient_with_strides_of_zero(shape, device):
    current = (torch.randn(3, 20, 6, dtype=torch.float64) + 1).to(device)
    grad = torch.randn(shape, dtype=torch.float64).to(device).expand(3, 20, 6)
    expected = gradients(grad.contiguous(), current, "reference")
    for backend in BACKENDS[1:]:
        for result, reference in zip(gradients(grad, current, backend), expected, strict=True):
            torch.testing.assert_close(result, reference, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
class TestSpecialCurrents:
    def test_silent_neurons_get_exact_zeros(self, backend, device):
        current = torch.full((2, 20, 3), 0.01, device=device)
        with use_backend(backend):
            assert srm_scan(current).count_nonzero() == 0
        for result in gradients(torch.randn(2, 20, 3, device=device), current, backend):
            assert torch.equal(result, torch.zeros_like(result))

    def test_a_spike_at_every_step(self, backend, device):
        current = torch.full((2, 20, 3), 50.0, device=device)
        with use_backend(backend):
            assert srm_scan(current).all()
        weight_path, time_path = gradients(torch.ones(2, 20, 3, device=device), current, backend)
        torch.testing.assert_close(weight_path, torch.full_like(current, -1 / 50))
        torch.testing.assert_close(time_path, torch.full_like(current, 1 / 50))

    def test_nothing_after_the_last_spike(self, backend, device):
        current = torch.zeros(1, 24, 1, device=device)
        current[:, :18] = 1.0
        with use_backend(backend):
            last = int(srm_scan(current).flatten().nonzero().max())
        assert last < 23
        for result in gradients(torch.ones_like(current), current, backend):
            assert result[:, : last + 1].count_nonzero() == last + 1
            assert torch.equal(result[:, last + 1 :], torch.zeros_like(result[:, last + 1 :]))

    @pytest.mark.parametrize(
        ("second", "change", "slope"), [(-0.25, 0.0, 4.0), (-0.5, -0.125, 0.0), (3.5, 1.875, 8 / 15)]
    )
    def test_potential_that_does_not_rise_at_an_event(self, backend, second, change, slope, device):
        """Only a label spike can lie there; with these constants every value is exact in binary."""
        parameters = SRMParameters(tau_m=4.0, tau_s=2.0, threshold=9.0)
        current = torch.tensor([[[1.0], [second]]], dtype=torch.float64, device=device)
        assert srm_trace(current, parameters).membrane_change[0, 1, 0] == change
        second_step = torch.ones(1, 1, dtype=torch.int32, device=device)
        grad = torch.ones_like(current)
        weight_path, time_path = gradients(grad, current, backend, parameters, label_steps=second_step)
        expected = [-slope * 2 * (0.75**2 - 0.5**2), -slope * 0.5]
        assert weight_path.flatten().tolist() == pytest.approx(expected, rel=1e-15)
        assert time_path.isfinite().all()

    def test_a_potential_at_the_threshold_does_not_fire(self, backend, device):
        current = torch.tensor([[1.0, 0.0]], device=device)
        for threshold, fires in ((0.5, 0.0), (0.5 - 2**-25, 1.0)):  # u = 0.5 exactly
            with use_backend(backend):
                spikes = srm_scan(current, SRMParameters(tau_m=4.0, tau_s=2.0, threshold=threshold))
            assert spikes[0, 0] == fires

    def test_slopes_of_zero_at_an_event(self, backend, device):
        current = torch.zeros(1, 1, 1, dtype=torch.float64, device=device)
        first_step = torch.zeros(1, 1, dtype=torch.int32, device=device)
        weight_path, time_path = gradients(torch.ones_like(current), current, backend, label_steps=first_step)
        assert weight_path.item() == pytest.approx(-4 / 3, rel=1e-15)
        assert time_path.item() == pytest.approx(123456789 * 0.6, rel=1e-15)

    def test_slope_limits(self, backend, device):
        parameters = SRMParameters(threshold=0.01, membrane_slope_limit=2.0, gradient_slope_limit=3.0)
        current = torch.full((1, 1, 1), 0.1, dtype=torch.float64, device=device)
        weight_path, time_path = gradients(torch.ones_like(current), current, backend, parameters)
        assert weight_path.item() == pytest.approx(-2.0 / 3.0, rel=1e-12)
        assert time_path.item() == pytest.approx(3.0 * 0.6, rel=1e-12)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_bad_current_stays_in_its_neuron(self, backend, value, device):
        clean = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(0)).to(device) + 1
        grad = torch.ones_like(clean)
        current = clean.clone()
        current[1, 4, 2] = value
        others = torch.ones(3, 5, dtype=torch.bool, device=device)
        others[1, 2] = False
        with use_backend(backend):
            spikes, expected = srm_scan(current), srm_scan(clean)
        assert torch.equal(spikes.movedim(1, 2)[others], expected.movedim(1, 2)[others])
        assert spikes[1, 4:, 2].count_nonzero() == 0
        for result, expected in zip(gradients(grad, current, backend), gradients(grad, clean, backend), strict=True):
            assert torch.equal(result.movedim(1, 2)[others], expected.movedim(1, 2)[others])
            assert torch.equal(result[1, 4:, 2], torch.zeros(16, device=device))
            assert result.isfinite().all()

    @pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0)])
    def test_axes_of_length_zero(self, backend, shape, device):
        current = torch.zeros(shape, device=device, requires_grad=True)
        with use_backend(backend):
            spikes = srm_scan(current)
            assert srm_trace(current).membrane_change.shape == shape
        spikes.sum().backward()
        assert spikes.shape == current.grad.shape == shape


@pytest.mark.parametrize(("steps", "shape"), [(1, (2, 3)), (16, (4, 5)), (35, (3, 40)), (50, (2, 3, 4))])
@pytest.mark.parametrize("time_axis", [0, 1])
def test_label_spikes(steps, shape, time_axis, device):
    """Against the sums of the equations, whose next spike may be a label spike, before or behind the neuron's own."""
    generator = torch.Generator().manual_seed(5)
    current, grad = torch.randn(2, steps, *shape, dtype=torch.float64, generator=generator) + 0.3
    label_steps = torch.randint(-1, steps, shape, dtype=torch.int32, generator=generator)
    expected = [torch.zeros_like(current) for _ in range(2)]
    for neuron in itertools.product(*map(range, shape)):
        values = grad[:, *neuron].tolist(), current[:, *neuron].tolist()
        _, *paths = sums_of_the_equations(*values, DEFAULT, label_steps[neuron].item())
        for result, path in zip(expected, paths, strict=True):
            result[:, *neuron] = torch.tensor(path, dtype=torch.float64)
    current, grad, *expected = (tensor.movedim(0, time_axis).to(device) for tensor in (current, grad, *expected))
    strided = label_steps.mT.contiguous().mT
    for some, backend in itertools.product((label_steps.to(device), strided.to(device)), BACKENDS):
        results = gradients(grad, current, backend, time_axis=time_axis, label_steps=some)
        for result, reference in zip(results, expected, strict=True):
            torch.testing.assert_close(result, reference, rtol=2e-14, atol=0)


def test_only_the_gradients_that_are_asked_for(device):
    current = torch.ones(2, 20, 3, device=device)
    for backend in BACKENDS:
        with use_backend(backend):
            _, states = scan_forward(current, DEFAULT, 1, keep_states=True)
        both = scan_backward(current, current, states, None, DEFAULT, 1, True, True, backend)
        for which in ((True, False), (False, True), (False, False)):
            results = scan_backward(current, current, states, None, DEFAULT, 1, *which, backend)
            for asked, result, expected in zip(which, results, both, strict=True):
                assert torch.equal(result, expected) if asked else result.numel() == 0


def test_what_is_saved_for_backward(device):
    """4 bytes a neuron and step in float32, 2 in bfloat16; the Triton kernel adds 12 for each chunk but the first."""
    for dtype, backend, steps in itertools.product(DTYPES, BACKENDS, (8, 33)):
        current = torch.ones(2, steps, 5, dtype=dtype, device=device, requires_grad=True)
        saved: list[int] = []
        with (
            use_backend(backend),
            torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t),
        ):
            srm_scan(current)
        chunks = -(-steps // 16) if backend == "triton" else 1
        state_bytes = (8 if dtype == torch.float64 else 4) * 3 * (chunks - 1) * 10
        assert sum(saved) == current.nbytes + state_bytes
        with torch.no_grad(), use_backend(backend):
            assert scan_forward(current, DEFAULT, 1, keep_states=False)[1].numel() == 0


def test_trace_explains_the_spikes(device):
    trace = srm_trace(torch.randn(2, 12, 3, device=device) + 1)
    assert torch.equal(trace.spikes, (trace.membrane > 1).float())
    before = torch.where(trace.spikes[:, :-1] == 1, 0, trace.membrane[:, :-1])
    assert torch.equal(trace.membrane_change[:, 1:], trace.membrane[:, 1:] - before)
    assert torch.equal(trace.membrane_change[:, 0], trace.membrane[:, 0])
    half = srm_trace(torch.ones(1, 2, 1, dtype=torch.bfloat16, device=device))
    assert half.spikes.dtype == torch.bfloat16 and half.membrane.dtype == torch.float32


def test_autograd_hands_the_weight_path_to_the_current(device):
    current = (torch.randn(2, 9, 3, dtype=torch.float64) + 1).to(device).requires_grad_()
    grad = torch.randn(2, 9, 3, dtype=torch.float64).to(device)
    srm_scan(current).backward(grad)
    assert torch.equal(current.grad, gradients(grad, current.detach(), "auto")[0])


def test_a_grid_keeps_to_what_a_device_allows():
    tile = srm_scan_kernel.choose_tile(200_000, 4096, Configuration(128, 1))
    columns, rows = tile.grid(200_000, 4096)
    assert rows <= launch.MAX_GRID_Y
    assert rows * tile.block_outer >= 200_000 and columns * tile.block_inner >= 4096


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, device):
    parameters = DEFAULT.to_list()
    for steps, time_axis, backend in ((20, 0, "reference"), (5, 1, "auto"), (18, 1, "triton")):
        current = torch.randn(2, steps, 3, device=device).to(dtype) + 1
        torch.library.opcheck(_scan, (current, parameters, time_axis, True, backend))
        torch.library.opcheck(_trace, (current, parameters, time_axis, backend))
        states = _scan(current, parameters, time_axis, True, backend)[1]
        label_steps = torch.ones(2, 3, dtype=torch.int32, device=device) if time_axis else None
        grad = torch.randn_like(current)
        arguments = (grad, current, states, label_steps, parameters, time_axis, True, True, backend)
        torch.library.opcheck(_scan_backward, arguments)


def test_second_derivatives_are_refused(device):
    current = torch.ones(1, 5, 1, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(srm_scan(current).sum(), current, create_graph=True)
    with pytest.raises(RuntimeError, match="srm_scan cannot be differentiated twice: the first gradient has a rule"):
        first.sum().backward()


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"tau_m": 1.0}, "tau_m must be finite and > 1, got 1.0"),
            ({"tau_s": -2.0}, "tau_s must be finite and > 1, got -2.0"),
            ({"tau_g": math.nan}, "tau_g must be finite and > 1, got nan"),
            ({"threshold": 0.0}, "threshold must be finite and > 0, got 0.0"),
            ({"gradient_slope_limit": math.inf}, "gradient_slope_limit must be finite and > 0, got inf"),
            ({"tau_m": 3.0}, "tau_m and tau_s must differ, got 3.0 for both"),
        ],
    )
    def test_parameters(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            SRMParameters(**arguments)

    @pytest.mark.parametrize("value", ["5", None, True, torch.tensor(5.0)])
    def test_parameters_that_are_no_numbers(self, value):
        with pytest.raises(TypeError, match="tau_m must be a number"):
            SRMParameters(tau_m=value)

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

    def test_unknown_backend(self):
        with pytest.raises(ValueError, match=r"name must be one of \('auto', 'reference', 'native', 'triton'\), got"):
            srm_triton.use_backend("cuda").__enter__()
