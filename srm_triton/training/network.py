"""The network of a recipe, and what its layers do."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number
from srm_triton.layers import SRMLayer
from srm_triton.networks import spiking_network
from srm_triton.neuron import SRMNeuron
from srm_triton.parameters import SRMParameters
from srm_triton.training.recipe import Network, Recipe, RecipeError


def build_network(recipe: Recipe, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Builds the network of a recipe on the CPU; its weights depend on the seed alone.

    Args:
        recipe: which.
        shape: of an input at one step, (features,) or (channels, height, width).
        classes: number of classes.

    Raises:
        TypeError: for a shape of other than ints.
        ValueError: for a shape below 1.
        RecipeError: for a notation that cannot be read, sizes that do not fit, or time constants out of range.
    """
    settings = recipe.network
    shape = tuple(check_number("shape", size, 1, whole=True) for size in shape)
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
                keep=settings.keep,
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


def load_network(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Gives a network the tensors of a file.

    Raises:
        RuntimeError: for other names or shapes.
        ValueError: for another type, NaN, or constants of neurons out of range.
    """
    expected = network.state_dict()
    for name in state.keys() & expected.keys():
        check_stored(name, state[name], expected[name].dtype)
    network.load_state_dict(state)
    for module in network.modules():
        if isinstance(module, SRMNeuron):
            module.srm_parameters.check()


def check_stored(name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Checks that a tensor of a file is a dense one of `dtype` in memory, without NaN.

    Raises:
        ValueError: if it is not.
    """
    if (value.dtype, value.layout, value.device.type) != (dtype, torch.strided, "cpu"):
        raise ValueError(f"{name} as a tensor of {value.dtype} ({value.layout}, {value.device})")
    if value.isnan().any():
        raise ValueError(f"NaN in {name}")


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
