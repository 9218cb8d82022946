"""A linear layer with a sparse weight, forward and backward, against torch's own autograd and a dense weight."""

import torch
import torch.nn.functional as F

from bench.harness import DEVICE, Contender, Function, over
from srm_triton.sparse.linear import SparseLinear

CASES = {
    "a tenth of the weights": {"samples": 128, "features": 512, "kept": 26_214},
    "a hundredth": {"samples": 128, "features": 2048, "kept": 41_943},
}


# An element is an output.
@over("name", CASES)
def test_sparse_linear(measure, shrink, threads, name):
    shape = shrink(CASES[name])
    features = shape["features"]
    layer = SparseLinear(features, features, density=shape["kept"] / features**2, bias=False, device=DEVICE)
    pattern = layer.crow_indices, layer.col_indices

    def sparse_linear() -> Function:
        return lambda x, values, *_: torch.func.functional_call(layer, {"values": values}, (x,))

    def torch_sparse() -> Function:
        """A product with `torch.sparse_csr_tensor`, which autograd differentiates."""
        return lambda x, values, *_: (torch.sparse_csr_tensor(*pattern, values, (features, features)) @ x.t()).t()

    def dense() -> Function:
        """`F.linear` with the kept weights put into a matrix of zeros."""
        rows = torch.arange(features, device=DEVICE).repeat_interleave(layer.crow_indices.diff())
        places = rows * features + layer.col_indices
        zeros = torch.zeros(features**2, device=DEVICE)
        return lambda x, values, *_: F.linear(x, zeros.index_copy(0, places, values).view(features, features))

    runs = {"SparseLinear": sparse_linear, "torch.sparse": torch_sparse, "dense": dense}
    contenders = [Contender(name, build) for name, build in runs.items()]
    x = torch.randn(shape["samples"], features, device=DEVICE).requires_grad_()
    values = layer.values.detach().requires_grad_()
    measure(name, shape, contenders, [x, values, *layer.buffers()], threads=threads)
