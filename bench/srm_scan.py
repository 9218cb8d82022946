"""The neurons alone."""

from functools import partial

import torch
from torch import Tensor

from bench.contenders import COMPILED_LOOP, PEERS, PUBLISHED_LOOP, on_backends
from bench.harness import DEVICE, WORK, Contender, Function, over
from srm_triton import SRMParameters, srm_scan
from srm_triton.ops.srm_scan import scan

SHAPE = {"batch": 32 * WORK, "steps": 16, "neurons": 4096}
GROWTH = {"steps": (4, 12, 40, 120, 400), "batch": (1, 4, 10, 40, 100), "neurons": (64, 200, 640, 2000, 6400)}


def currents(shape: dict[str, int], count: int) -> list[Tensor]:
    current = 0.5 * torch.randn(tuple(shape.values()), device=DEVICE) + 0.3
    return [current.clone().requires_grad_() for _ in range(count)]


def both_gradients(current: Tensor, earlier: Tensor) -> Tensor:
    """The scan as a layer calls it: the weight path is the gradient of `current`, the time path that of `earlier`."""
    rules = {"rule": "event", "output": False, "return_state": False, "batch_first": True}
    return scan(current, earlier, SRMParameters(), None, **rules)


def learned_constants(current: Tensor, tau_m: Tensor, tau_s: Tensor, threshold: Tensor) -> Tensor:
    return srm_scan(current, SRMParameters(tau_m, tau_s, threshold=threshold))


def surrogate() -> Function:
    """The scan with the surrogate gradient (arctan), backpropagation through time, on the backend that serves here."""
    return partial(srm_scan, gradient="surrogate")


SURROGATE = Contender("surrogate", surrogate, comparable=False)


# Least traffic in bytes: the current in, the spikes out; then current and gradient in, one or two gradients out.
@over("case, traffic", [("forward", 8), ("forward and backward", 20)])
def test_scan(measure, shrink, threads, case, traffic):
    shape = shrink(SHAPE)
    backward = traffic > 8
    contenders = [*on_backends(srm_scan), *[SURROGATE] * backward, PUBLISHED_LOOP, COMPILED_LOOP, *PEERS]
    options = {"threads": threads, "backward": backward, "traffic": traffic, "count_tensors": True}
    measure(case, shape, contenders, currents(shape, 1), **options)


def test_both_gradients(measure, shrink, threads):
    shape = shrink(SHAPE)
    contenders = [*on_backends(both_gradients), PUBLISHED_LOOP]
    options = {"threads": threads, "traffic": 24, "count_tensors": True}
    measure("forward and both gradients", shape, contenders, currents(shape, 2), **options)


def test_learned_constants(measure, shrink, threads):
    shape = shrink(SHAPE)
    constants = [torch.full((shape["neurons"],), value, device=DEVICE, requires_grad=True) for value in (5.0, 3.0, 1.0)]
    tensors = [*currents(shape, 1), *constants]
    options = {"threads": threads, "traffic": 20, "count_tensors": True}
    measure("forward and backward, constants learned", shape, on_backends(learned_constants), tensors, **options)


@over("axis, length", [(axis, length) for axis in GROWTH for length in GROWTH[axis]])
def test_growth(measure, shrink, axis, length):
    shape = shrink({"batch": 16, "steps": 16, "neurons": 1024} | {axis: length})
    contenders = [*on_backends(srm_scan), PUBLISHED_LOOP, *PEERS]
    measure("forward and backward, growing", shape, contenders, currents(shape, 1), count_tensors=True)
