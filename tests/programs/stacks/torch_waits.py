"""``torch_waits.py RANK FILE CASE``: rank 0 waits in an operation that rank 1 never joins.

It prints what snapshots in both modes say of that wait. Both ranks find each other by FILE. Rank 1
ends with its stdin.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from workerserver.stacks import known
from workerserver.stacks._stacks import snapshot


def join(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)


def cases(pair: Any) -> dict[str, Callable[[], object]]:
    data = torch.zeros(2)
    return {
        "recv": lambda: dist.recv(data, src=1, tag=5),
        "recv in a group": lambda: dist.recv(data, group_src=1, group=pair),
        "monitored_barrier": dist.monitored_barrier,
        "broadcast_object_list": lambda: dist.broadcast_object_list([None], src=1),
        "all_reduce": lambda: dist.all_reduce(data, group=pair),
    }


def waits(mode: Any) -> dict[str, Any]:
    """What the thread that acts waits for, once that comes from its locals."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        known.publish()
        time.sleep(0.02)
        value = json.loads(snapshot(mode=mode, facts=True).render("json"))
        for thread in value["threads"]:
            found: dict[str, Any] = thread.get("waits_for", {})
            if thread["name"] == "acts" and found.get("kind") in ("operation", "rendezvous"):
                return found
    return {}


def main() -> None:
    rank, file, case = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    call: Callable[[], object] = partial(join, 0, file)
    if case != "rendezvous":
        join(rank, file)
        pair = dist.new_group([0, 1], group_desc="the pair")
        call = cases(pair)[case]
    if rank == 1:
        sys.stdin.read()
        os._exit(0)
    threading.Thread(target=call, name="acts", daemon=True).start()
    print(json.dumps({mode: waits(mode) for mode in ("gil", "nogil")}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
