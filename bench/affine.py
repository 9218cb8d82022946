"""Layers: an affine map with its neurons, and the direct encoding of an image, repeated over time."""

import pytest
import torch
import torch.nn.functional as F

from bench.contenders import PUBLISHED_LAYER, Function, on_backends, peers_behind
from bench.harness import DEVICE, THREADS, Contender
from srm_triton import srm_conv2d, srm_linear

LINEAR = {"batch": 32, "steps": 16, "inputs": 1024, "neurons": 1024}
CONVOLUTION = {"batch": 8, "steps": 8, "inputs": 16, "neurons": 32, "height": 28, "width": 28}


def spikes(*shape: int) -> torch.Tensor:
    return (torch.rand(shape, device=DEVICE) < 0.2).float().requires_grad_()


def weights(*shape: int) -> torch.Tensor:
    return (torch.randn(shape, device=DEVICE) / torch.tensor(shape[1:]).prod() ** 0.5).requires_grad_()


def convolve(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(inputs.flatten(0, 1), weight, padding=1).unflatten(0, inputs.shape[:2])


def convolution_with_neurons(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return srm_conv2d(inputs, weight, padding=1)


@pytest.mark.parametrize("threads", THREADS)
def test_linear(measure, shrink, threads):
    shape = shrink(LINEAR)
    batch, steps, inputs, neurons = shape.values()
    contenders = [*on_backends(srm_linear), PUBLISHED_LAYER, *peers_behind(F.linear)]
    measure("linear", shape, contenders, [spikes(batch, steps, inputs), weights(neurons, inputs)], threads=threads)


@pytest.mark.parametrize("threads", THREADS)
def test_convolution(measure, shrink, threads):
    shape = shrink(CONVOLUTION)
    batch, steps, inputs, neurons, *size = shape.values()
    contenders = [*on_backends(convolution_with_neurons), *peers_behind(convolve)]
    tensors = [spikes(batch, steps, inputs, *size), weights(neurons, inputs, 3, 3)]
    measure("convolution", shape, contenders, tensors, threads=threads)


@pytest.mark.parametrize("threads", THREADS)
def test_direct_encoding_linear(measure, shrink, threads):
    shape = shrink(LINEAR)
    batch, steps, inputs, neurons = shape.values()
    image, weight = torch.rand(batch, 1, inputs, device=DEVICE), weights(neurons, inputs)
    contenders = on_an_image(image.expand(-1, steps, -1), srm_linear)
    measure("linear, an image at every step", shape, contenders, [weight], threads=threads)


@pytest.mark.parametrize("threads", THREADS)
def test_direct_encoding_convolution(measure, shrink, threads):
    shape = shrink(CONVOLUTION | {"inputs": 3})
    batch, steps, inputs, neurons, *size = shape.values()
    image, weight = torch.rand(batch, 1, inputs, *size, device=DEVICE), weights(neurons, inputs, 3, 3)
    contenders = on_an_image(image.expand(-1, steps, -1, -1, -1), convolution_with_neurons)
    measure("convolution, an image at every step", shape, contenders, [weight], threads=threads)


def on_an_image(expanded: torch.Tensor, layer: Function) -> list[Contender]:
    return [
        Contender(name, lambda images=images: lambda weight: layer(images, weight))
        for name, images in (("copied image", expanded.contiguous()), ("expanded image", expanded))
    ]
