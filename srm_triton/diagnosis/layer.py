"""The measurements of one spiking layer."""

import math
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from srm_triton.diagnosis.report import LayerReport
from srm_triton.layers import SRMLayer
from srm_triton.neuron import SRMNeuron
from srm_triton.ops.srm_scan import srm_trace
from srm_triton.parameters import SRMState

_RECENT = 16  # passes
_SLOPE_ELEMENTS = 1 << 14  # of a pass, at least those of a sample
_NEARLY_EVERY = 0.95


class WatchedLayer:
    """What is measured of one spiking layer; sums stay on its device until a report asks for them."""

    def __init__(self, name: str, module: SRMLayer | SRMNeuron) -> None:
        self.name, self.module = name, module
        self.neuron = module.neuron if isinstance(module, SRMLayer) else module
        self.calls = self.passes = self.steps = self.walks = 0
        self.counts: dict[torch.Size, tuple[Tensor, int]] = {}  # spikes of each neuron, and steps that it could fire at
        self.rates, self.silent_samples, self.magnitudes = (deque[Tensor](maxlen=_RECENT) for _ in range(3))
        self.spike_gradients = deque[Tensor](maxlen=_RECENT)
        self.weight_gradients: dict[str, deque[Tensor]] = {}
        self.bad_inputs: Tensor | int = 0
        self.swapped: Tensor | bool | None = None
        self.single_step: bool | None = None
        self.in_detail = False
        self.slopes: Tensor | None = None
        self.origins: set[str] = set()
        self.shape: tuple[int, ...] = ()
        self.weights = {name: weight for name, weight in module.named_parameters() if not name.startswith("neuron.")}
        rows = sum(weight.shape[0] for weight in self.weights.values() if weight.dim() > 1)
        self.start = self._size().clamp(min=rows**0.5)

    @property
    def time_axis(self) -> int:
        """Where inputs have time."""
        return 1 if self.module.batch_first else 0

    @property
    def detailed_next(self) -> bool:
        """Whether the next pass is measured in full: the first, second, fourth, eighth, and each sixteenth."""
        number = self.passes + 1
        return number % _RECENT == 0 or number & (number - 1) == 0

    def _size(self) -> Tensor:
        return _norm(weight for weight in self.weights.values() if weight.dim() > 1)  # gains may be calibrated

    @torch.no_grad()
    def measure(self, inputs: Tensor, spikes: Tensor, stateful: bool) -> None:
        """A pass through the layer."""
        time, batch = self.time_axis, 1 - self.time_axis
        self.in_detail = self.detailed_next
        self.passes += 1
        self.steps, self.shape = spikes.shape[time], tuple(inputs.shape)
        self.single_step = self.single_step is not False and self.steps == 1 and not stateful
        counts, trials = spikes.sum((0, 1), dtype=torch.float32), spikes.shape[0] * spikes.shape[1]
        before, trials_before = self.counts.get(counts.shape, (None, 0))
        self.counts[counts.shape] = counts.double() if before is None else before + counts, trials_before + trials
        self.rates.append(counts.mean() / trials)
        if not inputs.is_floating_point():
            inputs = inputs.float()
        if inputs.stride(time) == 0:  # the same at every step
            inputs = inputs.narrow(time, 0, 1)
        self.magnitudes.append(torch.linalg.vector_norm(inputs, 1, dtype=_wide(inputs)))
        if self.passes % _RECENT == 0:
            self.bad_inputs = self.bad_inputs + self._bad(_RECENT)
        if not self.in_detail:
            return
        silent = spikes.sum(time).reshape(spikes.shape[batch], -1).count_nonzero(1) == 0
        self.silent_samples.append(silent.float().mean())
        if inputs.shape[batch] > 1 and self.shape[time] > 1:
            swapped = self._all_the_same(inputs, batch) & ~self._all_the_same(inputs, time)
            self.swapped = swapped if self.swapped is None else self.swapped & swapped

    def _bad(self, passes: int) -> Tensor | int:
        """In how many of the last passes inputs were not finite."""
        return (~torch.stack(list(self.magnitudes)[-passes:]).isfinite()).sum() if passes else 0

    @staticmethod
    def _all_the_same(inputs: Tensor, axis: int) -> Tensor:
        first, middle, last = (inputs.select(axis, i) for i in (0, inputs.shape[axis] // 2, inputs.shape[axis] - 1))
        return (first == middle).all() & (first == last).all()

    @torch.no_grad()
    def measure_slopes(self, current: Tensor, state: SRMState | None) -> None:
        """What the event rule divides by, in some of the samples."""
        batch = current.shape[1 - self.time_axis]
        samples = min(batch, max(1, _SLOPE_ELEMENTS * batch // current.numel()))
        part = None if state is None else SRMState(*(value[:samples] for value in state))
        parameters = self.neuron.srm_parameters
        trace = srm_trace(
            current.narrow(1 - self.time_axis, 0, samples), parameters, part, batch_first=self.module.batch_first
        )
        limit = parameters.membrane_slope_limit.to(trace.membrane)
        if limit.dim() and current.dim() > 2:
            limit = limit.view(-1, *[1] * (current.dim() - 3))
        spikes, change = trace.spikes != 0, trace.membrane_change
        cases = spikes, spikes & (change >= 0) & (change * limit <= 1), spikes & (change < 0)
        sums = torch.stack([case.count_nonzero() for case in (*cases, spikes & (trace.gradient_trace < 0))])
        self.slopes = sums if self.slopes is None else self.slopes + sums

    def measure_spike_gradient(self, gradient: Tensor) -> None:
        """The gradient at the spikes of a pass."""
        self.spike_gradients.append(_norm((gradient,)))

    def measure_weight_gradient(self, name: str, gradient: Tensor) -> None:
        """The gradient of a weight in a backward."""
        self.weight_gradients.setdefault(name, deque(maxlen=_RECENT)).append(_norm((gradient,)))

    @torch.no_grad()
    def report(self) -> LayerReport:
        """What was measured, in numbers; waits for the device."""
        neurons = sum(counts.numel() for counts, _ in self.counts.values())
        spikes = sum(float(counts.sum()) for counts, _ in self.counts.values())
        trials = sum(counts.numel() * trials for counts, trials in self.counts.values())
        silent = sum(int((counts == 0).sum()) for counts, _ in self.counts.values())
        saturated = sum(int((counts >= _NEARLY_EVERY * trials).sum()) for counts, trials in self.counts.values())
        fired, *clamped = [0, 0, 0, 0] if self.slopes is None else self.slopes.tolist()
        at_limit, at_zero, time_at_zero = (count / fired if fired else math.nan for count in clamped)
        rules = getattr(self.module, "rules", None)
        return LayerReport(
            name=self.name,
            kind=type(self.module).__name__,
            gradient=self.neuron.gradient,
            output=self.neuron.output,
            passes=self.passes,
            steps=self.steps,
            tau_s=float(self.neuron.tau_s.max()),
            rate=spikes / trials,
            recent_rate=_mean(self.rates),
            silent=silent / neurons,
            saturated=saturated / neurons,
            silent_samples=_mean(self.silent_samples),
            slopes_at_limit=at_limit,
            slopes_at_zero=at_zero,
            time_slopes_at_zero=time_at_zero,
            weight_gradient=math.hypot(*map(_mean, self.weight_gradients.values()))
            if self.weight_gradients
            else math.nan,
            spike_gradient=_mean(self.spike_gradients),
            weight_growth=float(self._size() / self.start) if self.weights else math.nan,
            finite_weights=bool(_norm(self.weights.values()).isfinite()),
            bad_inputs=int(self.bad_inputs + self._bad(self.passes % _RECENT)),
            zero_inputs=_mean(self.magnitudes) == 0,
            same_samples=bool(self.swapped),
            single_step=bool(self.single_step),
            origins=frozenset(self.origins),
            by_value=rules is None or rules.input_gradient == "value",
        )


@torch.no_grad()
def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Of all together, in float32 at least."""
    norms = [torch.linalg.vector_norm(tensor.detach(), dtype=_wide(tensor)) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _mean(values: Iterable[Tensor]) -> float:
    """The mean, infinity if one is not finite, nan of none."""
    numbers = [float(value) for value in values]
    if not numbers:
        return math.nan
    return sum(numbers) / len(numbers) if all(map(math.isfinite, numbers)) else math.inf
