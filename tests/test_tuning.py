"""Tuning: the choice at a launch, the file and its writers, the timing, the command."""

import json
import math
import multiprocessing
import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from triton import testing

import srm_triton
from srm_triton import SRMParameters, SRMState, batch_norm, data, files, srm_scan, training, tuning, use_backend
from srm_triton.cli import main
from srm_triton.commands import tune
from srm_triton.kernels import batch_norm as kernels
from srm_triton.kernels import configurations, launch
from srm_triton.kernels import srm_scan as kernel
from srm_triton.kernels.configurations import Configuration, Tunable
from srm_triton.ops.srm_scan import scan
from srm_triton.tuning import TuningError, TuningWarning, read, update


class Tile(NamedTuple):
    width: int


USUAL, WIDE, NARROW = CANDIDATES = Tile(2), Tile(4), Tile(1)
VERSIONS = configurations.versions()
CASE = f"toy, n ≤ 8, float32 on cpu, {', '.join(VERSIONS)}"
ENTRY = {"width": 4, "milliseconds": 0.25}  # of WIDE


def choose(start=lambda tile: None, outputs=(), tolerance: float = 0.0, size: int = 8) -> Tile:
    toy = Tunable("toy", "n ≤ {}", lambda warp, dtype, n: CANDIDATES if warp else [Tile(1024)], tolerance)
    return toy.choose(torch.empty(1), (size,), start, outputs)


@pytest.fixture(autouse=True)
def path(monkeypatch, tmp_path) -> Path:
    """The default file, in a home without one."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    tuning.unload()
    yield tmp_path / ".cache" / "srm-triton" / "tuning.json"
    tuning.tune(False)
    tuning.unload()


@pytest.fixture
def compiled(monkeypatch) -> None:
    """Choices are made as on a GPU, while the interpreter launches."""
    monkeypatch.setattr(configurations, "warp_size", lambda: 32)


@pytest.fixture
def timed(monkeypatch, compiled, device) -> dict:
    """The times of configurations, 1 where a test says nothing else; all stand here once they are timed."""
    times = {}

    def do_bench(start, return_mode: str) -> float:
        start()
        return times.setdefault(*start.args, 1.0) if return_mode == "median" else 0.0

    monkeypatch.setattr(testing, "do_bench", do_bench)
    monkeypatch.setattr(tune, "_train", partial(tune._train, device=device))
    with use_backend("triton"):
        yield times


def run(workers: list) -> None:
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def step(device: torch.device, *shape: int) -> list[torch.Tensor]:
    """Spikes, state and gradients of everything."""
    generator = torch.Generator().manual_seed(0)
    current, earlier = ((torch.randn(shape, generator=generator) + 0.3).to(device).requires_grad_() for _ in range(2))
    threshold = torch.tensor(1.0, dtype=torch.float64, device=device, requires_grad=True)
    state = [torch.ones(shape[:1] + shape[2:], device=device, requires_grad=True) for _ in range(3)]
    options = {"rule": "event", "output": True, "return_state": True, "batch_first": True}
    with use_backend("triton"):
        spikes, final = scan(current, earlier, SRMParameters(threshold=threshold), SRMState(*state), **options)
    (spikes.sum() + final.membrane.sum()).backward()
    return [spikes, *final, *(tensor.grad for tensor in (current, earlier, threshold, *state))]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 37), (2, 17, 5, 7)])
def test_every_configuration_gives_the_same_bits(monkeypatch, device, shape):
    expected = step(device, *shape)
    for n in range(8):
        monkeypatch.setattr(Tunable, "choose", lambda self, *_, n=n: (*self.candidates(64), *self.candidates(32))[n])
        assert all(map(torch.equal, step(device, *shape), expected)), n


def test_a_thread_of_the_scan_takes_a_neuron_or_in_the_forward_two():
    for tunable, most, warp in ((kernel.FORWARD, 2, 32), (kernel.FORWARD, 2, 64), (kernel.BACKWARD, 1, 32)):
        assert tunable.candidates(warp)[0] == (128, 128 // warp)
        assert all(warps >= 1 and block <= most * warp * warps for block, warps in tunable.candidates(warp))


def test_the_scan_launches_what_was_tuned_for_its_class(monkeypatch, device, compiled, path):
    launched = []

    class Recorder:
        def __class_getitem__(cls, grid):
            return lambda *_, **options: launched.append((*grid, options["BLOCK"], options["num_warps"]))

    where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    for name, configuration in (("forward", Configuration(256, 4)), ("backward", Configuration(32, 1))):
        case = f"srm_scan_{name}, T ≤ 16, neurons ≤ 2^10, float32 on {where}, {', '.join(VERSIONS)}"
        update(path, {case: configuration._asdict()})
        monkeypatch.setattr(kernel, f"srm_scan_{name}_kernel", Recorder)

    def launches(*shape: int, **options) -> list[tuple[int, ...]]:
        launched.clear()
        with use_backend("triton"):
            current = torch.empty(shape, dtype=options.pop("dtype", None), device=device, requires_grad=True)
            srm_scan(current, **options).sum().backward()
        return launched

    assert launches(4, 16, 256) == launches(32, 12, 32) == [(4, 256, 4), (32, 32, 1)]
    assert launches(9, 1, 513, batch_first=False) == [(3, 256, 4), (17, 32, 1)]
    for shape in ((4, 16, 257), (4, 16, 128), (4, 8, 256), (4, 17, 256), (4, 300, 256)):
        assert launches(*shape) == [(-(-shape[0] * shape[2] // 128), 128, 4)] * 2, shape
    assert launches(4, 16, 256, dtype=torch.bfloat16) == [(8, 128, 4)] * 2
    assert len({key[3:] for key in configurations.choices}) == 5  # for T = 17 and 300 the same


def normalise(matrix: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and gradients."""
    leaves = [matrix.clone().requires_grad_(), torch.linspace(-1, 1, matrix.shape[1]).to(matrix)]
    leaves.append(leaves[1].flip(0).requires_grad_())
    with use_backend("triton"):
        outputs = batch_norm(leaves[0], leaves[1].requires_grad_(), leaves[2])
    return [outputs.detach(), *torch.autograd.grad(outputs, leaves, matrix.cos())]


