"""`srm-triton info`: shows versions, devices, backends and the tuning file."""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

from srm_triton.backend import resolve_backend
from srm_triton.commands.shared import Commands, add_cache, kernels_state
from srm_triton.kernels import native
from srm_triton.kernels.configurations import Entries, TuningError, default_path, read, versions


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton info`."""
    parser = commands.add_parser("info", help="show versions, devices, backends and the tuning file")
    parser.set_defaults(run=_info)
    add_cache(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _info(options: argparse.Namespace) -> int:
    """Prints what is installed here and returns the exit code 0."""
    report = _installation(options.cache)
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    print(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    print(f"Triton kernels: {report['kernels']}")
    for device in report["devices"]:
        print(f"{device['device']} ({device['name']}): backend {device['backend']}")
        if device["note"] is not None:
            print(f"  {device['note']}")
    cache = report["tuning"]
    if cache["path"] is not None:
        print(f"tuning file {cache['path']}: {cache['entries']} entries, {cache['usable']} of them in use")
    if cache["problem"] is not None:
        print(f"  {cache['problem']}")
    return 0


def _installation(cache: Path | None) -> dict[str, Any]:
    packages = versions()
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    return {
        "versions": dict(package.split(" ") for package in (*packages, f"python {platform.python_version()}")),
        "kernels": kernels_state(packages),
        "devices": [_describe_device(device) for device in devices],
        "tuning": _describe_tuning(cache),
    }


def _describe_tuning(path: Path | None) -> dict[str, Any]:
    entries: Entries = {}
    problem = None
    try:
        path = path or default_path()
        entries = read(path)
    except TuningError as error:
        problem = str(error)
    usable = sum(case.endswith(", ".join(versions())) for case in entries)
    return {"path": path and str(path), "entries": len(entries), "usable": usable, "problem": problem}


def _describe_device(device: torch.device) -> dict[str, Any]:
    name, note = platform.machine(), f"the C library is {native.problem()}"
    if device.type == "cuda":
        name, note = torch.cuda.get_device_name(device), ""
    elif native.problem() is None:
        note = f"the C library runs on {native.threads()} threads"
    backend = resolve_backend(device, "auto", has_native=True)
    return {"device": str(device), "name": name, "backend": backend, "note": note or None}
