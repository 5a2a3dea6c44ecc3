"""Clients that read nothing: what their replies may cost, in the kernel and in the process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
from support.lifecycle import PROGRAMS, environment
from support.served import Connect, Kind, Serve
from support.waiting import wait_until
from support.wire import ask, post

from workerserver import Limits, Response

CLIENTS = 100


@pytest.mark.netns
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ss") is None, reason="needs root and iproute2"
)
def test_the_kernel_keeps_little_for_clients_that_read_nothing() -> None:
    """Each asks for 40 dumps of some 100 kB and reads none. The kernel would let the buffer of each
    connection grow to 4 MB."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "http" / "unread_scene.py"), str(CLIENTS), "40"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout)
    assert len(kept) == CLIENTS
    assert min(kept) > 0, "a connection has nothing to send: the test shows nothing"
    assert max(kept) <= 1 << 20
    assert sum(kept) <= CLIENTS * (256 << 10)


def test_unsent_replies_are_bounded(kind: Kind, serve: Serve, connect: Connect) -> None:
    """Beyond the limit a client gets 503, whoever it is; when a reply has gone out, or its client,
    there is room again."""
    body = b"x" * (8 << 20)
    served = serve(kind, limits=Limits(max_unsent=20 << 20))
    served.registry.register("large", lambda: Response(body), inline=True)
    greedy = [connect(served.address) for _ in range(4)]
    for client in greedy:
        client.send(post("large"))
    wait_until(lambda: sum(served.state.requests.values()) == 4)
    assert served.state.requests[("large", 503)] >= 1
    assert served.state.unsent <= 24 << 20
    refused = ask(served.address, post("large"))
    assert refused.status == 503
    assert "don't read" in refused.text
    assert ask(served.address, post("ping")).body == b"pong"  # small ones go out all the same
    for client in greedy:
        client.close()
    wait_until(lambda: served.state.unsent == 0)
    assert ask(served.address, post("large")).body == body


def test_one_reply_alone_may_be_larger_than_the_limit(kind: Kind, serve: Serve) -> None:
    body = b"x" * (8 << 20)
    served = serve(kind, limits=Limits(max_unsent=1 << 20))
    served.registry.register("large", lambda: Response(body), inline=True)
    assert ask(served.address, post("large")).body == body


def test_a_response_tells_when_it_is_sent(kind: Kind, serve: Serve, connect: Connect) -> None:
    """Once: when its client has taken it, when the client is gone, and when a 503 is sent in its
    place."""
    told: list[str] = []

    def large(name: str) -> Response:
        response = Response(b"x" * (8 << 20))
        response.sent = lambda: told.append(name)
        return response

    gate = threading.Event()

    async def later(name: str) -> Response:
        while not gate.is_set():
            await asyncio.sleep(0.001)
        return large(name)

    served = serve(kind)
    served.registry.register("large", large, inline=True)
    served.registry.register("later", later)
    reader, gone, impatient = (connect(served.address) for _ in range(3))
    reader.send(post("large?name=read"))
    gone.send(post("large?name=gone"))
    wait_until(lambda: served.state.requests.get(("large", 200)) == 2)
    assert told == []
    assert len(reader.reply().body) == 8 << 20
    if kind != "tls":  # there the next request, or the end, tells
        wait_until(lambda: told == ["read"])
    reader.ask(post("ping"))
    wait_until(lambda: told == ["read"])
    gone.close()
    wait_until(lambda: told == ["read", "gone"])
    impatient.send(post("later?name=left"))
    wait_until(lambda: served.registry.find("later").running == 1)
    impatient.close()
    gate.set()
    wait_until(lambda: served.registry.find("later").running == 0)
