"""Registration in a store. ``python discovery_scene.py SCENE [PORT]``; prints one JSON object."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from support.lifecycle import free_port
from support.waiting import wait_until

from workerserver import registration
from workerserver.registration import StoreRegistration

NAME = "workerserver-register"


def threads() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


def store(port: int, master: bool = True) -> Any:
    from torch.distributed import TCPStore

    return TCPStore(
        "127.0.0.1", port, is_master=master, wait_for_workers=False, timeout=timedelta(seconds=20)
    )


def registers() -> dict[str, Any]:
    """A store that is up; two ranks, read through torch's own client."""
    port = free_port()
    kept = store(port)
    registrations = [
        StoreRegistration("127.0.0.1", port, f"rank{rank}", f"http://node:{5000 + rank}")
        for rank in range(2)
    ]
    for each in registrations:
        each.start()
    for each in registrations:
        assert each.done.wait(30)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    from torch.distributed.debug._store import tcpstore_client

    found = [value.decode() for value in tcpstore_client().multi_get(["rank0", "rank1"])]
    keys = [key for key in kept.list_keys() if "debug" in key]
    wait_until(lambda: threads() == 0)
    return {
        "found": found,
        "keys": sorted(keys),
        "attempts": [registration.attempts for registration in registrations],
    }


def late() -> dict[str, Any]:
    """A store that comes up after several attempts. No attempt may print anything."""
    import torch.distributed

    assert torch.distributed.is_available()
    port = free_port()
    registration = StoreRegistration("127.0.0.1", port, "rank3", "http://node:1")
    registration.start()
    wait_until(lambda: registration.attempts >= 2)
    early = registration.done.is_set()
    kept = store(port)
    assert registration.done.wait(60)
    return {"early": early, "value": kept.get("debug_server/rank3").decode()}


def torch_comes_late() -> dict[str, Any]:
    port = free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        listener.setblocking(False)
        registration = StoreRegistration("127.0.0.1", port, "rank0", "http://node:1")
        registration.start()
        time.sleep(1.5)  # several turns
        facts = {"torch": "torch" in sys.modules, "attempts": registration.attempts}
        try:
            listener.accept()
        except BlockingIOError:
            facts["connected"] = False
    kept = store(port)  # imports torch
    assert registration.done.wait(60)
    return {**facts, "value": kept.get("debug_server/rank0").decode()}


def no_store() -> dict[str, Any]:
    """Nothing listens, or the host doesn't exist. Neither may disturb training."""
    import torch.distributed

    assert torch.distributed.is_available()
    registrations = [
        StoreRegistration("127.0.0.1", free_port(), "rank0", "http://node:1"),
        StoreRegistration("no-such-host.invalid", 80, "rank0", "http://node:1"),
    ]
    started_in = timed([registration.start for registration in registrations])
    wait_until(lambda: all(registration.attempts >= 2 for registration in registrations), 60)
    stopped_in = timed([registration.stop for registration in registrations])
    done = [registration.done.is_set() for registration in registrations]
    wait_until(lambda: threads() == 0, 60)
    return {"started_in": started_in, "stopped_in": stopped_in, "done": done}


def timed(calls: list[Callable[[], None]]) -> float:
    start = time.monotonic()
    for call in calls:
        call()
    return time.monotonic() - start


def exit_while_trying() -> dict[str, Any]:
    """The process ends during an attempt that torch would never give up: the store at the given
    port accepts every connection and never answers."""
    import torch.distributed

    assert torch.distributed.is_available()
    registration = StoreRegistration("127.0.0.1", int(sys.argv[2]), "rank0", "http://node:1")
    registration.start()
    wait_until(lambda: registration.attempts >= 1)
    time.sleep(0.2)
    return {"threads": threads()}


class SlowEnd:
    """Is slow when the interpreter ends, as big libraries are."""

    def __del__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        sleep(2.0)


def exit_slowly() -> dict[str, Any]:
    """As exit_while_trying, but the store hangs up while the process ends."""
    global KEPT
    registration.CONNECT_SECONDS = 0.3  # after which torch tries no more
    facts = exit_while_trying()
    KEPT = SlowEnd()
    return facts


KEPT: SlowEnd | None = None
SCENES: dict[str, Callable[[], dict[str, Any]]] = {
    f.__name__: f
    for f in (registers, late, torch_comes_late, no_store, exit_while_trying, exit_slowly)
}

if __name__ == "__main__":
    print(json.dumps(SCENES[sys.argv[1]]()), flush=True)
