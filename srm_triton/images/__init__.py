"""Total-variation denoising of images and volumes, by split Bregman, and image files."""

from srm_triton.images.denoise import Denoised, DenoisingTrace, denoise_tv, tv_objective
from srm_triton.images.split_bregman import DenoisingState

__all__ = ["Denoised", "DenoisingState", "DenoisingTrace", "denoise_tv", "tv_objective"]
