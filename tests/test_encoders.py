"""Encoders: what they say of each value, in Python numbers, and errors for values that they cannot take."""

import math

import pytest
import torch

from srm_triton import encode_direct, encode_latency, encode_rate


def test_direct_encoding_repeats_without_a_copy():
    images = torch.rand(3, 8, 8)
    inputs = encode_direct(images, 5)
    assert inputs.shape == (3, 5, 8, 8) and inputs.stride(1) == 0
    assert torch.equal(inputs[:, 4], images)


def test_rates_are_the_values():
    """Within four standard deviations, in time and between neighbours independent."""
    values, steps = torch.tensor([[0.0, 0.1, 0.5, 0.9, 1.0], [0.5, 0.5, 0.5, 0.5, 0.5]]), 4000
    spikes = encode_rate(values, steps)
    assert spikes.shape == (2, steps, 5) and set(spikes.unique().tolist()) == {0.0, 1.0}
    assert ((spikes.mean(1) - values).abs() <= 4 * (values * (1 - values) / steps).sqrt()).all()
    half = spikes[1] - 0.5  # of variance 1/4
    for pairs in (half[1:] * half[:-1], half[:, 1:] * half[:, :-1]):
        assert (pairs.mean(0).abs() <= 4 * 0.25 / math.sqrt(steps - 1)).all()


def test_rates_of_a_generator():
    values = torch.rand(3, 4, 2)
    drawn = [encode_rate(values, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    before = torch.get_rng_state()
    encode_rate(values, 6, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert encode_rate(values.bfloat16(), 6).dtype == torch.bfloat16


@pytest.mark.parametrize("steps", [1, 2, 8, 100])
@pytest.mark.parametrize("spacing", ["linear", "logarithmic"])
def test_latencies_by_hand(spacing, steps):
    values = torch.cat((torch.tensor([0.0, 1.0, 0.02, 0.05]), torch.rand(50))).double().view(2, 27)
    spikes = encode_latency(values, steps, spacing=spacing, smallest=0.05)
    assert spikes.dtype == torch.float64 and torch.equal(spikes.sum(1), torch.ones(2, 27).double())
    for value, step in zip(values.flatten().tolist(), spikes.argmax(1).flatten().tolist(), strict=True):
        late = 1 - value
        if spacing == "logarithmic":
            late = min(1.0, math.log(value) / math.log(0.05)) if value else 1.0
        assert step == round((steps - 1) * late)


def test_latencies_of_images_in_half_precision():
    images = torch.rand(3, 1, 4, 4).half()
    spikes = encode_latency(images, 9)
    assert spikes.shape == (3, 9, 1, 4, 4) and spikes.dtype == torch.float16
    for spacing in ("linear", "logarithmic"):
        spikes = encode_latency(images, 900, spacing=spacing)
        assert torch.equal(spikes, encode_latency(images.float(), 900, spacing=spacing).half())


@pytest.mark.parametrize("encode", [encode_direct, encode_rate, encode_latency])
def test_what_is_no_batch_of_values(encode):
    for values, error in (([0.1, 0.2], TypeError), (None, TypeError), (torch.tensor(0.5), ValueError)):
        with pytest.raises(error, match="values must"):
            encode(values, 4)


def test_drawn_and_timed_spikes_pass_no_gradient():
    values = torch.rand(3, 2, requires_grad=True)
    assert encode_direct(values, 4).requires_grad
    assert not encode_rate(values, 4).requires_grad and not encode_latency(values, 4).requires_grad
    assert encode_direct(torch.ones(2, 3, dtype=torch.bool), 4).dtype == torch.bool


def test_bad_input():
    values = torch.rand(2, 3)
    bad = torch.tensor([[0.5, 0.5], [1.5, math.nan]])
    cases = [
        (lambda: encode_direct(values, 0), ValueError, "steps must be finite and ≥ 1, got 0"),
        (lambda: encode_latency(values, True), TypeError, "steps must be an int"),
        (lambda: encode_rate(values, 2.0), TypeError, "steps must be an int, got 2.0"),
        (lambda: encode_rate(values.long(), 4), TypeError, "values must have one of the dtypes"),
        (lambda: encode_rate(-values - 0.1, 4), ValueError, r"values must lie in 0 … 1, got -0.* at \[0, 0\] \(6 of 6"),
        (lambda: encode_rate(bad, 4), ValueError, r"got 1.5 at \[1, 0\] \(2 of 4 are such\)"),
        (lambda: encode_latency(bad[:, 1:], 4), ValueError, r"got nan at \[1, 0\] \(1 of 2"),
        (lambda: encode_latency(values, 4, spacing="log"), ValueError, "spacing must be one of"),
        (lambda: encode_latency(values, 4, smallest=1.0), ValueError, "smallest must be < 1, got 1.0"),
        (lambda: encode_latency(values, 4, smallest=0), ValueError, "smallest must be finite and > 0, got 0"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
