"""Hooks on every spiking layer, for the time of a block."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number
from srm_triton.diagnosis.finding import Finding
from srm_triton.diagnosis.findings import find_in_layers
from srm_triton.diagnosis.layer import WatchedLayer
from srm_triton.diagnosis.learning import Learning, find_in_learning
from srm_triton.diagnosis.report import Report, healthy
from srm_triton.functions import traced
from srm_triton.layers import SRMLayer, spiking_layers
from srm_triton.readout import SRMReadout

_SPIKES = "srm_triton.spikes"  # marks the node of autograd that made them


class _Hook:
    """A hook that stays with its watcher: what is copied or pickled in the block holds one that does nothing."""

    def __init__(self, measure: Callable[..., None]) -> None:
        self.measure = measure

    def __call__(self, *arguments: Any) -> None:
        if not traced():
            self.measure(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_ignore,)


def _ignore(*arguments: Any) -> None:
    pass


class Watcher:
    """What `watch` hands to its block."""

    def __init__(self, model: nn.Module, show: Callable[[str], object] | None, every: int) -> None:
        self._layers = [WatchedLayer(name, layer) for name, layer in spiking_layers(model)]
        self._readout = any(isinstance(module, SRMReadout) for module in model.modules())
        self._show, self._every = show, every
        self._ran: list[WatchedLayer] = []  # in the order in which they first ran
        self._learning = Learning()
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
        self._learning.observe(loss, predictions, labels)
        if labels is not None:
            self._check_batch(len(labels))

    def report(self) -> Report:
        """What was seen so far."""
        layers = tuple(layer.report() for layer in self._ran)
        learning = self._learning.report()
        findings = list(find_in_layers(layers, readout=self._readout))
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

    def _after_layer(self, layer: WatchedLayer, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
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

    def _after_neuron(self, layer: WatchedLayer, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        current = args[0] if args else kwargs["current"]
        due = layer.calls % self._every == 0 and layer.detailed_next
        if not due or current.numel() == 0 or current.is_meta:
            return
        layer.measure_slopes(current.detach(), args[1] if len(args) > 1 else kwargs.get("state"))

    def _after_backward(self, layer: WatchedLayer, name: str, gradient: Tensor) -> None:
        if layer.in_detail:
            layer.measure_weight_gradient(name, gradient)

    def _show_new(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            if self._show is not None and finding[:2] not in self._shown:
                self._show(str(finding))
            self._shown.add(finding[:2])

    def _attach(self, stack: contextlib.ExitStack) -> None:
        """Hooks that go with the block."""

        def bind(measure: Callable[..., None], layer: WatchedLayer) -> _Hook:
            return _Hook(lambda *arguments: measure(layer, *arguments))

        for layer in self._layers:
            after = bind(self._after_layer, layer)
            if layer.neuron.gradient != "surrogate":  # first: a neuron alone is its layer, which counts the calls
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
            self._show(healthy(report.layers))


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
    every = check_number("every", every, 1, whole=True)
    if show is not None and not callable(show):
        raise TypeError(f"show must be a function of a string or None, got {type(show).__name__}")
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"model must not be compiled, as compiled code runs no hooks, got torch.compile at "
                f"{name or 'the model itself'!r}; watch and call the module that was compiled, for a few batches"
            )
    watcher = Watcher(model, show, every)
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
        if node.name() in ("_ScanBackward", "_MapAndFireBackward") or _SPIKES in node.metadata:
            found.add("spikes")
        elif isinstance(getattr(node, "variable", None), nn.Parameter):
            found.add("parameters")
        elif not node.name().startswith("CompiledFunction"):  # of which nothing is known
            nodes.extend(after for after, _ in node.next_functions)
    return found
