"""How many warps of a kernel a multiprocessor holds at a time, from what its machine code takes.

Sources: for NVIDIA, the table "Technical Specifications" of the CUDA Programming Guide, and for the
units of allocation the data of Nsight Compute's occupancy calculator; for AMD, LLVM's AMDGPU backend (GCNSubtarget and
IsaInfo: registers, granules and waves of a SIMD unit, barriers of a compute unit).
"""

from typing import NamedTuple


class Processor(NamedTuple):
    """A streaming multiprocessor, or a compute unit."""

    parts: int  # each with registers of its own, between which a program's warps are shared out
    warps: int  # of a part
    registers: int  # of a part, in those of a thread of a warp
    granule: int  # of those that a warp takes
    shared: int  # bytes
    reserved: int  # of them, for each program
    programs: int


def nvidia(warps: int, kilobytes: int, programs: int, reserved: int = 1024) -> Processor:
    """Four partitions of 16,384 registers, given to a warp by 256: 512 for each of 32 threads, by 8."""
    return Processor(4, warps // 4, 512, 8, 1024 * kilobytes, reserved, programs)


def amd(parts: int, warps: int, registers: int, granule: int, kilobytes: int, programs: int) -> Processor:
    return Processor(parts, warps, registers, granule, 1024 * kilobytes, 0, programs)


PROCESSORS = {
    "sm_75": nvidia(32, 64, 16, reserved=0),
    "sm_80": nvidia(64, 164, 32),
    "sm_86": nvidia(48, 100, 16),
    "sm_89": nvidia(48, 100, 24),
    "sm_90": nvidia(64, 228, 32),
    "sm_100": nvidia(64, 228, 32),
    "sm_120": nvidia(48, 100, 24),
    "gfx90a": amd(4, 8, 512, 8, 64, 16),
    "gfx942": amd(4, 8, 512, 8, 64, 16),
    "gfx950": amd(4, 8, 512, 8, 160, 16),
    "gfx1100": amd(2, 16, 1536, 24, 64, 32),
}


def resident_warps(target: str, registers: int, shared: int, num_warps: int) -> int:
    """Of a kernel with so many registers a thread, bytes of shared memory and warps a program."""
    processor = PROCESSORS[target]
    taken = -(-max(registers, 1) // processor.granule) * processor.granule
    warps = processor.parts * min(processor.warps, processor.registers // taken)
    programs = warps // num_warps
    if num_warps > 1 or target.startswith("sm"):  # one AMD wave needs no barrier
        programs = min(programs, processor.programs)
    if shared + processor.reserved:
        programs = min(programs, processor.shared // (shared + processor.reserved))
    return programs * num_warps
