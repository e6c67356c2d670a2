"""`neuroscope-fast view RUN`"""

from __future__ import annotations

import threading
import webbrowser
from typing import Annotated

import typer

from .console import say
from .show import RunArgument, open_quietly


def view(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes one that is free.")] = 0,
    host: Annotated[
        str, typer.Option(help="The address to listen on. Others than this machine's own need --expose.")
    ] = "127.0.0.1",
    expose: Annotated[
        bool, typer.Option("--expose", help="Let everybody who can connect to --host read the run.")
    ] = False,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")] = False,
) -> None:
    """Look at a run's attention in the browser.

    Serves one page on this machine until Ctrl-C. A layer is read from the run when it is looked at.
    """
    from ..view import serve

    opened = open_quietly(run)
    server = serve(opened, port, host, expose=expose)
    if opened.notice:
        say(f"note: {opened.notice}")
    if server.exposed:
        say(f"warning: everybody who can connect to {host}, port {server.port}, reads this run's texts and attention")
    print(f"{opened.path}: {server.url} (Ctrl-C ends it)", flush=True)
    try:
        if browser:  # in a thread: a browser in the terminal returns only when it is closed
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        server.serve_forever()
    except KeyboardInterrupt:
        say("ended")
    finally:
        server.close()
