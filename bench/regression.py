"""Mean-squared-error gradients against a backward pass; the fit by gradient descent against scikit-learn's."""

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import DEVICE, THREADS, Contender, UnavailableError
from srm_triton.regression import LinearRegression, mse_gradients

GRADIENTS = {"small": {"samples": 256, "features": 16}, "large": {"samples": 32768, "features": 256}}
FITS = {"tall": {"samples": 4096, "features": 16}, "square": {"samples": 512, "features": 64}}


def autograd(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`torch.autograd.grad` of `F.mse_loss`, forward included."""
    with torch.enable_grad():
        leaves = weight.detach().requires_grad_(), bias.detach().requires_grad_()
        return torch.autograd.grad(F.mse_loss(x @ leaves[0] + leaves[1], y), leaves)[0]


def _scikit_learn() -> Callable[..., Tensor]:
    """scikit-learn's `LinearRegression`: a singular value decomposition in float32; the descent takes float64."""
    try:
        from sklearn.linear_model import LinearRegression as Peer
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise UnavailableError(f"not installed ({error})") from None
    if DEVICE.type != "cpu":
        raise UnavailableError("runs on the CPU")

    def run(x: Tensor, y: Tensor) -> Tensor:
        with threadpool_limits(torch.get_num_threads()):  # NumPy and SciPy have threads of their own
            return torch.from_numpy(Peer().fit(x.numpy(), y.numpy()).predict(x.numpy()))

    return run


def _problem(samples: int, features: int) -> list[Tensor]:
    x = torch.randn(samples, features, device=DEVICE)
    y = x @ torch.randn(features, device=DEVICE) + torch.randn(samples, device=DEVICE)
    return [x, y]


# An element is an entry of the weight.
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_mse_gradients(measure, shrink, threads, name):
    shape = shrink(GRADIENTS[name])
    tensors = [*_problem(**shape), torch.randn(shape["features"], device=DEVICE), torch.zeros((), device=DEVICE)]
    contenders = [
        Contender("mse_gradients", lambda: lambda *tensors: mse_gradients(*tensors).grad_weight),
        Contender("autograd", lambda: autograd, about=inspect.getdoc(autograd)),
    ]
    measure(f"gradients, {name}", shape, contenders, tensors, threads=threads, backward=False)


# An element is a sample.
@pytest.mark.parametrize("name", FITS)
def test_fit(measure, shrink, name):
    shape = shrink(FITS[name])
    contenders = [
        Contender("LinearRegression", lambda: lambda x, y: LinearRegression().fit(x, y).predict(x)),
        Contender("scikit-learn", _scikit_learn, about=inspect.getdoc(_scikit_learn)),
    ]
    measure(f"fit and predict, {name}", shape, contenders, _problem(**shape), backward=False)
