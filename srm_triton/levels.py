"""Spikes in the few levels that they have: what a layer with ``keep="spikes"`` keeps of its inputs for the backward.

Spikes are 0 or 1, their averages over a window multiples of one part, sums of two trains 0, 1 or 2, and what dropout
leaves of them 0 or one number. A tensor of at most 2, 4 or 16 different values is kept as codes of 1, 2 or 4 bits and
the table of the values, and comes back bit for bit.

On the CPU the values are looked at, so that any network is served, whatever stands between its layers. On a GPU that
would wait for the device: there the modules that make spikes (`mark`) say how many parts of 1 these have, which views
keep; other tensors are kept as they are. Nothing is lost either way but memory.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.functions import traced
from srm_triton.kernels import MOST_LEVELS, native

Keep = Literal["current", "spikes"]
KEEPS = get_args(Keep)

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of a value


class Form(NamedTuple):
    """What a tensor was, beside its codes and its table."""

    shape: torch.Size
    stride: tuple[int, ...]
    bits: int


def mark(spikes: Tensor, parts: int = 1) -> Tensor:
    """Says that all values are whole multiples of 1/`parts`, from 0 to 1; returns the tensor."""
    if not spikes.is_cpu and not traced() and not spikes.is_inference():
        spikes._srm_parts = parts, spikes._version  # type: ignore[attr-defined]
    return spikes


def parts_of(spikes: Tensor) -> int | None:
    """What `mark` said of a tensor, or of the one that it is a view of, if none has been written to since."""
    for tensor in (spikes, spikes._base):
        parts, version = getattr(tensor, "_srm_parts", (None, None))
        if parts is not None and version == spikes._version:
            return int(parts)
    return None


def encode(values: Tensor) -> tuple[tuple[Tensor, ...], Form | None]:
    """What to save of a tensor and what makes it whole again: codes and table, or the tensor itself and None.

    It comes back in its own order of memory, so that products with it round as before, but for a slice whose first two
    axes do not make one: for a product that is copied in any case.
    """
    sliced = values.dim() > 1 and not _dense(values) and 0 not in values.stride()
    if sliced and values.stride(0) != values.stride(1) * values.shape[1]:
        values = values.contiguous()
    if values.numel() <= 8 or not _dense(values):
        return (values,), None
    table = _look(values) if values.is_cpu else _known(values)
    if table is None or len(table) > MOST_LEVELS:
        return (values,), None
    bits = 1 if len(table) <= 2 else 2 if len(table) <= 4 else 4
    form = Form(values.shape, values.stride(), bits)
    if _native(values):
        return (native.encode_levels(values, table, bits), table), form
    return (_pack(_numbers(_in_memory(values), table), bits), table), form


def decode(saved: Sequence[Tensor], form: Form | None) -> Tensor:
    """The tensor that `encode` took."""
    if form is None:
        return saved[0]
    codes, table = saved
    values = torch.empty_strided(form.shape, form.stride, dtype=table.dtype, device=table.device)
    if _native(values):
        native.decode_levels(values, codes, table, form.bits)
    else:
        _in_memory(values).copy_(table[_unpack(codes, form.bits)[: values.numel()]])
    return values


def _native(values: Tensor) -> bool:
    return values.is_cpu and resolve_backend(values.device, requested_backend(), has_native=True) == "native"


def _dense(values: Tensor) -> bool:
    """Whether the values fill a piece of memory, each once."""
    expected = 1
    for stride, size in sorted(zip(values.stride(), values.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _in_memory(values: Tensor) -> Tensor:
    """All values of a dense tensor in the order of memory, [values]."""
    return values.as_strided((values.numel(),), (1,))


def _look(values: Tensor) -> Tensor | None:
    if _native(values):
        return native.find_levels(values)
    words = _in_memory(values).view(_WORDS[values.itemsize])
    levels: list[Tensor] = []
    while words.numel() and len(levels) <= MOST_LEVELS:
        levels.append(words[0])
        words = words[words != words[0]]
    return torch.stack(levels).view(values.dtype)


def _known(values: Tensor) -> Tensor | None:
    """The levels that were marked, made on the device."""
    parts = parts_of(values)
    if parts is None:
        warnings.warn(
            'inputs of a layer with keep="spikes" are kept as they are, as it is not known without waiting for the '
            'GPU whether they have few levels; outputs of layers and pooling with keep="spikes", and views of them, do',
            stacklevel=2,
        )
        return None
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    return (torch.arange(parts + 1, dtype=wide, device=values.device) / parts).to(values.dtype)


def _numbers(values: Tensor, table: Tensor) -> Tensor:
    """Of each value, the number of its level, uint8."""
    word = _WORDS[values.itemsize]
    words, levels = values.view(word), table.view(word)
    numbers = torch.zeros(len(values), dtype=torch.uint8, device=values.device)
    for k in range(1, len(table)):
        numbers += (words == levels[k]).to(torch.uint8) * k
    return numbers


def _shifts(bits: int, like: Tensor) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=like.device)


def _pack(numbers: Tensor, bits: int) -> Tensor:
    full = torch.nn.functional.pad(numbers, (0, -len(numbers) % (8 // bits)))
    return (full.view(-1, 8 // bits) << _shifts(bits, numbers)).sum(1, dtype=torch.uint8)


def _unpack(codes: Tensor, bits: int) -> Tensor:
    return (codes[:, None] >> _shifts(bits, codes) & (2**bits - 1)).flatten().to(torch.int64)
