"""Figures of a training run and of denoising, as PNG files. They need matplotlib, and none of its global state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from srm_triton.files import write_atomically
from srm_triton.images.denoise import Denoised, to_float
from srm_triton.losses import predict
from srm_triton.ops.srm_scan import srm_trace
from srm_triton.readout import SRMReadout
from srm_triton.training import EpochRecord, record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPIKE, _TARGET, _OTHER, _THRESHOLD = "#1b2a49", "#d1495b", "#5b7c99", "#9a9a9a"


def plot_learning(history: list[EpochRecord], path: Path, *, evaluated: str = "test") -> None:
    """Draws loss, accuracies and firing rates over the epochs.

    Args:
        history: one record for each epoch, at least one.
        path: the PNG file to write.
        evaluated: which samples were evaluated after each epoch.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    figure = _figure(11, 3.6)
    loss, accuracy, rates = figure.subplots(1, 3)
    epochs = [record.epoch for record in history]
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.5}
    loss.plot(epochs, [record.loss for record in history], color=_SPIKE, **style)
    loss.set(title="Training loss", ylabel="loss", yscale="log" if min(r.loss for r in history) > 0 else "linear")
    parts = (
        ("train", _OTHER, [100 * record.train_accuracy for record in history]),
        (evaluated, _TARGET, [100 * record.accuracy for record in history]),
    )
    for name, color, values in parts:
        accuracy.plot(epochs, values, color=color, label=f"{name}, at the end {values[-1]:.1f} %", **style)
    accuracy.set(title="Accuracy", ylabel="samples that are right in %")
    accuracy.legend(loc="lower right")
    for name in history[-1].firing_rates:
        rates.plot(epochs, [record.firing_rates[name] for record in history], label=name, **style)
    rates.set(title=f"Firing rate on the {evaluated} samples", ylabel="spikes per neuron and step")
    rates.set_ylim(bottom=0)
    rates.legend()
    for axes in (loss, accuracy, rates):
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    _save(figure, path)


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

    figure = _figure(max(12, 3 * (1 + len(layers))), 7.5)
    above, below = cast("Any", figure.subfigures(2, 1, height_ratios=(1.1, 1)))
    above.suptitle(f"A test sample of class {label}, taken for class {prediction}")
    input_axes, *rasters = above.subplots(1, 1 + len(layers), squeeze=False)[0]
    _draw_input(input_axes, sample.cpu())
    for axes, (name, layer) in zip(rasters, layers.items(), strict=True):
        _draw_raster(axes, name, layer[0].flatten(1).cpu())

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
    _save(figure, path)


def plot_denoising(noisy: Tensor, result: Denoised, path: Path) -> None:
    """Draws an image before and after denoising, and what every iteration came to.

    Args:
        noisy: [channels, height, width], 1 channel or 3; other numbers are averaged.
        result: of `denoise_tv`, with a trace of at least one iteration.
        path: the PNG file to write.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    figure = _figure(14, 4.6)
    before, after, objective, residuals = figure.subplots(1, 4)
    for axes, image, title in ((before, to_float(noisy), "before"), (after, result.image, "after")):
        channels = image if len(image) in (1, 3) else image.mean(0, keepdim=True)
        axes.imshow(channels.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(title=title)
        axes.set_axis_off()
    trace = result.trace
    iterations = range(1, len(trace.objective) + 1)
    objective.plot(iterations, trace.objective.cpu(), color=_SPIKE, label="objective")
    objective.set(title="Objective", yscale="log")
    if trace.psnr is not None:
        ratio = objective.twinx()
        ratio.plot(iterations, trace.psnr.cpu(), color=_TARGET)
        ratio.set_ylabel("peak signal-to-noise ratio in dB", color=_TARGET)
    residuals.plot(iterations, trace.primal_residual.cpu(), color=_SPIKE, label="primal")
    residuals.plot(iterations, trace.dual_residual.cpu(), color=_OTHER, label="dual")
    residuals.set(title="Relative residuals", yscale="log")
    residuals.legend()
    for axes in (objective, residuals):
        axes.set_xlabel("iteration")
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    _save(figure, path)


def _draw_input(axes: "Axes", sample: Tensor) -> None:
    while sample.dim() > 3 or (sample.dim() == 3 and len(sample) not in (1, 3)):
        sample = sample.mean(0)  # over steps, then polarities
    pixels = sample.movedim(0, 2) if sample.dim() == 3 else sample
    axes.imshow(pixels.numpy(), cmap="gray_r", aspect="auto" if pixels.shape[0] != pixels.shape[1] else "equal")
    axes.set(title="input", xlabel="column", ylabel="row")


def _draw_raster(axes: "Axes", name: str, spikes: Tensor) -> None:
    steps, neurons = spikes.shape
    step, neuron = spikes.numpy().nonzero()
    size = max(2.0, min(10.0, 150 / neurons))
    axes.scatter(step, neuron, marker="|", s=size**2, color=_SPIKE, linewidths=max(1.0, min(3.0, 30 / steps)))
    axes.set(title=f"{name}, {len(step)} spikes", xlabel="step", ylabel="neuron")
    axes.set(xlim=(-0.5, steps - 0.5), ylim=(-0.5, neurons - 0.5))
    axes.locator_params(integer=True)
    for axis, count in ((axes.xaxis, steps), (axes.yaxis, neurons)):
        if count <= 10:
            axis.set_ticks(range(count))


def _draw_potential(
    axes: "Axes", number: int, label: int, membrane: Tensor, spikes: Tensor, threshold: float | None
) -> None:
    color = _TARGET if number == label else _OTHER
    axes.plot(membrane.numpy(), color=color, marker=".", linewidth=1.5, label="_")
    if threshold is not None:
        (fired,) = spikes.numpy().nonzero()
        axes.axhline(threshold, color=_THRESHOLD, linestyle="--", linewidth=1, label="threshold")
        axes.plot(fired, membrane.numpy()[fired], "v", color=_SPIKE, markersize=7, linestyle="none", label="spike")
        axes.set_yscale("symlog", linthresh=threshold)
    axes.set_title(f"class {number}, the label" if number == label else f"class {number}", color=color, fontsize=10)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", integer=True)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.05))


def _save(figure: "Figure", path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
