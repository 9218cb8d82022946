"""Total-variation denoising as a problem: its objective, and a bound that proves how far it is from the minimum.

    min_u F(u − f) + λ·‖∂u‖        F = ‖·‖₂² or ‖·‖₁, over the pixels that are known

‖∂u‖ sums |∂x u| + |∂y u| over pixels, or the norm of those that are coupled. By duality, for every p of magnitudes (or
norms) up to 1, with q = λ·(∂xᵀ p_x + ∂yᵀ p_y),

    min_u F(u − f) + λ·‖∂u‖  ≥  Σ min_u F(u − f) + q·u

where on the right every pixel has a minimum of its own, over values between the darkest and the brightest pixel of its
channel, because the minimum on the left has no others. Bregman variables are such p. The C version sums both sides in
one pass.

Source: Chambolle, "An Algorithm for Total Variation Minimization and Applications", J. Math. Imaging and Vision 2004.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.kernels import native
from srm_triton.ops.shrink import Splitting, bregman_part, differences, divergence


@dataclass(frozen=True)
class Problem:
    """What is minimised, for images [samples, channels, height, width], or volumes with a depth before the height."""

    images: Tensor
    """f, and 0 where it is unknown."""
    weight: Tensor
    """λ of each sample, [samples]."""
    splitting: Splitting

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width, or depth, height and width."""
        return self.images.shape[2:]

    @property
    def splits_residual(self) -> bool:
        """Whether u − f has a split of its own."""
        return self.splitting.fidelity == "l1" or self.splitting.known is not None

    @property
    def is_plain(self) -> bool:
        """Whether it is one of images without variants, which kernels serve."""
        return len(self.size) == 2 and not self.splitting.coupled and self.splitting.known is None

    def keep(self, chosen: Tensor) -> "Problem":
        """The problem of these samples only."""
        known = self.splitting.known
        splitting = self.splitting._replace(known=None if known is None else known[chosen])
        return replace(self, images=self.images[chosen], weight=self.weight[chosen], splitting=splitting)

    def objective_and_bound(self, estimate: Tensor, splits: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
        """What `objective` and `bound` return."""
        if self.is_plain and resolve_backend(estimate.device, requested_backend(), has_native=True) == "native":
            sums = native.variation_sums(
                estimate, self.images, splits, self.weight, torch.cat(self._range, 3),
                l1=self.splitting.fidelity == "l1", mirrored=self.splitting.edges == "mirrored",
            )  # fmt: skip
            return sums[:, 0], sums[:, 1]
        return self.objective(estimate), self.bound(splits, penalty)

    def objective(self, estimate: Tensor) -> Tensor:
        """F(u − f) + λ·‖∂u‖, float64 [samples]."""
        splitting = self.splitting
        residual = estimate - self.images
        distance = residual.abs_() if splitting.fidelity == "l1" else residual.square_()
        if splitting.known is not None:
            distance *= splitting.known
        along = differences(estimate, splitting.edges)
        if splitting.coupled:
            along = [torch.linalg.vector_norm(torch.stack(along, 1), dim=splitting.coupled, keepdim=True)]
        return _sums(distance) + self.weight * sum(_sums(difference.abs_()) for difference in along)

    def bound(self, splits: Tensor, penalty: Tensor) -> Tensor:
        """What no objective is below, as the Bregman variables of splits prove, float64 [samples]."""
        f, known = self.images, self.splitting.known
        q = divergence(bregman_part(splits, penalty, self.splitting))
        q *= self.weight.view(-1, *[1] * (f.dim() - 1))
        if self.splitting.fidelity == "l1":
            darkest, brightest = self._range
            least = q * f - (q.abs() - 1).clamp_(min=0) * torch.where(q > 0, f - darkest, brightest - f)
        else:
            least = torch.sub(f, q, alpha=0.25).mul_(q)
        if known is not None:
            least = torch.where(known, least, q * torch.where(q > 0, *self._range))
        return _sums(least)

    @cached_property
    def _range(self) -> tuple[Tensor, Tensor]:
        """The darkest and the brightest known pixel of each channel, [samples, channels, 1, ...]."""
        darkest = brightest = self.images
        if self.splitting.known is not None:
            darkest, brightest = (self.images.masked_fill(~self.splitting.known, end) for end in (math.inf, -math.inf))
        axes = tuple(range(2, self.images.dim()))
        return darkest.amin(axes, keepdim=True), brightest.amax(axes, keepdim=True)


def _sums(values: Tensor) -> Tensor:
    """Of each sample; but for rows in float64, so that a batch or another order of sums changes nothing."""
    return values.sum(-1).double().flatten(1).sum(1)
