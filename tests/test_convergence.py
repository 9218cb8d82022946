"""Small networks learn the same on every implementation, step by step, from the same start."""

import itertools
from collections.abc import Callable

import pytest
import torch
from test_srm_scan import BACKENDS
from torch import nn

from srm_triton import SpikeAvgPool2d, SRMConv2d, SRMLinear, SRMParameters, count_loss, use_backend

CLASSES, PIXELS = 4, 36
EARLY = SRMParameters(threshold=0.5)  # fires within the few steps that the interpreter has time for


def linear() -> nn.Sequential:
    return nn.Sequential(SRMLinear(PIXELS, 16), SRMLinear(16, CLASSES, output=True))


def convolutional() -> nn.Sequential:
    convolution = SRMConv2d(1, 8, 3, padding="same", parameters=EARLY)
    layers = nn.Unflatten(2, (1, 6, 6)), convolution, SpikeAvgPool2d(2), nn.Flatten(2)
    return nn.Sequential(*layers, SRMLinear(8 * 9, CLASSES, EARLY, output=True))


def deep() -> nn.Sequential:
    """With the surrogate gradient and learned constants."""
    options = {"gradient": "surrogate", "learn": ("threshold", "tau_m", "tau_s")}
    sizes = (PIXELS, 16, 16, 16, CLASSES)
    return nn.Sequential(*[SRMLinear(*pair, EARLY, **options) for pair in itertools.pairwise(sizes)])


def learn(
    build: Callable[[], nn.Sequential], steps: int, backend: str, device: torch.device
) -> tuple[list[float], list[float]]:
    """The loss and the gradient's norm at each of 14 steps, on 16 noisy copies of 4 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().to(device)
        labels = torch.arange(16) % CLASSES
        images = (torch.rand(CLASSES, PIXELS)[labels] + 0.1 * torch.rand(16, PIXELS)).to(device)
    labels = labels.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    losses, norms = [], []
    for _ in range(14):
        with use_backend(backend):
            spikes = model(images[:, None].expand(-1, steps, -1))
        loss = count_loss(spikes, labels, desired=steps / 2, undesired=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
    return losses, norms


@pytest.mark.parametrize(("build", "steps"), [(linear, 6), (convolutional, 6), (deep, 5)])
def test_every_implementation_learns_the_same(build, steps, device):
    losses, norms = learn(build, steps, "reference", device)
    assert losses[-1] < losses[0] / 3
    for backend in BACKENDS[1:]:
        other_losses, other_norms = learn(build, steps, backend, device)
        # the scans are equal to the last bit, the normalised weights up to rounding
        assert other_losses == pytest.approx(losses, rel=0, abs=2e-5)
        limit = 1e-5 if backend == "native" else 1e-4  # up to 4.8e-6 and 4.3e-5
        assert other_norms == pytest.approx(norms, rel=limit, abs=0)
