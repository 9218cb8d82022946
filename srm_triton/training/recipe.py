"""Recipes: all that determines a training run, given the data and the machine. TOML files hold them."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from srm_triton.data.frames import By, Values
from srm_triton.levels import Keep
from srm_triton.networks import Readout
from srm_triton.ops.srm_scan import Gradient, Surrogate
from srm_triton.training.fields import Range, Table, convert
from srm_triton.training.objective import Loss, check_loss

Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Amount = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, below=1)]


class RecipeError(ValueError):
    """A recipe cannot be used; the message names its file, the key and what is allowed."""


@dataclass(frozen=True)
class Data(Table):
    """What to train with.

    Args:
        name: ``"digits"``, ``"fashion-mnist"``, ``"mnist"``, ``"kmnist"``, ``"n-mnist"``, ``"dvs-gesture"``, ``"shd"``,
            or a file or folder of images, as `srm_triton.data.load_images` reads it.
        folder: where the files of a data set with a name lie.
        frames: of events: ``"time"`` or ``"number"``, as in `srm_triton.data.Frames`.
        frame_size: (height, width) or (units,) of frames; empty for that of the sensor.
        values: of frames: ``"counts"`` or ``"binary"``.
        workers: processes that read recordings; 0 for none beside the one that trains.
    """

    name: str = "digits"
    folder: str = ""
    frames: By = "time"
    frame_size: tuple[Count, ...] = ()
    values: Values = "counts"
    workers: Natural = 0


@dataclass(frozen=True)
class Network(Table):
    """A network, as `srm_triton.spiking_network` makes it.

    Args:
        notation: hidden layers, such as ``"32C5-P2-100"``.
        steps: number of time steps T.
        readout: ``"membrane"`` or ``"spikes"``.
        gradient: ``"surrogate"`` or ``"event"``.
        surrogate: ``"arctan"`` or ``"fast_sigmoid"``.
        time_constants: ``"spread"``, as `srm_triton.time_constants`, or τ_m, τ_s and τ_g.
        learn: which constants are learned.
        bias: whether currents have a bias.
        padding: of convolutions.
        dropout: probability at which an output of a hidden layer is dropped.
        time_gradient_scale: factor on event gradients to spike times.
        spikes_per_neuron: in a sequence, to which the fresh network is calibrated; or ``"usual"``.
        keep: what the backward holds on to: ``"current"``, or ``"spikes"`` to save memory.
    """

    notation: str = "256"
    steps: Count = 8
    readout: Readout = "membrane"
    gradient: Gradient = "surrogate"
    surrogate: Surrogate = "arctan"
    time_constants: Literal["spread"] | tuple[float, ...] = "spread"
    learn: tuple[Literal["threshold", "tau_m", "tau_s"], ...] = ()
    bias: bool = True
    padding: Literal["same"] | Natural = "same"
    dropout: Share = 0.0
    time_gradient_scale: Amount = 0.85
    spikes_per_neuron: Literal["usual"] | Positive = "usual"
    keep: Keep = "current"


@dataclass(frozen=True)
class Optimizer(Table):
    """An optimizer.

    Args:
        name: ``"adamw"`` or ``"sgd"``.
        learning_rate: after the warm-up.
        final_learning_rate: at which a cosine ends.
        momentum: of SGD.
        weight_decay: of weights.
        norm_weight_decay: of gains, offsets, biases and learned constants.
        clip_norm: largest norm of the gradient; 0 for any.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 3e-3
    final_learning_rate: Amount = 0.0
    momentum: Share = 0.0
    weight_decay: Amount = 0.01
    norm_weight_decay: Amount = 0.0
    clip_norm: Amount = 1.0


