"""One rank of a gloo job on several hosts, which does what files in a folder say.

    host_rank.py FOLDER

It makes steps. While somebody else locks the file ``disk{rank}``, it makes none. Once there is a
file ``end{rank}-{restart}`` it ends as the word in that file says.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.debug._store import tcpstore_client

from workerserver import heartbeat, worker_main

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])
RESTART = os.environ["TORCHELASTIC_RESTART_COUNT"]
AT_STEP = 5


def load_batch() -> torch.Tensor:
    with (FOLDER / f"disk{RANK}").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    end = FOLDER / f"end{RANK}-{RESTART}"
    if end.exists():
        leave(end.read_text())
    return torch.ones(8)


def leave(way: str) -> None:
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "exception":
        raise ValueError("a batch of nothing")


@worker_main()
def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=1800))
    for step in itertools.count():
        heartbeat(step)
        time.sleep(0.05)
        dist.all_reduce(load_batch())
        if step == AT_STEP:
            if os.environ.get("WORKERSERVER_TCP"):
                tcpstore_client().get(f"rank{RANK}")  # waits for the key
            (FOLDER / f"begun{RANK}-{RESTART}").touch()
        # The ranks agree on the end, so that none waits for one that has ended.
        done = torch.tensor([float((FOLDER / "done").exists())])
        dist.all_reduce(done, dist.ReduceOp.MAX)
        if done.item():
            break
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
