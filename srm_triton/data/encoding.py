"""How an image becomes input to spiking layers."""

from torch import Tensor


def encode_direct(images: Tensor, steps: int) -> Tensor:
    """Direct encoding: the pixel's value is the constant input of every step.

    Args:
        images: [batch, ...].
        steps: number of time steps, ≥ 1.

    Returns:
        [batch, time, ...], a view of `images`.

    Raises:
        ValueError: if `steps` is below 1.

    Example:
        >>> import torch
        >>> encode_direct(torch.rand(2, 8, 8), steps=5).shape
        torch.Size([2, 5, 8, 8])
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return images[:, None].expand(-1, steps, *images.shape[1:])
