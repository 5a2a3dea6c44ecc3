"""A training script as people write them. ``HANG=1``: rank 1 stands still after some steps.
``FAIL_ONCE=1``: rank 1 fails in the first start of torchrun. With ``spawn`` as its argument it
starts its two ranks by itself. ``HOLD=1``: a rank outlives the others.
``STOCK=23``: ranks 2 and 3 have torch's own server, in a path of their own."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from workerserver import heartbeat, worker_main

STEPS_BEFORE = 20


def load_shard() -> None:
    time.sleep(10_000)


def hold() -> None:
    """As a rank stands that NCCL tells nothing of its peer's death."""
    time.sleep(10_000)


def train() -> None:
    rank = dist.get_rank()
    value = torch.ones(1)
    for step in range(1_000_000):
        heartbeat(step)
        try:
            dist.all_reduce(value)
        except RuntimeError:
            if os.environ.get("HOLD") != "1":
                raise
            hold()
        value.fill_(1)
        time.sleep(0.02)
        if step == STEPS_BEFORE:
            restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            Path(os.environ["BEGUN"], f"{rank}-{restart}").write_text(str(os.getpid()))
            if os.environ.get("HANG") == str(rank):
                load_shard()
            if os.environ.get("FAIL_ONCE") == str(rank) and restart == "0":
                sys.exit(1)


def main() -> None:
    rank = int(os.environ["RANK"])
    if str(rank) in os.environ.get("STOCK", ""):
        server = torch._C._distributed_c10d._WorkerServer(f"/tmp/job/w{rank}.sock")
        work()
        server.shutdown()
    else:
        worker_main()(work)()


def work() -> None:
    # Not torchrun's store: after a restart, gloo (torch 2.13) may find old addresses there.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    place = f"file://{os.environ['BEGUN']}/store{start}"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size)
    train()


def spawned(rank: int) -> None:
    with worker_main():
        dist.init_process_group("gloo", rank=rank, world_size=2)
        train()


if __name__ == "__main__":
    if sys.argv[1:] == ["alone"]:
        with worker_main():
            Path(os.environ["BEGUN"], "0-0").write_text(str(os.getpid()))
            load_shard()
    elif sys.argv[1:] == ["spawn"]:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["PORT"])
        torch.multiprocessing.spawn(spawned, nprocs=2)
    else:
        main()
