"""One of two gloo ranks. Rank 1 stays out of the last operation until both have asked the handlers.

``python flight_recorder_rank.py RANK FOLDER``; prints one JSON object: the handlers' answers at
that moment, and the answers of torch's own server to ``fr_trace_json`` and ``ping``.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from workerserver.handlers import flight_recorder


class UnixConnection(http.client.HTTPConnection):
    """HTTP to the Unix socket at *path*."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def ask_torch(path: str, handler: str) -> tuple[str | None, str]:
    """Content type and body of torch's own answer, from a server of torch's on *path*."""
    server = torch._C._distributed_c10d._WorkerServer(path)
    connection = UnixConnection(path)
    try:
        connection.request("POST", f"/handler/{handler}?whatever=1")
        response = connection.getresponse()
        return response.getheader("Content-Type"), response.read().decode()
    finally:
        connection.close()
        server.shutdown()


def meet(store: dist.Store, rank: int, place: str) -> None:
    """Wait for the other rank, without an operation that the recorder would see."""
    store.set(f"{place}/{rank}", "here")
    store.wait([f"{place}/{1 - rank}"], timedelta(seconds=60))


def settle(rank: int) -> None:
    """Wait until torch has retired the finished operations, some time after they have ended."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        groups = json.loads(flight_recorder.fr_summary().body)["groups"]
        if sum(group["pending"] for group in groups) == (1 if rank == 0 else 0):
            return
        time.sleep(0.01)


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    evens = dist.new_group([0], group_desc="evens")
    pair = dist.new_group([0, 1], group_desc="pair")
    for _ in range(3):
        dist.all_reduce(torch.ones(4))
    dist.all_gather([torch.zeros(2), torch.zeros(2)], torch.ones(2), group=pair)
    work = dist.broadcast(torch.ones(7, 2), 0, async_op=True) if rank == 0 else None
    meet(store, rank, "issued")
    settle(rank)

    ours = flight_recorder.fr_trace_json()
    answers = {
        "summary": json.loads(flight_recorder.fr_summary().body),
        "fr_trace_json": [ours.content_type, ours.body.decode()],
        "torch": ask_torch(str(folder / f"torch{rank}.sock"), "fr_trace_json"),
        "member": evens is not dist.GroupMember.NON_GROUP_MEMBER,
    }
    meet(store, rank, "looked")

    if work is None:
        dist.broadcast(torch.ones(7, 2), 0)
    else:
        work.wait()
    dist.destroy_process_group()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
