"""Batch normalisation: of a weight over its fan-in, and of data over many samples."""

from functools import partial

import torch
import torch.nn.functional as F

from bench.contenders import compiled, normalised, on_backends
from bench.harness import DEVICE, WORK, Contender, over
from srm_triton import batch_norm

CASES = {
    "weight": (1, {"features": 1024 * WORK, "samples": 1024}),
    "data": (0, {"samples": 32768 * WORK, "features": 64}),
}
DIRECTIONS = {"forward": 8, "forward and backward": 20}


# Least traffic in bytes: the matrix in, the result out; then matrix and gradient in, the gradient out.
@over("case, traffic, name", [(*direction, name) for direction in DIRECTIONS.items() for name in CASES])
def test_batch_norm(measure, shrink, threads, name, case, traffic):
    axis, shape = CASES[name][0], shrink(CASES[name][1])
    x = torch.randn(tuple(shape.values()), device=DEVICE)
    vectors = [torch.ones(shape["features"], device=DEVICE), torch.zeros(shape["features"], device=DEVICE)]
    contenders = [
        *on_backends(partial(batch_norm, dim=axis), ("triton", "reference")),
        Contender("formula", lambda: partial(normalised, axis=axis)),
        Contender("torch.compile", lambda: compiled(partial(normalised, axis=axis))),
        Contender(
            "F.batch_norm",
            lambda: lambda x, w, b: F.batch_norm(x if axis == 0 else x.t(), None, None, w, b, training=True),
            comparable=False,  # divides by M where ours divides by M − 1
        ),
    ]
    tensors = [tensor.requires_grad_() for tensor in (x, *vectors)]
    options = {"threads": threads, "backward": traffic > 8, "traffic": traffic}
    measure(f"{name}, {case}", shape, contenders, tensors, **options)
