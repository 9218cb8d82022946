"""What was measured of layers, in numbers, and the table that shows it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from srm_triton.diagnosis.finding import Finding
from srm_triton.diagnosis.learning import LearningReport


@dataclass(frozen=True)
class LayerReport:
    """What a spiking layer did while it was watched; shares are of 1, and nan stands for what was not seen."""

    name: str
    """As `named_modules` has it; empty for the model itself."""
    kind: str
    """The name of its class."""
    gradient: str
    """``"event"``, ``"original"`` or ``"surrogate"``."""
    output: bool
    """Whether silent neurons count as firing once in the backward."""
    passes: int
    """Calls that were measured."""
    steps: int
    """Time steps of the last one."""
    tau_s: float
    """The largest synaptic time constant."""
    rate: float
    """Spikes per neuron and step."""
    recent_rate: float
    """The same over the last passes, at most 16."""
    silent: float
    """Share of the neurons that have not fired at all."""
    saturated: float
    """Share of the neurons that fired at 95 % of the steps or more."""
    silent_samples: float
    """Share of the samples in the last passes for which no neuron of the layer fired."""
    slopes_at_limit: float
    """Share of the spikes whose 1/Δu the event rule clamps at its limit."""
    slopes_at_zero: float
    """Share of the spikes whose 1/Δu it clamps at 0, as the potential fell."""
    time_slopes_at_zero: float
    """Share of the spikes that hand no gradient to earlier spikes, as their gradient trace is negative."""
    weight_gradient: float
    """Norm of the gradient of the layer's weights, mean of the last passes."""
    spike_gradient: float
    """Norm of the gradient at its spikes, mean of the last passes."""
    weight_growth: float
    """Norm of its weights, divided by that at the start, or of rows of length 1 where that is more."""
    finite_weights: bool
    """Whether they hold neither NaN nor infinity."""
    bad_inputs: int
    """Passes whose inputs held NaN or infinity."""
    zero_inputs: bool
    """Whether all inputs of the last passes were 0."""
    same_samples: bool
    """Whether in each pass with several samples these were equal, though steps differed."""
    single_step: bool
    """Whether each pass was one step without a state."""
    origins: frozenset[str]
    """What its inputs were computed from, as autograd knows: ``"spikes"``, ``"parameters"`` of ordinary modules."""
    by_value: bool
    """Whether its inputs receive the derivative with respect to their value rather than the time path."""

    @property
    def title(self) -> str:
        """How sentences name it."""
        return f"layer {self.name!r} ({self.kind})" if self.name else f"the model, an {self.kind},"

    def finding(self, kind: str, message: str, remedy: str) -> Finding:
        """A finding whose message begins with the layer."""
        return Finding(kind, self.name, f"{self.title[0].upper()}{self.title[1:]} {message}", remedy)


@dataclass(frozen=True)
class Report:
    """What was seen in a `watch` block so far; as text, a table of the layers and the findings.

    Attributes:
        layers: a report on each layer that ran, in the order in which they did.
        learning: what `Watcher.observe` was told; None if nothing.
        findings: what is conspicuous; empty for a healthy network.
    """

    layers: tuple[LayerReport, ...]
    learning: LearningReport | None
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        head = ("layer", "rate", "silent", "saturated", "slopes at limit", "at 0", "gradient: weights", "spikes")
        rows = [head, *(_row(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join((*lines, *map(str, self.findings)) if self.findings else (*lines, healthy(self.layers)))


def _row(layer: LayerReport) -> tuple[str, ...]:
    shares = layer.silent, layer.saturated, layer.slopes_at_limit, layer.slopes_at_zero
    norms = layer.weight_gradient, layer.spike_gradient
    name = layer.name or layer.kind
    return (
        name,
        f"{layer.rate:.3f}",
        *("–" if math.isnan(share) else f"{share:.1%}" for share in shares),
        *("–" if math.isnan(norm) else f"{norm:.1e}" for norm in norms),
    )


def healthy(layers: Iterable[LayerReport]) -> str:
    """What is said where there is no finding."""
    count = len(tuple(layers))
    return f"Nothing conspicuous in {count} spiking layer{'s' * (count != 1)}."
