"""sample_stacks and GET /debug/pprof/profile on a server: what they answer, and when they end."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.parking import untraced, where_it_works
from support.served import Served
from support.waiting import wait_until
from support.wire import Client, ask, message, post

from workerserver.http.routes import Router
from workerserver.stacks._stacks import recording_left
from workerserver.stacks.profiles.recorded import parse

pytestmark = [untraced, where_it_works]
LONG = post("sample_stacks?duration=60&hz=10")
PROFILE = "/debug/pprof/profile"


@pytest.fixture(autouse=True)
def nothing_runs_afterwards() -> Iterator[None]:
    yield
    wait_until(lambda: recording_left() == 0.0, 60)


@pytest.fixture
def server(served: Served) -> Served:
    """On every transport. A bare protocol has no page for pprof."""
    return served


def test_the_answer(server: Served) -> None:
    reply = ask(server.address, post("sample_stacks?duration=0.2&hz=200&mode=wall"))
    assert reply.status == 200
    assert reply.header("content-type") == "application/json"
    recorded = parse(reply.body)
    assert recorded.mode == "wall"
    assert recorded.samples > 0
    assert recorded.samples + recorded.missed <= 40
    assert 0 < recorded.seconds <= 0.2
    assert "MainThread" in {thread.name for thread in recorded.threads}
    assert any(name.endswith("test_the_answer") for _, name, _ in recorded.functions)


def test_on_processors(server: Served) -> None:
    reply = ask(server.address, post("sample_stacks?duration=0.05&mode=cpu"))
    assert parse(reply.body).mode == "cpu"


@pytest.mark.parametrize(
    "query", ["duration=0", "duration=61", "duration=nan", "hz=0", "hz=1001", "mode=gil", "x=1"]
)
def test_what_is_out_of_bounds(ours_unix: Served, query: str) -> None:
    assert ask(ours_unix.address, post(f"sample_stacks?{query}")).status == 400
    assert recording_left() == 0.0


def test_one_at_a_time_until_the_asker_goes_away(server: Served) -> None:
    """Over TCP a client that closes may still read, so only a reset says that it has gone."""
    with Client(server.address) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.send(LONG)
        wait_until(lambda: recording_left() > 0, 60)
        reply = ask(server.address, LONG)
        assert reply.status == 409
        assert "one recording runs at a time" in reply.text
        assert int(reply.header("retry-after") or "0") in range(1, 62)
    wait_until(lambda: recording_left() == 0.0, 30)
    assert ask(server.address, post("sample_stacks?duration=0.05")).status == 200


def test_where_stacks_cannot_be_read(ours_unix: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from workerserver.handlers import sampling

    def refuse(*options: object) -> None:
        raise NotImplementedError("the reason")

    monkeypatch.setattr(sampling, "Recording", refuse)
    reply = ask(ours_unix.address, post("sample_stacks"))
    assert reply.status == 501
    assert "can't be recorded here: the reason" in reply.text


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: numbers, and bytes that begin with their length."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        else:
            assert key & 7 == 2
            size = number()
            yield key >> 3, data[at : at + size]
            at += size


def test_the_page(ours_unix: Served) -> None:
    reply = ask(ours_unix.address, message("GET", f"{PROFILE}?seconds=0.2"))
    assert reply.status == 200
    assert reply.header("content-type") == "application/octet-stream"
    profile = list(fields(gzip.decompress(reply.body)))
    strings = [value.decode() for number, value in profile if number == 6 and type(value) is bytes]
    assert strings[0] == ""
    assert {"samples", "count", "wall", "cpu", "nanoseconds", "thread", "MainThread"} <= {*strings}
    assert [number for number, _ in profile].count(1) == 3  # a value for each type
    for number, sample in profile:
        if number == 2:
            assert type(sample) is bytes
            parts = dict(fields(sample))
            assert all(parts[number] for number in (1, 2, 3))


def test_the_page_has_bounds(ours_tcp: Served) -> None:
    for query in ("seconds=0", "seconds=61", "hz=2000"):
        assert ask(ours_tcp.address, message("GET", f"{PROFILE}?{query}")).status == 400
    assert ask(ours_tcp.address, message("POST", PROFILE, b"")).status == 405


def test_a_router_without_the_page(served: Served) -> None:
    assert not Router(served.registry).serves(PROFILE)


@pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed")
def test_go_reads_the_page(ours_tcp: Served, tmp_path: Path) -> None:
    assert isinstance(ours_tcp.address, tuple)
    host, port = ours_tcp.address
    made = subprocess.run(
        ["go", "tool", "pprof", "-raw", f"http://{host}:{port}{PROFILE}?seconds=1"],
        env={**os.environ, "HOME": str(tmp_path), "PPROF_TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "samples/count wall/nanoseconds cpu/nanoseconds[dflt]" in made.stdout
    assert "thread:[MainThread]" in made.stdout
    here = re.escape(f"{Path(__file__).resolve()}:{test_go_reads_the_page.__code__.co_firstlineno}")
    assert re.search(f"test_go_reads_the_page {here}", made.stdout), made.stdout
    assert re.search(r"wall nanoseconds\nPeriod: 10000000\n", made.stdout)


def test_the_import_of_a_server_loads_no_encoder() -> None:
    """A training process pays for the profile only once it is asked for."""
    code = "import workerserver, sys; print('workerserver.stacks.profiles' in sys.modules)"
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert made.stdout == "False\n"


def test_json_is_compact(ours_unix: Served) -> None:
    body = ask(ours_unix.address, post("sample_stacks?duration=0.05")).body
    assert body == (json.dumps(json.loads(body), separators=(",", ":")) + "\n").encode()
