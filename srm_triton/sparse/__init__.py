"""Sparse codes over a dictionary, layers of a sparse weight, and a ResNet-18 that ends in either."""

from srm_triton.ops.shrink import soft_threshold
from srm_triton.sparse.code import SparseRepresentation, SparseStatistics, sparse_encode, sparse_statistics
from srm_triton.sparse.linear import SparseLinear
from srm_triton.sparse.resnet import ResNet18_2D

__all__ = [
    "ResNet18_2D",
    "SparseLinear",
    "SparseRepresentation",
    "SparseStatistics",
    "soft_threshold",
    "sparse_encode",
    "sparse_statistics",
]
