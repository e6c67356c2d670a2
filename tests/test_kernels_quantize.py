"""The kernel `quantize` in Triton's interpreter against the engine's own rows of int8, and its torch twin too.

Triton must know at its import that it is to interpret: `KernelTests` run in a process of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_records import INTERPRETED, SOURCES, Record, record_of, run_in_the_interpreter
from neuroscope_fast import _core
from neuroscope_fast.kernels import reference
from test_casts import patterns

GUARD = 8  # elements on both sides of a target that no kernel may write


def engine_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of the CPU engine, flat."""
    data, scales = _core.cast(tensor, "int8")
    return torch.frombuffer(bytearray(data), dtype=torch.int8), torch.frombuffer(bytearray(scales), dtype=torch.float32)


def hard_rows(source: str, sampled: int) -> torch.Tensor:
    """Rows [n, 64]: `sampled` or so of every kind of number of a dtype, with and without what is not finite; then rows
    whose scale is subnormal, so that codes are cut off at 127, or zero though they are not; ties; and rows of zeros
    with one element that is not finite, or not as float32.
    """
    values = patterns(source)
    usual = values[: len(values) // 64 * 64].view(-1, 64)
    finite = torch.nan_to_num(usual.to(torch.float64), nan=1.0, posinf=1.0, neginf=-1.0).to(usual.dtype)
    small = torch.arange(64 * 8, dtype=torch.float64).view(8, 64) * 2.0**-149 * torch.tensor([1.0, -1.0]).repeat(32)
    ties = (torch.arange(64, dtype=torch.float64)[None] * 2 - 127) * torch.tensor([[0.5], [1.0], [3.0]]).double()
    zeros = torch.zeros(6, 64, dtype=torch.float64)
    zeros[range(5), range(5)] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e300, -1e300]).double()
    special = torch.cat([small, ties, zeros]).to(usual.dtype)
    return torch.cat([part[:: 1 + 2 * len(part) // sampled] for part in (usual, finite)] + [special])


@pytest.mark.parametrize("source", SOURCES)
def test_the_twin_quantises_as_the_engine_does(source: str) -> None:
    rows = hard_rows(source, 1400)
    codes, scales = reference.quantize(rows)
    want_codes, want_scales = engine_rows(rows)
    assert torch.equal(codes.reshape(-1), want_codes)
    assert torch.equal(torch.isnan(scales), torch.isnan(want_scales))
    assert torch.equal(torch.nan_to_num(scales), torch.nan_to_num(want_scales))
    assert bool(torch.isnan(scales).any())
    assert bool((scales == 0).any())


def test_the_twin_of_shapes_without_rows() -> None:
    codes, scale = reference.quantize(torch.tensor(-2.54))
    assert (codes.shape, scale.shape, int(codes)) == ((), (), -127)
    codes, scale = reference.quantize(torch.empty(3, 0))
    assert codes.shape == (3, 0)
    assert scale.tolist() == [0, 0, 0]


class KernelTests:
    """Collected only where Triton interprets."""

    @pytest.fixture(autouse=True)
    def _floats_of_a_gpu(self) -> Iterator[None]:
        with np.errstate(all="ignore"):  # a GPU raises no flags for a NaN or a division by zero
            yield

    @pytest.mark.parametrize("source", SOURCES)
    def test_hard_rows(self, source: str) -> None:
        rows = hard_rows(source, 80)
        check(record_of(rows), rows, columns=64)

    @pytest.mark.parametrize("length", [1, 63, 65, 1000])
    def test_awkward_lengths(self, length: int) -> None:
        x = torch.randn(3, 5, length, generator=torch.Generator().manual_seed(length)).to(torch.bfloat16)
        for tensor in (x, x.transpose(0, 1), x[..., ::2], x[:, :1].expand(3, 4, length), x.permute(1, 2, 0)[:, :9]):
            check(record_of(tensor), tensor, columns=64 if length < 100 else 256)

    def test_rows_of_nothing_have_the_scale_zero(self) -> None:
        record = Record(torch.zeros(1), 0, 0, 1, (3, 1, 1), (0, 0, 0))
        _, scales = run(record, 0, 3, 0, 0, write=2, columns=16)
        assert scales.tolist() == [0, 0, 0]

    def test_aligned_rows(self) -> None:
        x = torch.randn(6, 4, 48).transpose(0, 1)
        check(record_of(x), x, columns=32, aligned=True)

    def test_positions_of_each_prompt(self) -> None:
        x = torch.randn(4, 6, 10)
        kept = torch.tensor([[0, 2], [2, 5], [1, 1], [0, 1]])
        record = Record(x.reshape(-1), 0, 10, 1, (2, 1, 4), (10, 0, 60), kept * 10, 1, True)
        check(record, reference.downcast(x, torch.float32, axis=1, indices=kept), columns=16)

    @settings(max_examples=25)
    @given(st.data())
    def test_any_cut(self, data: st.DataObject) -> None:
        x = torch.randn(3, 4, 21)
        want_codes, want_scales = engine_rows(x)
        first_row = data.draw(st.integers(0, 11))
        rows = data.draw(st.integers(1, 12 - first_row))
        begin = data.draw(st.integers(0, 12 * 21 - 1))
        count = data.draw(st.integers(1, 12 * 21 - begin))
        write = data.draw(st.sampled_from([1, 2, 3]))
        codes, scales = run(record_of(x), first_row, rows, begin, count, write=write, columns=8)
        # Codes of rows outside the launch, and what WRITE leaves out, stay what they were.
        element = torch.arange(begin, begin + count)
        launched = (element // 21 >= first_row) & (element // 21 < first_row + rows) & bool(write & 1)
        assert torch.equal(codes, torch.where(launched, want_codes[begin : begin + count], 0x5A))
        untouched = torch.full((rows,), 0x5A5A5A5A, dtype=torch.int32).view(torch.float32)
        assert torch.equal(scales, want_scales[first_row : first_row + rows] if write & 2 else untouched)


def check(record: Record, tensor: torch.Tensor, *, columns: int, aligned: bool = False) -> None:
    """All codes and scales of a record in one launch, against the engine's."""
    want_codes, want_scales = engine_rows(tensor)
    codes, scales = run(record, 0, record.rows, 0, tensor.numel(), write=3, columns=columns, aligned=aligned)
    assert torch.equal(codes, want_codes)
    assert torch.equal(torch.isnan(scales), torch.isnan(want_scales))
    assert torch.equal(torch.nan_to_num(scales), torch.nan_to_num(want_scales))


def run(
    record: Record,
    first_row: int,
    rows: int,
    begin: int,
    count: int,
    *,
    write: int,
    columns: int,
    aligned: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [count] and scales [rows] of one launch; asserts that it writes nothing else."""
    from neuroscope_fast.kernels.quantize import quantize

    codes = torch.full((count + 2 * GUARD,), 0x5A, dtype=torch.int8)
    scales = torch.full((rows + 2 * GUARD,), 0x5A5A5A5A, dtype=torch.int32)
    table = record.table if record.table is not None else torch.zeros(1, dtype=torch.int64)
    quantize[(rows,)](
        record.words(),
        codes[GUARD:],
        scales.view(torch.float32)[GUARD:],
        table,
        first_row,
        begin,
        count,
        *record.layout(),
        SOURCE=str(record.storage.dtype).removeprefix("torch."),
        COLUMNS=columns,
        **record.constants(),
        ALIGNED=aligned,
        WRITE=write,
    )
    for memory in (codes, scales):
        assert len(set(torch.cat([memory[:GUARD], memory[-GUARD:]]).tolist())) == 1
    return codes[GUARD:-GUARD], scales.view(torch.float32)[GUARD:-GUARD]


if INTERPRETED:
    TestKernels = KernelTests
else:

    def test_the_kernel_in_the_interpreter() -> None:
        run_in_the_interpreter(__file__)
