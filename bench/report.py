"""Makes tables, plots and a page of a run's results.

python -m bench.report bench/results/NAME.json docs/performance.md
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Run = dict[str, Any]
Records = list[dict[str, Any]]
GROWTH = "growth with "
GPU = """\
No GPU has run the Triton kernels so far. What they move is counted in their machine code for sm_90 by
`tests/test_traffic.py`: in training 24 bytes for each neuron and step up to 16 steps and at most 25.5 beyond
(float32; 12 and 13.5 in bfloat16), in inference 8 (4).
"""


def write(run: Run, folder: Path) -> None:
    """Stores a run as results.json, one line for each record, and as plots."""
    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps({key: value for key, value in run.items() if key != "results"}, indent=1, ensure_ascii=False)
    records = ",\n".join(json.dumps(_rounded(record), ensure_ascii=False) for record in run["results"])
    text = head.removesuffix("\n}") + f',\n "results": [\n{records}\n]}}\n'
    (folder / "results.json").write_text(text, encoding="utf-8")
    plot(run["results"], folder)


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in record.items()}


def _groups(records: Records, *keys: str) -> Iterator[tuple[Any, Records]]:
    """Records with the same values of `keys`, in order of first appearance."""
    groups: dict[Any, Records] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    yield from groups.items()


def _growth(records: Records) -> list[tuple[str, Records]]:
    """The axis along which each series of cases grows, and its records that were measured."""
    series = [record for record in records if record["case"].startswith(GROWTH) and "nanoseconds" in record]
    return [(case.removeprefix(GROWTH), group) for (case,), group in _groups(series, "case")]


# Text


def overview(records: Records) -> str:
    """How many times longer than the native backend the others take, on one thread, in Markdown."""
    cases = [(what, group) for what, group in _groups(records, "operation", "case", "threads") if what[2] == 1]
    compared: list[tuple[str, dict[str, float]]] = []
    for (operation, case, _), group in cases:
        ratios = {record["contender"]: record["ratio"] for record in group if "ratio" in record}
        if "native" in ratios and not case.startswith(GROWTH):
            native = ratios.pop("native")
            compared.append((f"{operation}: {case}", {name: ratio / native for name, ratio in ratios.items()}))
    names = [name for name in dict.fromkeys(name for _, ratios in compared for name in ratios) if name != "copy"]
    if not compared:
        return ""
    rows = [[case, *(f"{ratios[name]:.2g}" if name in ratios else "" for name in names)] for case, ratios in compared]
    title = "**How many times longer than the native backend the others take**, 1 thread"
    return "\n".join([title, "", *_table([["", *names], *rows]), ""])


def tables(records: Records) -> str:
    """The results in Markdown: a section for each operation, a table for each case."""
    lines = []
    for (operation,), results in _groups(records, "operation"):
        lines += [f"## {operation}", ""]
        for (case, threads), group in _groups(results, "case", "threads"):
            if not case.startswith(GROWTH):
                lines += [f"**{_title(case, group, threads)}**", "", *_case_table(group), ""]
        for axis, group in _growth(results):
            lines += [f"**{_title(f'time against {axis}', group, 1, axis)}**, ns an element", ""]
            lines += [*_growth_table(axis, group), ""]
    return "\n".join(lines)


def _title(case: str, records: Records, threads: int, axis: str = "") -> str:
    sizes = [f"{name} {length}" for name, length in records[0]["shape"].items() if name != axis]
    return f"{case}: {', '.join(sizes)}, {threads} thread{'s' * (threads > 1)}"


def _case_table(records: Records) -> list[str]:
    measured = [record for record in records if "nanoseconds" in record]
    columns = {
        "contender": lambda r: r["contender"],
        "ns an element": lambda r: f"{r['nanoseconds']:.3g}",
        "quartiles": lambda r: f"{r['lower_quartile']:.3g} – {r['upper_quartile']:.3g}",
        f"time / {measured[0]['contender']}": lambda r: f"{r['ratio']:.3g}",
    }
    if any("copy_rate" in record for record in measured):
        columns["of the copy's rate"] = lambda r: f"{r['copy_rate']:.0%}"
    if any("kept_bytes" in record for record in measured):
        columns["kept bytes"] = lambda r: f"{r['kept_bytes']:.3g}" if "kept_bytes" in r else ""
    if any("excess" in record for record in measured):
        columns["objective"] = lambda r: f"+{max(r['excess'], 0):.2%}"
    return _table([list(columns), *([cell(record) for cell in columns.values()] for record in measured)])


def _growth_table(axis: str, records: Records) -> list[str]:
    lengths = sorted({record["shape"][axis] for record in records})
    rows = [[axis, *map(str, lengths)]]
    for (contender,), group in _groups(records, "contender"):
        times = {record["shape"][axis]: record["nanoseconds"] for record in group}
        rows.append([contender, *(f"{times[length]:.3g}" for length in lengths)])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows]
    return [lines[0], "|-" + "-|-".join("-" * width for width in widths) + ":|", *lines[1:]]


def notes(run: Run) -> str:
    """Where and how the run was made, what its columns and contenders are, in Markdown."""
    machine, results = run["machine"], run["results"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    compilation = sum(r.get("first_call_seconds", 0) for r in results if r["contender"] == "torch.compile")
    skipped = sorted({f"{r['contender']}: {r['skipped']}" for r in results if "skipped" in r})
    return "\n".join(
        [
            f"Machine: {machine['processor']}, {machine['cores']} cores{gpu}. {versions}. {run['date']}. Command:",
            "",
            f"    {run['command']}",
            "",
            "An element is one value of the output, such as a neuron at a step. Times are medians over rounds in",
            "which every contender runs once, in random order, in float32; quotients are medians of quotients of",
            "a round. The copy moves as many bytes as the work must at least, between two buffers that exist",
            "already; its rate is the roof. Kept bytes are what autograd holds for the backward, for each",
            "element, without the layer's inputs and parameters. Objectives are given as what they are above the",
            f"smallest one. Compilation ({compilation:.0f} s, all first calls) is not in the times.",
            "",
            *(f"- **{name}**: {about}" for name, about in run["about"].items()),
            *([""] if skipped else []),
            *(f"- Skipped: {reason}." for reason in skipped),
            "",
        ]
    )


def page(run: Run, source: str) -> str:
    """The whole page, in Markdown."""
    version = run["versions"]["srm-triton"]
    head = (
        f"# Performance\n\nMeasured with version {version}. Made from `{source}` by\n"
        f"`python -m bench.report {source} docs/performance.md`.\n"
    )
    parts = [head, GPU, notes(run), overview(run["results"]), tables(run["results"])]
    return "\n".join(parts).rstrip() + "\n"


# Plots


def plot(records: Records, folder: Path) -> None:
    """Draws one file of bars for each operation, and one of lines for how time grows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(record["contender"] for record in records))
    colours = {name: pyplot.get_cmap("tab20")(i % 20) for i, name in enumerate(names)}
    pyplot.rcParams |= {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    for (operation,), results in _groups(records, "operation"):
        cases = [record for record in results if not record["case"].startswith(GROWTH) and "nanoseconds" in record]
        groups = list(_groups(cases, "case", "threads"))
        columns = len({record["threads"] for record in cases})
        rows = -(-len(groups) // columns)
        tallest = max(len(group) for _, group in groups)
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(7 * columns, rows * (1.2 + 0.32 * tallest)), squeeze=False, layout="constrained"
        )
        for ax, ((case, threads), group) in zip(axes.flat, groups, strict=False):
            _bars(ax, group, colours)
            ax.set_title(f"{case}, {threads} thread{'s' * (threads > 1)}", loc="left", fontsize=12)
        for ax in axes.flat[len(groups) :]:
            ax.set_visible(False)
        figure.suptitle(f"{operation}: median time an element, with quartiles", fontsize=14)
        figure.savefig(folder / f"{operation}.png", dpi=120)
        pyplot.close(figure)
        if growth := _growth(results):
            figure, axes = pyplot.subplots(1, len(growth), figsize=(5 * len(growth), 5), sharey=True, squeeze=False)
            for ax, (axis, group) in zip(axes.flat, growth, strict=True):
                _lines(ax, axis, group, colours)
            axes[0, 0].set_ylabel("median time of a call in ms")
            handles, labels = axes[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
            figure.suptitle(f"{operation}: forward and backward, 1 thread", fontsize=14)
            figure.set_layout_engine("constrained")
            figure.savefig(folder / f"{operation}_growth.png", dpi=120)
            pyplot.close(figure)


def _bars(ax: Any, records: Records, colours: dict[str, Any]) -> None:
    times = [record["nanoseconds"] for record in records]
    errors = [
        [time - record["lower_quartile"] for time, record in zip(times, records, strict=True)],
        [record["upper_quartile"] - time for time, record in zip(times, records, strict=True)],
    ]
    names = [record["contender"] for record in records]
    ax.barh(names, times, xerr=errors, color=[colours[name] for name in names], error_kw={"capsize": 3})
    for i, (time, record) in enumerate(zip(times, records, strict=True)):
        ax.annotate(
            f"{time:.3g}", (record["upper_quartile"], i), (6, 0), textcoords="offset points", va="center", fontsize=10
        )
    ax.set_xlim(0, 1.12 * max(record["upper_quartile"] for record in records))
    ax.invert_yaxis()
    ax.set_xlabel("ns an element")


def _lines(ax: Any, axis: str, records: Records, colours: dict[str, Any]) -> None:
    for (contender,), group in _groups(records, "contender"):
        lengths = [record["shape"][axis] for record in group]
        times = [1e-6 * record["nanoseconds"] * math.prod(record["shape"].values()) for record in group]
        ax.loglog(lengths, times, marker="o", label=contender, color=colours[contender])
    fixed = ", ".join(f"{name} {length}" for name, length in records[0]["shape"].items() if name != axis)
    ax.set_title(fixed, fontsize=12)
    ax.set_xlabel(axis)
    ax.grid(alpha=0.3)


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description="Makes a page of a run's results.")
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    run = json.loads(arguments.results.read_text(encoding="utf-8"))
    arguments.page.write_text(page(run, arguments.results.as_posix()), encoding="utf-8")


if __name__ == "__main__":
    main()
