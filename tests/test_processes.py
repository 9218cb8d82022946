"""Several processes: killed ones lose nothing that they had finished, and those that train together stay together.

A server that has imported everything forks them, so that a new one takes milliseconds.
"""

import contextlib
import faulthandler
import functools
import itertools
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # which PyTorch imports anyway, but only as a process runs its first operation
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from srm_triton import (
    BatchNorm1d,
    SpikeAvgPool2d,
    SRMConv2d,
    SRMLinear,
    SRMNeuron,
    SRMParameters,
    SRMReadout,
    SRMRecurrent,
    count_loss,
    plots,
    training,
)
from srm_triton.cli import main
from srm_triton.data import LabelledImages
from srm_triton.files import partial
from srm_triton.sparse import SparseLinear, SparseRepresentation
from srm_triton.training import Network, Recipe, Schedule, TrainingRun, load_checkpoint
from srm_triton.tuning import read, update

Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start() -> Start:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # or it would not find this module, and say nothing
        forkserver.ensure_running()

    def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
        process = context.Process(target=function, args=arguments, daemon=True)
        process.start()
        return process

    return start


# Tuning


def tune_without_end(path: Path, writer: int, finished: Connection) -> None:
    for number in itertools.count():
        case = f"{writer}, {number % 64}"
        update(path, {case: {"block": 32}})
        finished.send(case)


def everything_from(connection: Connection) -> Iterator[str]:
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


def test_tuning_keeps_what_killed_processes_had_finished(start, tmp_path):
    moments = random.Random(0)
    file = tmp_path / "tuning.json"
    finished: set[str] = set()
    for number in (0, 3):
        writers = []
        for writer in range(number, number + 3):
            reader, sender = multiprocessing.Pipe(duplex=False)
            writers.append((start(tune_without_end, file, writer, sender), reader))
            sender.close()
        for process, reader in writers:
            reader.poll(None)  # until there is a first entry
            time.sleep(moments.uniform(0, 0.03))
            read(file)  # an error, if the file is damaged
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            finished.update(everything_from(reader))
        assert finished <= read(file).keys()
    assert {path.name for path in tmp_path.iterdir()} <= {"tuning.json", "tuning.json.lock", ".tuning.json.partial"}


# Training


EPOCHS = 12


def train_or_resume(folder: Path) -> None:
    tqdm.set_lock(threading.RLock())  # its own would outlive a killed process
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(80, 8, 8, generator=generator), torch.arange(80) % 10
    data = LabelledImages(images[:60], labels[:60], images[60:], labels[60:], classes=10)
    path = folder / training.CHECKPOINT
    if path.exists():
        run = TrainingRun.resume(load_checkpoint(path), data, torch.device("cpu"))
    else:
        recipe = Recipe(network=Network("12", steps=4), schedule=Schedule(epochs=EPOCHS, batch_size=16))
        run = TrainingRun.start(recipe, data, torch.device("cpu"))
    training.train(run, folder)


def wait_for_writing(path: Path, process: BaseProcess) -> None:
    def state() -> list[tuple[int, int]]:
        stats = []
        for file in (path, partial(path)):
            with contextlib.suppress(FileNotFoundError):
                stats.append((os.stat(file).st_size, os.stat(file).st_mtime_ns))
        return stats

    before = state()
    while state() == before and process.is_alive():
        time.sleep(1e-4)


def test_training_killed_again_and_again_ends_as_if_it_never_was(start, tmp_path):
    moments = random.Random(0)
    checkpoints = [tmp_path / name / training.CHECKPOINT for name in ("whole", "killed")]
    for path in checkpoints:
        path.parent.mkdir()
    undisturbed = start(train_or_resume, checkpoints[0].parent)
    path = checkpoints[1]
    epochs = [0]
    while epochs[-1] < 3:
        process = start(train_or_resume, path.parent)
        for _ in range(moments.randrange(1, 9)):  # a checkpoint makes several: a file appears, grows, takes a place
            wait_for_writing(path, process)
        time.sleep(moments.choice((0, moments.uniform(0, 0.02))))
        process.kill()
        process.join()
        epochs.append(len(load_checkpoint(path).history) if path.exists() else 0)
    assert epochs == sorted(epochs) and epochs[-1] < EPOCHS  # no epoch was lost, and it was killed before the end
    resumed = start(train_or_resume, path.parent)
    for process in (undisturbed, resumed):
        process.join(300)
        assert process.exitcode == 0
    expected, result = map(load_checkpoint, checkpoints)
    assert result.history == expected.history and len(result.history) == EPOCHS
    assert torch.equal(result.random_state, expected.random_state)
    assert all(torch.equal(result.model[name], value) for name, value in expected.model.items())


