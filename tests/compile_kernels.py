"""Compiles kernels as their launchers call them, for GPUs that this machine does not have; prints what came out as
JSON.

Run by test_compile.py and test_traffic.py in a process of its own: there Triton must not be in interpreter mode.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import amdgcn
import sass
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from srm_triton.kernels import batch_norm, shrink, srm_scan

TARGETS = {
    **{f"sm_{number}": GPUTarget("cuda", number, 32) for number in (75, 80, 86, 89, 90, 100, 120)},
    **{name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942", "gfx950")},
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
IN_FULL = ("sm_90", "gfx942")
FLOAT64 = ("sm_80", "sm_90", "sm_100", "gfx942")


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


def compile_launch(launch: Callable[[], None], target: str) -> list[tuple[str, object]]:
    """The name and the code of every kernel of a launch, in order."""
    compiled: list = []
    with compiling(TARGETS[target], compiled):
        launch()
    return compiled


def scan_launches(dtype: torch.dtype, steps: int) -> Iterator[Callable[[], None]]:
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    current = torch.empty(16, steps, 4096, dtype=dtype)
    states = torch.empty((steps + 15) // 16 - 1, 3, 16, 4096, dtype=accumulator) if steps > 16 else None
    trace = torch.empty(16, steps, 4096, dtype=accumulator)
    constants = (0.8, 0.6, 0.6, 2.5, 1.0)
    yield partial(srm_scan.forward, current, current, None, None, states, 1, constants)
    if states is None:
        yield partial(srm_scan.forward, current, current, trace, trace, None, 1, constants)
    for label_steps in (None, torch.empty(16, 4096, dtype=torch.int32)):
        yield partial(
            srm_scan.backward,
            current,
            current,
            states,
            label_steps,
            current,
            current,
            1,
            constants,
            (0.3, 0.25, 1e-8),
        )


def batch_norm_launches(dtype: torch.dtype) -> Iterator[Callable[[], None]]:
    """Whole columns and split ones, in both memory orders, with and without affine parameters."""
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    few, some, many, most = (16, 4096, True), (1024, 512, False), (8192, 64, True), (1 << 18, 16, True)
    for samples, features, affine in (few, some, many, most, (20000, 64, True)):  # more features: the code of `few`
        rows = torch.empty(samples, features, dtype=dtype)
        vector = torch.empty(features, dtype=accumulator) if affine else None
        statistics = torch.empty(3, features, dtype=accumulator)
        for x in (rows, rows.t().contiguous().t()):
            yield partial(batch_norm.forward, x, vector, vector, x, statistics, 1e-5, samples - 1)
            yield partial(batch_norm.backward, rows, x, vector, statistics, x, statistics, 1e-5, samples)


def shrink_launches(dtype: torch.dtype) -> Iterator[Callable[[], None]]:
    """The soft threshold, and in the types that it is computed in the step of split Bregman for both fidelities."""
    values = torch.empty(1 << 20, dtype=dtype)
    yield partial(shrink.forward, values, values, 0.1)
    if dtype in (torch.float32, torch.float64):
        image, penalty = torch.empty(2, 3, 64, 256, dtype=dtype), torch.empty(2, dtype=dtype)
        for kinds in (2, 3):
            splits = torch.empty(2, kinds, 3, 64, 256, dtype=dtype)
            yield partial(shrink.bregman_step, image, image, splits, penalty, splits, image, 0.1, 1.8)


def launches(target: str) -> Iterator[tuple[str, torch.dtype, Callable[[], None]]]:
    """In every dtype what differs most in machine code, and for the targets `IN_FULL` all variants, with their kind."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        one_chunk, chunks = list(scan_launches(dtype, 16)), list(scan_launches(dtype, 1000))
        columns = list(batch_norm_launches(dtype))
        kinds = {
            "whole": (one_chunk[0], *columns[:2]),
            "parts": (chunks[0], chunks[-1], *columns[-4:-2]),
            "parts of adjacent samples": columns[-2:],
            "images": list(shrink_launches(dtype)),
        }
        if target in IN_FULL:
            half = dtype == torch.float16
            kinds["other"] = columns[12:16] if half else (*one_chunk[1:], *chunks[1:-1], *columns[2:16])
        yield from ((kind, dtype, launch) for kind, launches in kinds.items() for launch in launches)
    if target in FLOAT64:
        columns = list(batch_norm_launches(torch.float64))
        wide = (
            *scan_launches(torch.float64, 40),
            *columns[:4],
            *columns[-4:],
            *shrink_launches(torch.float64),
        )
        yield from (("other", torch.float64, launch) for launch in wide)


