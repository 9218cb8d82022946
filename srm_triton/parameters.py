"""The constants of an SRM neuron, validated once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class SRMParameters:
    """Constants of an SRM neuron; time constants are in steps.

    Args:
        tau_m: membrane time constant, > 1 and different from `tau_s`.
        tau_s: synaptic time constant, > 1.
        tau_g: time constant of the gradient between spike times, > 1.
        threshold: membrane potential above which the neuron fires, > 0.
        membrane_slope_limit: largest 1/Δu in the gradient to the weights, > 0.
        gradient_slope_limit: largest 1/Δu_t in the gradient to earlier spike times (κ), > 0.

    Raises:
        TypeError: if a value is not a number.
        ValueError: if a value is out of its range.

    Example:
        >>> SRMParameters(tau_m=10.0).decays
        (0.9, 0.6666666666666667, 0.6)
    """

    tau_m: float = 5.0
    tau_s: float = 3.0
    tau_g: float = 2.5
    threshold: float = 1.0
    membrane_slope_limit: float = 4.0
    gradient_slope_limit: float = 123456789.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            lower = 1 if field.name.startswith("tau") else 0
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{field.name} must be a number, got {value!r} of type {type(value).__name__}")
            if not (math.isfinite(value) and value > lower):
                raise ValueError(f"{field.name} must be finite and > {lower}, got {value}")
        if self.tau_m == self.tau_s:
            raise ValueError(f"tau_m and tau_s must differ, got {self.tau_m} for both")

    @property
    def decays(self) -> tuple[float, float, float]:
        """The decay factors (a_m, a_s, a_g) of one step, a = 1 − 1/τ."""
        return 1 - 1 / self.tau_m, 1 - 1 / self.tau_s, 1 - 1 / self.tau_g

    @property
    def amplitude(self) -> float:
        """C = τ_m / (τ_m − τ_s), the factor between the states' difference and the membrane potential."""
        return self.tau_m / (self.tau_m - self.tau_s)

    @property
    def rise(self) -> float:
        """c·(a_m − a_s) = 1/τ_s, the membrane potential one step after a unit current."""
        return 1 / self.tau_s

    def to_list(self) -> list[float]:
        """The constants in the order of the fields, as custom ops take them."""
        return [
            float(self.tau_m),
            float(self.tau_s),
            float(self.tau_g),
            float(self.threshold),
            float(self.membrane_slope_limit),
            float(self.gradient_slope_limit),
        ]

    @classmethod
    def from_list(cls, values: Sequence[float]) -> "SRMParameters":
        """The constants that `to_list` returned; they have been checked."""
        parameters = object.__new__(cls)
        parameters.__dict__.update(zip(cls.__annotations__, values, strict=True))
        return parameters


_DEFAULT = SRMParameters()


def check_parameters(parameters: SRMParameters | None) -> SRMParameters:
    """Returns the constants, the default ones for None.

    Raises:
        TypeError: for anything else.
    """
    if parameters is None:
        return _DEFAULT
    if not isinstance(parameters, SRMParameters):
        raise TypeError(f"parameters must be SRMParameters or None, got {type(parameters).__name__}")
    return parameters
