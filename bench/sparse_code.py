"""Sparse codes of a batch against scikit-learn."""

from functools import partial

import torch
import torch.nn.functional as F
from sklearn.decomposition import sparse_encode as encode_of_scikit_learn
from torch import Tensor

from bench.contenders import on_backends, on_cpu
from bench.harness import DEVICE, Contender, over
from srm_triton.sparse.code import sparse_encode, sparse_statistics

SPARSITY = 0.1
CASES = {
    "complete": {"samples": 256, "features": 512, "atoms": 512},
    "overcomplete": {"samples": 256, "features": 64, "atoms": 256},
}
ITERATIONS = {"complete": 20, "overcomplete": 100}  # to within 1e-4 of the smallest objective


# An element is an entry of a code.
@over("name", CASES)
def test_sparse_encode(measure, shrink, threads, name):
    shape = shrink(CASES[name])
    dictionary = F.normalize(torch.randn(shape["features"], shape["atoms"], device=DEVICE), dim=0)
    codes = torch.randn(shape["samples"], shape["atoms"], device=DEVICE)
    codes *= torch.rand_like(codes) < 0.05
    x = F.normalize(codes @ dictionary.t() + 0.01 * torch.randn(shape["samples"], shape["features"], device=DEVICE))

    def objective(z: Tensor) -> float:
        return float(sparse_statistics(x.double(), dictionary.double(), z.double(), SPARSITY).objective.sum())

    def peer(algorithm: str) -> Contender:
        encode = partial(encode_of_scikit_learn, algorithm=algorithm, alpha=SPARSITY)
        return lambda: on_cpu(lambda x, dictionary: encode(x, dictionary.T))

    best = objective(sparse_encode(x.double(), dictionary.double(), SPARSITY, 3000))
    contenders = [
        *on_backends(lambda x, d: sparse_encode(x, d, SPARSITY, ITERATIONS[name]), ("triton", "reference")),
        Contender("scikit-learn, coordinate descent", peer("lasso_cd")),
        Contender("scikit-learn, least angles", peer("lasso_lars")),
    ]
    options = {"threads": threads, "backward": False, "excess": lambda codes: objective(codes) / best - 1}
    measure(name, shape, contenders, [x, dictionary], **options)
