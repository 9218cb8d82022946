"""Reads what LLVM made of a kernel for an AMD GPU, from its assembly, as sass.py reads what ptxas made of one."""

import re

UNITS = {"byte": 1, "short": 2, "dword": 4}


def resources(assembly: str) -> dict[str, int]:
    """Vector registers of a thread, the bytes of memory for what does not fit, and scalars that take vector lanes."""
    notes = {key: int(value) for key, value in re.findall(r"\.(\w+): +(\d+)$", assembly, re.MULTILINE)}
    spills = notes["private_segment_fixed_size"] + 4 * notes["vgpr_spill_count"]
    return {"registers": notes["vgpr_count"], "spills": spills, "scalar_spills": notes["sgpr_spill_count"]}


def accesses(assembly: str) -> list[tuple[str, int]]:
    """The global loads and stores in order, with the bytes that each moves for a thread."""
    found = re.findall(r"\b(?:buffer|global|flat)_(load|store)_(\w+)", assembly)
    return [(name, _width(suffix)) for name, suffix in found]


def _width(suffix: str) -> int:
    if bits := re.search(r"[bui](\d+)$", suffix):
        return int(bits[1]) // 8
    unit, count = re.search(r"(byte|short|dword)(?:x(\d))?", suffix).groups()
    return UNITS[unit] * int(count or 1)


def loop(assembly: str) -> list[str]:
    """Labels and instructions of one trip of the kernel's longest loop."""
    lines = re.findall(r"^(?:\.L\w+:|\s+(?:[sv]|buffer|global)_\w+.*)", assembly, re.MULTILINE)
    bodies = []
    for end, line in enumerate(lines):
        target = re.search(r"s_c?branch\w* (\.L\w+)", line)
        if target and f"{target[1]}:" in lines[:end]:
            bodies.append(lines[lines.index(f"{target[1]}:") : end])
    return max(bodies, key=len, default=[])


def waves(assembly: str) -> int:
    """What LLVM says that a SIMD unit holds."""
    return int(re.search(r"; Occupancy: (\d+)", assembly)[1])


def fused(assembly: str) -> int:
    """The number of multiply-adds that round once, but for five of each division, and for products that become half."""
    found = re.findall(r"\bv_(?:pk_|dual_)?(?:fma|fmac|mac)_(?!mix.*, 0$)", assembly, re.MULTILINE)
    return len(found) - 5 * assembly.count("v_div_fixup_")
