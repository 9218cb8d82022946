"""Training: same seed, same run; interrupted and resumed, the same run still; damaged checkpoints are recognised."""

import importlib
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from srm_triton import calibrate_gain, spiking_network, training
from srm_triton.data import LabelledImages, load_digits, stratified_split
from srm_triton.files import write_atomically
from srm_triton.training import (
    CHECKPOINT,
    Augmentation,
    CheckpointError,
    Loss,
    Network,
    Optimizer,
    Recipe,
    RecipeError,
    Schedule,
    TrainingRun,
    change_recipe,
    load_checkpoint,
    training_data,
)

module = importlib.import_module("srm_triton.training.processes")

CPU = torch.device("cpu")
SMALL = Recipe(network=Network("12", steps=4), schedule=Schedule(epochs=3, batch_size=32))
# all that draws random numbers, keeps a state or depends on how far a run has come
EVERYTHING = replace(
    SMALL,
    network=Network("3C3-P2-12", steps=4, dropout=0.3, learn=("threshold",)),
    augmentation=Augmentation(flip=True, crop=1, normalization="data"),
    schedule=Schedule(epochs=4, batch_size=32, hold_out=30, warm_up=0.5, accumulation=2),
)
MOMENTUM = replace(SMALL, optimizer=Optimizer("sgd", 0.1, momentum=0.9))


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    digits = load_digits()
    counts = {"train_images": 100, "train_labels": 100, "test_images": 50, "test_labels": 50}
    return digits._replace(**{name: getattr(digits, name)[:count] for name, count in counts.items()})


def finish(run: TrainingRun) -> TrainingRun:
    while not run.finished:
        run.train_epoch()
    return run


def assert_same(run: TrainingRun, other: TrainingRun) -> None:
    assert run.history == other.history and len(run.history) == run.recipe.schedule.epochs
    for states in (
        (run.network.state_dict(), other.network.state_dict()),
        (run.best_model, other.best_model),
    ):
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert run.test() == other.test()


