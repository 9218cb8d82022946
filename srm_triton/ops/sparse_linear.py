"""The product with a weight that is one of torch's own sparse matrices.

With the kept weights v_k at row r_k and column c_k of the weight W, outputs and gradients are

    outputs = inputs·Wᵀ      grad_inputs = grad·W      grad_v_k = Σ grad[·, r_k]·inputs[·, c_k]

the last sampled at the kept weights, so that no dense matrix is made. W is kept in CSR, and for grad·W in CSC, the CSR
of Wᵀ. torch has no sparse products in half precision on the CPU, so float16 and bfloat16 are computed in float32.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from srm_triton.functions import Function, Gradients, custom_op, fake_of, once_differentiable
from srm_triton.kernels.layout import accumulator_dtype

# Custom ops, as torch.compile knows no sparse matrices


@custom_op("sparse_product")
def _product(inputs: Tensor, values: Tensor, crow_indices: Tensor, col_indices: Tensor) -> Tensor:
    """Returns inputs·Wᵀ, [samples, rows]."""
    dtype = accumulator_dtype(values.dtype)
    weight = csr_matrix(crow_indices, col_indices, values.to(dtype), (len(crow_indices) - 1, inputs.shape[1]))
    return (weight @ inputs.to(dtype).t()).t().to(inputs.dtype).contiguous()


@fake_of(_product)
def _(inputs: Tensor, values: Tensor, crow_indices: Tensor, col_indices: Tensor) -> Tensor:
    return inputs.new_empty(len(inputs), len(crow_indices) - 1)


@custom_op("sampled_product")
def _sampled_product(grad: Tensor, inputs: Tensor, crow_indices: Tensor, col_indices: Tensor) -> Tensor:
    """Returns gradᵀ·inputs at the kept weights."""
    dtype = accumulator_dtype(inputs.dtype)
    zeros = inputs.new_zeros(len(col_indices), dtype=dtype)
    pattern = csr_matrix(crow_indices, col_indices, zeros, (grad.shape[1], inputs.shape[1]))
    product = torch.sparse.sampled_addmm(pattern, grad.to(dtype).t(), inputs.to(dtype))
    return product.values().to(inputs.dtype)


@fake_of(_sampled_product)
def _(grad: Tensor, inputs: Tensor, crow_indices: Tensor, col_indices: Tensor) -> Tensor:
    return inputs.new_empty(len(col_indices))


for _op in (_product, _sampled_product):
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(_op, _device, torch.float32)  # products within would lose it


def csr_matrix(
    crow_indices: Tensor, col_indices: Tensor, values: Tensor, size: tuple[int, int], *, check: bool = False
) -> Tensor:
    """The matrix of these parts, [rows, columns]; with `check` they are checked to be one."""
    accept_beta()
    return torch.sparse_csr_tensor(crow_indices, col_indices, values, size, check_invariants=check)


@cache
def accept_beta() -> None:
    """Lets torch say to nobody that CSR matrices are in beta, as it does with the first one of a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), device="cpu", check_invariants=False)


class _SparseProduct(Function):
    @staticmethod
    def forward(
        inputs: Tensor,
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        ccol_indices: Tensor,
        row_indices: Tensor,
        order: Tensor,
    ) -> Tensor:
        return _product(inputs, values, crow_indices, col_indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable("sparse products")
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> Gradients:
        inputs, values, crow_indices, col_indices, ccol_indices, row_indices, order = saved
        grad_inputs = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_inputs = _product(grad, values[order], ccol_indices, row_indices)
        if ctx.needs_input_grad[1]:
            grad_values = _sampled_product(grad, inputs, crow_indices, col_indices)
        return grad_inputs, grad_values, *[None] * 5


def sparse_product(inputs: Tensor, values: Tensor, pattern: tuple[Tensor, ...]) -> Tensor:
    """Returns inputs·Wᵀ, [samples, rows], with gradients for `inputs` and `values`; for layers that check these.

    Args:
        inputs: [samples, columns].
        values: the kept weights, row by row, in the dtype of `inputs`.
        pattern: `crow_indices` and `col_indices` of W, then `ccol_indices`, `row_indices` and the place of each weight
            among the values for W in CSC.
    """
    product: Tensor = _SparseProduct.apply(inputs, values, *pattern)
    return product
