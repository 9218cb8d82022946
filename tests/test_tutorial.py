"""The notebook runs from its first cell to its last, and learns what it says."""

import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def accuracies(notebook: Any) -> list[float]:
    """In %, as the notebook prints them."""
    text = "".join(output.text for output in outputs(notebook) if output.output_type == "stream")
    return [float(number) for number in re.findall(r"([\d.]+)% of the test samples are right", text)]


def figures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_every_cell_runs_and_learns(tmp_path: Path) -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    fresh = nbformat.from_dict(stored)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    on_digits, on_events = accuracies(fresh)
    assert on_digits > 95
    assert on_events > 90
    assert not any(output.get("name") == "stderr" for output in outputs(fresh))
    # what is stored is a run of the same cells, in their order
    assert figures(fresh) == figures(stored) == 8
    assert len(accuracies(stored)) == 2
    counts = [cell.execution_count for cell in stored.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert NOTEBOOK.stat().st_size < 300_000
    assert str(Path.home()) not in NOTEBOOK.read_text(encoding="utf-8")
