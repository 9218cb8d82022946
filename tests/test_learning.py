"""The comparison of what networks learn: its tasks, and that finished runs are kept."""

import itertools
from pathlib import Path

import torch

from bench import learning


def test_the_class_is_the_order_of_the_bursts():
    task = learning.order_of_bursts(40, groups=3, bursts=2, samples=80)
    assert task.inputs.shape == (60, 40, 30) and task.test_inputs.shape == (20, 40, 30) and task.classes == 6
    orders = list(itertools.permutations(range(3), 2))
    activity = task.inputs.unflatten(2, (3, 10)).sum(3).unfold(1, 4, 1).sum(3)  # of each group in four steps
    first, second = activity.max(1).values.topk(2).indices.unbind(1)
    starts = activity.argmax(1)
    right = 0
    for sample, label in enumerate(task.labels.tolist()):
        found = sorted((first[sample].item(), second[sample].item()), key=lambda group: starts[sample, group])
        right += tuple(found) == orders[label]
    assert right > 55


def test_runs_are_kept(tmp_path, monkeypatch):
    task = learning.order_of_bursts(16, groups=2, bursts=2, samples=64)._replace(epochs=2)
    monkeypatch.setattr(learning, "CASES", {"case": (lambda: task, (12,))})
    monkeypatch.setattr(learning, "CHOSEN_BY", ("case",))
    first = learning.choices(learning.Records(tmp_path / "records.json"))
    assert first.count("\n") == 1 + len(learning.CHOICES)
    calls = []
    monkeypatch.setattr(learning, "fit", lambda *arguments: calls.append(arguments))
    assert learning.choices(learning.Records(tmp_path / "records.json")) == first and not calls


def test_the_page_is_made_of_the_stored_runs(tmp_path, monkeypatch):
    stored = (Path(learning.__file__).parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    page = tmp_path / "results.md"
    page.write_text(stored.replace("| 9", "| 8"), encoding="utf-8")
    monkeypatch.setattr(learning, "fit", None)  # nothing is trained
    learning.main(["--page", str(page)])
    assert stored.count("| 9") > 30 and page.read_text(encoding="utf-8") == stored


def test_training_learns():
    torch.manual_seed(0)
    task = learning.order_of_bursts(16, groups=2, bursts=2, samples=240)
    result = learning.fit(task, learning.ours(task, (30,)), learning.last, 1e-2, 12)
    assert result["accuracy"] > 0.9 and result["seconds"] > 0