def test_epochs_are_those_of_a_plain_loop(data):
    run = finish(TrainingRun.start(replace(SMALL, schedule=Schedule(epochs=2, batch_size=32)), data, CPU))
    torch.manual_seed(0)
    network = spiking_network("12", (1, 8, 8), 10, steps=4)
    images = data.train_images[:, None, None].expand(-1, 4, -1, -1, -1)
    random = torch.Generator().manual_seed(0)
    calibrate_gain(network, images[torch.randperm(100, generator=random)[:32]])
    weights = [network.hidden1.weight, network.output.weight]
    others = [value for value in network.parameters() if all(value is not weight for weight in weights)]
    optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}])
    losses, correct = [], 0
    for epoch in range(2):
        order = torch.randperm(100, generator=random)
        for shape, high in (((100, 1), 2), ((100, 2), 1), ((), 2**62)):  # of augmentation and dropout, here unused
            torch.randint(high, shape, generator=random)
        for number, batch in enumerate(order.split(32)):
            outputs = network(images[batch])[:, -1]
            loss = F.cross_entropy(outputs, data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1.5e-3 * (1 + math.cos(math.pi * (4 * epoch + number) / 8))
            optimizer.step()
            losses.append(loss.item() * len(batch))
            correct += int((outputs.argmax(1) == data.train_labels[batch]).sum()) * (epoch == 1)
    torch.testing.assert_close(dict(run.network.state_dict()), dict(network.state_dict()), rtol=1e-6, atol=1e-7)
    assert run.history[1].loss == pytest.approx(sum(losses[4:]) / 100, rel=1e-6)
    assert run.history[1].train_accuracy == correct / 100
    tests = data.test_images[:, None, None].expand(-1, 4, -1, -1, -1)
    assert run.test().test_accuracy == (network(tests)[:, -1].argmax(1) == data.test_labels).float().mean()
    rate = network.hidden1(tests.flatten(2)).mean().item()
    assert run.history[1].firing_rates == pytest.approx({"hidden1": rate}, rel=1e-6)


@pytest.mark.parametrize("recipe", [SMALL, EVERYTHING, MOMENTUM])
def test_a_seed_repeats(recipe, data):
    runs = []
    for seed in (5, 6):
        torch.manual_seed(seed)  # global random numbers play no part
        before = torch.get_rng_state()
        runs.append(finish(TrainingRun.start(recipe, data, CPU)))
        runs[-1].diagnose()
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(*runs)
    first, *_, last = runs[0].history
    assert last.loss < first.loss
    assert list(last.firing_rates) == (["conv1", "hidden1"] if recipe is EVERYTHING else ["hidden1"])
    other = finish(TrainingRun.start(replace(recipe, seed=1), data, CPU))
    assert other.history != runs[0].history


@pytest.mark.parametrize("recipe", [SMALL, EVERYTHING, MOMENTUM])
@pytest.mark.parametrize(("method", "call", "epochs"), [("_step", 6, 1), ("_evaluate", 1, 0)])
def test_interrupted_in_an_epoch_and_resumed_is_the_same_run(recipe, method, call, epochs, data, tmp_path):
    expected = finish(TrainingRun.start(recipe, data, CPU))
    run = TrainingRun.start(recipe, data, CPU)
    original, calls = getattr(TrainingRun, method), itertools.count(1)

    def interrupted(*arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingRun, method, interrupted)
        training.train(run, tmp_path)
    torch.manual_seed(99)
    resumed = TrainingRun.resume(load_checkpoint(tmp_path / CHECKPOINT), data, CPU)
    assert len(resumed.history) == epochs
    training.train(resumed, tmp_path)
    assert_same(resumed, expected)
    assert_same(TrainingRun.resume(load_checkpoint(tmp_path / CHECKPOINT), data, CPU), expected)


def test_more_epochs_follow_the_cosine_of_all(data, tmp_path, monkeypatch):
    rates, step = [], TrainingRun._step

    def recorded(run, batch):
        step(run, batch)
        rates.append(run.optimizer.param_groups[1]["lr"])

    monkeypatch.setattr(TrainingRun, "_step", recorded)
    training.train(TrainingRun.start(SMALL, data, CPU), tmp_path)
    for epochs, stop in ((5, True), (None, False)):  # extended, killed, and resumed without saying so again
        checkpoint = load_checkpoint(tmp_path / CHECKPOINT)
        if epochs:
            recipe = change_recipe(checkpoint.recipe, {"schedule.epochs": epochs})
            checkpoint = checkpoint._replace(recipe=recipe)
        run = TrainingRun.resume(checkpoint, data, CPU)
        with pytest.MonkeyPatch.context() as patch:
            if stop:
                patch.setattr(TrainingRun, "train_epoch", lambda *arguments: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    training.train(run, tmp_path)
            else:
                training.train(run, tmp_path)
    of_three = [1.5e-3 * (1 + math.cos(math.pi * k / 12)) for k in range(12)]
    of_five = [1.5e-3 * (1 + math.cos(math.pi * k / 20)) for k in range(12, 20)]
    assert rates == pytest.approx(of_three + of_five, rel=1e-12)
    assert len(run.history) == 5 and run.history[:3] == finish(TrainingRun.start(SMALL, data, CPU)).history


def test_the_epoch_is_chosen_on_held_out_samples_alone(data, monkeypatch):
    recipe = replace(EVERYTHING, schedule=Schedule(epochs=4, batch_size=32, hold_out=30))
    run = TrainingRun.start(recipe, data, CPU)
    kept, chosen = stratified_split(data.train_labels, 30, seed=0)
    assert torch.equal(run.train_samples.labels, data.train_labels[kept])
    assert torch.equal(run.validation.inputs, data.train_images[chosen])
    accuracies = iter((0.25, 0.5, 0.5, 0.125))
    models, evaluate = [], TrainingRun._evaluate

    def evaluated(run, samples):
        assert samples is run.validation  # the test samples play no part
        models.append({name: value.clone() for name, value in run.network.state_dict().items()})
        return next(accuracies), {}

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_evaluate", evaluated)
        finish(run)
    result = run.test()
    assert result.epoch == 2 and all(torch.equal(run.best_model[name], models[1][name]) for name in models[1])
    assert all(torch.equal(value, models[3][name]) for name, value in run.network.state_dict().items())
    run.network.load_state_dict(models[1])
    assert result.test_accuracy == evaluate(run, run.data.test)[0]
    mean = data.train_images[kept].double().mean()
    assert run.normalization.mean.item() == pytest.approx(float(mean), rel=1e-6)  # held-out samples are not seen


class TestPieces:
    RECIPE = replace(
        SMALL,
        network=Network("12", steps=4, gradient="event", readout="spikes"),
        loss=Loss("count_loss", {"desired": 2.0, "undesired": 1.0}),
        schedule=Schedule(epochs=1, batch_size=30),
    )

    def gradients(self, recipe, data, monkeypatch):
        run = TrainingRun.start(recipe, data, CPU)
        run.network.double()
        steps = []

        def keep(run, batch):
            steps.append([parameter.grad.clone() for parameter in run.network.parameters()])
            run.optimizer.zero_grad()

        original = TrainingRun._prepare
        with monkeypatch.context() as patch:
            patch.setattr(TrainingRun, "_step", keep)
            patch.setattr(TrainingRun, "_prepare", lambda run, inputs: original(run, inputs).double())
            return run, steps, run.train_epoch()

    @pytest.mark.parametrize("parts", [2, 4, 30])
    def test_pieces_of_a_batch_equal_the_whole(self, parts, data, monkeypatch):
        _, expected, record = self.gradients(self.RECIPE, data, monkeypatch)
        recipe = change_recipe(self.RECIPE, {"schedule.accumulation": parts})
        run, result, other = self.gradients(recipe, data, monkeypatch)
        assert len(expected) == len(result) == 4 == run.batches  # 30, 30, 30 and 10 samples
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-15)
        assert other.loss == pytest.approx(record.loss, rel=1e-6)
        assert (other.train_accuracy, other.accuracy) == pytest.approx((record.train_accuracy, record.accuracy))
        assert other.firing_rates == pytest.approx(record.firing_rates, rel=1e-12)

    @pytest.mark.parametrize("count", [2, 3])
    def test_parts_of_processes_are_the_whole(self, count, monkeypatch):
        steps, samples = [0] * count, []
        for rank in range(count):
            monkeypatch.setattr(module, "processes", lambda rank=rank: training.Processes(rank, count))
            for piece in module.own_pieces(100, Schedule(batch_size=33, accumulation=2)):  # 33, 33, 33 and 1
                steps[rank] += piece.last
                samples += piece.positions[: piece.samples].tolist()
                assert piece.batch == (1 if 99 in piece.positions else 33) and len(piece.positions)
        assert steps == [4] * count and sorted(samples) == list(range(100))


def test_bfloat16_is_near_float32(data):
    runs = [
        TrainingRun.start(change_recipe(SMALL, {"schedule.precision": precision}), data, CPU)
        for precision in ("float32", "bfloat16")
    ]
    dtypes = []
    hook = runs[1].network.hidden1.register_forward_hook(lambda layer, inputs, spikes: dtypes.append(spikes.dtype))
    exact, rough = (run.train_epoch() for run in runs)
    hook.remove()
    assert set(dtypes) == {torch.bfloat16} and rough.loss == pytest.approx(exact.loss, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in runs[1].network.parameters())
    assert rough.loss != exact.loss


def test_sequences_of_a_data_set_train_as_tensors_do(data):
    images = data.train_images[:, None].expand(-1, 4, -1, -1) * torch.tensor([1.0, 0.0, 0.5, 1.0])[:, None, None]
    as_set, as_tensors = TensorDataset(images, data.train_labels), (images, data.train_labels)
    runs = [
        finish(TrainingRun.start(SMALL, training_data(part, part, over_time=True), CPU))
        for part in (as_set, as_tensors)
    ]
    assert_same(*runs)
    sample, inputs, label = runs[0].sample(3)
    assert torch.equal(sample, images[3]) and inputs.shape == (1, 4, 1, 8, 8) and label == data.train_labels[3]
    with pytest.raises(RecipeError, match=r"\[network\] steps must be 4, those of the data, got 8"):
        TrainingRun(Recipe(), training_data(as_tensors, as_tensors, over_time=True), CPU)


def test_what_does_not_go_with_the_data(data):
    with pytest.raises(RecipeError, match=r"\[schedule\] hold_out: samples must be below 100"):
        TrainingRun(change_recipe(SMALL, {"schedule.hold_out": 100}), data, CPU)
    features = (data.train_images.flatten(1), data.train_labels)
    with pytest.raises(RecipeError, match=r"\[augmentation\] must be left out for inputs that are no images"):
        TrainingRun(change_recipe(SMALL, {"augmentation.flip": True}), training_data(features, features), CPU)
    run = TrainingRun.start(SMALL, training_data(features, features), CPU)
    assert run.network.hidden1.weight.shape == (12, 64) and run.train_epoch().loss > 0


def test_clipping(data, monkeypatch):
    run = TrainingRun.start(change_recipe(SMALL, {"optimizer.clip_norm": 0.01}), data, CPU)
    norms = []

    def step(*arguments):
        norms.append(math.hypot(*(parameter.grad.norm() for parameter in run.network.parameters())))

    monkeypatch.setattr(run.optimizer, "step", step)
    run.train_epoch()
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)
    run.recipe = change_recipe(SMALL, {"optimizer.clip_norm": 0})
    run.train_epoch()
    assert min(norms[4:]) > 0.1


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def path(data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    run = TrainingRun.start(change_recipe(SMALL, {"schedule.hold_out": 20}), data, CPU)
    run.train_epoch()
    run.save(path)
    return path


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "pickle"])
def test_damaged_checkpoints(damage, path):
    content = path.read_bytes()
    weight = torch.load(path, weights_only=True)["model"]["output.weight"].numpy().tobytes()
    place = content.index(weight)
    flipped = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
    if damage == "pickle":
        torch.save(torch.nn.Linear(2, 2), path)  # more than weights_only=True allows
    else:
        path.write_bytes({"cut": content[:-100], "flipped": flipped, "text": b"hello", "empty": b""}[damage])
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.pt: expected a checkpoint, found a damaged or foreign file"
    ):
        load_checkpoint(path)


