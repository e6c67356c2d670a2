"""Runs a program under valgrind's callgrind, and reads how many instructions each thread executed in each function."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

TUNABLES = "glibc.cpu.x86_rep_movsb_threshold=0x40000000:glibc.cpu.x86_rep_stosb_threshold=0x40000000"
"""memcpy and memset in loops of vector instructions: callgrind counts every byte of a `rep movsb` as an instruction,
and a processor the whole of it as one.
"""
_NAMED = re.compile(r"c?fn=\((\d+)\)(?: (.*))?")


class CallgrindError(Exception):
    """The program failed, or callgrind did; the text says how."""


def valgrind() -> str | None:
    return shutil.which("valgrind")


def counted(command: list[str | Path], environment: Mapping[str, str]) -> list[Counter[str]]:
    """The instructions of each thread of the command, in the order in which they began, by function; what the
    functions call is not part of theirs, nor is the kernel's work. Raises CallgrindError.
    """
    with tempfile.TemporaryDirectory(prefix="nsf-callgrind-") as folder:
        out = Path(folder) / "out"
        done = subprocess.run(
            [str(valgrind()), "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={out}", *command],
            capture_output=True,
            check=False,
            text=True,
            env={**environment, "GLIBC_TUNABLES": TUNABLES},
        )
        if done.returncode != 0:
            raise CallgrindError(" ".join((done.stderr.strip().splitlines() or ["it says nothing"])[-1].split()))
        return [functions(path.read_text()) for path in sorted(Path(folder).glob("out-*"))]


def functions(profile: str) -> Counter[str]:
    """The instructions of a profile by function, called ones left out. Raises CallgrindError where they do not add up
    to the total that the profile names.
    """
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    current, total, is_call = "", None, False
    for line in profile.splitlines():
        if named := _NAMED.match(line):
            number, name = named.groups()
            if name is not None:
                names[number] = name
            if line.startswith("fn="):
                current = names[number]
        elif line.startswith("calls="):
            is_call = True  # the next line is what the call cost
        elif line.startswith("totals: "):
            total = int(line.split()[1])
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            if not is_call:
                found[current] += int(line.split()[1])
            is_call = False
    if sum(found.values()) != total:
        raise CallgrindError(f"a profile has {sum(found.values())} instructions, and says that it has {total}")
    return found
