"""Opens the files of a run, which may be of any origin: only a regular file in its own place is read.

A symbolic link could lead anywhere on the machine, a named pipe waits for a writer without end, and opening a device
can do something. None of them is what a capture leaves behind.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import RunError

_KINDS = {
    stat.S_IFLNK: "it is a symbolic link, and a run is read from its own files only; put the file itself there",
    stat.S_IFDIR: "it is a folder",
    stat.S_IFIFO: "it is a named pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}
_LONGEST_NAME = 255  # bytes; the limit of every common file system


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Raises FileNotFoundError where nothing is there, else RunError."""
    try:
        _need_regular(path, os.lstat(path).st_mode)  # before it is opened: to open a device may be enough to use it
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name that no file can have
        raise RunError(f"{path} cannot be read: {error}") from error
    try:
        _need_regular(path, os.fstat(descriptor).st_mode)  # what was opened may no longer be what was looked at
    except RunError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file. Raises FileNotFoundError where nothing is there, else RunError."""
    with open_regular(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}") from error
        except MemoryError as error:
            size = os.fstat(file.fileno()).st_size
            raise RunError(f"{path} cannot be read: its {size} bytes are more than memory holds") from error


def plain_name(name: str) -> str:
    """`name`, if it names a file in the run directory itself; else a RunError."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise RunError(f"the run names the file {name!r}, which is not in its directory")
    if not name.isprintable() or len(os.fsencode(name)) > _LONGEST_NAME:
        raise RunError(f"the run names the file {name!r}, which no capture writes")
    return name


def _need_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise RunError(f"{path} cannot be read: {_KINDS.get(stat.S_IFMT(mode), 'it is no regular file')}")
