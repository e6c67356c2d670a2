"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

from .errors import OptionError

_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """What the machine has free, or can free, and this process's control groups (version 2) let it have; None where the
    system does not say. Others may take it meanwhile.
    """
    found = [each for each in (_of_machine(), *_of_control_groups()) if each is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    for line in _read(_MEMINFO).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) * 1024
    return None


def refuse_too_large_a_ring(ring_bytes: int) -> None:
    """Raises OptionError where there is not so much memory: it is taken as it is used, and better to say so now than to
    be killed then.
    """
    available = available_bytes()
    if available is not None and ring_bytes > available:
        raise OptionError(
            f"there is no memory for a ring of {ring_bytes} bytes: {available} are available; lower ring_bytes"
        )


def _of_control_groups() -> list[int]:
    rooms = []
    for line in _read(_OWN_CGROUP).splitlines():
        if not line.startswith("0::/"):
            continue
        group = _CGROUPS / line.removeprefix("0::/")
        for folder in (group, *group.parents):
            limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
            if limit.isdigit() and used.isdigit():
                rooms.append(max(int(limit) - int(used), 0))
            if folder == _CGROUPS:
                break
    return rooms


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):  # not this kind of system
        return ""
