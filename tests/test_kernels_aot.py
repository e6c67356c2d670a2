"""Every family of kernels, compiled for GPUs that are not there: the images are what the engine expects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from kernel_records import SOURCES, TARGETS
from neuroscope_fast.kernels.launch import WARPS, Variant, compile_variant, describe, import_triton, parse_parameters

GATHER = "ppp" + "l" * 10
QUANTIZE = "pppp" + "l" * 11
FAMILIES = {
    "one aligned row": Variant("gather_cast", "float32", "bfloat16", aligned=True),
    "one row": Variant("gather_cast", "float16", "float8_e5m2"),
    "aligned rows, a table for each prompt": Variant(
        "gather_cast", "bfloat16", "float8_e4m3fn", table=1, per_row=True, rows=4, columns=1024, aligned=True
    ),
    "rows": Variant("gather_cast", "float64", "float8_e5m2", rows=256, columns=16, e5m2_saturates=True),
    "a copy of rows with a table": Variant("gather_cast", "int64", "int64", table=3, rows=32, columns=128),
    "aligned int8": Variant("quantize", "bfloat16", "int8", columns=4096, aligned=True),
    "int8 scales, with a table": Variant("quantize", "float32", "int8", table=2, write=2, columns=256),
    "int8 codes": Variant("quantize", "float8_e4m3fn", "int8", write=1, columns=1024),
}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def compiled(variant: Variant, arch: int | str) -> Any:
    target = import_triton().backends.compiler.GPUTarget
    return compile_variant(variant, target("cuda", arch, 32) if isinstance(arch, int) else target("hip", arch, 64))


def memory_accesses(ptx: str) -> dict[str, int]:
    """How often each instruction reads or writes the device's memory."""
    found = re.findall(r"\b(?:ld|st)\.global\S*", ptx)
    return {instruction: found.count(instruction) for instruction in set(found)}


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("family", FAMILIES)
def test_nvidia(family: str, arch: int) -> None:
    variant = FAMILIES[family]
    kernel = describe(compiled(variant, arch), 0)
    assert kernel.reason == ""
    assert kernel.image is not None
    assert kernel.image[:4] == b"\x7fELF"
    assert (kernel.name, kernel.warps) == (variant.kind, WARPS)
    assert kernel.parameters == (GATHER if variant.kind == "gather_cast" else QUANTIZE)
    assert kernel.trailing_pointers == 2
    assert kernel.shared <= 48 * 1024


@pytest.mark.parametrize("family", FAMILIES)
def test_amd(family: str) -> None:
    variant = FAMILIES[family]
    result = compiled(variant, "gfx942")
    kernel = describe(result, 0)
    assert kernel.image is None
    assert "not NVIDIA's but hip" in kernel.reason
    assert kernel.parameters == (GATHER if variant.kind == "gather_cast" else QUANTIZE)
    assert result.asm["hsaco"][:4] == b"\x7fELF"
    if variant.aligned:
        assert "global_load_dwordx4" in result.asm["amdgcn"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_pair_of_dtypes(source: str, target: str) -> None:
    ptx = compiled(Variant("gather_cast", source, target, aligned=True), 80).asm["ptx"]
    assert parse_parameters(ptx, "gather_cast") == GATHER + "pp"
    assert ".ftz" not in ptx  # subnormals would be lost
    assert "satfinite" not in ptx
    # Whole 16-byte accesses, and one of single elements for each element of a thread in the tile that is cut.
    accesses = memory_accesses(ptx)
    width = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
    elements = 4096 // (32 * WARPS)
    wide_loads = elements * width.get(source, 1) // 16
    wide_stores = elements * width.get(target, 1) // 16
    vectors = {key: count for key, count in accesses.items() if ".v4.b32" in key or ".v2.b64" in key}
    assert sum(count for key, count in vectors.items() if key.startswith("ld")) == wide_loads
    assert sum(count for key, count in vectors.items() if key.startswith("st")) == wide_stores
    assert sum(accesses.values()) == wide_loads + wide_stores + 2 * elements


@pytest.mark.parametrize("source", ["bfloat16", "float32"])
@pytest.mark.parametrize("target", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_conversions_of_the_device(source: str, target: str) -> None:
    variant = Variant("gather_cast", source, target, rows=32, columns=128, aligned=True)
    conversion = f"cvt.rn.satfinite.{'e4m3' if 'e4m3' in target else 'e5m2'}x2.f32"
    assert conversion not in compiled(variant, 80).asm["ptx"]
    ptx = compiled(variant, 90).asm["ptx"]
    assert ptx.count(conversion) == 4096 // (32 * WARPS) // 2
    # With rows of a multiple of 16 elements, nothing is read or written in smaller pieces.
    assert set(memory_accesses(ptx)) == {"ld.global.v4.b32", "st.global.v4.b32"}


def test_quantize_divides_exactly() -> None:
    ptx = compiled(FAMILIES["aligned int8"], 90).asm["ptx"]
    assert "div.rn.f32" in ptx
    assert not re.findall(r"div\.(?:full|approx)\S*|rcp\S*|fma\S*|\S*\.ftz\S*", ptx)
    assert {"ld.global.v4.b32", "st.global.v4.b32"} <= set(memory_accesses(ptx))


def test_a_second_compilation_comes_from_the_cache() -> None:
    first = compiled(FAMILIES["one aligned row"], 90)
    assert compiled(FAMILIES["one aligned row"], 90).hash == first.hash
    saturating = Variant("gather_cast", "float32", "bfloat16", aligned=True, e4m3_saturates=False, e5m2_saturates=True)
    assert compiled(saturating, 90).hash == first.hash  # rules of float8 make no second bfloat16 kernel
