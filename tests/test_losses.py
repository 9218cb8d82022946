"""Losses: values and gradients worked out in Python numbers, and that descent trains downhill whatever the loss."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srm_triton import (
    SRMLinear,
    SRMReadout,
    count_loss,
    enhanced_count_loss,
    first_spike_cross_entropy,
    predict,
    predict_first_spike,
    rate_cross_entropy,
    spike_counts,
    stepwise_cross_entropy,
    van_rossum_loss,
)

Rows = list[list[list[float]]]  # [batch][time][classes]
ByHand = Callable[[Rows, list[int]], tuple[float, Callable[[int, int, int], float]]]


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def counts_of(sample: list[list[float]]) -> list[float]:
    return [sum(step[c] for step in sample) for c in range(len(sample[0]))]


# Each returns the loss, and the gradient at (sample, step, class)


def enhanced_count_by_hand(rows: Rows, labels: list[int], desired: float, undesired: float):
    steps, counts = len(rows[0]), [counts_of(sample) for sample in rows]

    def missing(b: int, c: int) -> float:
        n = counts[b][c]
        return min(n - desired, 0.0) if c == labels[b] else max(n - undesired, 0.0)

    others = sum(max(n, undesired) for b, row in enumerate(counts) for c, n in enumerate(row) if c != labels[b])
    right = sum(min(max(row[label], 1.0), desired) for row, label in zip(counts, labels, strict=True))

    def weight(b: int, c: int) -> float:
        return (max(others / right / 10, 1.0) if c == labels[b] else 1.0) / max(counts[b][c], 1.0)

    pairs = [(b, c) for b in range(len(rows)) for c in range(len(counts[0]))]
    loss = sum(weight(b, c) * steps / 2 * (missing(b, c) / steps) ** 2 for b, c in pairs) / len(rows)
    return loss, lambda b, t, c: weight(b, c) * missing(b, c) / steps / len(rows)


def rate_by_hand(rows: Rows, labels: list[int], silent: float = -20.0, skip_silent: bool = False):
    steps, counts = len(rows[0]), [counts_of(sample) for sample in rows]
    shares = [softmax([2 * n / steps if n else silent for n in row]) for row in counts]

    def gradient(b: int, t: int, c: int) -> float:
        n, label = counts[b][c], labels[b]
        if (not n and c != label) or (skip_silent and not counts[b][label]):
            return 0.0
        return steps / 2 * (shares[b][c] - (c == label)) / max(n, 1) / len(rows)

    return -sum(steps / 2 * math.log(p[label]) for p, label in zip(shares, labels, strict=True)) / len(rows), gradient


def first_spike_by_hand(rows: Rows, labels: list[int], scale: float = 1.0, silent: float = -3.0):
    steps = len(rows[0])
    first = [[next((t for t in range(steps) if sample[t][c]), None) for c in range(len(sample[0]))] for sample in rows]
    shares = [softmax([silent if t is None else scale * (steps - t) for t in row]) for row in first]

    def gradient(b: int, t: int, c: int) -> float:
        waits = first[b][c] is None and c == labels[b]
        return steps * (shares[b][c] - (c == labels[b])) / len(rows) if waits or first[b][c] == t else 0.0

    return -sum(math.log(p[label]) for p, label in zip(shares, labels, strict=True)) / len(rows) / scale, gradient


def van_rossum_by_hand(rows: Rows, labels: list[int], tau: float = 3.0, target: list[float] | None = None):
    steps, classes = len(rows[0]), len(rows[0][0])
    if target is None:
        target = [0.0] + [1.0] * (steps - 1) if steps < 20 else [float((steps - t) % 2) for t in range(steps)]
    filtered: dict[tuple[int, int, int], float] = {}
    for b in range(len(rows)):
        for c in range(classes):
            trace = 0.0
            for t in range(steps):
                trace = trace * (1 - 1 / tau) + rows[b][t][c] - (target[t] if c == labels[b] else 0.0)
                filtered[b, t, c] = trace / tau

    def gradient(b: int, t: int, c: int) -> float:
        return sum(filtered[b, k, c] * (1 - 1 / tau) ** (k - t) / tau for k in range(t, steps)) / len(rows)

    return sum(value**2 for value in filtered.values()) / 2 / len(rows), gradient


def stepwise_by_hand(rows: Rows, labels: list[int]):
    steps = len(rows[0])
    shares = [[softmax(step) for step in sample] for sample in rows]
    loss = -sum(math.log(p[label]) for sample, label in zip(shares, labels, strict=True) for p in sample)
    return loss / steps / len(rows), lambda b, t, c: (shares[b][t][c] - (c == labels[b])) / steps / len(rows)


TRAIN = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
LOSSES = {
    "enhanced count": (enhanced_count_loss, enhanced_count_by_hand, {"desired": 4, "undesired": 1}),
    "enhanced count, none else": (enhanced_count_loss, enhanced_count_by_hand, {"desired": 1.5, "undesired": 0.5}),
    "rate": (rate_cross_entropy, rate_by_hand, {}),
    "rate, other silence": (rate_cross_entropy, rate_by_hand, {"silent": -1.0}),
    "rate, skipping": (rate_cross_entropy, rate_by_hand, {"skip_silent": True}),
    "first spike": (first_spike_cross_entropy, first_spike_by_hand, {}),
    "first spike, as published": (first_spike_cross_entropy, first_spike_by_hand, {"scale": 1 / 6, "silent": -2.0}),
    "van Rossum": (van_rossum_loss, van_rossum_by_hand, {}),
    "van Rossum, other train": (
        partial(van_rossum_loss, target=torch.tensor(TRAIN).double(), tau_s=2.0),
        partial(van_rossum_by_hand, target=TRAIN, tau=2.0),
        {},
    ),
    "stepwise": (stepwise_cross_entropy, stepwise_by_hand, {}),
}  # fmt: skip


def check_by_hand(name: str, rate: float, classes: int = 4, steps: int = 6) -> None:
    loss_of, by_hand, options = LOSSES[name]
    spikes = (torch.rand(5, steps, classes) < rate).double()
    spikes[0] = 0  # all are silent
    spikes[1, :, 2] = 0  # the labelled one is
    labels = torch.tensor([0, 2, 3, 1, 3])
    expected, gradient = by_hand(spikes.tolist(), labels.tolist(), **options)
    for batch_first in (True, False):
        leaf = (spikes if batch_first else spikes.transpose(0, 1)).clone().requires_grad_()
        loss = loss_of(leaf, labels, batch_first=batch_first, **options)
        assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-13)
        loss.backward()
        found = leaf.grad if batch_first else leaf.grad.transpose(0, 1)
        for (b, t, c), value in zip(
            torch.cartesian_prod(*map(torch.arange, spikes.shape)), found.flatten(), strict=True
        ):
            assert value.item() == pytest.approx(gradient(int(b), int(t), int(c)), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("rate", [0.2, 0.7])
@pytest.mark.parametrize("name", LOSSES)
def test_by_hand(name, rate):
    check_by_hand(name, rate)


def test_enhanced_count_where_other_outputs_fire_too_much():
    """So that the labelled neurons' share is multiplied."""
    check_by_hand("enhanced count", 0.9, classes=40)


