"""Processes that `torchrun` starts to train one network together; without it, one that is alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed


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
