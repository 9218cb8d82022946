"""Recipes: what they hold, what they refuse, the networks, losses and learning rates that they stand for."""

import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from srm_triton import losses
from srm_triton.layers import WeightedLayer
from srm_triton.training import (
    Augmentation,
    Data,
    Loss,
    Network,
    Optimizer,
    Recipe,
    RecipeError,
    Schedule,
    build_network,
    built_in_recipes,
    change_recipe,
    load_recipe,
)
from srm_triton.training.network import record
from srm_triton.training.objective import compute_loss, predict_classes
from srm_triton.training.optimizer import build_optimizer, learning_rate

SHAPES = {"cifar-10": (3, 32, 32), "n-mnist": (2, 34, 34), "dvs-gesture": (2, 48, 48), "digits": (1, 8, 8)}


def write(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", built_in_recipes())
def test_built_in_recipes_are_read_and_built(name, monkeypatch):
    monkeypatch.setattr(WeightedLayer, "_initialise", staticmethod(lambda weight, rule: None))  # takes seconds
    recipe = load_recipe(name)
    assert ("not run here" in recipe.note) == (name not in ("digits", "digits-deep", "fashion-mnist"))
    network = build_network(recipe, SHAPES.get(recipe.data.name, (1, 28, 28)), 10)
    assert network.output.out_features == 10
    assert recipe.loss.name == ("cross_entropy" if recipe.network.readout == "membrane" else "enhanced_count_loss")


def test_what_a_file_says_and_leaves_out(tmp_path):
    path = write(
        tmp_path,
        """
        seed = 3
        [data]
        name = "my/images"
        [network]
        notation = "4C3-P2-20"
        steps = 5
        readout = "spikes"
        gradient = "event"
        time_constants = [5, 3.5, 2]
        learn = ["tau_m"]
        padding = 1
        keep = "spikes"
        [loss]
        name = "count_loss"
        desired = 4
        undesired = 0.5
        [optimizer]
        learning_rate = 1
        [augmentation]
        normalization = [0.1, 0.3]
        [schedule]
        warm_up = 0.5
        """,
    )
    expected = Recipe(
        seed=3,
        data=Data("my/images"),
        network=Network(
            "4C3-P2-20",
            5,
            "spikes",
            "event",
            time_constants=(5.0, 3.5, 2.0),
            learn=("tau_m",),
            padding=1,
            keep="spikes",
        ),
        loss=Loss("count_loss", {"desired": 4.0, "undesired": 0.5}),
        optimizer=Optimizer(learning_rate=1.0),
        augmentation=Augmentation(normalization=(0.1, 0.3)),
        schedule=Schedule(warm_up=0.5),
    )
    recipe = load_recipe(path)
    assert recipe == expected and isinstance(recipe.optimizer.learning_rate, float)
    assert recipe.network.dropout == 0 and recipe.schedule.hold_out == 0 and Recipe().loss.options == {}
    assert recipe.network != Recipe().network and load_recipe("digits") == Recipe()
    changed = change_recipe(recipe, {"loss.undesired": 0, "schedule.epochs": 7, "seed": 1})
    assert changed == replace(
        expected,
        seed=1,
        loss=Loss("count_loss", {"desired": 4.0, "undesired": 0.0}),
        schedule=Schedule(epochs=7, warm_up=0.5),
    )
    assert change_recipe(recipe, asdict(recipe)) == recipe
    network = build_network(recipe, (2, 8, 8), 7)
    assert network.conv1.weight.shape == (4, 2, 3, 3) and network.hidden1.weight.shape == (20, 64)
    assert network.hidden1.rules.keep == "spikes"
    assert network.output.neuron.tau_s.eq(3.5).all() and network.output.neuron.tau_m.requires_grad


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[schedule]\nepoch = 3", r"\[schedule\] must have no other keys than epochs, batch_size, .*, got 'epoch'"),
        ("[neurons]\nsteps = 3", r"must have no other keys than note, seed, data, .*, got 'neurons'"),
        ("schedule = 3", "schedule must be a table, got 3"),
        ("[schedule]\nepochs = 1.5", r"\[schedule\] epochs must be an int, got 1.5 of type float"),
        ("[schedule]\nepochs = true", r"\[schedule\] epochs must be an int, got True"),
        ("[schedule]\nepochs = 0", r"\[schedule\] epochs must be finite and ≥ 1, got 0"),
        ("seed = -1", "seed must be finite and ≥ 0, got -1"),
        ("seed = 9223372036854775808", r"seed must be below 2\*\*63"),
        ("[schedule]\nprecision = 'half'", r"precision must be one of \('float32', 'bfloat16'\), got 'half'"),
        ("[schedule]\nbatch_size = 4\naccumulation = 5", "accumulation must be at most the batch_size, 4, got 5"),
        ("[schedule]\nepochs = 4\nwarm_up = 5", "warm_up must be at most epochs, 4, got 5"),
        ("[optimizer]\nlearning_rate = 'high'", r"\[optimizer\] learning_rate must be a number, got 'high'"),
        ("[optimizer]\nlearning_rate = nan", r"\[optimizer\] learning_rate must be finite and > 0, got nan"),
        ("[optimizer]\nmomentum = 1.0", r"\[optimizer\] momentum must be below 1, got 1.0"),
        ("[network]\nbias = 1", r"\[network\] bias must be bool, got 1 of type int"),
        ("[network]\npadding = -1", r"padding must be one of \('same',\), got -1; or padding must be finite and ≥ 0"),
        ("[network]\nlearn = ['tau_g']", "learn must be one of .*, got 'tau_g'"),
        ("[data]\nframe_size = 3", "frame_size must be a list, got 3"),
        ("[loss]\nname = 'mse'", r"\[loss\] name must be one of .*, got 'mse'"),
        ("[loss]\nsmoothing = 0.1", "smoothing must be left out for cross_entropy, which takes label_smoothing"),
        ("[network]\ntime_constants = [5, nan, 3]", r"time_constants must be finite and ≥ -inf, got nan"),
        ("[loss]\nlabel_smoothing = 2", r"\[loss\] label_smoothing must be"),
        ("[loss]\nlabel_smoothing = 'a'", r"options.label_smoothing must be bool, .* must be a number, got 'a'"),
        ("[loss]\nname = 'count_loss'", r"name must be one of .* for the read-out 'membrane', got 'count_loss'"),
        (
            "[network]\nreadout = 'spikes'\n[loss]\nname = 'count_loss'\ndesired = 3",
            "undesired must be given for count_loss, which takes desired, undesired",
        ),
        (
            "[network]\nreadout = 'spikes'\n[loss]\nname = 'count_loss'\ndesired = 9\nundesired = 1",
            "desired and undesired must satisfy 0 ≤ undesired < desired ≤ 8",
        ),
        ("[data", "expected TOML, found another text"),
        ("\xff", "expected TOML"),
    ],
)
def test_recipes_that_cannot_be(text, message, tmp_path):
    path = write(tmp_path, "")
    path.write_bytes(text.encode("latin-1") if text == "\xff" else text.encode())
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_files_and_built_in_types():
    with pytest.raises(FileNotFoundError, match=r"none\.toml: expected a TOML file or one of .*digits-deep, "):
        load_recipe("none.toml")
    with pytest.raises(ValueError, match="epochs must be finite and ≥ 1, got 0"):
        Schedule(epochs=0)
    with pytest.raises(TypeError, match=r"name must be str, got 3 of type int"):
        Data(name=3)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network("P2x4"), r"\[network\] notation must leave something of inputs \(1, 8, 8\), got 'P2x4'"),
        (Network("5D"), r"\[network\] notation must consist of layers"),
        (Network(time_constants=(5.0, 3.0)), r"\[network\] time_constants must be 'spread' or three numbers"),
        (Network(time_constants=(0.5, 3.0, 3.0)), r"\[network\] tau_m must be"),
    ],
)
def test_networks_that_cannot_be(network, message):
    with pytest.raises(RecipeError, match=message):
        build_network(Recipe(network=network), (1, 8, 8), 10)


