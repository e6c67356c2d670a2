"""The attention page: one HTML file that holds a run's attention, or the same page from a local server that reads each
layer as it is looked at.
"""

from __future__ import annotations

from .page import attention_page
from .server import ViewServer, serve

__all__ = ["ViewServer", "attention_page", "serve"]
