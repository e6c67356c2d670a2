"""`neuroscope-fast doctor`: what works here, and why not."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct

from ..environment import package_version, versions
from . import doctor_gpu
from .console import JsonOption, console, line, print_json

_NEEDED = {"torch": (2, 10), "transformers": (5, 10)}
_STYLES = {"works": "green", "limited": "yellow", "fails": "bold red", "unused": "dim"}


class Check(Struct):
    """One thing that was tried. `state`: `works`, `limited` (captures can be made without it), `fails` (they cannot),
    or `unused` (nothing here needs it).
    """

    name: str
    state: str
    detail: str


class Diagnosis(Struct):
    """The JSON of `doctor`."""

    healthy: bool
    versions: dict[str, str | None]
    build: dict[str, str]
    checks: list[Check]


def doctor(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where runs shall be written.", show_default=False)
    ] = Path(),
    as_json: JsonOption = False,
) -> None:
    """What works on this machine, and why not.

    Versions, build, tensor access, direct I/O, CUDA, Triton. The exit code is 1 if captures cannot be made.
    """
    if not folder.is_dir():
        raise typer.BadParameter(f"there is no directory {folder}", param_hint="DIR")
    checks = list(_checks(folder))
    diagnosis = Diagnosis(
        healthy=all(check.state != "fails" for check in checks),
        versions=versions() | {"typer": package_version("typer"), "rich": package_version("rich")},
        build=_build_info(),
        checks=checks,
    )
    if as_json:
        print_json(diagnosis)
    else:
        _print(diagnosis)
    if not diagnosis.healthy:
        raise typer.Exit(1)


def _checks(folder: Path) -> Iterator[Check]:
    for name, minimum in _NEEDED.items():
        yield _version_check(name, minimum)
    for name, look in (
        ("native module", _native),
        ("capture", _capture),
        ("tensor access", _tensor_access),
    ):
        yield _guarded(name, look)
    yield _guarded("direct I/O", lambda: _direct_io(folder))
    yield _guarded("embedded model", _embedded_model, broken="limited")
    yield _guarded("CUDA", doctor_gpu.cuda)
    yield _guarded("Triton", doctor_gpu.triton)


def _guarded(name: str, look: Callable[[], tuple[str, str]], broken: str = "fails") -> Check:
    try:
        return Check(name, *look())
    except Exception as error:  # a doctor does not fall ill of what it finds
        return Check(name, broken, " ".join(f"{type(error).__name__}: {error}".split()))


def _version_check(name: str, minimum: tuple[int, int]) -> Check:
    version = package_version(name)
    wanted = ".".join(map(str, minimum))
    if version is None:
        return Check(name, "fails", f"not installed: pip install '{name}>={wanted}'")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < minimum:
        return Check(name, "fails", f"{version} is older than {wanted}: pip install -U '{name}>={wanted}'")
    return Check(name, "works", version)


def _build_info() -> dict[str, str]:
    try:
        return dict(importlib.import_module("neuroscope_fast._core").build_info())
    except ImportError:
        return {}


def _native() -> tuple[str, str]:
    try:
        core = importlib.import_module("neuroscope_fast._core")
    except ImportError as error:
        return "fails", f"cannot be loaded ({error}): build it with `pip install .`"
    build = core.build_info()
    lowered = os.environ.get("NEUROSCOPE_FAST_CPU")
    by_whom = f", lowered by NEUROSCOPE_FAST_CPU={lowered}" if lowered else ""
    return "works", f"{build['cpu_level']} code on {platform.machine()}{by_whom}"


def _capture() -> tuple[str, str]:
    """Truthful, since it is done: a linear layer's output, captured, is what the layer gave."""
    import torch

    from ..capture import capture

    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with torch.no_grad(), capture(model, "0:mlp", ring_bytes=1 << 20, block_bytes=1 << 16) as cap:
        output = model(torch.arange(16.0).view(2, 8))
    if torch.equal(cap.result["0_mlp"][0], output):
        return "works", "from models on the CPU: a captured tensor was compared with the model's, bit for bit"
    return "fails", "a captured tensor differs from the model's: report this with the output of doctor --json"


def _tensor_access() -> tuple[str, str]:
    import torch

    if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        return "works", "through torch's DLPack exchange table"
    return "limited", "through plain attributes, slower: this torch has no DLPack exchange table"


def _embedded_model() -> tuple[str, str]:
    from ..models import load_model
    from .loading import quiet_transformers

    quiet_transformers()
    model = load_model("demo").model
    count = sum(parameter.numel() for parameter in model.parameters())
    return "works", f"{type(model).__name__}, {count:,} parameters"


def _direct_io(folder: Path) -> tuple[str, str]:
    core = importlib.import_module("neuroscope_fast._core")
    where = folder.resolve()
    if not os.access(where, os.W_OK):
        return "fails", f"{where} cannot be written to: run doctor with the directory for your runs"
    if core.supports_direct_io(str(where)):
        return "works", f"files in {where} are written with O_DIRECT"
    return "limited", f"the file system of {where} has no O_DIRECT: files are written through the page cache"


def _print(diagnosis: Diagnosis) -> None:
    out = console()
    shown = {**diagnosis.versions, **diagnosis.build}
    width = max(len(name) for name in (*shown, *(check.name for check in diagnosis.checks)))
    for name, value in shown.items():
        line(out, f"{name:<{width}}  {value or 'not installed'}")
    line(out, "")
    for check in diagnosis.checks:
        line(out, f"{check.name:<{width}}  ", (f"{check.state:<7}", _STYLES[check.state]), f"  {check.detail}")
    if not diagnosis.healthy:
        line(out, "")
        line(out, "Captures cannot be made here: mend what fails.")
