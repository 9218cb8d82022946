"""Losses: hand-computed values, and that descent trains downhill whatever the loss."""

import pytest
import torch
import torch.nn.functional as F

from srm_triton import SRMLinear, count_loss, predict, spike_counts


def test_count_loss_by_hand():
    spikes = torch.zeros(2, 4, 3)
    spikes[0, :, 0] = torch.tensor([1, 0, 0, 0])  # labelled: 1 of 3 wanted
    spikes[0, :, 1] = torch.tensor([0, 1, 1, 1])  # 3 where 1 is allowed
    spikes[1, :, 2] = torch.tensor([1, 1, 1, 1])  # labelled: 4, more than wanted, no penalty
    spikes[1, :, 0] = torch.tensor([0, 0, 0, 1])  # 1 as allowed
    labels = torch.tensor([0, 2])
    for batch_first in (True, False):
        leaf = (spikes if batch_first else spikes.transpose(0, 1)).clone().requires_grad_()
        loss = count_loss(leaf, labels, desired=3, undesired=1, batch_first=batch_first)
        assert loss.item() == pytest.approx((2**2 + 2**2) / (2 * 4 * 2))
        loss.backward()
        grad = leaf.grad if batch_first else leaf.grad.transpose(0, 1)
        expected = torch.zeros(2, 3)
        expected[0, 0], expected[0, 1] = -2 / 8, 2 / 8  # descent: the labelled neuron fires more
        assert torch.equal(grad, expected[:, None].expand(2, 4, 3))


def test_count_loss_does_not_overflow_in_half_precision():
    loss = count_loss(torch.zeros(128, 32, 10).half(), torch.zeros(128, dtype=torch.int64), desired=25, undesired=1)
    assert loss.item() == pytest.approx(25**2 / 64)


def test_spike_counts_suit_ordinary_losses():
    spikes = (torch.rand(4, 6, 3) < 0.5).float().requires_grad_()
    labels = torch.tensor([0, 1, 2, 0])
    assert torch.equal(spike_counts(spikes), spikes.sum(1))
    assert torch.equal(spike_counts(spikes.transpose(0, 1), batch_first=False), spikes.sum(1))
    (gradient,) = torch.autograd.grad(F.cross_entropy(spike_counts(spikes), labels), spikes)
    plain = spikes.detach().sum(1).requires_grad_()
    F.cross_entropy(plain, labels).backward()
    torch.testing.assert_close(gradient, plain.grad[:, None].expand(4, 6, 3))


def count(spikes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return count_loss(spikes, labels, desired=5, undesired=1)


def cross_entropy(spikes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(spikes.sum(1), labels)


def rate_error(spikes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(spikes.mean(1), F.one_hot(labels, 5).float())


@pytest.mark.parametrize("gradient", ["event", "surrogate"])
@pytest.mark.parametrize("loss_of", [count, cross_entropy, rate_error])
def test_descent_lowers_any_loss(loss_of, gradient):
    torch.manual_seed(0)
    layer = SRMLinear(20, 5, output=True, gradient=gradient)
    inputs, labels = torch.rand(30, 10, 20), torch.arange(30) % 5
    inputs[torch.arange(30), :, labels] += 1
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = loss_of(layer(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


def test_predict_breaks_ties_by_time():
    spikes = torch.tensor([[[0, 1, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, 1]], [[0, 0, 0], [0, 0, 0]]]).float()
    assert predict(spikes).tolist() == [1, 0, 0]
    assert predict(spikes.transpose(0, 1), batch_first=False).tolist() == [1, 0, 0]
    more_but_later = torch.zeros(1, 20, 2)
    more_but_later[0, :3, 0] = more_but_later[0, -4:, 1] = 1
    assert predict(more_but_later).tolist() == [1]


def test_bad_input():
    spikes, labels = torch.ones(2, 4, 3), torch.tensor([0, 1])
    cases = [
        (lambda: count_loss(spikes, labels, desired=1, undesired=1), ValueError, "0 ≤ undesired < desired ≤ 4"),
        (lambda: count_loss(spikes, labels, desired=5, undesired=1), ValueError, "got desired=5 and undesired=1"),
        (lambda: count_loss(spikes, labels + 2, desired=2, undesired=1), ValueError, "labels must lie in 0 … 2"),
        (lambda: count_loss(spikes, labels.float(), desired=2, undesired=1), TypeError, "labels must be an int64"),
        (lambda: count_loss(spikes[:0], labels[:0], desired=2, undesired=1), ValueError, "got an empty batch"),
        (lambda: spike_counts(spikes[0]), ValueError, r"spikes must have the shape \[batch, time, classes\]"),
        (lambda: predict(spikes[:, :0]), ValueError, "at least one step and one class"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
