"""Training of a classifier of spiking layers: configuration, network, loop over epochs, and checkpoints that resume it.

An interrupted run that is resumed ends with the weights and the history of one that was not: a checkpoint holds all
that the next epoch depends on, and it replaces the last one only once it is complete.
"""

import json
import math
import platform
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number, check_option
from srm_triton.data import LabelledImages
from srm_triton.diagnosis import Finding, LearningReport, find_in_learning, watch
from srm_triton.encoders import encode_direct
from srm_triton.files import write_atomically
from srm_triton.initialization import calibrate_gain
from srm_triton.layers import SRMConv2d, SRMLayer, SRMLinear
from srm_triton.losses import count_loss, predict
from srm_triton.pooling import SpikeAvgPool2d

DataName = Literal["digits", "fashion-mnist"]
ModelName = Literal["mlp", "conv"]

CHECKPOINT, METRICS, LEARNING_PLOT, SAMPLE_PLOT = "checkpoint.pt", "metrics.json", "learning.png", "sample.png"

_FORMAT, _VERSION = "srm-triton training run", 2
_USUAL_HIDDEN: dict[str, tuple[int, ...]] = {"mlp": (256,), "conv": (16, 32)}
# Chosen on hold-outs of the training samples. Where no other spike is allowed, classes of the harder data fall silent.
_USUAL_OF_DATA: dict[str, dict[str, Any]] = {
    "digits": {},
    "fashion-mnist": {"epochs": 10, "learning_rate": 1e-3, "desired_rate": 0.75, "undesired_rate": 0.125},
}
_LARGEST_GRADIENT_NORM = 1.0
_EVALUATION_BATCH = 500


@dataclass(frozen=True)
class TrainingConfig:
    """What determines a training run, given the data and the machine; `usual_config` has what suits other data.

    Args:
        data: name of the data set, ``"digits"`` or ``"fashion-mnist"``.
        model: ``"mlp"``, fully connected layers, or ``"conv"``, convolutions and pooling, one layer behind.
        hidden: neurons (or channels) of each hidden layer; empty for what is usual with the model.
        steps: number of time steps T.
        epochs: passes through the training samples.
        batch_size: samples in a batch.
        learning_rate: of AdamW at the start; it falls to 0 along a cosine.
        desired_rate: spikes per step wanted of the labelled output neuron.
        undesired_rate: spikes per step allowed to the other output neurons.
        spikes_per_neuron: spikes in a sequence to which `calibrate_gain` sets the fresh network.
        seed: of the starting weights and of the order of the samples.

    Raises:
        TypeError: if a value has another type.
        ValueError: if a value is out of its range.

    Example:
        >>> TrainingConfig(steps=4).hidden
        (256,)
    """

    data: DataName = "digits"
    model: ModelName = "mlp"
    hidden: tuple[int, ...] = ()
    steps: int = 8
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 3e-3
    desired_rate: float = 0.5
    undesired_rate: float = 0.0
    spikes_per_neuron: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_option("data", self.data, get_args(DataName))
        check_option("model", self.model, get_args(ModelName))
        if not isinstance(self.hidden, tuple):
            raise TypeError(f"hidden must be a tuple of integers, got {self.hidden!r}")
        for size in self.hidden:
            check_number("hidden", size, 1, whole=True)
        for name, smallest in (("steps", 1), ("epochs", 1), ("batch_size", 1), ("seed", 0)):
            check_number(name, getattr(self, name), smallest, whole=True)
        for name in ("learning_rate", "desired_rate", "undesired_rate", "spikes_per_neuron"):
            check_number(name, getattr(self, name), 0, above=name != "undesired_rate")
        if not self.undesired_rate < self.desired_rate <= 1:
            raise ValueError(
                "desired_rate must be above undesired_rate and at most 1, "
                f"got desired_rate={self.desired_rate} and undesired_rate={self.undesired_rate}"
            )
        if not self.hidden:
            object.__setattr__(self, "hidden", _USUAL_HIDDEN[self.model])


def usual_config(data: DataName = "digits", **changes: Any) -> TrainingConfig:
    """The configuration that suits a data set.

    Args:
        data: name of the data set.
        **changes: fields of `TrainingConfig` to set otherwise.

    Raises:
        TypeError: as `TrainingConfig`.
        ValueError: as `TrainingConfig`.

    Example:
        >>> usual_config("fashion-mnist", steps=4).desired_rate
        0.75
    """
    check_option("data", data, get_args(DataName))
    return TrainingConfig(**{"data": data, **_USUAL_OF_DATA[data], **changes})


