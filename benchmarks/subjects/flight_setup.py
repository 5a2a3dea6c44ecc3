"""A flight recorder with any number of entries, from real collectives over gloo."""

from __future__ import annotations

import json
import os
import time

__all__ = ["prepare"]

#: The longest wait for torch to retire the last operation. torch does that some time after the
#: operation's end.
PATIENCE_SECONDS = 30.0


def prepare(entries: int) -> None:
    """Fill this process's recorder with *entries* all_reduces of a process group of one rank.

    The recorder has to be large enough: set TORCH_FR_BUFFER_SIZE before, because torch reads it
    only once. RuntimeError if the recorder doesn't hold *entries* entries in the end.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torch.distributed as dist
    from torch._C import _distributed_c10d as c10d

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    tensor = torch.ones(4)
    for _ in range(entries):
        dist.all_reduce(tensor)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        dump = json.loads(c10d._dump_fr_trace_json(True, False))  # type: ignore[attr-defined]
        found = dump.get("entries", ())
        if len(found) == entries and all(entry["retired"] for entry in found):
            return
        if time.monotonic() > give_up:
            raise RuntimeError(f"the flight recorder holds {len(found)} entries, not {entries}")
        time.sleep(0.05)
