"""Samples, their checks, augmentation and normalisation."""

import math

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from srm_triton.data import NMNIST, SHD, DVSGesture
from srm_triton.training import Augmentation, Data, Network, Recipe, load_data, sources, training_data
from srm_triton.training.augmentation import Normalization, augment, draw
from srm_triton.training.samples import Samples

IMAGES, LABELS = torch.rand(12, 4, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


class Recordings(Dataset):
    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.inputs[index].numpy(), int(self.labels[index])


def test_data_sets_give_what_tensors_give():
    sequences = torch.rand(12, 6, 4)
    parts = [torch.tensor([3, 0]), torch.tensor([5]), torch.tensor([11, 4, 7])]
    tensors = Samples(sequences, LABELS.to(torch.uint8))
    for dataset in (Recordings(sequences, LABELS), TensorDataset(sequences, LABELS)):
        samples = Samples(dataset)
        assert torch.equal(samples.labels, LABELS) and samples.shape == tensors.shape == (6, 4)
        for one, other in ((samples, tensors), (samples.part(torch.arange(12).flip(0)), tensors.part(-parts[0] * 0))):
            assert len(one) and one.labels.dtype == other.labels.dtype == torch.int64
        pairs = zip(*(part.batches(parts, torch.device("cpu")) for part in (samples, tensors)), strict=True)
        for (inputs, labels), (expected, expected_labels) in pairs:
            assert torch.equal(inputs, expected) and torch.equal(labels, expected_labels)
        backwards = samples.part(torch.arange(12).flip(0))
        ((inputs, labels),) = backwards.batches([torch.tensor([0, 2])], torch.device("cpu"))
        assert torch.equal(inputs, sequences[[11, 9]]) and labels.tolist() == [2, 0]


def test_shapes_and_classes():
    data = training_data((IMAGES, LABELS), (IMAGES[:3], LABELS[:3]))
    assert data.shape == (1, 4, 5) and data.classes == 3 and not data.over_time
    sequences = torch.rand(12, 6, 2, 4, 4)
    data = training_data(Recordings(sequences, LABELS), Recordings(sequences, LABELS), classes=3)
    assert data.shape == (2, 4, 4) and data.over_time and data.train.shape == (6, 2, 4, 4)
    other = training_data((IMAGES, LABELS), (IMAGES[:3] + 1, LABELS[:3]))
    assert (
        len({data.checksum(), other.checksum(), training_data((IMAGES, LABELS), (IMAGES[:3], LABELS[:3])).checksum()})
        == 3
    )


def changed(index, value):
    images = IMAGES.clone()
    images[index] = value
    return images


@pytest.mark.parametrize(
    ("train", "test", "error", "message"),
    [
        ((changed(7, math.nan), LABELS), None, ValueError, "train must hold finite inputs, got nan in sample 7"),
        (None, (changed(2, math.inf), LABELS), ValueError, r"test must hold .*, got inf in sample 2 \(1 samples of 12"),
        ((IMAGES, LABELS.float()), None, TypeError, "labels of train must be integers, got torch.float32"),
        ((IMAGES, LABELS[:5]), None, ValueError, r"labels of train must have the shape \[12\], got \[5\]"),
        ((IMAGES, LABELS - 1), None, ValueError, "labels of train must lie in 0 … 1, got -1 in sample 0"),
        (None, (IMAGES, LABELS + 1), ValueError, "labels of test must lie in 0 … 2, got 3 in sample 2"),
        ((IMAGES, LABELS * 2), None, ValueError, r"train must have samples of each of 5 classes, got none of \[1, 3\]"),
        ((IMAGES[:0], LABELS[:0]), None, ValueError, "train must have at least one sample, got none"),
        (None, (IMAGES[:, 1:], LABELS), ValueError, r"test must have inputs of the shape \[4, 5\], got \[3, 5\]"),
        ((IMAGES[..., None, None], LABELS), None, ValueError, r"train must have inputs .*, got \[4, 5, 1, 1\]"),
    ],
)
def test_data_that_cannot_be(train, test, error, message):
    good = (IMAGES, LABELS)
    test = test or ((train[0], good[1]) if train and len(train[0]) and train[0].dim() > 3 else good)
    with pytest.raises(error, match=message):
        training_data(train or good, test)


def test_nan_in_a_data_set_is_named_when_it_is_read():
    samples = Samples(Recordings(changed(7, math.nan), LABELS))
    with pytest.raises(ValueError, match=r"train must hold finite inputs, got nan in sample 7 \(1 samples of 2"):
        next(samples.batches([torch.tensor([3, 7])], torch.device("cpu")))


def test_augmentation_by_hand():
    inputs = torch.rand(6, 2, 3, 4, 5)  # [batch, time, channels, height, width]
    draws = draw(6, 2, torch.Generator().manual_seed(1))
    assert draws.shape == (6, 3) and draws[:, 1:].max() <= 4 and set(draws[:, 0].tolist()) == {0, 1}
    result = augment(inputs, draws, Augmentation(flip=True, crop=2))
    for image, (flip, top, left), part in zip(inputs, draws.tolist(), result, strict=True):
        for y in range(4):
            for x in range(5):
                row, column = y + top - 2, (4 - x if flip else x) + left - 2
                inside = 0 <= row < 4 and 0 <= column < 5
                assert torch.equal(part[:, :, y, x], image[:, :, row, column] if inside else torch.zeros(2, 3))
    flipped = augment(inputs, draws * torch.tensor([1, 0, 0]), Augmentation(flip=True))
    assert not torch.equal(flipped, result) and flipped.sum() == pytest.approx(float(inputs.sum()), rel=1e-5)
    assert augment(inputs, draws, Augmentation()) is inputs


def test_crops_and_flips_are_drawn_evenly():
    draws = draw(50_000, 1, torch.Generator().manual_seed(0))
    assert draws[:, 0].double().mean() == pytest.approx(0.5, abs=0.01)
    for column in (1, 2):
        assert draws[:, column].bincount().tolist() == pytest.approx([50_000 / 3] * 3, rel=0.03)


def test_normalization():
    images = torch.rand(40, 3, 4, 5) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 5
    normal = Normalization(Augmentation(normalization="data"), images, 3)(images[:, None])
    values = normal.double().movedim(2, 0).flatten(1)
    assert values.mean(1).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert values.std(1, correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    one = Normalization(Augmentation(normalization=(1.0, 2.0)), None, 3)(images)
    torch.testing.assert_close(one, (images - 1) / 2)
    each = Normalization(Augmentation(normalization=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)), None, 3)(images)
    torch.testing.assert_close(each[:, 2], (images[:, 2] - 3) / 6)
    assert Normalization(Augmentation(), images, 3)(images) is images
    for normalization, inputs, message in (
        ((1.0, 2.0, 3.0), None, "must have 2 or 6 numbers for 3 channels, got 3"),
        ((1.0, 0.0), None, r"must have deviations > 0, got \[0.0\]"),
        ("data", torch.ones(2, 3, 4, 4), "must have deviations > 0"),
        ("data", None, "must not be 'data' for samples that are read one by one"),
    ):
        with pytest.raises(ValueError, match=message):
            Normalization(Augmentation(normalization=normalization), inputs, 3)


@pytest.mark.parametrize(("name", "kind"), [("n-mnist", NMNIST), ("dvs-gesture", DVSGesture), ("shd", SHD)])
def test_events_are_read_in_frames(name, kind, monkeypatch):
    calls = []

    class Set(Recordings):
        classes = kind.classes

        def __init__(self, folder, *, train, transform):
            calls.append((folder, train, transform))
            shape = (
                (transform.size or transform.sensor) if name == "shd" else (2, *(transform.size or transform.sensor))
            )
            count = self.classes
            super().__init__(
                torch.arange(count).view(-1, 1, *[1] * len(shape)).expand(-1, transform.steps, *shape) + 0.0,
                torch.arange(count),
            )

        def __getitem__(self, index):
            return self.inputs[index], int(self.labels[index])

    sensor = sources._EVENTS[name][1]
    monkeypatch.setitem(sources._EVENTS, name, (Set, sensor))
    size = tuple(side // 2 for side in sensor)
    recipe = Recipe(data=Data(name, "here", "number", size, "binary"), network=Network("4", steps=3))
    data = load_data(recipe)
    assert [call[:2] for call in calls] == [("here", True), ("here", False)]
    frames = calls[0][2]
    assert (frames.steps, frames.sensor, frames.size, frames.by, frames.values) == (3, sensor, size, "number", "binary")
    assert data.over_time and data.classes == kind.classes and data.train.shape == (3, *data.shape)
    assert isinstance(data.train.inputs, torch.Tensor) == (name == "dvs-gesture")
    ((inputs, labels),) = data.test.batches([torch.tensor([2, 1])], torch.device("cpu"))
    assert labels.tolist() == [2, 1] and inputs[0].eq(2).all()
