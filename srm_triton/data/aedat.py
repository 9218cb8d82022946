"""AEDAT 3.1 files, recordings of event cameras.

Source: https://docs.inivation.com/software/software-advanced-usage/file-formats/aedat-3.1.html, the header files of
libcaer, and the description that comes with DVS-Gesture. Lines that begin with ``#``, then packets: a header of 28
bytes and its events. Everything is little-endian.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from srm_triton.checks import check_number
from srm_triton.data.events import Events
from srm_triton.data.files import DataError, read_bytes

_VERSION, _END = b"#!AER-DAT3.1", b"#!END-HEADER"
# type, source, size of an event, place of its time in it, overflows of time, capacity, events, valid events
_HEADER, _TIME = struct.Struct("<hhiiiiii"), struct.Struct("<i")
_POLARITY = 1


def read_aedat(path: str | Path, start: int = 0, end: int = 2**62) -> Events:
    """Reads the polarity events of an AEDAT 3.1 file; packets of other types are passed over.

    An event is two words of 32 bits: from the lowest bit on, its validity in 1, polarity in 1, y in 15 and x in 15; and
    the time in microseconds, to which the header adds 2³¹ for each time that it overflowed. Within a packet time never
    falls. Events that are marked as invalid are left out; where none is marked although the headers count all as valid,
    all are taken.

    Args:
        path: a file ``.aedat``, plain or with the further ending ``.gz``.
        start: the first time to read, in microseconds, ≥ 0.
        end: the first time to read no more.

    Raises:
        TypeError: for times of another type.
        ValueError: for times below 0.
        OSError: if the file cannot be read.
        DataError: if it is of another version or kind, is cut, has headers that contradict its events, or no polarity
            event from `start` to `end`.
    """
    start, end = (check_number(name, time, 0, whole=True) for name, time in (("start", start), ("end", end)))
    path = Path(path)
    content = read_bytes(path)
    packets = [packet for packet in _packets(path, content) if packet.first < end and packet.last >= start]
    nothing = DataError(f"{path}: expected polarity events from {start} to {end} µs, found none")
    if not packets:
        raise nothing
    bodies, overflows, valid, *_ = zip(*packets, strict=True)
    data, time = torch.frombuffer(bytearray().join(bodies), dtype=torch.int32).view(-1, 2).unbind(1)
    time = time + (torch.tensor(overflows) << 31).repeat_interleave(torch.tensor([len(body) // 8 for body in bodies]))
    marked = (data & 1).bool()
    if not marked.any() and sum(valid) == len(marked):
        marked = ~marked
    if int(marked.sum()) != sum(valid):
        raise DataError(f"{path}: expected {sum(valid)} valid events as its headers say, found {int(marked.sum())}")
    wanted = marked & (time >= start) & (time < end)
    if not wanted.any():
        raise nothing
    data, time = data[wanted], time[wanted]
    return Events(time, (data >> 17 & 0x7FFF).long(), (data >> 2 & 0x7FFF).long(), (data >> 1 & 1).long())


class _Packet(NamedTuple):
    body: memoryview
    overflows: int
    valid: int
    first: int
    last: int


def _packets(path: Path, content: bytes) -> Iterator[_Packet]:
    """The packets of polarity events that are not empty, with the times of their first and last event."""
    position = _after_lines(path, content)
    while position < len(content):
        if len(content) - position < _HEADER.size:
            raise DataError(
                f"{path}: expected {_HEADER.size} bytes of a header at byte {position}, found the file's end"
            )
        kind, _, size, offset, overflows, _, number, valid = _HEADER.unpack_from(content, position)
        polarity = kind == _POLARITY
        if min(number, size, overflows) < 0 or not 0 <= valid <= number or (polarity and (size, offset) != (8, 4)):
            raise DataError(
                f"{path}: expected a packet's header at byte {position}, found type {kind}, {number} events "
                f"({valid} valid) of {size} bytes with the time at byte {offset}"
            )
        position += _HEADER.size
        body = memoryview(content)[position : position + size * number]
        if len(body) < size * number:
            raise DataError(f"{path}: expected {size * number} bytes of events at byte {position}, found {len(body)}")
        position += len(body)
        if polarity and number:
            first, last = (_TIME.unpack_from(body, place)[0] + (overflows << 31) for place in (4, len(body) - 4))
            yield _Packet(body, overflows, valid, first, last)


def _after_lines(path: Path, content: bytes) -> int:
    """The position of the first packet."""
    if not content.startswith(_VERSION):
        raise DataError(f"{path}: expected a first line {_VERSION.decode()}, found {content[:16]!r}")
    position = 0
    while content.startswith(b"#", position):
        end = content.find(b"\n", position) + 1
        if not end:
            raise DataError(f"{path}: expected packets behind the lines, found the end of the file")
        if content.startswith(_END, position):
            return end
        position = end
    return position
