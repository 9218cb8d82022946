"""What measurements of a network in training say: what is wrong, and what to try."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

# A layer is conspicuous beyond these. Healthy networks of both gradients, 1 to 8 hidden layers, stay well within.
MOSTLY_SILENT = 0.97  # of the neurons
SATURATED = 0.8  # spikes per neuron and step
SILENT_SAMPLES = 0.2
CLAMPED = 0.8  # of the spikes
NEIGHBOURS_RATIO, DEPTH_RATIO = 1e3, 1e6  # of gradients at the spikes, from layer to layer and over all
WEIGHT_GROWTH = 50.0
SLOW_SYNAPSE = 10.0  # time constants in a sequence
CHANCE_PROBABILITY = 1e-3  # below, accuracy is no chance
FEWEST_STEPS, FEWEST_SAMPLES = 20, 200  # before learning is judged


class Finding(NamedTuple):
    """Something conspicuous."""

    kind: str
    """A word for it: ``"dead"``, ``"saturated"``, ``"chance"`` and so on."""
    layer: str | None
    """The layer's name; None for what concerns the whole network or the loop."""
    message: str
    """What is wrong, in a sentence."""
    remedy: str
    """What to try, in a sentence."""

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


@dataclass(frozen=True)
class LayerReport:
    """What a spiking layer did while it was watched; shares are of 1, and nan stands for what was not seen."""

    name: str
    """As `named_modules` has it; empty for the model itself."""
    kind: str
    """The name of its class."""
    gradient: str
    """``"event"`` or ``"surrogate"``."""
    output: bool
    """Whether silent neurons count as firing once in the backward."""
    passes: int
    """Calls that were measured."""
    steps: int
    """Time steps of the last one."""
    tau_s: float
    """The largest synaptic time constant."""
    rate: float
    """Spikes per neuron and step."""
    recent_rate: float
    """The same over the last passes, at most 16."""
    silent: float
    """Share of the neurons that have not fired at all."""
    saturated: float
    """Share of the neurons that fired at 95 % of the steps or more."""
    silent_samples: float
    """Share of the samples in the last passes for which no neuron of the layer fired."""
    slopes_at_limit: float
    """Share of the spikes whose 1/Δu the event rule clamps at its limit."""
    slopes_at_zero: float
    """Share of the spikes whose 1/Δu it clamps at 0, as the potential fell."""
    time_slopes_at_zero: float
    """Share of the spikes that hand no gradient to earlier spikes, as their gradient trace is negative."""
    weight_gradient: float
    """Norm of the gradient of the layer's weights, mean of the last passes."""
    spike_gradient: float
    """Norm of the gradient at its spikes, mean of the last passes."""
    weight_growth: float
    """Norm of its weights, divided by that at the start, or of rows of length 1 where that is more."""
    finite_weights: bool
    """Whether they hold neither NaN nor infinity."""
    bad_inputs: int
    """Passes whose inputs held NaN or infinity."""
    zero_inputs: bool
    """Whether all inputs of the last passes were 0."""
    same_samples: bool
    """Whether in each pass with several samples these were equal, though steps differed."""
    single_step: bool
    """Whether each pass was one step without a state."""
    origins: frozenset[str]
    """What its inputs were computed from, as autograd knows: ``"spikes"``, ``"parameters"`` of ordinary modules."""
    by_value: bool
    """Whether its inputs receive the derivative with respect to their value rather than the time path."""

    @property
    def title(self) -> str:
        """How sentences name it."""
        return f"layer {self.name!r} ({self.kind})" if self.name else f"the model, an {self.kind},"


@dataclass(frozen=True)
class LearningReport:
    """What losses and predictions came to."""

    steps: int
    """How many were observed."""
    first_loss: float
    """Mean over the first tenth of the last steps, at most 1000; nan without losses."""
    last_loss: float
    """Mean over the last tenth."""
    finite: bool
    """Whether every loss was."""
    samples: int
    """Predictions to which the rest refers: of the later half of the last steps."""
    correct: int
    """How many were right."""
    most_frequent: float
    """Share of the most frequent label: the accuracy of always naming it."""
    predicted: int = -1
    """The class that was predicted most."""
    predicted_share: float = math.nan
    """How often."""

    @property
    def at_chance(self) -> bool:
        """Whether naming the most frequent class would be as accurate by chance, in 1 of 1000 cases or more.

        A one-sided binomial test: P(X ≥ correct) for X of `samples` trials of probability `most_frequent`.
        """
        return binomial_tail(self.correct, self.samples, self.most_frequent) > CHANCE_PROBABILITY


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """P(X ≥ successes) of a binomial variable.

    Example:
        >>> round(binomial_tail(2, 3, 0.5), 6)
        0.5
    """
    if successes <= 0 or probability >= 1:
        return 1.0
    if probability <= 0:
        return 0.0
    k = torch.arange(successes, trials + 1, dtype=torch.float64)
    n = torch.tensor(float(trials), dtype=torch.float64)
    logs = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    logs += k * math.log(probability) + (n - k) * math.log1p(-probability)
    return min(1.0, float(logs.exp().sum()))


