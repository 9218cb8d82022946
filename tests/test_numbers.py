"""Numbers of every kind in every argument of the public functions and classes, and what is no number."""

import inspect
import math
import types
import typing
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import srm_triton
from srm_triton import (
    audit,
    compat,
    data,
    diagnosis,
    images,
    losses,
    networks,
    regression,
    resnet,
    sparse,
    training,
    verification,
)
from srm_triton.checks import as_number, check_number

X = torch.linspace(0, 1, 96).view(2, 6, 8)
IMAGES = torch.linspace(0, 1, 256).view(1, 2, 2, 8, 8)
TRAINS = (X > 0.4).float()
LABELS = torch.tensor([3, 5])
SPIKES = training.Network(readout="spikes")
PAIR = torch.rand(8, 8), torch.arange(8)


def calibrated(**options: Any) -> Any:
    return srm_triton.calibrate_gain(srm_triton.SRMLinear(8, 3), X, **options)


def watched(every: Any) -> Any:
    model = srm_triton.SRMLinear(8, 3)
    with srm_triton.watch(model, show=None, every=every) as watcher:
        for _ in range(5):
            model(X)
    return watcher.report().layers[0].passes


WHOLE, REAL = "whole", "real"
# what is called, and a good value for each of its numeric arguments; those of None have their own test below
CASES: dict[Any, tuple[Callable[..., Any], dict[str, Any]] | None] = {
    srm_triton.SRMParameters: None,  # test_parameters.py: tensors are kept as they are
    srm_triton.BatchNorm1d: (srm_triton.BatchNorm1d, {"num_features": 8, "eps": 0.25, "momentum": 0.5}),
    regression.LinearRegression: (
        regression.LinearRegression,
        {"tolerance": 0.25, "max_iterations": 3},
    ),
    sparse.ResNet18_2D: (sparse.ResNet18_2D, {"out_features": 3, "in_channels": 2, "width": 1}),
    srm_triton.SpikingResNet18_2D: (
        srm_triton.SpikingResNet18_2D,
        {"out_features": 3, "in_channels": 2, "width": 1, "time_gradient_scale": 0.5},
    ),
    sparse.resnet.BasicBlock2D: (sparse.resnet.BasicBlock2D, {"in_channels": 2, "out_channels": 3, "stride": 2}),
    resnet.SpikingBasicBlock2D: (
        resnet.SpikingBasicBlock2D,
        {"in_channels": 2, "out_channels": 3, "stride": 2, "time_gradient_scale": 0.5},
    ),
    srm_triton.SRMAffine: (
        lambda **options: srm_triton.SRMAffine(nn.Linear(8, 3), learn=("threshold",), **options),
        {"channels": 3, "time_gradient_scale": 0.5},
    ),
    srm_triton.SRMLinear: (
        srm_triton.SRMLinear,
        {"in_features": 8, "out_features": 3, "eps": 0.25, "time_gradient_scale": 0.5},
    ),
    srm_triton.SRMReadout: (srm_triton.SRMReadout, {"in_features": 8, "out_features": 3}),
    srm_triton.SRMRecurrent: (srm_triton.SRMRecurrent, {"in_features": 8, "out_features": 3}),
    **{
        layer: (
            layer,
            {
                **{"in_channels": 2, "out_channels": 4, "kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1},
                **{"groups": 2, "eps": 0.25, "time_gradient_scale": 0.5},
            },
        )
        for layer in (srm_triton.SRMConv1d, srm_triton.SRMConv2d, srm_triton.SRMConv3d)
    },
    srm_triton.SRMNeuron: (lambda **options: srm_triton.SRMNeuron(learn=("tau_m",), **options), {"channels": 3}),
    sparse.SparseLinear: (
        sparse.SparseLinear,
        {"in_features": 8, "out_features": 3, "density": 0.25},
    ),
    sparse.SparseRepresentation: (
        sparse.SparseRepresentation,
        {"in_features": 8, "atoms": 5, "sparsity": 0.25, "iterations": 3, "classes": 4},
    ),
    srm_triton.SpikeAvgPool2d: (
        lambda **options: srm_triton.SpikeAvgPool2d(**options)(IMAGES),
        {"kernel_size": 3, "stride": 2, "padding": 1},
    ),
    networks.DropoutOverTime: (networks.DropoutOverTime, {"probability": 0.25}),
    srm_triton.batch_norm: (
        lambda **options: srm_triton.batch_norm(X[0], **options),
        {"eps": 0.25, "dim": 1, "correction": 1},
    ),
    srm_triton.calibrate_gain: (calibrated, {"spikes_per_neuron": 2.0, "window": (1, 5), "tolerance": 0.25}),
    srm_triton.count_loss: (
        lambda **options: losses.count_loss(TRAINS, LABELS, **options),
        {"desired": 4.0, "undesired": 0.5},
    ),
    srm_triton.enhanced_count_loss: (
        lambda **options: losses.enhanced_count_loss(TRAINS, LABELS, **options),
        {"desired": 4.0, "undesired": 0.5},
    ),
    srm_triton.rate_cross_entropy: (lambda **o: losses.rate_cross_entropy(TRAINS, LABELS, **o), {"silent": -2.0}),
    srm_triton.first_spike_cross_entropy: (
        lambda **options: losses.first_spike_cross_entropy(TRAINS, LABELS, **options),
        {"scale": 0.5, "silent": -2.0},
    ),
    srm_triton.van_rossum_loss: (lambda **o: losses.van_rossum_loss(TRAINS, LABELS, **o), {"tau_s": 2.0}),
    images.denoise_tv: (
        lambda **options: images.denoise_tv(IMAGES[0], **options),
        {"weight": 0.25, "tolerance": 0.125, "max_iterations": 7, "channel_axis": 2},
    ),
    images.tv_objective: (
        lambda **o: images.tv_objective(IMAGES, IMAGES / 2, **o),
        {"weight": 0.25},
    ),
    srm_triton.encode_direct: (lambda **options: srm_triton.encode_direct(X, **options), {"steps": 3}),
    srm_triton.encode_rate: (lambda **options: srm_triton.encode_rate(X, **options), {"steps": 3}),
    srm_triton.encode_latency: (
        lambda **options: srm_triton.encode_latency(X, spacing="logarithmic", **options),
        {"steps": 3, "smallest": 0.125},
    ),
    sparse.soft_threshold: (
        lambda **options: sparse.soft_threshold(X, **options),
        {"threshold": 0.25},
    ),
    sparse.sparse_encode: (
        lambda **options: sparse.sparse_encode(X, torch.eye(8, 5), **options),
        {"sparsity": 0.25, "iterations": 3},
    ),
    sparse.sparse_statistics: (
        lambda **options: sparse.sparse_statistics(X, torch.eye(8), X, **options),
        {"sparsity": 0.25},
    ),
    srm_triton.spiking_network: (
        lambda **options: srm_triton.spiking_network("4C3-P2-5", (2, 8, 8), dropout=0.25, **options),
        {"classes": 3, "steps": 6, "padding": 1, "time_gradient_scale": 0.5},
    ),
    "spiking_network of features": (
        lambda **options: srm_triton.spiking_network("5", classes=3, steps=6, **options),
        {"inputs": 8, "dropout": 0.25},
    ),
    "spiking_network of images": (
        lambda **options: srm_triton.spiking_network("P2", classes=3, steps=6, **options),
        {"inputs": (2, 8, 8)},
    ),
    srm_triton.srm_linear: (
        lambda **options: input_gradient(srm_triton.srm_linear, X, torch.eye(3, 8), **options),
        {"time_gradient_scale": 0.5},
    ),
    srm_triton.srm_conv2d: (
        lambda **options: input_gradient(srm_triton.srm_conv2d, IMAGES, torch.ones(2, 1, 3, 3), **options),
        {"stride": 2, "padding": 2, "dilation": 2, "groups": 2, "time_gradient_scale": 0.5},
    ),
    srm_triton.time_constants: (srm_triton.time_constants, {"steps": 40, "channels": 3, "shortest": 2.5}),
    srm_triton.watch: (watched, {"every": 2}),
    srm_triton.Watcher: None,  # `watch` makes them
    compat.srmLinear: (
        lambda **options: compat.srmLinear(**options)(X),
        {
            **{"in_features": 8, "out_features": 3, "v_th": 0.5, "taum": 6.0, "taus": 4.0, "taug": 2.0, "eps": 0.25},
        },
    ),
    compat.srmConv2d: (
        lambda **options: compat.srmConv2d(**options)(IMAGES),
        {
            **{"in_channels": 2, "out_channels": 4, "kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1},
            **{"groups": 2, "v_th": 0.5, "taum": 6.0, "taus": 4.0, "taug": 2.0, "eps": 0.25},
        },
    ),
    compat.BN1dForward: (lambda **options: compat.BN1dForward(X[0], X[0, 0], X[0, 1], **options), {"eps": 0.25}),
    compat.BN1dBackward: (lambda **o: compat.BN1dBackward(X[0], X[0], X[0, 1], w=X[0, 2], **o), {"eps": 0.25}),
    data.Frames: (
        data.Frames,
        {"steps": 3, "sensor": (8, 6), "size": (4, 3), "polarities": 1, "duration": 20},
    ),
    data.stratified_split: (
        lambda **options: data.stratified_split(torch.arange(20) % 2, **options),
        {"samples": 4, "seed": 3},
    ),
    data.hold_out: (
        lambda **options: data.hold_out(data.LabelledImages(*PAIR, *PAIR, 8)._replace(train_labels=LABELS8), **options),
        {"samples": 4, "seed": 3},
    ),
    training.training_data: (
        lambda **options: training.training_data(PAIR, PAIR, **options).classes,
        {"classes": 8, "workers": 1},
    ),
    training.Samples: (lambda **options: training.Samples(*PAIR, **options).workers, {"workers": 1}),
    training.Data: (training.Data, {"workers": 1, "frame_size": (4, 3)}),
    training.Network: (
        training.Network,
        {"steps": 3, "dropout": 0.25, "time_gradient_scale": 0.5, "padding": 1, "spikes_per_neuron": 2.5},
    ),
    "Network of other constants": (training.Network, {"time_constants": (6.0, 4.0, 2.5)}),
    training.Loss: (
        lambda **o: training.Recipe(network=SPIKES, loss=training.Loss("count_loss", o)),
        {"desired": 4.0, "undesired": 0.5},
    ),
    training.Optimizer: (
        training.Optimizer,
        {
            **{"learning_rate": 0.5, "final_learning_rate": 0.25, "momentum": 0.5, "weight_decay": 0.5},
            **{"norm_weight_decay": 0.5, "clip_norm": 0.5},
        },
    ),
    training.Augmentation: (training.Augmentation, {"crop": 2, "normalization": (0.5, 0.25)}),
    training.build_network: (
        lambda **options: training.build_network(training.Recipe(), **options),
        {"shape": (2, 4, 4), "classes": 3},
    ),
    training.Schedule: (
        training.Schedule,
        {"epochs": 3, "batch_size": 8, "accumulation": 2, "warm_up": 0.5, "hold_out": 4},
    ),
    training.Recipe: (training.Recipe, {"seed": 3}),
    audit.audit: (lambda **o: audit.audit(networks=[], **o), {"seeds": 3, "refinements": (1, 2, 4, 8)}),
    verification.verify: (lambda **o: next(verification.verify(torch.device("cpu"), **o)), {"repeats": 1}),
}
LABELS8 = torch.arange(8) % 2
# of files, which have their own tests
OF_FILES = {"load_idx", "load_npz", "load_image_folder", "read_idx", "read_aedat"}


def input_gradient(function: Callable[..., Tensor], inputs: Tensor, weight: Tensor, **options: Any) -> Tensor:
    inputs = inputs.clone().requires_grad_()
    function(inputs, weight, **options).sum().backward()
    return inputs.grad


ARGUMENTS = [
    pytest.param(call, values, name, id=f"{getattr(case, '__name__', case)}-{name}")
    for case, (call, values) in ((case, found) for case, found in CASES.items() if found)
    for name in values
]


def outcome(call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What a call comes to, in values that compare."""
    torch.manual_seed(0)
    try:
        result = call(**arguments)
    except ValueError as error:  # of audit, which all numbers must have passed
        return str(error)
    if isinstance(result, nn.Module):
        return repr(result), {name: value.tolist() for name, value in result.state_dict().items()}
    if isinstance(result, Tensor):
        return result.tolist()
    return repr(result)


def kinds(value: Any) -> list[Any]:
    """Other numbers of the same value."""
    if isinstance(value, tuple):
        each = zip(*map(kinds, value), strict=True)
        return [*map(tuple, each)]
    if isinstance(value, int):
        return [np.int64(value), np.uint8(value), np.array(value), torch.tensor(value), torch.tensor([value]).short()]
    of_numpy = np.float32(value), np.float64(value), np.float16(value), np.array([[value]])
    return [*of_numpy, Fraction(value), torch.tensor(value), torch.tensor([value], dtype=torch.float64)]


@pytest.mark.filterwarnings("ignore:layer .* fires")
@pytest.mark.parametrize(("call", "values", "name"), ARGUMENTS)
def test_every_kind_of_number_is_the_number(call, values, name):
    expected = outcome(call, values)
    for other in kinds(values[name]):
        assert outcome(call, {**values, name: other}) == expected, other


@pytest.mark.parametrize(("call", "values", "name"), ARGUMENTS)
def test_what_is_no_number_is_named(call, values, name):
    value = values[name]
    first, *rest = value if isinstance(value, tuple) else (value,)
    bad = [
        True,
        np.True_,
        torch.tensor(True),
        "three",
        1j,
        torch.tensor([3, 3, 3, 3]),
        {},
        math.nan,
        math.inf,
    ]
    if isinstance(first, int):
        bad += [first + 0.5, float(first), np.float32(first), Fraction(first), 2**70]
        bad += [] if name == "channel_axis" else [-1]  # axes count from the end too
    for other in bad:
        wrong = (other, *rest) if isinstance(value, tuple) else other
        with pytest.raises((TypeError, ValueError), match=rf"^(\[\w+\] )?(options\.)?{name}\b"):
            call(**{**values, name: wrong})


def numeric(function: Any) -> set[str]:
    """The arguments whose hints allow a number."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    if unpacked := typing.get_args(hints.get("options", None)):
        hints |= typing.get_type_hints(unpacked[0])
    return {name for name, hint in hints.items() if name != "return" and holds_number(hint)}


def holds_number(hint: Any) -> bool:
    if hint in (int, float):
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, typing.Annotated):
        return any(map(holds_number, typing.get_args(hint)))
    return False


def test_no_argument_is_forgotten():
    modules = (srm_triton, losses, compat, data, training, audit, diagnosis, images, regression, sparse)
    public = [getattr(module, name) for module in modules for name in module.__all__]
    called = [item for item in public if inspect.isfunction(item) or (inspect.isclass(item) and is_made_by_users(item))]
    assert len(called) > 60
    for item in called:
        if item.__name__ in OF_FILES or CASES.get(item, ()) is None:
            continue
        known = {name for case, found in CASES.items() if found and is_of(item, case) for name in found[1]}
        assert numeric(item) <= known, f"{item.__name__}: {numeric(item) - known}"


def is_made_by_users(kind: type) -> bool:
    results = diagnosis.LearningReport, diagnosis.LayerReport
    return not issubclass(kind, (tuple, Exception, torch.autograd.Function, *results))


def is_of(item: Any, case: Any) -> bool:
    return case is item or (isinstance(case, str) and case.startswith(f"{item.__name__} of"))


def test_numbers_as_such():
    class Index:
        def __index__(self) -> int:
            return 4

    assert as_number(Index()) == 4 and type(as_number(np.float32(0.5))) is float
    assert check_number("x", np.longdouble(0.5), 0) == 0.5 and check_number("x", 10**300, 0) == 10**300
    for huge in (10**400, Fraction(10**400), -(10**400), Fraction(-(10**400)), math.inf, np.float32("inf")):
        with pytest.raises(ValueError, match="x must be finite and ≥ -"):
            check_number("x", huge, -math.inf)
    for foreign in (np.str_("5"), np.array("5"), np.datetime64(1, "s"), np.array([1.0, 2.0]), torch.ones(2), object()):
        with pytest.raises(TypeError, match="x must be a number, got"):
            check_number("x", foreign, 0)
    with pytest.raises(TypeError, match=r"^x must be a number, got .{0,101} of type Tensor$"):
        check_number("x", torch.ones(40, 40), 0)


def test_losses_that_are_observed():
    with srm_triton.watch(srm_triton.SRMLinear(8, 3), show=None) as watcher:
        for loss in (0.5, *kinds(0.5), *kinds(1)):
            watcher.observe(loss=loss)
        for wrong in (True, np.True_, "0.5", torch.tensor(0.5j)):
            with pytest.raises((TypeError, ValueError), match="loss must be a"):
                watcher.observe(loss=wrong)
    assert watcher.report().learning.last_loss == 1 and watcher.report().learning.first_loss == 0.5


def test_a_number_that_requires_a_gradient_would_not_receive_it():
    threshold = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match="threshold must not require a gradient, which it would not receive"):
        sparse.soft_threshold(X, threshold)
    with torch.no_grad():
        assert torch.equal(sparse.soft_threshold(X, threshold), sparse.soft_threshold(X, 0.5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_numbers_in_compiled_code():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, t: sparse.soft_threshold(x, t), fullgraph=True, backend="eager")
    for threshold in (0.25, 0.5, 0.75, 1):
        assert torch.equal(compiled(X, threshold), (X - threshold).clamp(min=0))


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_labels_of_every_integer_type(name):
    dtype = getattr(torch, name)
    labels = LABELS.to(dtype)
    for loss in (
        lambda labels: losses.count_loss(TRAINS, labels, desired=4, undesired=1),
        lambda labels: losses.enhanced_count_loss(TRAINS, labels, desired=4, undesired=1),
        lambda labels: losses.rate_cross_entropy(TRAINS, labels),
        lambda labels: losses.first_spike_cross_entropy(TRAINS, labels),
        lambda labels: losses.van_rossum_loss(TRAINS, labels),
        lambda labels: losses.stepwise_cross_entropy(TRAINS, labels),
    ):
        assert torch.equal(loss(labels), loss(LABELS))
    kept, chosen = data.stratified_split((torch.arange(20) % 4).to(dtype), 4)
    assert torch.equal(chosen, data.stratified_split(torch.arange(20) % 4, 4)[1]) and len(kept) == 16
    counted = torch.arange(2).to(dtype)
    for given in (counted, counted.numpy(), counted.tolist(), list(counted.numpy())):
        samples = training.training_data((X, given), (X, given))
        assert samples.classes == 2 and torch.equal(samples.test.labels, torch.arange(2))
    with srm_triton.watch(srm_triton.SRMLinear(8, 3), show=None) as watcher:
        watcher.observe(predictions=labels, labels=LABELS)
    assert watcher.report().learning.correct == 2
