"""Image files as tensors. They need Pillow."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from srm_triton.files import write_atomically

_MODES = {"1": "L", "P": "RGBA", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}
_OPAQUE = {"L": "LA", "RGB": "RGBA"}  # and what a colour that stands for transparency makes of them


class ImageFile(NamedTuple):
    """What a file holds."""

    pixels: Tensor
    """[channels, height, width], uint8 or uint16; 1 channel (grey) or 3 (red, green, blue)."""
    opacity: Tensor | None
    """[height, width], uint8; None where there is none."""


def read_image(path: Path) -> ImageFile:
    """Reads an image file of any kind that Pillow knows, the right way up, in 8 or 16 bits.

    Raises:
        ModuleNotFoundError: without Pillow.
        OSError: if there is no such file, or it is no image.
        ValueError: if the file is damaged or too large for Pillow, or its values are no integers of 16 bits.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            mode = _MODES.get(image.mode, image.mode)
            if "transparency" in image.info:
                mode = _OPAQUE.get(mode, mode)
            levels = np.array(image if mode[0] in "IF" else image.convert(mode))
    except (SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for broken and for huge files
        raise ValueError(f"{path}: {error}") from error
    if levels.dtype != np.uint8:
        if levels.dtype.kind == "f" or levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"{path}: must hold integers from 0 to 65535, got {levels.dtype} of mode {mode}")
        levels = levels.astype(np.uint16)
    values = torch.from_numpy(levels)
    if values.dim() == 2:
        return ImageFile(values[None], None)
    *channels, last = values.unbind(2)
    if len(channels) in (1, 3):  # grey or colours, and opacity
        return ImageFile(torch.stack(channels), last)
    return ImageFile(torch.stack((*channels, last)), None)


def write_png(path: Path, pixels: Tensor, like: ImageFile) -> None:
    """Writes numbers between 0 and 1 (others are cut off) in as many bits as an image has, with its opacity.

    Args:
        path: of the file.
        pixels: floating point, in the shape of `like.pixels`.
        like: the image.

    Raises:
        ModuleNotFoundError: without Pillow.
        OSError: if the file cannot be written.
    """
    from PIL import Image

    wide = like.pixels.dtype == torch.uint16
    levels = (pixels.cpu().double().clamp(0, 1) * (65535 if wide else 255)).round().to(torch.int32)
    planes = [*levels, *([] if like.opacity is None else [like.opacity])]
    values = torch.stack(planes, 2).squeeze(2).numpy().astype("uint16" if wide else "uint8")
    write_atomically(path, lambda temporary: Image.fromarray(values).save(temporary, format="PNG"))