def find_in_layers(layers: Sequence[LayerReport]) -> Iterator[Finding]:
    """What is conspicuous in the layers that ran, in their order."""
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
    yield from _find_in_output(layers[-1])
    yield from _find_in_gradients(layers)
    rules = {layer.gradient: layer for layer in reversed(layers)}
    if len(rules) > 1:
        yield Finding(
            "mixed gradients",
            None,
            f"The layers have different gradients: {rules['event'].title} the event rule, {rules['surrogate'].title} "
            "the surrogate gradient.",
            'Give all of them the same, gradient="event" or gradient="surrogate".',
        )


def _find_in_inputs(layer: LayerReport, *, first: bool, behind_dead: bool) -> Iterator[Finding]:
    title = _sentence(layer.title)
    if layer.bad_inputs:
        yield Finding(
            "bad inputs",
            layer.name,
            f"{title} received NaN or infinity in {layer.bad_inputs} of {layer.passes} passes; NaN silences neurons.",
            "Look for missing values in the data, or a division by a deviation of 0 where they are standardised."
            if first
            else "Lower the learning rate, if the modules before it diverged, and clip their gradient.",
        )
    if layer.zero_inputs and not behind_dead:
        yield Finding(
            "zero inputs", layer.name, f"{title} received nothing but zeros.", "Look at what the data loader returns."
        )
    if layer.same_samples:
        yield Finding(
            "axes",
            layer.name,
            f"{title} received samples that are all the same, though time steps differ: batch and time are swapped.",
            "Pass inputs as [batch, time, …], or make every layer with batch_first=False.",
        )
    if layer.single_step:
        yield Finding(
            "one step",
            layer.name,
            f"{title} received a single time step, in which neurons have no time to integrate.",
            "Repeat the inputs over T = 4 to 16 steps, images[:, None].expand(-1, 8, -1), or hand on the state from "
            "step to step.",
        )


def _find_in_spikes(layer: LayerReport, *, last: bool) -> Iterator[Finding]:
    title = _sentence(layer.title)
    slow = layer.tau_s > SLOW_SYNAPSE * layer.steps and not layer.single_step
    if slow:
        yield Finding(
            "slow",
            layer.name,
            f"{title} has a synaptic time constant of {layer.tau_s:g} steps in sequences of {layer.steps}, in which "
            "its potential hardly rises.",
            f"Choose time constants of the order of the sequence or below, such as SRMParameters(tau_m="
            f"{max(2.0, layer.steps / 2):g}, tau_s={max(1.5, layer.steps / 4):g}).",
        )
    if layer.recent_rate == 0 and not layer.zero_inputs:
        fell = layer.rate > 0
        stays = "" if layer.gradient == "surrogate" or layer.output else " and receives no gradient by which it could"
        behind = "" if last else "; layers behind it receive nothing"
        yield Finding(
            "dead",
            layer.name,
            f"{title} {'fell silent' if fell else 'does not fire'}{stays}{behind}.",
            "Lower the learning rate or clip the gradient, and start again."
            if fell
            else "Call calibrate_gain(model, inputs) before training, lower the threshold, or, if it fired before, the "
            'learning rate; with gradient="surrogate" silent neurons learn too.',
        )
    elif layer.recent_rate > 0 and layer.silent > MOSTLY_SILENT:
        yield Finding(
            "mostly silent",
            layer.name,
            f"{title} has never fired with {layer.silent:.0%} of its neurons.",
            "Call calibrate_gain(model, inputs) before training, or lower the threshold or the learning rate.",
        )
    if layer.recent_rate > SATURATED:
        yield Finding(
            "saturated",
            layer.name,
            f"{title} fires {layer.recent_rate:.2f} spikes per neuron and step, {layer.saturated:.0%} of its neurons "
            "at nearly every step, which tells nothing.",
            "Call calibrate_gain(model, inputs) before training, raise the threshold, or lower the learning rate.",
        )


