"""What the beginning of a run has written becomes durable while the model runs already."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from .errors import CaptureError
from .manifest import sync_folder


class BackgroundSync:
    """Synchronises files and folders, in their order, on a thread of its own. Belongs to the process that made it."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="neuroscope-fast sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        at = None
        try:
            for at in self._paths:
                sync_folder(at)  # files too
        except BaseException as error:  # whatever it is, nothing is durable
            if isinstance(error, OSError) and at is not None:
                error.filename = os.fspath(at)
            self._error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, patience: float = 0) -> None:
        """Return when all is durable. Raises CaptureError where it cannot be, or is not after `patience` seconds (0: no
        limit).
        """
        self._thread.join(patience or None)
        if self._thread.is_alive():
            raise CaptureError(
                f"{self._paths[0]} is not durable after {patience:g} s: the disk or the network does not answer"
            )
        if isinstance(self._error, OSError):
            raise CaptureError(f"cannot write {self._error.filename}: {self._error.strerror}") from self._error
        if self._error is not None:
            raise CaptureError(f"{self._paths[0]} cannot be made durable: {self._error}") from self._error
