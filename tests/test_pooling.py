"""Average pooling of spikes: the values are those of PyTorch, the gradients of a window its whole one."""

import pytest
import torch
import torch.nn.functional as F

from srm_triton import SpikeAvgPool2d


@pytest.mark.parametrize("gradient", ["event", "original"])
def test_pooling_hands_each_window_the_whole_gradient(gradient):
    spikes = (torch.rand(2, 3, 4, 6, 6) < 0.3).float().requires_grad_()
    pooled = SpikeAvgPool2d(2, gradient=gradient)(spikes)
    assert torch.equal(pooled, F.avg_pool2d(spikes.flatten(0, 1), 2).unflatten(0, (2, 3)))
    grad = torch.randn_like(pooled)
    pooled.backward(grad)
    expected = grad / (4 * pooled)
    expected[pooled == 0] = 0
    torch.testing.assert_close(spikes.grad, expected.repeat_interleave(2, -1).repeat_interleave(2, -2))
    kept = F.avg_pool2d((spikes.grad * spikes).flatten(0, 1), 2).unflatten(0, (2, 3)) * 4
    torch.testing.assert_close(kept, torch.where(pooled == 0, 0, grad))


def test_pooling_under_the_surrogate_gradient_is_plain():
    spikes = (torch.rand(2, 3, 4, 6, 6) < 0.3).float().requires_grad_()
    pooled = SpikeAvgPool2d(2, gradient="surrogate")(spikes)
    grad = torch.randn_like(pooled)
    (expected,) = torch.autograd.grad(F.avg_pool2d(spikes.flatten(0, 1), 2), spikes, grad.flatten(0, 1))
    assert torch.equal(torch.autograd.grad(pooled, spikes, grad)[0], expected)


def test_pooling_refuses_second_derivatives():
    spikes = torch.ones(1, 1, 1, 2, 2, requires_grad=True)
    (first,) = torch.autograd.grad(SpikeAvgPool2d(2)(spikes).square().sum(), spikes, create_graph=True)
    with pytest.raises(RuntimeError, match="SpikeAvgPool2d cannot be differentiated twice"):
        first.sum().backward()


def test_overlapping_pooling_windows_add_up():
    spikes = torch.ones(1, 1, 1, 1, 3, requires_grad=True)
    SpikeAvgPool2d((1, 2), stride=1)(spikes).sum().backward()
    assert spikes.grad.flatten().tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize("keep", ["current", "spikes"])
@pytest.mark.parametrize(
    "window", [((2, 3),), ((4, 1),), ((3, 3),), (2, 1), ((2, 2), (2, 3)), (2, 2, 1), ((4, 4), (4, 4), (0, 2))]
)
@pytest.mark.parametrize("sides", [(12, 12), (13, 14)])
def test_windows_equal_pytorchs(window, sides, keep):
    inputs = torch.rand(2, 3, 4, *sides, dtype=torch.float64, requires_grad=True)
    outputs = SpikeAvgPool2d(*window, gradient="surrogate", keep=keep)(inputs)
    expected = F.avg_pool2d(inputs.flatten(0, 1), *window).unflatten(0, (2, 3))
    torch.testing.assert_close(outputs, expected, rtol=1e-15, atol=0)
    grad = torch.randn_like(outputs)
    given = (torch.autograd.grad(result, inputs, grad)[0] for result in (outputs, expected))
    torch.testing.assert_close(*given, rtol=1e-15, atol=0)
