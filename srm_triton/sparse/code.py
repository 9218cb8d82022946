"""Sparse representation: codes with few non-zeros over a dictionary, in place of a fully connected layer.

    z(x) = argmin_z ½‖x − D·z‖² + λ‖z‖₁        D: [features, atoms]

found by FISTA, which is unrolled, so z can be differentiated in x and D. With L the largest eigenvalue of DᵀD and S the
soft threshold (`srm_triton/ops/shrink.py`), from z = y = 0, t = 1:

    z⁺ = S_{λ/L}(y + Dᵀ(x − D·y)/L)
    t  ← 1 where (y − z⁺)·(z⁺ − z) > 0           the momentum of a sample starts anew where it points uphill
    t⁺ = (1 + √(1 + 4t²))/2
    y⁺ = z⁺ + (t − 1)/t⁺·(z⁺ − z)

With non-negative codes, z ≥ 0, the threshold is max(v − λ/L, 0) instead. It is computed in units of 1/L, in which the
threshold is λ. Sources: Beck and Teboulle, "A Fast Iterative
Shrinkage-Thresholding Algorithm for Linear Inverse Problems", SIAM J. Imaging Sciences 2009; restart: O'Donoghue and
Candès, "Adaptive Restart for Accelerated Gradient Schemes", Found. Comput. Math. 2015; unrolled as a layer: Gregor and
LeCun, "Learning Fast Approximations of Sparse Coding", ICML 2010.
"""

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton.checks import (
    as_number,
    check_goes_with,
    check_number,
    check_option,
    check_same,
    check_size,
    check_tensor,
)
from srm_triton.functions import refuse_script, traced
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.ops.shrink import soft_threshold
from srm_triton.precision import without_autocast


class SparseStatistics(NamedTuple):
    """How good and how sparse codes are, each [...] for inputs [..., features]."""

    objective: Tensor
    """½‖x − D·z‖² + λ‖z‖₁, which the code minimises."""
    nonzero_share: Tensor
    """Number of non-zeros in units of the number of atoms."""


def sparse_encode(
    inputs: Tensor, dictionary: Tensor, sparsity: float, iterations: int = 20, *, positive: bool = False
) -> Tensor:
    """Returns sparse codes by unrolled FISTA (equations: the module's).

    A warning says where all codes are 0 because of the sparsity; on a GPU and in traced code nobody looks.

    Args:
        inputs: x, [..., features]; float64, float32, float16 or bfloat16. It is computed in float64 for float64, else
            in float32, under autocast too.
        dictionary: D, [features, atoms], in the dtype of `inputs` or in float32 for half-precision inputs; its columns
            are usually of norm 1.
        sparsity: λ, positive; the larger, the fewer non-zeros. Above max|Dᵀx| the code is 0.
        iterations: how many; the more atoms there are for each feature, the more it takes to come near the smallest
            objective, which `sparse_statistics` reports.
        positive: whether codes have to be at least 0.

    Returns:
        [..., atoms] in the dtype of `inputs`. A NaN makes NaN of its own sample's code only.

    Raises:
        TypeError: for another dtype, or a sparsity or number of iterations of another type.
        ValueError: for another shape or device, a sparsity that is not positive, fewer than one iteration, or a
            `positive` that is no bool.

    Example:
        >>> dictionary = torch.eye(3)
        >>> sparse_encode(torch.tensor([3.0, -0.5, 1.5]), dictionary, sparsity=1.0)
        tensor([2.0000, 0.0000, 0.5000])
    """
    _check_inputs(inputs, dictionary)
    sparsity = _check_sparsity(sparsity)
    iterations = check_number("iterations", iterations, 1, whole=True)
    positive = check_option("positive", positive, (False, True))
    with without_autocast(inputs):
        dtype = accumulator_dtype(inputs.dtype)
        x, atoms = inputs.to(dtype).reshape(-1, inputs.shape[-1]), dictionary.to(dtype)
        codes = _fista(x, atoms, sparsity, iterations, positive)
        if codes.device.type == "cpu" and codes.numel() and not traced() and not codes.any():
            _warn_of_silence(x, atoms, sparsity, positive)
    return codes.to(inputs.dtype).reshape(*inputs.shape[:-1], dictionary.shape[1])


