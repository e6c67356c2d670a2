"""Imports go one way, and what needs neither torch nor the native module does not load them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import neuroscope_fast
import pytest

PACKAGE = Path(neuroscope_fast.__file__).parent
LIGHT = (
    *("report", "reader", "records", "manifest", "spec", "errors", "keys", "journal", "verify", "recovery", "racing"),
    "cli",
)

# From the ground up: a module imports only from its own line and the lines above it.
LAYERS = [
    {
        "errors",
        "files",
        "dtypes",
        "keys",
        "markdown",
        "positions",
        "layer_pattern",
        "decoding",
        "head_options",
        "durability",
        "memory",
        "machine",
        "racing",
        "raw_writes",
        "_core",
    },
    {"spec", "records", "summary", "journal", "manifest", "options", "kernels"},
    {
        "prompt_log",
        "shard_header",
        "shard_file",
        "recovery",
        "sources",
        "activations",
        "verify",
        "reader",
        "readout",
        "report",
        "report_hooks",
        "report_text",
        "environment",
    },
    {"shard_repair", "shard_trim"},
    {"attention_blocks", "attention_blockwise"},
    {"attention_math"},
    {"attention_modules", "module_tree", "model_ends", "model_components", "nearest", "model_map", "pass_inputs"},
    {
        "background_sync",
        "module_calls",
        "attachment",
        "attention_attach",
        "attention_check",
        "attention_inputs",
        "attention_interface",
        "attention_returned",
        "attention_taps",
        "collect",
        "compiled",
        "compiled_hooks",
        "compiled_operators",
        "devices",
        "graphs",
        "hooks",
        "model_readout",
        "pass_hooks",
        "passes",
        "plain_hooks",
        "prompt_recorder",
        "readout_formulas",
        "repair",
        "resume",
        "run_metadata",
        "run_directory",
        "running_capture",
        "tapped_tensor",
    },
    {"capture"},
    {"demo"},
    {"models", "prompts", "sampling", "generate"},
    {"capture_cost", "cost_report"},
    {"analysis"},
    {"plots"},
    {"view"},
    {"cli"},
]


def imports(path: Path) -> set[str]:
    """The neuroscope_fast modules that a file imports, at its top or inside functions."""
    inside_package = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level == inside_package:
                names = [node.module] if node.module else [alias.name for alias in node.names]
            elif node.level == 0 and (node.module or "").startswith("neuroscope_fast."):
                names = [str(node.module).removeprefix("neuroscope_fast.")]
            else:
                continue
            found |= {name.split(".")[0] for name in names if name}
    return found


def layer_of(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


def test_imports_go_one_way() -> None:
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts in (("__init__",), ("__main__",)):
            continue
        for imported in imports(path) - {parts[0]}:
            if (PACKAGE / imported).is_dir() or (PACKAGE / f"{imported}.py").exists() or imported == "_core":
                assert layer_of(imported) <= layer_of(parts[0]), f"{path.name} imports {imported}"


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_neither_torch_nor_core(module: str) -> None:
    script = (
        f"import sys, neuroscope_fast.{module}\n"
        "heavy = {'torch', 'transformers', 'neuroscope_fast._core'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def csrc() -> Path | None:
    """The C++ sources, where the tests run in a checkout."""
    folder = Path(__file__).parent.parent / "csrc"
    return folder if folder.is_dir() else None


@pytest.mark.parametrize(("folder", "below"), [("core", ("core/",)), ("cuda", ("core/", "cuda/"))])
def test_core_and_cuda_include_neither_python_nor_torch_nor_the_toolkit(folder: str, below: tuple[str, ...]) -> None:
    sources = csrc()
    assert sources is not None
    for path in (sources / folder).iterdir():
        for header in re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text()):
            assert header.startswith((*below, "sys/")) or "/" not in header, (path, header)
            assert not re.match(r"Python|pybind11|torch|ATen|cuda\.h|cuda_", header), (path, header)


def test_the_extension_links_neither_libtorch_nor_cuda() -> None:
    (extension,) = PACKAGE.glob("_core*.so")
    needed = subprocess.run(["ldd", str(extension)], capture_output=True, text=True, check=True).stdout
    libraries = [line.split()[0] for line in needed.splitlines()]
    assert "libc.so.6" in libraries
    assert not [name for name in libraries if re.search(r"torch|c10|cuda|python", name)]
