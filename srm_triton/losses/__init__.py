"""From output spikes to a loss and a prediction.

All take spikes, [batch, time, classes], and labels, [batch], and return the mean over the batch. They act on spikes as
they are: the gradient is ∂L/∂spike, negative where a neuron should fire more or earlier, so that descent trains with
either gradient of the layers. With the event rule the layer that a loss looks at should be made with ``output=True``: a
silent neuron then counts as firing once, and takes the gradient that the loss has at that step.

Spikes are 0 or 1; where only their number matters, means over a population do too. Anything else, such as the membrane
potentials of an `SRMReadout`, is refused but by `stepwise_cross_entropy` (on a GPU, where looking would wait, it is not
looked at).

Choose

- `torch.nn.functional.cross_entropy` of `spike_counts` when nothing speaks for another;
- `count_loss` when the number of spikes should be low, or is known;
- `enhanced_count_loss` when that learns slowly, or outputs fire at very different rates;
- `rate_cross_entropy` when counts differ much between samples, or sequences are long;
- `first_spike_cross_entropy` when the answer should come early; predict by `predict_first_spike`;
- `van_rossum_loss` when neurons should fire at given times;
- `stepwise_cross_entropy` when every step should decide, or the outputs are membrane potentials.

Any ordinary loss does as well: an `nn.Linear` behind `spikes.mean(1)`, an `SRMReadout` as the last layer.
"""

from srm_triton.losses.counts import count_loss, enhanced_count_loss, rate_cross_entropy, spike_counts
from srm_triton.losses.prediction import predict, predict_first_spike
from srm_triton.losses.trains import first_spike_cross_entropy, stepwise_cross_entropy, van_rossum_loss

__all__ = [
    "count_loss",
    "enhanced_count_loss",
    "first_spike_cross_entropy",
    "predict",
    "predict_first_spike",
    "rate_cross_entropy",
    "spike_counts",
    "stepwise_cross_entropy",
    "van_rossum_loss",
]
