"""The server of the attention page: what it answers, what it refuses, and that it reads nothing before it is asked."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import struct
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import neuroscope_fast as nsf
import numpy as np
import pytest
import torch
from neuroscope_fast.analysis.sequences import MissingActivations
from neuroscope_fast.errors import OptionError
from neuroscope_fast.reader import Run
from neuroscope_fast.view import ViewServer, serve
from neuroscope_fast.view.blocks import block, load, thumbnails
from run_writer import RunWriter
from view_runs import HOSTILE, MemoryRun, causal


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def line(self) -> str:
        """The one line of an error."""
        text = self.body.decode()
        assert self.headers["content-type"] == "text/plain; charset=utf-8"
        assert text.endswith("\n")
        assert text.count("\n") == 1
        return text.strip()


def ask(server: ViewServer, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    connection.request(method, path, headers=headers or {})
    found = connection.getresponse()
    body = found.read()
    connection.close()
    return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, body)


def pattern(server: ViewServer, path: str = "pattern", **query: object) -> Answer:
    given = {"hook": "a", "prompt": 0, "row": 0, **query}
    return ask(server, f"/{path}?{urllib.parse.urlencode({k: v for k, v in given.items() if v is not None})}")


def raw(server: ViewServer, request: bytes) -> bytes:
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.fixture(scope="module")
def run() -> Run:
    made = MemoryRun().add("a", causal(3, 5)[None], heads=[0, 2, 7]).add(HOSTILE, causal(1, 4)[None], layer="layers.1")
    made.add("mean", causal(1, 4)[:, :], reduction="mean", prompt=2)
    return made.say(["The", " <b>", " cat"], generated=1).run()


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[ViewServer]:
    with serve(run) as found:
        yield found


def test_it_listens_on_this_machine_alone(server: ViewServer) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", server.url)
    assert not server.exposed


def test_the_page(server: ViewServer) -> None:
    found = ask(server, "/")
    assert found.status == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    text = found.body.decode()
    assert '"embedded":false' in text
    assert "application/octet-stream" not in text
    assert "alert(1)</script>" not in text


def test_what_is_looked_at_is_what_the_run_holds(server: ViewServer, run: Run) -> None:
    weights = load(run, "a", 0, 0)
    assert pattern(server).body == block(weights)
    assert pattern(server, head=7).body == block(weights, 7)
    assert pattern(server, "thumbnails").body == thumbnails(weights)
    assert pattern(server, hook=HOSTILE).body == block(load(run, HOSTILE, 0, 0))
    assert pattern(server, hook="mean", prompt=2).body == block(load(run, "mean", 2, 0))
    tokens = json.loads(pattern(server, "tokens", hook=None).body)
    assert tokens == {"texts": ["The", " <b>", " cat"], "prompt_tokens": 2, "known": True}


def test_head_gives_the_headers_alone(server: ViewServer) -> None:
    whole, head = ask(server, "/"), ask(server, "/", "HEAD")
    assert head.status == 200
    assert head.body == b""
    assert head.headers["content-length"] == str(len(whole.body))
    assert ask(server, "/nothing", "HEAD").status == 404


@pytest.mark.parametrize("path", ["/", "/nothing", "/pattern?hook=a&prompt=0&row=0"])
def test_every_answer_is_closed_to_other_origins(server: ViewServer, path: str) -> None:
    headers = ask(server, path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    assert not [name for name in headers if name.startswith("access-control")]
    assert headers["server"].startswith("neuroscope-fast")
    assert "python" not in headers["server"].lower()


@pytest.mark.parametrize(
    "path",
    ["/x", "/page.js", "/static/page.js", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/pattern/", "/."],
)
def test_nothing_is_served_by_the_name_of_a_file(server: ViewServer, path: str) -> None:
    found = ask(server, path)
    assert found.status == 404
    assert found.line == "there is nothing here; the page is at /"


@pytest.mark.parametrize("name", ["prompt", "row", "head"])
@pytest.mark.parametrize(
    "value", ["-1", "1e3", "NaN", "inf", "0x1", "", " 1", "1.0", "٣", "9" * 10, "9" * 5000, "None"]
)
def test_a_number_that_is_none_is_refused(server: ViewServer, name: str, value: str) -> None:
    found = pattern(server, **{name: value})
    assert found.status == 400
    assert found.line == f"{name} is a number of at most 9 digits, counted from 0"


@pytest.mark.parametrize(
    "query",
    [
        "",
        "hook=a",
        "hook=a&prompt=0&row=0&row=0",
        "hook=a&prompt=0&row=0&file=x",
        "hook=%ff%fe&prompt=0&row=0",
        "hook",
        "&".join(f"a{i}=1" for i in range(50)),
        f"hook={'a' * 10_000}&prompt=0&row=0",
    ],
)
def test_a_query_of_another_form_is_refused(server: ViewServer, query: str) -> None:
    found = ask(server, f"/pattern?{query}")
    assert found.status == 400
    assert found.line


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ({"prompt": 999_999_999}, "the run holds no attention of prompt 999999999"),
        ({"row": 1}, "prompt 0 has 1 rows: no row 1"),
        ({"head": 1}, "there is no head 1; stored are [0, 2, 7]"),
        ({"hook": "b"}, "the run holds no attention under the id 'b'"),
        ({"prompt": 2}, "'a' holds nothing of prompt 2"),
        ({"hook": "mean", "prompt": 2, "head": 0}, "there is no head 0; stored are all in one"),
        ({"hook": "\x1b[2J\n"}, r"the run holds no attention under the id '\x1b[2J\n'"),
    ],
)
def test_what_the_run_does_not_hold_is_not_found(server: ViewServer, query: dict[str, Any], line: str) -> None:
    found = pattern(server, **query)
    assert (found.status, found.line) == (404, line)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "PATCH", "HACK"])
def test_only_get_and_head_are_answered(server: ViewServer, method: str) -> None:
    found = ask(server, "/", method)
    assert found.status == 405
    assert found.line == "only GET and HEAD are answered"
    assert found.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_the_names_of_this_machine_are_answered(server: ViewServer, host: str) -> None:
    assert ask(server, "/", headers={"Host": f"{host}:{server.port}"}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}", ""]
)
def test_another_name_is_refused(server: ViewServer, host: str) -> None:
    found = ask(server, "/", headers={"Host": host.format(port=server.port)})
    assert found.status == 403
    assert found.line.startswith("this server answers to its loopback address alone")


def test_a_request_without_a_host_or_with_two_is_refused(server: ViewServer) -> None:
    good = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    assert b" 403 " in raw(server, b"GET / HTTP/1.1\r\n\r\n").splitlines()[0]
    assert b" 403 " in raw(server, b"GET / HTTP/1.1\r\n" + good + b"Host: evil.example\r\n\r\n").splitlines()[0]
    assert b" 200 " in raw(server, b"GET / HTTP/1.1\r\n" + good + b"Connection: close\r\n\r\n").splitlines()[0]


@pytest.mark.parametrize(
    "request_line", [b"\x00\x01\x02", b"GET", b"GET / HTTP/9.9", b"GET / HTTX", b"<b> <i> HTTP/1.1"]
)
def test_what_is_no_request_gets_one_line(server: ViewServer, request_line: bytes) -> None:
    answer = raw(server, request_line + b"\r\n\r\n")
    body = answer.split(b"\r\n\r\n", 1)[-1]
    assert body.count(b"\n") == 1
    assert b"<html" not in answer.lower()


def test_it_answers_many_at_once(server: ViewServer, run: Run) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda head: pattern(server, head=head), [0, 2, 7] * 8))
    expected = [block(load(run, "a", 0, 0), head) for head in [0, 2, 7] * 8]
    assert [each.body for each in found] == expected


def test_other_machines_are_let_in_only_if_that_is_said(run: Run) -> None:
    for host in ("0.0.0.0", "192.0.2.7", "somewhere.example", "::"):
        with pytest.raises(OptionError, match=f"^{re.escape(host)} is no loopback address: everybody who can connect"):
            serve(run, host=host)
    with serve(run, host="0.0.0.0", expose=True) as found:
        assert found.exposed
        connection = http.client.HTTPConnection("127.0.0.1", found.port, timeout=30)
        connection.request("GET", "/", headers={"Host": "this.machine:1"})
        assert connection.getresponse().status == 200
        connection.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_address_of_ip_version_6(run: Run) -> None:
    with serve(run, host="::1") as found:
        assert found.url == f"http://[::1]:{found.port}/"
        assert ask(found, "/").status == 200


def test_what_cannot_be_listened_on_is_one_line(run: Run, server: ViewServer) -> None:
    with pytest.raises(
        OptionError, match=rf"cannot listen on 127\.0\.0\.1, port {server.port}: Address already in use"
    ):
        serve(run, server.port)
    for port in (-1, 65536):
        with pytest.raises(OptionError, match=f"port {port} is none"):
            serve(run, port)
    with pytest.raises(OptionError, match=r"cannot listen on 192\.0\.2\.7"):
        serve(run, host="192.0.2.7", expose=True)


def test_a_run_without_attention_is_not_served() -> None:
    with pytest.raises(MissingActivations, match="attention_pattern"):
        serve(MemoryRun().add("a", np.zeros((1, 2, 2), np.float32), component="residual").run())


class AttentionWriter(RunWriter):
    def _place(self, hook_id: str) -> dict[str, str]:
        place = super()._place(hook_id)
        return {**place, "layer_name": f"{place['layer_name']}.self_attn", "component": "attention_pattern"}


def big_run(folder: Path, heads: int, tokens: int) -> Path:
    """A small layer in one shard, and in another, which is sparse, a layer of many GB."""
    writer = AttentionWriter(folder, ["small", "big"])
    writer.add("small", torch.from_numpy(causal(2, 3))[None])
    writer.roll_over("float32")
    writer.add("big", torch.zeros(1, 1, 1, 1))
    writer.close()
    shape = [1, heads, tokens, tokens]
    metadata = folder / writer.metadata_file
    metadata.write_text(metadata.read_text().replace("[1, 1, 1, 1]", str(shape)))
    size = 4 * heads * tokens * tokens
    header = json.dumps({"big/000000": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    shard = folder / "activations-float32-00001.safetensors"
    shard.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(shard, 8 + len(header) + size)
    return folder


def mapped(folder: Path) -> set[str]:
    """The shards of a run that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.rsplit("/", 1)[-1] for line in lines if f"{folder}/" in line}


def test_a_run_larger_than_memory_opens_at_once_and_is_read_as_it_is_looked_at(tmp_path: Path) -> None:
    folder = big_run(tmp_path / "run", heads=40, tokens=8192)  # 10.7 GB
    with serve(nsf.open(folder)) as server:
        assert b"layer 1" in ask(server, "/").body
        pattern(server, "tokens", hook=None)
        assert mapped(folder) == set()
        assert pattern(server, hook="small", head=1).status == 200
        assert mapped(folder) == {"activations-float32-00000.safetensors"}


def test_a_torn_shard_is_one_line_and_the_others_are_served(tmp_path: Path) -> None:
    folder = big_run(tmp_path / "run", heads=1, tokens=8)
    shard = folder / "activations-float32-00001.safetensors"
    os.truncate(shard, shard.stat().st_size - 4)
    with serve(nsf.open(folder)) as server:
        found = pattern(server, hook="big")
        assert found.status == 500
        assert "activations-float32-00001.safetensors" in found.line
        assert pattern(server, hook="small").status == 200
