"""Compiles the kernels for the GPU that is there and says how they are launched. The engine calls this from C++.

A kernel is launched by the engine itself, through the driver's cuLaunchKernel, wherever its parameter list is the one
that was declared; a launch through Triton's Python launcher, which takes many times as long, is the fallback.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import CaptureError

WARPS = 8
_TILE = 4096  # elements of a program: at least 16 bytes in flight for each of 256 threads, several programs on a core
_SHARED_LIMIT = 48 * 1024  # what a kernel gets without being asked for more
_COPIED = {"int8": 1, "int16": 2, "int32": 4, "int64": 8}
_SOURCES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
_TARGETS = {name: size for name, size in _SOURCES.items() if name != "float64"}
_POINTERS = {"source", "target", "table", "codes", "scales"}
_DIVISIBLE = [["tt.divisibility", 16]]


def tiles(length: int, rows: int) -> tuple[int, int]:
    """ROWS and COLUMNS of a gather_cast program, for a record of `rows` rows of `length` elements.

    A record that is one row: (1, 4096). Else COLUMNS is the smallest power of two not below `length`, at least 16 and
    at most 1024, and ROWS is 4096 / COLUMNS: never 1, which gather_cast reads as "the record is one row".
    For `quantize`, COLUMNS is row_columns(length).
    """
    if rows == 1:
        return 1, _TILE
    columns = min(max(_power_of_two(length), 16), 1024)
    return _TILE // columns, columns


def row_columns(length: int) -> int:
    """COLUMNS of a `quantize` program: the smallest power of two not below `length`, within 256 .. 4096."""
    return min(max(_power_of_two(length), 256), _TILE)


def _power_of_two(length: int) -> int:
    return 1 << max(length - 1, 0).bit_length()


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel. `image` is a cubin, or None where only `launch` may be used, for the given `reason`.

    `name` is the entry's name in the image, `warps` times 32 the threads of a block, `shared` the bytes of dynamic
    shared memory. `parameters` has one character a declared run-time parameter: p a pointer, l an int64; behind them
    the entry takes `trailing_pointers` (0 to 2) pointers, scratch memory of Triton's that these kernels do not use:
    null.
    """

    image: bytes | None
    name: str
    warps: int
    shared: int
    parameters: str
    trailing_pointers: int
    reason: str
    _compiled: Any
    _device: int

    def launch(self, grid: int, stream: int, arguments: tuple[int, ...]) -> None:
        """Launches `grid` blocks through Triton on the stream with the handle `stream` (0: the default stream).

        `arguments` has an address or number for each character of `parameters`. Raises ValueError for another count,
        and what Triton raises for a launch that fails.
        """
        import torch

        if len(arguments) != len(self.parameters):
            raise ValueError(f"{self.name} takes {len(self.parameters)} arguments, not {len(arguments)}")
        constants = (None,) * (len(self._compiled.src.signature) - len(arguments))
        with torch.cuda.device(self._device):
            self._compiled[(grid, 1, 1)](*arguments, *constants, stream=stream)


def load(
    kind: str,
    source: str,
    target: str,
    *,
    table: int,
    per_row: bool,
    write: int,
    rows: int,
    columns: int,
    aligned: bool,
    e4m3_saturates: bool,
    e5m2_saturates: bool,
    device: int,
) -> Kernel:
    """The kernel `kind` (gather_cast or quantize) for CUDA device number `device`.

    `source` and `target` are dtype names; int8 to int64 for both is a plain copy of elements of that size, and int8
    is the target of quantize. `table`, `per_row`, `write`, `rows`, `columns` and `aligned` are the kernels' constants
    of these names (see their docstrings), and the last one is a promise. `write` counts for quantize alone, `rows`
    and the two rules of float8 for gather_cast alone.

    Raises CaptureError without Triton or a GPU, and where Triton cannot compile for it; ValueError for constants that
    no kernel has.
    """
    variant = Variant(
        kind, source, target, table, per_row, write, rows, columns, aligned, e4m3_saturates, e5m2_saturates
    )
    import_triton()
    import torch

    if not torch.cuda.is_available():
        raise CaptureError(
            f"The capture kernels need a GPU, and torch {torch.__version__} finds none: "
            "check the driver, or install a torch that is built for CUDA or ROCm."
        )
    from triton.runtime import driver  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with torch.cuda.device(device):
        compiled = compile_variant(variant, driver.active.get_current_target())
    return describe(compiled, device)


