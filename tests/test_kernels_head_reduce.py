"""The reduction over heads: the torch twin against float64, the engine and the Triton kernels against the twin.

Triton must know at its import that it is to interpret: `KernelTests` run in a process of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from kernel_records import INTERPRETED, floats_of_a_gpu, run_in_the_interpreter
from neuroscope_fast import _core
from neuroscope_fast.kernels import reference
from neuroscope_fast.kernels.reference import HEAD_DTYPES, HEAD_REDUCTIONS

EXACT = [reduction for reduction in HEAD_REDUCTIONS if reduction not in ("entropy", "select")]
SOURCES = [torch.float64, *HEAD_DTYPES]
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ENTROPY_TOLERANCE = 2e-6
NAN = float("nan")
INF = float("inf")


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    """The same bits, or NaN in both."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    word = WORDS[got.dtype.itemsize]
    equal = got.contiguous().view(word) == want.contiguous().view(word)
    assert bool((equal | (got.float().isnan() & want.float().isnan())).all())


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Entropies in float32."""
    torch.testing.assert_close(got, want, rtol=ENTROPY_TOLERANCE, atol=1e-37, equal_nan=True)


def engine(tensor: torch.Tensor, reduction: str, head_axis: int, dtype: torch.dtype, **options: Any) -> torch.Tensor:
    data, shape = _core.head_reduce(tensor, head_axis, reduction, dtype=str(dtype)[6:], **options)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)


def values(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """Views of a tensor of four axes: axes 1 and 2 turned, the last in strides, expanded, cut, turned."""
    odd = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)  # an address that is no multiple of 16
    return [
        x,
        x.transpose(1, 2),
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.transpose(2, 3),
        x[..., ::2],
        x[:, :, :1].expand(-1, -1, 3, -1),
        x[:, 1:, 1:],
        odd,
    ]


@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("heads", [None, [4, 0, 3]])
def test_the_twin_is_near_float64(dtype: torch.dtype, heads: list[int] | None) -> None:
    x = values(1, 2, 5, 7, 33).to(dtype)
    exact = x.double()[:, heads] if heads else x.double()
    truths = {
        "mean": exact.mean(1),
        "sum": exact.sum(1),
        "max": exact.amax(1),
        "l2_norm": exact.square().sum(1).sqrt(),
        "select": exact,
    }
    largest = exact.abs().sum(1)
    for reduction, truth in truths.items():
        got = reference.head_reduce(x, reduction, head_axis=1, heads=heads)
        assert got.shape == truth.shape
        error = (got.double() - truth).abs()
        assert bool((error <= (largest if reduction in ("mean", "sum") else truth.abs()) * 4e-7).all())
    turned = x.transpose(1, 2)
    for reduction in EXACT:
        want = reference.head_reduce(x, reduction, head_axis=1, heads=heads)
        assert_same(reference.head_reduce(turned, reduction, head_axis=2, heads=heads), want)


def test_the_twin_rounds_after_every_head() -> None:
    x = values(2, 1, 9, 40, 50)
    total = torch.zeros(40, 50)
    squares = torch.zeros(40, 50)
    for head in range(9):
        total += x[0, head]
        squares += x[0, head] * x[0, head]
    assert_same(reference.head_reduce(x, "sum", head_axis=1)[0], total)
    mean = torch.from_numpy(total.numpy() / np.float32(9))
    assert_same(reference.head_reduce(x, "mean", head_axis=1)[0], mean)
    assert_same(reference.head_reduce(x, "l2_norm", head_axis=1)[0], torch.from_numpy(np.sqrt(squares.numpy())))


@pytest.mark.parametrize("size", [1, 2, 63, 65, 1000])
def test_entropies_are_near_float64(size: int) -> None:
    for sharpness in (0.1, 1.0, 30.0):
        p = (values(size, 2, 3, 4, size) / 100 * sharpness).softmax(-1)
        p64 = p.double()
        truth = -(torch.where(p == 0, 0.0, p64 * p64.log())).sum(-1)
        for got in (reference.head_reduce(p, "entropy", head_axis=1), engine(p, "entropy", 1, torch.float32)):
            assert got.shape == (2, 3, 4)
            assert_close(got, truth.float())


@pytest.mark.parametrize("target", HEAD_DTYPES)
@pytest.mark.parametrize("source", SOURCES)
def test_the_engine_and_the_twin_agree_to_the_bit(source: torch.dtype, target: torch.dtype) -> None:
    x = values(3, 2, 5, 4, 65).to(source)
    x[0, 1, 2, :7] = torch.tensor([0.0, -0.0, INF, -INF, NAN, 1e-40, 3e38]).to(source)
    for tensor in layouts(x):
        for head_axis, heads in ((1, None), (2, [2, 0])):
            for e4m3, e5m2 in ((True, False), (False, True)) if target.itemsize == 1 else ((True, False),):
                rules = {"heads": heads, "e4m3_saturates": e4m3, "e5m2_saturates": e5m2}
                for reduction in [*EXACT, "select"]:
                    want = reference.head_reduce(tensor, reduction, head_axis=head_axis, dtype=target, **rules)
                    assert_same(engine(tensor, reduction, head_axis, target, **rules), want)


@pytest.mark.parametrize("source", SOURCES)
def test_the_engines_entropies(source: torch.dtype) -> None:
    p = (values(4, 2, 5, 4, 300) / 100).softmax(-1).to(source)
    for tensor in layouts(p):
        for head_axis, heads in ((1, None), (2, [2, 0])):
            want = reference.head_reduce(tensor, "entropy", head_axis=head_axis, heads=heads)
            assert_close(engine(tensor, "entropy", head_axis, torch.float32, heads=heads), want)


def special_heads() -> torch.Tensor:
    """[1, 2, 1, 8]."""
    first = [-0.0, -0.0, 0.0, INF, NAN, -INF, 1.0, 2.0]
    second = [0.0, -0.0, -0.0, -INF, 1.0, -INF, NAN, 2.0]
    return torch.tensor([first, second]).view(1, 2, 1, 8)


SPECIAL_RESULTS = {
    "sum": [0.0, -0.0, 0.0, NAN, NAN, -INF, NAN, 4.0],
    "mean": [0.0, -0.0, 0.0, NAN, NAN, -INF, NAN, 2.0],
    "max": [-0.0, -0.0, 0.0, INF, NAN, -INF, NAN, 2.0],
    "l2_norm": [0.0, 0.0, 0.0, INF, NAN, INF, NAN, 8.0**0.5],
}
SPECIAL_ROWS = [[0.0] * 3, [1.0, 0.0, -0.0], [0.5, 0.5, NAN], [0.5, -0.1, 0.0], [INF, 0.0, 0.0], [0.0, -INF, 0.0]]
SPECIAL_ENTROPIES = [0.0, 0.0, NAN, NAN, -INF, NAN]


def check_special_values(reduce: Any) -> None:
    """`reduce(tensor, reduction)` over axis 1; also that a NaN is the one of float32's that all twins give."""
    cases = [(special_heads(), reduction, [[want]]) for reduction, want in SPECIAL_RESULTS.items()]
    cases.append((torch.tensor(SPECIAL_ROWS).view(1, 1, 6, 3), "entropy", [[SPECIAL_ENTROPIES]]))
    for tensor, reduction, want in cases:
        got = reduce(tensor, reduction)
        expected = torch.tensor(want).view(got.shape)
        assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), (reduction, got)


