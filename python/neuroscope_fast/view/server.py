"""Serves the attention page of a run to a browser on this machine.

The page gets what the run holds (its metadata) at once, and a layer's numbers when it is looked at. Nothing is served
by the name of a file. A web page of another origin can neither read the answers (there are no CORS headers, and
Cross-Origin-Resource-Policy forbids to embed them) nor reach the server under a name of its own: the Host header must
be that of the loopback address (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import socketserver
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ..errors import NeuroscopeError, OptionError, one_line
from ..reader import Run
from .blocks import Weights, block, load, thumbnails
from .contents import contents_of, tokens_of
from .page import live_page, policy

DEFAULT_HOST = "127.0.0.1"

_LONGEST_QUERY = 8192  # characters
_REMEMBERED = 256 << 20  # bytes of layers that stay in memory after they were looked at
_SECONDS = 60.0  # until a connection that says nothing is closed
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_BYTES = "application/octet-stream"


class _Refused(Exception):
    """An answer that is one line of text."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class _Pages:
    """What there is to serve. Thread-safe: one layer is read at a time."""

    def __init__(self, run: Run):
        self._run = run
        self._contents = contents_of(run)
        self._page = live_page(self._contents).encode()
        self._hooks = {entry["hook"]: entry for group in self._contents["groups"] for entry in group["entries"]}
        self._prompts = {prompt["number"]: prompt["rows"] for prompt in self._contents["prompts"]}
        self._loaded: OrderedDict[tuple[str, int, int], Weights] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, path: str, query: str) -> tuple[str, bytes]:
        """The content type and the content. Raises _Refused, RunError."""
        known: dict[str, Callable[[str], tuple[str, bytes]]] = {
            "/": lambda query: ("text/html; charset=utf-8", self._checked(query)),
            "/tokens": self._tokens,
            "/pattern": self._pattern,
            "/thumbnails": self._thumbnails,
        }
        if path not in known:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here; the page is at /")
        return known[path](query)

    def _checked(self, query: str) -> bytes:
        _arguments(query, {})
        return self._page

    def _tokens(self, query: str) -> tuple[str, bytes]:
        prompt, row = self._sequence(_arguments(query, {"prompt": True, "row": True}))
        with self._lock:
            found = tokens_of(self._run, prompt, row)
        return "application/json", json.dumps(found).encode()

    def _pattern(self, query: str) -> tuple[str, bytes]:
        given = _arguments(query, {"hook": True, "prompt": True, "row": True, "head": False})
        weights = self._weights(given)
        head = _number(given, "head") if "head" in given else None
        if head is not None and head not in weights.heads:
            raise _Refused(HTTPStatus.NOT_FOUND, f"there is no head {head}; stored are {weights.heads or 'all in one'}")
        return _BYTES, block(weights, head)

    def _thumbnails(self, query: str) -> tuple[str, bytes]:
        return _BYTES, thumbnails(self._weights(_arguments(query, {"hook": True, "prompt": True, "row": True})))

    def _sequence(self, given: dict[str, str]) -> tuple[int, int]:
        prompt, row = _number(given, "prompt"), _number(given, "row")
        if prompt not in self._prompts:
            raise _Refused(HTTPStatus.NOT_FOUND, f"the run holds no attention of prompt {prompt}")
        if row >= self._prompts[prompt]:
            raise _Refused(HTTPStatus.NOT_FOUND, f"prompt {prompt} has {self._prompts[prompt]} rows: no row {row}")
        return prompt, row

    def _weights(self, given: dict[str, str]) -> Weights:
        prompt, row = self._sequence(given)
        hook = given["hook"]
        if hook not in self._hooks:
            raise _Refused(HTTPStatus.NOT_FOUND, f"the run holds no attention under the id {hook[:200]!r}")
        held = self._hooks[hook]["prompts"]
        if held is not None and prompt not in held:
            raise _Refused(HTTPStatus.NOT_FOUND, f"{hook[:200]!r} holds nothing of prompt {prompt}")
        key = (hook, prompt, row)
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = load(self._run, *key)
            self._loaded.move_to_end(key)
            while len(self._loaded) > 1 and sum(each.values.nbytes for each in self._loaded.values()) > _REMEMBERED:
                self._loaded.popitem(last=False)
            return self._loaded[key]


