"""gather_cast in Triton's interpreter against the engine's own casts, and its torch twin against them too.

Triton must know at its import that it is to interpret: `KernelTests` run in a process of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_records import INTERPRETED, SOURCES, TARGETS, WORDS, Record, grid, record_of, run_in_the_interpreter
from neuroscope_fast import _core
from neuroscope_fast.kernels import reference
from test_casts import patterns

RULES = list(itertools.product([True, False], repeat=2))
GUARD = 32  # elements on both sides of a target that no kernel may write


def engine_cast(tensor: torch.Tensor, target: str, e4m3: bool = True, e5m2: bool = False) -> torch.Tensor:
    """What the CPU engine makes of a tensor, flat."""
    data, _ = _core.cast(tensor, target, e4m3_saturates=e4m3, e5m2_saturates=e5m2)
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, target))


def assert_same(got: torch.Tensor, want: torch.Tensor, *, signs: bool) -> None:
    """The same bits; of a NaN only that it is one, and its sign where `signs`."""
    words = WORDS[want.dtype.itemsize]
    nan = torch.isnan(want.float()) if want.is_floating_point() else torch.zeros(want.shape, dtype=torch.bool)
    got_nan = torch.isnan(got.float()) if got.is_floating_point() else nan
    assert torch.equal(nan, got_nan)
    same = got.view(words) == want.view(words)
    if signs:
        nan = nan & ((got.view(words) < 0) == (want.view(words) < 0))
    assert bool((same | nan).all()), torch.nonzero(~(same | nan)).flatten()[:10]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_the_twin_casts_as_the_engine_does(source: str, target: str) -> None:
    values = patterns(source)
    for e4m3, e5m2 in RULES:
        got = reference.downcast(values, getattr(torch, target), e4m3_saturates=e4m3, e5m2_saturates=e5m2)
        assert_same(got, engine_cast(values, target, e4m3, e5m2), signs=target.startswith("float8"))


def test_the_twin_picks_positions() -> None:
    x = torch.randn(3, 5, 4)
    assert torch.equal(reference.downcast(x, torch.float32, axis=1, indices=torch.tensor([4, 0])), x[:, [4, 0]])
    rows = torch.tensor([[1], [2], [0]])
    want = torch.stack([x[0, [1]], x[1, [2]], x[2, [0]]])
    assert torch.equal(reference.downcast(x, torch.float32, axis=1, indices=rows), want)


def test_the_twin_finds_elements_as_torch_does() -> None:
    x = torch.arange(120).view(2, 3, 4, 5)
    for tensor in (
        x,
        x.transpose(1, 3),
        x[:, 1:, ::2],
        x[0],
        x[0, 0, 0],
        x.permute(3, 0, 2, 1),
        x[:, :1].expand(2, 7, 4, 5),
    ):
        assert torch.equal(record_of(tensor).elements(), tensor.reshape(-1))


class KernelTests:
    """Collected only where Triton interprets."""

    @pytest.fixture(autouse=True)
    def _floats_of_a_gpu(self) -> Iterator[None]:
        with np.errstate(all="ignore"):  # a GPU raises no flags for a NaN or an overflow
            yield

    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("source", SOURCES)
    def test_every_cast_is_the_engines(self, source: str, target: str) -> None:
        values = patterns(source)
        record = record_of(values)
        for e4m3, e5m2 in RULES if target.startswith("float8") else RULES[:1]:
            got = run(record, target, tile=(1, 1 << 16), e4m3=e4m3, e5m2=e5m2)
            assert_same(got, engine_cast(values, target, e4m3, e5m2), signs=True)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
    def test_copies_of_what_is_no_float(self, dtype: torch.dtype) -> None:
        x = torch.randint(-100, 100, (9, 7), dtype=torch.int64).to(dtype)
        record = record_of(x.t())
        assert torch.equal(run(record, str(dtype)[6:], tile=(4, 16)), x.t().reshape(-1))

    @pytest.mark.parametrize("length", [1, 63, 65, 1000])
    def test_awkward_lengths(self, length: int) -> None:
        x = torch.randn(3, 5, length, generator=torch.Generator().manual_seed(length))
        for tensor in (x, x.transpose(0, 1), x.transpose(1, 2), x[..., ::2], x[:, :1].expand(3, 4, length)):
            for tile in ((16, 64), (64, 16)):
                got = run(record_of(tensor), "bfloat16", tile=tile)
                assert torch.equal(got, tensor.reshape(-1).to(torch.bfloat16))
        flat = record_of(x.reshape(-1))
        assert torch.equal(run(flat, "bfloat16", tile=(1, 256)), x.reshape(-1).to(torch.bfloat16))
        assert torch.equal(run(flat, "bfloat16", tile=(1, 256), aligned=True), x.reshape(-1).to(torch.bfloat16))

    def test_aligned_rows(self) -> None:
        x = torch.randn(4, 6, 48).transpose(0, 1)
        want = x.reshape(-1).to(torch.float16)
        for begin, count in ((0, 1152), (16, 32), (160, 64), (96, 1040)):
            got = run(record_of(x), "float16", begin, count, tile=(4, 32), aligned=True)
            assert torch.equal(got, want[begin : begin + count])

    def test_every_cut_of_a_small_record(self) -> None:
        x = torch.arange(21, dtype=torch.float32).view(3, 7)
        for begin in range(21):
            for count in range(1, 22 - begin):
                got = run(record_of(x), "float32", begin, count, tile=(2, 4))
                assert torch.equal(got, x.reshape(-1)[begin : begin + count])

    def test_negative_strides(self) -> None:
        storage = torch.arange(60, dtype=torch.float32)
        record = Record(storage, 59, 5, -1, (4, 3, 1), (-5, -20, 0))
        # Backwards every address lies before the first: the kernel gets the whole storage and starts at its end.
        assert torch.equal(run(record, "float32", tile=(4, 16)), storage.flip(0))

    @pytest.mark.parametrize("looked_up", [1, 2, 3])
    def test_positions_from_a_table(self, looked_up: int) -> None:
        x = torch.randn(4, 3, 6, 10)
        steps = (10, 60, 180)
        kept = torch.tensor([2, 0])
        sizes = [6, 3, 4]
        sizes[looked_up - 1] = 2
        record = Record(x.reshape(-1), 0, 10, 1, (sizes[0], sizes[1], sizes[2]), steps, kept * steps[looked_up - 1])
        record = Record(**{**vars(record), "looked_up": looked_up})
        want = reference.downcast(x, torch.bfloat16, axis=3 - looked_up, indices=kept)
        assert torch.equal(run(record, "bfloat16", tile=(8, 16)), want.reshape(-1))
        assert torch.equal(run(record, "bfloat16", 13, 50, tile=(2, 4)), want.reshape(-1)[13:63])

    @pytest.mark.parametrize("looked_up", [1, 2])
    def test_positions_of_each_prompt(self, looked_up: int) -> None:
        x = torch.randn(4, 3, 6, 10)
        kept = torch.tensor([[0, 2], [2, 1], [1, 1], [0, 1]])
        table = kept * (10 if looked_up == 1 else 60)
        sizes = (2, 3, 4) if looked_up == 1 else (6, 2, 4)
        record = Record(x.reshape(-1), 0, 10, 1, sizes, (10, 60, 180), table, looked_up, True)
        want = reference.downcast(x, torch.float16, axis=3 - looked_up, indices=kept)
        assert torch.equal(run(record, "float16", tile=(4, 16)), want.reshape(-1))

    @settings(max_examples=60)
    @given(st.data())
    def test_any_layout_and_any_cut(self, data: st.DataObject) -> None:
        sizes = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
        length = data.draw(st.integers(1, 40))
        steps = data.draw(st.tuples(*[st.integers(-9, 9)] * 4))
        looked_up = data.draw(st.integers(0, 3))
        per_row = looked_up in (1, 2) and data.draw(st.booleans())
        shape = (sizes[2], sizes[looked_up - 1]) if per_row else (sizes[looked_up - 1],)
        table = torch.randint(-30, 30, shape, dtype=torch.int64) if looked_up else None
        storage = torch.randn(800)
        record = Record(storage, 400, length, steps[0], sizes, steps[1:], table, looked_up, per_row)
        total = record.rows * length
        begin = data.draw(st.integers(0, total - 1))
        count = data.draw(st.integers(1, total - begin))
        tile = data.draw(st.sampled_from([(2, 4), (4, 16), (8, 8), (16, 1)]))
        got = run(record, "float32", begin, count, tile=tile)
        assert torch.equal(got, record.elements()[begin : begin + count])

    def test_beyond_what_32_bits_count(self, tmp_path: Path) -> None:
        size = 2**33 + 100  # a file of holes: nothing but the few bytes that are set is ever stored
        path = tmp_path / "holes"
        with path.open("wb") as file:
            file.truncate(size)
        storage = torch.from_file(str(path), shared=True, size=size, dtype=torch.int8)
        try:
            storage[2**33 + 5 : 2**33 + 25] = torch.arange(20, dtype=torch.int8)
            row = Record(storage, 0, size, 1)
            assert torch.equal(run(row, "int8", 2**33 + 5, 20, tile=(1, 16)), torch.arange(20, dtype=torch.int8))
            assert torch.equal(run(row, "int8", 2**33 + 5, 20, tile=(2, 16)), torch.arange(20, dtype=torch.int8))
            rows = Record(storage, 0, 2**32 + 50, 1, (2, 1, 1), (2**32 + 50, 0, 0))
            assert torch.equal(run(rows, "int8", 2**33 + 5, 20, tile=(2, 16)), torch.arange(20, dtype=torch.int8))
        finally:
            del storage, row, rows
            path.unlink()


def run(
    record: Record,
    target: str,
    begin: int = 0,
    count: int | None = None,
    *,
    tile: tuple[int, int],
    aligned: bool = False,
    e4m3: bool = True,
    e5m2: bool = False,
) -> torch.Tensor:
    """Elements [begin, begin + count) as gather_cast stores them; asserts that it writes nothing else."""
    from neuroscope_fast.kernels.downcast import gather_cast

    count = record.rows * record.length - begin if count is None else count
    kind = getattr(torch, target)
    source = str(record.storage.dtype).removeprefix("torch.")
    memory = torch.full(((count + 2 * GUARD) * kind.itemsize,), 0x5A, dtype=torch.uint8)
    words: Any = memory.view(WORDS[kind.itemsize])
    table = record.table if record.table is not None else torch.zeros(1, dtype=torch.int64)
    rows, columns = tile
    assert rows > 1 or record.rows == 1
    gather_cast[(grid(record, begin, count, rows, columns),)](
        record.words(),
        words[GUARD:],
        table,
        begin,
        count,
        *record.layout(),
        SOURCE=source,
        TARGET=target,
        ROWS=rows,
        COLUMNS=columns,
        **record.constants(),
        ALIGNED=aligned,
        E4M3_SATURATES=e4m3,
        E5M2_SATURATES=e5m2,
        NATIVE=False,
    )
    outside = torch.cat([memory[: GUARD * kind.itemsize], memory[(GUARD + count) * kind.itemsize :]])
    assert bool((outside == 0x5A).all())
    return words[GUARD : GUARD + count].view(kind)


if INTERPRETED:
    TestKernels = KernelTests
else:

    def test_the_kernel_in_the_interpreter() -> None:
        run_in_the_interpreter(__file__)
