"""Training of classifiers by recipes: what `srm-triton train` does.

- `recipe`: `Recipe`, read from TOML, and its tables, which `fields` checks;
- `samples`, `sources`: training and test samples, checked, and what a recipe names;
- `augmentation`: mirrored and cropped images, normalisation;
- `network`, `objective`: the network, its loss and its predictions;
- `optimizer`: the optimizer, its learning rate and its state;
- `run`, `loop`: an epoch, and all of them, with checkpoints, warnings and a progress bar;
- `checkpoint`: what a file of a run holds;
- `processes`: those that `torchrun` starts, and what falls to each.

An interrupted run that is resumed ends with the weights and the history of one that was not: a checkpoint holds all
that the next epoch depends on, and it replaces the last one only once it is complete.
"""

from srm_triton.training.checkpoint import Checkpoint, CheckpointError, EpochRecord, load_checkpoint
from srm_triton.training.loop import CHECKPOINT, LEARNING_PLOT, METRICS, RUN_PLOT, SAMPLE_PLOT, save_metrics, train
from srm_triton.training.network import build_network, record
from srm_triton.training.objective import Loss
from srm_triton.training.processes import Processes, processes, together
from srm_triton.training.recipe import (
    Augmentation,
    Data,
    Network,
    Optimizer,
    Recipe,
    RecipeError,
    Schedule,
    built_in_recipes,
    change_recipe,
    load_recipe,
)
from srm_triton.training.run import DivergedError, Result, TrainingRun
from srm_triton.training.samples import Samples, TrainingData, training_data
from srm_triton.training.sources import load_data

__all__ = [
    "CHECKPOINT",
    "LEARNING_PLOT",
    "METRICS",
    "RUN_PLOT",
    "SAMPLE_PLOT",
    "Augmentation",
    "Checkpoint",
    "CheckpointError",
    "Data",
    "DivergedError",
    "EpochRecord",
    "Loss",
    "Network",
    "Optimizer",
    "Processes",
    "Recipe",
    "RecipeError",
    "Result",
    "Samples",
    "Schedule",
    "TrainingData",
    "TrainingRun",
    "build_network",
    "built_in_recipes",
    "change_recipe",
    "load_checkpoint",
    "load_data",
    "load_recipe",
    "processes",
    "record",
    "save_metrics",
    "together",
    "train",
    "training_data",
]
