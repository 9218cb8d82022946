"""Data sets: what is read, and what is said about files that hold something else."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from srm_triton.data import DataError, load_digits, load_fashion_mnist, read_idx

NAMES = {
    "train-images-idx3-ubyte": 0x803,
    "train-labels-idx1-ubyte": 0x801,
    "t10k-images-idx3-ubyte": 0x803,
    "t10k-labels-idx1-ubyte": 0x801,
}


def idx(magic: int, shape: tuple[int, ...], values: bytes) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + values


def write_fashion_mnist(folder: Path, samples: int = 12) -> None:
    """A small data set in the real format, half of it compressed."""
    generator = torch.Generator().manual_seed(0)
    for number, (name, magic) in enumerate(NAMES.items()):
        shape = (samples, 28, 28) if magic == 0x803 else (samples,)
        values = torch.randint(0, 256 if magic == 0x803 else 10, shape, generator=generator, dtype=torch.uint8)
        content = idx(magic, shape, values.numpy().tobytes())
        if number % 2:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def test_digits():
    data = load_digits()
    assert data.train_images.shape == (1437, 8, 8) and data.test_images.shape == (360, 8, 8)
    assert data.train_images.min() == 0 and data.train_images.max() == 1
    for labels in (data.train_labels, data.test_labels):
        assert (labels.bincount() / len(labels) - 0.1).abs().max() < 0.005
    assert torch.equal(load_digits().test_labels, data.test_labels)
    assert all(tensor.is_meta for tensor in data.to(torch.device("meta"))[:4])


def test_fashion_mnist(tmp_path):
    write_fashion_mnist(tmp_path)
    data = load_fashion_mnist(tmp_path)
    raw = (tmp_path / "train-images-idx3-ubyte").read_bytes()[16:]
    expected = torch.tensor(list(raw), dtype=torch.float32).view(12, 28, 28) / 255
    assert torch.equal(data.train_images, expected)
    raw = gzip.decompress((tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert data.test_labels.tolist() == list(raw) and data.test_labels.dtype == torch.int64


def test_missing_files(tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no t10k-labels-idx1-ubyte \(plain or \.gz\); Debian's package"):
        load_fashion_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte, train-labels"):
        load_fashion_mnist(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08", "expected an IDX header of 8 bytes, found a file of 3 bytes"),
        (idx(0x803, (2,), b"ab"), "expected the IDX magic number 0x00000801, found 0x00000803"),
        (idx(0x801, (3,), b"ab"), r"expected 11 bytes for the shape \[3\], found 10 bytes"),
        (idx(0x801, (1,), b"ab"), r"expected 9 bytes for the shape \[1\], found 10 bytes"),
        (idx(0x801, (0,), b""), r"expected at least one sample and pixel, found the shape \[0\]"),
    ],
)
def test_files_that_are_no_idx(content, message, tmp_path):
    for name, data in (("labels", content), ("labels.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_idx(tmp_path / name, 0x801)


def test_damaged_archives(tmp_path):
    whole = gzip.compress(idx(0x801, (4,), b"abcd"))
    flipped = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]
    garbled = whole[:10] + b"\xff" * 20
    for content in (whole[:-3], flipped, garbled, b"no archive at all"):
        (tmp_path / "labels.gz").write_bytes(content)
        with pytest.raises(DataError, match="expected a complete gzip archive, found a damaged one"):
            read_idx(tmp_path / "labels.gz", 0x801)


def test_images_and_labels_that_do_not_belong_together(tmp_path):
    write_fashion_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(0x801, (11,), bytes(11))))
    with pytest.raises(DataError, match=r"expected 12 labels, as many as there are images .* found 11"):
        load_fashion_mnist(tmp_path)
    labels.write_bytes(gzip.compress(idx(0x801, (12,), bytes([10] * 12))))
    with pytest.raises(DataError, match="expected labels from 0 to 9, found 10"):
        load_fashion_mnist(tmp_path)
    labels.write_bytes(gzip.compress(idx(0x801, (12,), bytes(12))))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(0x803, (12, 8, 8), bytes(768)))
    with pytest.raises(DataError, match="expected images of 28 by 28 pixels, found 8 by 8"):
        load_fashion_mnist(tmp_path)
