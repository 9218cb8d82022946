"""Watching changes nothing, measures what NumPy counts, names what is broken, and is quiet about what is not."""

import copy
import io
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srm_triton import (
    SpikeAvgPool2d,
    SRMConv2d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMReadout,
    SRMRecurrent,
    calibrate_gain,
    predict,
    training,
    watch,
)
from srm_triton.data import load_digits
from srm_triton.diagnosis import LearningReport, find_in_learning
from srm_triton.diagnosis.learning import binomial_tail
from srm_triton.layers import spiking_layers
from srm_triton.training import Loss, Network, Recipe, Schedule, TrainingRun

COMPILES = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own
DIGITS = load_digits()
IMAGES, LABELS = DIGITS.train_images.flatten(1), DIGITS.train_labels


def encode(images, steps=8):
    return images[:, None].expand(-1, steps, -1)


def network(gradient="event", parameters=None, output=True, hidden=(48,), **options):
    sizes = 64, *hidden
    layers = [SRMLinear(*pair, parameters, gradient=gradient, **options) for pair in zip(sizes, hidden, strict=False)]
    output = output and gradient != "surrogate"
    return nn.Sequential(*layers, SRMLinear(sizes[-1], 10, parameters, gradient=gradient, output=output, **options))


def loop(model, inputs=encode, labels=LABELS, *, rate=5e-3, epochs=2, axis=1, show=None, seed=0, watcher=None):
    """Trains, and returns what was seen; `inputs` makes a batch of images."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    order = torch.Generator().manual_seed(seed)
    with watch(model, show=show) as watcher:
        for _ in range(epochs):
            for batch in torch.randperm(len(labels), generator=order).split(64):
                counts = model(inputs(IMAGES[batch])).sum(axis)
                loss = F.cross_entropy(counts, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watcher.observe(loss=loss, predictions=counts.argmax(1), labels=labels[batch])
    return watcher.report()


def kinds(report):
    return {finding.kind for finding in report.findings}


def everything():
    return nn.Sequential(
        nn.Unflatten(2, (1, 8, 8)),
        SRMConv2d(1, 4, 3, padding="same", learn=("tau_m",)),
        SpikeAvgPool2d(2),
        nn.Flatten(2),
        SRMRecurrent(64, 12),
        SRMNeuron(),
        nn.Dropout(0.2),
        SRMLinear(12, 10, output=True),
    )


def train_a_little(watched, tmp_path):
    torch.manual_seed(1)
    model = everything()
    for module in model:
        if isinstance(module, SRMConv2d | SRMLinear):
            nn.init.constant_(module.norm_weight, 2.0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    results, before = [], [module.__dict__.copy() for module in model.modules()]

    def steps():
        for batch in torch.arange(96).split(32):
            spikes = model(encode(IMAGES[batch], 6))
            loss = F.cross_entropy(spikes.sum(1), LABELS[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            results.extend((spikes.detach(), *(p.grad.clone() for p in model.parameters())))

    if watched:
        with watch(model, show=None) as outer, watch(model[7], show=None), watch(model, show=None, every=2):
            steps()
            if watched == "raises":
                with pytest.raises(KeyError), watch(model, show=None):
                    raise KeyError
        assert [layer.passes for layer in outer.report().layers] == [3] * 4
    else:
        steps()
    for module, attributes in zip(model.modules(), before, strict=True):
        assert module.__dict__.keys() == attributes.keys() and not module._forward_hooks
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    return [*results, *model.state_dict().values(), torch.rand(3)], [*model.state_dict()]


@pytest.mark.parametrize("watched", [True, "raises"])
def test_nothing_changes(watched, tmp_path):
    (expected, names), (values, watched_names) = train_a_little(False, tmp_path), train_a_little(watched, tmp_path)
    assert names == watched_names and len(values) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(values, expected, strict=True))


def test_hooks_go_with_an_exception_and_what_is_wrong_is_said():
    model, said = network(parameters=SRMParameters(threshold=1e3)), []
    with pytest.raises(RuntimeError, match="diverged"), watch(model, show=said.append):
        model(encode(IMAGES[:4]))
        raise RuntimeError("diverged")
    assert not any(module._forward_hooks for module in model.modules())
    assert len(said) == 1 and said[0].startswith("Layer '0' (SRMLinear) does not fire")


def test_copies_made_within_do_not_report():
    model = network()
    with watch(model, show=None) as watcher:
        copied, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        saved = io.BytesIO()
        torch.save(model, saved)
        for other in (copied, loaded):
            assert torch.equal(other(encode(IMAGES[:4])), model(encode(IMAGES[:4])))
        model.requires_grad_(False)(encode(IMAGES[:4]))
    assert watcher.report().layers[0].passes == 3


# Measures, counted by NumPy


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("gradient", ["event", "original", "surrogate"])
def test_measures(batch_first, gradient):
    parameters = SRMParameters(threshold=torch.tensor([1.0, 0.1, 1e3, 1e-3]))
    layer = SRMLinear(3, 4, parameters, weight_norm=False, gradient=gradient, batch_first=batch_first)
    nn.init.constant_(layer.weight, 1.0)
    inputs = [torch.rand(5, 7, 3) ** 3 for _ in range(3)]
    spikes, gradients, weights = [], [], []
    with watch(layer, show=None) as watcher:
        for batch in inputs:
            out = layer(batch if batch_first else batch.transpose(0, 1))
            spikes.append(out.detach() if batch_first else out.detach().transpose(0, 1))
            factor = torch.rand_like(out)
            layer.zero_grad()
            (out * factor).sum().backward()
            gradients.append(np.linalg.norm(factor.numpy().ravel()))
            weights.append(np.linalg.norm(layer.weight.grad.numpy().ravel()))
    (report,) = watcher.report().layers
    fired = torch.cat(spikes).numpy()
    assert fired[..., 2].sum() == 0 and fired[..., 3].mean() > 0.95 and 0.6 < fired[..., 1].mean() < 0.9
    assert report.passes == 3 and report.steps == 7 and report.gradient == gradient
    assert report.rate == pytest.approx(fired.mean(), rel=1e-6)
    assert report.recent_rate == pytest.approx(fired.mean(), rel=1e-6)
    assert report.silent == 0.25 and report.saturated == 0.25
    # passes 1 and 2 in detail
    assert report.spike_gradient == pytest.approx(np.mean(gradients[:2]), rel=1e-5)
    assert report.weight_gradient == pytest.approx(np.mean(weights[:2]), rel=1e-5)
    if gradient == "surrogate":
        assert math.isnan(report.slopes_at_limit)
        return
    count = clamped = 0
    for batch in inputs[:2]:
        for current in batch.sum(2).double().numpy():
            for threshold in (1.0, 0.1, 1e3, 1e-3):
                u = s = 0.0
                for x in current:
                    s += x
                    previous, u = u, 0.8 * u + s / 3
                    s *= 2 / 3
                    if u > threshold:
                        count, clamped, u, s = count + 1, clamped + (u - previous <= 0.25), 0.0, 0.0
    assert 0 < clamped < count and report.slopes_at_limit == pytest.approx(clamped / count, abs=1e-12)
    assert report.slopes_at_zero == report.time_slopes_at_zero == 0


@pytest.mark.parametrize("batch_first", [True, False])
def test_one_neuron_a_sample(batch_first):
    """A current without an axis of features."""
    neuron, current = SRMNeuron(batch_first=batch_first), torch.ones(4, 6)
    current[1] = 0
    with watch(neuron, show=None) as watcher:
        spikes = neuron(current if batch_first else current.t())
    (report,) = watcher.report().layers
    assert report.rate == spikes.mean().item() > 0 and report.silent_samples == 0.25 and report.silent == 0


class Block(nn.Module):
    """Neurons alone, in a module that calls them as layers of the package do."""

    def __init__(self):
        super().__init__()
        self.fc, self.neuron = nn.Linear(64, 8), SRMNeuron()

    def forward(self, inputs):
        return self.neuron(self.fc(inputs))


def test_which_layers_spike():
    model = nn.Sequential(Block(), SRMRecurrent(8, 4), SRMConv2d(1, 1, 1), SRMReadout(4, 2))
    assert [name for name, _ in spiking_layers(model)] == ["0.neuron", "1", "2"]
    assert calibrate_gain(Block(), encode(IMAGES[:64])).keys() == {"neuron"}
    for function in (lambda model: calibrate_gain(model, torch.rand(1, 2, 3)), lambda model: watch(model).__enter__()):
        with pytest.raises(ValueError, match="model must contain a spiking layer"):
            function(SRMReadout(3, 2))


def test_slopes_at_zero_of_a_state_above_the_threshold():
    neuron, spikes = SRMNeuron(SRMParameters(tau_s=1.0)), []
    _, state = neuron(torch.zeros(2, 1, 3), return_state=True)
    with watch(neuron, show=None) as watcher:
        spikes.append(neuron(torch.zeros(2, 1, 3), state._replace(membrane=state.membrane + 4)))
    (report,) = watcher.report().layers
    assert spikes[0].all() and report.slopes_at_zero == 1 and not report.single_step
    assert "clamped slopes" in kinds(watcher.report())


def test_a_trace_that_is_negative_matters_to_the_rule_that_divides_by_it():
    """Long ago the current was far below 0, which τ_g remembers and the potential does not."""
    current = torch.tensor([-50.0, 0, 0, 0, 0, 0, 0, 0, 5]).view(1, -1, 1)
    for gradient in ("event", "original", "surrogate"):
        neuron = SRMNeuron(SRMParameters(tau_m=1.5, tau_s=1.0, tau_g=1e3), gradient=gradient)
        with watch(neuron, show=None) as watcher:
            assert neuron(current).sum() == 1
        assert ("no time gradient" in kinds(watcher.report())) == (gradient == "event")


def test_silent_samples_and_every():
    layer = SRMLinear(3, 4, weight_norm=False)
    nn.init.constant_(layer.weight, 1.0)
    with watch(layer, show=None, every=2) as watcher:
        for scale in (1.0, 0.0, 1.0):  # the second is not measured
            inputs = torch.ones(4, 6, 3) * scale
            inputs[0] = 0
            layer(inputs).sum().backward()
    (report,) = watcher.report().layers
    assert report.passes == 2 and report.silent_samples == 0.25 and not report.zero_inputs


@pytest.mark.parametrize(("successes", "trials", "share"), [(5, 10, 0.5), (0, 3, 0.2), (37, 200, 0.1), (3, 3, 0.3)])
def test_binomial(successes, trials, share):
    tail = sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(successes, trials + 1))
    assert binomial_tail(successes, trials, share) == pytest.approx(tail, rel=1e-10)


# Broken networks are named


def filled(value, gradient="event", hidden=(48,)):
    model = network(gradient, weight_norm=False, hidden=hidden)
    for layer in model:
        nn.init.normal_(layer.weight, value, abs(value) / 2)
    return model


def time_first(images):
    return images[None].expand(8, -1, -1)


def events_time_first(images):
    return (torch.rand(8, *images.shape) < images).float()


def with_gaps(images):
    return encode(images.where(images != 0.5, torch.nan))


def calibrated(model):
    calibrate_gain(model, encode(IMAGES[:64]))
    return model


SLOW = SRMParameters(tau_m=1001.0, tau_s=1000.0)
SHUFFLED = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("gradient", ["event", "surrogate"])
@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (lambda g: network(g, SRMParameters(threshold=1e3)), {}, {"dead", "one class", "chance"}),
        (lambda g: filled(1e-5, g), {"rate": 1e-6}, {"dead", "chance"}),
        (lambda g: filled(9.0, g), {"rate": 1e-4}, {"saturated", "chance"}),
        (network, {"rate": 1e2}, {"chance"}),
        (network, {"labels": SHUFFLED}, {"chance"}),
        (lambda g: network(g, SLOW), {}, {"slow"}),
        (network, {"inputs": time_first, "axis": 0, "epochs": 1}, {"axes"}),
        (network, {"inputs": events_time_first, "axis": 0, "epochs": 1}, {"axes"}),
        (network, {"inputs": partial(encode, steps=1), "epochs": 1}, {"one step"}),
        (network, {"inputs": with_gaps, "epochs": 1}, {"bad inputs", "bad weights"}),
        (network, {"inputs": lambda images: encode(images * 0), "epochs": 1}, {"zero inputs"}),
    ],
)
def test_broken(gradient, make, options, expected):
    assert expected <= kinds(loop(make(gradient), **options))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gradient", ["event", "original", "surrogate"])
def test_healthy(gradient, seed):
    torch.manual_seed(seed)
    said = []
    model = calibrated(network(gradient, hidden=(64, 48)[: 1 + seed % 2]))
    report = loop(model, seed=seed, show=said.append)
    assert said == [f"Nothing conspicuous in {2 + seed % 2} spiking layers."] and not report.findings
    assert report.learning.correct > 0.3 * report.learning.samples


def run(model, inputs, **options):
    with watch(model, show=None, **options) as watcher:
        for _ in range(3):
            outputs = model(inputs)
            outputs.sum().backward()
    return watcher.report()


INPUTS = encode(IMAGES[:32])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: nn.Sequential(SRMLinear(64, 32), SRMLinear(32, 10, gradient="surrogate")), "mixed gradients"),
        (
            lambda: nn.Sequential(SRMLinear(64, 32), SRMLinear(32, 10, gradient="original", output=True)),
            "mixed gradients",
        ),
        (
            lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), SRMLinear(32, 10, output=True, gradient="original")),
            "between",
        ),
        (lambda: nn.Sequential(nn.Linear(64, 32), SRMNeuron(), nn.Linear(32, 9), SRMNeuron(output=True)), "between"),
        (lambda: nn.Sequential(SRMLinear(64, 32), nn.Linear(32, 32), SRMLinear(32, 10, output=True)), "between"),
        (lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), SRMLinear(32, 10, output=True)), "between"),
        (
            lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), SRMLinear(32, 10, output=True, input_gradient="value")),
            None,
        ),
        (lambda: nn.Sequential(SRMRecurrent(64, 32), SRMLinear(32, 10, output=True)), None),
        (lambda: nn.Sequential(SRMLinear(64, 32), SRMLinear(32, 10)), "output"),
        (lambda: nn.Sequential(SRMLinear(64, 10, SRMParameters(threshold=3.0))), "output"),
        (lambda: nn.Sequential(SRMRecurrent(64, 10, SRMParameters(threshold=9.0))), "output"),
    ],
)
def test_rules(model, expected):
    model = model()
    if expected != "output" or len(model) > 1:
        for module in model.modules():
            if isinstance(module, SRMLinear):
                nn.init.constant_(module.norm_weight, 0.35 if expected == "output" else 2.0)
    if expected == "output":
        with torch.no_grad():
            model[-1].norm_weight.mul_(0.15)
    found = kinds(run(model, INPUTS)) - {"dead", "mostly silent"}
    assert found == ({expected} if expected else set())


@pytest.mark.parametrize(
    ("behind", "remedy"),
    [([], "output=True"), ([nn.Linear(10, 10)], "output=True"), ([SRMReadout(10, 10)], "calibrate_gain")],
)
def test_what_to_try_where_the_last_layer_is_silent(behind, remedy):
    layer = SRMLinear(64, 10)
    nn.init.constant_(layer.norm_weight, 0.35 * 0.15)
    inputs = INPUTS.clone()
    inputs[0] *= 100
    (finding,) = (f for f in run(nn.Sequential(layer, *behind), inputs).findings if f.kind == "output")
    assert remedy in finding.remedy


def test_a_network_that_falls_silent_is_said_while_it_trains():
    model, said = calibrated(network()), []
    with watch(model, show=said.append):
        for number in range(40):
            model(INPUTS)
            if number == 4:
                nn.init.constant_(model[0].norm_weight, 1e-9)
            if number < 16:
                assert not said
        assert len(said) == 1 and "Layer '0' (SRMLinear) fell silent and receives no gradient" in said[0]
    assert len(said) == 1  # once


def test_weights_that_grow_and_gradients_that_vanish_and_explode():
    model = calibrated(network(hidden=(32, 32)))
    for factor, kind in ((1e-9, "vanishing"), (1e9, "exploding")):
        with watch(model, show=None) as watcher:
            spikes = model[0](INPUTS)
            between = _Scaled.apply(spikes, factor)
            model[2](model[1](between)).sum().backward()
        assert kind in kinds(watcher.report()), watcher.report()
    with watch(model, show=None) as watcher:
        model(INPUTS)
        with torch.no_grad():
            model[1].weight.mul_(1e4)
    assert [f[:2] for f in watcher.report().findings] == [("growth", "1")]


def test_mostly_silent_and_a_gradient_that_is_not_finite():
    threshold = torch.full((100,), 1e3).index_fill(0, torch.tensor([0, 1]), 1.0)
    layer = SRMLinear(64, 100, SRMParameters(threshold=threshold), output=True)
    nn.init.constant_(layer.norm_weight, 2.0)
    for factor, expected in ((1.0, {"mostly silent"}), (math.nan, {"mostly silent", "bad gradient"})):
        with watch(layer, show=None) as watcher:
            (layer(INPUTS).sum() * factor).backward()
        assert watcher.report().layers[0].silent == 0.98 and kinds(watcher.report()) == expected


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, factor):
        ctx.factor = factor
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


# Learning


def test_observing():
    model = network()
    with watch(model, show=None) as watcher:
        for _ in range(30):
            watcher.observe(loss=1.0)
        assert kinds(watcher.report()) == {"unseen", "no descent"}
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
            watcher.observe(predictions=torch.tensor([1, 2]), labels=torch.tensor([1, 0], dtype=dtype))
        learning = watcher.report().learning
        assert (learning.samples, learning.correct, learning.most_frequent) == (6, 3, 0.5)
        watcher.observe(loss=torch.tensor(torch.nan))
        assert "bad loss" in kinds(watcher.report())


def test_observing_nothing():
    with watch(network(), show=None) as watcher:
        watcher.observe(predictions=torch.tensor([]).long(), labels=torch.tensor([]).long())
    assert watcher.report().learning.samples == 0


@pytest.mark.parametrize(
    ("first", "last", "correct", "expected"),
    [
        (2.3, 1.0, 100, {"chance"}),
        (2.3, 1.0, 110, {"chance"}),
        (2.3, 1.0, 150, set()),
        (0.1, 0.1, 950, set()),
        (2.3, 2.3, 100, {"chance"}),
    ],
)
def test_learning(first, last, correct, expected):
    learning = LearningReport(50, first, last, True, 1000, correct, 0.1)
    found = list(find_in_learning(learning))
    assert {finding.kind for finding in found} == expected
    assert all(("The loss falls" in str(finding)) == (last < first) for finding in found)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"loss": "low"}, TypeError, "loss must be a number or a scalar tensor, got str"),
        ({"loss": torch.ones(2)}, ValueError, r"loss must be a scalar, got \[2\]"),
        ({"labels": torch.tensor([1])}, ValueError, "predictions must be given too, got None"),
        ({"labels": [1], "predictions": torch.tensor([1])}, TypeError, "labels must be a tensor of integers.*got list"),
        (
            {"labels": torch.tensor([1]), "predictions": torch.ones(1)},
            TypeError,
            "predictions must be a tensor of integers, got torch.float32",
        ),
        (
            {"labels": torch.tensor([1]), "predictions": torch.tensor([1, 2])},
            ValueError,
            r"predictions must have the shape of labels, \[1\], got \[2\]",
        ),
        ({"labels": torch.tensor([[1]]), "predictions": torch.tensor([1])}, ValueError, r"labels must have the shape"),
    ],
)
def test_bad_observations(arguments, error, message):
    with watch(network(), show=None) as watcher, pytest.raises(error, match=message):
        watcher.observe(**arguments)


@COMPILES
def test_bad_arguments():
    for arguments, error, message in (
        (("model",), TypeError, "model must be a torch.nn.Module, got str"),
        ((nn.Linear(2, 2),), ValueError, "model must contain a spiking layer"),
        ((torch.compile(network()),), ValueError, "model must not be compiled"),
    ):
        with pytest.raises(error, match=message), watch(*arguments):
            pass
    inner = network()
    inner[0].compile()
    with pytest.raises(ValueError, match=r"got torch\.compile at '0'"), watch(inner):
        pass
    for options, error in (({"every": 0}, ValueError), ({"show": 3}, TypeError)):
        with pytest.raises(error), watch(network(), **options):
            pass


@COMPILES
def test_code_compiled_around_the_model_is_told():
    model = network()
    with watch(model, show=None) as watcher:
        compiled = torch.compile(lambda inputs: model(inputs), backend="aot_eager")
        spikes = compiled(INPUTS)
    assert torch.equal(spikes, model(INPUTS))
    assert kinds(watcher.report()) == {"unseen"}


def test_a_report_as_text():
    report = run(calibrated(network()), INPUTS)
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["layer", "rate", "silent"] and len(lines) == 4
    assert lines[-1] == "Nothing conspicuous in 2 spiking layers."
    assert float(lines[1].split()[1]) == pytest.approx(report.layers[0].rate, abs=1e-3)
    assert predict(network()(INPUTS)).shape == (32,)


# `srm-triton train`

RECIPE = Recipe(
    network=Network("32", readout="spikes", gradient="event", time_constants=(5.0, 3.0, 2.5), bias=False),
    loss=Loss("count_loss", {"desired": 4.0, "undesired": 0.0}),
    schedule=Schedule(epochs=3),
)


def warnings_of(run, tmp_path, capsys):
    training.train(run, tmp_path)
    return [line for line in capsys.readouterr().err.splitlines() if "srm-triton: warning: " in line]


def test_training_is_not_warned_of_if_healthy(capsys, tmp_path):
    run = TrainingRun.start(RECIPE, DIGITS, torch.device("cpu"))
    assert warnings_of(run, tmp_path, capsys) == []


def test_training_warns_before_the_first_epoch(capsys, tmp_path, monkeypatch):
    run = TrainingRun.start(RECIPE, DIGITS, torch.device("cpu"))
    nn.init.zeros_(run.network.hidden1.norm_weight)
    monkeypatch.setattr(TrainingRun, "train_epoch", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.train(run, tmp_path)
    assert "Layer 'hidden1' (SRMLinear) does not fire" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("dead", ["Layer 'hidden1' (SRMLinear) does not fire", "is that of chance", "is that of chance"]),
        ("silence", ["Layer 'hidden1' (SRMLinear) does not fire", "is that of chance", "is that of chance"]),
        ("labels", ["is that of chance", "is that of chance"]),
    ],
)
def test_training_warns(change, expected, capsys, tmp_path, monkeypatch):
    data = DIGITS._replace(train_labels=SHUFFLED) if change == "labels" else DIGITS
    run = TrainingRun.start(RECIPE, data, torch.device("cpu"))
    hidden = run.network.hidden1
    if change == "dead":
        nn.init.zeros_(hidden.norm_weight)
    elif change == "silence":
        original = TrainingRun.train_epoch

        def diverge(run, *arguments):
            hidden.neuron.threshold = 1e6
            return original(run, *arguments)

        monkeypatch.setattr(TrainingRun, "train_epoch", diverge)
    found = warnings_of(run, tmp_path, capsys)
    assert len(found) == len(expected), found
    assert all(part in line for part, line in zip(expected, found, strict=True)), found
