"""The tuning cache: the file, its writers, and what a launch finds in it."""

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

from srm_triton import srm_scan, tuning_cache, use_backend
from srm_triton.kernels import SRM_SCAN_CHUNK, launch
from srm_triton.kernels import srm_scan as kernel
from srm_triton.kernels.configurations import CANDIDATES, Configuration
from srm_triton.ops import srm_scan as operation
from srm_triton.tuning_cache import Case, Entry, TuningCache, TuningError, TuningWarning, Versions, current_versions

FORWARD, BACKWARD = CANDIDATES


@pytest.fixture(autouse=True)
def nothing_loaded():
    tuning_cache.unload()
    yield
    tuning_cache.unload()


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
    assert "give a path" in tuning_cache.inspect().problem


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
    assert tuning_cache.inspect(cache.path) == (cache.path, 0, {}, str(error.value))
    with pytest.warns(TuningWarning, match="tuning.json: .*; the usual configurations serve"):
        tuning_cache.load(cache.path)
    assert tuning_cache.find_configuration(FORWARD, torch.empty(4, 16, 64), 1) is None
    with pytest.warns(TuningWarning, match="set aside as tuning.json.damaged"):
        cache.update([entry()])
    assert cache.read() == [entry()]
    assert cache.path.with_name("tuning.json.damaged").read_bytes() == content


@pytest.mark.parametrize("change", [{"block": 1 << 30}, {"kernel": "rm"}])
def test_configurations_that_are_no_candidates_are_reported_and_kept(cache, change, compiled):
    cache.path.parent.mkdir()
    cache.path.write_bytes(changed_row(**change))
    with pytest.warns(TuningWarning, match="1 of its configurations are no candidates of their kernels; the usual"):
        assert tuning_cache.load(cache.path).configurations == {}
    assert tuning_cache.find_configuration(FORWARD, torch.empty(1, 16, 2), 1) is None
    cache.update([entry()])
    assert len(cache.read()) == 2


def test_the_file_of_a_newer_package_is_left_alone(cache):
    cache.path.parent.mkdir()
    cache.path.write_bytes(changed_file(version=2))
    message = "tuning.json: written by a newer srm-triton, in format version 2; 1 is known"
    assert message in tuning_cache.inspect(cache.path).problem
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
        assert tuning_cache.load(cache.path).configurations == {}
    with pytest.raises(TuningError, match="cannot be read"):
        cache.update([entry(2)])
    monkeypatch.undo()
    assert cache.read() == [entry()]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    assert tuning_cache.inspect(tmp_path / "file" / "tuning.json").problem is None  # there is no such file
    with pytest.raises(OSError):
        TuningCache(tmp_path / "file" / "tuning.json").update([entry()])


def test_other_versions_are_not_used_but_kept(cache):
    cache.update([entry(1, versions=OTHER_VERSIONS), entry(2, versions=OTHER_VERSIONS)])
    with pytest.warns(
        TuningWarning, match=r"tuned only for other versions \(srm_triton 0.0.1, torch 1.0, triton 0.1\)"
    ):
        assert tuning_cache.load(cache.path).configurations == {}
    cache.update([entry(1)])
    assert tuning_cache.load(cache.path).configurations == {entry(1).case: entry(1).configuration}
    assert tuning_cache.load(cache.path).entries == 3


@pytest.mark.parametrize("change", [{"srm_triton": "9"}, {"torch": "9"}, {"triton": "9"}])
def test_every_version_counts(cache, change):
    cache.update([entry(versions=current_versions()._replace(**change))])
    assert tuning_cache.inspect(cache.path).configurations == {}


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
from test_tuning_cache import entry
from srm_triton import files
from srm_triton.tuning_cache import TuningCache

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
    tuning_cache.load(cache.path)
    found = {
        (batch, steps, neurons)
        for batch, steps, neurons in [
            (4, 16, 256), (1, 9, 513), (32, 12, 32),  # the class
            (4, 16, 257), (1, 9, 512), (4, 8, 256), (4, 17, 256), (4, 300, 256),
        ]
        if tuning_cache.find_configuration(FORWARD, torch.empty(batch, steps, neurons), 1)
    }  # fmt: skip
    assert found == {(4, 16, 256), (1, 9, 513), (32, 12, 32)}
    assert tuning_cache.find_configuration(FORWARD, torch.empty(16, 4, 256), 0) == entry().configuration
    assert (
        tuning_cache.find_configuration(FORWARD, torch.empty(4, 1, 256).expand(4, 16, 256), 1) == entry().configuration
    )
    assert tuning_cache.find_configuration(FORWARD, torch.empty(4, 16, 256, dtype=torch.bfloat16), 1) is None
    assert tuning_cache.find_configuration(BACKWARD, torch.empty(4, 16, 256), 1) is None
    assert tuning_cache.find_configuration(FORWARD, torch.empty(4, 16, 256, device="meta"), 1) is None


def test_all_long_sequences_are_one_class():
    cases = {Case.of(FORWARD, torch.device("cpu"), torch.float32, steps, 1) for steps in (17, 33, 1000)}
    assert [case.log2_steps for case in cases] == [(SRM_SCAN_CHUNK + 1).bit_length()]


def test_the_first_launch_reads_the_default_file_once(monkeypatch, tmp_path, compiled):
    monkeypatch.setenv("HOME", str(tmp_path))
    TuningCache().update([entry()])
    current = torch.empty(4, 16, 256)
    assert tuning_cache.loaded() is None
    assert tuning_cache.find_configuration(FORWARD, current, 1) == entry().configuration
    TuningCache().clear()
    assert tuning_cache.find_configuration(FORWARD, current, 1) == entry().configuration
    assert tuning_cache.loaded().configurations == {entry().case: entry().configuration}
    tuning_cache.unload()
    assert tuning_cache.find_configuration(FORWARD, current, 1) is None


def test_sixteen_threads_read_once_and_are_warned_once(monkeypatch, tmp_path, compiled):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tuning_cache.default_path()
    path.parent.mkdir(parents=True)
    path.write_text("{")
    inspect = tuning_cache.inspect
    monkeypatch.setattr(tuning_cache, "inspect", lambda path: time.sleep(0.1) or inspect(path))
    found, start = [], threading.Barrier(16)

    def look() -> None:
        start.wait()
        found.append(tuning_cache.find_configuration(FORWARD, torch.empty(4, 16, 256), 1))

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
    tuning_cache.load(cache.path)
    assert tuning_cache.find_configuration(FORWARD, torch.empty(1, 16, 8), 1) is None
    tuning_cache.unload()
    for backend in ("reference", "triton"):
        with use_backend(backend):
            srm_scan(torch.ones(1, 16, 8, requires_grad=True)).sum().backward()
    assert tuning_cache.loaded() is None


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
