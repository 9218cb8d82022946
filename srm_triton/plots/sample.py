"""What a network does with one sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from srm_triton.losses import predict
from srm_triton.ops.srm_scan import srm_trace
from srm_triton.plots.activity import raster
from srm_triton.plots.style import OTHER, SPIKE, TARGET, THRESHOLD, figure, save
from srm_triton.readout import SRMReadout
from srm_triton.training import record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@torch.no_grad()
def plot_sample(network: nn.Sequential, sample: Tensor, inputs: Tensor, label: int, path: Path) -> None:
    """Draws what one sample does: spikes of every layer, and the membrane potential of each output neuron.

    Args:
        network: a trained network of `spiking_network`.
        sample: an image [height, width] or [channels, height, width], or a sequence [time, ...].
        inputs: the same as the network takes it, [1, time, ...], on its device.
        label: its class.
        path: the PNG file to write.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    network.eval()
    outputs, layers = record(network, inputs)
    *before, output = network
    if isinstance(output, SRMReadout):
        membrane, prediction = outputs[0], int(outputs[0, -1].argmax())
        spikes, threshold = torch.zeros_like(membrane), None
    else:
        current = cast("Any", output).current(nn.Sequential(*before)(inputs))
        trace = srm_trace(current, cast("Any", output).neuron.srm_parameters)
        membrane, spikes, prediction = trace.membrane[0], trace.spikes[0], int(predict(outputs))
        threshold = float(cast("Any", output).neuron.threshold.mean())
    classes = outputs.shape[2]
    columns = -(-classes // 2)

    drawn = figure(max(12, 3 * (1 + len(layers))), 7.5)
    above, below = cast("Any", drawn.subfigures(2, 1, height_ratios=(1.1, 1)))
    above.suptitle(f"A test sample of class {label}, taken for class {prediction}")
    input_axes, *rasters = above.subplots(1, 1 + len(layers), squeeze=False)[0]
    _draw_input(input_axes, sample.cpu())
    for axes, (name, layer) in zip(rasters, layers.items(), strict=True):
        raster(layer[0], title=name, axes=axes)

    when = "" if threshold is None else " before the reset, logarithmic beyond the threshold"
    below.suptitle(f"Membrane potential of the output neurons{when}")
    grid = below.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number < classes:
            potential, fired = membrane[:, number].cpu(), spikes[:, number].cpu()
            _draw_potential(axes, number, label, potential, fired, threshold)
        else:
            axes.set_axis_off()
    handles, names = grid.flat[0].get_legend_handles_labels()
    if handles:
        below.legend(handles, names, loc="outside lower center", ncols=len(names))
    for axes in grid[-1]:
        axes.set_xlabel("step")
    below.supylabel("potential u")
    save(drawn, path)


def _draw_input(axes: "Axes", sample: Tensor) -> None:
    while sample.dim() > 3 or (sample.dim() == 3 and len(sample) not in (1, 3)):
        sample = sample.mean(0)  # over steps, then polarities
    pixels = sample.movedim(0, 2) if sample.dim() == 3 else sample
    axes.imshow(pixels.numpy(), cmap="gray_r", aspect="auto" if pixels.shape[0] != pixels.shape[1] else "equal")
    axes.set(title="input", xlabel="column", ylabel="row")


def _draw_potential(
    axes: "Axes", number: int, label: int, membrane: Tensor, spikes: Tensor, threshold: float | None
) -> None:
    color = TARGET if number == label else OTHER
    axes.plot(membrane.numpy(), color=color, marker=".", linewidth=1.5, label="_")
    if threshold is not None:
        (fired,) = spikes.numpy().nonzero()
        axes.axhline(threshold, color=THRESHOLD, linestyle="--", linewidth=1, label="threshold")
        axes.plot(fired, membrane.numpy()[fired], "v", color=SPIKE, markersize=7, linestyle="none", label="spike")
        axes.set_yscale("symlog", linthresh=threshold)
    axes.set_title(f"class {number}, the label" if number == label else f"class {number}", color=color, fontsize=10)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", integer=True)
