"""Checkpoints: what a file of a run holds, checked to the last field."""

import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from srm_triton.checks import shown
from srm_triton.files import write_atomically
from srm_triton.training.fields import convert
from srm_triton.training.recipe import Amount, Count, Recipe

_FORMAT, _VERSION = "srm-triton training run", 3


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file, what was found and what is allowed."""


class EpochRecord(NamedTuple):
    """What an epoch came to."""

    epoch: Count
    """1 for the first."""
    loss: Amount
    """Mean over the training samples, as the weights went along."""
    train_accuracy: Amount
    """Part of the training samples that were right, as the weights went along."""
    accuracy: Amount
    """Part of the held-out samples that are right after the epoch, or of the test samples where none are held out."""
    firing_rates: dict[str, Amount]
    """Spikes per neuron and step on these samples, by the layer's name."""


class Checkpoint(NamedTuple):
    """A run after an epoch, as it stands in a file."""

    path: Path
    recipe: Recipe
    history: list[EpochRecord]
    seconds: Amount
    data_checksum: int
    shape: tuple[Count, ...]
    """Of an input at one step."""
    classes: Count
    model: dict[str, Tensor]
    best_model: dict[str, Tensor]
    """After the epoch that the held-out samples chose; empty where there are none."""
    optimizer: dict[str, dict[str, Tensor]]
    """The state of each parameter by its name; learning rates and the like are the recipe's."""
    random_state: Tensor


def save_checkpoint(checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, whole or not at all."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        **checkpoint._asdict(),
        "recipe": asdict(checkpoint.recipe),
        "history": [record._asdict() for record in checkpoint.history],
    }
    del content["path"]
    write_atomically(checkpoint.path, lambda temporary: torch.save(content, temporary))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint; `TrainingRun.resume` continues from it.

    Raises:
        OSError: if the file cannot be read.
        CheckpointError: if it is damaged, something else than a checkpoint, or of another version.
    """
    path = Path(path)
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
    version = content.pop("version", None)
    if not isinstance(version, int) or version != _VERSION:
        raise CheckpointError(f"{path}: expected format version {_VERSION}, found {shown(version)}")
    del content["format"]
    try:
        checkpoint: Checkpoint = convert("checkpoint", {**content, "path": path}, Checkpoint)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the fields of version {_VERSION}, found others ({error})") from error
    epochs = checkpoint.recipe.schedule.epochs
    if [record.epoch for record in checkpoint.history] != list(range(1, len(checkpoint.history) + 1))[:epochs]:
        raise CheckpointError(f"{path}: expected at most {epochs} epochs from 1 on, found another history")
    return checkpoint
