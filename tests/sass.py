"""Reads what ptxas made of a kernel: its resources, its loop, and the global memory that a thread reads and writes."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton

WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def _run(cubin: bytes, tool: str, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
        return subprocess.run([path, *options, file.name], capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    usage = _run(cubin, "cuobjdump", "-res-usage")
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "spills": stack + local, "scalar_spills": 0}


def disassemble(cubin: bytes) -> list[str]:
    """Labels and instructions, an element each; without the analysis of data flow, which takes a third of the time."""
    return re.findall(r"^(?:\.L\w+:|\s+/\*[0-9a-f]+\*/.*;)", _run(cubin, "nvdisasm", "-c", "-ndf"), re.MULTILINE)


def loop(code: list[str]) -> list[str]:
    """One trip of the kernel's loop: of the copies that ptxas makes of a short loop, the one that it did not unroll."""
    bodies = []
    for end, line in enumerate(code):
        target = re.search(r"\bBRA `\((\.L\w+)\)", line)
        if target and f"{target[1]}:" in code[: end - 1]:  # not the endless branch to itself after the last instruction
            bodies.append(code[code.index(f"{target[1]}:") : end])
    return min(bodies, key=len, default=[])


def accesses(code: list[str]) -> list[tuple[str, int]]:
    """The global loads ("LDG") and stores ("STG") in order, with the bytes that each moves for a thread."""
    found = re.findall(r"\b(LDG|STG)([.\w]*) ", "\n".join(code))
    return [(name, next((WIDTHS[part] for part in suffix.split(".") if part in WIDTHS), 4)) for name, suffix in found]


def count(code: list[str], instruction: str) -> int:
    return sum(bool(re.search(rf"\b{instruction}\b", line)) for line in code)


def fused(code: list[str]) -> int:
    """The number of multiply-adds that round once."""
    return count(code, r"[FD]FMA\w*")
