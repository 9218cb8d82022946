"""`srm-triton audit`: how exact the event-driven gradient is, and what its published choices cost."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from srm_triton.audit import CHOICES, NETWORKS, Audit, audit
from srm_triton.commands.shared import Commands, progress
from srm_triton.files import write_atomically


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton audit`."""
    does = "compare the event-driven gradient with the exact one"
    parser = commands.add_parser(
        "audit",
        help=does,
        description=f"In small networks, {does}, as the time step shrinks, and each published choice alone.",
    )
    parser.set_defaults(run=_audit)
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write the same to")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")


def _audit(options: argparse.Namespace) -> int:
    """Prints the report and returns the exit code: 1 if `Audit.passed` is not so."""
    path: Path | None = options.output
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}")
    if path is not None and path.exists() and not options.overwrite:
        raise ValueError(f"--output {path}: exists; choose another name, or add --overwrite")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are so small that threads would wait for each other
    try:
        with progress(len(NETWORKS), "network") as (advance, _):
            result = audit(after_network=advance)
    finally:
        torch.set_num_threads(threads)
    text = json.dumps(as_json(result), indent=2) if options.json else as_markdown(result)
    print(text)
    if path is not None:
        write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return 0 if result.passed else 1


def as_json(result: Audit) -> dict[str, Any]:
    """The report as values; `errors` belong to the steps 1/n for n of `refinements`.

    Args:
        result: what `audit` found.
    """
    return {
        "passed": result.passed,
        "seeds": result.seeds,
        "eventprop_error": result.eventprop_error,
        "package_error": result.package_error,
        "refinements": result.refinements,
        "convergence": [{**row._asdict(), "order": row.order} for row in result.convergence],
        "deviations": [row._asdict() for row in result.deviations],
    }


def as_markdown(result: Audit) -> str:
    """The report as two tables and what they say.

    Args:
        result: what `audit` found.
    """
    steps = [str(n) if n == 1 else f"1/{n}" for n in result.refinements]
    convergence = [
        (
            *(row.network, row.gradient, row.reference),
            *(f"{error:.3f}" for error in row.errors),
            f"{row.order:.1f}" if row.gradient in ("no choice", "finite differences") else "",
        )
        for row in result.convergence
    ]
    names = dict.fromkeys(row.network for row in result.deviations)
    deviations = [
        (
            choice,
            *(
                f"{row.error:.3f} {row.cosine:6.3f}" if row.applies or choice == "no choice" else "–"
                for row in result.deviations
                if row.choice == choice
            ),
        )
        for choice in CHOICES
    ]
    return "\n".join(
        (
            "# Exactness of the event-driven gradient",
            "",
            f"Gradients of the first layer's weights, medians over {result.seeds} seeds. At the step 1/n, time",
            "constants are n·5, n·3 and n·2.5 (τ_g) steps, the threshold is 1, an impulse stays as it is, a constant",
            "current is divided by n, the clamp is at n·4. Options off: what the package computes with the gradient",
            "original, without clamp and factor and with plain pooling. –: no effect.",
            "",
            "## Convergence with the time step: relative error",
            "",
            *_table(("network", "gradient", "against", *steps, "order"), convergence, left=3),
            "",
            f"## Choices, each alone, at the step {steps[-1]}: relative error and cosine against EventProp",
            "",
            *_table(("choice", *names), deviations, left=1),
            "",
            *_sentences(result),
        )
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of Markdown whose columns are aligned, the first `left` to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width if number < left else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    return [
        "| "
        + " | ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (header, rule, *rows)
    ]


def _sentences(result: Audit) -> list[str]:
    def span(gradient: str, step: int) -> str:
        errors = [
            row.errors[step] for row in result.convergence if row.gradient == gradient and row.reference == "EventProp"
        ]
        return f"{min(errors):.3f} to {max(errors):.3f}"

    cosines = [row.cosine for row in result.deviations if row.choice == "as published"]
    return [
        "Without its published choices the rule is the derivative of spike times: its error falls with the step, to",
        f"{span('no choice', -1)} (EventProp is within {result.eventprop_error:.0e} of finite differences of exact",
        f"spike times, the package within {result.package_error:.0e} of the rule written out).",
        f"As published it is not, however small the step: errors of {span('as published', -1)} and cosines of",
        f"{min(cosines):.3f} to {max(cosines):.3f} remain; at the step 1, where spikes are not yet those of continuous",
        f"time, errors are {span('as published', 0)}, without choices {span('no choice', 0)}.",
        "",
        "passed" if result.passed else "FAILED",
    ]
