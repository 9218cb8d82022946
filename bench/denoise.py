"""Total-variation denoising of scikit-image's `camera` against scikit-image."""

import torch
from skimage import data
from skimage.restoration import denoise_tv_bregman
from torch import Tensor

from bench.contenders import on_cpu
from bench.harness import DEVICE, Contender, Function, over
from srm_triton.images.denoise import denoise_tv, tv_objective
from srm_triton.ops.shrink import Fidelity

SHAPE = {"height": 512, "width": 512}
# Gaussian noise of 0.1, and 10 % salt and pepper: the noise that each fidelity is for
CASES: dict[str, tuple[Fidelity, float]] = {"Gaussian noise, l2": ("l2", 0.15), "salt and pepper, l1": ("l1", 1.0)}


def noisy_camera(name: str, height: int, width: int) -> Tensor:
    clean = torch.from_numpy(data.camera()[:height, :width] / 255).float().to(DEVICE)
    if name.startswith("Gaussian"):
        return clean + 0.1 * torch.randn(clean.shape, device=DEVICE)
    drawn = torch.rand(clean.shape, device=DEVICE)
    return torch.where(drawn < 0.05, 0.0, torch.where(drawn > 0.95, 1.0, clean))


# An element is a pixel.
@over("name", CASES)
def test_denoise(measure, shrink, name):
    shape = shrink(SHAPE)
    image = noisy_camera(name, **shape)
    fidelity, weight = CASES[name]

    def objective(result: Tensor) -> float:
        return float(tv_objective(result[None], image[None], weight, fidelity))

    def ours() -> Function:
        return lambda x: denoise_tv(x, weight, fidelity)

    def as_good() -> Function:
        """`denoise_tv`, stopped as soon as its objective is at most 0.1 % above scikit-image's."""
        bound = 1.001 * objective(scikit_image()(image))
        path = denoise_tv(image[None], weight, fidelity, tolerance=0, max_iterations=30, trace=True).trace.objective
        steps = int((path <= bound).nonzero()[0]) + 1
        return lambda x: denoise_tv(x, weight, fidelity, tolerance=0, max_iterations=steps)

    def scikit_image() -> Function:
        """`denoise_tv_bregman`, anisotropic, default tolerance: for l2 the same sum; no l1."""
        return on_cpu(lambda x: denoise_tv_bregman(x, weight=2 / weight, isotropic=False))

    def seed() -> Function:
        """The seed text's iteration, 20 steps."""
        return lambda x: denoise_tv(x, weight, fidelity, method="seed", max_iterations=20)

    best = objective(denoise_tv(image, weight, fidelity, tolerance=1e-4))
    runs = {"denoise_tv": ours, "as good as scikit-image": as_good, "scikit-image": scikit_image, "seed": seed}
    contenders = [Contender(name, build, comparable=False) for name, build in runs.items()]
    measure(name, shape, contenders, [image], backward=False, excess=lambda result: objective(result) / best - 1)
