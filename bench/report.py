"""Makes tables, plots and a page of the results of runs.

python -m bench.report bench/results/NAME.json … --page docs/performance.md
"""

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

Run = dict[str, Any]
Case = dict[str, Any]
Record = dict[str, Any]

PAGE = """\
# Performance

Made by `python -m bench.report {sources} --page docs/performance.md`.

{gpu}What they move is counted in their machine code for sm_90 by
`tests/test_traffic.py`: in training 24 bytes for each neuron and step up to 16 steps and at most 25.5 beyond,
with the surrogate gradient 20 and 21.5 (float32; 12 and 13.5, 10 and 11.5 in bfloat16), in inference 8 (4).

{text}"""
TEXT = """\
The first contender of a table is this package's. Its median time is given in ns for an element of the output, such as a
neuron at a step, with quartiles; **the others' numbers say how many times as long they take**. Every contender runs
once in each round, in random order, in float32 unless it says otherwise; what is compared are times of the same round.
The copy moves as many bytes as the work must at least, between two buffers that exist already; GB/s are those bytes
over each contender's time. Kept bytes are what autograd holds for the backward, for each element, without the inputs
and parameters of what is measured; of a network they count the inputs of its inner layers. Peak bytes are the most that
PyTorch's allocator had given out at once, beyond what it had before; objectives are what they are above the smallest.
Compilation ({compilation:.0f} s, all first calls) is not in the times.

{tables}
## Contenders

{about}

## Machine

{machines}"""
MACHINE = """\
{processor}, {cores} cores, {gpu}. {versions}. {date}. Command:

    {command}
"""