def import_triton() -> Any:
    """The module triton. Raises CaptureError where it is missing or set to interpret kernels."""
    try:
        import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise CaptureError(
            f"Capturing from a GPU needs Triton ({error}): pip install triton, or a torch build that brings it."
        ) from error
    if triton.knobs.runtime.interpret:
        raise CaptureError("Triton is set to interpret kernels in Python: unset TRITON_INTERPRET to capture on a GPU.")
    return triton


@dataclass(frozen=True)
class Variant:
    """One compilation of a kernel; the fields are those of `load`. Raises ValueError for what no kernel has."""

    kind: str
    source: str
    target: str
    table: int = 0
    per_row: bool = False
    write: int = 3
    rows: int = 1
    columns: int = _TILE
    aligned: bool = False
    e4m3_saturates: bool = True
    e5m2_saturates: bool = False

    def __post_init__(self) -> None:
        copied = self.kind == "gather_cast" and self.source == self.target and self.source in _COPIED
        cast = self.kind == "gather_cast" and self.source in _SOURCES and self.target in _TARGETS
        quantized = self.kind == "quantize" and self.source in _SOURCES and self.target == "int8"
        if not (copied or cast or quantized):
            raise ValueError(f"there is no kernel {self.kind!r} from {self.source!r} to {self.target!r}")
        if self.table not in (0, 1, 2, 3) or (self.per_row and self.table not in (1, 2)):
            raise ValueError(f"no dimension {self.table} can have a table (per_row={self.per_row})")
        if self.write not in (1, 2, 3):
            raise ValueError(f"write is {self.write}, not 1 (codes), 2 (scales) or 3")
        if any(size < 1 or size & (size - 1) for size in (self.rows, self.columns)):
            raise ValueError(f"a tile of {self.rows} x {self.columns} is not one of powers of two")

    def constants(self, native: bool) -> dict[str, Any]:
        """The kernel's constexprs. Those that change nothing get one value, so that Triton's cache finds them."""
        common = {"SOURCE": self.source, "COLUMNS": self.columns, "TABLE": self.table, "PER_ROW": self.per_row}
        common["ALIGNED"] = self.aligned
        if self.kind == "quantize":
            return {**common, "WRITE": self.write}
        return {
            **common,
            "TARGET": self.target,
            "ROWS": self.rows,
            "E4M3_SATURATES": self.e4m3_saturates or self.target != "float8_e4m3fn",
            "E5M2_SATURATES": self.e5m2_saturates and self.target == "float8_e5m2",
            "NATIVE": native and self.target.startswith("float8") and self.source != self.target,
        }

    def pointers(self) -> dict[str, str]:
        """Triton's types of the kernel's pointers."""
        sizes = {**_SOURCES, **_COPIED}
        return {
            "source": f"*i{8 * sizes[self.source]}",
            "target": f"*i{8 * sizes[self.target]}",
            "codes": "*i8",
            "scales": "*fp32",
            "table": "*i64",
        }

    def divisible(self) -> set[str]:
        """The parameters that are multiples of 16, bytes or elements, if the variant is aligned."""
        if not self.aligned:
            return set()
        flat = self.kind == "gather_cast" and self.rows == 1
        shape = set() if flat else {"count", "length", "stride1", "stride2", "stride3"}
        return {"source", "target", "codes", "begin"} | shape