# Network


class SpikingClassifier(nn.Module):
    """Hidden layers, and an output layer with one neuron for each class.

    Args:
        hidden: layers by name.
        output: the output layer.

    Shape:
        [batch, time, height, width], or with channels before the height, to [batch, time, classes].
    """

    def __init__(self, hidden: nn.Sequential, output: SRMLinear) -> None:
        super().__init__()
        self.hidden = hidden
        self.output = output

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the output spikes."""
        outputs: Tensor = self.output(self.hidden(inputs))
        return outputs

    def record(self, inputs: Tensor) -> dict[str, Tensor]:
        """Returns the spikes of each spiking layer by its name, from the input's side to ``"output"``."""
        spikes = {}
        for name, layer in (*self.hidden.named_children(), ("output", self.output)):
            inputs = layer(inputs)
            if isinstance(layer, SRMLayer):
                spikes[name] = inputs
        return spikes


def build_network(config: TrainingConfig, image_size: tuple[int, ...], classes: int) -> SpikingClassifier:
    """Builds the network of a configuration on the CPU; its weights depend on the seed alone.

    Args:
        config: the configuration.
        image_size: (height, width) or (channels, height, width).
        classes: number of classes.

    Raises:
        ValueError: if the images are too small for the convolutions' pooling.
    """
    *channels_of_image, height, width = image_size
    image_channels = math.prod(channels_of_image)
    scale = 2 ** len(config.hidden) if config.model == "conv" else 1
    if min(height, width) < scale:
        raise ValueError(f"hidden must have fewer layers: each halves the image of {height} by {width} pixels")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    positions = (height // scale) * (width // scale)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        if config.model == "mlp":
            layers["flatten"] = nn.Flatten(2)
            for number, (inputs, size) in enumerate(pairwise((image_channels * positions, *config.hidden)), 1):
                layers[f"hidden {number}"] = SRMLinear(inputs, size)
            inputs = config.hidden[-1]
        else:
            if not channels_of_image:
                layers["channel"] = nn.Unflatten(2, (1, -1))
            for number, (channels, size) in enumerate(pairwise((image_channels, *config.hidden)), 1):
                layers[f"conv {number}"] = SRMConv2d(channels, size, 3, padding="same")
                layers[f"pool {number}"] = SpikeAvgPool2d(2)
            layers["flatten"] = nn.Flatten(2)
            inputs = config.hidden[-1] * positions
        return SpikingClassifier(nn.Sequential(layers), SRMLinear(inputs, classes, output=True))


# Checkpoints


class DivergedError(ValueError):
    """The gradient is no longer finite, so training cannot go on."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file, what was found and what is allowed."""


class EpochRecord(NamedTuple):
    """What an epoch came to."""

    epoch: int
    """1 for the first."""
    loss: float
    """Mean over the training samples, as the weights went along."""
    train_accuracy: float
    """Part of the training samples that were right, as the weights went along."""
    test_accuracy: float
    """Part of the test samples that are right after the epoch."""
    firing_rates: dict[str, float]
    """Spikes per neuron and step on the test samples after the epoch, by the layer's name."""


class Checkpoint(NamedTuple):
    """A run after an epoch, as it stands in a file."""

    path: Path
    config: TrainingConfig
    history: list[EpochRecord]
    seconds: float
    data_checksum: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    random_state: Tensor


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint; `TrainingRun.resume` continues from it.

    Raises:
        OSError: if the file cannot be read.
        CheckpointError: if it is damaged, something else than a checkpoint, or of another version.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:  # torch.load does not look at the checksums
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load names no set of exceptions
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{path}: expected a checkpoint, found a damaged or foreign file ({reason})"
            ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: expected a checkpoint of `srm-triton train`, found another PyTorch file")
    if content.get("version") != _VERSION:
        raise CheckpointError(f"{path}: expected format version {_VERSION}, found {content.get('version')!r}")
    try:
        config = TrainingConfig(**content["config"])
        history = [EpochRecord(**record) for record in content["history"]]
        parts = {name: content[name] for name in Checkpoint._fields[3:]}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the fields of version {_VERSION}, found others ({error})") from error
    if [record.epoch for record in history] != list(range(1, len(history) + 1)) or len(history) > config.epochs:
        raise CheckpointError(f"{path}: expected at most {config.epochs} epochs from 1 on, found another history")
    return Checkpoint(path, config, history, **parts)


# Training


class TrainingRun:
    """A network in training, from one epoch to the next.

    `TrainingRun.start` makes a fresh one, `TrainingRun.resume` one that goes on from a checkpoint. On one machine with
    one number of threads, the same configuration gives the same weights and history (on a GPU, if its convolutions do).

    Args:
        config: what to train.
        data: samples to train and test with.
        device: where to.

    Attributes:
        network: the classifier.
        history: one record for each finished epoch.
        seconds: time spent in these epochs.
    """

    def __init__(self, config: TrainingConfig, data: LabelledImages, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.data = data.to(device)
        self.data_checksum = data.checksum()
        self.network = build_network(config, data.train_images.shape[1:], data.classes).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.learning_rate)
        steps = config.epochs * self.batches
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.order = torch.Generator().manual_seed(config.seed)
        self.history: list[EpochRecord] = []
        self.seconds = 0.0

    @classmethod
    def start(cls, config: TrainingConfig, data: LabelledImages, device: torch.device) -> "TrainingRun":
        """A fresh run, its gains calibrated on a first batch."""
        run = cls(config, data, device)
        first = next(iter(run._shuffled_batches()))
        inputs = encode_direct(run.data.train_images[first], config.steps)
        calibrate_gain(run.network, inputs, spikes_per_neuron=config.spikes_per_neuron)
        return run

    @classmethod
    def resume(cls, checkpoint: Checkpoint, data: LabelledImages, device: torch.device) -> "TrainingRun":
        """The run of a checkpoint.

        Raises:
            CheckpointError: if its tensors do not fit its configuration, or the data are not those of the run.
        """
        run = cls(checkpoint.config, data, device)
        if checkpoint.data_checksum != run.data_checksum:
            raise CheckpointError(f"{checkpoint.path}: expected the samples that its run began with, found others")
        try:
            run.network.load_state_dict(checkpoint.model)
            run.optimizer.load_state_dict(checkpoint.optimizer)
            run.schedule.load_state_dict(checkpoint.schedule)
            run.order.set_state(checkpoint.random_state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{checkpoint.path}: expected the state of {checkpoint.config}, found {reason}"
            ) from error
        run.history = list(checkpoint.history)
        run.seconds = checkpoint.seconds
        return run

    def save(self, path: Path) -> None:
        """Writes a checkpoint; only at the end of an epoch does it resume this very run."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "config": asdict(self.config),
            "history": [record._asdict() for record in self.history],
            "seconds": self.seconds,
            "data_checksum": self.data_checksum,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random_state": self.order.get_state(),
        }
        write_atomically(path, lambda temporary: torch.save(content, temporary))

    def save_metrics(self, path: Path) -> None:
        """Writes configuration, history and final accuracy as JSON."""
        content = {
            "config": asdict(self.config),
            "test_accuracy": self.history[-1].test_accuracy,
            "seconds": self.seconds,
            "device": str(self.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "history": [record._asdict() for record in self.history],
        }
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return math.ceil(len(self.data.train_labels) / self.config.batch_size)

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return len(self.history) == self.config.epochs

    def train_epoch(self, after_batch: Callable[[], object] = lambda: None) -> EpochRecord:
        """Trains for one epoch, tests, and adds the record to the history.

        Args:
            after_batch: called after each batch, for progress bars.
        """
        start = time.perf_counter()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in self._shuffled_batches():
            batch_loss, batch_correct = self._train_batch(batch)
            loss += batch_loss * len(batch)
            correct += batch_correct
            after_batch()
        test_accuracy, firing_rates = self._evaluate()
        samples = len(self.data.train_labels)
        epoch = len(self.history) + 1
        record = EpochRecord(epoch, float(loss) / samples, int(correct) / samples, test_accuracy, firing_rates)
        self.seconds += time.perf_counter() - start
        self.history.append(record)
        return record

    def _shuffled_batches(self) -> tuple[Tensor, ...]:
        order = torch.randperm(len(self.data.train_labels), generator=self.order)
        batches: tuple[Tensor, ...] = order.to(self.device).split(self.config.batch_size)
        return batches

    def _train_batch(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        spikes, labels, loss = self._run(batch)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT_NORM)
        if not torch.isfinite(norm):
            epoch = len(self.history) + 1
            raise DivergedError(
                f"the gradient is not finite in epoch {epoch}; lower the learning rate, {config.learning_rate}"
            )
        self.optimizer.step()
        self.schedule.step()
        return loss.detach(), (predict(spikes) == labels).sum()

    def _run(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output spikes of training samples, their labels, and the loss."""
        config = self.config
        labels = self.data.train_labels[batch]
        spikes = self.network(encode_direct(self.data.train_images[batch], config.steps))
        loss = count_loss(
            spikes, labels, desired=config.desired_rate * config.steps, undesired=config.undesired_rate * config.steps
        )
        return spikes, labels, loss

    def diagnose(self) -> tuple[Finding, ...]:
        """What is conspicuous: in a pass of a batch, forward and backward, and in the history; it changes nothing."""
        first = torch.arange(min(self.config.batch_size, len(self.data.train_labels)), device=self.device)
        with watch(self.network, show=None) as watcher:
            self._run(first)[2].backward()
        self.optimizer.zero_grad()
        return (*watcher.report().findings, *find_in_learning(self._learned()))

    def _learned(self) -> LearningReport | None:
        """Losses of the epochs, and the last test."""
        if not self.history:
            return None
        labels, losses = self.data.test_labels, [record.loss for record in self.history]
        correct = round(self.history[-1].test_accuracy * len(labels))
        most_frequent = int(labels.unique(return_counts=True)[1].max()) / len(labels)
        return LearningReport(
            steps=len(losses) * self.batches,
            first_loss=losses[0] if len(losses) > 1 else math.nan,
            last_loss=losses[-1] if len(losses) > 1 else math.nan,
            finite=all(map(math.isfinite, losses)),
            samples=len(labels),
            correct=correct,
            most_frequent=most_frequent,
        )

    @torch.no_grad()
    def _evaluate(self) -> tuple[float, dict[str, float]]:
        correct, spikes, neurons = 0, dict[str, float](), dict[str, int]()
        images, labels = self.data.test_images, self.data.test_labels
        batches = zip(images.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH), strict=True)
        for batch_images, batch_labels in batches:
            layers = self.network.record(encode_direct(batch_images, self.config.steps))
            correct += int((predict(layers["output"]) == batch_labels).sum())
            for name, layer in layers.items():
                spikes[name] = spikes.get(name, 0) + float(layer.sum())
                neurons[name] = neurons.get(name, 0) + layer.numel()
        return correct / len(labels), {name: spikes[name] / neurons[name] for name in spikes}


