"""`srm-triton verify`: compares every kernel with its reference on this machine."""

import argparse
import importlib.util
import json
import os
import sys
import warnings

import torch

from srm_triton.commands.shared import Commands


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton verify`."""
    parser = commands.add_parser("verify", help="compare every kernel with its reference on this machine")
    parser.set_defaults(run=_verify)
    parser.add_argument(
        "--repeats",
        type=int,
        default=50,
        help="runs of each kernel, which must all give the same bits; interpreted ones run once (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _verify(options: argparse.Namespace) -> int:
    """Prints the comparisons and returns the exit code: 1 if one of them failed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and importlib.util.find_spec("numpy") is not None:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton's own switch, read when it is first imported
        # the interpreter computes with NumPy, which warns of what IEEE 754 defines
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")
    from srm_triton.verification import verify

    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU, Triton's interpreted"
    if device.type == "cpu" and importlib.util.find_spec("numpy") is None:
        place = "the CPU, without Triton's"
        print(
            "srm-triton: warning: Triton's kernels are left out: its interpreter needs NumPy; install it by: "
            "pip install 'srm-triton[demo]'",
            file=sys.stderr,
        )
    comparisons = []
    if not options.json:
        print(f"Kernels against their references, on {place}\n")
        print(f"{'kernel':8}{'operation':34}{'dtype':10}{'shape':16}{'largest error':>14}{'allowed':>10}  spikes")
    for comparison in verify(device, options.repeats):
        comparisons.append(comparison)
        if not options.json:
            spikes = {True: "identical", False: "DIFFERENT", None: "-"}[comparison.identical]
            shape = "x".join(map(str, comparison.shape))
            print(
                f"{comparison.backend:8}{comparison.operation:34}{comparison.dtype:10}{shape:16}"
                f"{comparison.error:14.1e}{comparison.tolerance:10.1e}  {spikes}"
                f"{'' if comparison.repeatable else '  NOT REPEATABLE'}{'' if comparison.passed else '  FAILED'}",
                flush=True,
            )
    failed = sum(not comparison.passed for comparison in comparisons)
    if options.json:
        rows = [{**comparison._asdict(), "passed": comparison.passed} for comparison in comparisons]
        print(json.dumps({"device": place, "failed": failed, "comparisons": rows}, indent=2))
    else:
        print(f"\n{len(comparisons)} comparisons, {failed} failed")
    return 1 if failed else 0
