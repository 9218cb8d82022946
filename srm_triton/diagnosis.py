"""Diagnosis of a network while it trains: what its layers do, by hooks that change nothing.

Within `watch(model)` every call of a spiking layer is measured: spikes, inputs, the slopes that the event rule divides
by, and gradients as they pass. `srm_triton.findings` holds what the numbers say.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number
from srm_triton.findings import Finding, LayerReport, LearningReport, find_in_layers, find_in_learning
from srm_triton.functions import transforms_active
from srm_triton.layers import SRMLayer
from srm_triton.neuron import SRMNeuron
from srm_triton.ops.srm_scan import srm_trace
from srm_triton.parameters import SRMState

_RECENT = 16  # passes
_SLOPE_ELEMENTS = 1 << 14  # of a pass, at least those of a sample
_RECENT_STEPS = 1000  # of a loop
_NEARLY_EVERY = 0.95
_SPIKES = "srm_triton.spikes"  # marks the node of autograd that made them


@dataclass(frozen=True)
class Report:
    """What was seen in a `watch` block so far; as text, a table of the layers and the findings.

    Attributes:
        layers: a report on each layer that ran, in the order in which they did.
        learning: what `Watcher.observe` was told; None if nothing.
        findings: what is conspicuous; empty for a healthy network.
    """

    layers: tuple[LayerReport, ...]
    learning: LearningReport | None
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        head = ("layer", "rate", "silent", "saturated", "slopes at limit", "at 0", "gradient: weights", "spikes")
        rows = [head, *(_row(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join((*lines, *map(str, self.findings)) if self.findings else (*lines, _healthy(self.layers)))


def _row(layer: LayerReport) -> tuple[str, ...]:
    shares = layer.silent, layer.saturated, layer.slopes_at_limit, layer.slopes_at_zero
    norms = layer.weight_gradient, layer.spike_gradient
    name = layer.name or layer.kind
    return (
        name,
        f"{layer.rate:.3f}",
        *("–" if math.isnan(share) else f"{share:.1%}" for share in shares),
        *("–" if math.isnan(norm) else f"{norm:.1e}" for norm in norms),
    )


def _healthy(layers: Iterable[LayerReport]) -> str:
    count = len(tuple(layers))
    return f"Nothing conspicuous in {count} spiking layer{'s' * (count != 1)}."


class _Hook:
    """A hook that stays with its watcher: what is copied or pickled in the block holds one that does nothing."""

    def __init__(self, measure: Callable[..., None]) -> None:
        self.measure = measure

    def __call__(self, *arguments: Any) -> None:
        if torch.compiler.is_compiling() or transforms_active():
            return
        self.measure(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_ignore,)


def _ignore(*arguments: Any) -> None:
    pass


class _Layer:
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
        return 1 if self.module.batch_first else 0

    def _size(self) -> Tensor:
        return _norm(weight for weight in self.weights.values() if weight.dim() > 1)  # gains may be calibrated

    @torch.no_grad()
    def measure(self, inputs: Tensor, spikes: Tensor, stateful: bool) -> None:
        """A pass through the layer."""
        time, batch = self.time_axis, 1 - self.time_axis
        self.passes += 1
        self.in_detail = _in_detail(self.passes)
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
        silent = spikes.sum(time).flatten(1).count_nonzero(1) == 0
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


def _in_detail(number: int) -> bool:
    """Whether a pass is measured in full: the first, second, fourth, eighth, and each sixteenth."""
    return number % _RECENT == 0 or number & (number - 1) == 0


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


class _Learning:
    """Losses and predictions of a loop, the last of them."""

    def __init__(self) -> None:
        self.steps = 0
        self.losses = deque[Tensor](maxlen=_RECENT_STEPS)
        self.finite: Tensor | bool = True
        self.predictions = deque[tuple[Tensor, Tensor]](maxlen=_RECENT_STEPS)

    def report(self) -> LearningReport | None:
        """What they came to; waits for the device."""
        if not self.steps:
            return None
        losses = [float(loss) for loss in self.losses]
        part = max(1, len(losses) // 10)
        first, last = (sum(some) / len(some) if some else math.nan for some in (losses[:part], losses[-part:]))
        later = list(self.predictions)[len(self.predictions) // 2 :]
        samples = correct = predicted = 0
        most_frequent = predicted_share = math.nan
        if later:
            named, labels = (torch.cat([pair[i].cpu() for pair in later]) for i in range(2))
            samples, correct = len(labels), int((named == labels).sum())
            most_frequent = int(labels.unique(return_counts=True)[1].max()) / samples
            classes, counts = named.unique(return_counts=True)
            predicted, predicted_share = int(classes[counts.argmax()]), int(counts.max()) / samples
        return LearningReport(
            self.steps, first, last, bool(self.finite), samples, correct, most_frequent, predicted, predicted_share
        )


class Watcher:
    """What `watch` hands to its block."""

    def __init__(self, layers: list[_Layer], show: Callable[[str], object] | None, every: int) -> None:
        self._layers, self._show, self._every = layers, show, every
        self._ran: list[_Layer] = []  # in the order in which they first ran
        self._learning = _Learning()
        self._shown: set[tuple[str, str | None]] = set()
        self._batches: Finding | None = None

    def observe(
        self, *, loss: Tensor | float | None = None, predictions: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        """Takes note of a step of the loop, any part of it; nothing is waited for and nothing kept alive.

        Args:
            loss: a scalar.
            predictions: predicted classes, any integer dtype, [batch], such as `predict` returns.
            labels: the classes of the samples, likewise.

        Raises:
            TypeError: for a loss that is no number, or predictions or labels that are no tensors of integers.
            ValueError: for other shapes, or predictions without labels or the reverse.
        """
        if (predictions is None) != (labels is None):
            raise ValueError(f"{'labels' if labels is None else 'predictions'} must be given too, got None")
        if loss is not None:
            loss = _as_loss(loss)
        if predictions is not None and labels is not None:
            for name, value in (("predictions", predictions), ("labels", labels)):
                _check_classes(name, value)
            if predictions.shape != labels.shape:
                raise ValueError(
                    f"predictions must have the shape of labels, {list(labels.shape)}, got {list(predictions.shape)}"
                )
            self._check_batch(len(labels))
            self._learning.predictions.append(
                tuple(value.detach().to(torch.int64, copy=True) for value in (predictions, labels))  # type: ignore[arg-type]
            )
        if loss is not None:
            self._learning.losses.append(loss)
            self._learning.finite = loss.isfinite() & self._learning.finite
        self._learning.steps += 1

    def report(self) -> Report:
        """What was seen so far."""
        layers = tuple(layer.report() for layer in self._ran)
        learning = self._learning.report()
        findings = list(find_in_layers(layers))
        if self._batches is not None and not any(finding.kind == "axes" for finding in findings):
            findings.append(self._batches)
        return Report(layers, learning, (*findings, *find_in_learning(learning)))

    def _check_batch(self, samples: int) -> None:
        """Whether the samples are where the first layer looks for time."""
        if not self._ran:
            return
        first = self._ran[0]
        if first.shape[1 - first.time_axis] != samples == first.shape[first.time_axis]:
            name = f"Layer {first.name!r}" if first.name else "The model"
            self._batches = Finding(
                "axes",
                first.name,
                f"{name} received inputs of the shape {list(first.shape)}, read as {first.shape[1 - first.time_axis]} "
                f"samples of {samples} steps, but there are {samples} labels: batch and time are swapped.",
                "Pass inputs as [batch, time, …], or make every layer with batch_first=False.",
            )

    def _after_layer(self, layer: _Layer, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        spikes, stateful = (output[0], True) if isinstance(output, tuple) else (output, False)
        inputs = args[0] if args else kwargs["inputs" if isinstance(module, SRMLayer) else "current"]
        if spikes.numel() == 0 or spikes.is_meta:
            return
        layer.calls += 1
        if (layer.calls - 1) % self._every:
            return
        if layer.passes == 0:
            self._ran.append(layer)
        elif layer is self._ran[0] and layer.passes & (layer.passes - 1) == 0:  # 1, 2, 4, … passes are over
            self._show_new(self.report().findings)
        if layer.walks < 2 and inputs.requires_grad and torch.is_grad_enabled():
            layer.walks += 1
            layer.origins |= _origins(inputs)
        layer.measure(inputs.detach(), spikes.detach(), stateful or len(args) > 1 or kwargs.get("state") is not None)
        if spikes.grad_fn is not None:
            spikes.grad_fn.metadata[_SPIKES] = True  # the code of a model does not see it
        if layer.in_detail and spikes.requires_grad:
            spikes.register_hook(layer.measure_spike_gradient)

    def _after_neuron(self, layer: _Layer, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        current = args[0] if args else kwargs["current"]
        due = layer.calls % self._every == 0 and _in_detail(layer.passes + 1)
        if not due or current.numel() == 0 or current.is_meta:
            return
        layer.measure_slopes(current.detach(), args[1] if len(args) > 1 else kwargs.get("state"))

    def _after_backward(self, layer: _Layer, name: str, gradient: Tensor) -> None:
        if layer.in_detail:
            layer.measure_weight_gradient(name, gradient)

    def _show_new(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            if self._show is not None and finding[:2] not in self._shown:
                self._show(str(finding))
            self._shown.add(finding[:2])

    def _attach(self, stack: contextlib.ExitStack) -> None:
        """Hooks that go with the block."""

        def bind(measure: Callable[..., None], layer: _Layer) -> _Hook:
            return _Hook(lambda *arguments: measure(layer, *arguments))

        for layer in self._layers:
            after = bind(self._after_layer, layer)
            if layer.neuron.gradient == "event":  # first: a neuron alone is its layer, which counts the calls
                of_neuron = bind(self._after_neuron, layer)
                stack.callback(layer.neuron.register_forward_hook(of_neuron, with_kwargs=True).remove)
            stack.callback(layer.module.register_forward_hook(after, with_kwargs=True).remove)
            for name, weight in layer.weights.items():
                if weight.requires_grad:
                    hook = bind(lambda layer, gradient, name=name: self._after_backward(layer, name, gradient), layer)
                    stack.callback(weight.register_hook(hook).remove)

    def _finish(self, *, failed: bool) -> None:
        report = self.report()
        self._show_new(report.findings)
        if not self._shown and not failed and self._show is not None:
            self._show(_healthy(report.layers))


@contextlib.contextmanager
def watch(model: nn.Module, *, show: Callable[[str], object] | None = print, every: int = 1) -> Iterator[Watcher]:
    """Watches a network: within the block it measures every spiking layer, and says what is wrong and what to try.

    Nothing changes: results, gradients, random numbers and the `state_dict` are the same bit for bit, and the hooks go
    when the block ends, by an exception too. What is conspicuous is shown once: after 1, 2, 4, 8, … passes, so that a
    long training does not go wrong in silence, and at the end; for a healthy network one line then. `Watcher.observe`
    takes losses and predictions of the loop, `Watcher.report` returns all numbers at any time.

    Measured are: spikes per neuron and step, silent and saturated neurons, slopes that the event rule clamps (in up to
    8 samples of a pass), norms of gradients at spikes and of weights, and NaN, zeros and swapped axes in the inputs.

    Args:
        model: any module with spiking layers: those of the package, `SRMNeuron` used alone too.
        show: called with each sentence; None for nothing.
        every: measure each so many calls of a layer, ≥ 1; more for less time.

    Yields:
        The `Watcher`.

    Raises:
        TypeError: if `model` is no module.
        ValueError: if it contains no spiking layer, or one compiled by torch.compile, in which hooks see nothing.

    Example:
        >>> from srm_triton import SRMLinear
        >>> model = torch.nn.Sequential(SRMLinear(4, 3, weight_norm=False))
        >>> _ = torch.nn.init.constant_(model[0].weight, 0.01)
        >>> with watch(model, show=None) as watcher:
        ...     _ = model(torch.rand(2, 8, 4))
        >>> [finding.kind for finding in watcher.report().findings], watcher.report().layers[0].rate
        (['dead'], 0.0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_number("every", every, 1, whole=True)
    if show is not None and not callable(show):
        raise TypeError(f"show must be a function of a string or None, got {type(show).__name__}")
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"model must not be compiled, as compiled code runs no hooks, got torch.compile at "
                f"{name or 'the model itself'!r}; watch and call the module that was compiled, for a few batches"
            )
    found = {name: module for name, module in model.named_modules() if isinstance(module, SRMLayer | SRMNeuron)}
    inner = {id(module.neuron) for module in found.values() if isinstance(module, SRMLayer)}
    layers = [_Layer(name, module) for name, module in found.items() if id(module) not in inner]
    if not layers:
        raise ValueError("model must contain a spiking layer, such as SRMLinear or SRMNeuron")
    watcher = Watcher(layers, show, every)
    with contextlib.ExitStack() as stack:
        watcher._attach(stack)
        try:
            yield watcher
        except BaseException:
            stack.close()
            watcher._finish(failed=True)
            raise
    watcher._finish(failed=False)


def _origins(tensor: Tensor) -> set[str]:
    """What autograd knows a tensor to be computed from: spikes, and parameters of modules between."""
    found, seen, nodes = set[str](), set[Any](), list[Any]([tensor.grad_fn])
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "_ScanBackward" or _SPIKES in node.metadata:
            found.add("spikes")
        elif isinstance(getattr(node, "variable", None), nn.Parameter):
            found.add("parameters")
        elif not node.name().startswith("CompiledFunction"):  # of which nothing is known
            nodes.extend(after for after, _ in node.next_functions)
    return found


def _as_loss(loss: Any) -> Tensor:
    if isinstance(loss, bool) or not isinstance(loss, Tensor | int | float):
        raise TypeError(f"loss must be a number or a scalar tensor, got {type(loss).__name__}")
    value = torch.as_tensor(loss).detach()
    if value.numel() != 1 or value.is_complex():
        raise ValueError(f"loss must be a scalar, got {list(value.shape)} of {value.dtype}")
    return value.to(torch.float64, copy=True).view(())


def _check_classes(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of integers, the classes, got {kind}")
    if value.dim() != 1:
        raise ValueError(f"{name} must have the shape [batch], got {list(value.shape)}")
