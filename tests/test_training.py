"""Training: same seed, same run; interrupted and resumed, the same run still; damaged checkpoints are recognised."""

import math

import pytest
import torch

from srm_triton import training
from srm_triton.data import LabelledImages, load_digits
from srm_triton.files import write_atomically
from srm_triton.training import CheckpointError, TrainingConfig, TrainingRun, load_checkpoint

CPU = torch.device("cpu")
SMALL = TrainingConfig(hidden=(12,), steps=4, epochs=3, batch_size=32)


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    digits = load_digits()
    return digits._replace(
        train_images=digits.train_images[:100],
        train_labels=digits.train_labels[:100],
        test_images=digits.test_images[:50],
        test_labels=digits.test_labels[:50],
    )


def finish(run: TrainingRun) -> TrainingRun:
    while not run.finished:
        run.train_epoch()
    return run


def assert_same(run: TrainingRun, other: TrainingRun) -> None:
    assert run.history == other.history and len(run.history) == run.config.epochs
    weights, others = run.network.state_dict(), other.network.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_a_seed_repeats_and_another_does_not(model, data):
    config = TrainingConfig(model=model, hidden=(6,), steps=4, epochs=2, batch_size=32)
    runs = [finish(TrainingRun.start(config, data, CPU)) for _ in range(2)]
    assert_same(*runs)
    other = TrainingRun.start(TrainingConfig(model=model, hidden=(6,), steps=4, epochs=2, seed=1), data, CPU)
    assert not torch.equal(next(other.network.parameters()), next(runs[0].network.parameters()))
    first, last = runs[0].history[0], runs[0].history[-1]
    assert last.loss < first.loss and set(last.firing_rates) == {
        f"{'hidden' if model == 'mlp' else 'conv'} 1",
        "output",
    }


def test_interrupted_in_an_epoch_and_resumed_is_the_same_run(data, tmp_path, monkeypatch):
    expected = finish(TrainingRun.start(SMALL, data, CPU))
    run = TrainingRun.start(SMALL, data, CPU)
    original, calls = TrainingRun._train_batch, []

    def interrupted_in_the_second_epoch(self, batch):
        calls.append(None)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(TrainingRun, "_train_batch", interrupted_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        training.train(run, tmp_path)
    monkeypatch.undo()
    torch.manual_seed(99)  # global random numbers play no part
    resumed = TrainingRun.resume(load_checkpoint(tmp_path / training.CHECKPOINT), data, CPU)
    assert len(resumed.history) == 1
    training.train(resumed, tmp_path)
    assert_same(resumed, expected)
    assert_same(TrainingRun.resume(load_checkpoint(tmp_path / training.CHECKPOINT), data, CPU), expected)


def test_interrupted_before_the_first_epoch_ends(data, tmp_path, monkeypatch):
    run = TrainingRun.start(SMALL, data, CPU)
    expected = finish(TrainingRun.start(SMALL, data, CPU))
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_evaluate", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            training.train(run, tmp_path)
    resumed = TrainingRun.resume(load_checkpoint(tmp_path / training.CHECKPOINT), data, CPU)
    assert_same(finish(resumed), expected)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


class TestCheckpoints:
    @pytest.fixture
    def path(self, data, tmp_path):
        path = tmp_path / "checkpoint.pt"
        TrainingRun.start(SMALL, data, CPU).save(path)
        return path

    @pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
    def test_damaged(self, damage, path):
        content = path.read_bytes()
        weight = torch.load(path, weights_only=True)["model"]["output.weight"].numpy().tobytes()
        place = content.index(weight)
        flipped = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
        path.write_bytes({"cut": content[:-100], "flipped": flipped, "text": b"hello", "empty": b""}[damage])
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt: expected a checkpoint, found a damaged or foreign"):
            load_checkpoint(path)

    def test_foreign(self, path):
        torch.save({"weight": torch.ones(2)}, path)
        with pytest.raises(CheckpointError, match="expected a checkpoint of `srm-triton train`, found another"):
            load_checkpoint(path)
        torch.save(torch.nn.Linear(2, 2), path)  # more than weights_only=True allows
        with pytest.raises(CheckpointError, match="found a damaged or foreign file"):
            load_checkpoint(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": 2}, "expected format version 1, found 2"),
            (
                {"config": {"steps": -1}},
                r"expected the fields of version 1, found others .*steps must be finite and ≥ 1",
            ),
            ({"history": [{"epoch": 1}]}, "expected the fields of version 1"),
        ],
    )
    def test_other_content(self, change, message, path):
        content = torch.load(path, weights_only=True)
        torch.save({**content, **change}, path)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)

    def test_missing_part(self, path):
        content = torch.load(path, weights_only=True)
        del content["optimizer"]
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"expected the fields of version 1, found others .'optimizer'"):
            load_checkpoint(path)

    def test_tensors_that_do_not_fit(self, path, data):
        content = torch.load(path, weights_only=True)
        content["model"]["output.weight"] = torch.ones(3, 3)
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"size mismatch for output\.weight"):
            TrainingRun.resume(load_checkpoint(path), data, CPU)

    def test_other_samples(self, path, data):
        for other in (data.test_images.flip(0), data.test_images[1:]):
            with pytest.raises(CheckpointError, match="expected the samples that its run began with, found others"):
                TrainingRun.resume(load_checkpoint(path), data._replace(test_images=other), CPU)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": "cifar"}, ValueError, r"data must be one of \('digits', 'fashion-mnist'\), got 'cifar'"),
        ({"model": "rnn"}, ValueError, r"model must be one of \('mlp', 'conv'\), got 'rnn'"),
        ({"hidden": [3]}, TypeError, r"hidden must be a tuple of integers, got \[3\]"),
        ({"hidden": (0,)}, ValueError, "hidden must be finite and ≥ 1, got 0"),
        ({"steps": 0}, ValueError, "steps must be finite and ≥ 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an int, got 1.5"),
        ({"seed": 2**63}, ValueError, r"seed must be below 2\*\*63 and ≥ 0, got 9223372036854775808"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be finite and > 0, got nan"),
        ({"undesired_rate": 0.5}, ValueError, "desired_rate must be above undesired_rate and at most 1"),
    ],
)
def test_bad_configuration(arguments, error, message):
    with pytest.raises(error, match=message):
        TrainingConfig(**arguments)


def test_images_too_small_to_pool(data):
    with pytest.raises(ValueError, match="hidden must have fewer layers: each halves the image of 8 by 8 pixels"):
        training.build_network(TrainingConfig(model="conv", hidden=(2, 2, 2, 2)), (8, 8), 10)
