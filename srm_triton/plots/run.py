"""How a training run went."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm_triton.diagnosis import Report
from srm_triton.plots.classes import confusion_matrix
from srm_triton.plots.gradients import gradient_health
from srm_triton.plots.style import OTHER, SPIKE, TARGET, axes_or_new, figure, legend, save, series
from srm_triton.training import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


def firing_rates(
    history: Sequence[EpochRecord] | Mapping[str, Sequence[float]], *, axes: "Axes | None" = None
) -> "Axes":
    """Draws the spikes per neuron and step of each layer over training.

    Args:
        history: the records of a `TrainingRun`, or the rates after each epoch by the name of the layer.
        axes: where to draw; None for a new figure.

    Raises:
        ValueError: for no epoch or layer.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> firing_rates({"hidden1": [0.1, 0.2, 0.15], "output": [0.02, 0.05, 0.06]}).get_ylabel()
        'spikes per neuron and step'
    """
    rates = history if isinstance(history, Mapping) else _by_layer(history)
    if not rates or not all(len(values) for values in rates.values()):
        raise ValueError(f"history must hold rates of at least one layer and epoch, got {history!r}")
    axes = axes_or_new(axes)
    for number, (name, values) in enumerate(rates.items()):
        axes.plot(range(1, len(values) + 1), values, label=name, markersize=4, linewidth=1.5, **series(number))
    epochs, most = max(map(len, rates.values())), max(map(max, rates.values()))
    axes.set(xlabel="epoch", ylabel="spikes per neuron and step")
    axes.set(xlim=(0.5, 1.5) if epochs == 1 else None, ylim=(0, 1.1 * most or 1))
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    legend(axes, beside=len(rates) > 4)
    return axes


def _by_layer(history: Sequence[EpochRecord]) -> dict[str, list[float]]:
    names = history[-1].firing_rates if history else ()
    return {name: [record.firing_rates[name] for record in history] for name in names}


def plot_learning(history: list[EpochRecord], path: Path, *, evaluated: str = "test") -> None:
    """Draws loss, accuracies and firing rates over the epochs.

    Args:
        history: one record for each epoch, at least one.
        path: the PNG file to write.
        evaluated: which samples were evaluated after each epoch.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    drawn = figure(11, 3.6)
    loss, accuracy, rates = drawn.subplots(1, 3)
    epochs = [record.epoch for record in history]
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.5}
    loss.plot(epochs, [record.loss for record in history], color=SPIKE, **style)
    loss.set(title="Training loss", ylabel="loss", yscale="log" if min(r.loss for r in history) > 0 else "linear")
    parts = (
        ("train", OTHER, [100 * record.train_accuracy for record in history]),
        (evaluated, TARGET, [100 * record.accuracy for record in history]),
    )
    for name, color, values in parts:
        accuracy.plot(epochs, values, color=color, label=f"{name}, at the end {values[-1]:.1f} %", **style)
    accuracy.set(title="Accuracy", ylabel="samples that are right in %")
    accuracy.legend(loc="lower right")
    firing_rates(history, axes=rates).set(title=f"Firing rate on the {evaluated} samples")
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    save(drawn, path)


def plot_run(report: Report, predictions: "Tensor", labels: "Tensor", path: Path) -> None:
    """Draws the gradients of a batch and which classes are taken for which.

    Args:
        report: what `watch` saw, a backward included.
        predictions: classes, [samples].
        labels: the classes that are right, likewise.
        path: the PNG file to write.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    drawn = figure(6 + max(5.0, 1.1 * len(report.layers)), 5)
    left, right = drawn.subplots(1, 2, width_ratios=(max(5.0, 1.1 * len(report.layers)), 6))
    gradient_health(report, axes=left)
    confusion_matrix(predictions, labels, axes=right)
    save(drawn, path)
