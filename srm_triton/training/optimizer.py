"""The optimizer of a recipe, its learning rate and its state."""

import math

import torch
from torch import Tensor, nn

from srm_triton.training.network import check_stored
from srm_triton.training.recipe import Optimizer, Schedule

_STATE = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}


def build_optimizer(network: nn.Module, recipe: Optimizer) -> torch.optim.Optimizer:
    """Builds the optimizer, in which weights decay at another rate than all else."""
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": recipe.norm_weight_decay},
    ]
    if recipe.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def learning_rate(optimizer: Optimizer, schedule: Schedule, batch: int, batches: int) -> float:
    """The learning rate of a batch, counted from 0 over all epochs.

    Args:
        optimizer: has the rates.
        schedule: has the epochs and the shape.
        batch: which.
        batches: in an epoch.
    """
    warm, rate, end = schedule.warm_up * batches, optimizer.learning_rate, optimizer.final_learning_rate
    if batch < warm:
        return rate * min(1.0, (batch + 1) / warm)
    if schedule.learning_rate == "constant":
        return rate
    return end + (rate - end) * (1 + math.cos(math.pi * (batch - warm) / (schedule.epochs * batches - warm))) / 2


def load_state(
    optimizer: torch.optim.Optimizer,
    recipe: Optimizer,
    parameters: dict[str, nn.Parameter],
    states: dict[str, dict[str, Tensor]],
) -> None:
    """Gives an optimizer the state that a checkpoint holds for each parameter by its name.

    Raises:
        ValueError: if it is that of other parameters or of another optimizer, or as `check_stored`.
    """
    if states.keys() != parameters.keys():
        raise ValueError(f"the optimizer's state of {', '.join(states) or 'no parameter'}")
    for name, state in states.items():
        parameter = parameters[name]
        fits = all(value.shape == (() if key == "step" else parameter.shape) for key, value in state.items())
        if state and (state.keys() != _STATE[recipe.name] or not fits):
            found = {key: list(value.shape) for key, value in state.items()}
            raise ValueError(f"another optimizer's state of {name}, {found}")
        for key, value in state.items():
            check_stored(f"{name}.{key}", value, torch.float32 if key == "step" else parameter.dtype)
        if state:
            moved = {key: value if key == "step" else value.to(parameter.device) for key, value in state.items()}
            optimizer.state[parameter] = moved