# Training on several devices


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolution = SRMConv2d(1, 4, 3, padding="same", dtype=torch.float64)
    return nn.Sequential(convolution, SpikeAvgPool2d(2), nn.Flatten(2), SRMLinear(36, 4, dtype=torch.float64))


def train_on_part(rank: int, ranks: int, static_graph: bool, folder: Path) -> None:
    """Steps on one of `ranks` parts of each batch, together with the processes that take the others."""
    model: nn.Module = network()
    if ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
        )
        model = DistributedDataParallel(model, static_graph=static_graph)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(6):
        images = torch.rand(8, 1, 1, 6, 6, dtype=torch.float64, generator=generator).expand(-1, 8, -1, -1, -1)
        labels = torch.randint(4, (8,), generator=generator)
        part = slice(rank, None, ranks)
        loss = count_loss(model(images[part]), labels[part], desired=4, undesired=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    torch.save((torch.stack(losses), list(model.parameters())), folder / f"{rank} of {ranks}.pt")


@pytest.mark.parametrize("static_graph", [False, True])
def test_two_processes_train_as_one(static_graph, start, tmp_path):
    processes = [start(train_on_part, rank, 2, static_graph, tmp_path) for rank in range(2)]
    train_on_part(0, 1, static_graph, tmp_path)
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    (losses, one), (losses_0, rank_0), (losses_1, rank_1) = (
        torch.load(tmp_path / name) for name in ("0 of 1.pt", "0 of 2.pt", "1 of 2.pt")
    )
    assert all(map(torch.equal, rank_0, rank_1))
    torch.testing.assert_close(rank_0, one, rtol=1e-14, atol=1e-16)
    assert not torch.equal(losses_0, losses_1)  # the data differ
    torch.testing.assert_close((losses_0 + losses_1) / 2, losses, rtol=1e-15, atol=0)


def join(rank: int, folder: Path) -> DeviceMesh:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    return init_device_mesh("cpu", (2,))


EARLY = SRMParameters(threshold=0.02)
LAYERS = (
    (functools.partial(SRMLinear, 8, 6, EARLY, learn=("threshold",), bias=True), (4, 5, 8)),
    (functools.partial(SRMConv2d, 2, 4, 3, parameters=EARLY), (4, 5, 2, 6, 6)),
    (functools.partial(SRMRecurrent, 8, 6, EARLY), (4, 5, 8)),
    (functools.partial(SRMNeuron, EARLY, learn=("threshold",), channels=8), (4, 5, 8)),
    (functools.partial(SRMReadout, 8, 6), (4, 5, 8)),
    (functools.partial(BatchNorm1d, 8), (6, 8)),
    (functools.partial(SparseLinear, 8, 6, density=0.5), (4, 8)),
    (functools.partial(SparseRepresentation, 8, 12, classes=3), (4, 8)),
)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def shard_layers(rank: int, folder: Path) -> None:
    """Each layer, sharded by FSDP2, does what it does whole."""
    mesh = join(rank, folder)
    for make, shape in LAYERS:
        plain, sharded = seeded(make), seeded(make)
        fully_shard(sharded, mesh=mesh)
        inputs = 5 * torch.randn(shape, dtype=torch.float64)
        optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in (plain, sharded)]
        for learning in (True, True, False, True, False):
            expected, outputs = (model.train(learning)(inputs) for model in (plain, sharded))
            assert torch.equal(outputs, expected) and expected.any(), make
            with torch.no_grad():
                assert torch.equal(sharded(inputs), plain(inputs)), make
            for optimizer, result in zip(optimizers, (expected, outputs), strict=True):
                optimizer.zero_grad()
                result.square().sum().backward()
                optimizer.step()
        for name, value in plain.state_dict().items():
            other = sharded.state_dict()[name]
            torch.testing.assert_close(other.full_tensor() if isinstance(other, DTensor) else other, value)


