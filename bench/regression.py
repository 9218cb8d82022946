"""Mean-squared-error gradients against a backward pass; the fit by gradient descent against scikit-learn's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contenders import on_cpu
from bench.harness import DEVICE, Contender, Function, over
from srm_triton.regression import LinearRegression, mse_gradients

GRADIENTS = {"small": {"samples": 256, "features": 16}, "large": {"samples": 32768, "features": 256}}
FITS = {"tall": {"samples": 4096, "features": 16}, "square": {"samples": 512, "features": 64}}


def _autograd() -> Function:
    """`torch.autograd.grad` of `F.mse_loss`, forward included."""

    def run(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = weight.detach().requires_grad_(), bias.detach().requires_grad_()
            return torch.autograd.grad(F.mse_loss(x @ leaves[0] + leaves[1], y), leaves)[0]

    return run


def _scikit_learn() -> Function:
    """scikit-learn's `LinearRegression`: a singular value decomposition in float32; the descent takes float64."""
    from sklearn.linear_model import LinearRegression as Peer

    return on_cpu(lambda x, y: Peer().fit(x, y).predict(x))


def _problem(samples: int, features: int) -> list[Tensor]:
    x = torch.randn(samples, features, device=DEVICE)
    y = x @ torch.randn(features, device=DEVICE) + torch.randn(samples, device=DEVICE)
    return [x, y]


# An element is an entry of the weight.
@over("name", GRADIENTS)
def test_mse_gradients(measure, shrink, threads, name):
    shape = shrink(GRADIENTS[name])
    tensors = [*_problem(**shape), torch.randn(shape["features"], device=DEVICE), torch.zeros((), device=DEVICE)]
    ours = Contender("mse_gradients", lambda: lambda *tensors: mse_gradients(*tensors).grad_weight)
    contenders = [ours, Contender("autograd", _autograd)]
    measure(f"gradients, {name}", shape, contenders, tensors, threads=threads, backward=False)


# An element is a sample.
@over("name", FITS)
def test_fit(measure, shrink, name):
    shape = shrink(FITS[name])
    ours = Contender("LinearRegression", lambda: lambda x, y: LinearRegression().fit(x, y).predict(x))
    contenders = [ours, Contender("scikit-learn", _scikit_learn)]
    measure(f"fit and predict, {name}", shape, contenders, _problem(**shape), backward=False)