def _warn_of_silence(x: Tensor, dictionary: Tensor, sparsity: float, positive: bool) -> None:
    correlation = x.detach() @ dictionary.detach()
    largest = float((correlation if positive else correlation.abs()).max())
    if correlation.any() and largest <= sparsity:
        kind = "correlation" if positive else "|correlation|"
        warnings.warn(
            f"all codes are 0: sparsity = {sparsity:g} must be below {largest:g}, the largest {kind} with an atom",
            stacklevel=3,
        )


def _fista(x: Tensor, dictionary: Tensor, sparsity: float, iterations: int, positive: bool) -> Tensor:
    gram = dictionary.t() @ dictionary
    features, atoms = dictionary.shape
    largest = torch.linalg.eigvalsh(gram if atoms <= features else dictionary @ dictionary.t())[-1]  # the same of both
    step = 1 / largest.clamp(min=torch.finfo(gram.dtype).tiny)
    keep = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - step * gram
    correlation = x @ dictionary
    z = y = torch.zeros_like(correlation)
    t = torch.ones_like(correlation[:, :1])
    for _ in range(iterations):
        v = torch.addmm(correlation, y, keep)
        z_next = F.relu(v - sparsity) if positive else soft_threshold(v, sparsity)
        uphill = ((y - z_next) * (z_next - z)).sum(1, keepdim=True) > 0
        t = t.masked_fill(uphill, 1)
        t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
        y = z_next + (t - 1) / t_next * (z_next - z)
        z, t = z_next, t_next
    return z * step


def sparse_statistics(inputs: Tensor, dictionary: Tensor, codes: Tensor, sparsity: float) -> SparseStatistics:
    """Returns the objective and the share of non-zeros of every code.

    Args:
        inputs: x, [..., features].
        dictionary: D, [features, atoms].
        codes: z, [..., atoms].
        sparsity: λ.

    Raises:
        TypeError: for dtypes that differ or are not floating point, or a sparsity that is no number.
        ValueError: for shapes or devices that do not go together, or a sparsity that is not positive.

    Example:
        >>> codes = torch.tensor([[2.0, 0.0]])
        >>> sparse_statistics(torch.tensor([[3.0, 0.0]]), torch.eye(2), codes, 1.0)
        SparseStatistics(objective=tensor([2.5000]), nonzero_share=tensor([0.5000]))
    """
    _check_inputs(inputs, dictionary)
    sparsity = _check_sparsity(sparsity)
    check_tensor("codes", codes)
    check_same("codes", codes, "inputs", inputs)
    expected = [*inputs.shape[:-1], dictionary.shape[1]]
    if list(codes.shape) != expected:
        raise ValueError(f"codes must have the shape {expected} (inputs and atoms), got {list(codes.shape)}")
    with without_autocast(inputs):
        x, atoms, z = (tensor.to(accumulator_dtype(inputs.dtype)) for tensor in (inputs, dictionary, codes))
        objective = (x - z @ atoms.t()).square().sum(-1) / 2 + sparsity * z.abs().sum(-1)
    return SparseStatistics(objective, (z != 0).to(z.dtype).mean(-1))


def _check_inputs(inputs: Tensor, dictionary: Tensor) -> None:
    check_tensor("inputs", inputs)
    check_tensor("dictionary", dictionary, "[features, atoms]")
    check_goes_with("dictionary", dictionary, "inputs", inputs)
    if 0 in dictionary.shape:
        raise ValueError(f"dictionary must have at least one feature and one atom, got {list(dictionary.shape)}")
    if inputs.dim() < 1:
        raise ValueError("inputs must have the shape [..., features], got []")
    check_size("inputs", inputs, -1, dictionary.shape[0], "axis 0 of dictionary")