def test_a_network_depends_on_the_seed_alone():
    weights = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        weights.append(build_network(Recipe(seed=seed), (1, 8, 8), 10).hidden1.weight)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])


def test_decay_of_weights_and_of_all_else():
    network = build_network(Recipe(network=Network("4C3-P2-5", learn=("threshold",))), (1, 8, 8), 3)
    for name in ("adamw", "sgd"):
        optimizer = build_optimizer(network, Optimizer(name, weight_decay=0.3, norm_weight_decay=0.1, momentum=0.5))
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        named = {name: decays[id(p)] for name, p in network.named_parameters()}
        assert {name for name, decay in named.items() if decay == 0.3} == {
            "conv1.weight", "hidden1.weight", "output.weight"
        }  # fmt: skip
        assert named["hidden1.norm_weight"] == named["conv1.bias"] == named["conv1.neuron.raw_threshold"] == 0.1
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_learning_rates():
    settings, schedule = Optimizer(learning_rate=2.0, final_learning_rate=1.0), Schedule(epochs=4, warm_up=0.5)
    rates = [learning_rate(settings, schedule, batch, 4) for batch in range(16)]
    by_hand = [1.0, 2.0] + [1 + 0.5 * (1 + math.cos(math.pi * k / 14)) for k in range(14)]
    assert rates == pytest.approx(by_hand, rel=1e-15)
    constant = replace(schedule, learning_rate="constant")
    assert [learning_rate(settings, constant, batch, 3) for batch in range(3)] == pytest.approx([2 / 1.5, 2, 2])