def train(run: TrainingRun, folder: Path) -> None:
    """Trains to the last epoch with a progress bar and a line an epoch, and keeps a checkpoint in `folder`.

    What is conspicuous before training, after its first epoch and after its last is said once, on standard error.

    After a KeyboardInterrupt, or anything else, the checkpoint is that of the last finished epoch.

    Args:
        run: a run at the end of an epoch.
        folder: where the checkpoint goes.

    Raises:
        ModuleNotFoundError: without tqdm.
    """
    from tqdm import tqdm

    run.save(folder / CHECKPOINT)
    batches = run.config.epochs * run.batches
    known = set[tuple[str, str | None]]()
    with tqdm(total=batches, initial=len(run.history) * run.batches, unit="batch", disable=None) as progress:

        def warn() -> None:
            for finding in run.diagnose():
                if finding[:2] not in known:
                    progress.write(f"srm-triton: warning: {finding}", file=sys.stderr)
                known.add(finding[:2])

        if not run.history:
            warn()
        while not run.finished:
            record = run.train_epoch(progress.update)
            run.save(folder / CHECKPOINT)
            rates = ", ".join(f"{name} {rate:.3f}" for name, rate in record.firing_rates.items())
            progress.write(
                f"epoch {record.epoch:3d}/{run.config.epochs}  loss {record.loss:.4f}  "
                f"train {record.train_accuracy:6.2%}  test {record.test_accuracy:6.2%}  spikes per step: {rates}"
            )
            if run.finished or len(run.history) == 1:
                warn()
