"""The screened Poisson equation, for images whose edges are mirrored or periodic.

    (distance + weight·(∂xᵀ∂x + ∂yᵀ∂y))·u = target

A transform along x and y turns it into a division by distance + weight·(ωx + ωy): a Fourier transform if edges are
periodic, ω = 2 − 2·cos(2π·k/length), a cosine transform if they are mirrored, ω = 2 − 2·cos(π·k/length).
The C version transforms along x only. Along y two recursions are left, down and up, because for each frequency, with
a = distance + weight·ωx,

    1 / (a + weight·(2 − z − 1/z)) = g / ((1 − r·z)·(1 − r/z))
    g = 1 / (weight + a/2 + √(a²/4 + a·weight))        r = weight·g

which needs no transform along y. On a GPU, and for volumes, which have a z, all of it is PyTorch's transforms; there is
no Triton kernel.

Sources: Unser, Aldroubi and Eden, "B-Spline Signal Processing: Part II", IEEE Transactions on Signal Processing 1993,
who filter with splines this way; Makhoul, "A Fast Cosine Transform in One and Two Dimensions", IEEE Transactions on
Acoustics, Speech, and Signal Processing 1980.
"""

import math

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import check_tensor
from srm_triton.kernels import native
from srm_triton.ops.shrink import Edges


class PoissonEquation:
    """The equation for images of one size, as the backend in force solves it.

    Args:
        distance: of each sample, above 0, float64 [samples].
        weight: of each sample, above 0, float64 [samples].
        size: height and width of the images, or depth, height and width.
        dtype: in which it is solved, float32 or float64.
        edges: of the images.
        centred: whether the mean of every target is 0 but for rounding, which the solution's then is too.

    Example:
        >>> from srm_triton.ops.poisson import PoissonEquation
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> equation = PoissonEquation(one, 2 * one, (3, 4), torch.float64, "periodic")
        >>> u = equation.solve(torch.arange(12.0, dtype=torch.float64).reshape(1, 1, 3, 4))
        >>> differences = sum(2 * u - u.roll(1, axis) - u.roll(-1, axis) for axis in (-1, -2))
        >>> torch.allclose(u + 2 * differences, torch.arange(12.0, dtype=torch.float64).reshape(1, 1, 3, 4))
        True
    """

    def __init__(
        self,
        distance: Tensor,
        weight: Tensor,
        size: tuple[int, ...],
        dtype: torch.dtype,
        edges: Edges,
        *,
        centred: bool = False,
    ) -> None:
        self.samples, self.size, self.dtype, self.centred = len(distance), size, dtype, centred
        self.device = distance.device
        has_native = len(size) == 2
        chosen = resolve_backend(distance.device, requested_backend(), has_native=has_native)
        self.native = has_native and chosen == "native"
        transformed = size[-1:] if self.native else size[::-1]
        self.transforms = [_Transform(length, edges, dtype, distance.device) for length in transformed]
        if self.native:
            height, width = size
            weight = weight[:, None]
            a = distance[:, None] + weight * self.transforms[0].frequencies
            period = 2 * height if edges == "mirrored" else height
            if centred:  # only the mean, which is left out, would tell this from smaller values
                smallest = 2 - 2 * math.cos(2 * math.pi / max(period, 2))  # ω above 0
                a[:, :2] = a[:, :2].clamp(torch.finfo(dtype).eps * smallest * weight)
            g = 1 / (weight + a / 2 * (1 + (1 + 4 * weight / a).sqrt()))
            decline = 2 * torch.asinh((a / weight).sqrt() / 2)  # −log r, exact where r is almost 1
            gain = (g / width).sqrt()
            cycle = -1 / torch.expm1(-period * decline)
            self.reach = (math.log(4 / torch.finfo(dtype).eps) / decline).ceil().clamp(1, period).long()
            self.coefficients = tuple(tensor.to(dtype) for tensor in (weight * g, gain, cycle))
            self.mirror = (-gain / torch.expm1(-decline)).to(dtype) if edges == "mirrored" else None
        else:
            frequencies = distance.new_zeros(())
            for transform in reversed(self.transforms):
                frequencies = frequencies[..., None] + transform.frequencies
            distance, weight = (constant.view(-1, *[1] * (len(size) + 1)) for constant in (distance, weight))
            inverse = 1 / (math.prod(size) * (distance + weight * frequencies))
            if centred:
                inverse.flatten(1)[:, 0] = 0
            self.inverse = inverse.to(dtype)

    def solve(self, target: Tensor) -> Tensor:
        """Returns u, for a target [samples, channels, height, width], or of volumes.

        Raises:
            TypeError: for a target of another dtype.
            ValueError: for one of another shape or device.
        """
        check_tensor("target", target)
        if target.dtype != self.dtype:
            raise TypeError(f"target must have the dtype of the equation, {self.dtype}, got {target.dtype}")
        if target.dim() != 2 + len(self.size) or (len(target), *target.shape[2:]) != (self.samples, *self.size):
            allowed = ", ".join(map(str, (self.samples, "channels", *self.size)))
            raise ValueError(f"target must have the shape [{allowed}] of the equation, got {list(target.shape)}")
        if target.device != self.device:
            raise ValueError(f"target must be on the device of the equation, {self.device}, got {target.device}")
        if not self.native:
            values = target
            for axis, transform in enumerate(self.transforms, 1):
                values = transform.forward(values.transpose(-axis, -1)).transpose(-axis, -1)
            values = values * self.inverse
            for axis, transform in reversed(list(enumerate(self.transforms, 1))):
                values = transform.inverse(values.transpose(-axis, -1)).transpose(-axis, -1)
            return values
        (along_x,) = self.transforms
        if along_x.mirrored:
            native.cosine_order(target.contiguous(), ordered := torch.empty_like(target), back=False)
            target = ordered
        columns = along_x.columns(torch.fft.rfft(target))
        constant = columns[..., 0]
        if self.centred:
            constant -= constant.mean(-1, keepdim=True)
        native.poisson_columns(columns, self.reach, *self.coefficients, self.mirror, along_x.turn)
        if self.centred:  # again, because rounding grows where a is small
            constant -= constant.mean(-1, keepdim=True)
        values = torch.fft.irfft(along_x.spectrum(columns), along_x.length, norm="forward")
        if along_x.mirrored:
            native.cosine_order(values, values, back=True)
        return values