def test_batch_norm_launches_what_was_tuned_for_its_class(monkeypatch, device, compiled, path):
    launched = []

    class Recorder:
        def __class_getitem__(cls, grid):
            blocks = "BLOCK_SAMPLES", "BLOCK_FEATURES", "num_warps"
            return lambda *_, **options: launched.append((*grid, *map(options.get, blocks)))

    where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    classes = {
        "forward": "samples ≤ 2^9, features ≤ 2^5, samples",
        "backward": "samples ≤ 2^11, features ≤ 2^3, features",
    }
    for tunable, tile in ((kernels.FORWARD, (512, 8, 1, 8)), (kernels.BACKWARD, (128, 8, 8, 2))):
        name = tunable.name.removeprefix("batch_norm_")
        tile = kernels.Tile(*tile)
        case = f"batch_norm_{name}, {classes[name]} adjacent, float32 on {where}, {', '.join(VERSIONS)}"
        update(path, {case: tile._asdict()})
    for name in ("partial", "forward", "backward_partial", "backward"):
        monkeypatch.setattr(kernels, f"batch_norm_{name}_kernel", Recorder)

    def launches(matrix: torch.Tensor) -> list[tuple[int, ...]]:
        launched.clear()
        normalise(matrix)
        return launched

    for samples, features in ((512, 32), (257, 17)):
        matrix = torch.empty(features, samples, device=device).t()
        assert launches(matrix) == [(-(-features // 8), 1, 512, 8, 8), (-(-features // 4), 1, 512, 4, 4)]
        assert launches(matrix.contiguous()) == [(-(-features // 8), 1, 512, 8, 8)] * 2  # usual, for coalesced accesses
    for samples, splits in ((2048, 8), (1025, 5)):
        matrix = torch.empty(samples, 8, device=device)
        usual = [(1, -(-samples // 256), 256, 8, 4)] * 2
        assert launches(matrix) == usual + [(1, splits, 128, 8, 2)] * 2
        assert launches(matrix.double())[2:] == [(1, -(-samples // 256), 256, 8, 8)] * 2


def test_batch_norm_is_tuned_and_right(monkeypatch, device, timed, path):
    trials, filled = tuning._trials, []
    monkeypatch.setattr(tuning, "_trials", lambda *rest: filled.append(rest[2]) or trials(*rest))
    matrix = torch.randn(300, 20, device=device) + 3
    usual, found = normalise(matrix), srm_triton.tune()
    timed.update({kernels.Tile(256, 8, 1, 4): 0.75, kernels.Tile(512, 8, 1, 16): 0.5})
    first, second = normalise(matrix), normalise(matrix)
    assert all(map(torch.equal, first, second)) and list(configurations.choices.values()) == [(512, 8, 1, 16)] * 2
    for ours, fixed in zip(first, usual, strict=True):
        torch.testing.assert_close(ours, fixed, rtol=0, atol=float(fixed.abs().max()) * 16 * 2**-23)
    assert [[trial.failure for trial in of_case] for of_case in found.values()] == [[None] * 4] * 2
    assert [[tuple(output.shape) for output in of_case] for of_case in filled] == [
        [(300, 20), (3, 20)], [(300, 20), (2, 20)]
    ]  # fmt: skip
    torch.use_deterministic_algorithms(True)
    try:
        assert all(map(torch.equal, normalise(matrix), usual))
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_first_launch_reads_the_default_file_once(compiled, path):
    assert tuning.loaded() is None and choose() == USUAL and tuning.loaded() == {}
    update(path, {CASE: ENTRY, CASE.replace("8", "7", 1): ENTRY})
    assert choose() == choose(size=7) == USUAL
    tuning.unload()
    assert choose() == WIDE and tuning.loaded() == read(path)
    path.unlink()
    assert choose() == choose(size=7) == WIDE
    assert tuning.load() == {} and choose() == USUAL


@pytest.mark.skipif(not launch.interpreted(), reason="a GPU does look for its configurations")
def test_in_the_interpreter_nothing_is_read_or_timed(monkeypatch):
    assert choose() == Tile(1024) and tuning.loaded() is None
    with pytest.raises(TuningError, match="needs compiled kernels; TRITON_INTERPRET must be unset"):
        srm_triton.tune(True)
    monkeypatch.setattr(launch, "interpreted", lambda: False)  # and no GPU
    for call in (choose, srm_triton.tune):
        with pytest.raises(TuningError, match="need a GPU that PyTorch can use"):
            call()


def test_sixteen_threads_read_once_and_tune_once(monkeypatch, timed, path):
    def launch_together() -> list[Tile]:
        barrier, found = threading.Barrier(16), []
        start = lambda tile: started.append(tile) or time.sleep(0.01)  # noqa: E731
        run([threading.Thread(target=lambda: [barrier.wait(), found.append(choose(start))]) for _ in range(16)])
        return found

    update(path, {CASE: ENTRY})
    started, reads = [], []
    monkeypatch.setattr(configurations, "read", lambda path: reads.append(path) or time.sleep(0.1) or read(path))
    assert launch_together() == [WIDE] * 16 and reads == [path] and not started
    tuning.tune()
    assert launch_together() == [WIDE] * 16 and not started  # the file holds it
    tuning.tune(again=True)
    assert launch_together() == [USUAL] * 16 and len(started) == 6


def content(**changes) -> str:
    return json.dumps({"format": "srm-triton tuning 2", "entries": {CASE: ENTRY}, **changes})


UNUSABLE = (
    "", content()[:-20], "\x80PNG", "[" * 100_000, "9" * 5000, "[1, 2]", "{}", '{"format": "srm-triton tuning 2"}',
    content(format="srm-triton tuning"), content(format="srm-triton tuning 3"), content(entries=[ENTRY]),
    content(entries={CASE: 4}), "folder", "unreadable",
)  # fmt: skip


@pytest.mark.parametrize("unusable", UNUSABLE, ids=range(len(UNUSABLE)))
def test_a_file_that_cannot_be_used_is_reported_and_stays(monkeypatch, compiled, path, capsys, unusable):
    (path if unusable == "folder" else path.parent).mkdir(parents=True)
    if unusable != "folder":
        path.write_text(unusable, encoding="latin-1")
    if unusable == "unreadable":  # permissions do not stop a superuser
        monkeypatch.setattr(Path, "read_bytes", lambda path: os.close(-1))
    message = r"tuning.json: not a whole file of the format 'srm-triton tuning 2' \(.+\); move or remove it"
    with pytest.warns(TuningWarning, match=f"{message}; the usual configurations serve instead$") as caught:
        assert choose() == choose(size=7) == USUAL
    assert len(caught) == 1 and len(str(caught[0].message)) < 500
    for change in (partial(update, path, {}), tuning.tune):
        with pytest.raises(TuningError, match=message):
            change()
    assert main(["tune", "--list"]) == 2 and re.search(message, capsys.readouterr().err)
    assert unusable == "folder" or path.read_text(encoding="latin-1") == unusable


OTHERS = [(CASE, entry, "is no candidate for toy,") for entry in ({"width": 5}, {"height": 4}, {"width": "4"})]
OTHERS += [(CASE.replace(v, v + ".1"), ENTRY, "tuned for other versions than those here, srm_triton") for v in VERSIONS]


@pytest.mark.parametrize(("case", "entry", "message"), OTHERS)
def test_what_is_not_for_here_is_reported_and_kept(compiled, path, case, entry, message):
    update(path, {case: entry})
    with pytest.warns(TuningWarning, match=f"{message} .*; the usual configurations serve instead$"):
        assert choose() == USUAL
    update(path, {CASE.replace("8", "7", 1): ENTRY})
    assert len(tuning.load()) == 2 and choose(size=7) == WIDE and read(path)[case] == entry


def test_without_a_home_folder(monkeypatch, compiled):
    monkeypatch.setattr(Path, "home", Path("~nobody-of-this-name").expanduser)
    with pytest.warns(TuningWarning, match="no place for tuning.json .*; give a path; the usual configurations serve"):
        assert choose() == USUAL
    assert main(["tune", "--list"]) == 2


def write_entries(path: Path, numbers: range) -> None:
    for number in numbers:
        update(path, {str(number): ENTRY})


def die_while_writing(path: Path) -> None:
    files.os.fsync = lambda file: (os.truncate(file, 100), os.kill(os.getpid(), signal.SIGKILL))
    write_entries(path, range(64))


def test_processes_and_threads_keep_the_entries_of_all(path):
    write_entries(path, range(2))
    process = multiprocessing.get_context("spawn").Process
    dying = process(target=die_while_writing, args=(path,))
    run([dying, *(process(target=write_entries, args=(path, range(n, 64, 4))) for n in (0, 1))])
    assert dying.exitcode == -signal.SIGKILL
    run([threading.Thread(target=write_entries, args=(path, range(n, 64, 16))) for n in range(16) if n % 4 > 1])
    assert sorted(map(int, read(path))) == list(range(64))


RESULTS = torch.tensor([1.0, -2.0, math.nan, 0.0])
ROUNDING = 2 * 2**-23  # of the largest
PLANTED = (  # results of a candidate, the kernel's tolerance, whether it can serve
    (RESULTS, 0, True),
    (RESULTS[:3], 0, False),  # does not write the last
    (torch.tensor([1 + 2e-7, -2.0, math.nan, 0.0]), 0, False),
    (torch.tensor([1.0, -2.0, math.nan, -0.0]), 0, False),
    (torch.tensor([1 + 16 * ROUNDING, -2.0, math.nan, 0.0]), 16, True),
    (torch.tensor([1 + 17 * ROUNDING, -2.0, math.nan, 0.0]), 16, False),
    (torch.tensor([1.0, -2.0, math.nan, 2**-7], dtype=torch.bfloat16), 1, True),
    (torch.tensor([1.0, -2.0, math.nan, 2**-5], dtype=torch.bfloat16), 1, False),
    (torch.tensor([1.0, -2.0, 0.0, 0.0]), 16, False),
    (RESULTS.nan_to_num().int() + 1, 1e3, False),  # integers have none
)


@pytest.mark.parametrize(("planted", "tolerance", "serves"), PLANTED)
def test_candidates_with_other_results_are_left_out(timed, path, planted, tolerance, serves):
    output = torch.empty(4, dtype=planted.dtype)
    timed[WIDE] = 0.5

    def start(tile: Tile) -> None:
        result = planted if tile == WIDE else RESULTS.nan_to_num(math.nan if planted.is_floating_point() else 0)
        output[: len(result)] = result

    found = tuning.tune()
    fastest = choose(start, [output, torch.empty(0), None], tolerance)
    tuning.tune(False)
    failure = "TuningError: its results differ from those of the usual configuration"
    trial = (WIDE, 0.5, None) if serves else (WIDE, math.inf, failure)
    assert found == {CASE: [(USUAL, 1.0, None), trial, (NARROW, 1.0, None)]}
    assert fastest == choose() == (WIDE if serves else USUAL)
    assert read(path) == {CASE: {**fastest._asdict(), "milliseconds": 0.5 if serves else 1.0}}


def test_an_error_leaves_a_candidate_out_and_of_the_usual_one_is_raised(timed):
    def start(tile: Tile) -> None:
        if tile == failing:
            raise RuntimeError("out of resource\nmany more lines")

    failing = WIDE
    found = tuning.tune()
    assert choose(start) == USUAL
    assert [trial.failure for trial in found[CASE]] == [None, "RuntimeError: out of resource", None]
    failing = USUAL
    tuning.tune(again=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of resource"):
            choose(start)


def test_it_is_switched_on_and_off(timed, path):
    timed[WIDE] = 0.5
    found = srm_triton.tune(True)
    assert tuning.tune(False) == {} and choose() == USUAL and not found
    for _ in range(2):
        found = srm_triton.tune()
        assert choose() == WIDE
    assert found == {} and tuning.loaded() == read(path)  # the second time by the file
    assert srm_triton.tune(again=True) is not found and choose() == choose() == WIDE
    tuning.tune(False)
    timed.clear()
    assert choose() == WIDE and choose(size=9) == USUAL and not timed
    with pytest.raises(ValueError, match=r"enabled must be one of \(True, False\), got 'tuning.json'"):
        tuning.tune("tuning.json")


def test_what_the_file_holds_wrongly_is_tuned(timed, path, recwarn):
    update(path, {CASE: {"width": 5}})
    tuning.tune()
    assert choose() == USUAL and read(path)[CASE] == {"width": 2, "milliseconds": 1.0}
    assert not recwarn


def test_nothing_is_tuned_while_a_graph_captures_it(monkeypatch, timed, path):
    capturing = True
    monkeypatch.setattr(tuning, "_captured", lambda outputs: capturing)
    timed[NARROW] = 0.5
    update(path, {CASE.replace("8", "7", 1): ENTRY})
    found, started = tuning.tune(), []
    message = f"a CUDA graph captures {re.escape(CASE)}, untimed; take a step before the capture; the usual"
    for _ in range(2):
        with pytest.warns(TuningWarning, match=message):
            assert choose(started.append) == USUAL
    assert choose(started.append, size=7) == WIDE and not started and not found
    capturing = False
    assert choose() == NARROW
    capturing = True
    assert choose() == NARROW
    monkeypatch.undo()
    assert not tuning._captured([torch.empty(1), torch.empty(0)])


@pytest.mark.parametrize("problem", ["damaged", "full disk"])
def test_a_file_that_cannot_be_written_any_more_ends_nothing(monkeypatch, timed, path, problem):
    timed[NARROW] = 0.5
    found = tuning.tune()
    if problem == "damaged":
        path.write_text("{")
    else:
        monkeypatch.setattr(tuning, "write_atomically", lambda *_: os.close(-1))
    with pytest.warns(TuningWarning, match=f"; what was found for {re.escape(CASE)} serves this process only"):
        assert choose() == NARROW
    assert choose() == NARROW and list(found) == [CASE] and CASE in tuning.loaded()
    with pytest.raises(TuningError if problem == "damaged" else OSError):
        tuning.tune()


def test_two_processes_at_once_keep_what_both_find(timed, path):
    """The other tunes a class of its own and the same one, after this read the file and before this writes."""
    timed[NARROW] = 0.5
    tuning.tune()
    other = CASE.replace("8", "9", 1)
    update(path, {CASE: ENTRY, other: ENTRY})
    assert choose() == NARROW
    assert read(path) == {CASE: {"width": 1, "milliseconds": 0.5}, other: ENTRY}


def test_what_rounds_otherwise_is_fixed_in_deterministic_mode(timed, path, device):
    timed[WIDE] = 0.5
    found = tuning.tune()
    torch.use_deterministic_algorithms(True)
    try:
        assert choose(tolerance=1) == USUAL and not found
        assert choose() == WIDE and list(found) == [CASE]  # the same bits
        tuning.load()
        assert choose(tolerance=1) == USUAL and choose() == WIDE
    finally:
        torch.use_deterministic_algorithms(False)
    assert choose(tolerance=1) == WIDE


def test_a_step_of_training_is_tuned_once_and_right(monkeypatch, device, timed):
    expected, trials, filled = step(device, 2, 17, 5), tuning._trials, []
    monkeypatch.setattr(tuning, "_trials", lambda *rest: filled.append(len(rest[2])) or trials(*rest))
    timed.update({Configuration(128, 2): 0.5, Configuration(64, 2): 0.75})
    found = tuning.tune()
    for _ in range(2):
        assert all(map(torch.equal, step(device, 2, 17, 5), expected))
    assert [len(trials) for trials in found.values()] == [6, 4] and filled == [4, 4]  # tensors that are compared
    assert list(configurations.choices.values()) == [Configuration(128, 2), Configuration(64, 2)]


def test_the_command_tunes_shapes(capsys, path, timed):
    timed[Configuration(32, 1)] = 0.5
    file = path.parent / "other.json"
    shapes = ["--shape", "2x3x5", "--shape", "2x17x3x3", "--shape", "2x3x5"]
    assert main(["tune", *shapes, "--dtype", "bfloat16", "--cache", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25 and lines[-1] == str(file) and [line for line in lines if line[0] == "s"] == [*read(file)]
    assert lines[1:3] == ["  {'block': 128, 'num_warps': 4}: 1.0000 ms", "  {'block': 32, 'num_warps': 1}: 0.5000 ms"]
    assert [case.partition(" on ")[0] for case in read(file)][::3] == [
        "srm_scan_forward, T ≤ 8, neurons ≤ 2^4, bfloat16", "srm_scan_backward, T ≤ inf, neurons ≤ 2^5, bfloat16"
    ]  # fmt: skip
    assert main(["tune", "--list", "--cache", str(file)]) == 0
    entry = "{'block': 32, 'num_warps': 1, 'milliseconds': 0.5}"
    assert capsys.readouterr().out.splitlines() == [*(f"{case}: {entry}" for case in read(file)), str(file)]
    file.write_text("{")
    for _ in range(2):
        assert main(["tune", "--clear", "--cache", str(file)]) == 0 and not file.exists()


def test_the_command_tunes_the_network_of_a_checkpoint(tmp_path, path, timed):
    network = training.Network("2C3-P2", steps=5, readout="spikes", gradient="event")
    recipe = training.Recipe(network=network, schedule=training.Schedule(batch_size=3))
    training.TrainingRun(recipe, data.load_digits(), torch.device("cpu")).save(tmp_path / "checkpoint.pt")
    assert main(["tune", "--checkpoint", str(tmp_path / "checkpoint.pt"), "--dtype", "float64"]) == 0
    forward = [case for case in read(path) if "forward, T ≤ 8" in case and "float64" in case]
    assert [re.search(r"neurons ≤ 2\^(\d)", case)[1] for case in forward] == ["9", "5"]  # 2·8·8 and 10
    weights = ("samples ≤ 2^4, features ≤ 2^1", "samples ≤ 2^5, features ≤ 2^4")  # 3·3 for each of 2, and 2·4·4 of 10
    assert sum(case.startswith("batch_norm") and any(size in case for size in weights) for case in read(path)) == 4


@pytest.mark.parametrize("arguments", ["", "--list --clear", *(f"--shape {shape}" for shape in ("8", "8x", "8x0"))])
def test_the_command_refuses_other_arguments(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(["tune", *arguments.split()])
    message = "lengths ≥ 1 of [batch, time, ...], such as 64x16x1024, got '8" if "8" in arguments else "usage: "
    assert message in capsys.readouterr().err
