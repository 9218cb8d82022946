"""Training: same seed, same run; interrupted and resumed, the same run still; damaged checkpoints are recognised."""

import itertools
import math
from dataclasses import replace

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
    counts = {"train_images": 100, "train_labels": 100, "test_images": 50, "test_labels": 50}
    return digits._replace(**{name: getattr(digits, name)[:count] for name, count in counts.items()})


def finish(run: TrainingRun) -> TrainingRun:
    while not run.finished:
        run.train_epoch()
    return run


@pytest.fixture(scope="module")
def expected(data) -> TrainingRun:
    """What nothing interrupted."""
    return finish(TrainingRun.start(SMALL, data, CPU))


def assert_same(run: TrainingRun, other: TrainingRun) -> None:
    assert run.history == other.history and len(run.history) == run.config.epochs
    weights, others = run.network.state_dict(), other.network.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_a_seed_repeats_and_another_does_not(model, data):
    config = replace(SMALL, model=model, hidden=(6,), epochs=2)
    runs = [finish(TrainingRun.start(config, data, CPU)) for _ in range(2)]
    assert_same(*runs)
    fresh = [training.build_network(replace(config, seed=seed), (8, 8), 10).output.weight for seed in (0, 0, 1)]
    assert torch.equal(*fresh[:2]) and not torch.equal(*fresh[1:])
    first, last = runs[0].history
    assert last.loss < first.loss
    assert set(last.firing_rates) == {f"{'hidden' if model == 'mlp' else 'conv'} 1", "output"}


@pytest.mark.parametrize(("method", "call", "epochs"), [("_train_batch", 6, 1), ("_evaluate", 1, 0)])
def test_interrupted_in_an_epoch_and_resumed_is_the_same_run(method, call, epochs, data, expected, tmp_path):
    run = TrainingRun.start(SMALL, data, CPU)
    original, calls = getattr(TrainingRun, method), itertools.count(1)

    def interrupted(*arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingRun, method, interrupted)
        training.train(run, tmp_path)
    torch.manual_seed(99)  # global random numbers play no part
    resumed = TrainingRun.resume(load_checkpoint(tmp_path / training.CHECKPOINT), data, CPU)
    assert len(resumed.history) == epochs
    training.train(resumed, tmp_path)
    assert_same(resumed, expected)
    assert_same(TrainingRun.resume(load_checkpoint(tmp_path / training.CHECKPOINT), data, CPU), expected)


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


@pytest.fixture
def path(data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    TrainingRun.start(SMALL, data, CPU).save(path)
    return path


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "pickle"])
def test_damaged_checkpoints(damage, path):
    content = path.read_bytes()
    weight = torch.load(path, weights_only=True)["model"]["output.weight"].numpy().tobytes()
    place = content.index(weight)
    flipped = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
    if damage == "pickle":
        torch.save(torch.nn.Linear(2, 2), path)  # more than weights_only=True allows
    else:
        path.write_bytes({"cut": content[:-100], "flipped": flipped, "text": b"hello", "empty": b""}[damage])
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.pt: expected a checkpoint, found a damaged or foreign file"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": None}, "expected a checkpoint of `srm-triton train`, found another"),
        ({"version": 1}, "expected format version 2, found 1"),
        ({"config": {"steps": -1}}, r"expected the fields of version 2, found others .*steps must be finite and ≥ 1"),
        ({"history": [{"epoch": 1}]}, "expected the fields of version 2"),
        ({"optimizer": None}, r"expected the fields of version 2, found others .'optimizer'"),
        ({"model": {"output.weight": torch.ones(3, 3)}}, r"size mismatch for output\.weight"),
    ],
)
def test_checkpoints_of_other_content(change, message, path, data):
    content = torch.load(path, weights_only=True)
    changed = {name: value for name, value in {**content, **change}.items() if value is not None}
    if "model" in change:
        changed["model"] = {**content["model"], **change["model"]}
    torch.save(changed, path)
    with pytest.raises(CheckpointError, match=message):
        TrainingRun.resume(load_checkpoint(path), data, CPU)


def test_other_samples(path, data):
    for other in (data.test_images.flip(0), data.test_images[1:]):
        with pytest.raises(CheckpointError, match="expected the samples that its run began with, found others"):
            TrainingRun.resume(load_checkpoint(path), data._replace(test_images=other), CPU)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path.with_name("none.pt"))


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
