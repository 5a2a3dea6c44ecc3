"""One rank of a job on several hosts that makes steps without end. Before each step, rank 3 takes a
lock on $FOLDER/batch. After some steps, once it is in the store, the rank writes a file there."""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.debug._store import tcpstore_client

import workerserver

RANK = int(os.environ["RANK"])
FOLDER = Path(os.environ["FOLDER"])


def load_batch() -> None:
    with (FOLDER / "batch").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)


@workerserver.worker_main()
def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=600))
    for step in itertools.count():
        workerserver.heartbeat(step)
        time.sleep(0.05)
        if RANK == 3:
            load_batch()
        dist.all_reduce(torch.ones(4))
        if step == 5:
            tcpstore_client().get(f"rank{RANK}")  # waits for the key
            (FOLDER / f"begun{RANK}").touch()


if __name__ == "__main__":
    main()
