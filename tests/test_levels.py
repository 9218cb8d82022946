"""Tensors of few levels as codes: that they come back bit for bit, in how much, and what is known without looking."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from srm_triton import SpikeAvgPool2d, use_backend
from srm_triton.kernels import native
from srm_triton.levels import Form, _known, _numbers, _pack, decode, encode, mark, parts_of

BACKENDS = ["reference", *["native"] * (native.problem() is None)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = (9, 17, 1023, 1024, 1025, 3001)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def values_of(levels: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """All of the levels, negative zero and NaN first, in an order by chance."""
    generator = torch.Generator().manual_seed(levels)
    table = torch.cat((torch.tensor([-0.0, torch.nan, 0.0, torch.inf]), torch.arange(1, 20) / 8))[:levels].to(dtype)
    numbers = torch.cat((torch.arange(levels), torch.randint(levels, (size,), generator=generator)))
    return table[numbers[torch.randperm(len(numbers), generator=generator)]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("levels", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 4), (16, 4)])
def test_they_come_back_bit_for_bit(levels, bits, dtype, backend):
    for size in SIZES:
        values = values_of(levels, size, dtype)
        with use_backend(backend):
            saved, form = encode(values)
        for other in BACKENDS:
            with use_backend(other):
                assert torch.equal(bits_of(decode(saved, form)), bits_of(values))
        assert form.bits == bits and saved[0].dtype == torch.uint8
        assert saved[0].nbytes == -(-len(values) * bits // 8) and len(saved[1]) == levels


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_values_are_kept_as_they_are(backend):
    with use_backend(backend):
        for values in (values_of(17, 5000, torch.float32), torch.randn(3000), torch.ones(8), torch.ones(0)):
            (same,), form = encode(values)
            assert same is values and form is None and decode((same,), form) is values
        late = torch.zeros(5000)
        late[-17:] = torch.arange(17.0)
        assert encode(late)[1] is None


def test_the_order_of_memory_stays():
    dense = (torch.rand(2, 3, 4, 5, 6) < 0.3).float()
    for values in (dense.transpose(0, 1), dense.movedim(2, -1), dense.flip(0)[:, :, 1:2].contiguous()):
        saved, form = encode(values)
        result = decode(saved, form)
        assert torch.equal(result, values) and result.stride() == values.stride() and form is not None
    piece = dense[:, 1:]  # which a product copies
    saved, form = encode(piece)
    assert torch.equal(decode(saved, form), piece) and saved[0].nbytes == piece.numel() / 8
    for values in (dense[..., ::2], dense[:1].expand(4, -1, -1, -1, -1)):
        assert encode(values)[1] is None


def test_what_modules_say_is_known_without_looking():
    """As on a GPU: spikes are marked; views keep it; whatever is written or computed does not."""
    spikes = mark(torch.ones(2, 3, 4, device="meta"), 4)
    assert parts_of(spikes) == parts_of(spikes.flatten(1)) == parts_of(spikes[:, 1:].transpose(0, 1)) == 4
    assert parts_of(spikes * 1) is None and parts_of(torch.ones(2)) is None
    spikes.mul_(0.5)
    assert parts_of(spikes) is None and parts_of(spikes.flatten(1)) is None
    with pytest.warns(UserWarning, match='inputs of a layer with keep="spikes" are kept as they are'):
        assert _known(torch.ones(20)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mark(torch.ones(3)).__dict__ == {}  # on the CPU values are looked at


@pytest.mark.parametrize(
    "windows", [((1, 2), (2, 2)), ((2, 2), (1, 3)), ((1, 3), (3, 1)), ((1, 3), (2, 1)), ((1, 5), (3, 1))]
)
def test_pooling_says_only_levels_that_it_makes(windows):
    """Averages of averages are rounded twice, unless the first are exact."""
    spikes = (torch.rand(1, 2, 1, 30, 60) < 0.5).float()
    marked = mark(spikes.to("meta"))
    for window in windows:
        pool = SpikeAvgPool2d(window, keep="spikes")
        spikes, marked = pool(spikes), pool(marked)
    expected = windows[0][0] * windows[0][1]
    parts = parts_of(marked)
    assert parts is None or torch.isin(spikes, torch.arange(parts + 1) / parts).all()
    assert (parts is not None) == (expected in (2, 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [2, 3])
def test_known_levels_are_those_of_pooling(window, dtype):
    spikes = (torch.rand(1, 4, 6 * window, window * 5) < 0.5).to(dtype)
    averages = F.avg_pool2d(spikes, window)
    values = averages.flatten()
    values._srm_parts = window * window, values._version
    table = _known(values)
    assert len(table) == window * window + 1
    saved = _pack(_numbers(values, table), 4), table
    assert torch.equal(decode(saved, Form(averages.shape, averages.stride(), 4)), averages)