class _Handler(BaseHTTPRequestHandler):
    timeout = _SECONDS
    server: _HTTPServer

    def do_GET(self) -> None:
        try:
            self._check_host()
            parts = urlsplit(self.path)
            if len(self.path) > _LONGEST_QUERY:
                raise _Refused(HTTPStatus.BAD_REQUEST, f"a request has at most {_LONGEST_QUERY} characters")
            content_type, content = self.server.pages.answer(parts.path, parts.query)
        except _Refused as refused:
            self._say(refused.status, str(refused))
        except NeuroscopeError as error:  # a torn shard, say
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except ValueError as error:  # of urlsplit
            self._say(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._send(HTTPStatus.OK, content_type, content)

    do_HEAD = do_GET

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered")
            return False
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What http.server itself refuses, in one line instead of a page."""
        self._say(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal stays for what matters."""

    def version_string(self) -> str:
        return "neuroscope-fast"

    def _check_host(self) -> None:
        allowed = self.server.allowed_hosts
        given = self.headers.get_all("Host") or []
        if allowed is not None and (len(given) != 1 or given[0].strip().lower() not in allowed):
            raise _Refused(
                HTTPStatus.FORBIDDEN, "this server answers to its loopback address alone: open the link that it printed"
            )

    def _say(self, status: HTTPStatus, message: str) -> None:
        self._send(status, "text/plain; charset=utf-8", one_line(message).encode("utf-8", "backslashreplace") + b"\n")

    def _send(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], pages: _Pages, *, loopback: bool):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.pages = pages
        self.policy = policy("; connect-src 'self'; frame-ancestors 'none'")
        self.allowed_hosts: set[str] | None = None
        super().__init__(address, _Handler)
        if loopback:
            names = {"localhost", DEFAULT_HOST, "[::1]", _in_url(address[0])}
            self.allowed_hosts = {f"{name}:{self.server_port}" for name in names}
            if self.server_port == 80:
                self.allowed_hosts |= names

    def server_bind(self) -> None:
        # Less than HTTPServer's own, which asks a name server who this machine is.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):  # a browser may go at any time
            super().handle_error(request, client_address)


class ViewServer:
    """A server that is bound to its port. `with` serves in the background; `serve_forever` in this thread."""

    def __init__(self, server: _HTTPServer, host: str, *, exposed: bool):
        self._server = server
        self._thread: threading.Thread | None = None
        self.host = host
        self.port: int = server.server_port
        self.exposed = exposed
        """Whether other machines reach it."""

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{_in_url(self.host)}:{self.port}/"

    def serve_forever(self) -> None:
        """Serves until the process is interrupted, then closes."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()

    def close(self) -> None:
        """Ends a server that runs in the background."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def __enter__(self) -> ViewServer:
        self._thread = threading.Thread(target=self._server.serve_forever, name="neuroscope-view", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(run: Run, port: int = 0, host: str = DEFAULT_HOST, *, expose: bool = False) -> ViewServer:
    """A server of the attention page of a run, bound to `port` (0: one that is free) and not yet serving.

    with serve(nsf.open("runs/one")) as server:
        print(server.url)

    Only the metadata of the run is read; a layer's tensors are when they are looked at. Raises MissingActivations where
    the run holds no attention; OptionError where the port is not free, and for a `host` that other machines reach,
    unless `expose` says that they may: everybody who can connect to it reads the run's texts and attention.
    """
    address = DEFAULT_HOST if host == "localhost" else host.removeprefix("[").removesuffix("]")
    exposed = not _is_loopback(address)
    if exposed and not expose:
        raise OptionError(
            f"{host} is no loopback address: everybody who can connect to it would read this run; say expose "
            "(--expose) if they may"
        )
    if not 0 <= port <= 65535:
        raise OptionError(f"port {port} is none: ports are 0 (any that is free) to 65535")
    pages = _Pages(run)
    try:
        server = _HTTPServer((address, port), pages, loopback=not exposed)
    except OSError as error:
        mend = "choose another with --port, or 0 for one that is free"
        raise OptionError(f"cannot listen on {host}, port {port}: {error.strerror or error}; {mend}") from error
    return ViewServer(server, address, exposed=exposed)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which could lead anywhere
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _arguments(query: str, known: dict[str, bool]) -> dict[str, str]:
    """The parameters of a query, each once; `known` says which there are, and which must be given."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=8)
    except ValueError as error:  # UnicodeDecodeError too
        raise _Refused(HTTPStatus.BAD_REQUEST, f"the query cannot be read: {error}") from error
    given = dict(pairs)
    wrong = sorted(given.keys() - known.keys())
    missing = [name for name, needed in known.items() if needed and name not in given]
    if wrong or missing or len(given) < len(pairs):
        takes = ", ".join(known) or "no parameters"
        raise _Refused(HTTPStatus.BAD_REQUEST, f"the query takes {takes}, each once")
    return given


def _number(given: dict[str, str], name: str) -> int:
    if not _NUMBER.fullmatch(given[name]):
        raise _Refused(HTTPStatus.BAD_REQUEST, f"{name} is a number of at most 9 digits, counted from 0")
    return int(given[name])
