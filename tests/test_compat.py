"""The published names give the published results; the formulas are written out here step by step."""

import pytest
import torch
from torch import Tensor

from srm_triton.compat import BN1dBackward, BN1dForward, srmConv2d, srmLinear, srmLinearFunc, srmNeuronFunc

TAUM, TAUS, TAUG, THRESHOLD = 5.0, 3.0, 2.5, 1.0


def tables(steps: int) -> tuple[Tensor, Tensor]:
    c = TAUM / (TAUM - TAUS)
    weights = [c * ((1 - 1 / TAUM) ** (k + 1) - (1 - 1 / TAUS) ** (k + 1)) for k in range(steps)]
    times = [-((1 - 1 / TAUG) ** (k + 1)) for k in range(steps)]
    return torch.tensor(weights), torch.tensor(times)


def neuron_by_steps(current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    spikes, change_t, change = (torch.zeros_like(current) for _ in range(3))
    for b in range(current.shape[0]):
        for n in range(current.shape[2]):
            m = s = g = before = torch.zeros(())
            for t in range(current.shape[1]):
                x = current[b, t, n]
                m, s, g = (m + x) * (1 - 1 / TAUM), (s + x) * (1 - 1 / TAUS), (g + x) * (1 - 1 / TAUG)
                u = TAUM / (TAUM - TAUS) * (m - s)
                change[b, t, n], change_t[b, t, n] = u - before, g
                before = u
                if u > THRESHOLD:
                    spikes[b, t, n] = 1
                    m = s = g = before = torch.zeros(())
    return spikes, change_t, change


def neuron_gradient_by_steps(grad, change_t, change, spikes, weights, times) -> tuple[Tensor, Tensor]:
    grad_w, grad_t = torch.zeros_like(grad), torch.zeros_like(grad)
    for b in range(grad.shape[0]):
        for n in range(grad.shape[2]):
            w = v = k = None
            for t in reversed(range(grad.shape[1])):
                if spikes[b, t, n]:
                    w = max(min(-1 / change[b, t, n].item(), 0), -4) * grad[b, t, n]
                    v = max(min(-1 / change_t[b, t, n].item(), 0), -123456789) * grad[b, t, n]
                    k = 0
                elif k is not None:
                    k += 1
                if k is not None:
                    grad_w[b, t, n], grad_t[b, t, n] = w * weights[k], v * times[k]
    return grad_w, grad_t


def normalise_by_columns(x: Tensor, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    count = x.shape[0]
    mean = x.sum(0) / count
    variance = ((x - mean) ** 2).sum(0) / (count - 1)
    normalised = (x - mean) / (variance + eps) ** 0.5
    return normalised * gain + offset, normalised, variance


def normalisation_gradient(grad: Tensor, normalised: Tensor, variance: Tensor, eps: float, gain: Tensor):
    count = grad.shape[0]
    scaled = grad * gain
    inner = count * scaled - scaled.sum(0) - (scaled * normalised).sum(0) * normalised
    return inner / (count * (variance + eps) ** 0.5), (grad * normalised).sum(0), grad.sum(0)


def test_normalisation_and_its_gradient():
    torch.manual_seed(0)
    x, gain, offset = torch.randn(20, 7) + 1, torch.rand(7) + 0.5, torch.randn(7)
    for eps in (1e-5, torch.tensor([1e-2])):
        expected = normalise_by_columns(x, gain, offset, eps)
        results = BN1dForward(x, gain, offset, eps)
        for result, reference in zip(results, expected, strict=True):
            torch.testing.assert_close(result, reference, rtol=1e-5, atol=1e-6)
        grad = torch.randn(20, 7)
        expected_gradients = normalisation_gradient(grad, *expected[1:], eps, gain)
        for result, reference in zip(BN1dBackward(grad, *results[1:], eps, gain), expected_gradients, strict=True):
            torch.testing.assert_close(result, reference, rtol=1e-5, atol=1e-6)
    assert torch.equal(BN1dForward(x, gain, offset)[0], BN1dForward(x, gain, offset, 1e-5)[0])


def test_neuron_and_its_gradient():
    torch.manual_seed(0)
    current = torch.randn(3, 12, 5) + 0.8
    results = srmNeuronFunc.forward(current, TAUM, TAUS, 1 - 1 / TAUG, THRESHOLD)
    expected = neuron_by_steps(current)
    assert torch.equal(results[0], expected[0])
    for result, reference in zip(results[1:], expected[1:], strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-6, atol=1e-6)
    spikes, delta_ut, delta_u = results
    weights, times = tables(12)
    grad = torch.randn(3, 12, 5)
    expected = neuron_gradient_by_steps(grad, delta_ut, delta_u, spikes, weights, times)
    for result, reference in zip(
        srmNeuronFunc.backward(grad, delta_ut, delta_u, spikes, weights, times), expected, strict=True
    ):
        torch.testing.assert_close(result, reference, rtol=1e-6, atol=1e-7)
    silent = srmNeuronFunc.backward(grad, delta_ut, delta_u, torch.zeros_like(spikes), weights, times)
    assert all(torch.equal(result, torch.zeros_like(grad)) for result in silent)


@pytest.mark.parametrize("normalised", [True, False])
def test_linear_function_and_module(normalised):
    torch.manual_seed(0)
    steps, eps = 9, torch.tensor([1e-5])
    inputs = (torch.rand(4, steps, 6) < 0.5).float()
    layer = srmLinear(6, 5, weight_norm=normalised)
    with torch.no_grad():
        layer.weight.mul_(1.5)
        if normalised:
            layer.bn_weight.uniform_(0.5, 1.0)
            layer.bn_bias.normal_(0.3, 0.1)
    grad = torch.randn(4, steps, 5)

    weight = layer.weight.detach()
    gain, offset = (layer.bn_weight.detach(), layer.bn_bias.detach()) if normalised else (None, None)
    effective = weight.t()
    if normalised:
        effective, x_hat, variance = normalise_by_columns(weight.t(), gain, offset, eps)
    spikes, delta_ut, delta_u = neuron_by_steps(inputs @ effective)
    assert 0.05 < spikes.mean() < 0.7
    grad_w, grad_t = neuron_gradient_by_steps(grad, delta_ut, delta_u, spikes, *tables(steps))
    expected_weight = torch.einsum("bto,bti->oi", grad_w, inputs)
    expected = {"inputs": 0.85 * grad_t @ effective.t()}
    if normalised:
        grad_x, expected["bn_weight"], expected["bn_bias"] = normalisation_gradient(
            expected_weight.t(), x_hat, variance, eps, gain
        )
        expected_weight = grad_x.t()
    expected["weight"] = expected_weight

    def by_function(x: Tensor) -> Tensor:
        constants = (THRESHOLD, TAUM, TAUS, 1 - 1 / TAUG, *tables(steps))
        return srmLinearFunc.apply(x, layer.weight, layer.bn_weight, layer.bn_bias, eps, *constants)

    for run in (by_function, layer):
        leaf = inputs.clone().requires_grad_()
        layer.zero_grad()
        result = run(leaf)
        assert torch.equal(result, spikes)
        result.backward(grad)
        gradients = {"inputs": leaf.grad} | {name: p.grad for name, p in layer.named_parameters()}
        assert gradients.keys() == expected.keys()
        for name, reference in expected.items():
            torch.testing.assert_close(gradients[name], reference, rtol=2e-5, atol=2e-5, msg=name)


def test_convolution_normalises_like_the_linear_layer():
    torch.manual_seed(0)
    convolution = srmConv2d(3, 4, 1)
    linear = srmLinear(3, 4)
    linear.load_state_dict({name: value.view(4, 3) if name == "weight" else value
                            for name, value in convolution.state_dict().items()}, strict=True)  # fmt: skip
    images = torch.rand(2, 6, 3, 5, 5)
    expected = linear(images.permute(0, 3, 4, 1, 2).reshape(50, 6, 3)).view(2, 5, 5, 6, 4).permute(0, 3, 4, 1, 2)
    assert torch.equal(convolution(images), expected)


def test_checkpoints_of_published_code_load():
    bn = {"bn_weight": torch.rand(4), "bn_bias": torch.rand(4), "eps": torch.tensor([1e-3])}
    srmLinear(3, 4).load_state_dict({"weight": torch.rand(4, 3), **bn}, strict=True)
    srmConv2d(3, 4, 2).load_state_dict({"weight": torch.rand(4, 3, 2, 2), **bn}, strict=True)
    srmLinear(3, 4, weight_norm=False).load_state_dict({"weight": torch.rand(4, 3), "eps": bn["eps"]}, strict=True)
    srmConv2d(3, 4, 2, weight_norm=False).load_state_dict({"weight": torch.rand(4, 3, 2, 2)}, strict=True)
    layer = srmLinear(3, 4)
    layer.load_state_dict({"weight": torch.rand(4, 3), **bn})
    with torch.no_grad():
        before = layer._effective_weight()
        layer.eps.fill_(1.0)
        assert not torch.equal(before, layer._effective_weight())


def test_half_precision_and_second_derivatives():
    current = (torch.randn(2, 6, 3) + 1).half()
    spikes, delta_ut, delta_u = srmNeuronFunc.forward(current, TAUM, TAUS, 1 - 1 / TAUG, THRESHOLD)
    results = srmNeuronFunc.backward(torch.ones_like(current), delta_ut, delta_u, spikes, *tables(6))
    expected = neuron_gradient_by_steps(torch.ones(2, 6, 3), delta_ut.float(), delta_u.float(), spikes, *tables(6))
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference.half(), rtol=1e-3, atol=1e-3)
    weight = torch.rand(3, 4, requires_grad=True)
    arguments = (weight, None, None, torch.tensor([1e-5]), THRESHOLD, TAUM, TAUS, 1 - 1 / TAUG, *tables(5))
    inputs = torch.rand(2, 5, 4, requires_grad=True)
    (first,) = torch.autograd.grad(srmLinearFunc.apply(inputs, *arguments).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="spiking layers cannot be differentiated twice"):
        first.square().sum().backward()


def test_bad_input():
    with pytest.raises(ValueError, match="bn_weight and bn_bias must both be tensors or both None"):
        eps = torch.tensor([1e-5])
        constants = (THRESHOLD, TAUM, TAUS, 1 - 1 / TAUG, *tables(5))
        srmLinearFunc.apply(torch.rand(2, 5, 4), torch.rand(3, 4), torch.ones(3), None, eps, *constants)
    with pytest.raises(ValueError, match=r"weight must have the shape \[features\], got \[5, 1\]"):
        BN1dForward(torch.ones(5, 3), torch.ones(5, 1), torch.ones(3))
    with pytest.raises(ValueError, match="epsw and epst must have at least 5 entries, got 4 and 4"):
        ones = torch.ones(1, 5, 2)
        srmNeuronFunc.backward(ones, ones, ones, ones, *tables(4))
    with pytest.raises(ValueError, match=r"e_taug must lie between 0 and 1 \(it is a decay, 1 - 1/tau\), got 2.5"):
        srmNeuronFunc.forward(torch.ones(1, 2, 1), 5.0, 3.0, 2.5, 1.0)
    with pytest.raises(ValueError, match=r"taus must be finite and ≥ 1, got 0.5"):
        srmNeuronFunc.forward(torch.ones(1, 2, 1), 5.0, 0.5, 0.5, 1.0)
