"""The network of a recipe, and what its layers do."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from srm_triton.layers import SRMLayer
from srm_triton.networks import spiking_network
from srm_triton.parameters import SRMParameters
from srm_triton.training.recipe import Network, Recipe, RecipeError


def build_network(recipe: Recipe, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Builds the network of a recipe on the CPU; its weights depend on the seed alone.

    Args:
        recipe: which.
        shape: of an input at one step, (features,) or (channels, height, width).
        classes: number of classes.

    Raises:
        RecipeError: for a notation that cannot be read, sizes that do not fit, or time constants out of range.
    """
    settings = recipe.network
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        try:
            return spiking_network(
                settings.notation,
                shape if len(shape) == 3 else math.prod(shape),
                classes,
                steps=settings.steps,
                readout=settings.readout,
                parameters=_constants(settings),
                bias=settings.bias,
                padding=settings.padding,
                dropout=settings.dropout,
                learn=settings.learn,
                gradient=settings.gradient,
                surrogate=settings.surrogate,
                time_gradient_scale=settings.time_gradient_scale,
            )
        except (TypeError, ValueError) as error:
            raise RecipeError(f"[network] {error}") from error


def _constants(settings: Network) -> SRMParameters | None:
    if settings.time_constants == "spread":
        return None
    if len(settings.time_constants) != 3:
        raise ValueError(
            f"time_constants must be 'spread' or three numbers, τ_m, τ_s and τ_g, got {settings.time_constants}"
        )
    return SRMParameters(*settings.time_constants)


def record(
    network: nn.Module, inputs: Tensor, measure: Callable[[Tensor], Tensor] = lambda spikes: spikes
) -> tuple[Tensor, dict[str, Tensor]]:
    """The outputs of a network, and the spikes of each spiking layer by its name, or what is measured of them."""
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, spikes, name=name: found.update({name: measure(spikes)}))
        for name, layer in network.named_modules()
        if isinstance(layer, SRMLayer)
    ]
    try:
        return network(inputs), found
    finally:
        for hook in hooks:
            hook.remove()
