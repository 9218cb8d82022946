"""Event files, written byte by byte, and their data sets; what is said about files that hold something else."""

import gzip
import pickle
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from srm_triton.data import NMNIST, SHD, DataError, DVSGesture, Events, Frames, read_aedat, read_nmnist


def rows(events: Events) -> list[tuple[int, ...]]:
    assert all(column.dtype == torch.int64 for column in events)
    return list(zip(*(column.tolist() for column in events), strict=True))


# N-MNIST

RECORDING = [(0, 0, 0, 0), (1, 33, 2, 1), (70_000, 5, 33, 0), (2**23 - 1, 7, 8, 1)]  # time, x, y, polarity


def nmnist(events: list[tuple[int, int, int, int]]) -> bytes:
    return b"".join((x << 32 | y << 24 | polarity << 23 | time).to_bytes(5, "big") for time, x, y, polarity in events)


def test_nmnist_recording(tmp_path):
    (tmp_path / "a.bin").write_bytes(nmnist(RECORDING))
    (tmp_path / "a.bin.gz").write_bytes(gzip.compress(nmnist(RECORDING)))
    assert rows(read_nmnist(tmp_path / "a.bin")) == rows(read_nmnist(str(tmp_path / "a.bin.gz"))) == RECORDING


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected events of 5 bytes, found a file of 0 bytes"),
        (nmnist(RECORDING)[:-2], "expected events of 5 bytes, found a file of 18 bytes"),
        (nmnist([(0, 34, 0, 0)]), "expected x and y from 0 to 33, found x up to 34 and y up to 0"),
        (nmnist([(0, 0, 240, 0)]), "expected x and y from 0 to 33, found x up to 0 and y up to 240"),
    ],
    ids=["empty", "cut", "x", "y"],
)
def test_files_that_are_no_nmnist(content, message, tmp_path):
    for name, data in (("a.bin", content), ("a.bin.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_nmnist(tmp_path / name)
    (tmp_path / "a.bin.gz").write_bytes(gzip.compress(nmnist(RECORDING))[:-3])
    with pytest.raises(DataError, match="expected a complete gzip archive"):
        read_nmnist(tmp_path / "a.bin.gz")


def write_nmnist(folder: Path) -> None:
    for part, count in (("Train", 2), ("Test", 1)):
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True)
            for number in range(count):
                content = nmnist([(number, label, 3, 1)])
                (folder / part / str(label) / f"{number:05}.bin").write_bytes(content)


def test_nmnist_data_set(tmp_path):
    write_nmnist(tmp_path)
    dataset = NMNIST(tmp_path)
    assert len(dataset) == 20 and dataset.labels.tolist() == [label for label in range(10) for _ in range(2)]
    events, label = dataset[7]
    assert rows(events) == [(1, 3, 3, 1)] and label == 3
    loader = torch.utils.data.DataLoader(NMNIST(tmp_path, train=False, transform=Frames(4, (34, 34))), batch_size=10)
    ((frames, labels),) = loader
    assert frames.shape == (10, 4, 2, 34, 34) and labels.tolist() == list(range(10))
    assert frames.nonzero().tolist() == [[label, 0, 1, 3, label] for label in range(10)]


def test_hidden_files_are_no_recordings(tmp_path):
    write_nmnist(tmp_path)
    samples = len(NMNIST(tmp_path))
    (tmp_path / "Train" / "3" / "._1.bin").write_bytes(b"Mac OS X")
    assert len(NMNIST(tmp_path)) == samples


@pytest.mark.parametrize("dataset", [NMNIST, DVSGesture, SHD])
def test_which_part_is_said_by_a_bool(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"train must be one of \(False, True\), got 'test'"):
        dataset(tmp_path, train="test")


def test_nmnist_folders_of_other_content(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Train/0: expected a folder of N-MNIST's recordings of 0, found none"):
        NMNIST(tmp_path)
    write_nmnist(tmp_path)
    (tmp_path / "Test" / "4" / "00000.bin").unlink()
    with pytest.raises(DataError, match=r"Test/4: expected recordings of the class 4, found no file \.bin"):
        NMNIST(tmp_path, train=False)


# AEDAT

LINES = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-01-01 10:00:00\r\n#!END-HEADER\r\n"


def event(time: int, x: int, y: int, polarity: int, valid: int = 1) -> bytes:
    return struct.pack("<II", x << 17 | y << 2 | polarity << 1 | valid, time)


def packet(events: list[bytes], kind: int = 1, overflows: int = 0, **changes) -> bytes:
    size, valid = len(events[0]), sum(event[0] & 1 for event in events)
    header = {"size": size, "offset": 4, "overflows": overflows, "capacity": 99, "number": len(events), "valid": valid}
    return struct.pack("<HHIIIIII", kind, 1, *(header | changes).values()) + b"".join(events)


def test_aedat_recording(tmp_path):
    special = packet([b"\x01" * 12], kind=0)  # another type, of another size
    first = packet([event(10, 127, 1, 1), event(11, 2, 126, 0), event(12, 9, 9, 1, valid=0)])
    second = packet([event(5, 3, 4, 1)], overflows=2)
    expected = [(10, 127, 1, 1), (11, 2, 126, 0), (5 + 2 * 2**31, 3, 4, 1)]
    for lines in (LINES, LINES.replace(b"#!END-HEADER\r\n", b"")):
        (tmp_path / "a.aedat").write_bytes(lines + special + first + special + second)
        assert rows(read_aedat(tmp_path / "a.aedat")) == expected
        assert rows(read_aedat(tmp_path / "a.aedat", 11, 2**32 + 5)) == expected[1:2]
        assert rows(read_aedat(tmp_path / "a.aedat", 11, 2**32 + 6)) == expected[1:]
    (tmp_path / "a.aedat.gz").write_bytes(gzip.compress(LINES + first + second))
    assert rows(read_aedat(str(tmp_path / "a.aedat.gz"))) == expected


def test_lines_end_where_a_packet_looks_like_one(tmp_path):
    content = LINES + packet([b"\x01" * 12], kind=35) + packet([event(1, 2, 3, 1)])
    assert content[len(LINES) : len(LINES) + 1] == b"#"
    (tmp_path / "a.aedat").write_bytes(content)
    assert rows(read_aedat(tmp_path / "a.aedat")) == [(1, 2, 3, 1)]


def test_recordings_whose_writer_marked_nothing(tmp_path):
    events = [event(time, time, 0, 1, valid=0) for time in range(3)]
    (tmp_path / "a.aedat").write_bytes(LINES + packet(events, valid=3))
    assert [row[0] for row in rows(read_aedat(tmp_path / "a.aedat"))] == [0, 1, 2]
    (tmp_path / "a.aedat").write_bytes(LINES + packet(events, valid=2))
    with pytest.raises(DataError, match="expected 2 valid events as its headers say, found 0"):
        read_aedat(tmp_path / "a.aedat")
    (tmp_path / "a.aedat").write_bytes(LINES + packet([*events, event(3, 0, 0, 1)], valid=4))
    with pytest.raises(DataError, match="expected 4 valid events as its headers say, found 1"):
        read_aedat(tmp_path / "a.aedat")


GOOD = packet([event(1, 2, 3, 1), event(2, 3, 4, 0)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected a first line #!AER-DAT3\.1, found b''"),
        (b"#!AER-DAT2.0\r\n" + GOOD, r"expected a first line #!AER-DAT3\.1, found b'#!AER-DAT2\.0"),
        (LINES[:-1], "expected packets behind the lines, found the end of the file"),
        (LINES, "expected polarity events from 0 .* found none"),
        (LINES + packet([b"\x01" * 12], kind=0), "expected polarity events from 0 .* found none"),
        (LINES + packet([event(1, 2, 3, 1, valid=0)]), "expected polarity events from 0 .* found none"),
        (LINES + GOOD[:-3], "expected 16 bytes of events at byte {body}, found 13"),
        (LINES + GOOD + GOOD[:20], "expected 28 bytes of a header at byte {second}, found the file's end"),
        (LINES + GOOD[1:] + b"\0" * 100, "expected a packet's header at byte {first}, found type"),
        (LINES + packet([event(1, 2, 3, 1)], size=16), "found type 1, 1 events .1 valid. of 16 bytes"),
        (LINES + packet([event(1, 2, 3, 1)], offset=0), "with the time at byte 0"),
        (LINES + packet([event(1, 2, 3, 1)], valid=2), "1 events .2 valid."),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_files_that_are_no_aedat(content, message, tmp_path):
    message = message.format(first=len(LINES), body=len(LINES) + 28, second=len(LINES) + 44)
    for name, data in (("a.aedat", content), ("a.aedat.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_aedat(tmp_path / name)


# DVS-Gesture

LABELS = "class,startTime_usec,endTime_usec\n{}\n"


def write_gestures(folder: Path, rows: str = "11,100,200\n1,150,301") -> None:
    (folder / "trials_to_train.txt").write_text("user01_led.aedat\nuser02_lab.aedat\n\n")
    (folder / "trials_to_test.txt").write_text("user03_lab.aedat\r\n")
    for number, name in enumerate(("user01_led", "user02_lab", "user03_lab")):
        events = [event(time, time % 128, number, 1) for time in range(0, 400, 50)]
        (folder / f"{name}.aedat").write_bytes(LINES + packet(events[:3]) + packet(events[3:]))
        (folder / f"{name}_labels.csv").write_text(LABELS.format(rows))


def test_gestures(tmp_path):
    write_gestures(tmp_path)
    dataset = DVSGesture(tmp_path)
    assert len(dataset) == 4 and dataset.labels.tolist() == [10, 0, 10, 0]
    assert [rows(dataset[index][0]) for index in (0, 3)] == [  # from the start on, before the end
        [(0, 100, 0, 1), (50, 22, 0, 1)],
        [(0, 22, 1, 1), (50, 72, 1, 1), (100, 122, 1, 1), (150, 44, 1, 1)],
    ]
    assert [label for _, label in dataset] == [10, 0, 10, 0]
    frames, label = DVSGesture(tmp_path, train=False, transform=Frames(2, (128, 128), size=(48, 48)))[1]
    assert frames.shape == (2, 2, 48, 48) and label == 0
    assert frames.nonzero().tolist() == [[0, 1, 0, 8], [0, 1, 0, 27], [1, 1, 0, 16], [1, 1, 0, 45]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the columns class, startTime_usec, endTime_usec, found $"),
        ("a,b\n", "expected the columns class, startTime_usec, endTime_usec, found a, b"),
        (LABELS.format("12,1,2"), "expected classes from 1 to 11, found 12"),
        (LABELS.format("0,1,2"), "expected classes from 1 to 11, found 0"),
        (LABELS.format("1,2"), "expected three whole numbers in each row, found 1,2"),
        (LABELS.format("1,2,x"), "expected three whole numbers in each row, found 1,2,x"),
        (LABELS.format("1,5,5"), "expected gestures that end after their start, found 1,5,5"),
        ("\udcff", "expected text, found other bytes"),
    ],
)
def test_labels_of_gestures_of_other_content(content, message, tmp_path):
    write_gestures(tmp_path)
    (tmp_path / "user02_lab_labels.csv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"user02_lab_labels.csv: {message}"):
        DVSGesture(tmp_path)


def test_gestures_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="trials_to_train"):
        DVSGesture(tmp_path)
    write_gestures(tmp_path, "1,360,390")
    with pytest.raises(DataError, match=r"user01_led\.aedat: expected polarity events from 360 to 390 µs, found none"):
        DVSGesture(tmp_path)[0]
    (tmp_path / "user01_led.aedat").write_bytes(LINES + packet([event(370, 128, 0, 1)]))
    with pytest.raises(DataError, match="expected x and y from 0 to 127, found 128 and 0"):
        DVSGesture(tmp_path)[0]
    (tmp_path / "user02_lab.aedat").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected names of recordings \.aedat beside it, found 'user02_lab"):
        DVSGesture(tmp_path)
    (tmp_path / "trials_to_train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"trials_to_train\.txt: expected at least one gesture, found none"):
        DVSGesture(tmp_path)


# SHD

SPOKEN = [([0.0, 0.25, 1.0], [0, 699, 3]), ([0.5], [7])]


def write_shd(path: Path, samples=SPOKEN, labels=(19, 0), kinds=("f2", "u2", "u2")) -> None:
    with h5py.File(path, "w") as file:
        for name, part, kind in (("times", 0, kinds[0]), ("units", 1, kinds[1])):
            ragged = file.create_dataset(f"spikes/{name}", (len(samples),), dtype=h5py.vlen_dtype(np.dtype(kind)))
            for index, sample in enumerate(samples):
                ragged[index] = np.array(sample[part], kind)
        file["labels"] = np.array(labels, kinds[2])
        file["extra/keys"] = ["null", "eins"]


@pytest.mark.parametrize("kinds", [("f2", "u2", "u2"), ("f4", "i8", "i1"), ("f8", "u1", ">u8")])
def test_shd(kinds, tmp_path):
    samples = SPOKEN if kinds[1] != "u1" else [([0.0, 0.25, 1.0], [0, 255, 3]), SPOKEN[1]]
    write_shd(tmp_path / "shd_train.h5", samples, kinds=kinds)
    dataset = SHD(tmp_path)
    assert len(dataset) == 2 and dataset.labels.tolist() == [19, 0] and dataset.labels.dtype == torch.int64
    for source in (dataset, pickle.loads(pickle.dumps(dataset))):  # as the workers of a DataLoader receive it
        assert rows(source[0][0]) == list(zip([0, 250_000, 1_000_000], samples[0][1], strict=True))
        assert rows(source[-1][0]) == [(500_000, 7)] and source[-1][1] == 0
    assert [label for _, label in dataset] == [19, 0]
    frames = torch.stack([frames for frames, _ in SHD(tmp_path, transform=Frames(3, (700,), duration=1_200_000))])
    assert frames.nonzero().tolist() == [[0, 0, 0], [0, 0, samples[0][1][1]], [0, 2, 3], [1, 1, 7]]


def test_compressed_shd(tmp_path):
    write_shd(tmp_path / "whole.h5")
    whole = (tmp_path / "whole.h5").read_bytes()
    packed = tmp_path / "shd_test.h5.gz"
    packed.write_bytes(gzip.compress(whole))
    dataset = pickle.loads(pickle.dumps(SHD(tmp_path, train=False)))
    assert rows(dataset[0][0]) == [(0, 0), (250_000, 699), (1_000_000, 3)]
    for content, message in (
        (gzip.compress(whole)[:-9], "expected a complete gzip archive"),
        (gzip.compress(whole[:-200]), "expected an HDF5 file, found a damaged or foreign one"),
        (gzip.compress(b"spikes"), "expected an HDF5 file, found a damaged or foreign one"),
    ):
        packed.write_bytes(content)
        with pytest.raises(DataError, match=message):
            SHD(tmp_path, train=False)
    (tmp_path / "shd_test.h5").write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"shd_test\.h5: expected an HDF5 file, found a damaged or foreign one"):
        SHD(tmp_path, train=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": (20, 0)}, "expected labels from 0 to 19, found 0 to 20"),
        ({"labels": (-1, 0), "kinds": ("f2", "u2", "i2")}, "expected labels from 0 to 19, found -1 to 0"),
        ({"kinds": ("f2", "u2", "f4")}, "expected labels of an integer type, found float32"),
        ({"labels": (1, 0, 2)}, r"expected as many times, units and labels, at least one, found \[2, 2, 3\]"),
        ({"samples": [], "labels": ()}, r"at least one, found \[0, 0, 0\]"),
        (
            {"samples": [([0.1], [1, 2]), SPOKEN[1]]},
            "as units .integers. in sample 0, found 1 of float16 and 2 of uint16",
        ),
        ({"kinds": ("i4", "u2", "u2")}, "in sample 0, found 3 of int32 and 3 of uint16"),
        ({"samples": [([0.1], [700]), SPOKEN[1]]}, "expected units from 0 to 699 in sample 0, found up to 700"),
        ({"samples": [([-0.1], [7]), SPOKEN[1]]}, "expected finite times from 0 on in sample 0"),
        ({"samples": [([np.nan], [7]), SPOKEN[1]]}, "expected finite times from 0 on in sample 0"),
    ],
)
def test_hdf5_files_of_other_content(arguments, message, tmp_path):
    write_shd(tmp_path / "shd_train.h5", **arguments)
    with pytest.raises(DataError, match=message):
        SHD(tmp_path)[0]


def test_hdf5_files_that_lack_something(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"shd_train\.h5: expected a file \(plain or \.gz\), found none"):
        SHD(tmp_path)
    with h5py.File(tmp_path / "shd_train.h5", "w") as file:
        file["labels"] = [1]
    with pytest.raises(DataError, match="expected spikes/times, spikes/units, found only labels"):
        SHD(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"h5py is missing; install it by: pip install 'srm-triton\[events\]'"
    ):
        SHD(tmp_path)