def broken(path, change):
    """Changes a checkpoint's content, by a function or by values of fields; None removes one."""
    content = torch.load(path, weights_only=True)
    if callable(change):
        change(content)
    else:
        content = {name: value for name, value in {**content, **change}.items() if value is not None}
    torch.save(content, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": None}, "expected a checkpoint of `srm-triton train`, found another"),
        ({"version": 1}, "expected format version 3, found 1"),
        ({"recipe": {"network": {"steps": -1}}}, r"expected the fields of version 3, found others .*steps must be"),
        ({"recipe": {"depth": 1}}, "must have no other keys than"),
        ({"history": [{"epoch": 1}]}, "expected the fields of version 3"),
        (lambda content: content["history"].append(content["history"][0]), "expected at most 3 epochs from 1 on"),
        (lambda content: content["history"][0].update(loss="low"), r"\[history\] loss must be a number, got 'low'"),
        ({"optimizer": None}, "expected the fields of version 3, found others .*optimizer"),
        ({"other": 1}, "must have no other keys than .*, got 'other'"),
        (lambda content: content["model"].update({"output.weight": torch.ones(3, 3)}), r"size mismatch for output\.w"),
        (lambda content: content["best_model"].pop("output.weight"), r"Missing key.*output\.weight"),
        (lambda content: content["optimizer"].pop("output.weight"), "found the optimizer's state of"),
        (lambda content: content["optimizer"]["output.weight"].pop("step"), "another optimizer's state of output.wei"),
        (
            lambda content: content["optimizer"]["output.weight"].update(exp_avg=torch.ones(3, 3)),
            r"another optimizer's state of output.weight, .*'exp_avg': \[3, 3\]",
        ),
        ({"random_state": torch.ones(3)}, "expected the state of .*, found"),
        ({"random_state": torch.ones(3, dtype=torch.uint8)}, "expected the state of .*, found"),
        ({"data_checksum": 1}, "expected the samples that its run began with, found others"),
        ({"shape": [1, 0, 8]}, "expected .* found"),
    ],
)
def test_checkpoints_of_other_content(change, message, path, data):
    broken(path, change)
    with pytest.raises(CheckpointError, match=message):
        TrainingRun.resume(load_checkpoint(path), data, CPU)


