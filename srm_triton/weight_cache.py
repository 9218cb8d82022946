"""Normalised weights of layers in evaluation, kept until what they were computed from changes."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from srm_triton.backend import requested_backend
from srm_triton.functions import distributed, traced
from srm_triton.ops.gather_linear import by_inputs


class WeightCache:
    """What a layer computed from its parameters, by name; `names` says for which, `clear` forgets all.

    It is used where no gradient is wanted, and only for sources that are the same tensors, in the same memory, with the
    same number of changes in place. A change that PyTorch does not count, through `.data`, is not seen before `clear`;
    in a group of processes, where `fully_shard` makes such changes, nothing is kept. Copies and files of a layer begin
    with none. Weights of large linear maps are kept in the order of memory that `gather_linear` takes.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[weakref.ref[Tensor], ...], Any, Tensor | None]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What is kept."""
        return tuple(self._kept)

    def clear(self) -> None:
        """Forgets all."""
        self._kept.clear()

    def get(
        self, name: str, sources: tuple[Tensor | None, ...], compute: Callable[[], Tensor], *settings: Any
    ) -> Tensor:
        """What `compute` makes of the sources, called if one of them or a setting has changed, or needs a gradient."""
        tensors = [source for source in sources if source is not None]
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if wanted or traced() or distributed() or any(tensor.is_inference() for tensor in tensors):
            return compute()
        # autograd could not use what is made in inference mode
        made = torch.is_inference_mode_enabled(), requested_backend(), *settings
        stamps = [made, *((tensor._version, tensor.data_ptr(), tensor.dtype) for tensor in tensors)]
        references, seen, result = self._kept.get(name, ((), None, None))
        if result is not None and seen == stamps and all(map(_refers, references, tensors)):
            return result
        result = by_inputs(compute())
        self._kept[name] = tuple(map(weakref.ref, tensors)), stamps, result
        return result

    def __deepcopy__(self, memo: Any) -> "WeightCache":
        return WeightCache()

    def __reduce__(self) -> Any:
        return WeightCache, ()


def _refers(reference: "weakref.ref[Tensor]", tensor: Tensor) -> bool:
    return reference() is tensor
