"""Data sets of images: what is read, and what is said about files that hold something else."""

import gzip
import io
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from srm_triton.data import (
    DataError,
    LabelledImages,
    hold_out,
    load_digits,
    load_fashion_mnist,
    load_idx,
    load_image_folder,
    load_images,
    load_npz,
    read_idx,
    stratified_split,
)
from srm_triton.training import Data, Recipe, load_data, load_recipe

NAMES = {
    "train-images-idx3-ubyte": 0x803,
    "train-labels-idx1-ubyte": 0x801,
    "t10k-images-idx3-ubyte": 0x803,
    "t10k-labels-idx1-ubyte": 0x801,
}


def idx(magic: int, shape: tuple[int, ...], values: bytes) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + values


def pixels(count: int) -> bytes:
    return bytes(97 * number % 256 for number in range(count))


def write_fashion_mnist(folder: Path, samples: int = 12) -> None:
    """A small data set in the real format, half of it compressed."""
    for number, (name, magic) in enumerate(NAMES.items()):
        if magic == 0x803:
            content = idx(magic, (samples, 28, 28), pixels(samples * 784))
        else:
            content = idx(magic, (samples,), bytes(label % 10 for label in range(samples)))
        if number % 2:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def write_set(folder: Path, names: list[str], labels: list[int], height: int = 5, width: int = 4) -> None:
    """Names of images and labels for training, then for testing; the same labels in both."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(labels)
    for images_name, labels_name in (names[:2], names[2:]):
        (folder / images_name).write_bytes(idx(0x803, (count, height, width), pixels(count * height * width)))
        (folder / labels_name).write_bytes(idx(0x801, (count,), bytes(labels)))


def test_digits():
    data = load_digits()
    assert data.train_images.shape == (1437, 8, 8) and data.test_images.shape == (360, 8, 8)
    assert data.train_images.min() == 0 and data.train_images.max() == 1
    for labels in (data.train_labels, data.test_labels):
        assert (labels.bincount() / len(labels) - 0.1).abs().max() < 0.005
    assert torch.equal(load_digits().test_labels, data.test_labels)


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
            read_idx(tmp_path / name, 1)


def test_damaged_archives(tmp_path):
    whole = gzip.compress(idx(0x801, (4,), b"abcd"))
    flipped = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]
    garbled = whole[:10] + b"\xff" * 20
    for content in (whole[:-3], flipped, garbled, b"no archive at all"):
        (tmp_path / "labels.gz").write_bytes(content)
        with pytest.raises(DataError, match="expected a complete gzip archive, found a damaged one"):
            read_idx(tmp_path / "labels.gz", 1)


def test_images_and_labels_that_do_not_belong_together(tmp_path):
    write_fashion_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(0x801, (11,), bytes(11))))
    with pytest.raises(DataError, match=r"expected 12 labels, as many as there are images .* found 11"):
        load_fashion_mnist(tmp_path)
    labels.write_bytes(gzip.compress(idx(0x801, (12,), bytes([10] * 12))))
    with pytest.raises(DataError, match="expected labels from 0 to 9, found 10"):
        load_fashion_mnist(tmp_path)
    labels.write_bytes(gzip.compress(idx(0x801, (12,), bytes(label % 10 for label in range(12)))))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(0x803, (12, 8, 9), bytes(864)))
    with pytest.raises(
        DataError, match=r"t10k-images-idx3-ubyte: expected .* \[28, 28\] as in .*train.*found \[8, 9\]"
    ):
        load_fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (".", [name.replace("-idx", ".idx") for name in NAMES]),
        ("raw", list(NAMES)),
        ("FashionMNIST/raw", list(NAMES)),
        (".", [f"emnist-digits-{name.replace('t10k', 'test')}" for name in NAMES]),
    ],
)
def test_where_idx_files_lie_and_what_they_are_called(place, names, tmp_path):
    write_set(tmp_path / place, names, [1, 0, 2], height=5, width=4)
    for data in (load_idx(tmp_path), load_images(tmp_path)):
        assert data.train_images.shape == (3, 5, 4) and data.train_images.dtype == torch.float32
        assert data.train_images.flatten().tolist() == pytest.approx([byte / 255 for byte in pixels(60)], abs=1e-7)
        assert data.test_labels.tolist() == [1, 0, 2] and data.classes == 3


def test_fashion_mnist_beside_mnist_as_torchvision_keeps_them(tmp_path):
    write_set(tmp_path / "FashionMNIST" / "raw", list(NAMES), list(range(10)))
    write_set(tmp_path / "MNIST" / "raw", list(NAMES), list(range(10)), height=3)
    assert load_fashion_mnist(tmp_path).train_images.shape == (10, 5, 4)


def test_letters_count_from_1_and_share_a_folder(tmp_path):
    for name, labels in (("letters", range(1, 27)), ("digits", range(10))):
        names = [f"emnist-{name}-{part.replace('t10k', 'test')}" for part in NAMES]
        write_set(tmp_path, names, list(labels))
    with pytest.raises(DataError, match="expected one data set, found emnist-digits, emnist-letters; choose one"):
        load_idx(tmp_path)
    data = load_idx(tmp_path, name="emnist-letters")
    assert data.classes == 26 and data.train_labels.tolist() == data.test_labels.tolist() == list(range(26))
    assert load_idx(tmp_path, name="emnist-digits").train_labels.tolist() == list(range(10))
    with pytest.raises(FileNotFoundError, match=r"no emnist-x-train-images-idx3-ubyte, .*emnist-x-test-labels-idx1"):
        load_idx(tmp_path, name="emnist-x")
    test_labels = tmp_path / "emnist-letters-test-labels-idx1-ubyte"
    test_labels.write_bytes(idx(0x801, (26,), bytes(range(26))))
    with pytest.raises(DataError, match="test-labels-idx1-ubyte: expected labels from 1 to 26, found 0"):
        load_idx(tmp_path, name="emnist-letters")


@pytest.fixture
def relatives(tmp_path: Path) -> Path:
    """Where torchvision keeps them; each has a height of its own."""
    emnist = [name.replace("t10k", "test") for name in NAMES]
    write_set(tmp_path / "EMNIST" / "raw", [f"emnist-letters-{name}" for name in emnist], list(range(1, 27)), height=3)
    write_set(tmp_path / "EMNIST" / "raw", [f"emnist-digits-{name}" for name in emnist], list(range(10)), height=4)
    for height, name in enumerate(("FashionMNIST", "KMNIST", "MNIST"), 5):
        write_set(tmp_path / name / "raw", [name.replace("-idx", ".idx") for name in NAMES], list(range(10)), height)
    return tmp_path


def test_relatives_of_mnist_side_by_side(relatives):
    for load in (load_idx, load_images):
        with pytest.raises(DataError, match="found emnist-digits, emnist-letters, FashionMNIST, KMNIST, MNIST; choose"):
            load(relatives)
    assert load_idx(relatives, name="KMNIST").train_images.shape == (10, 6, 4)
    for source, classes, height in (("emnist-letters", 26, 3), ("EMNIST/emnist-digits", 10, 4), ("KMNIST/raw", 10, 6)):
        data = load_images(relatives / source)
        assert data.classes == classes and data.train_labels.tolist() == list(range(classes))
        assert data.train_images.shape[1:] == (height, 4)
    for name, height in (("fashion-mnist", 5), ("kmnist", 6), ("mnist", 7), ("emnist-letters", 3)):
        assert load_data(Recipe(data=Data(name, str(relatives)))).shape == (1, height, 4)
    for folder in (relatives / "MNIST", relatives / "MNIST" / "raw"):
        assert load_data(Recipe(data=Data("mnist", str(folder)))).shape == (1, 7, 4)
    with pytest.raises(FileNotFoundError, match="FashionMNIST: no train-images-idx3-ubyte"):
        load_idx(relatives / "KMNIST" / "FashionMNIST")
    with pytest.raises(FileNotFoundError, match=r"emnist-kanji: expected a file \.npz or a folder, found nothing"):
        load_images(relatives / "emnist-kanji")


def test_mnist_lies_where_its_recipe_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="mnist: no train-images-idx3-ubyte"):
        load_data(load_recipe("mnist"))
    write_set(tmp_path / "mnist", list(NAMES), list(range(10)))
    assert load_data(load_recipe("mnist")).shape == (1, 5, 4)


@pytest.mark.parametrize(("magic", "letter"), [(0x801, "B"), (0x901, "b"), (0xB01, "h"), (0xC01, "i")])
def test_labels_of_every_integer_type(magic, letter, tmp_path):
    write_set(tmp_path, list(NAMES), [0, 1, 2])
    for name in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(idx(magic, (3,), struct.pack(f">3{letter}", 2, 0, 1)))
    data = load_idx(tmp_path)
    assert data.train_labels.dtype == torch.int64 and data.train_labels.tolist() == [2, 0, 1]
    if letter == "h":
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(magic, (3,), struct.pack(">3h", 0, 258, 1)))
        with pytest.raises(DataError, match="t10k-labels-idx1-ubyte: expected labels from 0 to 2, found 258"):
            load_idx(tmp_path)
    if letter == "b":
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(magic, (3,), struct.pack(">3b", 0, -1, 1)))
        with pytest.raises(DataError, match="train-labels-idx1-ubyte: expected labels from 0 to 1, found -1"):
            load_idx(tmp_path)


def test_empty_classes_and_pixels_that_are_no_bytes(tmp_path):
    write_set(tmp_path, list(NAMES), [0, 1, 4, 5])
    with pytest.raises(DataError, match=r"expected training samples of each of 6 classes, .* with the label 2, 3$"):
        load_idx(tmp_path)
    with pytest.raises(DataError, match=r"each of 20 classes, .* the label 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, …"):
        load_idx(tmp_path, classes=20)
    with pytest.raises(DataError, match="expected labels from 0 to 4, found 5"):
        load_idx(tmp_path, classes=5)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(0xB03, (4, 5, 4), bytes(160)))
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte: expected pixels of unsigned bytes, found torch.int16"
    ):
        load_idx(tmp_path)


def arrays(names: str = "keras", **changes):
    """Two classes of images of 3 by 5 pixels, as arrays by name."""
    images = np.arange(90, dtype=np.uint8).reshape(6, 3, 5)
    labels = np.array([0, 1, 1, 0, 1, 0], np.uint8)
    content = {"x_train": images, "y_train": labels, "x_test": images[:2], "y_test": labels[:2]} | changes
    if names == "medmnist":
        kinds = {"x": "images", "y": "labels"}
        content = {
            f"{part}_{kinds[kind]}": value
            for (kind, part), value in ((key.split("_"), value) for key, value in content.items())
        }
        content["val_images"] = images[:1]
    return content


@pytest.mark.parametrize("names", ["keras", "medmnist"])
def test_numpy_archives(names, tmp_path):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, **arrays(names))
    for data in (load_npz(path), load_images(str(path))):
        assert data.train_images.dtype == torch.float32 and data.train_images.shape == (6, 3, 5)
        assert data.train_images[1, 2, 3].item() == pytest.approx(28 / 255, abs=1e-7)
        assert data.train_labels.tolist() == [0, 1, 1, 0, 1, 0] and data.test_labels.tolist() == [0, 1]
        assert data.classes == 2


@pytest.mark.parametrize("kind", ["u1", "i1", "<i2", ">i2", "<u2", "<u4", ">i4", "<i8", ">u8"])
def test_labels_of_every_type_in_numpy_archives(kind, tmp_path):
    labels = np.array([3, 1, 2, 3, 1, 2]).astype(kind)
    np.savez(tmp_path / "a.npz", **arrays(y_train=labels[:, None], y_test=labels[:2]))
    data = load_npz(tmp_path / "a.npz")
    assert (
        data.classes == 3 and data.train_labels.tolist() == [2, 0, 1, 2, 0, 1] and data.test_labels.tolist() == [2, 0]
    )


def test_channels_and_types_of_pixels_in_numpy_archives(tmp_path):
    path = tmp_path / "a.npz"
    last = np.arange(6 * 4 * 5 * 3, dtype=np.uint16).reshape(6, 4, 5, 3) * 100
    for images in (last, last.transpose(0, 3, 1, 2), last.astype(">u2")):
        np.savez(path, **arrays(x_train=images, x_test=images[:2]))
        data = load_npz(path)
        assert data.train_images.shape == (6, 3, 4, 5)
        assert data.train_images[5, 2, 1, 4].item() == pytest.approx(int(last[5, 1, 4, 2]) / 65535, abs=1e-7)
    values = np.linspace(-3, 300, 120).reshape(6, 4, 5, 1)
    np.savez(path, **arrays(x_train=values, x_test=values[:2]))
    assert torch.equal(load_npz(path).train_images, torch.tensor(values[..., 0]).float())


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def test_files_that_are_no_numpy_archives(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    place = whole.index(np.arange(90, dtype=np.uint8).tobytes())
    single = io.BytesIO()
    np.save(single, np.arange(3))
    contents = {
        "cut": whole[: len(whole) // 2],
        "flipped": damaged(whole, place),
        "method": damaged(whole, whole.index(b"PK\x01\x02") + 10),
        "text": b"x_train",
        "empty": b"",
        "single": single.getvalue(),
        "pickle": b"\x80\x04N.",
    }
    for content in contents.values():
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz: expected a NumPy archive without pickles, found another file"):
            load_npz(path)
    with zipfile.ZipFile(path, "w") as file:
        for name in arrays():
            file.writestr(f"{name}.npy", b"no array")
    with pytest.raises(DataError, match=r"x_train: expected images of uint8, .* found \|S8"):
        load_npz(path)
    np.savez(path, **arrays(y_train=np.array([0, 1, 1, 0, 1, None])))
    with pytest.raises(DataError, match="without pickles"):
        load_npz(path)
    with pytest.raises(FileNotFoundError):
        load_npz(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.zeros(6)}, "y_train: expected labels of an integer type, found float64"),
        ({"y_train": np.zeros((6, 2), int)}, r"y_train: expected labels of the shape \[samples\], found \[6, 2\]"),
        (
            {"y_train": np.zeros(5, int)},
            "y_train: expected 6 labels, as many as there are images in .*x_train, found 5",
        ),
        ({"y_train": np.array([0, 1, 1, 0, 1, 2**63], np.uint64)}, "y_train: expected labels below 2.*63"),
        ({"y_train": np.array([0, 1, 1, 0, 1, 2**40])}, r"none with the label 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"),
        ({"y_test": np.array([0, -7])}, "y_test: expected labels from 0 to 1, found -7"),
        (
            {"x_train": np.zeros((6, 3, 5), int)},
            "x_train: expected images of uint8, uint16 or floating point, found int64",
        ),
        ({"x_train": np.full((6, 3, 5), np.nan)}, "x_train: expected finite values, found NaN"),
        (
            {"x_train": np.zeros((6, 15), np.uint8)},
            r"x_train: expected \[samples, height, width\] or .* found \[6, 15\]",
        ),
        ({"x_train": np.zeros((6, 4, 5, 4), np.uint8)}, r"1 or 3 channels, found \[6, 4, 5, 4\]"),
        ({"x_test": np.zeros((2, 3, 4), np.uint8)}, r"x_test: expected images of the shape \[3, 5\] as in .*\[3, 4\]"),
        ({"x_test": np.zeros((0, 3, 5), np.uint8), "y_test": np.zeros(0, int)}, r"x_test: .* found \[0, 3, 5\]"),
    ],
)
def test_arrays_of_other_content(change, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(**change))
    with pytest.raises(DataError, match=message):
        load_npz(tmp_path / "a.npz")


def test_missing_arrays(tmp_path):
    content = arrays()
    del content["y_test"]
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=r"expected the arrays x_train, .*test_labels, found x_train, y_train, x_test"):
        load_npz(tmp_path / "a.npz")


def png(levels: list[list], depth: int = 8) -> bytes:
    """A PNG file written by hand: rows of numbers, of tuples (red, green, blue) or of (grey, opacity)."""
    first = levels[0][0]
    colour_type = 0 if isinstance(first, int) else {3: 2, 2: 4}[len(first)]
    flat = [[value for pixel in row for value in ((pixel,) if isinstance(pixel, int) else pixel)] for row in levels]
    rows = b"".join(b"\0" + struct.pack(f">{len(row)}{'B' if depth == 8 else 'H'}", *row) for row in flat)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", len(levels[0]), len(levels), depth, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def write_image(path: Path, level: int = 0, content: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or png([[level, 0, 1], [2, 3, 4]]))


def test_image_folder_with_both_parts(tmp_path):
    for name, level in (("train/9/a.png", 10), ("train/9/b.png", 20), ("train/10/a.PNG", 30), ("test/10/a.png", 40)):
        write_image(tmp_path / name, level)
    write_image(tmp_path / "test/9/a.png", content=png([[50, 0, 1], [2, 3, 4]]))
    (tmp_path / "train/9/notes.txt").write_text("left alone")
    (tmp_path / "train/.cache").mkdir()
    for data in (load_image_folder(tmp_path), load_images(tmp_path)):
        assert data.class_names == ("9", "10") and data.classes == 2  # in the order of numbers
        assert data.train_images.shape == (3, 2, 3)
        assert (data.train_images[:, 0, 0] * 255).tolist() == pytest.approx([10, 20, 30])
        assert data.train_labels.tolist() == [0, 0, 1]
        assert (data.test_images[:, 0, 0] * 255).tolist() == pytest.approx([50, 40])
        assert data.test_labels.tolist() == [0, 1]


def test_coloured_and_grey_images(tmp_path):
    write_image(tmp_path / "train/a/1.png", content=png([[(1, 2, 3), (4, 5, 6)]]))
    write_image(tmp_path / "train/b/1.png", content=png([[257 * 7, 257 * 8]], depth=16))
    write_image(tmp_path / "test/a/1.png", content=png([[(9, 255), (10, 255)]]))  # grey and opaque
    write_image(tmp_path / "test/b/1.png", content=png([[0, 255]]))
    data = load_image_folder(tmp_path)
    assert (data.train_images * 255).round().long().tolist() == [[[[1, 4]], [[2, 5]], [[3, 6]]], [[[7, 8]]] * 3]
    assert data.train_images[1, 0, 0, 0].item() == pytest.approx(7 / 255, rel=1e-6)
    assert (data.test_images * 255).round().long().tolist() == [[[[9, 10]]] * 3, [[[0, 255]]] * 3]


def test_image_folder_that_is_split_here(tmp_path):
    for name, count in (("cat", 20), ("dog", 10)):
        for number in range(count):
            write_image(tmp_path / name / f"{number}.png", number)
    data = load_image_folder(tmp_path, test_fraction=0.3, seed=4)
    assert data.class_names == ("cat", "dog")
    assert data.train_labels.bincount().tolist() == [14, 7] and data.test_labels.bincount().tolist() == [6, 3]
    seen = Counter(
        (label, round(level * 255))
        for images, labels in (data[:2], data[2:4])
        for label, level in zip(labels.tolist(), images[:, 0, 0].tolist(), strict=True)
    )
    assert seen == Counter([(0, number) for number in range(20)] + [(1, number) for number in range(10)])
    again, other = (load_image_folder(tmp_path, test_fraction=0.3, seed=seed) for seed in (4, 5))
    assert torch.equal(again.test_images, data.test_images) and not torch.equal(other.test_images, data.test_images)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found a damaged or foreign file"),
        (b"hello", "found a damaged or foreign file"),
        (png([[9] * 300] * 300)[:-60], "found a damaged or foreign file"),
        (damaged(png([[9, 0, 1], [2, 3, 4]]), 45), "found a damaged or foreign file"),
        (png([[1, 2]]), r"2\.png: expected 2 by 3 pixels as in .*1\.png, found 1 by 2"),
        (png([[(0, 255), (9, 0), (1, 255)]] * 2), "expected an opaque image, found transparent pixels"),
    ],
    ids=["empty", "text", "cut", "flipped", "size", "transparent"],
)
def test_damaged_images(content, message, tmp_path):
    write_image(tmp_path / "a/1.png")
    (tmp_path / "a/2.png").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_image_folder(tmp_path, test_fraction=0.5)


def test_image_folders_of_other_content(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="expected a folder, found none"):
        load_image_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"expected a file \.npz or a folder, found nothing"):
        load_images(tmp_path / "none")
    with pytest.raises(DataError, match="expected a folder for each class, found none"):
        load_image_folder(tmp_path)
    write_image(tmp_path / "a/1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b: expected at least one image of the class, found none"):
        load_image_folder(tmp_path)
    write_image(tmp_path / "b/1.png")
    for fraction in (0.1, 0.5, 0.9):
        with pytest.raises(
            ValueError, match=f"test_fraction must leave each class and part .*, got {fraction} of 2 images"
        ):
            load_image_folder(tmp_path, test_fraction=fraction)
    with pytest.raises(ValueError, match="seed must be"):
        load_image_folder(tmp_path, seed=-1)
    for fraction, message in ((0, "test_fraction must be finite and > 0, got 0"), (1.0, "must be below 1, got 1.0")):
        with pytest.raises(ValueError, match=message):
            load_image_folder(tmp_path, test_fraction=fraction)
    write_image(tmp_path / "train/a/1.png")
    with pytest.raises(DataError, match="expected both folders train and test, or neither, found one"):
        load_image_folder(tmp_path)
    write_image(tmp_path / "test/b/1.png")
    with pytest.raises(DataError, match="expected the same classes in train and test, found a in one only"):
        load_image_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"PIL is missing; install it by: pip install 'srm-triton\[demo\]'"):
        load_image_folder(tmp_path)


def test_shares_of_a_split():
    """By hand: 7 of 12 are 3.5 of 6, 2.92 of 5, 0.58 of 1; one more for 5 and, as the single one must stay, for 6."""
    labels = torch.tensor([9] + [5] * 6 + [0] * 5, dtype=torch.uint8)
    kept, chosen = stratified_split(labels, 7, seed=3)
    assert Counter(labels[chosen].tolist()) == {5: 4, 0: 3}
    assert sorted(kept.tolist() + chosen.tolist()) == list(range(12))
    assert kept.tolist() == sorted(kept.tolist()) and chosen.tolist() == sorted(chosen.tolist())
    many = torch.arange(1000, dtype=torch.int16) % 10
    kept, chosen = stratified_split(many, 305)
    assert sorted(Counter(many[chosen].tolist()).values()) == [30] * 5 + [31] * 5
    assert torch.equal(stratified_split(many, 305)[1], chosen)
    assert not torch.equal(stratified_split(many, 305, seed=1)[1], chosen)


def test_hold_out_is_in_the_place_of_the_test_samples():
    images = torch.arange(20.0).view(20, 1, 1)
    labels = torch.arange(20) % 2
    data = LabelledImages(images, labels, -images, labels, 2, ("even", "odd"))
    selection = hold_out(data, 6, seed=1)
    assert selection.classes == 2 and selection.class_names == ("even", "odd")
    assert selection.test_labels.bincount().tolist() == [3, 3]
    for part, count in ((selection[:2], 14), (selection[2:4], 6)):
        assert torch.equal(part[0].flatten() % 2, part[1].float()) and len(part[1]) == count
    assert sorted([*selection.train_images.flatten().tolist(), *selection.test_images.flatten().tolist()]) == list(
        range(20)
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.tensor([0.0, 1.0]), 1), TypeError, "labels must be a tensor of integers, got torch.float32"),
        (([0, 1], 1), TypeError, "labels must be a tensor of integers, got list"),
        (
            (torch.zeros(2, 2, dtype=torch.int64), 1),
            ValueError,
            r"labels must have the shape \[samples\], got \[2, 2\]",
        ),
        ((torch.zeros(4, dtype=torch.int64), 0), ValueError, "samples must be finite and ≥ 1, got 0"),
        ((torch.zeros(4, dtype=torch.int64), 4), ValueError, "samples must be below 4, the number of labels, got 4"),
        ((torch.zeros(4, dtype=torch.int64), 1.5), TypeError, "samples must be an int, got 1.5"),
        (
            (torch.tensor([0, 0, 1, 1, 2, 2]), 5),
            ValueError,
            "samples must leave each of 3 classes a sample, got 5 of 6",
        ),
    ],
)
def test_splits_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        stratified_split(*arguments)


def test_importing_needs_no_optional_package():
    code = """
import sys
sys.modules.update(dict.fromkeys(("numpy", "PIL", "h5py", "sklearn")))
import srm_triton, srm_triton.data
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("classes", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), ("3", TypeError), (3.0, TypeError)]
)
def test_numbers_of_classes_that_cannot_be(classes, error, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    with pytest.raises(error, match="classes must be"):
        load_npz(tmp_path / "data.npz", classes=classes)