@pytest.mark.parametrize("wrong", [None, 1.5, "text", [1], {"a": "b"}, torch.ones(2)])
def test_a_wrong_type_in_any_field_is_an_error_of_the_checkpoint(wrong, path, data):
    good = torch.load(path, weights_only=True)
    for name, value in good.items():
        if name == "seconds" and isinstance(wrong, float):
            continue
        torch.save({**good, name: wrong}, path)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt: expected"):
            TrainingRun.resume(load_checkpoint(path), data, CPU)
        if isinstance(value, dict):  # one level further down
            inner = next(iter(value))
            torch.save({**good, name: {**value, inner: wrong}}, path)
            if (name, inner, type(wrong)) != ("recipe", "note", str):
                with pytest.raises(CheckpointError, match=r"checkpoint\.pt: expected"):
                    TrainingRun.resume(load_checkpoint(path), data, CPU)


def leaves(value, path=()):
    """What a checkpoint holds, with its place."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))
    if not items:
        yield path, value


def replaced(value, path, other):
    if not path:
        return other
    items = dict(value) if isinstance(value, dict) else list(value)
    items[path[0]] = replaced(items[path[0]], path[1:], other)
    return items


def others(value):
    """Values of other types."""
    if isinstance(value, torch.Tensor):
        other = value.float() if value.dtype != torch.float32 else value.double()
        return [0.5, value.bool(), value.to("meta"), other, *([value * math.nan] if value.is_floating_point() else [])]
    return [torch.ones(2, 2), 0.5j]


def test_a_wrong_type_in_any_leaf_is_an_error_of_the_checkpoint(path, data):
    good = torch.load(path, weights_only=True)
    count = 0
    for place, value in leaves(good):
        for other in others(value):
            torch.save(replaced(good, place, other), path)
            with pytest.raises(CheckpointError, match=r"^\S*checkpoint\.pt: [^\n]*$"):
                TrainingRun.resume(load_checkpoint(path), data, CPU)
            count += 1
    assert count > 150


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": "long"}, r"\[checkpoint\] seconds must be a number, got 'long'"),
        ({"seconds": -1.0}, "seconds must be finite and ≥ 0"),
        ({"best_model": {}}, "found no best_model"),
        ({"history": []}, "found a best_model"),
        ({"model": {}}, "Missing key"),
        (lambda content: content["history"][0]["firing_rates"].clear(), "found firing_rates of no layer"),
        (lambda content: content["recipe"]["network"].update(notation="x"), r"\[network\] notation must consist"),
        (lambda content: content["best_model"]["hidden1.neuron.tau_m"].fill_(0.5), "tau_m must be > 1, got 0.5"),
        (
            lambda content: content["optimizer"]["output.weight"].update(exp_avg=torch.ones(())),
            "another optimizer's state of output.weight",
        ),
    ],
)
def test_what_a_checkpoint_holds_goes_together(change, message, path, data):
    broken(path, change)
    with pytest.raises(CheckpointError, match=message):
        TrainingRun.resume(load_checkpoint(path), data, CPU)


def test_other_samples(path, data):
    for other in (data.test_images.flip(0), data.test_images[1:]):
        changed = data._replace(test_images=other, test_labels=data.test_labels[: len(other)])
        with pytest.raises(CheckpointError, match="expected the samples that its run began with, found others"):
            TrainingRun.resume(load_checkpoint(path), changed, CPU)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path.with_name("none.pt"))
