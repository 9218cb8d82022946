"""Comparison of every kernel with its eager reference on the device at hand, and with itself, run again.

On a GPU the Triton kernels run as compiled; on a CPU in Triton's interpreter (`TRITON_INTERPRET=1`, set before triton
is imported), and the C library beside them where it was built.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from srm_triton.backend import Backend, use_backend
from srm_triton.checks import check_number
from srm_triton.kernels import native
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.ops.batch_norm import batch_norm
from srm_triton.ops.poisson import PoissonEquation
from srm_triton.ops.shrink import Edges, Fidelity, Splitting, bregman_step, soft_threshold
from srm_triton.ops.srm_scan import Gradient, check_gradient, scan, srm_scan, srm_trace
from srm_triton.parameters import SRMParameters, SRMState

_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
_SCAN_SHAPES: tuple[tuple[int, ...], ...] = ((2, 5, 7), (1, 1, 1), (3, 19, 4, 2))
_VALUE_SHAPES: tuple[tuple[int, ...], ...] = ((7,), (3, 1500))
# the last image is large enough for several threads of the C library
_IMAGE_SHAPES: tuple[tuple[int, ...], ...] = ((1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 3, 300), (1, 1, 600, 64))
_MATRIX_SHAPES: tuple[tuple[int, ...], ...] = (
    (5, 3),
    (33, 70),
    (20000, 2),
    (2, 20000),
)  # the long ones are split over programs

# How operations with a kernel start; on GPUs the estimate of denoise_tv has none, but Fourier transforms
_SERVED = {
    "triton": ("srm_", "batch_norm", "soft_threshold", "denoise_tv step"),
    "native": ("srm_", "denoise_tv"),
}

Results = tuple[Tensor, ...]
Operation = Callable[[], tuple[Results, Results]]
"""Computes spikes, which must be identical, and values, which must agree to rounding."""


class Comparison(NamedTuple):
    """How far a kernel is from its reference."""

    backend: str
    """Whose kernel, as `use_backend` names it."""
    operation: str
    """Name of the operation."""
    dtype: str
    """Of its inputs."""
    shape: tuple[int, ...]
    """Of its first input."""
    tolerance: float
    """The largest error that rounding explains."""
    error: float
    """Largest difference of a value, in units of the largest value of its tensor."""
    identical: bool | None
    """Whether all spikes are the same; None for an operation without spikes."""
    repeatable: bool
    """Whether every run gave the same bits."""

    @property
    def passed(self) -> bool:
        """Whether the kernel agrees with the reference."""
        return self.error <= self.tolerance and self.identical is not False and self.repeatable


def verify(device: torch.device, repeats: int = 50) -> Iterator[Comparison]:
    """Compares kernels and references, one operation, dtype and shape after the other.

    Args:
        device: a GPU, or the CPU for the C library and, where NumPy is installed, Triton's interpreter.
        repeats: how many times each kernel runs, at least 1. The interpreter, where a program runs after the other,
            runs each once.

    Yields:
        One comparison each.

    Raises:
        RuntimeError: on a CPU, if Triton does not interpret its kernels.
        ValueError: if `repeats` is below 1.
    """
    repeats = check_number("repeats", repeats, 1, whole=True)
    backends: tuple[Backend, ...] = ("triton",)
    if device.type == "cpu" and native.problem() is None:
        interpretable = importlib.util.find_spec("numpy") is not None
        backends = ("triton", "native") if interpretable else ("native",)
    for dtype, tolerance in _TOLERANCES.items():
        dtype_name = str(dtype).removeprefix("torch.")
        for name, shape, operation in _operations(device, dtype):
            expected = _run("reference", operation)
            for backend in backends:
                if name.startswith(_SERVED[backend]):
                    exact = backend == "native" and name.startswith("srm_")  # it equals the reference in everything
                    runs = 1 if device.type == "cpu" and backend == "triton" else repeats
                    found = _compare(backend, operation, expected, runs)
                    yield Comparison(backend, name, dtype_name, shape, 0.0 if exact else tolerance, *found)


def _compare(
    backend: Backend, operation: Operation, expected: tuple[Results, Results], runs: int
) -> tuple[float, bool | None, bool]:
    spikes, values = first = _run(backend, operation)
    expected_spikes, expected_values = expected
    identical = all(map(torch.equal, spikes, expected_spikes)) if spikes else None
    error = max((_relative_error(*pair) for pair in zip(values, expected_values, strict=True)), default=0.0)
    repeatable = all(_same(_run(backend, operation), first) for _ in range(runs - 1))
    return error, identical, repeatable


def _same(results: tuple[Results, Results], others: tuple[Results, Results]) -> bool:
    return all(all(map(torch.equal, *pair)) for pair in zip(results, others, strict=True))


def _run(backend: Backend, operation: Operation) -> tuple[Results, Results]:
    with use_backend(backend):
        return operation()


def _relative_error(value: Tensor, expected: Tensor) -> float:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        return float("inf")
    difference = (value.double() - expected.double()).abs().max()
    scale = expected.double().abs().max()
    error = float(difference / scale if scale > 0 else difference)
    return error if math.isfinite(error) else float("inf")  # no input has a result that is not finite


def _operations(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, tuple[int, ...], Operation]]:
    generator = torch.Generator().manual_seed(0)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    for shape in _SCAN_SHAPES:
        for time_axis, layout in ((1, "batch first"), (0, "time first")):
            current, grad = normal(shape) + 0.5, normal(shape)
            case = _scan_case(current, grad, normal, time_axis)
            yield f"srm_scan forward, {layout}", shape, _scan_forward(case)
            for gradient in get_args(Gradient):
                yield f"srm_scan {gradient}, {layout}", shape, _scan_both(case, gradient)
        yield "srm_trace", shape, _trace(case)
    for shape in _MATRIX_SHAPES:
        for dim in (0, 1):
            inputs, grad = normal(shape), normal(shape)
            weight, bias = normal(shape[1 - dim : 2 - dim]), normal(shape[1 - dim : 2 - dim])
            yield f"batch_norm over axis {dim}", shape, _batch_norm(inputs, weight, bias, grad, dim)
    for shape in _VALUE_SHAPES:
        yield "soft_threshold", shape, _soft_threshold(normal(shape))
    if dtype in (torch.float64, torch.float32):  # in which images of half precision are computed too
        for shape in _IMAGE_SHAPES:
            cases: tuple[tuple[int, Fidelity], ...] = ((2, "l2"), (3, "l1"))
            for kinds, fidelity in cases:
                estimate, image, penalty = normal(shape), normal(shape), normal(shape[:1]).abs() + 0.5
                for edges in get_args(Edges):
                    splits = normal((shape[0], kinds, *shape[1:]))
                    if edges == "mirrored":
                        splits[:, 0, ..., -1] = splits[:, 1, ..., -1, :] = 0
                    run = _bregman_step(estimate, image, splits, penalty, Splitting(fidelity, edges))
                    yield f"denoise_tv step, {fidelity}, {edges}", shape, run
            for edges in get_args(Edges):
                yield f"denoise_tv estimate, {edges}", shape, _solve_poisson(normal(shape), penalty.double(), edges)


class _ScanCase(NamedTuple):
    current: Tensor
    grad: Tensor
    constants: dict[str, Tensor]
    state: SRMState
    batch_first: bool


def _scan_case(current: Tensor, grad: Tensor, normal: Callable[[tuple[int, ...]], Tensor], time_axis: int) -> _ScanCase:
    """A state and constants for each channel go with the current."""
    shape = (*current.shape[:time_axis], *current.shape[time_axis + 1 :])
    wide = accumulator_dtype(current.dtype)
    state = SRMState(*(0.3 * normal(shape).to(wide) for _ in range(3)))
    usual = {"tau_m": 5.0, "tau_s": 3.0, "threshold": 1.0}
    constants = {name: value * (1 + 0.1 * normal(shape[1:2]).abs().to(wide)) for name, value in usual.items()}
    return _ScanCase(current, grad, constants, state, time_axis == 1)


def _scan_forward(case: _ScanCase) -> Operation:
    return lambda: ((srm_scan(case.current, SRMParameters(), batch_first=case.batch_first),), ())


def _scan_both(case: _ScanCase, gradient: Gradient) -> Operation:
    def run() -> tuple[Results, Results]:
        """Both paths and the gradients of state and constants; silent neurons count as firing."""
        leaves = [tensor.detach().requires_grad_() for tensor in (case.current, *case.state, *case.constants.values())]
        current, *others = leaves
        earlier = torch.zeros_like(current).requires_grad_()
        spikes, final = scan(
            current,
            earlier,
            SRMParameters(**dict(zip(case.constants, others[3:], strict=True))),
            SRMState(*others[:3]),
            rule=check_gradient(gradient, "arctan"),
            output=True,
            return_state=True,
            batch_first=case.batch_first,
        )
        gradients = torch.autograd.grad([spikes, *final], [*leaves, earlier], [case.grad, *map(torch.ones_like, final)])
        return (spikes.detach(), *(part.detach() for part in final)), gradients

    return run


def _trace(case: _ScanCase) -> Operation:
    def run() -> tuple[Results, Results]:
        spikes, *values = srm_trace(case.current, SRMParameters(**case.constants), case.state, batch_first=False)
        return (spikes,), tuple(values)

    return run


def _batch_norm(inputs: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, dim: int) -> Operation:
    def run() -> tuple[Results, Results]:
        leaves = [tensor.detach().requires_grad_() for tensor in (inputs, weight, bias)]
        outputs = batch_norm(*leaves, dim=dim, eps=1e-5)
        return (), (outputs.detach(), *torch.autograd.grad(outputs, leaves, grad))

    return run


def _soft_threshold(values: Tensor) -> Operation:
    return lambda: ((), (soft_threshold(values, 0.3),))


def _bregman_step(estimate: Tensor, image: Tensor, splits: Tensor, penalty: Tensor, splitting: Splitting) -> Operation:
    def run() -> tuple[Results, Results]:
        target = torch.empty_like(image)
        weight = torch.full_like(penalty, 0.4)
        new, _, measure = bregman_step(
            estimate, image, splits.clone(), penalty, weight, torch.empty_like(splits), target, 1.7, splitting
        )
        return (), (new, target, *measure())

    return run


def _solve_poisson(target: Tensor, weight: Tensor, edges: Edges) -> Operation:
    def run() -> tuple[Results, Results]:
        height, width = target.shape[-2:]
        equation = PoissonEquation(torch.full_like(weight, 2), weight, (height, width), target.dtype, edges)
        return (), (equation.solve(target),)

    return run