def _find_in_rules(layer: LayerReport) -> Iterator[Finding]:
    if layer.gradient != "event":
        return
    title = _sentence(layer.title)
    if layer.by_value and "spikes" in layer.origins:
        yield Finding(
            "between",
            layer.name,
            f"{title} passes the event rule's gradient for weights on to the spikes of layers before it, which need "
            "that for their times.",
            'Put the map between both into one layer, SRMLinear, SRMConv2d or SRMAffine (with input_gradient="time"), '
            'or choose gradient="surrogate" in all layers.',
        )
    if layer.time_slopes_at_zero > CLAMPED:
        yield Finding(
            "no time gradient",
            layer.name,
            f"{title} hands no gradient to the layers before it at {layer.time_slopes_at_zero:.0%} of its spikes, as "
            "their gradient trace is negative.",
            'Choose a tau_g nearer to tau_s in SRMParameters, or gradient="surrogate" in all layers.',
        )
    if layer.slopes_at_zero > CLAMPED:
        yield Finding(
            "clamped slopes",
            layer.name,
            f"{title} has a falling potential at {layer.slopes_at_zero:.0%} of its spikes, which then teach nothing.",
            "Look at the state that is handed in: its potential lies above the threshold.",
        )
    elif layer.slopes_at_limit > CLAMPED:
        yield Finding(
            "clamped slopes",
            layer.name,
            f"{title} clamps 1/Δu at its limit for {layer.slopes_at_limit:.0%} of its spikes: the potential creeps "
            "over the threshold.",
            "Choose smaller time constants, call calibrate_gain(model, inputs) with more spikes_per_neuron, or raise "
            "membrane_slope_limit in SRMParameters.",
        )
    if not layer.by_value and "parameters" in layer.origins:
        spikes = "spikes" in layer.origins
        yield Finding(
            "between",
            layer.name,
            f"{title} has inputs that ordinary modules with parameters computed, which receive the gradient for "
            "spike times instead of the derivative.",
            'Put what stands between spiking layers into SRMAffine, or choose gradient="surrogate" in all layers.'
            if spikes
            else 'Make it with input_gradient="value".',
        )


def _find_in_output(layer: LayerReport) -> Iterator[Finding]:
    if layer.gradient == "event" and not layer.output and layer.silent_samples > SILENT_SAMPLES:
        if math.isnan(layer.spike_gradient):  # not trained
            return
        remedy = "Make it with output=True: silent neurons of the layer that a loss looks at learn then."
        if layer.kind == "SRMRecurrent":
            remedy = "Let an SRMLinear(…, output=True) follow it, whose silent neurons learn."
        yield Finding(
            "output",
            layer.name,
            f"{_sentence(layer.title)} is the last, and stays silent for {layer.silent_samples:.0%} of the samples, "
            "which then teach nothing.",
            remedy,
        )


def _find_in_gradients(layers: Sequence[LayerReport]) -> Iterator[Finding]:
    lower = "Lower the learning rate and start again; clip the gradient (torch.nn.utils.clip_grad_norm_)."
    for layer in layers:
        title = _sentence(layer.title)
        if not layer.finite_weights:
            yield Finding("bad weights", layer.name, f"{title} has weights that are NaN or infinite.", lower)
        elif math.isinf(layer.weight_gradient) or math.isinf(layer.spike_gradient):
            yield Finding("bad gradient", layer.name, f"{title} received a gradient that is NaN or infinite.", lower)
        if layer.weight_growth > WEIGHT_GROWTH:
            yield Finding(
                "growth",
                layer.name,
                f"{title} has weights {layer.weight_growth:.0f} times as large as at the start.",
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
        yield Finding(
            kind,
            layer.name,
            f"{_sentence(layer.title)} receives a gradient of {before:.1e} at its spikes, {behind.title} behind it "
            f"{after:.1e}: it {verb} between them.",
            remedy,
        )


def find_in_learning(learning: LearningReport | None) -> Iterator[Finding]:
    """What is conspicuous in losses and predictions."""
    if learning is None:
        return
    lower = "Lower the learning rate and start again."
    if not learning.finite:
        yield Finding("bad loss", None, "The loss became NaN or infinite.", lower)
        return
    enough = learning.steps >= FEWEST_STEPS
    falls = learning.last_loss < 0.9 * learning.first_loss
    judged = enough and learning.samples >= FEWEST_SAMPLES
    chance = judged and learning.at_chance
    losses = f"from {learning.first_loss:.3g} to {learning.last_loss:.3g} in {learning.steps} steps"
    if chance:
        yield Finding(
            "chance",
            None,
            f"{f'The loss falls, {losses}, but the' if falls else 'The'} accuracy of the last {learning.samples} "
            f"predictions, {learning.correct / learning.samples:.1%}, is that of chance: always naming the most "
            f"frequent class is right in {learning.most_frequent:.1%}.",
            "Check that labels belong to their samples (shuffled together, the same order), and that batch and time "
            "are not swapped; then try another learning rate.",
        )
    elif enough and not falls and not math.isnan(learning.last_loss) and not (judged and not learning.at_chance):
        yield Finding(
            "no descent",
            None,
            f"The loss does not fall: {losses}.",
            "Try another learning rate, ten times lower first; check that the optimizer holds the model's parameters.",
        )
    if judged and learning.predicted_share > max(0.95, learning.most_frequent + 0.05):
        yield Finding(
            "one class",
            None,
            f"Of the last {learning.samples} predictions {learning.predicted_share:.0%} name class "
            f"{learning.predicted}, the most frequent label has {learning.most_frequent:.0%}.",
            "Look whether the output layer fires (output=True under the event rule), and lower the learning rate.",
        )


def _sentence(title: str) -> str:
    return title[0].upper() + title[1:]
