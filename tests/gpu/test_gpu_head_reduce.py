"""The reduction over heads on a GPU: the Triton kernels exactly as their twin, which runs there too."""

from __future__ import annotations

import pytest
import torch
from neuroscope_fast.kernels import reference
from neuroscope_fast.kernels.reference import HEAD_DTYPES, HEAD_REDUCTIONS
from test_kernels_head_reduce import EXACT, SOURCES, assert_close, assert_same, check_special_values, layouts, values

head_reduce = pytest.importorskip("neuroscope_fast.kernels.head_reduce").head_reduce

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 1024, 4099])
def test_sizes_and_layouts(size: int) -> None:
    x = values(size, 2, 8, 33, size).cuda()
    for tensor in layouts(x):
        for head_axis in (1, 2):
            if tensor.shape[head_axis] > 64:
                continue
            heads = list(range(tensor.shape[head_axis]))[::-2]
            for chosen in (None, heads):
                for reduction in [*EXACT, "select"]:
                    got = head_reduce(tensor, reduction, head_axis=head_axis, heads=chosen)
                    assert_same(got, reference.head_reduce(tensor, reduction, head_axis=head_axis, heads=chosen))
                p = (tensor / 100).softmax(-1)
                got = head_reduce(p, "entropy", head_axis=head_axis, heads=chosen)
                assert_close(got, reference.head_reduce(p, "entropy", head_axis=head_axis, heads=chosen))


@pytest.mark.parametrize("target", HEAD_DTYPES)
@pytest.mark.parametrize("source", SOURCES)
def test_dtypes(source: torch.dtype, target: torch.dtype) -> None:
    x = values(1, 2, 6, 5, 160).to(source).cuda()
    for saturates in (True, False):
        rules = {"head_axis": 1, "dtype": target, "e4m3_saturates": saturates, "e5m2_saturates": saturates}
        for reduction in [*EXACT, "select"]:
            assert_same(head_reduce(x, reduction, **rules), reference.head_reduce(x, reduction, **rules))


def test_the_gpu_and_the_cpu_agree() -> None:
    x = values(2, 1, 32, 64, 128)
    for reduction in EXACT:
        got = head_reduce(x.cuda(), reduction, head_axis=1).cpu()
        assert_same(got, reference.head_reduce(x, reduction, head_axis=1))


def test_zeros_infinities_and_nans() -> None:
    check_special_values(lambda x, reduction: head_reduce(x.cuda(), reduction, head_axis=1).cpu())


def test_probabilities_of_every_size() -> None:
    codes = torch.arange(1, 0x3F800001, 997, dtype=torch.int32)
    p = codes.view(torch.float32).view(1, 1, -1, 1).cuda()
    assert_close(head_reduce(p, "entropy", head_axis=1), reference.head_reduce(p, "entropy", head_axis=1))


@pytest.mark.parametrize("reduction", HEAD_REDUCTIONS)
def test_more_elements_than_32_bits_count(reduction: str) -> None:
    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GiB of free GPU memory")
    x = torch.zeros(1, 2, 33000, 32768, dtype=torch.bfloat16, device="cuda")  # 2.2e9 elements
    x[0, 1, -1] = 0.5
    got = head_reduce(x, reduction, head_axis=1, heads=[1], dtype=torch.float8_e5m2)
    rows = slice(-16, None)
    want = reference.head_reduce(x[:, :, rows], reduction, head_axis=1, heads=[1], dtype=torch.float8_e5m2)
    assert_same(got[..., rows] if reduction == "entropy" else got[..., rows, :], want)
