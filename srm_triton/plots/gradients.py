"""How gradients pass through the layers of a network."""

import math
from typing import TYPE_CHECKING

from srm_triton.diagnosis import Report
from srm_triton.plots.style import SERIES, TARGET, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gradient_health(report: Report, *, axes: "Axes | None" = None) -> "Axes":
    """Draws the norms of the gradients at the weights and the spikes of each layer, from the first to the last.

    Below each layer stand its rate and the share of its silent neurons; layers of which the report has findings are
    red. A norm of 0, which a logarithmic axis cannot show, is a cross at the bottom.

    Args:
        report: of `watch`, which has seen a backward.
        axes: where to draw; None for a new figure.

    Raises:
        TypeError: for anything but a report.
        ValueError: for a report without gradients.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> import torch
        >>> from srm_triton import SRMLinear, watch
        >>> model = torch.nn.Sequential(SRMLinear(4, 30), SRMLinear(30, 3, output=True))
        >>> with watch(model, show=None) as watcher:
        ...     model(torch.rand(2, 8, 4)).sum().backward()
        >>> gradient_health(watcher.report()).get_ylabel()
        'norm of the gradient'
    """
    if not isinstance(report, Report):
        raise TypeError(f"report must be a Report, such as Watcher.report() returns, got {type(report).__name__}")
    layers = report.layers
    kinds = {
        "at its weights": [layer.weight_gradient for layer in layers],
        "at its spikes": [layer.spike_gradient for layer in layers],
    }
    seen = [norm for norms in kinds.values() for norm in norms if not math.isnan(norm)]
    if not seen:
        raise ValueError("report must have seen a backward, got one without gradients")
    positive = [norm for norm in seen if 0 < norm < math.inf]
    bottom, top = (min(positive) / 10, max(positive) * 10) if positive else (0.1, 10.0)
    axes = axes_or_new(axes, max(5.0, 1.1 * len(layers)), 4.4)
    for (name, norms), color, marker in zip(kinds.items(), SERIES, "os", strict=False):
        line = [norm if 0 < norm < math.inf else math.nan for norm in norms]
        axes.plot(line, color=color, marker=marker, linewidth=1.5, label=name)
        zeros = [number for number, norm in enumerate(norms) if norm == 0]
        axes.plot(zeros, [bottom] * len(zeros), "x", color=color, markersize=9, label="_", clip_on=False)
        endless = [number for number, norm in enumerate(norms) if norm == math.inf]
        axes.plot(endless, [top] * len(endless), "^", color=color, markersize=9, label="_", clip_on=False)
    if 0 in seen:
        axes.plot([], [], "x", color="black", markersize=9, label="0, which has no logarithm")
    axes.set(yscale="log", ylim=(bottom, top), xlim=(-0.5, len(layers) - 0.5), ylabel="norm of the gradient")
    labels = [
        f"{layer.name or layer.kind}\nrate {layer.rate:.2g}\nsilent {100 * layer.silent:.0f} %" for layer in layers
    ]
    axes.set_xticks(range(len(layers)), labels)
    conspicuous = {finding.layer for finding in report.findings}
    for layer, tick in zip(layers, axes.get_xticklabels(), strict=True):
        tick.set_color(TARGET if layer.name in conspicuous else "black")
    count = len(report.findings)
    axes.set(title=f"Gradients, {count or 'no'} finding{'s' * (count != 1)}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return axes
