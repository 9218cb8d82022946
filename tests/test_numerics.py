"""Errors against float64 beside the errors that PyTorch's own operations make in the same sums.

`python tests/test_numerics.py` writes the table into docs/reliability.md; an error is a relative distance in L2 norm.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import conftest  # noqa: F401, chooses the interpreter
import pytest
import torch
import torch.nn.functional as F
from sanitizer import sanitized
from test_srm_scan import BACKENDS
from torch import Tensor

from srm_triton import batch_norm, srm_linear, srm_scan, use_backend

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Results = dict[str, Tensor]


def literal_gradients(grad: Tensor, current: Tensor, spikes: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the equations with PyTorch's operations, all in the dtype of `current`, [batch, time, neurons]."""
    tau_m, tau_s, tau_g = 5.0, 3.0, 2.5
    a_m, a_s, a_g, amplitude = 1 - 1 / tau_m, 1 - 1 / tau_s, 1 - 1 / tau_g, tau_m / (tau_m - tau_s)
    m = s = g = previous = torch.zeros_like(current[:, 0])
    changes, traces = [], []
    for x, silent in zip(current.unbind(1), (1 - spikes).unbind(1), strict=True):
        m, s, g = (m + x) * a_m, (s + x) * a_s, (g + x) * a_g
        u = amplitude * (m - s)
        changes.append(u - previous)
        traces.append(g)
        m, s, g, previous = m * silent, s * silent, g * silent, u * silent
    w = (1 / torch.stack(changes, 1)).clamp(0, 4) * grad
    v = (1 / torch.stack(traces, 1)).clamp(0, min(123456789, torch.finfo(grad.dtype).max)) * grad
    steps = torch.arange(current.shape[1], device=DEVICE)[:, None]
    following = torch.where(spikes != 0, steps, len(steps)).flip(1).cummin(1).values.flip(1)
    follows, at = following < len(steps), following.clamp(max=len(steps) - 1)
    k = (following - steps + 1).to(current.dtype)
    weight_path = w.gather(1, at) * amplitude * (a_m**k - a_s**k)
    time_path = v.gather(1, at) * a_g**k
    return weight_path.where(follows, 0), time_path.where(follows, 0)


