"""Training on Slurm, where docs/howto/slurm.md gives the recipe: the store is MASTER_ADDR's."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from plant import reached

from workerserver import heartbeat


def main() -> None:
    dist.init_process_group("gloo")
    value = torch.ones(1)
    for step in range(1_000_000):
        heartbeat(step)
        dist.all_reduce(value)
        value.fill_(1)
        reached(step, dist.get_rank())


if __name__ == "__main__":
    # Each task of an array reports in a folder of its own, and so does each run of a job.
    task, run = (
        os.environ.get(f"SLURM_{each}", "0") for each in ("ARRAY_TASK_ID", "RESTART_COUNT")
    )
    os.environ["BEGUN"] = os.path.join(os.environ["BEGUN"], f"{task}-{run}")
    if os.environ.get("HANG_TASK", task) != task:
        os.environ["HANG"] = "-1"
    os.makedirs(os.environ["BEGUN"], exist_ok=True)
    main()
