"""Options of the commands that load a model, and quiet for the libraries that load it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ..models import EMBEDDED

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", help="`demo`, a folder, or a Hugging Face id.", show_default=False),
]
RevisionOption = Annotated[
    str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of a Hugging Face model.")
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]


def quiet_transformers() -> None:
    """Errors only, and no bars but those of downloads, on a terminal: loading has one of this command line's own."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    quiet: Any = logging
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        quiet.set_verbosity_error()
    quiet.disable_progress_bar()  # the Hub's too
    if sys.stderr.isatty() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        enable_progress_bars()


@contextmanager
def threads_for(model: str) -> Iterator[None]:
    """The embedded model is too small to share among threads: waiting for each other takes them longer."""
    if model != EMBEDDED:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
