"""How near operations come to what memory allows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from srm_triton.plots.style import axes_or_new, legend, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOF = "copy"


def roofline(run: Mapping[str, Any], *, axes: "Axes | None" = None) -> "Axes":
    """Draws how fast each contender of a benchmark run is, as a part of what the machine's memory allows.

    The operations here do so little with each byte that memory is their roof: they cannot be faster than a copy of the
    bytes that they must move at least, which the benchmark measures beside them. Cases without one are left out.

    Args:
        run: what a file of `bench/results` holds, as `json.load` returns it.
        axes: where to draw; None for a new figure.

    Raises:
        TypeError: for anything but a run.
        ValueError: for a run without a copy beside a case.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> times = {"native": {"nanoseconds": 2.0}, "copy": {"nanoseconds": 1.0, "moved_bytes": 8}}
        >>> case = {"operation": "srm_scan", "case": "forward", "threads": 1, "contenders": times}
        >>> roofline({"results": [case]}).get_yticklabels()[0].get_text()
        'srm_scan, forward, 1 thread (8 GB/s)'
    """
    if not isinstance(run, Mapping) or "results" not in run:
        raise TypeError(f"run must be what a file of bench/results holds, with 'results', got {type(run).__name__}")
    cases = [case for case in run["results"] if "nanoseconds" in case["contenders"].get(ROOF, {})]
    if not cases:
        raise ValueError("run must hold a case with a copy beside it, which is the roof, got none")
    axes = axes_or_new(axes, 10, max(2.5, 1.6 + 0.42 * len(cases)))
    names = dict.fromkeys(name for case in cases for name in case["contenders"] if name != ROOF)
    shares: list[float] = [1.0]
    for number, name in enumerate(names):
        times = {row: case["contenders"].get(name, {}).get("nanoseconds") for row, case in enumerate(cases)}
        rows = [row for row, time in times.items() if time]
        speeds = [cases[row]["contenders"][ROOF]["nanoseconds"] / times[row] for row in rows]
        shares += speeds
        if rows:
            axes.plot(speeds, rows, label=name, markersize=7, **(series(number) | {"linestyle": "none"}))
    axes.axvline(1, color="black", linewidth=2, label="roof: a copy of as many bytes")
    axes.set(xscale="log", xlabel="speed, as a part of the copy's")
    axes.set_yticks(range(len(cases)), map(_label, cases))
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlim(min(0.09, 0.8 * min(shares)), 1.3 * max(1.0, *shares))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3, which="both", axis="x")
    axes.grid(alpha=0.3, axis="y")
    legend(axes, beside=True)
    return axes


def _label(case: Mapping[str, Any]) -> str:
    copy, threads = case["contenders"][ROOF], case["threads"]
    speed = f" ({copy['moved_bytes'] / copy['nanoseconds']:.3g} GB/s)" if "moved_bytes" in copy else ""
    return f"{case['operation']}, {case['case']}, {threads} thread{'s' * (threads != 1)}{speed}"
