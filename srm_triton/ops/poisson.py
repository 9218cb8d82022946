"""The screened Poisson equation, for images whose edges are periodic.

    (distance + weight·(∂xᵀ∂x + ∂yᵀ∂y))·u = target

A Fourier transform along x and y turns it into a division by distance + weight·(ωx + ωy), ω = 2 − 2·cos(2π·k/length).
The C version transforms along x only. Along y two recursions are left, down and up, because for each frequency, with
a = distance + weight·ωx,

    1 / (a + weight·(2 − z − 1/z)) = g / ((1 − r·z)·(1 − r/z))
    g = 1 / (weight + a/2 + √(a²/4 + a·weight))        r = weight·g

which needs no transform along y. On a GPU all of it is PyTorch's transforms, so there is no Triton kernel.

Source: Unser, Aldroubi and Eden, "B-Spline Signal Processing: Part II", IEEE Transactions on Signal Processing 1993,
who filter with splines this way.
"""

import math

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import check_tensor
from srm_triton.kernels import native


class PoissonEquation:
    """The equation for images of one size, as the backend in force solves it.

    Args:
        distance: of each sample, above 0, float64 [samples].
        weight: of each sample, above 0, float64 [samples].
        size: height and width of the images.
        dtype: in which it is solved, float32 or float64.
        centred: whether the mean of every target is 0 but for rounding, which the solution's then is too.

    Example:
        >>> from srm_triton.ops.poisson import PoissonEquation
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> equation = PoissonEquation(one, 2 * one, (3, 4), torch.float64)
        >>> u = equation.solve(torch.arange(12.0, dtype=torch.float64).reshape(1, 1, 3, 4))
        >>> differences = sum(2 * u - u.roll(1, axis) - u.roll(-1, axis) for axis in (-1, -2))
        >>> torch.allclose(u + 2 * differences, torch.arange(12.0, dtype=torch.float64).reshape(1, 1, 3, 4))
        True
    """

    def __init__(
        self, distance: Tensor, weight: Tensor, size: tuple[int, int], dtype: torch.dtype, *, centred: bool = False
    ) -> None:
        self.samples, self.size, self.dtype, self.centred = len(distance), size, dtype, centred
        self.device = distance.device
        height, width = size
        self.native = resolve_backend(distance.device, requested_backend(), has_native=True) == "native"
        # twice, for the real and for the imaginary part
        along_x = frequencies(width, distance.device)[: width // 2 + 1].repeat_interleave(2)
        if self.native:
            weight = weight[:, None]
            a = distance[:, None] + weight * along_x
            if centred:  # only the mean, which is left out, would tell this from smaller values
                smallest = 2 - 2 * math.cos(2 * math.pi / max(height, 2))  # ω above 0
                a[:, :2] = a[:, :2].clamp(torch.finfo(dtype).eps * smallest * weight)
            g = 1 / (weight + a / 2 * (1 + (1 + 4 * weight / a).sqrt()))
            decline = 2 * torch.asinh((a / weight).sqrt() / 2)  # −log r, exact where r is almost 1
            cycle = -1 / torch.expm1(-height * decline)
            self.reach = (math.log(4 / torch.finfo(dtype).eps) / decline).ceil().clamp(1, height).long()
            self.coefficients = tuple(tensor.to(dtype) for tensor in (weight * g, (g / width).sqrt(), cycle))
        else:
            distance, weight = distance[:, None, None, None], weight[:, None, None, None]
            along_y = frequencies(height, distance.device)[:, None]
            inverse = 1 / (height * width * (distance + weight * (along_x + along_y)))
            if centred:
                inverse[..., 0, 0] = 0
            self.inverse = inverse.to(dtype).unflatten(-1, (-1, 2))

    def solve(self, target: Tensor) -> Tensor:
        """Returns u, for a target [samples, channels, height, width].

        Raises:
            TypeError: for a target of another dtype.
            ValueError: for one of another shape or device.
        """
        check_tensor("target", target)
        if target.dtype != self.dtype:
            raise TypeError(f"target must have the dtype of the equation, {self.dtype}, got {target.dtype}")
        if target.dim() != 4 or (len(target), *target.shape[-2:]) != (self.samples, *self.size):
            raise ValueError(
                f"target must have the shape [{self.samples}, channels, {self.size[0]}, {self.size[1]}] of the "
                f"equation, got {list(target.shape)}"
            )
        if target.device != self.device:
            raise ValueError(f"target must be on the device of the equation, {self.device}, got {target.device}")
        if not self.native:
            spectrum = torch.fft.rfft2(target)
            torch.view_as_real(spectrum).mul_(self.inverse)
            return torch.fft.irfft2(spectrum, self.size, norm="forward")
        spectrum = torch.fft.rfft(target).contiguous()
        constant = spectrum[..., 0]
        if self.centred:
            constant -= constant.mean(-1, keepdim=True)
        columns = torch.view_as_real(spectrum).view(*spectrum.shape[:-1], -1)
        native.poisson_columns(columns, self.reach, *self.coefficients)
        if self.centred:  # again, because rounding grows where a is small
            constant -= constant.mean(-1, keepdim=True)
        return torch.fft.irfft(spectrum, self.size[1], norm="forward")


def frequencies(length: int, device: torch.device) -> Tensor:
    """ω of each frequency, float64 [length]."""
    return 2 - 2 * torch.cos(torch.arange(length, dtype=torch.float64, device=device) * (2 * math.pi / length))