def test_losses_and_predictions():
    torch.manual_seed(0)
    spikes, potentials = (torch.rand(5, 6, 3) < 0.4).float(), torch.randn(5, 6, 3)
    labels = torch.tensor([0, 1, 2, 1, 0])
    smooth = Loss("cross_entropy", {"label_smoothing": 0.2})
    for readout, outputs, logits in (("spikes", spikes, spikes.sum(1)), ("membrane", potentials, potentials[:, 5])):
        log = logits.double().log_softmax(1)
        expected = -(0.8 * log[range(5), labels] + 0.2 * log.mean(1)).mean()
        torch.testing.assert_close(compute_loss(smooth, readout, outputs, labels).double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(predict_classes(Loss(), "membrane", potentials), potentials[:, 5].argmax(1))
    steps = Loss("stepwise_cross_entropy")
    expected = sum(F.cross_entropy(potentials[:, t], labels) for t in range(6)) / 6
    torch.testing.assert_close(compute_loss(steps, "membrane", potentials, labels), expected)
    assert torch.equal(predict_classes(steps, "membrane", potentials), potentials.sum(1).argmax(1))
    first = Loss("first_spike_cross_entropy", {"silent": -2.0})
    expected = losses.first_spike_cross_entropy(spikes, labels, silent=-2.0)
    assert compute_loss(first, "spikes", spikes, labels) == expected
    assert torch.equal(predict_classes(first, "spikes", spikes), losses.predict_first_spike(spikes))
    assert torch.equal(predict_classes(Loss(), "spikes", spikes), losses.predict(spikes))
    assert not torch.equal(losses.predict(spikes), losses.predict_first_spike(spikes))


def test_recording_leaves_no_hooks():
    network = build_network(Recipe(network=Network("4C3-P2-5", steps=4)), (1, 8, 8), 3)
    inputs = torch.rand(2, 4, 1, 8, 8)
    outputs, spikes = record(network, inputs)
    assert torch.equal(outputs, network(inputs)) and list(spikes) == ["conv1", "hidden1"]
    assert torch.equal(spikes["conv1"], network.conv1(inputs))
    assert torch.equal(record(network, inputs, torch.mean)[1]["hidden1"], spikes["hidden1"].mean())
    assert not any(module._forward_hooks for module in network.modules())
