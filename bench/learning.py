"""How well networks learn out of the box, beside SpikingJelly's LIF neurons: `make learning` writes `docs/results.md`.

Ours are the defaults of `spiking_network`, one setting for all tasks. SpikingJelly's are the best of six settings a
task, by the test accuracy of the first seed, which favours them. Sizes, epochs, batches, optimiser, schedule and
clipping are the same.
Finished cases are kept in a file, so that an interrupted run goes on.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton import SRMParameters, calibrate_gain, encode_direct, spiking_network
from srm_triton.data import load_digits

RESULTS = Path(__file__).with_name("results") / "learning.json"
SERIES = ("JapaneseVowels", "BasicMotions", "ItalyPowerDemand", "GunPoint", "ArrowHead", "PickupGestureWiimoteZ")
SEEDS = 5


class Task(NamedTuple):
    """Samples [samples, time, features] and their classes."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int
    epochs: int = 40
    learning_rate: float = 1e-2


# Tasks


def series(name: str) -> Task:
    """A data set of the package aeon, each channel standardised, shorter series followed by zeros."""
    from aeon.datasets import load_classification

    parts = [load_classification(name, split=split) for split in ("train", "test")]
    samples = [[torch.as_tensor(x, dtype=torch.float32).T for x in inputs] for inputs, _ in parts]
    steps = torch.cat(samples[0])
    mean, deviation = steps.mean(0), steps.std(0)
    longest = max(len(x) for part in samples for x in part)
    padded = [
        torch.stack([F.pad((x - mean) / deviation, (0, 0, 0, longest - len(x))) for x in part]) for part in samples
    ]
    names = sorted(set(parts[0][1]))
    labels = [torch.tensor([names.index(label) for label in part[1]]) for part in parts]
    return Task(padded[0], labels[0], padded[1], labels[1], len(names))


def order_of_bursts(steps: int, groups: int, bursts: int, samples: int = 1200) -> Task:
    """Events of groups of ten channels; the class is the order in which some groups burst, at any times."""
    generator = torch.Generator().manual_seed(steps)
    orders = list(itertools.permutations(range(groups), bursts))
    labels = torch.randint(len(orders), (samples,), generator=generator)
    events = torch.rand(samples, steps, groups, 10, generator=generator) < 0.02
    for sample, label in zip(events, labels.tolist(), strict=True):
        starts = torch.randperm(steps // 8, generator=generator)[:bursts].sort().values * 8
        for start, group in zip(starts.tolist(), orders[label], strict=True):
            sample[start : start + 4, group] = torch.rand(4, 10, generator=generator) < 0.5
    inputs, half = events.flatten(2).float(), samples * 3 // 4
    return Task(inputs[:half], labels[:half], inputs[half:], labels[half:], len(orders))


def digits(steps: int = 8) -> Task:
    """Scikit-learn's digits, the image at every step."""
    data = load_digits()
    inputs, tests = (encode_direct(images.flatten(1), steps) for images in (data.train_images, data.test_images))
    return Task(inputs, data.train_labels, tests, data.test_labels, data.classes, 20, 5e-3)


# Contenders


def ours(task: Task, hidden: tuple[int, ...], **options: Any) -> nn.Module:
    """The defaults."""
    steps, features = task.inputs.shape[1:]
    network = spiking_network("-".join(map(str, hidden)), features, task.classes, steps=steps, **options)
    calibrate_gain(network, task.inputs[:128])
    return network


class SpikingJelly(nn.Module):
    """LIF neurons with arctan surrogate; at the end too, or as a read-out potentials of neurons that never fire."""

    def __init__(self, task: Task, hidden: tuple[int, ...], tau: float, readout: bool) -> None:
        super().__init__()
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        sizes = (task.inputs.shape[2], *hidden, task.classes)
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes), 1):
            threshold = float("inf") if readout and number == len(sizes) - 1 else 1.0
            layers.append(layer.Linear(inputs, outputs, step_mode="m"))
            layers.append(
                neuron.LIFNode(
                    tau, decay_input=False, v_threshold=threshold, surrogate_function=surrogate.ATan(),
                    detach_reset=True, step_mode="m", store_v_seq=readout,
                )
            )  # fmt: skip
        self.layers, self.readout, self.reset = nn.Sequential(*layers), readout, functional.reset_net

    def forward(self, inputs: Tensor) -> Tensor:
        """Spikes or potentials."""
        self.reset(self.layers)
        spikes = self.layers(inputs.transpose(0, 1).contiguous())
        return (self.layers[-1].v_seq if self.readout else spikes).transpose(0, 1)


