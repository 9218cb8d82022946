"""Augmentation and normalisation of samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

from srm_triton.training.recipe import Augmentation


def draw(samples: int, crop: int, generator: torch.Generator) -> Tensor:
    """What chance does to each sample: whether it is mirrored, and where the part begins; int64 [samples, 3]."""
    flips = torch.randint(2, (samples, 1), generator=generator)
    return torch.cat((flips, torch.randint(2 * crop + 1, (samples, 2), generator=generator)), 1)


def augment(inputs: Tensor, draws: Tensor, recipe: Augmentation) -> Tensor:
    """Mirrors and crops as drawn, all steps and channels of a sample alike.

    Args:
        inputs: [batch, ..., height, width].
        draws: what `draw` returned for them.
        recipe: what to do.
    """
    if not (recipe.flip or recipe.crop):
        return inputs
    batch, (height, width) = len(inputs), inputs.shape[-2:]
    planes = F.pad(inputs.reshape(batch, -1, height, width), (recipe.crop,) * 4)
    flips, tops, lefts = draws.to(inputs.device)[:, :, None].unbind(1)
    rows = tops + torch.arange(height, device=inputs.device)
    columns = torch.arange(width, device=inputs.device).expand(batch, width)
    if recipe.flip:
        columns = torch.where(flips == 1, columns.flip(1), columns)
    each = torch.arange(batch, device=inputs.device)[:, None, None]
    parts = planes[each, :, rows[:, :, None], (lefts + columns)[:, None]]  # channels come last
    return parts.movedim(3, 1).reshape(inputs.shape)


class Normalization:
    """From values to values of about mean 0 and deviation 1.

    Args:
        recipe: how.
        inputs: the training samples, [samples, channels, height, width], or None where they are not in memory.
        channels: their number.

    Raises:
        ValueError: if the recipe's numbers are not as many as there are channels, or data are missing or constant.
    """

    def __init__(self, recipe: Augmentation, inputs: Tensor | None, channels: int) -> None:
        kind = recipe.normalization
        self.mean = self.deviation = torch.zeros(0)
        if kind == "none":
            return
        if kind == "data":
            if inputs is None:
                raise ValueError("[augmentation] normalization must not be 'data' for samples that are read one by one")
            deviation, mean = torch.std_mean(inputs.double(), (0, 2, 3), correction=0)
        else:
            if len(kind) not in (2, 2 * channels):
                raise ValueError(
                    f"[augmentation] normalization must have 2 or {2 * channels} numbers for {channels} channels, "
                    f"got {len(kind)}"
                )
            mean, deviation = torch.tensor(kind, dtype=torch.float64).view(2, -1)
        if not (deviation > 0).all():
            raise ValueError(f"[augmentation] normalization must have deviations > 0, got {deviation.tolist()}")
        self.mean, self.deviation = (values.float().view(-1, 1, 1) for values in (mean, deviation))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Returns [batch, ..., channels, height, width] normalised."""
        if not self.mean.numel():
            return inputs
        return (inputs - self.mean.to(inputs.device)) / self.deviation.to(inputs.device)
