"""Processes that `torchrun` starts to train one network together, and what falls to each; else there is one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from srm_triton.training.recipe import Schedule


class Processes(NamedTuple):
    """Which of how many processes this is."""

    rank: int = 0
    number: int = 1


def processes() -> Processes:
    """Returns what this process is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Processes()
    return Processes(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def together(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes of `torchrun` within the block; yields the device of this one, one GPU for each."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", distributed.get_node_local_rank())
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
        distributed.barrier()  # or one would leave while others still write
    finally:
        distributed.destroy_process_group()


def total(values: Tensor) -> Tensor:
    """Adds up the values of all processes, in place."""
    if processes().number > 1:
        distributed.all_reduce(values)
    return values


class Piece(NamedTuple):
    """What a process computes at once: a part of a batch."""

    positions: Tensor
    """In the order of the epoch."""
    samples: int
    """How many of them count: all, or none where a batch has fewer samples than there are processes."""
    batch: int
    """Samples of the whole batch, over all processes."""
    last: bool
    """Whether the optimizer takes its step behind it."""


def own_pieces(samples: int, schedule: Schedule) -> Iterator[Piece]:
    """The pieces of an epoch that fall to this process; each process takes as many steps of the optimizer."""
    rank, count = processes()
    parts = schedule.accumulation
    for batch in torch.arange(samples).split(schedule.batch_size):
        own = batch.tensor_split(count * parts)[rank * parts : (rank + 1) * parts]
        filled = [(part, len(part)) for part in own if len(part)] or [(batch[:1], 0)]
        for number, (part, size) in enumerate(filled, 1):
            yield Piece(part, size, len(batch), number == len(filled))
