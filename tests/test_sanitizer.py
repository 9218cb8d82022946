"""The sanitizer finds planted defects, each in a kernel of its own, and none in the kernels of the package.

`# defect` marks the line that an error must name; the kernels copy `x` to `out`, both of 10 elements, in blocks of 4.
"""

import re

import pytest
import torch
import triton
from sanitizer import KernelError, check_interpreter, sanitized
from triton import language as tl
from triton.runtime import interpreter

from srm_triton import SRMParameters
from srm_triton.kernels import batch_norm, launch, srm_scan, srm_scan_chunk
from srm_triton.kernels.configurations import Configuration
from srm_triton.kernels.layout import accumulator_dtype

pytestmark = pytest.mark.skipif(not launch.interpreted(), reason="hooks Triton's interpreter")


@triton.jit
def lanes_of(size, block: tl.constexpr):
    lanes = tl.program_id(0) * block + tl.arange(0, block)
    return lanes, lanes < size


@triton.jit
def clean(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    tl.store(out + lanes, tl.load(x + lanes, mask=inside, other=0.0), mask=inside)


@triton.jit
def clean_behind_the_end(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    tl.store(out + lanes, tl.load(x + lanes, mask=inside, other=0.0))


@triton.jit
def load_mask_off_by_one(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + lanes, mask=lanes <= size, other=0.0)  # defect
    tl.store(out + lanes, value, mask=inside)


@triton.jit
def load_without_mask(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + lanes)  # defect
    tl.store(out + lanes, value, mask=inside)


@triton.jit
def store_without_mask(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + lanes, mask=inside, other=0.0)
    tl.store(out + lanes, value)  # defect


@triton.jit
def wrong_stride(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + lanes, mask=inside, other=0.0)  # defect
    tl.store(out + lanes, value, mask=inside)


@triton.jit
def swapped_strides(x, out, size, block: tl.constexpr):
    lanes = tl.arange(0, block)
    value = tl.load(x + tl.program_id(0) + lanes * block)  # defect
    tl.store(out + tl.program_id(0) * block + lanes, value)


@triton.jit
def a_step_too_far(x, out, size, block: tl.constexpr):
    value = tl.load(x)
    for step in range(size):
        tl.store(out + step, value)
        value = tl.load(x + step + 1)  # defect


@triton.jit
def negative_offset(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + lanes - 1, mask=inside, other=0.0)  # defect
    tl.store(out + lanes, value, mask=inside)


@triton.jit
def next_tensor_of_the_storage(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + size + lanes, mask=inside, other=0.0)  # defect
    tl.store(out + lanes, value, mask=inside)


@triton.jit
def load_in_a_function(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0)  # defect


@triton.jit
def bad_argument_of_a_function(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    tl.store(out + lanes, load_in_a_function(x + 2 * lanes, inside), mask=inside)


@triton.jit
def pointer_from_a_number(x, out, size, block: tl.constexpr):
    pointer = tl.load(x).to(tl.pointer_type(tl.float32))
    tl.store(out, tl.load(pointer))  # defect


@triton.jit
def blocks_overlap(x, out, size, block: tl.constexpr):
    lanes = tl.program_id(0) * (block - 1) + tl.arange(0, block)
    value = tl.load(x + lanes, mask=lanes < size, other=0.0)
    tl.store(out + lanes, value, mask=lanes < size)  # defect


@triton.jit
def every_program_writes_the_first(x, out, size, block: tl.constexpr):
    tl.store(out, 1.0)  # defect


@triton.jit
def in_place_from_the_right(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + lanes + 1, mask=lanes + 1 < size, other=0.0)
    tl.store(out + lanes, value, mask=inside)  # defect


@triton.jit
def in_place_from_the_left(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + lanes - 1, mask=inside & (lanes > 0), other=0.0)  # defect
    tl.store(out + lanes, value, mask=inside)


@triton.jit
def result_of_another_program(x, out, size, block: tl.constexpr):
    program = tl.program_id(0)
    value = tl.load(x + program)
    if program > 0:
        value += tl.load(out + program - 1)  # defect
    tl.store(out + program, value)


@triton.jit
def atomic_next_to_a_store(x, out, size, block: tl.constexpr):
    if tl.program_id(0) == 0:
        tl.store(out, 0.0)
    tl.atomic_add(out, tl.load(x))  # defect


@triton.jit
def lanes_collide(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + lanes, mask=inside, other=0.0)
    tl.store(out + lanes // 2 * 2, value, mask=inside)  # defect


@triton.jit
def sum_without_other(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    tl.store(out + tl.program_id(0), tl.sum(tl.load(x + lanes, mask=inside)))  # defect


@triton.jit
def maximum_without_other(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    tl.store(out + tl.program_id(0), tl.max(tl.load(x + lanes, mask=inside), 0))  # defect


@triton.jit
def index_without_other(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    index = tl.load(x + lanes, mask=inside)
    value = tl.load(x + index)  # defect
    tl.store(out + lanes, value, mask=inside)


@triton.jit
def every_second_element(x, out, size, block: tl.constexpr):
    lanes = 2 * lanes_of(size, block)[0]
    tl.store(out + lanes, 1.0, mask=lanes < size)


@triton.jit
def nothing_written(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    tl.load(x + lanes, mask=inside, other=0.0)


@triton.jit
def adds_to_its_output(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    value = tl.load(x + lanes, mask=inside, other=0.0)
    value += tl.load(out + lanes, mask=inside, other=0.0)  # defect
    tl.store(out + lanes, value, mask=inside)


@triton.jit
def sum_in_any_order(x, out, size, block: tl.constexpr):
    tl.atomic_add(out, tl.load(x + tl.program_id(0)))


@triton.jit
def the_last_program_wins(x, out, size, block: tl.constexpr):
    tl.atomic_xchg(out, tl.load(x + tl.program_id(0)))


@triton.jit
def offset_overflows(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    offset = lanes * 1073741824  # defect
    tl.store(out + lanes, tl.load(x + offset, mask=lanes == 0, other=0.0), mask=inside)


@triton.jit
def assertion_fails(x, out, size, block: tl.constexpr):
    lanes, inside = lanes_of(size, block)
    tl.device_assert(lanes < size, "a lane outside")  # defect
    tl.store(out + lanes, 1.0, mask=inside)


NUMBERS = torch.arange(1.0, 11.0)
INTEGERS = torch.arange(10)
PADDED = torch.zeros(3, 5)[:, :4]  # a row ends where the next one does not start
LARGE = torch.tensor([1e8, -1e8, 1.0])  # added up in float32, the result depends on the order

# kernel, x, shape of out (None: in place), programs, program named (None where a result shows the defect), message
DEFECTS = [
    (
        load_mask_off_by_one,
        NUMBERS,
        10,
        3,
        2,
        "reads `x` at offset 10, where shape [10] and strides [1] have no element",
    ),
    (load_without_mask, NUMBERS, 10, 3, 2, "reads `x` at offset 10, where"),
    (store_without_mask, NUMBERS, 10, 3, 2, "writes `out` at offset 10, where"),
    (wrong_stride, PADDED, 12, 3, 1, "reads `x` at offset 4, where shape [3, 4] and strides [5, 1] have no element"),
    (swapped_strides, NUMBERS[:8].view(2, 4), 8, 2, 0, "reads `x` at offset 8, where"),
    (a_step_too_far, NUMBERS, 10, 1, 0, "reads `x` at offset 10, where"),
    (negative_offset, NUMBERS, 10, 3, 0, "reads `x` at offset -1, where"),
    (next_tensor_of_the_storage, torch.zeros(20)[:10], 10, 3, 0, "reads `x` at offset 10, where"),
    (bad_argument_of_a_function, NUMBERS, 10, 3, 1, "reads `x` at offset 10, where"),
    (pointer_from_a_number, INTEGERS, 10, 1, 0, "reads at an address that comes from no tensor"),
    (blocks_overlap, NUMBERS, 10, 3, 1, "writes `out` where program (0, 0, 0) writes"),
    (every_program_writes_the_first, NUMBERS, 1, 2, 1, "writes `out` where program (0, 0, 0) writes"),
    (in_place_from_the_right, NUMBERS, None, 3, 1, "writes `out` where program (0, 0, 0) reads"),
    (in_place_from_the_left, NUMBERS, None, 3, 1, "reads `x` where program (0, 0, 0) writes"),
    (result_of_another_program, NUMBERS, 10, 10, 1, "reads `out` where program (0, 0, 0) writes"),
    (atomic_next_to_a_store, NUMBERS, 1, 2, 0, "writes `out` where program (0, 0, 0) writes"),
    (lanes_collide, NUMBERS, 10, 3, 0, "lanes of one store write different values to one element"),
    (
        sum_without_other,
        NUMBERS,
        3,
        3,
        None,
        "`out`[2] depends on masked lanes of a load without `other`, test_sanitizer",
    ),
    (maximum_without_other, INTEGERS, 3, 3, None, "`out`[2] depends on masked lanes of a load without `other`"),
    (index_without_other, INTEGERS, 10, 3, 2, "reads `x` at offset -1, where"),
    (clean, NUMBERS, 10, 2, None, "`out`[8] is not written"),
    (clean, NUMBERS, (2, 10), 3, None, "`out`[1, 0] is not written"),
    (every_second_element, NUMBERS, 10, 3, None, "`out`[1] is not written"),
    (nothing_written, NUMBERS, 10, 3, None, "`out`[0] is not written"),
    (adds_to_its_output, NUMBERS, 10, 3, 0, "reads the output `out` before it is written"),
    (sum_in_any_order, LARGE, 1, 3, None, "`out`[0] is different where the programs run reversed"),
    (the_last_program_wins, INTEGERS, 1, 3, None, "`out`[0] is different where the programs run reversed"),
    (offset_overflows, NUMBERS, 10, 3, 0, "int32 overflow detected for operation mul"),
    (assertion_fails, NUMBERS, 10, 3, 2, "a lane outside"),
]


@pytest.mark.parametrize(("kernel", "x", "shape", "programs", "program", "message"), DEFECTS)
def test_planted_defects(kernel, x, shape, programs, program, message):
    in_place = shape is None
    if in_place:
        x = out = x.clone()
    else:
        out = torch.zeros(shape, dtype=x.dtype)
    with pytest.raises(KernelError) as caught, sanitized(*([] if in_place else [out])):
        kernel[(programs,)](x, out, 10, block=4)
    place = "" if program is None else rf", program \({program}, 0, 0\), test_sanitizer\.py:\d+ `.*# defect`"
    assert re.match(kernel.__name__ + place + ": " + re.escape(message), str(caught.value)), caught.value


def test_a_clean_kernel():
    out = torch.zeros(10)
    with sanitized(out):
        clean[(3,)](NUMBERS, out, 10, block=4)
    assert torch.equal(out, NUMBERS)


@pytest.mark.parametrize("block", [1, 4])
def test_masked_lanes_with_other(block):
    out = torch.ones(12)
    with sanitized(out):
        clean_behind_the_end[(12 // block,)](NUMBERS, out, 10, block=block)
    assert out.tolist() == [*range(1, 11), 0, 0]


@pytest.mark.unsanitized("looks at a launch outside of `sanitized`")
def test_nothing_stays_hooked():
    test_a_clean_kernel()
    out = torch.zeros(10)
    clean[(2,)](NUMBERS, out, 10, block=4)
    assert out.tolist() == [*range(1, 9), 0, 0]


@pytest.mark.unsanitized("runs tests that are not sanitized")
@pytest.mark.parametrize("options", [[], ["--sanitize"]])
def test_plugin(options, pytester):
    pytester.makepyfile(
        """
        import pytest
        import torch
        import triton
        from triton import language as tl

        @triton.jit
        def stray(x, out, size, block: tl.constexpr):
            lanes = tl.arange(0, block)
            value = tl.load(x + lanes)  # defect
            tl.store(out + lanes, value, mask=lanes < size)

        def run():
            stray[(1,)](torch.ones(8)[:6], torch.zeros(6), 6, block=8)

        def test_plain():
            run()

        @pytest.mark.sanitized
        def test_marked():
            run()

        @pytest.mark.unsanitized("strays by intention")
        def test_excepted():
            run()
        """
    )
    result = pytester.runpytest("-p", "sanitizer", *options)
    result.assert_outcomes(passed=1 if options else 2, failed=2 if options else 1)
    message = "*KernelError: stray, program (0, 0, 0), test_plugin.py:9 `*# defect`: reads `x` at offset 6, where *"
    result.stdout.fnmatch_lines([message] * (2 if options else 1))


def without_a_name(monkeypatch):
    monkeypatch.delattr(interpreter, "_patch_lang")


def without_the_hooks(monkeypatch):
    executor = interpreter.GridExecutor

    def run(self, *args, grid, warmup, **options):
        executor(self.rewrite(), self.arg_names, grid)(*args, **options)

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", run)


@pytest.mark.unsanitized("changes the interpreter")
@pytest.mark.parametrize("change", [without_a_name, without_the_hooks])
def test_another_interpreter_is_refused(change, monkeypatch):
    change(monkeypatch)
    check_interpreter.cache_clear()
    message = rf"does not see a bad load in the interpreter of Triton {triton.__version__}"
    with pytest.raises(RuntimeError, match=message), sanitized():
        pass


def test_bfloat16_is_rounded_to_nearest_even():
    x = torch.tensor([1 + 3 / 256, 1 + 1 / 256, 1.99999, -3.0e38, 3.4e38, float("nan"), float("inf"), 0.1, 0.2, 0.3])
    out = torch.zeros(10, dtype=torch.bfloat16)
    with sanitized(out):
        clean[(3,)](x, out, 10, block=4)
    torch.testing.assert_close(out, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("steps", "time_axis", "dtype", "rule"),
    [
        (1, 1, torch.float32, "event"),
        (8, 0, torch.float16, "fast_sigmoid"),
        (17, 1, torch.float64, "event"),
        (35, 0, torch.bfloat16, "arctan"),
    ],
)
def test_the_scan_is_clean(steps, time_axis, dtype, rule):
    """With and without what is optional, in several programs, the last of which has lanes without a neuron."""
    generator = torch.Generator().manual_seed(steps)
    wide, neurons, configuration = accumulator_dtype(dtype), (5, 6), Configuration(16, 1)
    shape = [5, 6]
    shape.insert(time_axis, steps)
    current, grad = (torch.randn(*shape, generator=generator).to(dtype) + 0.8 for _ in range(2))
    strided = torch.cat([current, current], -1)[..., :6]
    state, grad_state = (0.1 * torch.randn(3, 5, 6, dtype=wide, generator=generator) for _ in range(2))
    shared, per_channel = (SRMParameters(threshold=value).pack(current) for value in (0.5, torch.linspace(0.3, 1, 6)))
    none, nowhere = torch.empty(0, dtype=wide), torch.empty(0, dtype=torch.int32)
    spikes, (membrane, trace) = torch.empty_like(current), (torch.empty_like(current, dtype=wide) for _ in range(2))
    with sanitized(spikes, membrane, trace):
        srm_scan.forward(strided, shared, None, spikes, none, none, nowhere, membrane, trace, time_axis, configuration)
    chunks = -(-steps // srm_scan_chunk(steps, current.itemsize))
    final, checkpoints = torch.empty_like(state), torch.empty(chunks - 1, 3, *neurons, dtype=wide)
    events = torch.empty(neurons, dtype=torch.int32)
    with sanitized(spikes, final, events, *[checkpoints] * (chunks > 1)):
        srm_scan.forward(
            current, per_channel, state, spikes, final, checkpoints, events, None, None, time_axis, configuration
        )
    assert 0 < spikes.sum() < spikes.numel()

    weight_path, time_path, grad_initial, grad_constants = (torch.empty_like(t) for t in (grad, grad, state, state))
    optional = checkpoints, events.mT.contiguous().mT, weight_path, time_path, grad_initial, grad_constants
    with sanitized(*optional[2:]):
        one = grad[..., :1].expand_as(grad)
        srm_scan.backward(one, grad_state, strided, per_channel, state, *optional, time_axis, rule, configuration)
    path = (weight_path, time_path)[steps % 2]
    paths = (path, none) if path is weight_path else (none, path)
    with sanitized(path):
        omitted = checkpoints, nowhere, *paths, none, none
        srm_scan.backward(grad, None, current, shared, None, *omitted, time_axis, rule, configuration)


def test_a_split_that_holds_part_of_one_tile_is_clean():
    inputs = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
    tile = batch_norm.Tile(16, 4, 4, 1)
    assert tile.shares(70) == (2, 3)  # the last starts at sample 64
    outputs, statistics = torch.empty_like(inputs), torch.empty(3, 3)
    with sanitized(outputs, statistics):
        batch_norm.forward(inputs, None, None, outputs, statistics, 1e-5, 70, False, tile)
    torch.testing.assert_close(statistics[0], inputs.mean(0), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("samples_adjacent", [False, True])
@pytest.mark.parametrize(
    ("samples", "features", "tile", "shares"),
    [(1, 3, (1, 2, 1, 1), (1, 1)), (7, 21, (8, 4, 1, 1), (1, 1)), (1200, 3, (32, 4, 7, 1), (6, 7))],
)
def test_batch_norm_is_clean(samples, features, tile, shares, samples_adjacent, dtype):
    """Several programs, and several tiles for each where the samples are split."""
    tile = batch_norm.Tile(*tile)
    generator = torch.Generator().manual_seed(samples)
    inputs, grads = (torch.randn(samples, features, generator=generator).to(dtype) for _ in range(2))
    if samples_adjacent:
        inputs = inputs.mT.contiguous().mT
    assert tile.shares(samples) == shares
    wide = accumulator_dtype(dtype)
    weight, bias = (None, None) if samples_adjacent else (torch.ones(features), torch.zeros(features))
    outputs, grad_inputs = torch.empty_like(inputs), torch.empty_like(inputs)
    statistics, grad_affine = torch.empty(3, features, dtype=wide), torch.empty(2, features, dtype=wide)
    with sanitized(outputs, statistics):
        batch_norm.forward(inputs, weight, bias, outputs, statistics, 1e-5, samples, True, tile)
    with sanitized(grad_inputs, grad_affine):
        batch_norm.backward(grads, inputs, weight, statistics, grad_inputs, grad_affine, 1e-5, samples, True, tile)
    torch.testing.assert_close(outputs.float().mean(0), torch.zeros(features), rtol=0, atol=1e-2)
