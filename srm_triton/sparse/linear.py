"""A linear layer that keeps a part of its weights; the mathematics is in `srm_triton/ops/sparse_linear.py`."""

from typing import Any

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number, check_same, check_size, check_tensor
from srm_triton.functions import refuse_script
from srm_triton.ops.sparse_linear import accept_beta, csr_matrix, sparse_product


class SparseLinear(nn.Module):
    """A linear layer that keeps a fixed part of its weights: those of greatest magnitude, or in a fresh layer any.

    The kept weights are the parameter `values`, row by row; where they stand is said by the int64 buffers
    `crow_indices` and `col_indices`, as in `torch.sparse_csr_tensor`. Those of a fresh layer, and the bias, are uniform
    as in `torch.nn.Linear`, within ±1/√n, with n the mean number of weights kept for an output in place of all inputs:
    outputs then have the variance of a dense layer's.

    The layer runs in `torch.compile` and under autocast, which it leaves to other layers: outputs have the dtype of the
    parameters, or float32. `torch.vmap` runs it sample by sample, with PyTorch's warning. It can be differentiated
    once, and not be made on the meta device.

    Args:
        in_features: size of each input.
        out_features: size of each output.
        density: part of the weights that is kept, in (0, 1]; at least one weight is.
        bias: whether there is one.
        device: of the parameters, as in `torch.nn.Linear`.
        dtype: of the parameters.

    Shape:
        [..., in_features] to [..., out_features].

    Raises:
        TypeError: for an argument or inputs of another type.
        ValueError: for sizes below 1, a density outside (0, 1], or inputs of another shape.
        RuntimeError: from `load_state_dict`, for another number of weights or a pattern that is none; any other pattern
            with as many weights loads.

    Example:
        >>> layer = SparseLinear(64, 10, density=0.1)
        >>> layer.values.shape, layer(torch.rand(2, 8, 64)).shape
        (torch.Size([64]), torch.Size([2, 8, 10]))
    """

    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    order: Tensor

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        density: float = 0.1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._allocate(in_features, out_features, density, bias, device, dtype)
        self._keep_largest(torch.rand(out_features, in_features, device=device))
        self.reset_parameters()

    def _allocate(
        self,
        in_features: int,
        out_features: int,
        density: float,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        in_features = check_number("in_features", in_features, 1, whole=True)
        out_features = check_number("out_features", out_features, 1, whole=True)
        density = check_number("density", density, 0, above=True)
        if density > 1:
            raise ValueError(f"density must be at most 1, got {density}")
        self.in_features = in_features
        self.out_features = out_features
        count = max(1, round(density * in_features * out_features))
        self.values = nn.Parameter(torch.empty(count, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_dense(cls, linear: nn.Linear, density: float) -> "SparseLinear":
        """Copies a dense layer, without its weights of least magnitude, and without drawing random numbers.

        Args:
            linear: the dense layer; it is left as it is.
            density: as in the class.

        Raises:
            TypeError: if `linear` is no `torch.nn.Linear`.

        Example:
            >>> linear = nn.Linear(3, 1)
            >>> _ = linear.load_state_dict({"weight": torch.tensor([[1.0, -3.0, 2.0]]), "bias": torch.zeros(1)})
            >>> SparseLinear.from_dense(linear, 0.67).weight.to_dense().tolist()
            [[0.0, -3.0, 2.0]]
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        weight, bias = linear.weight.detach(), linear.bias
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        sizes = linear.in_features, linear.out_features
        layer._allocate(*sizes, density, bias is not None, weight.device, weight.dtype)
        kept = layer._keep_largest(weight.abs())
        with torch.no_grad():
            layer.values.copy_(weight[kept])
            if layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    def reset_parameters(self) -> None:
        """Draws the kept weights and the bias anew; the pattern stays."""
        bound = max(1, len(self.values) / self.out_features) ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """The weight [out_features, in_features], a sparse CSR matrix."""
        return csr_matrix(self.crow_indices, self.col_indices, self.values, (self.out_features, self.in_features))

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns inputs·weightᵀ + bias."""
        check_tensor("inputs", inputs)
        if inputs.dim() == 0:
            raise ValueError("inputs must have the shape [..., in_features], got []")
        check_size("inputs", inputs, -1, self.in_features, "in_features")
        if inputs.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(self.values.dtype)
        check_same("inputs", inputs, "values", self.values)
        pattern = (self.crow_indices, self.col_indices, self.ccol_indices, self.row_indices, self.order)
        product = sparse_product(inputs.reshape(-1, self.in_features), self.values, pattern)
        outputs = product.view(*inputs.shape[:-1], self.out_features)
        return outputs if self.bias is None else outputs + self.bias

    def extra_repr(self) -> str:
        """Sizes, as the module prints them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, weights={len(self.values)}, "
            f"bias={self.bias is not None}"
        )

    def _keep_largest(self, scores: Tensor) -> Tensor:
        """Sets the pattern, and returns it as a mask."""
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept.view(-1)[scores.flatten().topk(len(self.values)).indices] = True
        accept_beta()
        pattern = kept.to_sparse_csr()
        self.register_buffer("crow_indices", pattern.crow_indices())
        self.register_buffer("col_indices", pattern.col_indices())
        self._set_transposed(self._transpose(self.crow_indices, self.col_indices))
        return kept

    def _transpose(self, crow_indices: Tensor, col_indices: Tensor) -> Tensor:
        """Checks a pattern, and returns it in CSC, with the place of each weight among the values."""
        places = torch.arange(len(self.values), device=col_indices.device)
        size = (self.out_features, self.in_features)
        return csr_matrix(crow_indices, col_indices, places, size, check=True).to_sparse_csc()

    def _set_transposed(self, transposed: Tensor) -> None:
        device = self.col_indices.device
        self.register_buffer("ccol_indices", transposed.ccol_indices().to(device), persistent=False)
        self.register_buffer("row_indices", transposed.row_indices().to(device), persistent=False)
        self.register_buffer("order", transposed.values().to(device, copy=True), persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Loads only a pattern that is one, as products do not check it."""
        crow_indices = state_dict.get(f"{prefix}crow_indices", self.crow_indices)
        col_indices = state_dict.get(f"{prefix}col_indices", self.col_indices)
        try:
            if isinstance(col_indices, Tensor) and len(col_indices) != len(self.values):
                density = len(col_indices) / (self.in_features * self.out_features)
                raise TypeError(f"the state has {len(col_indices)}; make the layer with density={density}")
            transposed = self._transpose(crow_indices, col_indices)
        except (RuntimeError, TypeError) as error:
            error_messages: list[str] = arguments[-1]
            error_messages.append(
                f"{prefix}crow_indices and {prefix}col_indices must be the CSR pattern of {len(self.values)} weights "
                f"in a matrix of {self.out_features} × {self.in_features}: {error}"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._set_transposed(transposed)
