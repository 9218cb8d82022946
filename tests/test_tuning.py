"""Tuning: the file, what a launch finds in it, the timing of candidates."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from srm_triton import SRMLinear, SRMNeuron, SRMParameters, srm_scan, srm_trace, tuning, use_backend
from srm_triton.kernels import SRM_SCAN_CHUNK, launch
from srm_triton.kernels import srm_scan as kernel
from srm_triton.kernels.configurations import CANDIDATES, Configuration
from srm_triton.ops import srm_scan as operation
from srm_triton.ops.srm_scan import scan_backward, scan_forward
from srm_triton.tuning import Case, Entry, TuningCache, TuningError, TuningWarning, Versions, current_versions

FORWARD, BACKWARD = CANDIDATES


@pytest.fixture(autouse=True)
def nothing_loaded():
    tuning.unload()
    yield
    tuning.unload()


@pytest.fixture
def cache(tmp_path) -> TuningCache:
    return TuningCache(tmp_path / "folder" / "tuning.json")


@pytest.fixture
def compiled(monkeypatch):
    """Lookups as on a GPU."""
    monkeypatch.setattr(launch, "interpreted", lambda: False)


def entry(log2_neurons: int = 10, *, candidate: int = 0, versions: Versions | None = None) -> Entry:
    case = Case(FORWARD, "cpu", "float32", 4, log2_neurons)
    return Entry(case, versions or current_versions(), CANDIDATES[FORWARD][candidate], 0.25)


OTHER_VERSIONS = Versions("0.0.1", "1.0", "0.1")


# The file


def test_round_trip(cache):
    assert cache.read() == []
    entries = [entry(1), entry(2), entry(1, versions=OTHER_VERSIONS)]
    cache.update(entries[:2])
    cache.update(entries[2:])
    assert TuningCache(cache.path).read() == entries
    cache.update([entry(2, candidate=3)])  # the newest of a case and its versions
    assert cache.read() == [entries[0], entry(2, candidate=3), entries[2]]
    row = json.loads(cache.path.read_text())["entries"][0]
    assert row == {
        "kernel": "srm_scan_forward",
        "device": "cpu",
        "dtype": "float32",
        "log2_steps": 4,
        "log2_neurons": 1,
        "srm_triton": current_versions().srm_triton,
        "torch": torch.__version__,
        "triton": current_versions().triton,
        "block": 32,
        "num_warps": 1,
        "milliseconds": 0.25,
    }


def test_the_default_path_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TuningCache().path == tmp_path / ".cache" / "srm-triton" / "tuning.json"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(TuningError, match=r"no place for tuning.json .*; give a path"):
        TuningCache()
    assert "give a path" in tuning.inspect().problem


def changed_row(**changes) -> bytes:
    row = {
        "kernel": FORWARD, "device": "cpu", "dtype": "float32", "log2_steps": 4, "log2_neurons": 1,
        **current_versions()._asdict(), "block": 32, "num_warps": 1, "milliseconds": 0.25, **changes,
    }  # fmt: skip
    return changed_file(entries=[row])


def changed_file(**changes) -> bytes:
    return json.dumps({"format": "srm-triton tuning", "version": 1, "entries": [], **changes}).encode()


DAMAGED = {
    "empty": b"",
    "truncated": changed_row()[:-20],
    "binary": b"\x80\x81PNG",
    "not JSON": b"tuned yesterday",
    "nested": b"[" * 100_000,
    "many digits": b"9" * 5000,
    "other JSON": b"[1, 2]",
    "other format": changed_file(format="cookbook"),
    "older version": changed_file(version=0),
    "no list": changed_file(entries={"block": 32}),
    "no object": changed_file(entries=["block"]),
    "field too many": changed_row(colour="red"),
    "field too few": changed_file(entries=[{"kernel": FORWARD}]),
    "text for a number": changed_row(block="32"),
    "truth for a number": changed_row(num_warps=True),
    "number for a text": changed_row(device=7),
    "not finite": changed_row(milliseconds=float("nan")),
    "negative": changed_row(log2_steps=-1),
    "too large": changed_row(log2_neurons=1 << 33),
}


def test_the_undamaged_file_is_accepted(cache):
    cache.path.parent.mkdir()
    cache.path.write_bytes(changed_row())
    assert cache.read() == [entry(1)]


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_and_foreign_files_are_reported_and_set_aside(cache, content, compiled):
    cache.path.parent.mkdir()
    cache.path.write_bytes(content)
    with pytest.raises(TuningError, match=r"tuning.json: not a tuning file, or a damaged one \(.+\)$") as error:
        cache.read()
    assert len(str(error.value)) < 1000
    assert tuning.inspect(cache.path) == (cache.path, 0, {}, str(error.value))
    with pytest.warns(TuningWarning, match="tuning.json: .*; the usual configurations serve"):
        tuning.load(cache.path)
    assert tuning.find_configuration(FORWARD, torch.empty(4, 16, 64), 1) is None
    with pytest.warns(TuningWarning, match="set aside as tuning.json.damaged"):
        cache.update([entry()])
    assert cache.read() == [entry()]
    assert cache.path.with_name("tuning.json.damaged").read_bytes() == content


@pytest.mark.parametrize("change", [{"block": 1 << 30}, {"kernel": "rm"}])
def test_configurations_that_are_no_candidates_are_reported_and_kept(cache, change, compiled):
    cache.path.parent.mkdir()
    cache.path.write_bytes(changed_row(**change))
    with pytest.warns(TuningWarning, match="1 of its configurations are no candidates of their kernels; the usual"):
        assert tuning.load(cache.path).configurations == {}
    assert tuning.find_configuration(FORWARD, torch.empty(1, 16, 2), 1) is None
    cache.update([entry()])
    assert len(cache.read()) == 2


def test_the_file_of_a_newer_package_is_left_alone(cache):
    cache.path.parent.mkdir()
    cache.path.write_bytes(changed_file(version=2))
    message = "tuning.json: written by a newer srm-triton, in format version 2; 1 is known"
    assert message in tuning.inspect(cache.path).problem
    with pytest.raises(TuningError, match=message):
        cache.update([entry()])
    assert cache.path.read_bytes() == changed_file(version=2)


def test_a_folder_in_its_place(cache):
    cache.path.mkdir(parents=True)
    with pytest.raises(TuningError, match=r"tuning.json: not a tuning file, but a folder or a device"):
        cache.read()
    with pytest.warns(TuningWarning):
        cache.update([entry()])
    assert cache.read() == [entry()] and cache.path.with_name("tuning.json.damaged").is_dir()


def test_a_file_that_cannot_be_read(cache, monkeypatch):
    cache.update([entry()])

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # permissions do not stop a superuser
    with pytest.warns(TuningWarning, match=r"tuning.json: cannot be read \(Permission denied\); the usual"):
        assert tuning.load(cache.path).configurations == {}
    with pytest.raises(TuningError, match="cannot be read"):
        cache.update([entry(2)])
    monkeypatch.undo()
    assert cache.read() == [entry()]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    assert tuning.inspect(tmp_path / "file" / "tuning.json").problem is None  # there is no such file
    with pytest.raises(OSError):
        TuningCache(tmp_path / "file" / "tuning.json").update([entry()])


def test_other_versions_are_not_used_but_kept(cache):
    cache.update([entry(1, versions=OTHER_VERSIONS), entry(2, versions=OTHER_VERSIONS)])
    with pytest.warns(
        TuningWarning, match=r"tuned only for other versions \(srm_triton 0.0.1, torch 1.0, triton 0.1\)"
    ):
        assert tuning.load(cache.path).configurations == {}
    cache.update([entry(1)])
    assert tuning.load(cache.path).configurations == {entry(1).case: entry(1).configuration}
    assert tuning.load(cache.path).entries == 3


@pytest.mark.parametrize("change", [{"srm_triton": "9"}, {"torch": "9"}, {"triton": "9"}])
def test_every_version_counts(cache, change):
    cache.update([entry(versions=current_versions()._replace(**change))])
    assert tuning.inspect(cache.path).configurations == {}


def test_export_import_and_clear(cache, tmp_path):
    exported = tmp_path / "exported.json"
    with pytest.raises(TuningError, match=r"tuning.json: holds no entry to export"):
        cache.export_to(exported)
    cache.update([entry(1), entry(2)])
    assert cache.export_to(exported) == [entry(1), entry(2)]
    with pytest.raises(TuningError, match=r"exported.json: exists; choose another name"):
        cache.export_to(exported)
    other = TuningCache(tmp_path / "other.json")
    other.update([entry(2, candidate=1), entry(3)])
    assert other.import_from(exported) == [entry(1), entry(2)]
    assert other.read() == [entry(2), entry(3), entry(1)]
    with pytest.raises(TuningError, match=r"none.json: no such file"):
        other.import_from(tmp_path / "none.json")
    exported.write_text("{")
    with pytest.raises(TuningError, match=r"exported.json: not a tuning file"):
        other.import_from(exported)
    assert len(other.read()) == 3
    other.path.write_text("{")
    other.clear()
    other.clear()
    assert other.read() == []


# Several writers


def write_entries(path: Path, numbers: range) -> None:
    for number in numbers:
        TuningCache(path).update([entry(number)])


def numbers_in(cache: TuningCache) -> list[int]:
    return sorted(entry.case.log2_neurons for entry in cache.read())


def test_two_processes_keep_the_entries_of_both(cache):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_entries, args=(cache.path, range(n, 64, 2))) for n in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert numbers_in(cache) == list(range(64))


def test_sixteen_threads_keep_the_entries_of_all(cache):
    threads = [threading.Thread(target=write_entries, args=(cache.path, range(n, 64, 16))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers_in(cache) == list(range(64))


KILLED = """
import os, sys, time
from pathlib import Path
from test_tuning import entry
from srm_triton import files
from srm_triton.tuning import TuningCache

