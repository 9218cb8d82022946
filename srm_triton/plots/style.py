"""Colours that colour-blind readers can tell apart, and figures without matplotlib's global state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm_triton.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SPIKE, TARGET, OTHER, THRESHOLD = "#1b2a49", "#d1495b", "#5b7c99", "#9a9a9a"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito, "Color universal design", 2008, without its yellow, which is too light for lines on white."""
MARKERS = "osD^vPX"


def series(number: int) -> dict[str, Any]:
    """Colour, marker and line of a series; 49 are different."""
    again, color = divmod(number, len(SERIES))
    marker = MARKERS[(color + again) % len(MARKERS)]
    return {"color": SERIES[color], "marker": marker, "linestyle": ("-", "--", ":")[again % 3]}


def legend(axes: "Axes", *, beside: bool) -> None:
    """A legend within the axes, or to the right of them."""
    where: Any = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False} if beside else {"loc": "best"}
    axes.legend(fontsize="small", **where)


def figure(width: float, height: float) -> "Figure":
    """A figure of a size in inches.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.05))


def axes_or_new(axes: "Axes | None", width: float = 6.4, height: float = 4.0) -> "Axes":
    """The axes that were handed in, or those of a new figure."""
    return figure(width, height).add_subplot() if axes is None else axes


def save(drawn: "Figure", path: Path) -> None:
    """Writes a PNG file."""
    write_atomically(path, lambda temporary: drawn.savefig(temporary, dpi=120, format="png"))


def whole_numbers(axis: "Axis", count: int) -> None:
    """Ticks at whole numbers only; at every one of them where there are few."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    axis.set_major_locator(FixedLocator(range(count)) if count <= 10 else MaxNLocator(integer=True))
