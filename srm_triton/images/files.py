"""Image files as tensors. They need Pillow."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from srm_triton.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image as Pillow

_MODES = {"1": "L", "P": "RGBA", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}
_OPAQUE = {"L": "LA", "RGB": "RGBA"}  # and what a colour that stands for transparency makes of them
_PROFILE_TAG = 34675
_QUALITY = 95  # of formats that lose some, in Pillow's units


@dataclass(frozen=True)
class ImageFile:
    """What a file, or one of its pages, holds."""

    pixels: Tensor
    """[channels, height, width], uint8, uint16, int32 or float32; 1 channel (grey) or 3 (red, green, blue)."""
    opacity: Tensor | None = None
    """[height, width], uint8; None where there is none."""
    profile: bytes | None = None
    """What its colours mean: an ICC profile."""

    @property
    def white(self) -> float:
        """The value of white: the largest of 8 or 16 bits; of others the largest magnitude there is, or 1 if less."""
        if self.pixels.dtype in (torch.uint8, torch.uint16):
            return torch.iinfo(self.pixels.dtype).max
        return max(1.0, float(self.pixels.double().abs().max()))

    @property
    def visible(self) -> Tensor | None:
        """Which pixels are not wholly transparent, bool [height, width]; None for all."""
        return None if self.opacity is None or bool(self.opacity.all()) else self.opacity > 0


def read_images(path: Path) -> list[ImageFile]:
    """Reads all pages of an image file of any kind that Pillow knows, the right way up.

    Raises:
        ModuleNotFoundError: without Pillow.
        OSError: if there is no such file, or it is no image.
        ValueError: if the file is damaged or too large for Pillow, or has 16 bits for each of several channels.
    """
    from PIL import Image, ImageCms, ImageSequence

    try:
        with Image.open(path) as file:
            return [_read_page(page) for page in ImageSequence.Iterator(file)]
    except (
        SyntaxError,
        TypeError,
        LookupError,
        ValueError,
        Image.DecompressionBombError,
        ImageCms.PyCMSError,
    ) as error:
        # what Pillow raises for broken and for huge files, and for profiles of other colours
        raise ValueError(f"{path}: {error}") from error


def read_image(path: Path) -> ImageFile:
    """Reads an image file of one page in 8 or 16 bits.

    Raises:
        ModuleNotFoundError: without Pillow.
        OSError: if there is no such file, or it is no image.
        ValueError: as `read_images`, and if the file has several pages, or its values are no integers of 16 bits.
    """
    image, *others = read_images(path)
    if others:
        raise ValueError(f"{path}: must hold one page, got {1 + len(others)}")
    if image.pixels.dtype not in (torch.uint8, torch.uint16):
        raise ValueError(f"{path}: must hold integers from 0 to 65535, got {image.pixels.dtype}")
    return image


def _read_page(page: "Pillow.Image") -> ImageFile:
    import numpy as np
    from PIL import ImageCms, ImageOps

    _refuse_what_is_lost(page)
    image = ImageOps.exif_transpose(page)
    # in the information of a page of a TIFF file stays what an earlier one had
    profile = page.tag_v2.get(_PROFILE_TAG) if hasattr(page, "tag_v2") else image.info.get("icc_profile")
    if profile and image.mode in ("CMYK", "LAB"):  # it says nothing of the colours that they become
        meaning = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, meaning, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None
        image, profile = converted, None
    mode = _MODES.get(image.mode, image.mode)
    if "transparency" in image.info:
        mode = _OPAQUE.get(mode, mode)
    levels = np.array(image if mode[0] in "IF" else image.convert(mode))
    if levels.dtype.kind in "iu" and levels.dtype != np.uint8:
        small = levels.min() >= 0 and levels.max() <= np.iinfo(np.uint16).max
        levels = levels.astype(np.uint16 if small else np.int32)
    values = torch.from_numpy(levels)
    if values.dim() == 2:
        return ImageFile(values[None], profile=profile)
    *channels, last = values.unbind(2)
    if len(channels) in (1, 3):  # grey or colours, and opacity
        return ImageFile(torch.stack(channels), last, profile)
    return ImageFile(torch.stack((*channels, last)), profile=profile)


def _refuse_what_is_lost(page: "Pillow.Image") -> None:
    """Pillow reads 8 of 16 bits where there are several channels, and says so only in how it unpacks them."""
    forms = [(tile[0], *(tile[3] if isinstance(tile[3], tuple) else tile[3:])) for tile in getattr(page, "tile", [])]
    deep = any(re.search(";16[BLN]", str(form)) or (form[0] == "ppm" and form[-1] > 255) for form in forms)
    if deep and page.mode[0] not in "IF":
        raise ValueError("must have 8 bits a channel, or 16 and one channel; of several Pillow reads 8 bits only")
    if page.mode[0] in "IF" and "transparency" in page.info:
        raise ValueError("must not have a grey level that stands for transparency beside more than 8 bits")


def write_images(path: Path, pages: list[Tensor], like: list[ImageFile]) -> None:
    """Writes pages of numbers, 1 for white, in the numbers, with the opacity and the profile that images have.

    Numbers of 8 and 16 bits are cut off at black and white. Under full transparency all stays.

    Args:
        path: of the file, whose ending says its format.
        pages: floating point, each in the shape of an image's pixels.
        like: the images.

    Raises:
        ModuleNotFoundError: without Pillow.
        OSError: if the file cannot be written.
        ValueError: if it cannot hold such images.
    """
    check_format(path, like)
    first, *rest = [_to_pillow(page, image) for page, image in zip(pages, like, strict=True)]
    for page, image in zip(rest, like[1:], strict=True):
        page.encoderinfo = {"icc_profile": image.profile or b""}  # else that of the first
    more: dict[str, Any] = {"save_all": True, "append_images": rest} if rest else {}
    write_atomically(path, lambda temporary: first.save(temporary, **_options(path, like[0]), **more))


def check_format(path: Path, images: list[ImageFile]) -> None:
    """Checks that a file of that name can hold such images.

    Raises:
        ModuleNotFoundError: without Pillow.
        ValueError: if it cannot.
    """
    from PIL import Image

    formats = Image.registered_extensions()
    if formats.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{path}: must end with .png, .jpg, .tif, .webp or another format that Pillow writes")
    if len(images) > 1 and formats[path.suffix.lower()] != "TIFF":
        raise ValueError(f"{path}: must end with .tif, the format for the {len(images)} pages that there are")
    for image in images:
        pixel = ImageFile(image.pixels[:, :1, :1], None if image.opacity is None else image.opacity[:1, :1])
        sample = _to_pillow(torch.zeros(pixel.pixels.shape), pixel)
        buffer, reason = io.BytesIO(), "it would lose bits"
        try:
            sample.save(buffer, **_options(path, pixel))
            held = sample.mode[0] not in "IF" or Image.open(buffer).mode == sample.mode
        except (OSError, KeyError, ValueError) as error:
            held, reason = False, str(error)
        if not held:
            raise ValueError(
                f"{path}: cannot hold an image of mode {sample.mode} ({reason}); .tif can, and .png up to 16 bits"
            )


def _options(path: Path, image: ImageFile) -> dict[str, Any]:
    from PIL import Image

    kind = Image.registered_extensions()[path.suffix.lower()]
    options: dict[str, Any] = {"format": kind, "icc_profile": image.profile}
    return options | ({"quality": _QUALITY} if kind in ("JPEG", "WEBP") else {})


def _to_pillow(page: Tensor, image: ImageFile) -> "Pillow.Image":
    from PIL import Image

    dtype = image.pixels.dtype
    values = page.cpu().double()
    if dtype in (torch.uint8, torch.uint16):
        values = values.clamp(0, 1)
    values = values * image.white
    if dtype != torch.float32:
        values = values.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    levels = values.to(dtype)
    if image.visible is not None:
        levels = levels.where(image.visible, image.pixels)
    planes = [*levels, *([] if image.opacity is None else [image.opacity])]
    return Image.fromarray(torch.stack(planes, 2).squeeze(2).numpy())
