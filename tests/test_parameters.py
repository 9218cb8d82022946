"""Constants: numbers and tensors of every kind, one value or one a channel, changes in place, bad ones."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from test_srm_scan import BACKENDS, random

from srm_triton import SRMLinear, SRMParameters, spiking_network, srm_scan, use_backend


@pytest.mark.parametrize(
    "value", [7, 7.0, np.float32(7), np.int64(7), np.array(7.0), Fraction(7), torch.tensor(7), torch.tensor(7.0)]
)
def test_numbers_of_every_kind(value):
    assert SRMParameters(tau_m=value) == SRMParameters(tau_m=7.0) and hash(SRMParameters(value))
    current = random(1, 9, 2, shift=1)
    assert torch.equal(srm_scan(current, SRMParameters(value)), srm_scan(current, SRMParameters(7.0)))


def test_constants_of_each_channel(device):
    """A neuron a channel, whatever the axes behind, equals one of these constants alone."""
    taus, thresholds = torch.tensor([2.0, 5.0, 9.0]), torch.tensor([0.5, 1.0, 1.5])
    current = random(2, 9, 3, 4, shift=0.6).to(device)
    for backend in BACKENDS:
        with use_backend(backend):
            spikes = srm_scan(current, SRMParameters(taus, threshold=thresholds))
            for channel, (tau, threshold) in enumerate(zip(taus.tolist(), thresholds.tolist(), strict=True)):
                alone = srm_scan(current[:, :, channel], SRMParameters(tau, threshold=threshold))
                assert torch.equal(spikes[:, :, channel], alone)


def test_a_tensor_on_another_device_than_the_numbers():
    """As one on a GPU, here on the meta device."""
    threshold = torch.ones(4, device="meta")
    parameters = SRMParameters(tau_m=7.0, threshold=threshold)
    assert srm_scan(torch.rand(2, 3, 4, device="meta"), parameters).is_meta
    with pytest.raises(ValueError, match="threshold must hold values for the layer to begin with, got a tensor on the"):
        SRMLinear(3, 4, parameters)


def test_a_default_device_is_that_of_layers_and_not_of_numbers():
    with torch.device("meta"):
        assert SRMParameters(7.0, np.array([1.5, 2.0])).tau_s.tolist() == [1.5, 2.0]
        network = spiking_network("12-12", 8, 4, steps=5)
        learned = SRMLinear(3, 4, SRMParameters(tau_m=7.0), learn=("threshold",), carry_scale=False)
        learned.neuron.tau_s = 2.0
        for layer, inputs in ((network, 8), (learned, 3)):
            assert all(tensor.is_meta for tensor in layer.state_dict().values())
            layer(torch.rand(2, 5, inputs)).sum().backward()
    learned.to_empty(device="cpu").reset_parameters()
    assert learned.neuron.tau_m == 7.0 and learned.neuron.tau_s == 3.0


def test_constants_that_change_in_place_are_followed_and_checked():
    threshold, current = torch.tensor(1.0), random(2, 20, 3, shift=0.6)
    parameters = SRMParameters(threshold=threshold)
    before = srm_scan(current, parameters)
    threshold.fill_(0.5)
    assert srm_scan(current, parameters).sum() > before.sum()
    threshold.fill_(-1.0)
    with pytest.raises(ValueError, match=r"threshold must be finite and > 0, got -1.0"):
        srm_scan(current, parameters)


def test_constants_that_change_behind_autograd_are_followed():
    """What is written through `.data`, or by other processes, counts no version; arrays are copied."""
    current, array = torch.full((1, 8, 4), 0.3), np.ones(4)
    parameters, of_array = SRMParameters(threshold=torch.ones(())), SRMParameters(threshold=array)
    assert not torch.equal(srm_scan(current, parameters), expected := srm_scan(current, SRMParameters(threshold=0.05)))
    parameters.threshold.data.fill_(0.05)
    array[:] = 0.05
    assert torch.equal(srm_scan(current, parameters), expected)
    assert of_array == SRMParameters(threshold=np.ones(4)) and not torch.equal(srm_scan(current, of_array), expected)


@pytest.mark.parametrize(("name", "value"), [("threshold", -1.0), ("tau_m", 0.5)])
def test_constants_that_an_optimizer_drives_out_of_range(name, value):
    constant = torch.tensor(5.0, requires_grad=True)
    parameters, current = SRMParameters(**{name: constant}), torch.ones(1, 8, 4)
    srm_scan(current, parameters)
    constant.data.fill_(value)
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        srm_scan(current, parameters)


def test_inference_mode_leaves_nothing_behind():
    parameters, current = SRMParameters(tau_m=6.0), torch.ones(1, 4, 2)
    with torch.inference_mode():
        srm_scan(current, parameters)
    srm_scan(current.requires_grad_(), parameters).sum().backward()
    assert current.grad.any()


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"tau_m": 1.0}, "tau_m must be > 1, got 1.0"),
            ({"tau_s": -2.0}, "tau_s must be finite and ≥ 1, got -2.0"),
            ({"tau_s": math.inf}, "tau_s must be finite and ≥ 1, got inf"),
            ({"tau_g": math.nan}, "tau_g must be > 1, got nan"),
            ({"threshold": 0.0}, "threshold must be finite and > 0, got 0.0"),
            ({"threshold": torch.tensor([1.0, -3.0])}, "threshold must be finite and > 0, got -3.0 at channel 1"),
            ({"gradient_slope_limit": math.inf}, "gradient_slope_limit must be finite and > 0, got inf"),
            ({"tau_m": 10**400}, "tau_m must be > 1, got a number beyond the range of floats"),
            (
                {"sharpness": torch.ones(2, 2)},
                r"sharpness must hold one value or one for each channel, .* got \[2, 2\]",
            ),
            ({"tau_m": torch.tensor([])}, "tau_m must hold one value or one for each channel, got none"),
            ({"tau_m": torch.full((2,), 5.0), "tau_s": torch.ones(3)}, "the same number of channels or one value, got"),
        ],
    )
    def test_parameters(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            SRMParameters(**arguments)

    @pytest.mark.parametrize("value", ["5", None, True, torch.tensor(True), 5j])
    def test_parameters_that_are_no_numbers(self, value):
        with pytest.raises(TypeError, match="tau_m must be a number or a tensor of numbers, got"):
            SRMParameters(tau_m=value)

    def test_subclasses_are_refused(self):
        class Faster(SRMParameters):
            pass

        with pytest.raises(TypeError, match="parameters must be SRMParameters or None, got Faster"):
            srm_scan(torch.ones(1, 2), Faster())

    def test_a_number_of_channels_that_does_not_fit(self):
        constants = SRMParameters(threshold=torch.ones(3))
        for shape, channels in (((1, 2, 4), 4), ((1, 2), 1)):
            with pytest.raises(ValueError, match=rf"threshold must hold one value or one for each of {channels} chan"):
                srm_scan(torch.ones(shape), constants)


def test_non_leaky_neurons_fire_as_the_published_ones():
    tau, threshold = 3.5, torch.tensor([0.8, 1.3, 2.0], dtype=torch.float64)
    current = random(4, 60, 3, shift=0.2)
    u = g = torch.zeros(4, 3, dtype=torch.float64)
    expected = []
    for x in current.unbind(1):
        g = (g + x) * (1 - 1 / tau)
        u = u + g
        spike = u >= threshold
        expected.append(spike.double())
        u, g = u * ~spike, g * ~spike
    expected = torch.stack(expected, 1)
    assert torch.equal(srm_scan(current, SRMParameters.non_leaky(tau, threshold)), expected) and expected.any()
    with pytest.raises(ValueError, match=r"tau must be .* > 1"):
        SRMParameters.non_leaky(1.0)
    with pytest.raises(TypeError, match="tau must be"):
        SRMParameters.non_leaky("3")