def stop_in_the_middle(descriptor):
    os.truncate(descriptor, 100)
    print("writing", flush=True)
    time.sleep(600)

files.os.fsync = stop_in_the_middle
TuningCache(Path(sys.argv[1])).update([entry(2)])
"""


def test_a_writer_killed_in_the_middle_leaves_the_file_whole(cache):
    cache.update([entry(1)])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", KILLED, cache.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        reached = writer.stdout.readline()
        before = cache.path.read_bytes()
        writer.kill()
    assert reached == "writing\n" and writer.returncode == -signal.SIGKILL
    assert cache.path.read_bytes() == before
    assert cache.read() == [entry(1)]
    cache.update([entry(3)])
    assert numbers_in(cache) == [1, 3]


# What a launch finds


def test_shapes_of_a_class_share_an_entry(cache, compiled):
    cache.update([entry(10)])
    tuning.load(cache.path)
    found = {
        (batch, steps, neurons)
        for batch, steps, neurons in [
            (4, 16, 256), (1, 9, 513), (32, 12, 32),  # the class
            (4, 16, 257), (1, 9, 512), (4, 8, 256), (4, 17, 256), (4, 300, 256),
        ]
        if tuning.find_configuration(FORWARD, torch.empty(batch, steps, neurons), 1)
    }  # fmt: skip
    assert found == {(4, 16, 256), (1, 9, 513), (32, 12, 32)}
    assert tuning.find_configuration(FORWARD, torch.empty(16, 4, 256), 0) == entry().configuration
    assert tuning.find_configuration(FORWARD, torch.empty(4, 1, 256).expand(4, 16, 256), 1) == entry().configuration
    assert tuning.find_configuration(FORWARD, torch.empty(4, 16, 256, dtype=torch.bfloat16), 1) is None
    assert tuning.find_configuration(BACKWARD, torch.empty(4, 16, 256), 1) is None
    assert tuning.find_configuration(FORWARD, torch.empty(4, 16, 256, device="meta"), 1) is None


def test_all_long_sequences_are_one_class():
    cases = {Case.of(FORWARD, torch.device("cpu"), torch.float32, steps, 1) for steps in (17, 33, 1000)}
    assert [case.log2_steps for case in cases] == [(SRM_SCAN_CHUNK + 1).bit_length()]


def test_the_first_launch_reads_the_default_file_once(monkeypatch, tmp_path, compiled):
    monkeypatch.setenv("HOME", str(tmp_path))
    TuningCache().update([entry()])
    current = torch.empty(4, 16, 256)
    assert tuning.loaded() is None
    assert tuning.find_configuration(FORWARD, current, 1) == entry().configuration
    TuningCache().clear()
    assert tuning.find_configuration(FORWARD, current, 1) == entry().configuration
    assert tuning.loaded().configurations == {entry().case: entry().configuration}
    tuning.unload()
    assert tuning.find_configuration(FORWARD, current, 1) is None


def test_sixteen_threads_read_once_and_are_warned_once(monkeypatch, tmp_path, compiled):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tuning.default_path()
    path.parent.mkdir(parents=True)
    path.write_text("{")
    inspect = tuning.inspect
    monkeypatch.setattr(tuning, "inspect", lambda path: time.sleep(0.1) or inspect(path))
    found, start = [], threading.Barrier(16)

    def look() -> None:
        start.wait()
        found.append(tuning.find_configuration(FORWARD, torch.empty(4, 16, 256), 1))

    threads = [threading.Thread(target=look) for _ in range(16)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [None] * 16 and [warning.category for warning in caught] == [TuningWarning]


@pytest.mark.skipif(not launch.interpreted(), reason="a GPU does look for its configurations")
def test_nothing_is_looked_up_in_the_interpreter_or_by_the_reference(cache):
    cache.update([entry(log2) for log2 in range(8)])
    tuning.load(cache.path)
    assert tuning.find_configuration(FORWARD, torch.empty(1, 16, 8), 1) is None
    tuning.unload()
    for backend in ("reference", "triton"):
        with use_backend(backend):
            srm_scan(torch.ones(1, 16, 8, requires_grad=True)).sum().backward()
    assert tuning.loaded() is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.compile
@pytest.mark.parametrize("time_axis", [0, 1])
@pytest.mark.parametrize("compile_model", [False, True])
def test_operations_launch_what_is_found(monkeypatch, device, time_axis, compile_model):
    launched = []

    def find(name: str, current: torch.Tensor, axis: int) -> Configuration:
        assert current.shape == (3, 3, 5) and axis == time_axis
        return CANDIDATES[name][2]

    for name in ("forward", "backward"):
        original = getattr(kernel, name)
        monkeypatch.setattr(
            kernel,
            name,
            lambda *arguments, name=name, original=original: (
                launched.append((name, arguments[-1])) or original(*arguments)
            ),
        )
    monkeypatch.setattr(operation, "find_configuration", find)
    scan = torch.compile(srm_scan, fullgraph=True, backend="aot_eager") if compile_model else srm_scan
    with use_backend("triton"):
        scan(torch.ones(3, 3, 5, device=device, requires_grad=True), batch_first=time_axis == 1).sum().backward()
    assert launched == [("forward", CANDIDATES[FORWARD][2]), ("backward", CANDIDATES[BACKWARD][2])]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 37), (20, 3, 2), (2, 17, 5, 7)])
@pytest.mark.parametrize("time_axis", [0, 1])
def test_every_configuration_gives_the_same_bits(monkeypatch, device, shape, time_axis):
    generator = torch.Generator().manual_seed(0)
    current, grad = (torch.randn(shape, generator=generator).to(device) + 0.3 for _ in range(2))
    if time_axis == 0:
        current, grad = current.transpose(0, 1).contiguous(), grad.transpose(0, 1).contiguous()

    def run(number: int | None) -> list[torch.Tensor]:
        def find(name: str, *_) -> Configuration | None:
            return None if number is None else CANDIDATES[name][number]

        monkeypatch.setattr(operation, "find_configuration", find)
        with use_backend("triton"):
            spikes, states = scan_forward(current, SRMParameters(), time_axis, True)
            paths = scan_backward(grad, current, states, None, SRMParameters(), time_axis, True, True, "triton")
            return [spikes, states, *paths, *srm_trace(current, batch_first=time_axis == 1)]

    expected = run(None)
    assert expected[0].numel() == 1 or expected[0].any()
    for number in range(8):
        assert all(map(torch.equal, run(number), expected)), number


def test_candidates_are_few_and_include_the_usual_ones(compiled):
    for name, elements in ((FORWARD, 2), (BACKWARD, 1)):
        assert len(set(CANDIDATES[name])) == len(CANDIDATES[name]) == 8
        for neurons in (1, 1 << 15, 1 << 20):
            assert kernel.usual_configuration(neurons, elements) in CANDIDATES[name]
        for candidate in CANDIDATES[name]:
            assert candidate.block & (candidate.block - 1) == 0
            assert 1 <= candidate.block / (32 * candidate.num_warps) <= 4


# Timing


class FakeTimer:
    """Launches once, and says that one candidate of each kernel is the fastest."""

    def __init__(self, fastest: Configuration) -> None:
        self.fastest = fastest

    def __call__(self, launch) -> float:
        launch()
        (configuration,) = launch.args
        return 0.5 if configuration == self.fastest else 2.0 if configuration is None else 1.0


@pytest.mark.parametrize("shape", [(4, 6, 10), (2, 17, 3, 3)])
def test_the_fastest_candidate_is_kept(cache, device, shape):
    fastest = Configuration(128, 4)
    progress = []
    results = list(
        tuning.tune(
            shape, torch.float32, device, timer=FakeTimer(fastest), after_trial=lambda: progress.append(None)
        )
    )  # fmt: skip
    assert len(progress) == 16
    for result, name in zip(results, CANDIDATES, strict=True):
        neurons = 40 if len(shape) == 3 else 18
        assert result.case == Case.of(name, device, torch.float32, shape[1], neurons)
        assert result.usual_milliseconds == 2.0
        assert [trial.configuration for trial in result.trials] == list(CANDIDATES[name])
        assert {(trial.milliseconds, trial.failure) for trial in result.trials} == {(0.5, None), (1.0, None)}
        assert result.entry == Entry(result.case, current_versions(), fastest, 0.5)
        cache.update([result.entry])
    assert set(tuning.load(cache.path).configurations.values()) == {fastest}


def test_tuning_leaves_the_random_numbers_of_the_program_alone(device):
    state = torch.random.get_rng_state()
    list(tuning.tune((1, 2, 3), torch.float32, device, timer=FakeTimer(Configuration(32, 1))))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_shapes_of_a_model(device):
    """Each layer's, time first or not; the model stays as it was."""
    normalised = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(6), nn.Unflatten(0, (2, 5)))
    model = nn.Sequential(normalised, SRMLinear(6, 4, batch_first=False), SRMNeuron()).to(device)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert tuning.current_shapes(model, torch.rand(2, 5, 6, device=device)) == [(5, 2, 4), (2, 5, 4)]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("failing", [{Configuration(64, 1)}, {*CANDIDATES[FORWARD], *CANDIDATES[BACKWARD]}])
