"""Something conspicuous in a network, as a sentence and what to try."""

from typing import NamedTuple


class Finding(NamedTuple):
    """Something conspicuous."""

    kind: str
    """A word for it: ``"dead"``, ``"saturated"``, ``"chance"`` and so on."""
    layer: str | None
    """The layer's name; None for what concerns the whole network or the loop."""
    message: str
    """What is wrong, in a sentence."""
    remedy: str
    """What to try, in a sentence."""

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"
