"""instructions: how many instructions a stored byte, and a small record, costs each thread of a capture.

On two cores the threads behind the ring compete with the model, and a clock cannot tell their work from the machine's
noise; instructions can be counted, and are the same on a busy machine. bench/native/store.cpp, built here by CMake with
the package's own options, stores tensors through the engine as taps do. It runs under valgrind's callgrind twice, with
fewer and with more tensors: the difference is what the additional ones cost, without start and end. Beside it stand
memcpy and plain writes of the same bytes. Checked first, without valgrind: every stored byte is what the casts of the
core give.

What is not counted: the kernel's work, and time. valgrind knows no AVX-512, so the casts' AVX2 paths are counted, also
where the machine would use AVX-512. Needs valgrind and CMake. Run: python bench/instructions.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callgrind import CallgrindError, counted, valgrind
from harness import CheckError, Row

if TYPE_CHECKING:
    from results import Results

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
CASTS = re.compile(r"memcpy|memmove|::copy<|::cast<|::quantize\(|::max_magnitude\(|::quantize_row\(|::row_scale\(")
"""The functions that read and write a tensor's elements."""
TAPS, CHECKS, WRITES = "taps", "checksum thread", "writer thread"
MOST_FUNCTIONS = 8


@dataclass(frozen=True)
class Case:
    """`rows` × `columns` elements a tensor; `less` and `more` are the two counts of tensors."""

    name: str
    source: str
    target: str
    rows: int
    columns: int
    less: int
    more: int
    way: str = "submit"

    def command(self, program: Path, way: str, count: int, folder: Path | None) -> list[str | Path]:
        size = [str(self.rows), str(self.columns), str(count)]
        return [program, way, self.source, self.target, *size, folder if folder is not None else "-"]


def cases(quick: bool) -> tuple[list[Case], list[Case]]:
    """Large tensors, of 1 MiB as computed, and small records."""
    rows, few, many = (64, 2, 6) if quick else (256, 16, 80)
    pairs = [("float32", "float32"), ("float32", "int8")]
    if not quick:
        pairs[1:1] = [("float32", "bfloat16"), ("bfloat16", "bfloat16")]
    large = [
        Case(f"{source} → {target}", source, target, rows * (1 if source == "float32" else 2), 1024, few, many)
        for source, target in pairs
    ]
    few, many = (200, 600) if quick else (2_000, 22_000)
    small = [
        Case(f"64 float32 a record, {said}", "float32", "float32", 1, 64, few, many, way)
        for way, said in (("tap", "try_submit"), ("submit", "submit"))
    ]
    return large, small


def cmake() -> str | None:
    beside = Path(sys.executable).parent / "cmake"
    return str(beside) if beside.exists() else shutil.which("cmake")


