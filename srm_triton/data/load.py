"""Own images, whatever kind of file they are in."""

from pathlib import Path

from srm_triton.data.idx import load_idx, sets_of_idx
from srm_triton.data.image_folder import load_image_folder
from srm_triton.data.labelled_images import LabelledImages
from srm_triton.data.npz import load_npz


def load_images(source: str | Path) -> LabelledImages:
    """Loads images from a NumPy archive, a folder of IDX files or a folder of images, each with its usual settings.

    Args:
        source: a file ``.npz``, for `load_npz`; a folder with IDX files, for `load_idx`, and behind it the name of one
            of several data sets, such as ``"data/emnist-letters"``; or another folder, for `load_image_folder`.

    Raises:
        FileNotFoundError: if there is nothing.
        DataError: as the loader.
        ModuleNotFoundError: as the loader.
    """
    source = Path(source)
    if source.is_file():
        return load_npz(source)
    if not source.is_dir():
        if source.name in sets_of_idx(source.parent):
            return load_idx(source.parent, name=source.name)
        raise FileNotFoundError(f"{source}: expected a file .npz or a folder, found nothing")
    return load_idx(source) if sets_of_idx(source) else load_image_folder(source)
