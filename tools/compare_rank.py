"""One rank of the job that compare_peers.py hangs. It serves torch's debug frontend beside ours.

``compare_rank.py SCENE FOLDER PORT``: after five all_reduces, rank 2 does what SCENE says. The
other ranks go on to the next all_reduce and wait there. PORT is the frontend's.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (  # type: ignore[attr-defined]
    _dump_fr_trace,
)
from torch.distributed.debug import start_debug_server

from workerserver import heartbeat, worker_main

STEPS = 5
GUILTY = 2


def load_shard() -> None:
    """Take a lock twice, as examples/train_digits.py does."""
    lock = threading.Lock()
    with lock, lock:
        raise AssertionError("a Lock was taken twice")


def evaluate() -> None:
    """Wait in user code for something that never comes."""
    while True:
        time.sleep(3600)


def native_call() -> None:
    """Stay in a C function that keeps the GIL."""
    ctypes.PyDLL(None).sleep(3600)


def last_batch() -> None:
    """Go to the end of the epoch one batch too early."""
    dist.barrier()


SCENES = {each.__name__: each for each in (load_shard, evaluate, native_call, last_batch)}


def write_trace(folder: Path) -> None:
    """Write this rank's flight recorder into *folder*, for torchfrtrace, once the job has hung."""
    while not (folder / "dump").exists():
        time.sleep(0.2)
    name = f"trace_{dist.get_rank()}"
    (folder / f"{name}.part").write_bytes(_dump_fr_trace())
    (folder / f"{name}.part").rename(folder / name)


@worker_main()
def main() -> None:
    scene, folder, port = SCENES[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo")
    start_debug_server(port, start_method="spawn")
    threading.Thread(target=write_trace, args=(folder,), daemon=True).start()
    for step in range(STEPS + 1):
        heartbeat(step)
        if step == STEPS and dist.get_rank() == GUILTY:
            scene()
        dist.all_reduce(torch.ones(4))


if __name__ == "__main__":
    main()
