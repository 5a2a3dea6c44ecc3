"""A process group whose backend torch 2.15's hook records, and what our server says of it.

``python hooked_backend.py FOLDER``; prints one JSON object: each target that was asked, with what
our server and torch's own answered (status, content type, body).
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support.waiting import wait_until
from support.wire import ask, post
from torch._C import _distributed_c10d as c10d

import workerserver

TARGETS = (
    "fr_trace_json",
    "fr_trace_json?backend=",
    "fr_trace_json?backend=gloo",
    "fr_trace_json?backend=mine",
    "fr_trace_json?backend=mine&backend=gloo&x=1",
    "fr_trace_json?backend=no%20such",
    "fr_dump_file",
    "fr_dump_file?backend=mine",
    "c10d_health_check",
    "c10d_health_check?x=1",
)


class Done(dist._Work):  # type: ignore[misc]
    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


class Mine(c10d.Backend):
    """Finishes each operation at once; nothing is sent."""

    def getBackendName(self) -> str:
        return "mine"

    def allreduce(self, tensors: Any, options: Any = None) -> Done:
        return Done()


def create(store: Any, rank: int, size: int, timeout: Any) -> Mine:
    return Mine(rank, size)


def main() -> None:
    folder = Path(sys.argv[1])
    os.environ["TORCH_FR_DUMP_TEMP_FILE"] = str(folder / "dump")
    dist.Backend.register_backend("mine", create, devices=["cpu"])
    dist.init_process_group("mine", store=dist.HashStore(), rank=0, world_size=1)
    for _ in range(2):
        dist.all_reduce(torch.ones(3))
    ours, theirs = str(folder / "ours"), str(folder / "torch")
    answers: dict[str, Any] = {}
    with workerserver.WorkerServer(ours):
        server = c10d._WorkerServer(theirs)
        for target in TARGETS:
            replies = []
            for path in (ours, theirs):
                reply = ask(path, post(target))
                replies.append([reply.status, reply.header("Content-Type"), reply.text])
            answers[target] = replies
        answers["fr_summary"] = json.loads(ask(ours, post("fr_summary")).body)
        dist.destroy_process_group()
        answers["afterwards"] = json.loads(ask(ours, post("fr_summary")).body)
        server.shutdown()
    wait_until(lambda: dumped(folder / "dump0"))
    print(json.dumps(answers), flush=True)
    os._exit(0)  # torch's server may abort the process when it is destroyed


def dumped(path: Path) -> bool:
    """Whether torch has written a whole trace to *path*, which it does in the background."""
    try:
        return bool(pickle.loads(path.read_bytes())["entries"])
    except (OSError, EOFError, pickle.UnpicklingError):
        return False


if __name__ == "__main__":
    main()
