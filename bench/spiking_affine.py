"""Layers: an affine map with its neurons, and the direct encoding of an image, repeated over time."""

import pytest
import torch
import torch.nn.functional as F

from bench.contenders import PUBLISHED_LAYER, on_backends, peers_behind
from bench.harness import DEVICE, THREADS, Contender
from srm_triton import srm_conv2d, srm_linear

LINEAR = {"batch": 32, "steps": 16, "inputs": 1024, "neurons": 1024}
CONVOLUTION = {"batch": 8, "steps": 8, "inputs": 16, "neurons": 32, "height": 28, "width": 28}
IMAGES = CONVOLUTION | {"inputs": 3}


def spikes(*shape: int) -> torch.Tensor:
    return (torch.rand(shape, device=DEVICE) < 0.2).float().requires_grad_()


def weights(*shape: int) -> torch.Tensor:
    return (torch.randn(shape, device=DEVICE) / torch.tensor(shape[1:]).prod() ** 0.5).requires_grad_()


def convolve(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(inputs.flatten(0, 1), weight, padding=1).unflatten(0, inputs.shape[:2])


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
    contenders = [*on_backends(lambda inputs, weight: srm_conv2d(inputs, weight, padding=1)), *peers_behind(convolve)]
    tensors = [spikes(batch, steps, inputs, *size), weights(neurons, inputs, 3, 3)]
    measure("convolution", shape, contenders, tensors, threads=threads)


@pytest.mark.parametrize("threads", THREADS)
def test_direct_encoding(measure, shrink, threads):
    shape = shrink(IMAGES)
    batch, steps, inputs, neurons, *size = shape.values()
    expanded = torch.rand(batch, 1, inputs, *size, device=DEVICE).expand(-1, steps, -1, -1, -1)
    contenders = [
        Contender(name, lambda images=images: lambda weight: srm_conv2d(images, weight, padding=1))
        for name, images in (("copied image", expanded.contiguous()), ("expanded image", expanded))
    ]
    measure(
        "convolution of an image at every step", shape, contenders, [weights(neurons, inputs, 3, 3)], threads=threads
    )
