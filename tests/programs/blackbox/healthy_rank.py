"""One rank of a healthy gloo job, with uneven steps, an evaluation and a checkpoint, both of which
take three to five times as long as the watchdog's threshold.

    healthy_rank.py SEED THRESHOLD FOLDER

The SEED says how uneven the steps are, whether all ranks evaluate or rank 0 alone, and when. An
evaluation and a checkpoint each begin with a file ``pause1`` or ``pause2`` in FOLDER, and end with
``over1`` or ``over2``. They last longer until there is a file ``looked1`` or ``looked2``.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from workerserver import heartbeat, worker_main

STEPS = 24
#: In thresholds. For a longer pause a rank may be named.
LONG, LONGEST = 3.0, 5.0


def load_batch(chance: random.Random, threshold: float) -> torch.Tensor:
    """Most batches come at once, some late, and one in forty takes most of a threshold."""
    late = chance.random()
    if late > 0.975:
        time.sleep(0.8 * threshold)
    elif late > 0.7:
        time.sleep(0.4 * (late - 0.7))
    return torch.randn(32, 64)


def forward(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    time.sleep(0.02)  # as long as it would take on an accelerator
    return model(batch)


class Pause:
    """A time without a heartbeat. All ranks, or some, are in it."""

    def __init__(self, folder: Path, number: int, seconds: float, longest: float) -> None:
        (folder / f"pause{number}").touch()
        self._looked = folder / f"looked{number}"
        self._over = folder / f"over{number}"
        self._began = time.monotonic()
        self._seconds = seconds
        self._longest = longest

    def lasts(self) -> bool:
        passed = time.monotonic() - self._began
        looked = self._looked.exists()
        if passed < self._seconds or (passed < self._longest and not looked):
            return True
        self._over.touch()
        return False


def evaluate(model: torch.nn.Module, pause: Pause) -> float:
    total = 0.0
    with torch.no_grad():
        while pause.lasts():
            total += forward(model, torch.randn(32, 64)).sum().item()
    return total


def save(model: torch.nn.Module, folder: Path, pause: Pause) -> None:
    """Shard by shard, on a slow disk."""
    number = 0
    while pause.lasts():
        path = folder / f"shard{number % 8}"
        with path.open("wb") as file:
            torch.save(model.state_dict(), file)
            time.sleep(0.05)
        number += 1


@worker_main()
def main(seed: int, threshold: float, folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    job, own = random.Random(seed), random.Random(f"{seed} {rank}")
    evaluation, checkpoint = job.sample(range(6, STEPS - 3), 2)
    together = job.random() < 0.5
    model = torch.nn.Linear(64, 10)
    for step in range(STEPS):
        heartbeat(step)
        loss = forward(model, load_batch(own, threshold)).square().mean()
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        time.sleep(own.random() * 0.2)
        number = 1 if step == min(evaluation, checkpoint) else 2
        if step == evaluation and (together or rank == 0):
            seconds = LONG * threshold * (own.uniform(1.0, 1.2) if together else 1.0)
            evaluate(model, Pause(folder, number, seconds, LONGEST * threshold))
        if step == checkpoint and rank == 0:
            pause = Pause(folder, number, LONG * threshold, LONGEST * threshold)
            save(model, folder, pause)
        if step in (evaluation, checkpoint):
            dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
