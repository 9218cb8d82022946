"""Timing of the scan's configurations on a GPU (on the command line `srm-triton tune`).

`tune` times the candidates of each kernel for a shape; `srm_triton.tuning_cache.TuningCache` keeps the fastest.
"""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srm_triton.backend import resolve_backend
from srm_triton.kernels.configurations import CANDIDATES, Configuration
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.layers import SRMLayer, SRMNeuron
from srm_triton.parameters import SRMParameters
from srm_triton.tuning_cache import Case, Entry, current_versions

Timer = Callable[[Callable[[], object]], float]
"""Returns the milliseconds that a launch takes."""


class Trial(NamedTuple):
    """A candidate's time, or why it cannot serve."""

    configuration: Configuration
    milliseconds: float | None
    failure: str | None


class Tuned(NamedTuple):
    """What the candidates of a kernel came to."""

    case: Case
    usual_milliseconds: float
    """The time without tuning."""
    trials: list[Trial]

    @property
    def entry(self) -> Entry | None:
        """The fastest candidate; None if all failed."""
        times = [(trial.milliseconds, trial.configuration) for trial in self.trials if trial.milliseconds is not None]
        if not times:
            return None
        milliseconds, configuration = min(times, key=lambda time: time[0])
        return Entry(self.case, current_versions(), configuration, milliseconds)


def time_on_gpu(launch: Callable[[], object]) -> float:
    """Returns the median time of a launch in milliseconds, from device events and with a cold cache."""
    from triton.testing import do_bench

    return float(do_bench(launch, return_mode="median"))


def current_shapes(model: torch.nn.Module, inputs: Tensor) -> list[tuple[int, ...]]:
    """Returns the shapes of the input currents of a model's spiking layers, as `tune` takes them.

    Args:
        model: a copy of it is run once.
        inputs: of the model.

    Example:
        >>> from srm_triton import SRMLinear
        >>> current_shapes(torch.nn.Sequential(SRMLinear(6, 5), SRMLinear(5, 3)), torch.rand(2, 8, 6))
        [(2, 8, 5), (2, 8, 3)]
    """
    shapes: list[tuple[int, ...]] = []

    def record(layer: SRMLayer | SRMNeuron, _: Any, spikes: Tensor) -> None:
        first, second, *features = spikes.shape
        shapes.append((first, second, *features) if layer.batch_first else (second, first, *features))

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, SRMLayer | SRMNeuron):
            module.register_forward_hook(record)
    with torch.no_grad():
        model(inputs)
    return shapes


def tune(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    timer: Timer = time_on_gpu,
    after_trial: Callable[[], object] = lambda: None,
) -> Iterator[Tuned]:
    """Times all candidates of all kernels on a shape; `TuningCache.update` keeps the results' entries.

    A candidate that does not compile or launch, or whose results differ from the usual configuration's, is left out.

    Args:
        shape: of the input current, [batch, time, ...].
        dtype: of the input current.
        device: a GPU.
        timer: measures a launch.
        after_trial: called after each candidate, for progress bars.

    Yields:
        One result for each kernel.

    Raises:
        RuntimeError: if the device does not run Triton kernels.
        ValueError: if the shape is no such shape.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"shape must be [batch, time, ...], each at least 1, got {list(shape)}")
    resolve_backend(device, "triton")
    for kernel, launch, outputs in _launches(shape, dtype, device):
        case = Case.of(kernel, device, dtype, shape[1], math.prod(shape) // shape[1])
        launch(None)
        expected = [output.clone() for output in outputs]
        usual_milliseconds = timer(partial(launch, None))
        trials = []
        for configuration in CANDIDATES[kernel]:
            trials.append(_try(partial(launch, configuration), configuration, outputs, expected, timer))
            after_trial()
        yield Tuned(case, usual_milliseconds, trials)


def _try(
    launch: Callable[[], object],
    configuration: Configuration,
    outputs: list[Tensor],
    expected: list[Tensor],
    timer: Timer,
) -> Trial:
    for output in outputs:
        output.fill_(math.nan)  # equals nothing: what a launch leaves out shows
    try:
        launch()
        if not all(map(torch.equal, outputs, expected)):
            return Trial(configuration, None, "its results differ from those of the usual configuration")
        return Trial(configuration, timer(launch), None)
    except Exception as error:  # compilers and drivers name no set of exceptions
        return Trial(configuration, None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def _launches(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Callable[[Configuration | None], None], list[Tensor]]]:
    """Each kernel's name, its launch in a step of training, and the tensors that it fills."""
    from srm_triton.kernels import srm_scan

    p = SRMParameters()
    constants = (*p.decays, p.amplitude, p.threshold)
    gradient_constants = (p.rise, p.membrane_slope_limit, p.gradient_slope_limit)
    generator = torch.Generator(device).manual_seed(0)
    current = torch.randn(shape, dtype=dtype, device=device, generator=generator)
    spikes, grad_weight_path, grad_time_path = (torch.empty_like(current) for _ in range(3))
    batch, steps, *features = shape
    chunks, _, _ = srm_scan.split_time(steps)
    states = None
    if chunks > 1:
        states = current.new_empty((chunks - 1, 3, batch, *features), dtype=accumulator_dtype(dtype))

    def forward(configuration: Configuration | None) -> None:
        srm_scan.forward(current, spikes, None, None, states, 1, constants, configuration)

    def backward(configuration: Configuration | None) -> None:
        srm_scan.backward(
            current, current, states, None, grad_weight_path, grad_time_path, 1, constants, gradient_constants,
            configuration,
        )  # fmt: skip

    yield "srm_scan_forward", forward, [spikes] if states is None else [spikes, states]
    yield "srm_scan_backward", backward, [grad_weight_path, grad_time_path]
