"""The attention kernels, compiled for GPUs that are not there: every variant, within what such devices have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

FLOATS = {"scale": "fp32", "softcap": "fp32", "hidden_below": "fp32"}
POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
ROWS = ("softmax", "entropy", "probability")
TILES = ("scores", "pattern", "mean", "max")
TARGETS = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)]
SHARED = {"cuda": 99 << 10, "hip": 64 << 10}  # bytes that a program has on the smallest of these devices' relatives


class Variant(NamedTuple):
    dtype: str
    size: int  # of a head
    rows: int
    constants: dict[str, Any]  # also what a launch makes one: pointers that are not given, and numbers that are 1
    results: tuple[str, ...]


ONES = dict.fromkeys(("count", "head_count", "query_step", "key_step"), 1)
EVERYTHING = {"CAUSAL": True, "WINDOW": True, "SOFTCAP": True, "SINKS": True}
VARIANTS = {
    "plain": Variant("bfloat16", 64, 100, {"MASK": "none", "mask": None}, (*ROWS, *TILES)),
    "a decoded token": Variant(
        "bfloat16", 128, 1, {"MASK": "none", "CAUSAL": True, "mask": None, **ONES}, ("probability", "mean")
    ),
    "one key": Variant(
        "float16", 16, 1, {"MASK": "bool", "count": 1, "keys": 1, "queries_per_key_head": 1}, ("entropy", "pattern")
    ),
    "all at once": Variant("bfloat16", 80, 100, {"MASK": "bool", **EVERYTHING}, ("softmax", "entropy", "max")),
    "a bias, float32": Variant("float32", 96, 100, {"MASK": "additive", **EVERYTHING}, ("probability", "scores")),
    "the largest heads": Variant("float32", 256, 100, {"MASK": "none", "CAUSAL": True, "mask": None}, ("softmax",)),
}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def compiled(result: str, variant: str, target: tuple[str, Any, int]) -> Any:
    import triton
    from neuroscope_fast.kernels import attention_launch, attention_pattern
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    dtype, size, rows, given, _ = VARIANTS[variant]
    kernel = attention_pattern.attention_rows if result in ROWS else attention_pattern.attention_tiles
    switches = {"CAUSAL": False, "WINDOW": False, "SOFTCAP": False, "SINKS": False}
    constants: dict[str, Any] = {
        **switches,
        "RESULT": result,
        "SIZE": size,
        **attention_launch.tiles(size, rows),
        **given,
    }
    unused = {"inverses": result in ROWS[1:], "wanted": result != "probability", "sinks": not constants["SINKS"]}
    constants |= {name: None for name, is_unused in unused.items() if is_unused}
    names: list[str] = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    kinds = {"query": POINTERS[dtype], "key": POINTERS[dtype], "mask": "*i8" if given["MASK"] == "bool" else "*fp32"}
    kinds |= {"positions": "*i64", "heads": "*i64", "wanted": "*i64", **FLOATS}
    kinds |= dict.fromkeys(("sinks", "target", "inverses", "maxima"), "*fp32")
    # Launched, numbers below 2^31 are 32-bit integers; strides may be larger.
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "i64" if "_" in name else "i32") for name in names
    }
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={(names.index(name),): value for name, value in constants.items()}
    )
    options = attention_launch.options(getattr(torch, dtype))
    return triton.compile(source, target=GPUTarget(*target), options=options)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_without_a_gpu(variant: str, target: tuple[str, Any, int]) -> None:
    for result in VARIANTS[variant].results:
        found = compiled(result, variant, target)
        assert found.metadata.shared <= SHARED[target[0]], (result, found.metadata.shared)
        code = found.asm["ptx" if target[0] == "cuda" else "amdgcn"]
        if VARIANTS[variant].dtype != "float32":
            assert ("mma." if target[0] == "cuda" else "mfma") in code  # the matrix units multiply
        assert "tf32" not in code  # float32 is as exact as in eager attention
