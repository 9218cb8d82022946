"""Operations of a network, and an estimate of the energy that they take.

Energy is in picojoules for 32-bit floats at 45 nm and 0.9 V, from Horowitz, "Computing's energy problem (and what we
can do about it)", ISSCC 2014: addition 0.9, multiplication 3.7, and 20 for 64 bits from a cache of 32 KiB, of which a
word of 32 bits is taken for half. Assumed, not measured: three words for an operation (weight, sum before, sum after)
and four for a neuron at a step, whether it fires or not (potential and synaptic current, before and after), with three
multiplications and two additions; nothing for moving spikes, for control, or for what a larger memory would take. A
count without memory flatters spiking networks: memory is most of the energy.
"""

from dataclasses import dataclass
from typing import NamedTuple

from srm_triton.checks import check_number


class Energy(NamedTuple):
    """An estimate of energy, in picojoules a sample."""

    arithmetic: float
    memory: float

    @property
    def total(self) -> float:
        """The sum of both."""
        return self.arithmetic + self.memory


@dataclass(frozen=True)
class EnergyCosts:
    """What an operation takes, in picojoules; the defaults are those of the module.

    Args:
        addition: of two numbers.
        multiplication: of two numbers.
        word: to read or write a number in memory; 0 for arithmetic alone.

    Raises:
        TypeError: for values that are no numbers.
        ValueError: for values below 0.
    """

    addition: float = 0.9
    multiplication: float = 3.7
    word: float = 10.0

    def __post_init__(self) -> None:
        for name in ("addition", "multiplication", "word"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), 0))


@dataclass(frozen=True)
class LayerOperations:
    """Operations of a layer for a sample, on average."""

    name: str
    """As `named_modules` has it; empty for the model itself."""
    kind: str
    """The name of its class."""
    multiply_accumulates: float
    """Of values that are not 0 with weights that are not."""
    accumulates: float
    """Of weights that are not 0, for spikes."""
    dense: float
    """What it would be if all values and weights counted."""
    neuron_updates: float
    """Neurons times steps."""

    def energy(self, costs: EnergyCosts | None = None) -> Energy:
        """The estimate, see the module."""
        costs = EnergyCosts() if costs is None else costs
        operations = self.multiply_accumulates + self.accumulates
        additions = operations + 2 * self.neuron_updates
        multiplications = self.multiply_accumulates + 3 * self.neuron_updates
        words = 3 * operations + 4 * self.neuron_updates
        return Energy(additions * costs.addition + multiplications * costs.multiplication, words * costs.word)


@dataclass(frozen=True)
class SynapticOperations:
    """Operations of a network for a sample, on average; as text, a table with the energy beside."""

    layers: tuple[LayerOperations, ...]
    """In the order in which they ran; a recurrent layer counts its own spikes with its inputs."""
    samples: int
    """Number of samples that were averaged."""

    @property
    def total(self) -> LayerOperations:
        """The sum over the layers."""
        names = ("multiply_accumulates", "accumulates", "dense", "neuron_updates")
        return LayerOperations("total", "", *(sum(getattr(layer, name) for layer in self.layers) for name in names))

    def energy(self, costs: EnergyCosts | None = None) -> Energy:
        """The estimate, see the module."""
        return self.total.energy(costs)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "multiply-accumulates", "accumulates", "dense", "neuron updates", "nJ", "of it memory")
        ]
        for layer in (*self.layers, self.total):
            energy = layer.energy()
            counts = layer.multiply_accumulates, layer.accumulates, layer.dense, layer.neuron_updates
            share = f"{energy.memory / energy.total:.0%}" if energy.total else "–"
            name = layer.name or layer.kind
            rows.append((name, *(f"{count:,.0f}" for count in counts), f"{energy.total / 1000:,.1f}", share))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(lines)
