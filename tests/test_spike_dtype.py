"""`spike_dtype`: the same spikes in fewer bytes, gradients that autograd rounds between layers, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from test_srm_scan import BACKENDS, random
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from srm_triton import (
    SpikeAvgPool2d,
    SpikingResNet18_2D,
    SRMAffine,
    SRMConv1d,
    SRMConv2d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMReadout,
    SRMRecurrent,
    SRMState,
    calibrate_gain,
    spiking_network,
    srm_conv2d,
    srm_linear,
    srm_scan,
    use_backend,
)
from srm_triton.kernels import native
from srm_triton.levels import decode, encode

HALF = (torch.bfloat16, torch.float16)
SMALL = (*HALF, torch.uint8)
needs_library = pytest.mark.skipif(native.problem() is not None, reason=f"the C library is {native.problem()}")


def layouts(batch: int, steps: int, *neurons: int) -> list[Tensor]:
    """Currents as rows, transposed, strided, of narrow rows, and repeated over time."""
    current = random(batch, steps, *neurons, shift=0.4).float()
    wide = random(batch, steps, *neurons[:-1], 2 * neurons[-1] + 1, shift=0.4).float()
    return [
        current,
        current.transpose(1, 2).contiguous().transpose(1, 2),
        wide[..., 1::2],
        random(40, steps, 3, shift=0.4).float(),
        current[:, :1].expand_as(current),
    ]


def fired(current: list[float], p: SRMParameters) -> list[int]:
    """The spikes of one neuron, in Python floats."""
    tau_m, tau_s, threshold = (getattr(p, name).item() for name in ("tau_m", "tau_s", "threshold"))
    u = s = 0.0
    spikes = []
    for x in current:
        s += x
        u = (1 - 1 / tau_m) * u + s / tau_s
        s *= 1 - 1 / tau_s
        spikes.append(int(u > threshold))
        u, s = (0.0, 0.0) if u > threshold else (u, s)
    return spikes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", SMALL)
def test_spikes_are_those_written_out(backend, dtype):
    parameters = SRMParameters(4.0, 2.0, threshold=0.7)
    for given in (torch.float64, torch.float32, torch.bfloat16):
        current = random(3, 21, 5, shift=0.3).to(given)
        with use_backend(backend):
            spikes = srm_scan(current, parameters, spike_dtype=dtype)
        expected = [[fired(neuron, parameters) for neuron in sample] for sample in current.transpose(1, 2).tolist()]
        assert spikes.dtype == dtype and spikes.transpose(1, 2).tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", SMALL)
def test_they_are_the_same_in_every_layout_with_states_and_events(backend, dtype):
    state = SRMState(*(0.3 * random(4, 30, seed=seed).float() for seed in range(3)))
    for number, current in enumerate(layouts(4, 19, 30)):
        given = state if number != 3 else None
        with use_backend(backend):
            results = [srm_scan(current, None, given, return_state=True, spike_dtype=kind) for kind in (None, dtype)]
        (expected, expected_state), (spikes, final) = results
        assert spikes.dtype == dtype and torch.equal(spikes.float(), expected) and 0 < expected.mean() < 1
        assert spikes.stride() == expected.stride()
        assert all(map(torch.equal, final, expected_state)) and final.membrane.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_a_rounded_gradient_is_that_of_a_scan_which_receives_it_so(backend, dtype, wide):
    """Bit for bit, and the state's, the constants' and those of silent neurons of the output too."""
    few = backend == "triton"  # as the interpreter takes its time
    for number, current in enumerate(layouts(2, 19, 6)[:3:2] if few else layouts(4, 35, 30)):
        grad = random(*current.shape, seed=1).to(dtype)
        for rule in ("event", "surrogate")[few and number > 0 :]:
            found = []
            for kind in (None, dtype):
                leaf = current.detach().to(wide).requires_grad_()
                threshold = torch.full((current.shape[2],), 1.5 if number else 30.0, dtype=wide, requires_grad=True)
                with use_backend(backend):
                    spikes = srm_scan(
                        leaf, SRMParameters(threshold=threshold), gradient=rule, output=True, spike_dtype=kind
                    )
                spikes.backward(grad if kind else grad.to(wide))
                assert leaf.grad.any() and leaf.grad.dtype == wide
                found.append((leaf.grad, threshold.grad))
            assert all(map(torch.equal, *found))


def network(
    spike_dtype: torch.dtype | None, gradient: str = "event", keep: str = "current", recurrent: bool = True
) -> nn.Sequential:
    """Every kind of layer, with weights that depend on the seed alone."""
    torch.manual_seed(2)
    pooling = {"gradient": gradient, "keep": keep}
    options = pooling | {"spike_dtype": spike_dtype, "parameters": SRMParameters(threshold=0.3)}
    pooling["dtype"] = torch.float32
    return nn.Sequential(
        SRMConv2d(2, 6, 3, padding=1, bias=True, **options),
        SpikeAvgPool2d(3, 2, 1, **pooling),
        SRMConv2d(6, 6, 4, padding="same", groups=2, learn=("tau_m",), **options),
        nn.Flatten(3),
        SRMConv1d(6, 4, 3, padding=1, padding_mode="circular", **options),
        nn.Flatten(2),
        SRMLinear(4 * 16, 24, **options),
        SRMAffine(nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 16)), channels=16, **options),
        *(SRMRecurrent(16, 16, **options) for _ in range(recurrent)),
        SRMReadout(16, 5, keep=keep),
    )


INPUTS = (random(3, 6, 2, 8, 8) < 0).float()


def trained(model: nn.Module, inputs: Tensor, saved: list[Tensor] | None = None) -> list[Tensor]:
    """The output and all gradients; fills the list of what is saved for the backward."""
    inputs = inputs.detach().requires_grad_(inputs.is_floating_point())
    if saved is None:
        output = model(inputs)
    else:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            output = model(inputs)
    output.float().square().mean().backward()
    assert output.any()
    return [output, *(p.grad for p in model.parameters()), *[inputs.grad] * inputs.is_floating_point()]


@pytest.mark.parametrize("dtype", SMALL)
def test_a_network_computes_the_same(dtype):
    model, expected = network(dtype), network(None)
    kinds = []
    for layer in model:
        layer.register_forward_hook(lambda layer, inputs, output: kinds.append(output.dtype))
    with torch.no_grad():
        assert torch.equal(model(INPUTS.to(dtype)), expected(INPUTS))
        assert torch.equal(model.eval()(INPUTS), expected.eval()(INPUTS))
    assert kinds[::6][:2] == [dtype, dtype] and kinds[1] == kinds[9] == torch.float32
    assert kinds[:9].count(dtype) == 8
    assert torch.equal(model.double()(INPUTS.double()), expected.double()(INPUTS.double())) if dtype in HALF else True


@pytest.mark.parametrize("gradient", ["event", "original", "surrogate"])
@pytest.mark.parametrize("dtype", HALF)
def test_gradients_differ_by_their_rounding(gradient, dtype):
    """By at most 0.8 % of their length in bfloat16 over six layers, as measured; the last layer's not at all."""
    output, *gradients = trained(network(dtype, gradient), INPUTS)
    expected_output, *expected = trained(network(None, gradient), INPUTS)
    assert torch.equal(output, expected_output)
    differences = [float((g - e).norm() / e.norm()) for g, e in zip(gradients, expected, strict=True) if e.any()]
    assert len(differences) > 15 and 0 < max(differences) < (8e-3 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_spikes_are_kept_as_bits_too(dtype):
    saved: list[Tensor] = []
    lean = trained(network(dtype, keep="spikes", recurrent=False), INPUTS, saved)
    assert sum(t.dtype == dtype for t in saved) >= 4 and all(t.numel() <= 16 for t in saved if t.dtype == dtype)
    for result, expected in zip(lean, trained(network(dtype, recurrent=False), INPUTS), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("backend", ["reference", *["native"] * (native.problem() is None)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_bytes_are_kept_as_bits(backend, dtype):
    for size in (9, 1024, 3001):
        events = random(size) < -0.5
        values = (events * 3).to(dtype)
        with use_backend(backend):
            saved, form = encode(values)
            assert form.bits == 1 and saved[0].nbytes == -(-size // 8) and torch.equal(decode(saved, form), values)


def test_events_stay_bytes_until_the_product():
    """Training by them gives the gradients of floats, and keeps the bytes."""
    events = INPUTS.to(torch.uint8)
    for given in (events, events.bool(), events.to(torch.int64)):
        for keep in ("current", "spikes"):
            for found, expected in zip(
                trained(network(None, keep=keep, recurrent=False), given),
                trained(network(None, keep=keep, recurrent=False), INPUTS),
                strict=False,  # but for that of the inputs
            ):
                assert torch.equal(found, expected)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        spikes = SRMLinear(64, 8)(events.flatten(3).flatten(2)[..., :64])
    assert spikes.requires_grad and any(t.dtype == torch.uint8 for t in saved)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_padded_bytes(mode, padding):
    layer = SRMConv2d(2, 3, 2, padding=padding, padding_mode=mode)
    for dtype in (*SMALL, torch.bool):
        assert torch.equal(layer(INPUTS.to(dtype)), layer(INPUTS))


def test_functions_take_and_return_them():
    weight, kernel = torch.randn(5, 16), torch.randn(3, 2, 3, 3)
    for dtype in HALF:
        result = srm_linear(INPUTS[..., 0, :].flatten(2).to(dtype), weight, spike_dtype=dtype)
        assert result.dtype == dtype and torch.equal(result.float(), srm_linear(INPUTS[..., 0, :].flatten(2), weight))
        result = srm_conv2d(INPUTS.to(dtype), kernel, spike_dtype=dtype)
        assert result.dtype == dtype and torch.equal(result.float(), srm_conv2d(INPUTS, kernel))
        spikes = SRMNeuron(spike_dtype=dtype)(2 * INPUTS)
        assert spikes.dtype == dtype and torch.equal(spikes.float(), SRMNeuron()(2 * INPUTS)) and spikes.any()


@pytest.mark.parametrize("dtype", SMALL)
def test_pieces_of_a_sequence(dtype):
    inputs, layers = (random(2, 20, 6) < 0).to(dtype), []
    for kind in (SRMLinear, SRMRecurrent):
        torch.manual_seed(0)
        layers.append(kind(6, 9, SRMParameters(threshold=0.4), spike_dtype=dtype))
    with torch.no_grad():
        for layer in layers:
            state, pieces = None, []
            for piece in inputs.split(7, dim=1):
                spikes, state = layer(piece, state, return_state=True)
                pieces.append(spikes)
            assert torch.equal(torch.cat(pieces, 1), layer(inputs)) and pieces[0].dtype == dtype
        assert state.spikes.dtype == dtype and state.neurons.membrane.dtype == torch.float32
        with pytest.raises(TypeError, match=f"state.spikes must have the dtype of spikes, {dtype}, got torch.float64"):
            layer(inputs, state._replace(spikes=state.spikes.double()))


@pytest.mark.parametrize("dtype", SMALL)
def test_whole_networks(dtype):
    def make(dtype):
        torch.manual_seed(4)
        options = {"steps": 6, "readout": "spikes", "spike_dtype": dtype}
        return spiking_network("4C3-P3-20-10R", (2, 9, 9), 3, **options), SpikingResNet18_2D(
            3, 2, width=4, parameters=SRMParameters(threshold=0.05), spike_dtype=dtype
        )

    for model, expected, side in zip(make(dtype), make(None), (9, 16), strict=True):
        inputs = (random(2, 6, 2, side, side) < 0).float()
        if side == 9:
            assert calibrate_gain(model, inputs) == calibrate_gain(expected, inputs)
        with torch.no_grad():
            outputs = model(inputs)
            assert outputs.dtype == torch.float32 and outputs.any() and torch.equal(outputs, expected(inputs))
        if dtype in HALF:
            model(inputs).sum().backward()
            assert all(p.grad is not None for p in model.parameters())


def test_averages_in_parts(monkeypatch):
    monkeypatch.setattr("srm_triton.pooling._PART", 5 * 2 * 64)  # of 18 images
    for pool in (SpikeAvgPool2d(2), SpikeAvgPool2d(3, 2, 1)):
        assert torch.equal(pool(INPUTS.to(torch.uint8)), pool(INPUTS))
        assert pool(INPUTS[:0].to(torch.uint8)).shape == pool(INPUTS[:0]).shape


def test_averages_that_half_precision_would_round():
    spikes = (random(2, 3, 4, 9, 9) < 0).to(torch.bfloat16)
    expected = F.avg_pool2d(spikes.double().flatten(0, 1), 3).unflatten(0, (2, 3))
    for given in (spikes, spikes.to(torch.uint8), spikes.bool()):
        averages = SpikeAvgPool2d(3, dtype=torch.float32)(given)
        assert averages.dtype == torch.float32 and (averages - expected).abs().max() < 1e-7
    assert SpikeAvgPool2d(3)(spikes).dtype == torch.bfloat16 and SpikeAvgPool2d(3)(spikes.bool()).dtype == torch.float32
    leaf = spikes.requires_grad_()
    SpikeAvgPool2d(3, gradient="surrogate", dtype=torch.float32)(leaf).sum().backward()
    assert leaf.grad.dtype == torch.bfloat16 and torch.equal(leaf.grad, torch.full_like(leaf, 1 / 9))


def test_under_autocast_with_other_types():
    """The current is in bfloat16, spikes in the type asked for."""
    layer, inputs = SRMLinear(128, 9, SRMParameters(threshold=0.5)), INPUTS.flatten(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(inputs)
        for dtype in (torch.float16, torch.uint8):
            layer = SRMLinear(128, 9, SRMParameters(threshold=0.5), spike_dtype=dtype)
            layer.load_state_dict(layer.state_dict())
            spikes = layer(inputs.to(dtype))
            assert spikes.dtype == dtype
    assert expected.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by PyTorch's own tracing
def test_compiled_code_and_checkpoints():
    """The same under `torch.compile`, and where PyTorch computes a piece a second time."""

    def few() -> nn.Sequential:
        return network(torch.bfloat16)[:3]

    expected, again = trained(few(), INPUTS), few()
    compiled = torch.compile(few(), backend="aot_eager", fullgraph=True)
    forward = again.forward
    again.forward = lambda inputs: checkpoint(forward, inputs, use_reentrant=False)
    for found in (trained(compiled, INPUTS), trained(again, INPUTS)):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_exported_programs():
    model = network(torch.uint8, recurrent=False).eval()
    program = torch.export.export(model, (INPUTS.to(torch.uint8),))
    with torch.no_grad():
        assert torch.equal(program.module()(INPUTS.to(torch.uint8)), model(INPUTS))


def test_transforms():
    layer, inputs = SRMLinear(128, 9, SRMParameters(threshold=0.5), spike_dtype=torch.bfloat16), INPUTS.flatten(2)
    mapped = torch.func.vmap(lambda x: layer(x[None])[0])(inputs.to(torch.uint8))
    assert mapped.dtype == torch.bfloat16 and torch.equal(mapped, layer(inputs)) and mapped.any()
    grad = torch.func.grad(lambda x: layer(x).float().square().sum())(inputs)
    leaf = inputs.clone().requires_grad_()
    layer(leaf).float().square().sum().backward()
    assert grad.any() and torch.equal(grad, leaf.grad)


@needs_library
def test_memory_of_a_scan():
    """In bytes for each of the current's: the spikes, and a little scratch."""
    current = torch.zeros(8, 32, 4096)
    for dtype, extra in ((None, 1.0), (torch.bfloat16, 0.5), (torch.uint8, 0.25)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            srm_scan(current, spike_dtype=dtype)
        taken = sum(max(e.nbytes(), 0) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
        assert extra * current.nbytes <= taken < (extra + 0.01) * current.nbytes


class TestBadInput:
    @pytest.mark.parametrize("wrong", [torch.int32, torch.float32, torch.complex64, torch.bool, "half", 16, "uint8"])
    def test_other_types(self, wrong):
        message = "spike_dtype must be one of .torch.bfloat16, torch.float16, torch.uint8., got"
        for call in (
            lambda: srm_scan(INPUTS, spike_dtype=wrong),
            lambda: SRMNeuron(spike_dtype=wrong),
            lambda: SRMConv2d(1, 1, 3, spike_dtype=wrong),
            lambda: SRMAffine(nn.Linear(2, 2), spike_dtype=wrong),
            lambda: srm_linear(torch.ones(1, 2, 3), torch.ones(2, 3), spike_dtype=wrong),
            lambda: spiking_network("4", 3, 2, steps=4, spike_dtype=wrong),
        ):
            with pytest.raises(ValueError, match=message):
                call()

    def test_gradients_of_bytes(self):
        message = "spike_dtype=torch.uint8 passes no gradient: call within torch.no_grad"
        for layer, inputs in (
            (SRMLinear(4, 3, spike_dtype=torch.uint8).eval(), torch.ones(1, 5, 4)),
            (SRMRecurrent(4, 3, spike_dtype=torch.uint8), torch.ones(1, 5, 4)),
            (SRMAffine(nn.Linear(4, 3), spike_dtype=torch.uint8), torch.ones(1, 5, 4)),
            (SRMNeuron(spike_dtype=torch.uint8), torch.ones(1, 5, 4, requires_grad=True)),
        ):
            with pytest.raises(RuntimeError, match=message):
                layer(inputs)
            with torch.inference_mode():
                assert layer(inputs).dtype == torch.uint8
        assert SRMNeuron(spike_dtype=torch.uint8)(torch.ones(1, 5, 4)).dtype == torch.uint8

    def test_inputs_that_the_weight_does_not_hold(self):
        for layer, dtype in (
            (SRMLinear(4, 3), torch.float64),
            (SRMLinear(4, 3).bfloat16(), torch.float16),
            (SRMLinear(4, 3).bfloat16(), torch.float32),
            (SRMReadout(4, 3), torch.float64),
            (SRMLinear(4, 3), torch.complex64),
        ):
            with pytest.raises(TypeError, match="inputs must have"):
                layer(torch.ones(1, 5, 4, dtype=dtype))

    def test_dtypes_of_averages(self):
        for wrong in (torch.uint8, "float32"):
            with pytest.raises(ValueError, match=r"dtype must be one of .*torch\.float32.*, got"):
                SpikeAvgPool2d(2, dtype=wrong)
