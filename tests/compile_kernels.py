"""Compiles kernels as their launchers call them, for GPUs that this machine does not have; prints what came out as
JSON.

Run by test_compile.py and test_traffic.py in a process of its own: there Triton must not be in interpreter mode.
"""

import itertools
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import amdgcn
import sass
import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from srm_triton import SRMParameters
from srm_triton.kernels import SRM_SCAN_RULES, batch_norm, configurations, shrink, srm_scan, srm_scan_chunk
from srm_triton.kernels import launch as launchers
from srm_triton.kernels.layout import accumulator_dtype

TARGETS = {
    **{f"sm_{number}": GPUTarget("cuda", number, 32) for number in (75, 80, 86, 89, 90, 100, 120)},
    **{name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942", "gfx950")},
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}

empty = partial(torch.empty, device="meta")  # of any size, without memory


class Compiled(NamedTuple):
    """A kernel of a launch, its code, and the programs that were asked for."""

    name: str
    code: Any
    grid: tuple[int, ...]


def pretend(target: str) -> None:
    """Has Triton and the launchers see a GPU, which can compile and not run."""
    gpu = TARGETS[target]
    driver = SimpleNamespace(
        get_current_target=lambda: gpu, get_current_device=lambda: 0, get_current_stream=lambda device: None
    )
    triton.runtime.driver.set_active(driver)
    configurations.warp_size = lambda: gpu.warp_size
    launchers.tells_sizes_apart = lambda: gpu.backend == "hip"
    configurations.load(Path("no file"))  # the usual configurations, whatever was tuned here


def compile_launch(launch: Callable[[], None]) -> list[Compiled]:
    """All kernels of a launch, in order; one that was compiled before is the same object."""
    compiled: list[Compiled] = []
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        compiled.append(Compiled(kernel.fn.__name__, run(kernel, *arguments, grid=grid, warmup=True, **options), grid))

    with patch.object(JITFunction, "run", compile_only):
        launch()
    return compiled


def scan_forward(
    current: torch.Tensor,
    parameters: SRMParameters = SRMParameters(),  # noqa: B008
    *,
    trace: bool = False,
    state: bool = False,
    keep: bool = False,
    output: bool = False,
    time_axis: int = 1,
    spike_dtype: torch.dtype | None = None,
) -> Callable[[], None]:
    """A launch for inference, and with `keep` for training."""
    like = torch.empty_like(current)
    wide = accumulator_dtype(current.dtype)
    steps, neurons = _split(current, time_axis)
    kept = (-(-steps // srm_scan_chunk(steps, current.itemsize)) - 1) * keep
    potential = torch.empty_like(like, dtype=wide) if trace else None
    handed = empty(3, *neurons, dtype=wide) if state else None
    return partial(
        srm_scan.forward,
        current,
        parameters.pack(current),
        handed,
        like.to(spike_dtype or current.dtype),
        empty(0, dtype=wide) if handed is None else handed,
        empty(kept, 3, *neurons, dtype=wide),
        empty(neurons if output else 0, dtype=torch.int32),
        potential,
        potential,
        time_axis,
    )


def scan_backward(
    current: torch.Tensor,
    rule: str,
    parameters: SRMParameters = SRMParameters(),  # noqa: B008
    *,
    paths: tuple[bool, bool] = (True, True),
    learn: bool = False,
    state: bool = False,
    output: bool = False,
    time_axis: int = 1,
) -> Callable[[], None]:
    like = torch.empty_like(current)
    wide = accumulator_dtype(current.dtype)
    steps, neurons = _split(current, time_axis)
    chunks = -(-steps // srm_scan_chunk(steps, current.itemsize))
    handed = empty(3, *neurons, dtype=wide) if state else None
    none = empty(0, dtype=wide)
    return partial(
        srm_scan.backward,
        current,
        handed,
        current,
        parameters.pack(current),
        handed,
        empty(chunks - 1, 3, *neurons, dtype=wide),
        empty(neurons if output else 0, dtype=torch.int32),
        *(like if path else like.new_empty(0) for path in paths),
        none if handed is None else handed,
        empty(3, *neurons, dtype=wide) if learn else none,
        time_axis,
        rule,
    )


def _split(current: torch.Tensor, time_axis: int) -> tuple[int, list[int]]:
    """Steps and the shape of the neurons."""
    neurons = list(current.shape)
    return neurons.pop(time_axis), neurons


def scan_launches(dtype: torch.dtype, in_full: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Variants and their kinds, each for few and for many short rows, with and without what flags switch on."""
    per_channel = SRMParameters(threshold=torch.ones(64))
    if dtype == torch.float32:
        current = empty(16, 1000, 4096)
        yield "other", scan_forward(current, spike_dtype=torch.uint8)
        yield "other", scan_forward(current, keep=True, spike_dtype=torch.bfloat16)
    for steps, (state, output) in itertools.product((8, 1000)[not in_full :], ((False, False), (True, True))):
        for shape, parameters in (
            ((16, steps, 4096), SRMParameters()),
            ((1 << 18, steps, 64), per_channel),
            ((1 << 20, steps, 64), SRMParameters()),
        ):
            current = empty(shape, dtype=dtype)
            for trace, keep in ((False, False), (False, True), (True, False))[: 2 + in_full]:
                yield "", scan_forward(current, parameters, trace=trace, keep=keep, output=keep and output, state=state)
            rules = ("event", "arctan", "fast_sigmoid")[: 2 + in_full]
            for rule, learn in itertools.product(rules, (False, True)):
                kind = (":event" if rule == "event" else ":surrogate") + ",learn" * learn
                yield kind, scan_backward(current, rule, parameters, learn=learn, state=state, output=output)


def batch_norm_launches(dtype: torch.dtype) -> Iterator[Callable[[], None]]:
    """Whole columns and split ones, in both memory orders, with and without affine parameters."""
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    few, some, many, most = (16, 4096, True), (1024, 512, False), (8192, 64, True), (1 << 18, 16, True)
    for samples, features, affine in (few, some, many, most, (20000, 64, True)):  # more features: the code of `few`
        rows = torch.empty(samples, features, dtype=dtype)
        vector = torch.empty(features, dtype=accumulator) if affine else None
        statistics = torch.empty(3, features, dtype=accumulator)
        for x in (rows, rows.t().contiguous().t()):
            yield partial(batch_norm.forward, x, vector, vector, x, statistics, 1e-5, samples - 1, True)
            yield partial(batch_norm.backward, rows, x, vector, statistics, x, statistics, 1e-5, samples, True)


def shrink_launches(dtype: torch.dtype) -> Iterator[Callable[[], None]]:
    """The soft threshold; in the types that it is computed in, the step of split Bregman for fidelities and edges."""
    values = torch.empty(1 << 20, dtype=dtype)
    yield partial(shrink.forward, values, values, 0.1)
    if dtype in (torch.float32, torch.float64):
        image, penalty = torch.empty(2, 3, 64, 256, dtype=dtype), torch.empty(2, dtype=dtype)
        for kinds, mirrored in itertools.product((2, 3), (True, False)):
            splits = torch.empty(2, kinds, 3, 64, 256, dtype=dtype)
            yield partial(
                shrink.bregman_step, image, image, splits, penalty, penalty, splits, image, 1.8, mirrored
            )  # fmt: skip


def launches(dtype: torch.dtype, in_full: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """What differs most in machine code, or all variants, with their kind."""
    yield from scan_launches(dtype, in_full)
    columns = list(batch_norm_launches(dtype))
    kinds = {
        "whole": columns[:2],
        "parts": columns[-4:-2],
        "parts of adjacent samples": columns[-2:],
        "images": shrink_launches(dtype),
    }
    if in_full:
        kinds["other"] = columns[2:-4]
    yield from ((kind, launch) for kind, launches in kinds.items() for launch in launches)


def every_kernel(target: str, dtype: str, in_full: bool, brief: bool) -> Iterator[dict]:
    """A row for each kernel that is compiled, and for another grid; in brief no more than one of a kind."""
    seen = set()
    pretend(target)
    for kind, launch in launches(getattr(torch, dtype), in_full):
        if brief and (kind.endswith(",learn") or (kind == ":surrogate" and dtype != "float32")):
            continue
        for name, kernel, grid in compile_launch(launch):
            if (kernel.hash, len(grid)) not in seen:
                seen.add((kernel.hash, len(grid)))
                row = {"kernel": name, "kind": kind, "axes": len(grid)}
                yield row | contract(kernel, getattr(torch, dtype), target)


def contract(kernel, dtype: torch.dtype, target: str) -> dict[str, int]:
    """What a kernel takes, its instructions for a step (a loop's trip), and accesses of less than a thread's share of a
    row, at most 16 bytes."""
    if target.startswith("gfx"):
        reader, code = amdgcn, kernel.asm["amdgcn"]
        resources = {**amdgcn.resources(code), "waves": amdgcn.waves(code)}
    else:
        reader, code = sass, sass.disassemble(kernel.asm["cubin"])
        resources = sass.resources(kernel.asm["cubin"])
    trip = sum(not line.startswith(".") for line in reader.loop(code))
    vector = min(16, elements_per_thread(kernel) * dtype.itemsize)
    return {
        **resources,
        "large": str(kernel.src.attrs).count("pointer_range") < str(kernel.src.signature).count("'*"),  # on AMD: > 2 GB
        "shared": kernel.metadata.shared,
        "threads": kernel.metadata.target.warp_size * kernel.metadata.num_warps,
        "num_warps": kernel.metadata.num_warps,
        "instructions": trip / constants_of(kernel).get("CHUNK", 1),
        "fused": reader.fused(code),
        "vector": vector,
        "narrow": sum(width < vector for _, width in reader.accesses(code)),
    }


def constants_of(kernel) -> dict[str, Any]:
    return {kernel.src.fn.arg_names[path[0]]: value for path, value in kernel.src.constants.items()}


def elements_per_thread(kernel) -> int:
    """Of the tile that a program holds; at least one, as lanes without an element of their own repeat another's."""
    tile = [
        value for name, value in constants_of(kernel).items() if name.startswith("BLOCK") and name != "BLOCK_SPLITS"
    ]
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


def configured(target: str, dtype: torch.dtype, in_full: bool) -> Iterator[dict]:
    """The scan in each of its configurations and the usual tiles of batch normalisation, or those that hold most."""
    pretend(target)
    current, warp = empty(16, 40, 4096, dtype=dtype), TARGETS[target].warp_size
    for tunable, launch in (
        (srm_scan.FORWARD, scan_forward(current, keep=True)),
        (srm_scan.BACKWARD, scan_backward(current, "event", learn=in_full)),
    ):
        for choice in tunable.candidates(warp)[0 if in_full else -1 :]:
            for name, code, _ in compile_launch(partial(launch, configuration=choice)):
                yield {"kernel": name, "choice": choice, **contract(code, dtype, target)}
    classes = [(14, 0, "samples"), (13, 0, "features"), (0, 12, "samples")]
    if in_full:
        classes = itertools.product(range(18), range(14), ("samples", "features"))
    seen = set()
    for samples, features, adjacent in classes:
        tile = batch_norm.candidates(warp, dtype, samples, features, adjacent)[0]
        if (tile, adjacent) in seen:
            continue
        seen.add((tile, adjacent))
        rows = empty(1 << samples, 1 << features, dtype=dtype)
        x = rows if adjacent == "features" else empty(1 << features, 1 << samples, dtype=dtype).t()
        vector = empty(1 << features, dtype=accumulator_dtype(dtype))
        statistics = empty(3, 1 << features, dtype=accumulator_dtype(dtype))
        for launch in (
            partial(batch_norm.forward, x, vector, vector, x, statistics, 1e-5, 9, True),
            partial(batch_norm.backward, x, x, vector, statistics, x, statistics, 1e-5, 9, True),
        ):
            for name, code, _ in compile_launch(launch):
                yield {"kernel": name, "choice": tile, **contract(code, dtype, target)}


def folded(launch: Callable[[], None]) -> Compiled:
    """The kernel of a launch in which the flags are compile-time constants, so that what is switched off is gone."""
    pack_arguments = JITFunction._pack_args

    def pack(kernel: JITFunction, backend: Any, options: dict, bound: dict, *others: Any) -> tuple:
        parsed, signature, constants, attributes = pack_arguments(kernel, backend, options, bound, *others)
        flags = {name: value for name, value in bound.items() if name.startswith("has_")}
        signature |= dict.fromkeys(flags, "constexpr")
        constants |= {(kernel.arg_names.index(name),): value for name, value in flags.items()}
        return parsed, signature, constants, attributes

    for kernel in (srm_scan.srm_scan_forward_kernel, srm_scan.srm_scan_backward_kernel):
        kernel.device_caches.clear()  # which tell no flags apart
    with patch.object(JITFunction, "_pack_args", pack):
        (compiled,) = compile_launch(launch)
    return compiled


def scan_traffic(dtype: torch.dtype, in_full: bool) -> Iterator[dict]:
    """Training and inference, of one chunk and of several."""
    for steps in (8, 40) if in_full else (40,):
        current = empty(16, steps, 4096, dtype=dtype)
        launches = {
            "forward": scan_forward(current, keep=True),
            "event": scan_backward(current, "event"),
        }
        if in_full or dtype == torch.float32:
            launches |= {
                "inference": scan_forward(current),
                "event, one path": scan_backward(current, "event", paths=(True, False), output=True),
                "surrogate": scan_backward(current, "arctan", paths=(True, False)),
            }
        if in_full:
            launches |= {
                "with states": scan_forward(current, keep=True, state=True, output=True),
                "learns": scan_backward(current, "event", learn=True, state=True),
            }
        for name, launch in launches.items():
            yield {"pass": name, "steps": steps, **describe(folded(launch).code)}


def variants(dtype: torch.dtype) -> dict[str, int]:
    """How often each kernel would be compiled, and gradient rule, over many shapes, layouts and constants.

    On AMD, kernels for launches with a tensor of 2 GB or more are counted apart.
    """
    keys: set[tuple[str, str]] = set()

    def note(key: str, fn: Any, **_: Any) -> bool:
        keys.add((kind if specialised(key) else f"{kind}, of any size", key))
        return True  # do not compile

    def specialised(key: str) -> bool:
        """Whether some tensor is compiled as one of less than 2 GB, or none is on any target."""
        return not launchers.tells_sizes_apart() or "'S')" in key

    draw = random.Random(0)
    thresholds = [SRMParameters(threshold=1 + number / 10) for number in range(12)]
    with patch.object(knobs.runtime, "jit_cache_hook", note):
        for case in range(1500):
            steps = case % 300 + 1
            batch = draw.choice((1, 2, 3, 16, 17, 255, 4096, 65536, 70000, draw.randint(1, 70000)))
            widths = [draw.choice((1, 2, 3, 16, 17, 48, 5000, draw.randint(1, 5000)))]
            widths += [draw.choice((1, 3, 7, 16, 32)) for _ in range(case % 3)]
            time_axis = draw.randrange(2)
            shape = [steps, batch, *widths] if time_axis == 0 else [batch, steps, *widths]
            current = empty(math.prod(shape) + 1, dtype=dtype)[case % 2 :][: math.prod(shape)].view(shape)
            if draw.random() < 0.3:
                current = empty(*shape[:-1], 2 * shape[-1] + 1, dtype=dtype)[..., 1::2]
            parameters = draw.choice(thresholds)
            if draw.random() < 0.3:
                parameters = SRMParameters(threshold=torch.ones(widths[0]))
            options = {"state": draw.random() < 0.5, "output": draw.random() < 0.5, "time_axis": time_axis}
            kind, trace, keep = "forward", draw.random() < 0.3, draw.random() < 0.5
            compile_launch(scan_forward(current, parameters, trace=trace, keep=keep, **options))
            kind, paths = draw.choice(tuple(SRM_SCAN_RULES)), draw.choice(((True, True), (True, False), (False, True)))
            learn = draw.random() < 0.5
            compile_launch(scan_backward(current, kind, parameters, paths=paths, learn=learn, **options))
    return Counter(kind for kind, _ in keys)


def batch_norm_traffic(dtype: torch.dtype) -> Iterator[dict]:
    """One launch and two, in both memory orders."""
    for samples, features in ((16, 4096), (20000, 64)):
        rows = torch.empty(samples, features, dtype=dtype)
        vector = torch.empty(features)
        statistics = torch.empty(3, features)
        for order, x in (("features", rows), ("samples", rows.t().contiguous().t())):
            passes = {
                "forward": partial(batch_norm.forward, x, vector, vector, x, statistics, 1e-5, samples, True),
                "backward": partial(batch_norm.backward, x, x, vector, statistics, x, statistics, 1e-5, samples, True),
            }
            for name, launch in passes.items():
                for kernel_name, kernel, _ in compile_launch(launch):
                    row = {"pass": name, "samples": samples, "adjacent": order, "kernel": kernel_name}
                    yield row | describe(kernel)


if __name__ == "__main__":
    subject, which, *options = sys.argv[1:]
    if subject == "configured":
        result = list(configured(which, getattr(torch, options[0]), "full" in options))
    elif subject == "every_kernel":
        result = list(every_kernel(which, options[0], in_full="full" in options, brief="brief" in options))
    else:
        pretend(options[0] if subject == "variants" else "sm_90")
        dtype = getattr(torch, which)
        if subject == "variants":
            result = variants(dtype)
        else:
            result = list(scan_traffic(dtype, "full" in options) if subject == "scan" else batch_norm_traffic(dtype))
    print(json.dumps(result, indent=1))