def spiking_linear(dtype: torch.dtype, run: Callable, *, repeat: bool) -> Results:
    """Inputs and weights whose products are exact in every dtype, so that all have the same spikes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 2, (8, 1 if repeat else 40, 24), generator=generator)
    weight = torch.randint(-3, 4, (32, 24), generator=generator) / 8 + 0.125
    grad = torch.randn(8, 40, 32, generator=generator).bfloat16()  # which float16 holds too
    inputs, weight, grad = (tensor.to(DEVICE, dtype) for tensor in (inputs, weight, grad))
    return run(inputs.expand(8, 40, 24), weight, grad)


def ours_linear(inputs: Tensor, weight: Tensor, grad: Tensor) -> Results:
    leaves = inputs.detach().requires_grad_(), weight.requires_grad_()
    srm_linear(*leaves).backward(grad)
    return {"gradient of the inputs": leaves[0].grad, "gradient of the weight": leaves[1].grad}


def pytorch_linear(inputs: Tensor, weight: Tensor, grad: Tensor) -> Results:
    current = inputs @ weight.t()
    spikes = srm_scan(current.float()).to(current.dtype)
    weight_path, time_path = literal_gradients(grad, current, spikes)
    return {
        "gradient of the inputs": 0.85 * time_path @ weight,
        "gradient of the weight": weight_path.flatten(0, 1).t() @ inputs.flatten(0, 1),
    }


def scan(dtype: torch.dtype, run: Callable) -> Results:
    generator = torch.Generator().manual_seed(0)
    current = (torch.randn(16, 50, 64, generator=generator) * 0.4 + 0.4).bfloat16().to(torch.float16)
    grad = torch.randn(16, 50, 64, generator=generator).bfloat16()
    return run(current.to(DEVICE, dtype), grad.to(DEVICE, dtype))


def ours_scan(current: Tensor, grad: Tensor) -> Results:
    current.requires_grad_()
    srm_scan(current).backward(grad)
    return {"gradient of the current": current.grad}


def pytorch_scan(current: Tensor, grad: Tensor) -> Results:
    spikes = srm_scan(current.float()).to(current.dtype)
    return {"gradient of the current": literal_gradients(grad, current, spikes)[0]}


def normalisation(dtype: torch.dtype, run: Callable, *, samples: int, mean: float) -> Results:
    generator = torch.Generator().manual_seed(0)
    inputs, grad = torch.randn(2, samples, 48, generator=generator)
    weight, bias = torch.rand(2, 48, generator=generator)
    leaves = [tensor.bfloat16().to(DEVICE, dtype).requires_grad_() for tensor in (inputs + mean, weight, bias)]
    outputs = run(*leaves)
    outputs.backward(grad.bfloat16().to(DEVICE, dtype))
    names = ("gradient of the inputs", "gradient of the weight", "gradient of the bias")
    return {"outputs": outputs.detach()} | dict(zip(names, (leaf.grad for leaf in leaves), strict=True))


def ours_normalisation(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return batch_norm(inputs, weight, bias, correction=0)


def pytorch_normalisation(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(inputs, None, None, weight, bias, training=True)


OPERATIONS = {
    "`srm_scan`, 50 steps": (scan, {}, ours_scan, pytorch_scan),
    "`srm_linear`, 40 steps": (spiking_linear, {"repeat": False}, ours_linear, pytorch_linear),
    "`srm_linear`, inputs that repeat": (spiking_linear, {"repeat": True}, ours_linear, pytorch_linear),
    "`batch_norm`, 64 samples": (
        normalisation, {"samples": 64, "mean": 0.0}, ours_normalisation, pytorch_normalisation,
    ),
    "`batch_norm`, 5000 samples of mean 100": (
        normalisation, {"samples": 5000, "mean": 100.0}, ours_normalisation, pytorch_normalisation,
    ),
}  # fmt: skip


@cache
def errors(operation: str, dtype: str) -> dict[str, dict[str, float]]:
    """For every result, the error of PyTorch and of each backend."""
    case, options, ours, pytorch = OPERATIONS[operation]
    exact = case(torch.float64, pytorch, **options)
    results = {"PyTorch": case(DTYPES[dtype], pytorch, **options)}
    for backend in BACKENDS:
        if backend != "native" or "batch_norm" not in operation:
            with use_backend(backend), sanitized():  # which rounds to bfloat16 as GPUs do
                results[backend] = case(DTYPES[dtype], ours, **options)
    return {
        name: {which: ((found[name].double() - sums).norm() / sums.norm()).item() for which, found in results.items()}
        for name, sums in exact.items()
    }


def table() -> str:
    contenders = ("PyTorch", "reference", "native", "triton")
    lines = ["| operation | result | dtype | " + " | ".join(contenders) + " |", "|---" * 7 + "|"]
    for operation in OPERATIONS:
        for dtype in DTYPES:
            for result, found in errors(operation, dtype).items():
                values = (f"{found[which]:.1e}" if which in found else "" for which in contenders)
                lines.append(f"| {operation} | {result} | {dtype} | " + " | ".join(values) + " |")
    return "\n".join(lines)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_at_most_twice_those_of_pytorch(operation, dtype):
    for result, found in errors(operation, dtype).items():
        for backend, error in found.items():
            assert error <= 2 * found["PyTorch"], (result, backend, found)


@pytest.mark.skipif(DEVICE != "cpu", reason="was made on a CPU")
def test_the_documented_table_is_this_one():
    documented, measured = (
        [[cell.strip() for cell in line.split("|")] for line in text.partition("| operation |")[2].splitlines()]
        for text in (PAGE.read_text(), table())
    )
    for before, now in zip(documented, measured, strict=True):
        assert before[:4] == now[:4]
        for old, new in zip(before[4:], now[4:], strict=True):
            # another processor sums in another order, and a machine without a compiler has no C version
            assert old == new or not new or 0.5 < float(old) / float(new) < 2, now


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(re.sub(r"\| operation \|.*\|\n", lambda _: table() + "\n", text, flags=re.DOTALL))
