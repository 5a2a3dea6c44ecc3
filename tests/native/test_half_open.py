"""Thousands of half-open connections cost little and stop no other client.

``make long`` opens ten thousand; then times and memory are asserted, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import Talker, talking
from support.pings import descriptors, pings
from support.waiting import becomes, wait_until
from support.wire import ask, post

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the native I/O thread is Linux's")

SOAK = int(os.environ.get("WORKERSERVER_SOAK_HALF_OPEN", "0"))
NUMBER = SOAK or 600
MIB = 1 << 20


def measured(talker: Talker) -> dict[str, int]:
    talker.say("")
    facts: dict[str, int] = json.loads(talker.hear())
    return facts


def opened(path: str, number: int) -> Iterator[socket.socket]:
    """Connections of which every second one has sent a part of a request."""
    for i in range(number):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        if i % 2:
            sock.sendall(b"POST /handler/ping HTTP/1.1\r\nHost: local"[: 1 + i % 41])
        yield sock


def test_they_stop_nobody(short_path: Path) -> None:
    path = str(short_path / "s")
    facts: dict[str, Any] = {}
    with (
        descriptors(NUMBER + 500) as enough,
        talking("server/half_open_scene.py", str(short_path), str(NUMBER + 100)) as talker,
        contextlib.ExitStack() as stack,
    ):
        if not enough:
            pytest.skip(f"needs {NUMBER + 500} descriptors")
        assert talker.hear() == "serving"
        assert ask(path, post("dump_traceback")).status == 200
        facts["ping before"] = pings(short_path, path, SOAK * 10 or 100)
        becomes(lambda: measured(talker) == measured(talker))
        before = measured(talker)
        begin = time.monotonic()
        first, *_ = [stack.enter_context(sock) for sock in opened(path, NUMBER)]
        facts["opened in"] = time.monotonic() - begin
        becomes(lambda: measured(talker)["descriptors"] == before["descriptors"] + NUMBER)
        facts["growth"] = (measured(talker)["rss"] - before["rss"]) / MIB
        facts["ping beside"] = pings(short_path, path, SOAK * 10 or 100)
        assert ask(path, post("dump_traceback")).status == 200
        first.sendall(post("ping"))
        assert first.recv(4096).endswith(b"pong")
        stack.close()
        begin = time.monotonic()
        becomes(lambda: measured(talker)["descriptors"] == before["descriptors"])
        facts["closed in"] = time.monotonic() - begin
        facts["growth after"] = (measured(talker)["rss"] - before["rss"]) / MIB
        assert ask(path, post("ping")).text == "pong"
    if SOAK:
        print(json.dumps(facts, indent=1))
        assert facts["growth"] < 50
        assert facts["ping beside"]["p99"] < 10_000


@pytest.mark.parametrize("most", [str(NUMBER), ""] if SOAK else [str(NUMBER)])
def test_past_the_limit(most: str, short_path: Path) -> None:
    """Those above the limit are told 503, or, by the hundred, only closed; then it is over."""
    number = int(most or 4096)
    path = str(short_path / "s")
    with (
        descriptors(number + 500) as enough,
        talking("server/half_open_scene.py", str(short_path), most) as talker,
        contextlib.ExitStack() as stack,
    ):
        if not enough:
            pytest.skip(f"needs {number + 500} descriptors")
        assert talker.hear() == "serving"
        before = measured(talker)
        kept = [stack.enter_context(sock) for sock in opened(path, number)]
        becomes(lambda: measured(talker)["descriptors"] == before["descriptors"] + number)
        ends: Counter[bytes] = Counter()
        for _ in range(200):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(path)
                ends[sock.recv(12)] += 1
        assert ends == {b"HTTP/1.1 503": 200}
        kept.pop().close()
        wait_until(lambda: ask(path, post("ping")).status == 200)
        stack.close()
        becomes(lambda: measured(talker)["descriptors"] == before["descriptors"])
