"""Products of weights with spikes, at different firing rates, for inference on the CPU: what exploits that most are 0.

An element is an output. Spikes as packed bits have no contender: a sum of weights in float32 under a mask of bits takes
an instruction for as many of them as a product does.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import DEVICE, Contender, Function, UnavailableError, over
from srm_triton.kernels import native

RATES = (0.01, 0.05, 0.1, 0.2)
SAMPLES = (8, 64, 512)  # batch times steps
SIZES = {"784 to 1000": (784, 1000), "3136 to 1024": (3136, 1024), "4096 to 4096": (4096, 4096)}
CONVOLUTIONS = {"32 to 64 channels, 5 × 5": (32, 64, 5, 14), "64 to 64 channels, 3 × 3": (64, 64, 3, 32)}


def sums_of_rows(weight: Tensor) -> Function:
    """What `SRMLinear` computes in evaluation up to one input in eight, here at any rate."""
    if DEVICE.type != "cpu" or native.problem() is not None:
        raise UnavailableError("serves the CPU, where the C library was built")
    rows = weight.new_zeros(weight.shape[1], native.row_of_panels(len(weight))).t()[: len(weight)]
    rows.copy_(weight)  # as `by_inputs` lays weights out, if they are large

    def product(spikes: Tensor) -> Tensor:
        results = spikes.new_empty(len(spikes), len(weight))
        native.gather_linear(spikes, rows, None, results)
        return results

    return product


def in_bfloat16(weight: Tensor) -> Function:
    """`F.linear` in bfloat16, which rounds the weights to 8 bits, and the outputs."""
    rounded = weight.bfloat16()
    return lambda spikes: F.linear(spikes.bfloat16(), rounded)


def in_integers(weight: Tensor) -> Function:
    """Weights as whole numbers of 21 bits for each output, in three products of int8, of which two are shifted."""
    if DEVICE.type != "cpu":
        raise UnavailableError("measured on the CPU")
    scale = weight.abs().amax(1) / (63 << 14)
    whole, parts = (weight / scale[:, None]).round().to(torch.int32), []
    for _ in range(3):
        low = (whole + 64 & 127) - 64
        parts.append(low.to(torch.int8))
        whole = whole - low >> 7
    packed = torch.cat(parts).t()

    def product(spikes: Tensor) -> Tensor:
        low, middle, high = torch._int_mm(spikes.to(torch.int8), packed).chunk(3, 1)
        return (low + (middle << 7) + (high << 14)) * scale

    return product


@over("name, samples, rate", itertools.product(SIZES, SAMPLES, RATES))
def test_linear(measure, shrink, threads, name, samples, rate):
    inputs, outputs = SIZES[name]
    shape = shrink({"batch times steps": samples, "inputs": inputs, "outputs": outputs})
    samples, inputs, outputs = shape.values()
    weight = torch.randn(outputs, inputs, device=DEVICE) / inputs**0.5
    spikes = (torch.rand(samples, inputs, device=DEVICE) < rate).float()
    contenders = [
        Contender("sums of rows", lambda: sums_of_rows(weight)),
        Contender("F.linear", lambda: lambda spikes: F.linear(spikes, weight)),
        Contender("three products of int8", lambda: in_integers(weight)),
        Contender("bfloat16", lambda: in_bfloat16(weight), comparable=False),
    ]
    measure(f"{name}, rate {rate:.1%}", shape, contenders, [spikes], backward=False, threads=threads)


@over("name, rate", itertools.product(CONVOLUTIONS, RATES))
def test_convolution(measure, shrink, threads, name, rate):
    channels, outputs, kernel, side = CONVOLUTIONS[name]
    shape = shrink({"batch times steps": 40, "channels": channels, "height": side, "width": side})
    spikes = (torch.rand(tuple(shape.values()), device=DEVICE) < rate).float()
    weight = torch.randn(outputs, shape["channels"], kernel, kernel, device=DEVICE) / (channels * kernel**2) ** 0.5
    rounded = weight.bfloat16()

    def unfolded() -> Function:
        """`F.unfold`, and rows for the windows."""
        product = sums_of_rows(weight.flatten(1))
        size = shape["height"], shape["width"]

        def convolve(spikes: Tensor) -> Tensor:
            windows = F.unfold(spikes, kernel, padding=kernel // 2).transpose(1, 2).contiguous()
            return product(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]).transpose(1, 2).unflatten(2, size)

        return convolve

    contenders = [
        Contender("sums of rows of windows", unfolded),
        Contender("F.conv2d", lambda: lambda spikes: F.conv2d(spikes, weight, padding="same")),
        Contender(
            "bfloat16",
            lambda: lambda spikes: F.conv2d(spikes.bfloat16(), rounded, padding="same"),
            comparable=False,
        ),
    ]
    measure(f"{name}, rate {rate:.1%}", shape, contenders, [spikes], backward=False, threads=threads)
