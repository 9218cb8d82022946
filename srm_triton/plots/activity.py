"""What neurons do over time."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from srm_triton.checks import check_tensor
from srm_triton.plots.style import SERIES, SPIKE, THRESHOLD, axes_or_new, legend, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def raster(spikes: Tensor, *, title: str = "spikes", axes: "Axes | None" = None) -> "Axes":
    """Draws a mark for each spike, steps from left to right and neurons from below.

    Args:
        spikes: of one sample, [time, ...]; what is not 0 is a spike.
        title: of the axes, before the number of spikes.
        axes: where to draw; None for a new figure.

    Raises:
        TypeError: for anything but a tensor of floats.
        ValueError: for a tensor without an axis of neurons.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> import torch
        >>> raster((torch.rand(50, 20) < 0.1).float()).get_xlabel()
        'step'
    """
    check_tensor("spikes", spikes, "[time, neurons, ...]")
    axes = axes_or_new(axes)
    flat = spikes.detach().flatten(1).cpu()
    steps, neurons = flat.shape
    step, neuron = flat.nonzero().unbind(1)
    size = max(2.0, min(10.0, 150 / max(neurons, 1)))
    width = max(1.0, min(3.0, 30 / max(steps, 1)))
    axes.scatter(step.numpy(), neuron.numpy(), marker="|", s=size**2, color=SPIKE, linewidths=width)
    axes.set(title=f"{title}, {len(step)} spikes" if title != "spikes" else f"{len(step)} spikes")
    axes.set(xlabel="step", ylabel="neuron", xlim=(-0.5, steps - 0.5), ylim=(-0.5, neurons - 0.5))
    whole_numbers(axes.xaxis, steps)
    whole_numbers(axes.yaxis, neurons)
    return axes


def membrane(
    potential: Tensor,
    spikes: Tensor | None = None,
    threshold: float | Tensor | None = None,
    *,
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws membrane potentials over time, with the threshold and a mark where each neuron fires.

    Potentials as `srm_trace` returns them are those before the reset.

    Args:
        potential: of one sample, [time] or [time, neurons]; at most 7 neurons can be told apart.
        spikes: in the same shape; None for none.
        threshold: of all neurons; None to leave it out.
        axes: where to draw; None for a new figure.

    Raises:
        TypeError: for anything but tensors of floats.
        ValueError: for other shapes, or more neurons.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> import torch
        >>> from srm_triton import srm_trace
        >>> trace = srm_trace(torch.rand(1, 40, 2))
        >>> membrane(trace.membrane[0], trace.spikes[0], threshold=1.0).get_ylabel()
        'membrane potential'
    """
    check_tensor("potential", potential)
    if not 1 <= potential.dim() <= 2 or (potential.dim() == 2 and potential.shape[1] > len(SERIES)):
        raise ValueError(
            f"potential must have the shape [time] or [time, neurons] of at most {len(SERIES)} neurons, "
            f"got {list(potential.shape)}"
        )
    lines = potential.detach().cpu().reshape(len(potential), -1)
    fired: Any = None
    if spikes is not None:
        check_tensor("spikes", spikes)
        if spikes.shape != potential.shape:
            raise ValueError(
                f"spikes must have the shape of potential, {list(potential.shape)}, got {list(spikes.shape)}"
            )
        fired = spikes.detach().cpu().reshape(lines.shape) != 0
    axes = axes_or_new(axes)
    several = lines.shape[1] > 1
    for neuron, (values, color) in enumerate(zip(lines.unbind(1), SERIES, strict=False)):
        label = f"neuron {neuron}" if several else "potential"
        axes.plot(values.numpy(), color=color, linewidth=1.5, marker=".", markersize=4, label=label)
        if fired is not None:
            steps = fired[:, neuron].nonzero().flatten().numpy()
            axes.plot(steps, values.numpy()[steps], "v", color=color, markeredgecolor=SPIKE, markersize=8, label="_")
    if fired is not None:
        axes.plot([], [], "v", color="white", markeredgecolor=SPIKE, markersize=8, label="spike")
    if threshold is not None:
        axes.axhline(float(threshold), color=THRESHOLD, linestyle="--", linewidth=1.5, label="threshold")
    axes.set(xlabel="step", ylabel="membrane potential")
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    whole_numbers(axes.xaxis, len(lines))
    legend(axes, beside=True)
    return axes