def test_candidates_that_fail_are_left_out(monkeypatch, device, failing):
    forward, backward = kernel.forward, kernel.backward

    def failing_forward(*arguments) -> None:
        if arguments[-1] in failing:
            raise RuntimeError("out of resource: shared memory\nmany more lines")
        forward(*arguments)

    def wrong_backward(*arguments) -> None:
        results = [gradient.clone() for gradient in arguments[4:6]]
        backward(*arguments)
        if arguments[-1] in failing:  # the last step is not written
            for gradient, before in zip(arguments[4:6], results, strict=True):
                gradient[:, -1] = before[:, -1]

    monkeypatch.setattr(kernel, "forward", failing_forward)
    monkeypatch.setattr(kernel, "backward", wrong_backward)
    results = list(tuning.tune((2, 3, 4), torch.float32, device, timer=FakeTimer(Configuration(64, 1))))
    failures = [
        "RuntimeError: out of resource: shared memory",
        "its results differ from those of the usual configuration",
    ]
    for result, failure in zip(results, failures, strict=True):
        for trial in result.trials:
            wrong = trial.configuration in failing
            assert (trial.milliseconds, trial.failure) == ((None, failure) if wrong else (1.0, None))
        assert (result.entry is None) == (len(failing) > 1)


@pytest.mark.parametrize("shape", [(4,), (4, 0, 3)])
def test_shapes_that_cannot_be_tuned(device, shape):
    with pytest.raises(ValueError, match=r"shape must be \[batch, time, ...\], each at least 1, got \["):
        next(tuning.tune(shape, torch.float32, device))


def test_without_a_gpu_nothing_is_timed(compiled):
    with pytest.raises(RuntimeError, match="backend 'triton' runs CPU tensors only in Triton's interpreter"):
        next(tuning.tune((1, 2, 3), torch.float32, torch.device("cpu")))


def test_the_timer_is_tritons(monkeypatch):
    from triton import testing

    monkeypatch.setattr(testing, "do_bench", lambda launch, return_mode: (launch, return_mode) == (len, "median"))
    assert tuning.time_on_gpu(len) == 1.0