def built() -> Path:
    """The program, built in build/bench with the package's build type. Raises CheckError."""
    made = [str(cmake()), "-S", ROOT, "-B", BUILD, "-DCMAKE_BUILD_TYPE=Release", "-DNSF_PYTHON=OFF", "-DNSF_BENCH=ON"]
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    for command in (made, [str(cmake()), "--build", BUILD, "--target", "nsf_store", "-j", jobs]):
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode != 0:
            raise CheckError(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return BUILD / "bench" / "native" / "nsf_store"


def environment() -> dict[str, str]:
    """The casts' paths are those that valgrind can run, with it and without."""
    return {**os.environ, "NEUROSCOPE_FAST_CPU": "avx2"}


def checked(command: list[str | Path]) -> None:
    """Raises CheckError unless what the command stores is right."""
    done = subprocess.run([*command, "check"], capture_output=True, check=False, text=True, env=environment())
    if done.returncode != 0:
        raise CheckError(done.stderr.strip() or f"exit code {done.returncode}")


def instructions(program: Path, case: Case, way: str, folder: Path | None) -> list[Counter[str]]:
    """By thread and function, of the tensors that `more` has above `less`."""
    runs = []
    for count in (case.less, case.more):
        if folder is None:
            runs.append(counted(case.command(program, way, count, None), environment()))
            continue
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            runs.append(counted(case.command(program, way, count, Path(inside)), environment()))
    less, more = runs
    for one, other in zip(less, more, strict=True):
        other.subtract(one)
    return more


def by_thread(threads: list[Counter[str]]) -> dict[str, Counter[str]]:
    """Which thread is which, known by what it calls. Raises CheckError."""
    found = {TAPS: threads[0]}
    for thread in threads[1:]:
        found[CHECKS if any("crc32c" in name for name in thread) else WRITES] = thread
    if set(found) != {TAPS, CHECKS, WRITES} or len(threads) != 3:
        raise CheckError(f"the {len(threads)} threads are not a tap's, the checking and the writing one")
    return found


def stored_bytes(case: Case) -> int:
    size = {"float32": 4, "bfloat16": 2, "int8": 1}[case.target]
    return case.rows * (case.columns * size + (4 if case.target == "int8" else 0))


def shown(name: str) -> str:
    """Without template arguments and parameters."""
    plain = re.sub(r"\(anonymous namespace\)::|\[abi:\w+\]", "", name)
    return re.sub(r"'\d+$", "", plain.split("(")[0].split("<")[0])[:80]


def add_case(results: Results, program: Path, case: Case, folder: Path | None, units: str) -> None:
    """A section: each thread's instructions for one unit, which is a stored byte or a record."""
    amount = (case.more - case.less) * (stored_bytes(case) if units.endswith("byte") else 1)
    names = [f"{TAPS}: casts and copies", f"{TAPS}: the rest", CHECKS, WRITES, "all threads", "memcpy", "plain write"]
    rows = {name: Row(name) for name in names}
    facts: dict[str, Any] = {"tensors": case.more - case.less, "stored_bytes_a_tensor": stored_bytes(case)}
    with tempfile.TemporaryDirectory(dir=results.options.folder, prefix="bench-instructions-") as made:
        scratch = Path(made)
        try:
            checked(case.command(program, case.way, case.less, scratch if folder is not None else None))
            for _ in range(results.options.rounds):
                threads = by_thread(instructions(program, case, case.way, None if folder is None else scratch))
                casts = sum(count for name, count in threads[TAPS].items() if CASTS.search(name))
                totals = {name: thread.total() for name, thread in threads.items()}
                floors = {
                    "memcpy": instructions(program, case, "memcpy", None)[0].total(),
                    "plain write": instructions(program, case, "write", scratch)[0].total(),
                }
                figures = {names[0]: casts, names[1]: totals[TAPS] - casts, "all threads": sum(totals.values())}
                for name, count in {**totals, **figures, **floors}.items():
                    if name in rows:
                        rows[name].rounds.append(count / amount)
                facts["functions"] = {
                    name: {shown(each): round(count / amount, 4) for each, count in thread.most_common(MOST_FUNCTIONS)}
                    for name, thread in threads.items()
                }
        except (CheckError, CallgrindError) as error:
            for row in rows.values():
                row.refused = f"not timed: {error}"
    rows["plain write"].note = "O_DIRECT where there is any; the kernel's work is not counted"
    where = "memory" if folder is None else "disk"
    able = rows["memcpy"].refused is None
    results.add(f"{case.name}, {where}", units, list(rows.values()), bases=("memcpy",) if able else (), **facts)


def main() -> int:
    from results import Results, parse_arguments

    options = parse_arguments(__doc__.splitlines()[0], rounds=3)
    for name, there in (("valgrind", valgrind()), ("cmake", cmake())):
        if there is None:
            print(f"instructions: {name} is not installed", file=sys.stderr)
            return 1
    try:
        program = built()
    except CheckError as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 1
    results = Results("instructions", "instructions of each thread for a stored byte and for a small record", options)
    results.origin["valgrind"] = subprocess.run(
        [str(valgrind()), "--version"], capture_output=True, check=True, text=True
    ).stdout.strip()
    results.origin["counted_cpu_level"] = "avx2, since valgrind knows no AVX-512"
    large, small = cases(options.quick)
    for folder in (options.folder, None):
        for case in large:
            add_case(results, program, case, folder, "instructions a stored byte")
        for case in small:
            add_case(results, program, case, folder, "instructions a record")
    return results.finish()


if __name__ == "__main__":
    raise SystemExit(main())