class _Transform:
    """A transform along the last axis, [..., length] to [..., 2·(length // 2 + 1)], and its inverse times length.

    It is real: after real and imaginary parts of a Fourier transform, an axis of their own number. A cosine transform
    is the Fourier transform of all even and then, backwards, all odd places, turned by angles: its real parts belong to
    the frequencies k, its imaginary parts to length − k.
    """

    def __init__(self, length: int, edges: Edges, dtype: torch.dtype, device: torch.device) -> None:
        self.length, self.mirrored = length, edges == "mirrored"
        k = torch.arange(length // 2 + 1, dtype=torch.float64, device=device)
        angle = math.pi / length * (torch.stack((k, length - k), 1) if self.mirrored else 2 * torch.stack((k, k), 1))
        self.frequencies = 2 - 2 * angle.flatten().cos()
        """ω of each place of the result, float64."""
        half = angle[:, 0] / 2
        self.turn = torch.polar(torch.ones_like(half), half).to(dtype.to_complex()) if self.mirrored else None

    def forward(self, values: Tensor) -> Tensor:
        if self.turn is not None:
            values = torch.cat((values[..., ::2], values[..., 1::2].flip(-1)), -1)
        spectrum = torch.fft.rfft(values)
        return self.columns(spectrum if self.turn is None else spectrum * self.turn.conj())

    def inverse(self, columns: Tensor) -> Tensor:
        spectrum = self.spectrum(columns)
        spectrum = spectrum if self.turn is None else spectrum * self.turn
        values = torch.fft.irfft(spectrum, self.length, norm="forward")
        if self.turn is None:
            return values
        even, odd = values.tensor_split(((self.length + 1) // 2,), -1)
        result = torch.empty_like(values)
        result[..., ::2], result[..., 1::2] = even, odd.flip(-1)
        return result

    @staticmethod
    def columns(spectrum: Tensor) -> Tensor:
        return torch.view_as_real(spectrum.contiguous()).flatten(-2)

    @staticmethod
    def spectrum(columns: Tensor) -> Tensor:
        columns = columns.contiguous()
        return torch.view_as_complex(columns.view(*columns.shape[:-1], -1, 2))