def write(run: Run, folder: Path) -> None:
    """Stores a run as results.json, one line for each case."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(run), parse_float=lambda digits: float(f"{float(digits):.4g}"))
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in rounded.pop("results"))
    head = json.dumps(rounded, indent=1, ensure_ascii=False).removesuffix("\n}")
    part = folder / "results.json.part"  # a process that is ended while it writes leaves the whole file of before
    part.write_text(f'{head},\n "results": [\n{lines}\n]}}\n', encoding="utf-8")
    part.replace(folder / "results.json")


def plots(results: Sequence[Case], folder: Path) -> None:
    """Draws the cases of each operation, and how near they come to what memory allows."""
    from srm_triton.plots import roofline

    for operation, cases in groupby(results, itemgetter("operation")):
        plot(operation, list(cases), folder)
    if any("nanoseconds" in case["contenders"].get("copy", {}) for case in results):
        roofline({"results": results}).figure.savefig(folder / "roofline.png", dpi=120)


def page(runs: dict[str, Run]) -> str:
    """The whole page, in Markdown, of runs by their files."""
    for source, run in runs.items():
        if run.get("dry_run"):
            raise ValueError(f"{source}: a dry run measures nothing")
    gpu = any(run["machine"]["gpu"] for run in runs.values())
    never = "" if gpu else "No GPU has run the Triton kernels so far. "
    return PAGE.format(sources=" ".join(runs), gpu=never, text=text(*runs.values()))


def text(*runs: Run) -> str:
    """The results, what was compared, where and how the runs were made, in Markdown."""
    results = [case for run in runs for case in run["results"]]
    records = [item for case in results for item in case["contenders"].items()]
    about = [item for run in runs for item in _about(run).items()]
    return TEXT.format(
        about="\n".join(f"- **{name}**: {text}" for name, text in dict.fromkeys(about)),
        compilation=sum(record.get("first_call_seconds", 0) for name, record in records if name == "torch.compile"),
        tables="\n".join(map(tables, runs)),
        machines="\n".join(map(_machine, runs)),
    )


def _about(run: Run) -> dict[str, str]:
    records = [item for case in run["results"] for item in case["contenders"].items()]
    return run["about"] | {name: f"skipped, {record['skipped']}." for name, record in records if "skipped" in record}


def _machine(run: Run) -> str:
    facts = {
        "gpu": run["machine"]["gpu"] or "no GPU",
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }
    return MACHINE.format_map(run | run["machine"] | facts)


def tables(run: Run) -> str:
    """A section for each operation, in Markdown: times, bytes, objectives."""
    lines, gpu = [], run["machine"]["gpu"]
    for operation, section in groupby(run["results"], itemgetter("operation")):
        lines += [f"## {operation}{f' on {gpu}' if gpu else ''}", ""]
        for ours, group in groupby(section, lambda case: next(iter(_cells(case, "ratio")))):
            cases = list(group)
            times = {
                _label(case): _cells(case, "ratio") | {ours: _absolute(case["contenders"][ours])} for case in cases
            }
            kept = {case["case"]: _cells(case, "kept_bytes") for case in cases}  # whatever the number of threads
            peak = {case["case"]: _cells(case, "peak_bytes") for case in cases}
            objectives = {case["case"]: _cells(case, "excess", "{:+z.2%}".format) for case in cases}
            speeds = {_label(case): _speeds(case) for case in cases}
            quantities = {"kept bytes": kept, "peak bytes": peak, "objective": objectives, "GB/s": speeds}
            for head, rows in ({"time": times} | quantities).items():
                lines += _table(head, rows)
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.12g}"


def _cells(case: Case, quantity: str, text: Callable[[float], str] = _number) -> dict[str, str]:
    """The quantity of each contender of which it was measured."""
    return {name: text(record[quantity]) for name, record in case["contenders"].items() if quantity in record}


def _speeds(case: Case) -> dict[str, str]:
    """The least traffic over the time of each contender."""
    moved = case["contenders"].get("copy", {}).get("moved_bytes")
    records = case["contenders"].items() if moved else ()
    return {name: _number(moved / record["nanoseconds"]) for name, record in records if "ratio" in record}


def _absolute(record: Record) -> str:
    return f"{_number(record['nanoseconds'])} ns ({' – '.join(map(_number, record['quartiles']))})"


def _label(case: Case) -> str:
    shape = ", ".join(f"{axis} {length}" for axis, length in case["shape"].items())
    return f"{case['case']}: {shape}, {case['threads']} thread{'s' * (case['threads'] > 1)}"


def _table(head: str, rows: dict[str, dict[str, str]]) -> list[str]:
    """Cases as rows, contenders as columns; nothing if there are no cells."""
    names = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    if not names:
        return []
    table = [[head, *names]]
    table += [[label, *(cells.get(name, "") for name in names)] for label, cells in rows.items() if cells]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    padded = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in table)
    return [*(f"| {' | '.join(row)} |" for row in padded), ""]


def plot(operation: str, cases: Sequence[Case], folder: Path) -> None:
    """Draws median times with quartiles: cases as rows, contenders as colours."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(14, 2 + 0.35 * len(cases)), layout="constrained")
    for name in dict.fromkeys(name for case in cases for name in _cells(case, "ratio")):
        records = {row: case["contenders"].get(name, {}) for row, case in enumerate(cases)}
        points = [
            (row, record["nanoseconds"], *record["quartiles"]) for row, record in records.items() if "ratio" in record
        ]
        rows, medians, lower, upper = zip(*points, strict=True)
        (drawn,) = ax.plot(medians, rows, "o", label=name)
        ax.hlines(rows, lower, upper, drawn.get_color())
    ax.set(xscale="log", xlabel="ns an element: median and quartiles", title=operation)
    ax.set_yticks(range(len(cases)), map(_label, cases))
    ax.invert_yaxis()
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(folder / f"{operation}.png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Writes the page, or the plots."""
    parser = argparse.ArgumentParser(description="Makes a page or plots of the results of runs.")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, help="file of the page")
    parser.add_argument("--plots", type=Path, help="folder of the plots")
    arguments = parser.parse_args()
    runs = {path.as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in arguments.results}
    if arguments.plots:
        plots([case for run in runs.values() for case in run["results"]], arguments.plots)
    if arguments.page:
        arguments.page.write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