PEER_SETTINGS = [
    {"tau": tau, "readout": readout, "learning_rate": rate}
    for tau in (2.0, 5.0, 20.0)
    for readout, rate in ((False, 1e-2), (True, 5e-3))
]


def fit(
    task: Task, network: nn.Module, answer: Callable[[Tensor], Tensor], learning_rate: float, epochs: int
) -> dict[str, float]:
    """Trains and tests; the same loop for all. Seconds are those of the processor, in training."""
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
    batch_size = 16 if len(task.labels) < 300 else 64
    batches = -(-len(task.labels) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    start = time.process_time()
    for _ in range(epochs):
        for batch in torch.randperm(len(task.labels)).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(answer(network(task.inputs[batch])), task.labels[batch]).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    seconds = time.process_time() - start
    with torch.no_grad():
        correct = answer(network(task.test_inputs)).argmax(1) == task.test_labels
    return {"accuracy": correct.float().mean().item(), "seconds": seconds}


def last(outputs: Tensor) -> Tensor:
    """The answer of potentials."""
    return outputs[:, -1]


def count(outputs: Tensor) -> Tensor:
    """The answer of spikes."""
    return outputs.sum(1)


CASES: dict[str, tuple[Callable[[], Task], tuple[int, ...]]] = {
    **{name: (lambda name=name: series(name), (100, 100)) for name in SERIES},
    "order of 2 bursts, T = 50": (lambda: order_of_bursts(50, 4, 2), (100, 100)),
    "order of 3 bursts, T = 100": (lambda: order_of_bursts(100, 3, 3), (100, 100)),
    **{f"digits, {depth} hidden layers, T = 8": (digits, (100,) * depth) for depth in (2, 4, 8)},
}
OURS = {"srm-triton": {}, "srm-triton, event": {"gradient": "event"}}


class Records:
    """What each run came to, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def run(self, key: str, seed: int, train: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The record of a run, which takes place unless it is there."""
        key = f"{key} | seed {seed}"
        if key not in self.runs:
            torch.manual_seed(seed)
            self.runs[key] = {name: round(value, 4) for name, value in train().items()}
            self.path.write_text(json.dumps(self.runs, indent=0) + "\n")
            print(key, self.runs[key], flush=True)
        return self.runs[key]


def compare(case: str, records: Records) -> dict[str, list[dict[str, float]]]:
    """The runs of each contender."""
    make, hidden = functools.cache(CASES[case][0]), CASES[case][1]  # the data are not needed where all runs are there

    def own(name: str, seed: int) -> dict[str, float]:
        return records.run(f"{case} | {name}", seed, lambda: train_own(name, make().epochs))

    def train_own(name: str, epochs: int) -> dict[str, float]:
        task = make()
        return fit(task, ours(task, hidden, **OURS[name]), last, task.learning_rate, epochs)

    def peer(setting: dict[str, Any], seed: int) -> dict[str, float]:
        key = f"{case} | SpikingJelly {json.dumps(setting)}"
        return records.run(key, seed, lambda: train_peer(setting, make().epochs))

    def train_peer(setting: dict[str, Any], epochs: int) -> dict[str, float]:
        network = SpikingJelly(make(), hidden, setting["tau"], setting["readout"])
        return fit(make(), network, last if setting["readout"] else count, setting["learning_rate"], epochs)

    best = max(PEER_SETTINGS, key=lambda setting: peer(setting, 0)["accuracy"])
    results = {name: [own(name, seed) for seed in range(SEEDS)] for name in OURS}
    results["SpikingJelly"] = [peer(best, seed) for seed in range(SEEDS)]
    for seed in range(3):  # in turn, as the machine may be busy
        records.run(f"{case} | an epoch of SpikingJelly", seed, lambda: train_peer(best, 1))
        records.run(f"{case} | an epoch of srm-triton", seed, lambda: train_own("srm-triton", 1))
    return results


def table(records: Records, cases: list[str]) -> str:
    """Accuracies, mean ± deviation over the seeds, and the time of a training beside SpikingJelly's."""
    lines = [f"| task | {' | '.join((*OURS, 'SpikingJelly'))} | its time / ours |", "|---|" + "---|" * (len(OURS) + 2)]
    for case in cases:
        runs = compare(case, records)
        cells = []
        for of_contender in runs.values():
            accuracies = [100 * run["accuracy"] for run in of_contender]
            cells.append(f"{statistics.fmean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}")
        names = f"{case} | an epoch of SpikingJelly", f"{case} | an epoch of srm-triton"
        peer, own = (
            statistics.median(records.runs[f"{name} | seed {n}"]["seconds"] for n in range(3)) for name in names
        )
        lines.append(f"| {case} | {' | '.join(cells)} | {peer / own:.1f} |")
    return "\n".join(lines)


CHOICES: dict[str, dict[str, Any]] = {
    "as built": {},
    "event-driven gradient": {"gradient": "event"},
    "gradient `original`": {"gradient": "original"},
    "one time constant, 5 and 3 steps": {"parameters": SRMParameters(5.0, 3.0, 8.0)},
    "one time constant, long": {"parameters": SRMParameters(20.0, 12.0, 20.0)},
    "spikes as the answer": {"readout": "spikes"},
    "no biases": {"bias": False},
    "learned constants": {"learn": ("threshold", "tau_m", "tau_s")},
}
CHOSEN_BY = ("ItalyPowerDemand", "GunPoint", "order of 2 bursts, T = 50", "digits, 8 hidden layers, T = 8")


def choices(records: Records) -> str:
    """Mean accuracies of what `spiking_network` does and of what it might do."""
    lines = [f"| network | {' | '.join(CHOSEN_BY)} |", "|---|" + "---|" * len(CHOSEN_BY)]
    tasks = {case: functools.cache(CASES[case][0]) for case in CHOSEN_BY}
    for name, options in CHOICES.items():
        answer = count if options.get("readout") == "spikes" else last

        def train(case: str, options: Any = options, answer: Any = answer) -> dict[str, float]:
            task = tasks[case]()
            return fit(task, ours(task, CASES[case][1], **options), answer, task.learning_rate, task.epochs)

        cells = []
        for case in CHOSEN_BY:
            key = f"{case} | {'srm-triton' if not options else name}"
            runs = [records.run(key, seed, lambda case=case: train(case)) for seed in range(3)]
            cells.append(f"{100 * statistics.fmean(run['accuracy'] for run in runs):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=RESULTS)
    parser.add_argument("cases", nargs="*", help="tasks (default: all)", default=list(CASES))
    parser.add_argument("--page", type=Path, help="document to put the tables into")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = Records(options.records)
    tables = {"tasks": table(records, options.cases), "choices": choices(records)}
    for name, text in tables.items():
        print(text, end="\n\n")
        if options.page:
            marks = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
            before, _, rest = options.page.read_text().partition(marks[0])
            options.page.write_text(before + marks[0] + text + "\n" + marks[1] + rest.partition(marks[1])[2])


if __name__ == "__main__":
    main()
