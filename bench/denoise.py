"""Total-variation denoising of scikit-image's `camera` against scikit-image."""

import pytest
import torch
from skimage import data
from skimage.restoration import denoise_tv_bregman
from torch import Tensor

from bench.harness import DEVICE, Contender, UnavailableError
from srm_triton.denoise import Fidelity, denoise_tv, tv_objective

SHAPE = {"height": 512, "width": 512}
# Gaussian noise of 0.1, and 10 % salt and pepper: the noise that each fidelity is for
CASES: dict[str, tuple[Fidelity, float]] = {"Gaussian noise, l2": ("l2", 0.15), "salt and pepper, l1": ("l1", 1.0)}
ABOUT = {
    "scikit-image": "`denoise_tv_bregman` at its default tolerance, anisotropic: it minimises the same sum for l2, but "
    "for the edges of the image; it knows no l1.",
    "as good as scikit-image": "`denoise_tv`, stopped as soon as its objective is at most 0.1 % above scikit-image's.",
    "seed": "The seed text's iteration, 20 steps.",
}


def noisy_camera(name: str, height: int, width: int) -> Tensor:
    clean = torch.from_numpy(data.camera()[:height, :width] / 255).float().to(DEVICE)
    if name.startswith("Gaussian"):
        return clean + 0.1 * torch.randn(clean.shape, device=DEVICE)
    drawn = torch.rand(clean.shape, device=DEVICE)
    return torch.where(drawn < 0.05, 0.0, torch.where(drawn > 0.95, 1.0, clean))


# An element is a pixel.
@pytest.mark.parametrize("name", CASES)
def test_denoise(measure, shrink, name):
    shape = shrink(SHAPE)
    image = noisy_camera(name, **shape)
    fidelity, weight = CASES[name]

    def objective(result: Tensor) -> float:
        return float(tv_objective(result[None], image[None], weight, fidelity))

    def scikit_image() -> object:
        if DEVICE.type != "cpu":
            raise UnavailableError("runs on the CPU")
        return lambda x: torch.from_numpy(denoise_tv_bregman(x.numpy(), weight=2 / weight, isotropic=False))

    def as_good() -> object:
        bound = 1.001 * objective(scikit_image()(image))
        path = denoise_tv(image[None], weight, fidelity, tolerance=0, max_iterations=30, trace=True).trace.objective
        steps = int((path <= bound).nonzero()[0]) + 1
        return lambda x: denoise_tv(x, weight, fidelity, tolerance=0, max_iterations=steps)

    best = objective(denoise_tv(image, weight, fidelity, tolerance=1e-4))
    runs = {
        "denoise_tv": lambda: lambda x: denoise_tv(x, weight, fidelity),
        "as good as scikit-image": as_good,
        "scikit-image": scikit_image,
        "seed": lambda: lambda x: denoise_tv(x, weight, fidelity, method="seed", max_iterations=20),
    }
    contenders = [Contender(n, build, comparable=False, about=ABOUT.get(n, "")) for n, build in runs.items()]
    measure(name, shape, contenders, [image], backward=False, excess=lambda result: objective(result) / best - 1)
