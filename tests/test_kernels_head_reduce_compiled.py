"""The kernels of the reduction over heads, compiled for GPUs that are not there, and what the assembly must hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from neuroscope_fast.kernels.reference import HEAD_REDUCTIONS

COMMON = {"TABLE": 0, "ALIGNED": True, "E4M3_SATURATES": True, "E5M2_SATURATES": False, "ROWS": 1, "COLUMNS": 1024}


PROMISED = ("source", "target", "begin", "count", "length", "stride1", "stride2", "stride3")  # multiples of 16


def assembly(kernel: Any, target: Any, constants: dict[str, Any]) -> dict[str, str]:
    import triton
    from triton.compiler import ASTSource

    pointers = {"float32": "*i32", "bfloat16": "*i16", "float8_e4m3fn": "*i8"}
    kinds = {"source": pointers[constants["SOURCE"]], "target": pointers[constants["TARGET"]], "table": "*i64"}
    names = kernel.arg_names
    aligned = constants["ALIGNED"]
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i64") for name in names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in PROMISED if name in names and aligned},
    )
    compiled: dict[str, str] = triton.compile(
        source, target=target, options={"num_warps": 4, "enable_fp_fusion": False}
    ).asm
    return compiled


def kernels_of(reduction: str) -> tuple[Any, dict[str, Any]]:
    from neuroscope_fast.kernels import downcast, head_reduce

    if reduction == "entropy":
        return head_reduce.row_entropies, {**COMMON, "TABLE": 2}
    if reduction == "select":
        return downcast.gather_cast, {**COMMON, "TABLE": 2, "ROWS": 2, "PER_ROW": False, "NATIVE": False}
    return head_reduce.fold_heads, {**COMMON, "REDUCTION": reduction, "TABLE": reduction == "mean"}


@pytest.mark.parametrize(
    ("backend", "arch", "warp"), [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)]
)
def test_compiles_without_a_gpu(
    backend: str, arch: Any, warp: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for reduction in HEAD_REDUCTIONS:
        for source, target, aligned in (("bfloat16", "bfloat16", True), ("float32", "float8_e4m3fn", False)):
            kernel, constants = kernels_of(reduction)
            constants |= {"SOURCE": source, "TARGET": target, "ALIGNED": aligned}
            code = assembly(kernel, GPUTarget(backend, arch, warp), constants)
            if backend != "cuda":
                assert "global_load" in code["amdgcn"]
                continue
            ptx = code["ptx"]
            assert not re.search(r"\bfma\.|\.ftz|sqrt\.approx|div\.(full|approx)", ptx)
            assert bool(re.search(r"ld\.global\S*\.v4\.b32", ptx)) is aligned
            if reduction not in ("entropy", "select"):  # four heads under way, and one loop for what is left
                assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) == (5 if aligned else 0)
