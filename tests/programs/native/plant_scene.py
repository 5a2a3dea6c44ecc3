"""A hub with a connection in each lasting stage. Forked children then plant one fault each.

``plant_scene.py``: plant the faults in the JSON list on stdin, and each possible transition. Prints
how the children ended. ``plant_scene.py here``: plant a fault in this process, which dies.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.native import PING, PONG, RELAYED, Recorder, Rig, receive
from support.waiting import wait_until

from workerserver.native import _engine

engine: Any = _engine  # plants.pyx is no part of the stub

WANTED = {"IO": 2, "WAIT": 1, "QUEUED": 1, "LOOP": 2, "ANSWERING": 1, "DRAIN": 1, "DEAD": 1}
CLOSED = PING.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


def main() -> None:
    here = sys.argv[1:] == ["here"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="ws-") as name:
        rig = Rig("asyncio-unix", Recorder, gil_deadline=0.1)
        torch = socket.socket(socket.AF_UNIX)  # takes a connection, and never answers
        path = str(Path(name) / "torch")
        torch.bind(path)
        torch.listen()
        inode = os.fstat(torch.fileno()).st_ino
        rig.call(lambda: rig.hub.set_relay(path.encode(), torch.fileno(), inode))

        socks = [rig.client() for _ in range(5)]
        idle, half, drained, queued, relayed = socks
        idle.sendall(PING)
        receive(idle, len(PONG))
        if here:
            engine.corrupt()
            idle.sendall(PING)
            receive(idle, len(PONG) + 1)
        half.sendall(PING[:20])
        drained.sendall(CLOSED)
        receive(drained, len(PONG))
        kept = rig.open()
        stuffed = rig.open(receive=4096)
        rig.call(lambda: stuffed[1].transport.write(b"x" * (4 << 20)))
        waiting, reset = rig.open(), rig.open()
        rig.call(lambda: reset[1].transport.write(b"never read"))
        for _, protocol in (waiting, reset):
            rig.call(lambda p=protocol: p.transport.want_bytes(False))  # type: ignore[misc]
        rig.hold()
        queued.sendall(b"something for the loop")
        relayed.sendall(RELAYED)
        reset[0].close()  # with unread bytes: an error on the other side, which nobody reads yet
        assert kept[1].told == ["made", "data"]
        wait_until(lambda: all(engine.stages().count(s) == n for s, n in WANTED.items()))

        faults = json.load(sys.stdin)
        result = {
            "faults": {fault: engine.plant(fault.encode()) for fault in faults},
            "moves": [
                [old, new, io, *engine.move_in_child(old, new, io)]
                for old in range(9)
                for new in range(9)
                for io in (False, True)
            ],
        }
    json.dump(result, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # the loop is held


main()
