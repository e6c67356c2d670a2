"""gather_cast and quantize on a GPU, exactly as their twins, launched in both ways: by the driver and by Triton."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_records import SOURCES, TARGETS, WORDS, Record, grid, record_of
from neuroscope_fast.kernels import reference
from neuroscope_fast.kernels.launch import Kernel, load, row_columns, tiles
from test_casts import patterns

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
Launch = Callable[[Kernel, int, tuple[int, ...]], None]


def through_triton(kernel: Kernel, blocks: int, arguments: tuple[int, ...]) -> None:
    kernel.launch(blocks, torch.cuda.current_stream().cuda_stream, arguments)


def through_the_driver(kernel: Kernel, blocks: int, arguments: tuple[int, ...]) -> None:
    """cuLaunchKernel on the image alone, as the engine does it in C++."""
    if torch.version.hip is not None:
        assert kernel.image is None
        through_triton(kernel, blocks, arguments)
        return
    assert kernel.image is not None, kernel.reason
    cuda = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert cuda.cuModuleLoadData(ctypes.byref(module), kernel.image) == 0
    try:
        assert cuda.cuModuleGetFunction(ctypes.byref(function), module, kernel.name.encode()) == 0
        values = [ctypes.c_int64(value) for value in (*arguments, *[0] * kernel.trailing_pointers)]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        block = (kernel.warps * 32, 1, 1)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        assert cuda.cuLaunchKernel(function, blocks, 1, 1, *block, kernel.shared, stream, pointers, None) == 0
        torch.cuda.synchronize()
    finally:
        assert cuda.cuModuleUnload(module) == 0


@pytest.fixture(params=[through_triton, through_the_driver], ids=lambda way: way.__name__)
def launch(request: pytest.FixtureRequest) -> Launch:
    torch.cuda.current_stream().synchronize()  # creates the context that the driver's calls need
    way: Launch = request.param
    return way


def cast(
    launch: Launch, record: Record, target: str, begin: int = 0, count: int | None = None, **options: Any
) -> torch.Tensor:
    """Elements [begin, begin + count) as gather_cast stores them; asserts that it writes nothing behind them."""
    count = record.rows * record.length - begin if count is None else count
    rows, columns = tiles(record.length, record.rows)
    kernel = load(
        "gather_cast",
        str(record.storage.dtype).removeprefix("torch."),
        target,
        table=record.looked_up,
        per_row=record.per_row,
        write=3,
        rows=rows,
        columns=columns,
        device=torch.cuda.current_device(),
        **{"aligned": False, "e4m3_saturates": True, "e5m2_saturates": False, **options},
    )
    kind = getattr(torch, target)
    out = torch.full((count + 16,), 0x5A, dtype=WORDS[kind.itemsize], device="cuda")
    table = 0 if record.table is None else record.table.data_ptr()
    arguments = (record.words().data_ptr(), out.data_ptr(), table, begin, count, *record.layout())
    launch(kernel, grid(record, begin, count, rows, columns), arguments)
    torch.cuda.synchronize()
    assert out[count:].tolist() == [0x5A] * 16
    return out[:count].view(kind)


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    words = WORDS[want.dtype.itemsize]
    both_nan = torch.isnan(got.float()) & torch.isnan(want.float())
    assert bool(((got.view(words) == want.view(words)) | both_nan).all())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_cast(launch: Launch, source: str, target: str) -> None:
    values = patterns(source).cuda()
    for e4m3 in (True, False):
        for e5m2 in (True, False):
            for aligned in (True, False):
                rules = {"e4m3_saturates": e4m3, "e5m2_saturates": e5m2}
                got = cast(launch, record_of(values), target, aligned=aligned, **rules)
                assert_same(got, reference.downcast(values, getattr(torch, target), **rules))


@pytest.mark.parametrize("length", [1, 63, 65, 1000, 5000])
def test_strided_and_cut_records(launch: Launch, length: int) -> None:
    x = torch.randn(3, 50, length, device="cuda")
    for tensor in (x, x.transpose(0, 1), x.transpose(1, 2), x[..., ::2], x[:, :1].expand(3, 9, length)):
        want = tensor.reshape(-1).to(torch.bfloat16)
        assert torch.equal(cast(launch, record_of(tensor), "bfloat16"), want)
        begin, count = len(want) // 3, len(want) // 2
        assert torch.equal(cast(launch, record_of(tensor), "bfloat16", begin, count), want[begin : begin + count])


def test_aligned_rows_and_positions(launch: Launch) -> None:
    x = torch.randn(4, 70, 8, 128, device="cuda").to(torch.bfloat16)
    for tensor in (x, x.transpose(1, 2)):
        got = cast(launch, record_of(tensor), "float8_e4m3fn", 128, 128 * 1999, aligned=True)
        assert_same(got, reference.downcast(tensor, torch.float8_e4m3fn).reshape(-1)[128 : 128 * 2000])
    kept = torch.tensor([[0, 69], [3, 3], [5, 1], [68, 2]], device="cuda")
    want = reference.downcast(x, torch.float16, axis=1, indices=kept).reshape(-1)
    record = Record(x.reshape(-1), 0, 128, 1, (8, 2, 4), (128, 0, 70 * 1024), kept * 1024, 2, True)
    assert torch.equal(cast(launch, record, "float16", aligned=True), want)
    on_host = (kept * 1024).cpu().pin_memory()
    mapped = Record(x.reshape(-1), 0, 128, 1, (8, 2, 4), (128, 0, 70 * 1024), on_host, 2, True)
    assert torch.equal(cast(launch, mapped, "float16"), want)


def test_beyond_what_32_bits_count(launch: Launch) -> None:
    x = torch.zeros(2**32 + 4096, dtype=torch.int8, device="cuda")
    x[2**32 + 5 : 2**32 + 25] = torch.arange(20)
    got = cast(launch, record_of(x), "int8", 2**32 + 5, 20)
    assert got.tolist() == list(range(20))
    got = cast(launch, record_of(x.view(2, -1)), "int8", 2**32 + 5, 20)
    assert got.tolist() == list(range(20))
    whole = cast(launch, record_of(x), "int8")  # offsets within one launch
    assert torch.equal(whole[-4096:], x[-4096:])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("length", [1, 63, 64, 1000, 5000])
def test_quantize(launch: Launch, source: str, length: int) -> None:
    values = patterns(source).cuda()
    values = values.repeat(-(-20 * length // len(values)))[: 20 * length].view(20, length)
    normal = torch.randn(20, length, device="cuda").to(getattr(torch, source))
    for tensor in (values, normal, normal.t().contiguous().t()):
        record = record_of(tensor)
        for aligned in {False, length == 64 and record.stride == 1}:
            kernel = load(
                "quantize",
                source,
                "int8",
                table=0,
                per_row=False,
                write=3,
                rows=1,
                columns=row_columns(length),
                aligned=aligned,
                e4m3_saturates=True,
                e5m2_saturates=False,
                device=torch.cuda.current_device(),
            )
            codes = torch.full((tensor.numel(),), 0x5A, dtype=torch.int8, device="cuda")
            scales = torch.full((20,), 7.0, device="cuda")
            out = (codes.data_ptr(), scales.data_ptr(), 0, 0, 0, tensor.numel())
            launch(kernel, 20, (record.words().data_ptr(), *out, *record.layout()))
            torch.cuda.synchronize()
            want_codes, want_scales = reference.quantize(tensor)
            assert torch.equal(codes, want_codes.reshape(-1))
            assert_same(scales, want_scales)
