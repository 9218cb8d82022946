"""Compiles every kernel as its launcher calls it, for GPUs that this machine does not have; prints what came out as
JSON.

Run by test_compile.py in a process of its own: there Triton must not be in interpreter mode.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from srm_triton.kernels import batch_norm, srm_scan

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@contextmanager
def compiling(target: GPUTarget, compiled: list[tuple[str, object]]) -> Iterator[None]:
    """Makes every launch compile for `target`, append the result to `compiled`, and run nothing."""
    backend = make_backend(target)

    def compile_only(kernel: JITFunction, *args, grid, warmup, **kwargs) -> None:
        kwargs.setdefault("debug", False)
        binder = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, options = binder(*args, **kwargs)
        options, signature, constants, attributes = kernel._pack_args(backend, kwargs, bound, specialization, options)
        source = ASTSource(kernel, signature, constants, attributes)
        compiled.append((kernel.fn.__name__, triton.compile(source, target=target, options=options.__dict__)))

    original, JITFunction.run = JITFunction.run, compile_only
    try:
        yield
    finally:
        JITFunction.run = original


def scan_launches(dtype: torch.dtype, steps: int) -> Iterator[Callable[[], None]]:
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    current = torch.empty(4, steps, 4096, dtype=dtype)
    states = torch.empty((steps + 15) // 16 - 1, 3, 4, 4096, dtype=accumulator) if steps > 16 else None
    trace = torch.empty(4, steps, 4096, dtype=accumulator)
    constants = (0.8, 0.6, 0.6, 2.5, 1.0)
    yield partial(srm_scan.forward, current, current, None, None, states, 1, constants)
    if states is None:
        yield partial(srm_scan.forward, current, current, trace, trace, None, 1, constants)
    for events in (None, current):
        yield partial(
            srm_scan.backward,
            current,
            current,
            states,
            events,
            current,
            current,
            1,
            constants,
            (0.3, 0.25, 1e-8),
        )


def batch_norm_launches(dtype: torch.dtype) -> Iterator[Callable[[], None]]:
    """Whole columns and split ones, in both memory orders, with and without affine parameters."""
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    for samples, features, affine in ((16, 4096, True), (1024, 512, False), (8192, 64, True), (20000, 64, True)):
        rows = torch.empty(samples, features, dtype=dtype)
        vector = torch.empty(features, dtype=accumulator) if affine else None
        statistics = torch.empty(3, features, dtype=accumulator)
        for x in (rows, rows.t().contiguous().t()):
            yield partial(batch_norm.forward, x, vector, vector, x, statistics, 1e-5, samples - 1)
            yield partial(batch_norm.backward, rows, x, vector, statistics, x, statistics, 1e-5, samples)


def resources(name: str, target: str, kernel) -> dict:
    """Registers, spilled bytes and instruction counts of a compiled kernel."""
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])
        spills = sum(int(n) for n in re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", text))
        return {
            "kernel": name,
            "registers": registers,
            "spills": spills,
            "fused": len(re.findall(r"\bv_(?:pk_)?(?:fma|mac)", text)),
        }
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        code = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True)
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage.stdout)[1]) for key in ("REG", "STACK", "LOCAL"))
    return {
        "kernel": name,
        "registers": registers,
        "spills": stack + local,
        "fused": len(re.findall(r"\b[FD]FMA", code.stdout)),
    }


def launches() -> Iterator[tuple[torch.dtype, Callable[[], None]]]:
    """Every kernel in the variants that differ most."""
    for dtype, steps in ((torch.float32, 16), (torch.float32, 1000), (torch.bfloat16, 1000), (torch.float64, 40)):
        yield from ((dtype, launch) for launch in scan_launches(dtype, steps))
    # Not float64: on sm_100 its division, a function call, has the split forward put one register on the stack.
    for dtype in (torch.float32, torch.bfloat16):
        yield from ((dtype, launch) for launch in batch_norm_launches(dtype))


if __name__ == "__main__":
    rows = []
    for target in sys.argv[1:] or TARGETS:
        for dtype, launch in launches():
            compiled: list = []
            with compiling(TARGETS[target], compiled):
                launch()
            rows += [
                {"target": target, "dtype": str(dtype), **resources(name, target, code)} for name, code in compiled
            ]
    print(json.dumps(rows, indent=1))
