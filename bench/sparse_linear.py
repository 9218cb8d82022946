"""A linear layer with a sparse weight, forward and backward, against torch's own autograd and a dense weight."""

import inspect
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import DEVICE, THREADS, Contender
from srm_triton.sparse_linear import SparseLinear

CASES = {
    "a tenth of the weights": {"samples": 128, "features": 512, "kept": 26_214},
    "a hundredth": {"samples": 128, "features": 2048, "kept": 41_943},
}


# An element is an output.
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", CASES)
def test_sparse_linear(measure, shrink, threads, name):
    shape = shrink(CASES[name])
    features = shape["features"]
    layer = SparseLinear(features, features, density=shape["kept"] / features**2, bias=False, device=DEVICE)
    pattern = layer.crow_indices, layer.col_indices

    def sparse_linear() -> Callable[..., Tensor]:
        return lambda x, values, *_: torch.func.functional_call(layer, {"values": values}, (x,))

    def torch_sparse() -> Callable[..., Tensor]:
        """A product with `torch.sparse_csr_tensor`, which autograd differentiates."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once that CSR is in beta
            torch.sparse_csr_tensor(*pattern, layer.values.detach(), (features, features))
        return lambda x, values, *_: (torch.sparse_csr_tensor(*pattern, values, (features, features)) @ x.t()).t()

    def dense() -> Callable[..., Tensor]:
        """`F.linear` with the kept weights put into a matrix of zeros."""
        rows = torch.arange(features, device=DEVICE).repeat_interleave(layer.crow_indices.diff())
        places = rows * features + layer.col_indices
        zeros = torch.zeros(features**2, device=DEVICE)
        return lambda x, values, *_: F.linear(x, zeros.index_copy(0, places, values).view(features, features))

    contenders = [
        Contender("SparseLinear", sparse_linear),
        Contender("torch.sparse", torch_sparse, about=inspect.getdoc(torch_sparse)),
        Contender("dense", dense, about=inspect.getdoc(dense)),
    ]
    x = torch.randn(shape["samples"], features, device=DEVICE).requires_grad_()
    values = layer.values.detach().requires_grad_()
    measure(name, shape, contenders, [x, values, *layer.buffers()], threads=threads)
