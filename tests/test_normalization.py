"""`BatchNorm1d` in PyTorch's place: frozen, without counts, differentiated twice, converted."""

import copy

import pytest
import torch
from torch import nn

from srm_triton import BatchNorm1d, batch_norm, use_backend

CLASSES = (nn.BatchNorm1d, BatchNorm1d)
BACKENDS = ("reference", "native", "triton")


def penalty(layer, inputs):
    """The gradients of a gradient penalty in the inputs and the parameters."""
    inputs = inputs.clone().requires_grad_()
    outputs = layer(inputs)
    first = torch.autograd.grad(outputs.pow(3).sum(), [inputs, *layer.parameters()], create_graph=True)
    total = sum(gradient.square().sum() for gradient in first)
    return torch.autograd.grad(total, [inputs, *layer.parameters()], allow_unused=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3)])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_gradient_penalties_are_those_of_torch(options, shape, backend):
    layers = [each(5, dtype=torch.float64, **options) for each in CLASSES]
    for parameter, other in zip(*(layer.parameters() for layer in layers), strict=True):
        other.data = nn.init.uniform_(parameter, 0.5, 2).data.clone()
    inputs = torch.randn(shape, dtype=torch.float64) + 3
    expected = penalty(layers[0], inputs)
    with use_backend(backend):
        results = penalty(layers[1], inputs)
    assert all(result.any() for result in results)
    torch.testing.assert_close(results, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("dim", [0, 1])
def test_second_and_third_derivatives_numerically(dim, correction):
    def normalise(*tensors):
        return batch_norm(*tensors, dim=dim, correction=correction)

    weight, bias = torch.rand(2, (4, 3)[1 - dim], dtype=torch.float64) + 0.5
    tensors = [tensor.requires_grad_() for tensor in (torch.randn(4, 3, dtype=torch.float64), weight, bias)]
    assert torch.autograd.gradgradcheck(normalise, tensors)

    def gradient(*tensors):
        return torch.autograd.grad(normalise(*tensors).pow(3).sum(), tensors[0], create_graph=True)[0]

    assert torch.autograd.gradgradcheck(gradient, tensors)


def test_second_derivatives_where_zeros_are_kept():
    inputs = torch.randn(6, 4, dtype=torch.float64) * (torch.rand(6, 4) > 0.3)

    def definition(x):
        return torch.where(x == 0, 0, (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt())

    gradients = []
    for function in (definition, lambda x: batch_norm(x, keep_zeros=True)):
        x = inputs.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x).add(1).pow(3).sum(), x, create_graph=True)
        gradients.append(torch.autograd.grad(first.pow(3).sum(), x)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-11, atol=1e-11)


def test_second_derivatives_beside_a_large_mean():
    inputs = 1e6 + torch.randint(0, 7, (200, 2)) / 16
    layer, exact = BatchNorm1d(2), nn.BatchNorm1d(2, dtype=torch.float64)
    for result, expected in zip(penalty(layer, inputs), penalty(exact, inputs.double()), strict=True):
        torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_second_derivatives_in_transforms():
    inputs = torch.randn(3, 6, 4, dtype=torch.float64)

    def slope(x):
        return torch.func.grad(lambda x: batch_norm(x).pow(3).sum())(x).square().sum()

    def penalty(x):
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(batch_norm(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = torch.stack([penalty(x) for x in inputs])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(slope))(inputs), expected)
    torch.testing.assert_close(torch.func.grad(slope)(inputs[0]), expected[0])


def test_penalties_of_half_precision_have_its_dtype():
    layer = BatchNorm1d(4, dtype=torch.bfloat16)
    results = penalty(layer, torch.randn(8, 4, dtype=torch.bfloat16))
    assert all(result.dtype == torch.bfloat16 and result.isfinite().all() for result in results)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer, "track_running_stats", False),
        lambda layer: setattr(layer, "num_batches_tracked", None),
        lambda layer: (setattr(layer, "momentum", None), setattr(layer, "num_batches_tracked", None)),
        lambda layer: setattr(layer, "momentum", None),
        lambda layer: setattr(layer, "momentum", 0.0),
        lambda layer: (setattr(layer, "running_mean", None), setattr(layer, "running_var", None)),
        lambda layer: layer.eval(),
        lambda layer: layer.requires_grad_(False),
    ],
)
def test_changes_after_construction_act_as_on_torch(change):
    layers = [each(3) for each in CLASSES]
    for layer in layers:
        layer(torch.linspace(0, 5, 12).reshape(4, 3))
        change(layer)
    for training in (True, True, False):
        inputs = 2 * torch.randn(6, 3) + 1
        if layers[0].training:
            [layer.train(training) for layer in layers]
        expected, result = (layer(inputs) for layer in layers)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    expected, result = (layer.state_dict() for layer in layers)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_sync_batch_norm_takes_over_everything():
    model = nn.Sequential(nn.Linear(4, 3), BatchNorm1d(3, eps=1e-3, momentum=0.3))
    model(torch.randn(5, 4))
    nn.init.uniform_(model[1].weight)
    expected = copy.deepcopy(model)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted[1], nn.SyncBatchNorm) and converted[1].weight is model[1].weight
    inputs = torch.randn(5, 4)
    for training in (True, False):
        torch.testing.assert_close(converted.train(training)(inputs), expected.train(training)(inputs))
    torch.testing.assert_close(converted.state_dict(), expected.state_dict())
