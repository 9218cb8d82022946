"""Data sets: labelled images from several kinds of files, recordings of events, and their frames.

Images: `load_images` reads whatever it is given; `load_digits`, `load_fashion_mnist`, `load_idx`, `load_npz` and
`load_image_folder` one kind each; `hold_out` sets training samples aside.

Events: the data sets `NMNIST`, `DVSGesture` and `SHD`, with `Frames` as their transform; `Frames` also takes what data
sets of the package tonic give.
"""

from srm_triton.data.aedat import read_aedat
from srm_triton.data.digits import load_digits
from srm_triton.data.dvs_gesture import DVSGesture
from srm_triton.data.events import Events, UnitEvents
from srm_triton.data.files import DataError
from srm_triton.data.frames import Frames
from srm_triton.data.idx import FASHION_MNIST_FOLDER, load_fashion_mnist, load_idx, read_idx
from srm_triton.data.image_folder import load_image_folder
from srm_triton.data.labelled_images import LabelledImages
from srm_triton.data.load import load_images
from srm_triton.data.nmnist import NMNIST, read_nmnist
from srm_triton.data.npz import load_npz
from srm_triton.data.shd import SHD
from srm_triton.data.split import hold_out, stratified_split

__all__ = [
    "FASHION_MNIST_FOLDER",
    "NMNIST",
    "SHD",
    "DVSGesture",
    "DataError",
    "Events",
    "Frames",
    "LabelledImages",
    "UnitEvents",
    "hold_out",
    "load_digits",
    "load_fashion_mnist",
    "load_idx",
    "load_image_folder",
    "load_images",
    "load_npz",
    "read_aedat",
    "read_idx",
    "read_nmnist",
    "stratified_split",
]
