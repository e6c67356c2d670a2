"""`neuroscope-fast report FILE.json`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RunError
from ..files import plain_name, read_regular
from ..manifest import MANIFEST_FILE, decode_manifest, replace_file
from ..report import render
from .console import print_bytes, say


def report(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.json", help="The metadata JSON of a run, or the run directory.", show_default=False
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write to this file and not to stdout.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
) -> None:
    """Render a metadata JSON as Markdown.

    The file may be of other origin: what it does not say is called unknown.
    """
    source = _metadata_of(file) if file.is_dir() else file
    text = render(source).encode()
    if out is None:
        print_bytes(text)
        return
    if out.is_dir():
        raise typer.BadParameter(f"{out} is a directory: name a file in it", param_hint="--out")
    if os.path.lexists(out):  # a link that leads nowhere too
        if out.exists() and out.samefile(source):
            raise typer.BadParameter("it is the file that is read: name another", param_hint="--out")
        if not overwrite:
            raise RunError(f"{out} is there already: choose another name, or add --overwrite")
    try:
        replace_file(out, text)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from error
    say(f"wrote {os.fspath(out)}")


def _metadata_of(folder: Path) -> Path:
    path = folder / MANIFEST_FILE
    try:
        manifest = decode_manifest(read_regular(path), str(path))
    except FileNotFoundError as error:
        raise RunError(f"{folder} is no run directory: {path.name} cannot be read ({error.strerror})") from error
    return folder / plain_name(manifest.metadata_file)
