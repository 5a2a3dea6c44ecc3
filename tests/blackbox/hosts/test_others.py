"""How the watchdogs of several hosts agree on who tells: on torch's own store, and in a folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from workerserver.blackbox.watchdog import others
from workerserver.blackbox.watchdog.others import Others, Places
from workerserver.blackbox.watchdog.ranks import Rank
from workerserver.job.records import Address

distributed = pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.torch

STALL = 3.0
TTL = timedelta(seconds=30)


@pytest.fixture(params=[True, False], ids=["libuv", "older"])
def store(request: pytest.FixtureRequest) -> Any:
    return distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=TTL, wait_for_workers=False, use_libuv=request.param
    )


@pytest.fixture
def listening() -> Iterator[str]:
    """Where a rank serves."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def watchdog(port: int, host: int, folder: object = "", world: int = 2) -> Others:
    return Others(f"127.0.0.1:{port}", str(folder), f"job@node{host}-{host}", world)


def rank(number: int, address: str) -> Rank:
    return Rank(number + 1, 0, True, number, 0, (Address(address, False),))


def test_one_takes_an_incident(store: Any) -> None:
    one, other = watchdog(store.port, 0), watchdog(store.port, 1)
    assert one.take(0, STALL) == "mine"
    assert other.take(0, STALL) == "taken"
    assert one.take(0, STALL) == "mine"  # it looks again
    one.told()
    assert other.take(0, STALL) == "told"
    assert other.take(1, STALL) == "told"  # no attempt has made a step since
    one.free()
    assert other.take(1, STALL) == "mine"
    assert one.take(0, STALL) == "taken"


def test_what_is_given_back(store: Any) -> None:
    one, other = watchdog(store.port, 0), watchdog(store.port, 1)
    assert one.take(0, STALL) == "mine"
    one.free()
    assert not one.holds
    assert other.take(0, STALL) == "mine"
    one.free()  # not its own any more
    assert one.take(0, STALL) == "taken"


def test_the_next_attempt(store: Any) -> None:
    """It has watchdogs of its own, and the host that has told the incident may be gone."""
    one = watchdog(store.port, 0)
    assert one.take(0, STALL) == "mine"
    one.told()
    again, other = watchdog(store.port, 0), watchdog(store.port, 1)
    again.restore(one.mark)
    other.goes_on(0)
    assert other.take(0, STALL) == "told"
    again.free()
    assert other.take(1, STALL) == "mine"
    other.told()
    again.goes_on(1)
    assert again.take(1, STALL) == "told"
    again.goes_on(2)
    assert again.take(2, STALL) == "mine"


def test_who_has_taken_it_is_gone(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = watchdog(store.port, 0), watchdog(store.port, 1)
    assert one.take(0, STALL) == "mine"
    assert other.take(0, STALL) == "taken"
    monkeypatch.setattr(others, "HOLD_SECONDS", -STALL)
    assert other.take(0, STALL) == "mine"
    assert one.take(0, STALL) == "taken"
    monkeypatch.undo()
    other.told()
    assert one.take(0, STALL) == "told"
    monkeypatch.setattr(others, "HOLD_SECONDS", -1.0)
    one.free()  # the job goes on, and nobody else says so
    assert one.take(0, STALL) == "mine"


def test_where_the_others_serve(store: Any) -> None:
    entries = distributed.PrefixStore("debug_server", store)
    one, last = watchdog(store.port, 0, world=20), watchdog(store.port, 9, world=20)
    for number in range(19):
        entries.set(f"rank{number}", f"http://node:{number}")
    one.learn([rank(0, "node:0")], time.monotonic())
    assert not one.places.any  # a rank is missing
    entries.set("rank19", "https://node:19")
    one.learn([rank(0, "node:0")], time.monotonic() + 2 * others.LEARN_SECONDS)
    assert one.places.ranks == (*(f"node:{number}" for number in range(19)), "https://node:19")
    last.learn([rank(19, "node:19")], time.monotonic())
    assert not last.places.any  # a host with lower ranks looks at the whole job
    one.learn([], time.monotonic())
    assert one.places == Places()  # another attempt


def test_collectors(store: Any) -> None:
    entries = distributed.PrefixStore("debug_server", store)
    entries.set("collector0", "http://node0:25998#0-3")
    entries.set("collector1", "http://node1:25998#4-7")
    one = watchdog(store.port, 0, world=8)
    one.learn([rank(0, "node0:1")], time.monotonic())
    assert one.places == Places((), ("node0:25998", "node1:25998"))


def test_without_the_store(tmp_path: Path, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's host had it. The folder tells who has taken the incident."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=TTL)
    hosts = [watchdog(store.port, number, tmp_path) for number in range(4)]
    for number, each in enumerate(hosts):
        each.learn([rank(number, listening)], time.monotonic())
    del store
    first, second, third, fourth = hosts
    assert first.take(0, STALL) == "mine"
    assert not first.reachable
    assert second.take(0, STALL) == "taken"
    first.told()
    assert second.take(0, STALL) == "told"
    monkeypatch.setattr(others, "_is_reached", lambda address: False)
    assert third.take(0, STALL) == "mine"  # on another side of the job
    monkeypatch.undo()
    assert fourth.take(1, STALL) == "told"
    first.free()
    third.free()
    assert os.listdir(tmp_path) == []
    assert fourth.take(1, STALL) == "mine"
    first.goes_on(1)
    assert len(os.listdir(tmp_path)) == 1
    first.goes_on(2)
    assert os.listdir(tmp_path) == []


def test_neither_answers(tmp_path: Path) -> None:
    """Then the diagnosis has to say whose turn it is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert watchdog(port, 0, tmp_path).take(0, STALL) == "unknown"
    assert Others("", str(tmp_path), "job@node0-1", 2).take(0, STALL) == "unknown"
    assert os.listdir(tmp_path) == []
