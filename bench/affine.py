"""Layers: an affine map with its neurons, and the direct encoding of an image, repeated over time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contenders import PUBLISHED_LAYER, on_backends, peers_behind
from bench.harness import DEVICE, WORK, Contender, over
from srm_triton import srm_conv2d, srm_linear

CASES = {
    "small linear": {"batch": 2, "steps": 4, "inputs": 8, "neurons": 8},
    "linear": {"batch": 32 * WORK, "steps": 16, "inputs": 1024, "neurons": 1024},
    "convolution": {"batch": 8 * WORK, "steps": 8, "inputs": 16, "neurons": 32, "height": 28, "width": 28},
}
IMAGES = {"linear": CASES["linear"], "convolution": CASES["convolution"] | {"inputs": 3}}


def convolve(inputs: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(inputs.flatten(0, 1), weight, padding=1).unflatten(0, inputs.shape[:2])


def convolution_with_neurons(inputs: Tensor, weight: Tensor) -> Tensor:
    return srm_conv2d(inputs, weight, padding=1)


LAYERS = {
    "small linear": (srm_linear, F.linear),
    "linear": (srm_linear, F.linear),
    "convolution": (convolution_with_neurons, convolve),
}


def random_weight(inputs: int, neurons: int, size: list[int]) -> Tensor:
    weight = torch.randn(neurons, inputs, *(3 for _ in size), device=DEVICE)
    return (weight / weight[0].numel() ** 0.5).requires_grad_()


@over("name", CASES)
def test_layer(measure, shrink, threads, name):
    shape = shrink(CASES[name])
    batch, steps, inputs, neurons, *size = shape.values()
    spikes = (torch.rand(batch, steps, inputs, *size, device=DEVICE) < 0.2).float().requires_grad_()
    layer, affine = LAYERS[name]
    contenders = [*on_backends(layer), *[PUBLISHED_LAYER] * (name == "linear"), *peers_behind(affine)]
    measure(name, shape, contenders, [spikes, random_weight(inputs, neurons, size)], threads=threads)


@over("name", IMAGES)
def test_direct_encoding(measure, shrink, threads, name):
    shape = shrink(IMAGES[name])
    batch, steps, inputs, neurons, *size = shape.values()
    expanded = torch.rand(batch, 1, inputs, *size, device=DEVICE).expand(-1, steps, *[-1] * (1 + len(size)))
    copied = expanded.contiguous()
    contenders = [
        Contender("expanded image", lambda: lambda weight: LAYERS[name][0](expanded, weight)),
        Contender("copied image", lambda: lambda weight: LAYERS[name][0](copied, weight)),
    ]
    measure(
        f"{name}, an image at every step", shape, contenders, [random_weight(inputs, neurons, size)], threads=threads
    )