@dataclass(frozen=True)
class Augmentation(Table):
    """What is done to images, or to frames in all steps alike; only in training, but for the normalisation.

    Args:
        flip: whether to mirror half of the samples, drawn at random, left to right.
        crop: zeros that are put around a sample before a part of its size is cut out at random.
        normalization: ``"none"``; ``"data"``, to mean 0 and deviation 1 of each channel of the training samples; or the
            mean and the deviation, of one channel after another if there are several: all means, then all deviations.
    """

    flip: bool = False
    crop: Natural = 0
    normalization: Literal["none", "data"] | tuple[float, ...] = "none"


@dataclass(frozen=True)
class Schedule(Table):
    """How long, and in which pieces.

    Args:
        epochs: passes through the training samples.
        batch_size: samples in a step of the optimizer, over all processes.
        accumulation: pieces in which a process computes its part of a batch, one after the other, to save memory.
        learning_rate: ``"cosine"``, with each batch along half a wave down, or ``"constant"``.
        warm_up: epochs in which it rises from 0.
        precision: ``"float32"``, or ``"bfloat16"`` where autocast allows.
        hold_out: training samples set aside to choose the epoch with; with 0 the last epoch is taken.
    """

    epochs: Count = 20
    batch_size: Count = 64
    accumulation: Count = 1
    learning_rate: Literal["cosine", "constant"] = "cosine"
    warm_up: Amount = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    hold_out: Natural = 0


@dataclass(frozen=True)
class Recipe(Table):
    """All that determines a training run; the defaults suit the digits.

    Args:
        note: a source or a remark, which is printed.
        seed: of weights, order, augmentation, dropout and what is held out.
        data: a `Data`.
        network: a `Network`.
        loss: a `Loss`.
        optimizer: an `Optimizer`.
        augmentation: an `Augmentation`.
        schedule: a `Schedule`.

    Raises:
        TypeError: if a value has another type.
        ValueError: if a value is out of its range, or two do not go together.

    Example:
        >>> Recipe(network=Network("32C5-P2-100", steps=4)).schedule.batch_size
        64
    """

    note: str = ""
    seed: Natural = 0
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    augmentation: Augmentation = field(default_factory=Augmentation)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule = self.schedule
        if schedule.accumulation > schedule.batch_size:
            raise ValueError(
                f"[schedule] accumulation must be at most the batch_size, {schedule.batch_size}, "
                f"got {schedule.accumulation}"
            )
        if schedule.warm_up > schedule.epochs:
            raise ValueError(f"[schedule] warm_up must be at most epochs, {schedule.epochs}, got {schedule.warm_up:g}")
        check_loss(self.loss, self.network.readout, self.network.steps)


def built_in_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    names = (path.name for path in _folder().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_recipe(source: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        source: a name of `built_in_recipes`, or a TOML file.
        changes: as of `change_recipe`.

    Raises:
        OSError: if the file cannot be read.
        RecipeError: if it is no TOML, has other keys, or values of other types or out of range.

    Example:
        >>> load_recipe("digits", {"schedule.epochs": 3}).schedule.epochs
        3
    """
    built_in = str(source) in built_in_recipes()
    path = _folder() / f"{source}.toml" if built_in else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{source}: expected a TOML file or one of {', '.join(built_in_recipes())}, found none")
    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{source}: expected TOML, found another text ({error})") from error
    return recipe_of(str(source), tables, changes)


def change_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values.

    Args:
        recipe: which.
        changes: values by table and key, such as ``{"schedule.epochs": 3}``.

    Raises:
        RecipeError: as `load_recipe`.
    """
    return recipe_of("recipe", asdict(recipe), changes)


def recipe_of(source: str, tables: Any, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of tables, as TOML holds them.

    Raises:
        RecipeError: as `load_recipe`, with `source` in its message.
    """
    try:
        for path, value in (changes or {}).items():
            tables = _changed(tables, path, value)
        return convert("recipe", tables, Recipe)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{source}: {str(error).removeprefix('[recipe] ')}") from error


def _changed(tables: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {**tables, first: _changed(tables.get(first, {}), rest, value) if rest else value}


def _folder() -> Any:
    return files("srm_triton.training") / "recipes"
