"""An image before and after denoising."""

from pathlib import Path

from torch import Tensor

from srm_triton.images.denoise import Denoised, to_float
from srm_triton.plots.style import OTHER, SPIKE, TARGET, figure, save


def plot_denoising(noisy: Tensor, result: Denoised, path: Path) -> None:
    """Draws an image before and after denoising, and what every iteration came to.

    Args:
        noisy: [channels, height, width], 1 channel or 3; other numbers are averaged.
        result: of `denoise_tv`, with a trace of at least one iteration.
        path: the PNG file to write.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    drawn = figure(14, 4.6)
    before, after, objective, residuals = drawn.subplots(1, 4)
    for axes, image, title in ((before, to_float(noisy), "before"), (after, result.image, "after")):
        channels = image if len(image) in (1, 3) else image.mean(0, keepdim=True)
        axes.imshow(channels.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(title=title)
        axes.set_axis_off()
    trace = result.trace
    iterations = range(1, len(trace.objective) + 1)
    objective.plot(iterations, trace.objective.cpu(), color=SPIKE, label="objective")
    objective.set(title="Objective", yscale="log")
    if trace.psnr is not None:
        ratio = objective.twinx()
        ratio.plot(iterations, trace.psnr.cpu(), color=TARGET)
        ratio.set_ylabel("peak signal-to-noise ratio in dB", color=TARGET)
    residuals.plot(iterations, trace.primal_residual.cpu(), color=SPIKE, label="primal")
    residuals.plot(iterations, trace.dual_residual.cpu(), color=OTHER, label="dual")
    residuals.set(title="Relative residuals", yscale="log")
    residuals.legend()
    for axes in (objective, residuals):
        axes.set_xlabel("iteration")
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    save(drawn, path)
