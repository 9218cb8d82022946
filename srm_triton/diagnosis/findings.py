"""What the measurements of layers say: what is wrong, and what to try."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from srm_triton.diagnosis.finding import Finding
from srm_triton.diagnosis.report import LayerReport

MOSTLY_SILENT = 0.97  # of the neurons
SATURATED = 0.8  # spikes per neuron and step
SILENT_SAMPLES = 0.2
CLAMPED = 0.8  # of the spikes
NEIGHBOURS_RATIO, DEPTH_RATIO = 1e3, 1e6  # of gradients at the spikes, from layer to layer and over all
WEIGHT_GROWTH = 50.0
SLOW_SYNAPSE = 10.0  # time constants in a sequence
CHANCE_PROBABILITY = 1e-3  # below, accuracy is no chance


def find_in_layers(layers: Sequence[LayerReport], *, readout: bool = False) -> Iterator[Finding]:
    """What is conspicuous in the layers that ran, in their order; whether an `SRMReadout` follows them."""
    if not layers:
        yield Finding(
            "unseen",
            None,
            "No spiking layer was seen to run.",
            "Call the watched model within the block, itself and not code that torch.compile made of it, which runs no "
            "hooks.",
        )
        return
    dead = False
    for number, layer in enumerate(layers):
        yield from _find_in_inputs(layer, first=number == 0, behind_dead=dead)
        yield from _find_in_spikes(layer, last=number == len(layers) - 1)
        yield from _find_in_rules(layer)
        dead = dead or layer.recent_rate == 0
    yield from _find_in_output(layers[-1], readout)
    yield from _find_in_gradients(layers)
    rules = {layer.gradient: layer for layer in reversed(layers)}
    if len(rules) > 1:
        different = " and ".join(f"{layer.title} {gradient!r}" for gradient, layer in reversed(rules.items()))
        yield Finding(
            "mixed gradients",
            None,
            f"The layers have different gradients: {different}.",
            "Give all of them the same.",
        )


def _find_in_inputs(layer: LayerReport, *, first: bool, behind_dead: bool) -> Iterator[Finding]:
    if layer.bad_inputs:
        yield layer.finding(
            "bad inputs",
            f"received NaN or infinity in {layer.bad_inputs} of {layer.passes} passes; NaN silences neurons.",
            "Look for missing values in the data, or a division by a deviation of 0 where they are standardised."
            if first
            else "Lower the learning rate, if the modules before it diverged, and clip their gradient.",
        )
    if layer.zero_inputs and not behind_dead:
        yield layer.finding("zero inputs", "received nothing but zeros.", "Look at what the data loader returns.")
    if layer.same_samples:
        yield layer.finding(
            "axes",
            "received samples that are all the same, though time steps differ: batch and time are swapped.",
            "Pass inputs as [batch, time, …], or make every layer with batch_first=False.",
        )
    if layer.single_step:
        yield layer.finding(
            "one step",
            "received a single time step, in which neurons have no time to integrate.",
            "Repeat the inputs over T = 4 to 16 steps, images[:, None].expand(-1, 8, -1), or hand on the state from "
            "step to step.",
        )


def _find_in_spikes(layer: LayerReport, *, last: bool) -> Iterator[Finding]:
    if layer.tau_s > SLOW_SYNAPSE * layer.steps and not layer.single_step:
        yield layer.finding(
            "slow",
            f"has a synaptic time constant of {layer.tau_s:g} steps in sequences of {layer.steps}, in which "
            "its potential hardly rises.",
            f"Choose constants that suit the sequence, time_constants(steps={layer.steps}, channels=…).",
        )
    if layer.recent_rate == 0 and not layer.zero_inputs:
        fell = layer.rate > 0
        stays = "" if layer.gradient == "surrogate" or layer.output else " and receives no gradient by which it could"
        behind = "" if last else "; layers behind it receive nothing"
        yield layer.finding(
            "dead",
            f"{'fell silent' if fell else 'does not fire'}{stays}{behind}.",
            "Lower the learning rate or clip the gradient, and start again."
            if fell
            else "Call calibrate_gain(model, inputs) before training, lower the threshold, or, if it fired before, the "
            'learning rate; with gradient="surrogate" silent neurons learn too.',
        )
    elif layer.recent_rate > 0 and layer.silent > MOSTLY_SILENT:
        yield layer.finding(
            "mostly silent",
            f"has never fired with {layer.silent:.0%} of its neurons.",
            "Call calibrate_gain(model, inputs) before training, or lower the threshold or the learning rate.",
        )
    if layer.recent_rate > SATURATED:
        yield layer.finding(
            "saturated",
            f"fires {layer.recent_rate:.2f} spikes per neuron and step, {layer.saturated:.0%} of its neurons "
            "at nearly every step, which tells nothing.",
            "Call calibrate_gain(model, inputs) before training, raise the threshold, or lower the learning rate.",
        )


def _find_in_rules(layer: LayerReport) -> Iterator[Finding]:
    if layer.gradient == "surrogate":
        return
    if layer.by_value and "spikes" in layer.origins:
        yield layer.finding(
            "between",
            "passes the event rule's gradient for weights on to the spikes of layers before it, which need "
            "that for their times.",
            'Put the map between both into one layer, SRMLinear, SRMConv2d or SRMAffine (with input_gradient="time"), '
            'or choose gradient="surrogate" in all layers.',
        )
    if layer.gradient == "event" and layer.time_slopes_at_zero > CLAMPED:
        yield layer.finding(
            "no time gradient",
            f"hands no gradient to the layers before it at {layer.time_slopes_at_zero:.0%} of its spikes, as "
            "their gradient trace is negative.",
            'Choose a tau_g nearer to tau_s in SRMParameters, or gradient="surrogate" in all layers.',
        )
    if layer.slopes_at_zero > CLAMPED:
        yield layer.finding(
            "clamped slopes",
            f"has a falling potential at {layer.slopes_at_zero:.0%} of its spikes, which then teach nothing.",
            "Look at the state that is handed in: its potential lies above the threshold.",
        )
    elif layer.slopes_at_limit > CLAMPED:
        yield layer.finding(
            "clamped slopes",
            f"clamps 1/Δu at its limit for {layer.slopes_at_limit:.0%} of its spikes: the potential creeps "
            "over the threshold.",
            "Choose smaller time constants, call calibrate_gain(model, inputs) with more spikes_per_neuron, or raise "
            "membrane_slope_limit in SRMParameters.",
        )
    if not layer.by_value and "parameters" in layer.origins:
        spikes = "spikes" in layer.origins
        yield layer.finding(
            "between",
            "has inputs that ordinary modules with parameters computed, which receive the gradient for "
            "spike times instead of the derivative.",
            'Put what stands between spiking layers into SRMAffine, or choose gradient="surrogate" in all layers.'
            if spikes
            else 'Make it with input_gradient="value".',
        )


def _find_in_output(layer: LayerReport, readout: bool) -> Iterator[Finding]:
    trained = not math.isnan(layer.spike_gradient)
    if layer.gradient == "surrogate" or layer.output or layer.silent_samples <= SILENT_SAMPLES or not trained:
        return
    if readout:
        remedy = "Call calibrate_gain(model, inputs) before training; behind a silent layer only the read-out learns."
    elif layer.kind == "SRMRecurrent":
        remedy = "Let an SRMLinear(…, output=True) follow it, whose silent neurons learn."
    else:
        remedy = "Make it with output=True: silent neurons of the layer that a loss looks at learn then."
    yield layer.finding(
        "output",
        f"is the last, and stays silent for {layer.silent_samples:.0%} of the samples, which then teach nothing.",
        remedy,
    )


def _find_in_gradients(layers: Sequence[LayerReport]) -> Iterator[Finding]:
    lower = "Lower the learning rate and start again; clip the gradient (torch.nn.utils.clip_grad_norm_)."
    for layer in layers:
        if not layer.finite_weights:
            yield layer.finding("bad weights", "has weights that are NaN or infinite.", lower)
        elif math.isinf(layer.weight_gradient) or math.isinf(layer.spike_gradient):
            yield layer.finding("bad gradient", "received a gradient that is NaN or infinite.", lower)
        if layer.weight_growth > WEIGHT_GROWTH:
            yield layer.finding(
                "growth",
                f"has weights {layer.weight_growth:.0f} times as large as at the start.",
                "Lower the learning rate, or decay the weights.",
            )
    trained = [layer for layer in layers if not math.isnan(layer.spike_gradient)]
    pairs = [(NEIGHBOURS_RATIO, *pair) for pair in pairwise(trained)]
    if len(trained) > 2:
        pairs.append((DEPTH_RATIO, trained[0], trained[-1]))
    for ratio, layer, behind in pairs:
        before, after = layer.spike_gradient, behind.spike_gradient
        if 0 in (layer.recent_rate, behind.recent_rate, after) or math.inf in (before, after):
            continue
        if before * ratio < after:
            kind, verb = "vanishing", "vanishes"
            remedy = (
                "Call calibrate_gain(model, inputs) with more spikes_per_neuron, use fewer layers or "
                'gradient="surrogate".'
            )
        elif before > after * ratio:
            kind, verb = "exploding", "explodes"
            remedy = (
                "Normalise the weights (weight_norm=True), clip the gradient, or lower gradient_slope_limit in "
                "SRMParameters."
            )
        else:
            continue
        yield layer.finding(
            kind,
            f"receives a gradient of {before:.1e} at its spikes, {behind.title} behind it "
            f"{after:.1e}: it {verb} between them.",
            remedy,
        )