def compile_variant(variant: Variant, target: Any) -> Any:
    """Triton's CompiledKernel of a variant for a triton GPUTarget, from its disk cache if it is there.

    Raises CaptureError where Triton cannot compile it.
    """
    triton = import_triton()
    from . import downcast, quantize

    function = downcast.gather_cast if variant.kind == "gather_cast" else quantize.quantize
    constants = variant.constants(native=target.backend == "cuda" and int(target.arch) >= 89)
    pointers = variant.pointers()
    names: list[str] = function.arg_names
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i64") for name in names}
    attributes = {(names.index(name),): _DIVISIBLE for name in variant.divisible() & set(names)}
    source = triton.compiler.ASTSource(function, signature, constants, attributes)
    try:
        # Without fusion: a multiplication and an addition round twice, as they do on the CPU.
        return triton.compile(source, target=target, options={"num_warps": WARPS, "enable_fp_fusion": False})
    except Exception as error:
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CaptureError(
            f"Triton {triton.__version__} cannot compile {variant.kind} for {target.backend} {target.arch}: {cause}"
        ) from error


def describe(compiled: Any, device: int) -> Kernel:
    """What the engine must know of a triton CompiledKernel to launch it on CUDA device number `device`."""
    metadata = compiled.metadata
    signature = compiled.src.signature
    parameters = "".join("p" if kind[0] == "*" else "l" for kind in signature.values() if kind != "constexpr")
    trailing, reason = 0, ""
    try:
        trailing = _trailing_pointers(compiled, parameters)
    except ValueError as error:
        reason = str(error)
    return Kernel(
        image=None if reason else compiled.asm["cubin"],
        name=metadata.name,
        warps=metadata.num_warps,
        shared=metadata.shared,
        parameters=parameters,
        trailing_pointers=trailing,
        reason=reason,
        _compiled=compiled,
        _device=device,
    )


def _trailing_pointers(compiled: Any, parameters: str) -> int:
    """How many pointers follow the declared ones. Raises ValueError, saying why, if the image must not be used."""
    metadata = compiled.metadata
    if metadata.target.backend != "cuda":
        raise ValueError(f"the device is not NVIDIA's but {metadata.target.backend}")
    unused = {
        "global_scratch_size": 0,
        "profile_scratch_size": 0,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
        "num_ctas": 1,
    }
    for field, value in unused.items():
        if getattr(metadata, field, None) != value:
            raise ValueError(f"{field} is {getattr(metadata, field, None)}, not {value}")
    if getattr(metadata, "tensordesc_meta", None):
        raise ValueError("it takes tensor descriptors")
    if getattr(metadata, "cluster_dims", None) not in (None, (1, 1, 1), [1, 1, 1]):
        raise ValueError(f"it is launched in clusters of {metadata.cluster_dims}")
    if metadata.shared > _SHARED_LIMIT:
        raise ValueError(f"it needs {metadata.shared} bytes of shared memory")
    found = parse_parameters(compiled.asm["ptx"], metadata.name)
    trailing = len(found) - len(parameters)
    if not 0 <= trailing <= 2 or found != parameters + "p" * trailing:
        raise ValueError(f"its parameters are {found}, not {parameters}")
    return trailing


def parse_parameters(ptx: str, name: str) -> str:
    """The parameters of the entry `name` of a PTX text: p for a 64-bit pointer, l for another u64, ? for all else.

    Raises ValueError if that is not the text's one entry, or it asks for clusters, or cannot be read.
    """
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.DOTALL)
    entries = re.findall(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)\{", code)
    if [entry[0] for entry in entries] != [name] or len(re.findall(r"\.entry\b", code)) != 1:
        raise ValueError(f"the PTX has the entries {[entry[0] for entry in entries]}, not {name}")
    _, declared, directives = entries[0]
    if "cluster" in directives:
        raise ValueError(f"it is launched in clusters: {' '.join(directives.split())}")
    kinds = ""
    for number, text in enumerate(part.strip() for part in declared.split(",") if declared.strip()):
        match = re.fullmatch(
            r"\.param\s+\.u64(\s+\.ptr(?:\s+\.\w+)?(?:\s+\.align\s+\d+)?)?\s+([\w$]+)", text, flags=re.DOTALL
        )
        if match is None:
            kinds += "?"
            continue
        if match[2] != f"{name}_param_{number}":
            raise ValueError(f"its parameter {number} has the name {match[2]}")
        kinds += "p" if match[1] else "l"
    return kinds
