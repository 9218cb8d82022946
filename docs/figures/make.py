"""Draws the figures of docs/images.md: `python docs/figures/make.py`. Needs the extras `test` and `demo`."""

from pathlib import Path

import torch
from skimage import data

from srm_triton.images import denoise_tv
from srm_triton.ops.shrink import Fidelity
from srm_triton.plots import plot_denoising


def main() -> None:
    """Denoises scikit-image's `camera`, of which it says that it is in the public domain."""
    clean = torch.from_numpy(data.camera() / 255).float()[None]
    generator = torch.Generator().manual_seed(0)
    gaussian = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    drawn = torch.rand(clean.shape, generator=generator)
    salt_and_pepper = torch.where(drawn < 0.05, 0.0, torch.where(drawn > 0.95, 1.0, clean))
    cases: list[tuple[Fidelity, torch.Tensor, float]] = [("l2", gaussian, 0.15), ("l1", salt_and_pepper, 1.0)]
    for fidelity, noisy, weight in cases:
        result = denoise_tv(noisy, weight, fidelity, reference=clean, trace=True)
        plot_denoising(noisy, result, Path(__file__).with_name(f"denoise_{fidelity}.png"))


if __name__ == "__main__":
    main()
