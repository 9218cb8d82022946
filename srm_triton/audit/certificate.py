"""How exact the event-driven gradient is, and which of its published choices costs how much: `srm-triton audit`."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from srm_triton.audit.event_rule import Rule
from srm_triton.audit.gradients import (
    exact_differences,
    exact_gradients,
    interpolated_differences,
    package_gradients,
    rule_gradients,
)
from srm_triton.audit.networks import NETWORKS, Case, Network, draw
from srm_triton.checks import check_number

REFINEMENTS = (1, 2, 4, 8, 16, 32, 64)

DERIVATIVE = Rule()
PUBLISHED = Rule(*[True] * len(fields(Rule)))
SWITCHED_OFF = Rule(by_inputs=True, fixed_resets=True)
"""What remains of the choices where the options of the package switch off what they can."""

CHOICES = {
    "no choice": DERIVATIVE,
    "slope clamp [0, 4]": Rule(clamp=True),
    "factor 0.85": Rule(damping=True),
    "time trace τ_g": Rule(trace=True),
    "pooling shares by activity": Rule(sharing=True),
    "convolution times its inputs": Rule(by_inputs=True),
    "these two": Rule(sharing=True, by_inputs=True),
    "would-be events of silent outputs": Rule(would_be=True),
    "reset not differentiated": Rule(fixed_resets=True),
    "as published": PUBLISHED,
}


class Convergence(NamedTuple):
    """How the error of a gradient falls with the time step."""

    network: str
    """Name."""
    gradient: str
    """Which."""
    reference: str
    """What it is compared with."""
    errors: tuple[float, ...]
    """For each step, half of the one before."""

    @property
    def order(self) -> float:
        """The exponent p of error ~ step^p, fitted to the four smallest steps; NaN where errors are 0 or not finite."""
        if not all(0 < error < math.inf for error in self.errors[-4:]):
            return math.nan
        logarithms = [math.log2(error) for error in self.errors[-4:]]
        return -statistics.linear_regression(range(4), logarithms).slope


class Deviation(NamedTuple):
    """What a choice does to the gradient, at the smallest step."""

    choice: str
    """Which of `CHOICES`."""
    network: str
    """Name."""
    error: float
    """Relative error."""
    cosine: float
    """Of the angle to the exact gradient."""
    applies: bool
    """Whether it changes a gradient of this network at all."""


class Audit(NamedTuple):
    """What `audit` finds."""

    seeds: int
    """How many networks of each kind were drawn."""
    refinements: tuple[int, ...]
    """The numbers n of the steps 1/n."""
    eventprop_error: float
    """The largest error of EventProp against finite differences of exact spike times, in one network of each kind."""
    package_error: float
    """The largest difference of a gradient of the package from the rule written out."""
    convergence: list[Convergence]
    """For each network."""
    deviations: list[Deviation]
    """For each choice and network."""

    @property
    def passed(self) -> bool:
        """Whether EventProp is exact, the package follows the rule, and that without choices converges to EventProp."""
        rows = [row for row in self.convergence if (row.gradient, row.reference) == ("no choice", "EventProp")]
        converge = all(row.errors[-1] < 0.1 and row.order > 0.7 for row in rows)
        return bool(rows) and self.eventprop_error < 1e-7 and self.package_error < 1e-10 and converge


def audit(
    seeds: int = 9,
    networks: Sequence[Network] = NETWORKS,
    refinements: Sequence[int] = REFINEMENTS,
    after_network: Callable[[], object] = lambda: None,
) -> Audit:
    """Compares the gradients of every network.

    Args:
        seeds: how many networks of each kind to draw, at least 1.
        networks: their kinds.
        refinements: numbers n of the steps 1/n, each twice the one before, four or more.
        after_network: called after each of the networks.

    Raises:
        TypeError: if a number is no int.
        ValueError: if `seeds` is below 1, there are no `networks`, or `refinements` are others.

    Example:
        >>> result = audit(3, NETWORKS[:1], refinements=(8, 16, 32, 64))
        >>> [row.errors[-1] < 0.02 for row in result.convergence if row.gradient == "no choice"]
        [True, True]
    """
    seeds = check_number("seeds", seeds, 1, whole=True)
    refinements = [check_number("refinements", n, 1, whole=True) for n in refinements]
    if len(refinements) < 4 or any(2 * n != finer for n, finer in itertools.pairwise(refinements)):
        raise ValueError(f"refinements must be four or more, each twice the one before, got {tuple(refinements)}")
    if not networks:
        raise ValueError("networks must hold at least one, got none")
    results = Audit(seeds, tuple(refinements), 0.0, 0.0, [], [])
    for network in networks:
        results = _add(results, draw(network, range(seeds)))
        after_network()
    return results


def _add(results: Audit, cases: Sequence[Case]) -> Audit:
    name = cases[0].network.name
    exact = torch.stack([exact_gradients(case)[0] for case in cases])
    eventprop_error = _errors(exact[0], exact_differences(cases[0])).item()
    package_errors, errors = list[float](), dict[tuple[str, str], list[float]]()
    for refinement in results.refinements:
        found = rule_gradients(cases, refinement, {**CHOICES, "options off": SWITCHED_OFF})
        package_errors.append(_package_error(cases, refinement))
        first = {choice: gradients[0] for choice, gradients in found.items()}
        first["finite differences"] = interpolated_differences(cases, refinement)
        for gradient, reference in (
            ("as published", "EventProp"),
            ("options off", "EventProp"),
            ("no choice", "EventProp"),
            ("no choice", "finite differences"),
            ("finite differences", "EventProp"),
        ):
            error = _errors(first[gradient], exact if reference == "EventProp" else first[reference])
            errors.setdefault((gradient, reference), []).append(error.median().item())
    return Audit(
        results.seeds,
        results.refinements,
        _largest(results.eventprop_error, eventprop_error),
        _largest(results.package_error, *package_errors),
        [*results.convergence, *(Convergence(name, *pair, tuple(found)) for pair, found in errors.items())],
        [*results.deviations, *(_deviation(name, choice, first, exact) for choice in CHOICES)],
    )


def _largest(*errors: float) -> float:
    return torch.tensor(errors, dtype=torch.float64).max().item()  # NaN if there is one, unlike Python's


def _deviation(network: str, choice: str, found: dict[str, Tensor], exact: Tensor) -> Deviation:
    gradient = found[choice]
    cosine = F.cosine_similarity(gradient, exact, dim=-1).median().item()
    applies = bool((_errors(gradient, found["no choice"]) > 1e-9).any())
    return Deviation(choice, network, _errors(gradient, exact).median().item(), cosine, applies)


def _errors(gradient: Tensor, reference: Tensor) -> Tensor:
    return (gradient - reference).norm(dim=-1) / reference.norm(dim=-1)


def _package_error(cases: Sequence[Case], refinement: int) -> float:
    """What the package can be set to, against the same written out; its would-be events are made for steps of 1."""
    published = replace(PUBLISHED, would_be=refinement == 1)
    found = rule_gradients(cases, refinement, {"published": published, "off": SWITCHED_OFF})
    differences = [
        _errors(package, torch.cat([gradient[number] for gradient in found[name]]))
        for name in found
        for number, case in enumerate(cases)
        for package in [torch.cat(package_gradients(case, refinement, published=name == "published"))]
    ]
    return torch.stack(differences).max().item()