@pytest.mark.parametrize("steps", [1, 19, 20, 21])
def test_published_train(steps):
    check_by_hand("van Rossum", 0.3, steps=steps)


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


def test_spike_counts_suit_ordinary_losses():
    spikes = (torch.rand(4, 6, 3) < 0.5).float().requires_grad_()
    labels = torch.tensor([0, 1, 2, 0])
    assert torch.equal(spike_counts(spikes), spikes.sum(1))
    assert torch.equal(spike_counts(spikes.transpose(0, 1), batch_first=False), spikes.sum(1))
    (gradient,) = torch.autograd.grad(F.cross_entropy(spike_counts(spikes), labels), spikes)
    plain = spikes.detach().sum(1).requires_grad_()
    F.cross_entropy(plain, labels).backward()
    torch.testing.assert_close(gradient, plain.grad[:, None].expand(4, 6, 3))


# Whatever the loss


def rate_error(spikes: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(spikes.mean(1), F.one_hot(labels.long(), spikes.shape[2]).to(spikes.dtype))


def count_cross_entropy(spikes: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(spikes.sum(1), labels)


OURS = {
    "count": partial(count_loss, desired=5, undesired=1),
    "enhanced count": partial(enhanced_count_loss, desired=5, undesired=1),
    "rate": rate_cross_entropy,
    "first spike": first_spike_cross_entropy,
    "van Rossum": van_rossum_loss,
    "stepwise": stepwise_cross_entropy,
}


@pytest.mark.parametrize("gradient", ["event", "surrogate"])
@pytest.mark.parametrize("loss_of", [*OURS.values(), count_cross_entropy, rate_error], ids=[*OURS, "CE", "MSE"])
def test_descent_lowers_any_loss(loss_of, gradient):
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
    least = math.log(1 + 4 / math.e) if loss_of is stepwise_cross_entropy else 0.0  # one spike at every step
    assert losses[-1] - least < 0.7 * (losses[0] - least), losses


@pytest.mark.parametrize("loss_of", OURS.values(), ids=OURS)
def test_a_silent_network_comes_to_fire(loss_of):
    """The labelled neurons, and they alone."""
    layer = SRMLinear(5, 5, weight_norm=False, output=True)
    with torch.no_grad():
        layer.weight.fill_(0.1)
    inputs, labels = torch.eye(5)[:, None].expand(-1, 10, -1), torch.arange(5)
    assert not layer(inputs).any()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(layer(inputs), labels).backward()
        optimizer.step()
    assert torch.equal(predict(layer(inputs)), labels) and layer(inputs).sum(1).diagonal().all()


@pytest.mark.parametrize("loss_of", OURS.values(), ids=OURS)
def test_labels_of_any_integer_type_and_spikes_of_any_float_type(loss_of):
    spikes, labels = (torch.rand(4, 8, 3) < 0.4).double(), torch.tensor([0, 1, 2, 1])
    expected = loss_of(spikes, labels)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        assert torch.equal(loss_of(spikes, labels.to(dtype)), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        loss = loss_of(spikes.to(dtype), labels)
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    long = torch.ones(64, 500, 3).half().requires_grad_()
    loss_of(long, torch.zeros(64).int()).backward()
    assert long.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("loss_of", OURS.values(), ids=OURS)
def test_compiled_and_labels_out_of_range_where_no_check_can_look(loss_of):
    spikes, labels = (torch.rand(2, 6, 3) < 0.4).double().requires_grad_(), torch.tensor([2, 0])
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    results = [torch.autograd.grad(function(spikes, labels), spikes)[0] for function in (loss_of, compiled)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-15)
    mapped = torch.vmap(loss_of, in_dims=(0, None))(spikes.detach()[None], labels)
    torch.testing.assert_close(mapped[0], loss_of(spikes, labels).detach())
    for label in (-100, 3):
        with pytest.raises((RuntimeError, IndexError), match=r"out of bounds|out of range"):
            torch.vmap(loss_of)(spikes.detach()[None], torch.tensor([[label, 0]]))


# Predictions


def test_predict_breaks_ties_by_time():
    spikes = torch.tensor([[[0, 1, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, 1]], [[0, 0, 0], [0, 0, 0]]]).float()
    assert predict(spikes).tolist() == [1, 0, 0]
    assert predict(spikes.transpose(0, 1), batch_first=False).tolist() == [1, 0, 0]
    more_but_later = torch.zeros(1, 20, 2)
    more_but_later[0, :3, 0] = more_but_later[0, -4:, 1] = 1
    assert predict(more_but_later).tolist() == [1]


@pytest.mark.parametrize("steps", [1, 3, 200])
def test_the_first_spike_decides(steps):
    """Python compares lists as the readout compares trains; the last class is the first but for a late spike."""
    spikes = (torch.rand(300, steps, 4) < min(0.5, 2 / steps)).float()
    spikes[:, :, 3] = spikes[:, :, 0]
    spikes[::2, -1, 3] = 1
    trains = spikes.transpose(1, 2).tolist()
    expected = [max(range(4), key=lambda c: (sample[c], -c)) for sample in trains]
    assert predict_first_spike(spikes).tolist() == expected and len(set(expected)) == 4
    assert predict_first_spike(spikes.transpose(0, 1), batch_first=False).tolist() == expected


@pytest.mark.parametrize("loss_of", OURS.values(), ids=OURS)
def test_bad_spikes_and_labels(loss_of):
    spikes, labels = torch.ones(2, 8, 3), torch.tensor([0, 1])
    cases = [
        (lambda: loss_of(spikes, labels + 2), ValueError, "labels must lie in 0 … 2, got values from 2 to 3"),
        (lambda: loss_of(spikes, labels - 100), ValueError, "labels must lie in 0 … 2, got values from -100 to -99"),
        (lambda: loss_of(spikes, labels.float()), TypeError, "labels must be a tensor of integers, got torch.float32"),
        (lambda: loss_of(spikes, labels.bool()), TypeError, "labels must be a tensor of integers, got torch.bool"),
        (lambda: loss_of(spikes, [0, 1]), TypeError, "labels must be a tensor of integers, got list"),
        (lambda: loss_of(spikes, labels[:1]), ValueError, r"labels must have the shape \[batch\], here \[2\]"),
        (lambda: loss_of(spikes[:0], labels[:0]), ValueError, r"at least one sample.*got \[0, 8, 3\]"),
        (lambda: loss_of(spikes[:, :0], labels), ValueError, r"at least one sample, step and class, got \[2, 0, 3\]"),
        (lambda: loss_of(spikes[0], labels), ValueError, r"spikes must have the shape \[batch, time, classes\]"),
        (lambda: loss_of(spikes.long(), labels), TypeError, "spikes must have one of the dtypes"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


def graded(loss_of):
    """Whether means over a population make sense; time alone needs spikes."""
    return loss_of not in (first_spike_cross_entropy, predict_first_spike)


@pytest.mark.parametrize("function", [*OURS.values(), predict, predict_first_spike], ids=[*OURS, "most", "first"])
def test_membrane_potentials_are_no_spikes(function):
    """But for the loss that takes them."""
    arguments = () if function in (predict, predict_first_spike) else (torch.tensor([0, 1]),)
    potentials = SRMReadout(4, 3)(torch.randn(2, 8, 4))
    if function is stepwise_cross_entropy:
        assert function(potentials, *arguments).isfinite()
        return
    for value in (potentials, torch.full((2, 8, 3), math.nan), torch.full((2, 8, 3), -1.0), torch.full((2, 8, 3), 2.0)):
        with pytest.raises(ValueError, match=r"spikes must be 0 or 1.*SRMReadout.*, got .* at \[0, 0, 0\]"):
            function(value, *arguments)
    shares = (torch.rand(2, 8, 3, 6) < 0.4).double().mean(3)
    if graded(function):
        assert function(shares, *arguments).isfinite().all()
    else:
        with pytest.raises(ValueError, match="spikes must be 0 or 1"):
            function(shares, *arguments)


def test_a_population_is_predicted_by_all_that_it_fires():
    spikes = (torch.rand(40, 9, 3, 5) < 0.3).double()
    weights = [1.1 - t / 90 for t in range(9)]
    votes = [[sum(w * x for w, x in zip(weights, c, strict=True)) for c in zip(*s, strict=True)]
             for s in spikes.mean(3).tolist()]  # fmt: skip
    assert predict(spikes.mean(3)).tolist() == [max(range(3), key=lambda c: vote[c]) for vote in votes]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_and_predictions_in_half_precision_are_exact(dtype):
    spikes = torch.ones(1, 4001, 2, dtype=dtype)
    spikes[0, -1, 0] = 0
    assert spike_counts(spikes).tolist() == [[4000, 4001]] and predict(spikes).tolist() == [1]


def test_bad_options():
    spikes, labels = torch.ones(2, 4, 3), torch.tensor([0, 1])
    cases = [
        (lambda: count_loss(spikes, labels, desired=1, undesired=1), ValueError, "0 ≤ undesired < desired ≤ 4"),
        (lambda: count_loss(spikes, labels, desired=5, undesired=1), ValueError, "got desired=5 and undesired=1"),
        (lambda: enhanced_count_loss(spikes, labels, desired=2, undesired=-1), ValueError, "undesired must be .*≥ 0"),
        (lambda: rate_cross_entropy(spikes, labels, silent=math.nan), ValueError, "silent must be finite and ≥"),
        (lambda: rate_cross_entropy(spikes, labels, skip_silent=1), ValueError, "skip_silent must be one of"),
        (lambda: first_spike_cross_entropy(spikes, labels, scale=0), ValueError, "scale must be finite and > 0, got 0"),
        (lambda: first_spike_cross_entropy(spikes, labels, silent="-3"), TypeError, "silent must be a number"),
        (lambda: van_rossum_loss(spikes, labels, tau_s=1), ValueError, "tau_s must be finite and > 1, got 1"),
        (lambda: van_rossum_loss(spikes, labels, target=spikes[0, :3, 0]), ValueError, "target must have 4 entries"),
        (lambda: van_rossum_loss(spikes, labels, target=spikes), ValueError, r"target must have the shape \[time\]"),
        (lambda: van_rossum_loss(spikes, labels, target=[0, 1, 1, 1]), TypeError, "target must be a torch.Tensor"),
        (lambda: count_loss(spikes, labels, desired="3", undesired=1), TypeError, "desired must be a number, got '3'"),
        (lambda: count_loss(spikes, labels, desired=3, undesired=None), TypeError, "undesired must be a number"),
        (lambda: count_loss(spikes, labels, desired=3, undesired=True), TypeError, "undesired must be a number"),
        (lambda: count_loss(spikes, labels, desired=math.nan, undesired=1), ValueError, "desired must be finite"),
        (
            lambda: van_rossum_loss(spikes, labels, target=spikes[0, :, 0] * math.nan),
            ValueError,
            "target must lie in 0 … 1",
        ),
        *[
            (lambda f=function: f(spikes, labels, batch_first=None), ValueError, "batch_first must be one of")
            for function in OURS.values()
        ],
        *[
            (lambda f=function: f(spikes, batch_first=1), ValueError, "batch_first must be one of")
            for function in (spike_counts, predict, predict_first_spike)
        ],
        (lambda: spike_counts(spikes[0]), ValueError, r"spikes must have the shape \[batch, time, classes\]"),
        (lambda: predict(spikes[:, :0]), ValueError, "at least one step and one class"),
        (lambda: predict_first_spike(spikes[..., :0]), ValueError, "at least one step and one class"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
