"""A DataLoader with forked workers iterates while pings go on. ``python fork_loader.py PATH``."""

from __future__ import annotations

import json
import os
import sys
import threading

import torch
from support.lifecycle import ask, socket_names
from torch.utils.data import DataLoader, Dataset

from workerserver import WorkerServer


class Numbers(Dataset[torch.Tensor]):  # type: ignore[misc, unused-ignore]
    """Each item is the number of the server's sockets that its worker holds."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, socket_names().count(sys.argv[1]), os.getpid()])


def main() -> None:
    stop = threading.Event()
    answers: set[tuple[int, str]] = set()
    counted = 0

    def ping() -> None:
        nonlocal counted
        while not stop.is_set():
            answers.add(ask(sys.argv[1]))
            counted += 1

    with WorkerServer(sys.argv[1]):
        client = threading.Thread(target=ping)
        client.start()
        sums, held, workers = [], 0, set()
        for _ in range(4):
            rows = torch.cat(list(DataLoader(Numbers(), batch_size=8, num_workers=2)))
            sums.append(int(rows[:, 0].sum()))
            held += int(rows[:, 1].sum())
            workers.update(rows[:, 2].tolist())
        stop.set()
        client.join()
    print(
        json.dumps(
            {
                "sums": sums,
                "held": held,
                "workers": len(workers - {os.getpid()}),
                "answers": sorted(answers),
                "pinged": counted > 0,
            }
        )
    )


if __name__ == "__main__":
    main()
