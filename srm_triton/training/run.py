"""A network in training, from one epoch to the next."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from srm_triton.data import LabelledImages, stratified_split
from srm_triton.diagnosis import Finding, LearningReport, Report, find_in_learning, watch
from srm_triton.encoders import encode_direct
from srm_triton.initialization import calibrate_gain
from srm_triton.layers import SRMLayer
from srm_triton.training.augmentation import Normalization, augment, draw
from srm_triton.training.checkpoint import Checkpoint, CheckpointError, EpochRecord, save_checkpoint
from srm_triton.training.network import build_network, load_network, record
from srm_triton.training.objective import compute_loss, predict_classes
from srm_triton.training.optimizer import build_optimizer, learning_rate, load_state
from srm_triton.training.processes import Piece, own_pieces, processes, total
from srm_triton.training.recipe import Augmentation, Recipe, RecipeError
from srm_triton.training.samples import Samples, TrainingData, training_data


class DivergedError(ValueError):
    """The gradient is no longer finite, so training cannot go on."""


class Result(NamedTuple):
    """What a finished run came to."""

    test_accuracy: float
    epoch: int
    """After which: the best on the held-out samples, or the last where none are held out."""


class TrainingRun:
    """A network in training.

    `TrainingRun.start` makes a fresh one, `TrainingRun.resume` one that goes on from a checkpoint. On one machine with
    one number of threads, the same recipe gives the same weights and history (on a GPU, if its convolutions do). Within
    processes of `torchrun` each computes its part of every batch: the gradients are those of one process to rounding,
    whatever the sizes of the parts; dropout alone, and losses that compare samples of a batch, see the parts.

    Args:
        recipe: how to train.
        data: what `training_data` returned, or `LabelledImages`.
        device: where to.

    Attributes:
        network: what is trained.
        history: one record for each finished epoch.
        seconds: time spent in these epochs.

    Raises:
        ValueError: if recipe and data do not go together.
    """

    def __init__(self, recipe: Recipe, data: TrainingData | LabelledImages, device: torch.device) -> None:
        data = training_data(data) if isinstance(data, LabelledImages) else data
        self.recipe, self.data, self.device = recipe, data, device
        self.data_checksum = data.checksum()
        self.network = build_network(recipe, data.shape, data.classes).to(device)
        if data.over_time and data.train.shape[0] != recipe.network.steps:
            raise RecipeError(
                f"[network] steps must be {data.train.shape[0]}, those of the data, got {recipe.network.steps}"
            )
        if len(data.shape) == 1 and recipe.augmentation != Augmentation():
            raise RecipeError("[augmentation] must be left out for inputs that are no images")
        self.train_samples, self.validation = data.train, data.test
        if recipe.schedule.hold_out:
            try:
                kept, chosen = stratified_split(data.train.labels, recipe.schedule.hold_out, seed=recipe.seed)
            except ValueError as error:
                raise RecipeError(f"[schedule] hold_out: {error}") from error
            self.train_samples, self.validation = data.train.part(kept), data.train.part(chosen)
        images = self.train_samples.inputs if isinstance(self.train_samples.inputs, Tensor) else None
        if images is not None and len(data.shape) == 3:
            images = images.reshape(-1, *data.shape)
        self.normalization = Normalization(recipe.augmentation, images, data.shape[0])
        for samples in (self.train_samples, self.validation, data.test):
            samples.to(device)
        self.optimizer = build_optimizer(self.network, recipe.optimizer)
        self.random = torch.Generator().manual_seed(recipe.seed)
        self.history: list[EpochRecord] = []
        self.seconds = 0.0
        self.best_model: dict[str, Tensor] = {}
        self._parallel: nn.Module = self.network

    @classmethod
    def start(cls, recipe: Recipe, data: TrainingData | LabelledImages, device: torch.device) -> "TrainingRun":
        """A fresh run, its gains calibrated on a first batch."""
        run = cls(recipe, data, device)
        spikes = recipe.network.spikes_per_neuron
        first = torch.randperm(len(run.train_samples), generator=run.random)[: recipe.schedule.batch_size]
        inputs, _ = next(run.train_samples.batches([first], device))
        run.network.eval()  # without dropout
        calibrate_gain(run.network, run._prepare(inputs), spikes_per_neuron=None if spikes == "usual" else spikes)
        run._distribute()
        return run

    @classmethod
    def resume(cls, checkpoint: Checkpoint, data: TrainingData | LabelledImages, device: torch.device) -> "TrainingRun":
        """The run of a checkpoint, with the epochs of its recipe, which may be more than those when it was saved.

        Raises:
            CheckpointError: if its tensors do not fit its recipe, or the data are not those of the run.
        """
        try:
            run = cls(checkpoint.recipe, data, device)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from error
        known = (run.data_checksum, run.data.shape, run.data.classes)
        if (checkpoint.data_checksum, checkpoint.shape, checkpoint.classes) != known:
            raise CheckpointError(f"{checkpoint.path}: expected the samples that its run began with, found others")
        try:
            run._check_history(checkpoint)
            if checkpoint.best_model:
                load_network(run.network, checkpoint.best_model)
            load_network(run.network, checkpoint.model)
            run.random.set_state(checkpoint.random_state)
            load_state(run.optimizer, run.recipe.optimizer, dict(run.network.named_parameters()), checkpoint.optimizer)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{checkpoint.path}: expected the state of {checkpoint.recipe.network}, found {reason}"
            ) from error
        run.best_model = dict(checkpoint.best_model)
        run.history, run.seconds = list(checkpoint.history), checkpoint.seconds
        run._distribute()
        return run

    def _check_history(self, checkpoint: Checkpoint) -> None:
        if bool(checkpoint.best_model) != bool(checkpoint.history and self.recipe.schedule.hold_out):
            raise ValueError(f"{'a' if checkpoint.best_model else 'no'} best_model")
        for rates in (epoch.firing_rates for epoch in checkpoint.history):
            if rates.keys() != set(self._layers):
                raise ValueError(f"firing_rates of {', '.join(rates) or 'no layer'}")

    def save(self, path: Path) -> None:
        """Writes a checkpoint; only at the end of an epoch does it resume this very run."""
        save_checkpoint(
            Checkpoint(
                path,
                self.recipe,
                self.history,
                self.seconds,
                self.data_checksum,
                self.data.shape,
                self.data.classes,
                dict(self.network.state_dict()),
                self.best_model,
                {name: self.optimizer.state[value] for name, value in self.network.named_parameters()},
                self.random.get_state(),
            )
        )

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return math.ceil(len(self.train_samples) / self.recipe.schedule.batch_size)

    @property
    def _layers(self) -> list[str]:
        """Names of the spiking layers."""
        return [name for name, layer in self.network.named_modules() if isinstance(layer, SRMLayer)]

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return len(self.history) >= self.recipe.schedule.epochs

    def train_epoch(self, after_batch: Callable[[], object] = lambda: None) -> EpochRecord:
        """Trains for one epoch, evaluates, and adds the record to the history.

        Args:
            after_batch: called after each batch, for progress bars.

        Raises:
            DivergedError: if the gradient is not finite.
        """
        start = time.perf_counter()
        samples = len(self.train_samples)
        order = torch.randperm(samples, generator=self.random)
        draws = draw(samples, self.recipe.augmentation.crop, self.random)
        seed = int(torch.randint(2**62, (), generator=self.random))
        pieces = list(own_pieces(samples, self.recipe.schedule))
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.network.train()
        self.optimizer.zero_grad()
        with self._seeded(seed + processes().rank):  # for dropout
            loaded = self.train_samples.batches([order[piece.positions] for piece in pieces], self.device)
            batch = len(self.history) * self.batches
            for piece, (inputs, labels) in zip(pieces, loaded, strict=True):
                inputs = augment(inputs, draws[piece.positions], self.recipe.augmentation)
                sums += self._backward(inputs, labels, piece) * piece.samples
                if piece.last:
                    self._step(batch)
                    batch += 1
                    after_batch()
        loss, accuracy = (total(sums) / samples).tolist()
        validation_accuracy, firing_rates = self._evaluate(self.validation)
        record = EpochRecord(len(self.history) + 1, loss, accuracy, validation_accuracy, firing_rates)
        if self.recipe.schedule.hold_out and all(record.accuracy > earlier.accuracy for earlier in self.history):
            self.best_model = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.seconds += time.perf_counter() - start
        self.history.append(record)
        return record

    def test(self) -> Result:
        """The accuracy on the test samples: after the epoch that the held-out samples chose, or after the last."""
        if not self.recipe.schedule.hold_out:
            return Result(self.history[-1].accuracy, len(self.history))
        with self._chosen():
            accuracy, _ = self._evaluate(self.data.test)
        return Result(accuracy, max(self.history, key=lambda record: record.accuracy).epoch)

    @torch.no_grad()
    def predictions(self) -> tuple[Tensor, Tensor]:
        """Predicted classes of the test samples, after the epoch of `test`, and their labels, both [samples]."""
        parts = torch.arange(len(self.data.test)).split(self.recipe.schedule.batch_size)
        with self._chosen(), self._autocast():
            self.network.eval()
            batches = self.data.test.batches(list(parts), self.device)
            found = [(self._predict(self.network(self._prepare(inputs))), labels) for inputs, labels in batches]
        predicted, labels = (torch.cat(part).cpu() for part in zip(*found, strict=True))
        return predicted, labels

    @contextmanager
    def _chosen(self) -> Iterator[None]:
        """A block in which the network is that of the epoch that the held-out samples chose, if there are such."""
        if not self.best_model:
            yield
            return
        last = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.best_model)
        try:
            yield
        finally:
            self.network.load_state_dict(last)

    def diagnose(self) -> tuple[Finding, ...]:
        """What is conspicuous: in a pass of a batch, forward and backward, and in the history; it changes nothing."""
        return (*self.report().findings, *find_in_learning(self._learned()))

    def report(self) -> Report:
        """What is seen in a pass of a training batch, forward and backward; it changes nothing."""
        first = torch.arange(min(self.recipe.schedule.batch_size, len(self.train_samples)))
        inputs, labels = next(self.train_samples.batches([first], self.device))
        self.network.train()
        with self._seeded(0), watch(self.network, show=None) as watcher:
            self._forward(self.network, inputs, labels)[1].backward()
        self.optimizer.zero_grad()
        return watcher.report()

    def sample(self, number: int = 0) -> tuple[Tensor, Tensor, int]:
        """A test sample as it is, as the network takes it ([1, time, ...]), and its class."""
        inputs, labels = next(self.data.test.batches([torch.tensor([number])], self.device))
        return inputs[0], self._prepare(inputs), int(labels[0])

    def _learned(self) -> LearningReport | None:
        """Losses of the epochs, and the last evaluation."""
        if not self.history:
            return None
        labels, losses = self.validation.labels, [record.loss for record in self.history]
        return LearningReport(
            steps=len(losses) * self.batches,
            first_loss=losses[0] if len(losses) > 1 else math.nan,
            last_loss=losses[-1],
            finite=all(map(math.isfinite, losses)),
            samples=len(labels),
            correct=round(self.history[-1].accuracy * len(labels)),
            most_frequent=int(labels.unique(return_counts=True)[1].max()) / len(labels),
            guessing=math.log(self.data.classes)
            if self.finished and self.recipe.loss.name == "cross_entropy"
            else math.nan,
        )

    def _prepare(self, inputs: Tensor) -> Tensor:
        """From samples to what the network takes, [batch, time, ...]."""
        steps = (self.recipe.network.steps,) if self.data.over_time else ()
        inputs = self.normalization(inputs.view(len(inputs), *steps, *self.data.shape))
        return inputs if steps else encode_direct(inputs, self.recipe.network.steps)

    def _forward(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and mean loss."""
        with self._autocast():
            outputs = network(self._prepare(inputs))
        return outputs, compute_loss(self.recipe.loss, self.recipe.network.readout, outputs, labels)

    def _backward(self, inputs: Tensor, labels: Tensor, piece: Piece) -> Tensor:
        """Adds the gradient of a piece; returns its mean loss and the part that is right."""
        several = isinstance(self._parallel, DistributedDataParallel)
        with self._parallel.no_sync() if several and not piece.last else nullcontext():  # type: ignore[operator]
            outputs, loss = self._forward(self._parallel, inputs, labels)
            (loss * (processes().number * piece.samples / piece.batch)).backward()  # processes take the mean
        correct = self._predict(outputs.detach()) == labels
        return torch.stack((loss.detach().double(), correct.double().mean()))

    def _step(self, batch: int) -> None:
        settings = self.recipe.optimizer
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm or math.inf)
        if not torch.isfinite(norm):
            epoch = len(self.history) + 1
            raise DivergedError(
                f"the gradient is not finite in epoch {epoch}; lower the learning rate, {settings.learning_rate}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.recipe.schedule, batch, self.batches)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _predict(self, outputs: Tensor) -> Tensor:
        return predict_classes(self.recipe.loss, self.recipe.network.readout, outputs)

    @torch.no_grad()
    def _evaluate(self, samples: Samples) -> tuple[float, dict[str, float]]:
        """The part that is right, and spikes per neuron and step by the layer's name."""
        rank, count = processes()
        size = math.ceil(self.recipe.schedule.batch_size / self.recipe.schedule.accumulation)
        names = self._layers
        sums = torch.zeros(1 + len(names), dtype=torch.float64, device=self.device)
        self.network.eval()
        own = [part for part in torch.arange(rank, len(samples), count).split(size) if len(part)]
        for inputs, labels in samples.batches(own, self.device):
            with self._autocast():
                outputs, rates = record(self.network, self._prepare(inputs), partial(torch.mean, dtype=torch.float64))
            correct = (self._predict(outputs) == labels).double().mean()
            sums += torch.stack((correct, *(rates[name] for name in names))) * len(labels)
        accuracy, *mean_rates = (total(sums) / len(samples)).tolist()
        return accuracy, dict(zip(names, mean_rates, strict=True))

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.schedule.precision == "bfloat16")

    def _own_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """A block with random numbers of its own, which leaves those around it alone."""
        with torch.random.fork_rng(devices=self._own_devices()):
            torch.manual_seed(seed)
            yield

    def _distribute(self) -> None:
        """Lets processes train together, if there are several; they take the weights of the first."""
        if processes().number > 1:
            devices = self._own_devices() or None
            self._parallel = DistributedDataParallel(self.network, device_ids=devices)