def test_zeros_infinities_and_nans() -> None:
    check_special_values(lambda x, reduction: reference.head_reduce(x, reduction, head_axis=1))
    check_special_values(lambda x, reduction: engine(x, reduction, 1, torch.float32))
    assert torch.equal(
        reference.head_reduce(special_heads(), "max", head_axis=1)[..., :4], special_heads().amax(1)[..., :4]
    )


def test_empty_results_and_rows_without_elements() -> None:
    for shape in ((2, 3, 0, 5), (0, 3, 4, 5), (2, 3, 4, 0)):
        x = torch.ones(shape)
        for reduction in HEAD_REDUCTIONS:
            want = reference.head_reduce(x, reduction, head_axis=1, heads=[2, 0])
            assert_same(engine(x, reduction, 1, torch.float32, heads=[2, 0]), want)
    assert reference.head_reduce(torch.ones(2, 3, 4, 0), "entropy", head_axis=1).tolist() == [[[0.0] * 4] * 3] * 2


REFUSALS = [
    ({"heads": []}, "no heads are chosen; name at least one"),
    ({"heads": [0, 3]}, "there is no head 3; the heads are 0 to 2"),
    ({"heads": [-1]}, "there is no head -1"),
    ({"heads": [1, 0, 1]}, "head 1 is chosen twice; name each head once"),
    ({"head_axis": 3}, "the head axis is 1 or 2, not 3; transpose"),
    ({"reduction": "average"}, "there is no reduction 'average'; use mean, sum, max, l2_norm, entropy, select"),
    ({"tensor": torch.ones(3, 4)}, "needs a tensor of 4 axes, not 2; view it"),
    ({"tensor": torch.ones(1, 0, 2, 4)}, "the tensor has no heads; check the head axis"),
    ({"tensor": torch.ones(1, 3, 2, 4, dtype=torch.int64)}, "int64 cannot be reduced; cast the tensor"),
    ({"dtype": torch.int32}, "cannot be stored as .*int32; use .*float32"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_refusals_say_what_to_change(change: dict[str, Any], message: str) -> None:
    arguments = {"tensor": torch.ones(1, 3, 2, 4), "reduction": "mean", "head_axis": 1, "heads": None, **change}
    with pytest.raises(ValueError, match=message):
        reference.head_reduce(arguments.pop("tensor"), arguments.pop("reduction"), **arguments)
    arguments = {
        "tensor": torch.ones(1, 3, 2, 4),
        "reduction": "mean",
        "head_axis": 1,
        "dtype": torch.float32,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        engine(**arguments)


class KernelTests:
    """Collected only where Triton interprets."""

    @pytest.fixture(autouse=True)
    def _floats_of_a_gpu(self) -> Iterator[None]:
        with floats_of_a_gpu():
            yield

    @pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
    def test_awkward_sizes_and_layouts(self, size: int) -> None:
        from neuroscope_fast.kernels.head_reduce import head_reduce

        x = values(size, 2, 3, 4, size)
        for number, tensor in enumerate(layouts(x)):
            options = {"head_axis": 2 if number in (1, 5, 6) else 1, "heads": [1, 0] if number % 3 == 0 else None}
            for reduction in [*EXACT, "select"]:
                assert_same(
                    head_reduce(tensor, reduction, **options), reference.head_reduce(tensor, reduction, **options)
                )
            p = (tensor / 100).softmax(-1)
            got, want = head_reduce(p, "entropy", **options), reference.head_reduce(p, "entropy", **options)
            assert_close(got, want)

    @pytest.mark.parametrize("source", SOURCES)
    def test_dtypes(self, source: torch.dtype) -> None:
        from neuroscope_fast.kernels.head_reduce import head_reduce

        x = values(5, 1, 5, 3, 64).to(source)
        for target in HEAD_DTYPES:
            for saturates in (True, False) if target.itemsize == 1 else (True,):
                rules = {"head_axis": 1, "dtype": target, "e4m3_saturates": saturates, "e5m2_saturates": saturates}
                for reduction in ("mean", "l2_norm", "select"):
                    assert_same(head_reduce(x, reduction, **rules), reference.head_reduce(x, reduction, **rules))

    def test_zeros_infinities_and_nans(self) -> None:
        from neuroscope_fast.kernels.head_reduce import head_reduce

        check_special_values(lambda x, reduction: head_reduce(x, reduction, head_axis=1))
        assert head_reduce(torch.ones(2, 3, 4, 0), "entropy", head_axis=1).tolist() == [[[0.0] * 4] * 3] * 2
        assert head_reduce(torch.ones(2, 3, 0, 4), "mean", head_axis=1).shape == (2, 0, 4)

    def test_probabilities_of_every_size(self) -> None:
        from neuroscope_fast.kernels.head_reduce import head_reduce

        codes = torch.arange(1, 0x3F800001, 99991, dtype=torch.int32)
        p = torch.cat([codes, 0x3F800000 - torch.arange(300, dtype=torch.int32)]).view(torch.float32).view(1, 1, -1, 1)
        assert_close(head_reduce(p, "entropy", head_axis=1), reference.head_reduce(p, "entropy", head_axis=1))

    @pytest.mark.parametrize("aligned", [False, True])
    def test_every_cut(self, aligned: bool) -> None:
        step = 16 if aligned else 7
        x = values(6, 2, 2, 2, 2 * step).transpose(1, 2).contiguous()  # [2, 2, heads, length]
        want = reference.head_reduce(x, "sum", head_axis=2).reshape(-1)
        for tile in ((1, 32), (4, 16)):
            for begin in range(0, want.numel(), step):
                for count in range(step, want.numel() - begin + 1, step):
                    self.cut(x, want, (begin, count), tile, aligned)

    def cut(
        self, x: torch.Tensor, want: torch.Tensor, piece: tuple[int, int], tile: tuple[int, int], aligned: bool
    ) -> None:
        from neuroscope_fast.kernels.head_reduce import fold_heads

        (begin, count), (rows, columns), length = piece, tile, x.shape[3]
        memory = torch.full((count + 32,), 7.0)
        touched = (begin + count - 1) // length - begin // length + 1
        programs = -(-touched // rows) * -(-(count if touched == 1 else length) // columns)
        fold_heads[(programs,)](
            x.view(torch.int32),
            memory[16:].view(torch.int32),
            None,
            begin,
            count,
            2,
            x.stride(2),
            length,
            1,
            2,
            x.stride(1),
            x.stride(0),
            SOURCE="float32",
            TARGET="float32",
            REDUCTION="sum",
            ROWS=rows,
            COLUMNS=columns,
            TABLE=False,
            ALIGNED=aligned,
            E4M3_SATURATES=True,
            E5M2_SATURATES=False,
        )
        assert torch.equal(memory[16 : 16 + count], want[begin : begin + count])
        assert bool((memory[:16] == 7).all() and (memory[16 + count :] == 7).all())


if INTERPRETED:
    TestKernels = KernelTests
else:

    def test_the_kernels_in_the_interpreter() -> None:
        run_in_the_interpreter(__file__)

    def test_the_cpu_needs_the_interpreter() -> None:
        from neuroscope_fast.kernels.head_reduce import head_reduce

        with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
            head_reduce(torch.ones(1, 2, 3, 4), "mean", head_axis=1)
