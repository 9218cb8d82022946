"""Profiles one training step of a convolutional network: `python -m bench.trace`."""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from bench.harness import DEVICE
from bench.network import CASES, SCALE, build

STEPS = 20


def main(arguments: list[str] | None = None) -> int:
    """Writes the trace, for chrome://tracing or Perfetto, and a table of what took how long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("runs/trace"), help="folder of the files")
    parser.add_argument("--tiny", action="store_true", help="a batch of one, to check that it runs")
    options = parser.parse_args(arguments)
    options.report.mkdir(parents=True, exist_ok=True)
    name = "32C5-P2-64C5-P2-1024-10"
    hidden, size, samples = CASES[name]
    batch = 1 if options.tiny else SCALE * samples // STEPS
    network = build(hidden, STEPS, 64, *size.values()).to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters())
    inputs = (torch.rand(batch, STEPS, *size.values(), device=DEVICE) < 0.1).float()
    labels = torch.randint(10, (batch,), device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs).sum(1), labels).backward()
        optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):  # in which kernels are compiled and memory is allocated
        step()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (DEVICE.type == "cuda")]) as profiler:
        step()
    profiler.export_chrome_trace(str(options.report / "trace.json.gz"))
    key = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=80)
    text = f"A training step of {name}, batch {batch}, T = {STEPS}, on {DEVICE.type}\n\n{table}"
    (options.report / "profile.txt").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
