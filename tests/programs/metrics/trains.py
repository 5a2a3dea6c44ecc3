"""A rank that trains under torchrun: ``python trains.py FOLDER``. It serves on a TCP port of its
own, which it writes into ``FOLDER/begun{rank}`` after some steps. Rank 1 holds the GIL as soon as
``FOLDER/hold`` is there."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from workerserver import WorkerServer, heartbeat


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    value = torch.ones(8)
    with WorkerServer("127.0.0.1", 0) as server:
        for step in range(1_000_000):
            heartbeat(step)
            if rank == 1 and (folder / "hold").exists():
                ctypes.PyDLL(None).sleep(600)
            dist.all_reduce(value)
            value.fill_(1)
            time.sleep(0.02)
            if step == 20:
                begun = folder / f"begun{rank}"
                begun.with_suffix(".new").write_text(str(server.port))
                os.replace(begun.with_suffix(".new"), begun)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