def _check_sparsity(sparsity: Any) -> float:
    number = as_number(sparsity)
    if type(number) in (int, float) and number == 0:
        raise ValueError(
            f"sparsity must be finite and > 0, got {number}: codes without it are the least-squares solution, which "
            "is not sparse, and which torch.linalg.lstsq finds at once"
        )
    value: float = check_number("sparsity", sparsity, 0, above=True)
    return value


class SparseRepresentation(nn.Module):
    """A layer that represents its inputs sparsely over a learned dictionary of atoms of norm 1.

    Args:
        in_features: size of each input.
        atoms: size of each code.
        sparsity: λ, positive.
        iterations: of FISTA.
        positive: whether codes have to be at least 0.
        classes: if given, a linear classifier on the code gives so many outputs.
        device: of the parameters, as in `torch.nn.Linear`.
        dtype: of the parameters.

    Attributes:
        dictionary: [in_features, atoms], learned; its columns, scaled to norm 1, are the atoms.
        classifier: `torch.nn.Linear`, or None.

    Shape:
        [..., in_features] to [..., atoms], with `classes` to [..., classes].

    Raises:
        TypeError: for arguments of another type.
        ValueError: for sizes or numbers of iterations below 1, or a sparsity that is not positive.

    Example:
        >>> layer = SparseRepresentation(64, 128, sparsity=0.1)
        >>> layer(torch.rand(5, 64)).shape
        torch.Size([5, 128])
        >>> layer.statistics(torch.rand(5, 64)).nonzero_share.max() < 1
        tensor(True)
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        in_features: int,
        atoms: int,
        sparsity: float = 0.1,
        iterations: int = 20,
        *,
        positive: bool = False,
        classes: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_features = check_number("in_features", in_features, 1, whole=True)
        atoms = check_number("atoms", atoms, 1, whole=True)
        self.sparsity: float = _check_sparsity(sparsity)
        self.iterations: int = check_number("iterations", iterations, 1, whole=True)
        self.positive: bool = check_option("positive", positive, (False, True))
        self.dictionary = nn.Parameter(torch.empty(in_features, atoms, device=device, dtype=dtype))
        self.classifier: nn.Linear | None = None
        if classes is not None:
            classes = check_number("classes", classes, 1, whole=True)
            self.classifier = nn.Linear(atoms, classes, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets atoms of random directions."""
        with torch.no_grad():
            self.dictionary.copy_(F.normalize(torch.randn_like(self.dictionary), dim=0))
        if self.classifier is not None:
            self.classifier.reset_parameters()

    def atoms(self) -> Tensor:
        """The atoms, [in_features, atoms], of norm 1."""
        return F.normalize(self.dictionary, dim=0)

    def encode(self, inputs: Tensor) -> Tensor:
        """Returns the codes of `sparse_encode`, [..., atoms]."""
        return sparse_encode(inputs, self.atoms(), self.sparsity, self.iterations, positive=self.positive)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the codes, or what the classifier makes of them."""
        codes = self.encode(inputs)
        if self.classifier is None:
            return codes
        outputs: Tensor = self.classifier(codes.to(self.dictionary.dtype))
        return outputs

    @torch.no_grad()
    def statistics(self, inputs: Tensor) -> SparseStatistics:
        """Returns the statistics of the inputs' codes."""
        return sparse_statistics(inputs, self.atoms(), self.encode(inputs), self.sparsity)

    def extra_repr(self) -> str:
        """Sizes and constants, as the module prints them."""
        in_features, atoms = self.dictionary.shape
        sizes = f"in_features={in_features}, atoms={atoms}"
        return f"{sizes}, sparsity={self.sparsity}, iterations={self.iterations}, positive={self.positive}"
