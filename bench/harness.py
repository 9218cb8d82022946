"""Measures contenders against each other: same tensors, same rounds, medians.

pytest-benchmark times one function after another, so a machine that slows down for a moment falsifies a ratio. Here
one of its rounds calls every contender once, in random order, and the samples are kept contender by contender;
pytest-benchmark decides how many rounds fit the time (`--benchmark-max-time`, `--benchmark-min-rounds`). Ratios are
medians over rounds of two times of one round. Where the least traffic is known, a copy that moves as many bytes between
two buffers that exist already takes part in every round.

Times include the allocation of results and their release. On a GPU they are those between two events on its stream.
"""

import gc
import inspect
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WORK = 32 if DEVICE.type == "cuda" else 1  # times as many samples, so that a GPU is busy for longer than its host
Function = Callable[..., Tensor]


class UnavailableError(Exception):
    """Why a contender cannot take part here."""


@dataclass(frozen=True)
class Contender:
    """A function of a case's tensors, built when the case begins; the docstring of `build` is printed on the page."""

    name: str
    build: Callable[[], Function]  # raises UnavailableError or ImportError
    time_first: bool = False  # whether it wants the first tensor as [time, batch, ...]
    comparable: bool = True  # whether it must compute what the first contender computes

    @property
    def about(self) -> str | None:
        """What it is, for the page."""
        described = inspect.getdoc(self.build)
        return described and " ".join(described.split())


def over(names: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks what a benchmark is measured with, as `pytest.mark.parametrize` does, for runs without pytest too."""

    def mark(function: Callable[..., None]) -> Callable[..., None]:
        function.cases = names, list(values)  # type: ignore[attr-defined]
        return function

    return mark


def measure(
    benchmark: Callable[[Callable[[], None]], None],
    contenders: Sequence[Contender],
    tensors: Sequence[Tensor],
    *,
    backward: bool = True,
    traffic: int | None = None,
    count_tensors: bool = False,
    excess: Callable[[Tensor], float] | None = None,
    elements: int | None = None,
    peak: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measures the contenders in interleaved rounds.

    Args:
        benchmark: pytest-benchmark's fixture.
        contenders: the first one that is available is what ratios refer to.
        tensors: arguments of every contender.
        backward: whether the gradients of the `tensors` that require one belong to the work, and those of the
            parameters of a contender that is a module.
        traffic: least number of bytes to move for each element of the output.
        count_tensors: whether `tensors` count among the bytes kept for backward.
        excess: how far the objective of a result is above the smallest one, for contenders that minimise.
        elements: what times and bytes are divided by; None for the elements of the output.
        peak: whether to measure the memory that the work takes.

    Returns:
        A record for each contender, and one for the copy.
    """
    records: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    expected: list[Tensor] = []
    for contender in contenders:
        record = records[contender.name] = {}
        start = time.perf_counter()
        try:
            function, arguments = _prepare(contender, tensors)
            start = time.perf_counter()
            run = _work(function, arguments, backward)
            results = run()
        except (UnavailableError, ImportError, torch.OutOfMemoryError) as reason:
            record["skipped"] = str(reason).partition("\n")[0]
            continue
        record["first_call_seconds"] = time.perf_counter() - start  # including compilation, where there is one
        runs[contender.name] = run
        elements = elements or results[0].numel()
        if excess is not None:
            record["excess"] = excess(results[0])
        if contender.comparable:
            expected = expected or results
            _check_agreement(contender.name, results, expected)
        if backward:
            record["kept_bytes"] = _kept_bytes(function, arguments, count_tensors) / elements
        del results
        if peak:
            record["peak_bytes"] = _peak_bytes(run) / elements
    if not runs:
        raise UnavailableError("; ".join(f"{name}: {record['skipped']}" for name, record in records.items()))
    if traffic is not None:
        source = torch.ones(elements * traffic // 2, dtype=torch.uint8, device=DEVICE)
        destination = torch.zeros_like(source)
        records["copy"], runs["copy"] = {"moved_bytes": traffic}, lambda: destination.copy_(source)

    samples: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)

    def interleaved_round() -> None:
        for name in order.sample(list(runs), len(runs)):
            samples[name].append(_seconds(runs[name]))

    benchmark(interleaved_round)
    first = next(iter(samples.values()))
    for name, times in samples.items():
        quartiles = statistics.quantiles(times, n=4, method="inclusive")
        lower, median, upper = (1e9 * seconds / elements for seconds in quartiles)
        ratio = statistics.median(a / b for a, b in zip(times, first, strict=True))
        records[name] |= {"nanoseconds": median, "quartiles": [lower, upper], "ratio": ratio}
    return records


def prepare(contenders: Sequence[Contender], tensors: Sequence[Tensor], *, backward: bool = True) -> None:
    """Lets the first contender that is available do the work once, such as while kernels are tuned."""
    for contender in contenders:
        try:
            _work(*_prepare(contender, tensors), backward)()
            return
        except (UnavailableError, ImportError):
            continue


def _prepare(contender: Contender, tensors: Sequence[Tensor]) -> tuple[Function, list[Tensor]]:
    function, arguments = contender.build(), list(tensors)
    if contender.time_first:
        swapped = tensors[0].detach().transpose(0, 1).contiguous()
        arguments[0] = swapped.requires_grad_(tensors[0].requires_grad)
    return function, arguments


def _parameters(function: Function) -> list[Tensor]:
    return list(function.parameters()) if isinstance(function, nn.Module) else []


def _work(function: Function, arguments: Sequence[Tensor], backward: bool) -> Callable[[], list[Tensor]]:
    """What is timed: the output and, if they belong to the work, the gradients."""
    with torch.no_grad():
        output = function(*arguments)
        generator = torch.Generator(output.device).manual_seed(1)
        gradient = torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype)
    leaves = [tensor for tensor in (*arguments, *_parameters(function)) if tensor.requires_grad]

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            output = function(*arguments)
        return [output, *torch.autograd.grad(output, leaves, gradient)] if backward else [output]

    return run


def _kept_bytes(function: Function, arguments: Sequence[Tensor], count_arguments: bool) -> int:
    """Bytes of the distinct storages that autograd keeps, without parameters, nor arguments unless these count."""
    saved: list[Tensor] = []  # holds them all, so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        function(*arguments)
    storages = [part.untyped_storage() for tensor in saved for part in _parts(tensor)]
    kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
    others = [*_parameters(function), *(() if count_arguments else arguments)]
    excluded = {tensor.untyped_storage().data_ptr() for tensor in others}
    return sum(size for address, size in kept.items() if address not in excluded)


def _peak_bytes(run: Callable[[], Any]) -> int:
    """The most that PyTorch's allocator has given out at once during the work, above what it had before."""
    gc.collect()
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read by the first profiler, which prints two lines each time
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"), default=0)


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that a sparse one is made of."""
    if tensor.layout == torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return (tensor,)


def _check_agreement(name: str, results: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raises an error unless the results agree but for the few spikes that another order of rounding moves."""
    for result, other in zip(results, expected, strict=True):
        wrong = ~torch.isclose(result, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
        if wrong.float().mean() > 1e-3:
            raise AssertionError(f"{name} computes something else than the first contender")


def _seconds(run: Callable[[], Any]) -> float:
    if DEVICE.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