def every_kernel(target: str) -> Iterator[dict]:
    for kind, dtype, launch in launches(target):
        for name, kernel in compile_launch(launch, target):
            row = {"kernel": name, "dtype": str(dtype).removeprefix("torch."), "kind": kind}
            yield row | contract(kernel, dtype, target)


def contract(kernel, dtype: torch.dtype, target: str) -> dict[str, int]:
    """The resources of a kernel, and how many accesses move less than a thread's share of a row, at most 16 bytes."""
    if target.startswith("gfx"):
        reader, code = amdgcn, kernel.asm["amdgcn"]
        resources = amdgcn.resources(code)
    else:
        reader, code = sass, sass.disassemble(kernel.asm["cubin"])
        resources = sass.resources(kernel.asm["cubin"])
    vector = min(16, elements_per_thread(kernel) * dtype.itemsize)
    return {
        **resources,
        "shared": kernel.metadata.shared,
        "fused": reader.fused(code),
        "vector": vector,
        "narrow": sum(width < vector for _, width in reader.accesses(code)),
    }


def elements_per_thread(kernel) -> int:
    """Of the tile that a program holds; at least one, as lanes without an element of their own repeat another's."""
    constants = {kernel.src.fn.arg_names[path[0]]: value for path, value in kernel.src.constants.items()}
    tile = [value for name, value in constants.items() if name.startswith("BLOCK") and name != "BLOCK_SPLITS"]
    return max(1, math.prod(tile) // (kernel.metadata.target.warp_size * kernel.metadata.num_warps))


def describe(kernel) -> dict:
    """The global memory accesses of a thread, and the arithmetic as written (PTX) and as compiled (SASS)."""
    code = sass.disassemble(kernel.asm["cubin"])
    ptx = kernel.asm["ptx"]
    return {
        "elements": elements_per_thread(kernel),
        "loop": sass.accesses(sass.loop(code)),
        "all": sass.accesses(code),
        "shared": kernel.metadata.shared,
        "fused": sass.count(code, "FFMA"),
        "double_additions": (len(re.findall(r"\b(?:add|sub)\.(?:rn\.)?f64", ptx)), sass.count(code, "DADD")),
        "written_fused": len(re.findall(r"\bfma\.", ptx)),
        "order": re.findall(r"\b(ld\.global|(?:add|sub|mul)(?=\.(?:rn\.)?f)|st\.global)", ptx),
        **sass.resources(kernel.asm["cubin"]),
    }


def scan_traffic(dtype: torch.dtype) -> Iterator[dict]:
    """Training and inference of every kind of sequence."""
    for steps in (1, 16, 17, 40, 1000) if dtype == torch.float32 else (16, 40):
        launches = list(scan_launches(dtype, steps))
        passes = {"forward": launches[0], "backward": launches[-2]}
        if steps in (16, 40):
            passes["backward with label spikes"] = launches[-1]
        current = torch.empty(16, steps, 4096, dtype=dtype)
        constants = launches[0].args[-1]
        if steps > 16:
            passes["inference"] = partial(srm_scan.forward, current, current, None, None, None, 1, constants)
        for name, launch in passes.items():
            for _, kernel in compile_launch(launch, "sm_90"):
                yield {"pass": name, "steps": steps, **describe(kernel)}


def batch_norm_traffic(dtype: torch.dtype) -> Iterator[dict]:
    """One launch and two, in both memory orders."""
    for samples, features in ((16, 4096), (20000, 64)):
        rows = torch.empty(samples, features, dtype=dtype)
        vector = torch.empty(features)
        statistics = torch.empty(3, features)
        for order, x in (("features", rows), ("samples", rows.t().contiguous().t())):
            passes = {
                "forward": partial(batch_norm.forward, x, vector, vector, x, statistics, 1e-5, samples),
                "backward": partial(batch_norm.backward, x, x, vector, statistics, x, statistics, 1e-5, samples),
            }
            for name, launch in passes.items():
                for kernel_name, kernel in compile_launch(launch, "sm_90"):
                    row = {"pass": name, "samples": samples, "adjacent": order, "kernel": kernel_name}
                    yield row | describe(kernel)


if __name__ == "__main__":
    subject, which = sys.argv[1:]
    if subject == "every_kernel":
        rows = every_kernel(which)
    else:
        rows = {"scan": scan_traffic, "batch_norm": batch_norm_traffic}[subject](getattr(torch, which))
    print(json.dumps(list(rows), indent=1))