def refuse_what_cannot_be_sharded(rank: int, folder: Path) -> None:
    mesh = join(rank, folder)
    for make, shape in LAYERS:
        layer = seeded(make)
        distribute_module(layer, mesh)
        inputs = torch.rand(shape, dtype=torch.float64)
        if isinstance(layer, (SRMNeuron, SparseLinear)):  # of others the parameters are checked by name
            with pytest.raises(TypeError, match="each argument must be a plain tensor, got a DTensor"):
                layer(inputs)
        with pytest.raises(
            TypeError, match=r"must be a plain tensor, got a DTensor: shard the module by .*fully_shard"
        ):
            layer(distribute_tensor(inputs, mesh, [Replicate()]))
    layer = seeded(functools.partial(SRMLinear, 8, 6, carry_scale=True))
    nn.init.uniform_(layer.norm_weight, 0.5, 2)
    fully_shard(layer, mesh=mesh)
    inputs = torch.rand(4, 5, 8, dtype=torch.float64)
    layer(inputs).sum().backward()
    with pytest.raises(RuntimeError, match="carry_scale=True cannot be used with fully_shard"):
        layer(inputs)


def keep_no_weights(rank: int, folder: Path) -> None:
    """FSDP2 gathers into a tensor that stays the same for whoever asks PyTorch, in memory that may be the same too."""
    join(rank, folder)
    layer = SRMLinear(8, 6).eval()
    with torch.no_grad():
        before = layer(10 * torch.ones(1, 5, 8)), layer.effective_weight()
        with torch.autograd._unsafe_preserve_version_counter(layer.weight):
            layer.weight.copy_(torch.rand_like(layer.weight))
        assert layer.weight_cache.names == () and not torch.equal(layer.effective_weight(), before[1])


@pytest.mark.parametrize("work", [shard_layers, refuse_what_cannot_be_sharded, keep_no_weights])
def test_two_processes_share_the_parameters(work, start, tmp_path):
    processes = [start(work, rank, tmp_path) for rank in range(2)]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0


def command(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    faulthandler.dump_traceback_later(120, exit=True)  # rather than wait for another process without end
    os.environ.update(environment)
    plots.plot_learning = plots.plot_sample = lambda *arguments, **options: None
    with output.open("w") as file, contextlib.redirect_stdout(file):
        sys.exit(main(arguments))


def test_the_command_trains_in_two_processes_as_in_one(start, tmp_path):
    # with some seeds a potential lies within rounding of the threshold
    options = ["train", "--network", "64", "--epochs", "2", "--device", "cpu", "--seed", "4"]
    options += ["--set", "schedule.batch_size=139"]
    options += ["--set", "schedule.hold_out=46", "--set", "augmentation.crop=1", "--set", "optimizer.name=sgd"]
    options += ["--set", "schedule.accumulation=2", "--set", "optimizer.momentum=0.9", "--learning-rate", "0.05"]
    # 1391 samples: the last batch has one
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for count in (1, 2):
        for rank in range(count):
            by_torchrun = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
            by_torchrun |= {"MASTER_PORT": f"{port}", "TORCHELASTIC_RUN_ID": "1", "GLOO_SOCKET_IFNAME": "lo"}
            arguments = [*options, "--output", str(tmp_path / f"{count}")]
            output = tmp_path / f"{rank} of {count}.txt"
            processes.append(start(command, arguments, output, by_torchrun if count == 2 else {}))
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    first, second = (tmp_path.joinpath(f"{rank} of 2.txt").read_text() for rank in range(2))
    assert "on cpu, 2 processes" in first and first.count("epoch   2/2") == 1 and second == ""
    one, two = (load_checkpoint(tmp_path / f"{count}" / training.CHECKPOINT) for count in (1, 2))
    torch.testing.assert_close(two.model, one.model, rtol=1e-5, atol=1e-6)
    for record, expected in zip(two.history, one.history, strict=True):
        assert record.loss == pytest.approx(expected.loss, rel=1e-6)
        assert (record.train_accuracy, record.accuracy) == pytest.approx((expected.train_accuracy, expected.accuracy))
    results = [json.loads((tmp_path / f"{count}" / training.METRICS).read_text()) for count in (1, 2)]
    assert [result["processes"] for result in results] == [1, 2]
    assert results[0]["test_accuracy"] == pytest.approx(results[1]["test_accuracy"])
