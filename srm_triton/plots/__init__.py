"""Pictures of spikes, potentials, training, gradients, benchmarks and images.

`raster`, `membrane`, `firing_rates`, `gradient_health`, `confusion_matrix` and `roofline` take tensors or reports of
this package and return matplotlib axes, those handed in or new ones: ``raster(spikes).figure.savefig("raster.png")``.
Functions that begin with `plot_` write whole figures as PNG files. All need matplotlib and none of its global state.
"""

from srm_triton.plots.activity import membrane, raster
from srm_triton.plots.benchmark import roofline
from srm_triton.plots.classes import confusion_matrix
from srm_triton.plots.denoising import plot_denoising
from srm_triton.plots.gradients import gradient_health
from srm_triton.plots.run import firing_rates, plot_learning, plot_run
from srm_triton.plots.sample import plot_sample

__all__ = [
    "confusion_matrix",
    "firing_rates",
    "gradient_health",
    "membrane",
    "plot_denoising",
    "plot_learning",
    "plot_run",
    "plot_sample",
    "raster",
    "roofline",
]
