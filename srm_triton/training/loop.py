"""The loop over epochs, with a progress bar, warnings and checkpoints, and the metrics of a run."""

import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from srm_triton.files import write_atomically
from srm_triton.training.processes import processes
from srm_triton.training.run import Result, TrainingRun

CHECKPOINT, METRICS, LEARNING_PLOT = "checkpoint.pt", "metrics.json", "learning.png"
SAMPLE_PLOT, RUN_PLOT = "sample.png", "run.png"


def train(run: TrainingRun, folder: Path) -> None:
    """Trains to the last epoch with a progress bar and a line an epoch, and keeps a checkpoint in `folder`.

    What is conspicuous before training, after its first epoch and after its last is said once, on standard error; what
    concerns learning as a whole at the end again. Of several processes the first alone writes and prints.

    After a KeyboardInterrupt, or anything else, the checkpoint is that of the last finished epoch.

    Args:
        run: a run at the end of an epoch.
        folder: where the checkpoint goes.

    Raises:
        ModuleNotFoundError: without tqdm.
        DivergedError: if the gradient is not finite.
    """
    from tqdm import tqdm

    first = processes().rank == 0
    epochs, evaluated = run.recipe.schedule.epochs, "held out" if run.recipe.schedule.hold_out else "test"
    known = set[tuple[str, str | None]]()
    with tqdm(
        total=epochs * run.batches,
        initial=len(run.history) * run.batches,
        unit="batch",
        disable=None if first else True,
    ) as progress:

        def save_and_warn(*, warn: bool) -> None:
            if not first:
                return
            run.save(folder / CHECKPOINT)
            for finding in run.diagnose() if warn else ():
                if finding[:2] not in known or (run.finished and finding.layer is None):
                    progress.write(f"srm-triton: warning: {finding}", file=sys.stderr)
                known.add(finding[:2])

        save_and_warn(warn=not run.history)
        while not run.finished:
            record = run.train_epoch(progress.update)
            if first:
                rates = ", ".join(f"{name} {rate:.3f}" for name, rate in record.firing_rates.items())
                progress.write(
                    f"epoch {record.epoch:3d}/{epochs}  loss {record.loss:.4f}  train {record.train_accuracy:6.2%}  "
                    f"{evaluated} {record.accuracy:6.2%}  spikes per step: {rates}"
                )
            save_and_warn(warn=run.finished or len(run.history) == 1)


def save_metrics(run: TrainingRun, result: Result, path: Path) -> None:
    """Writes the recipe, the history and the result of a run as JSON."""
    held_out = run.recipe.schedule.hold_out
    content = {
        "recipe": asdict(run.recipe),
        "test_accuracy": result.test_accuracy,
        "test_after_epoch": result.epoch,
        "chosen_on": f"{held_out} held-out samples" if held_out else None,
        "seconds": run.seconds,
        "device": str(run.device),
        "processes": processes().number,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "history": [record._asdict() for record in run.history],
    }
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
