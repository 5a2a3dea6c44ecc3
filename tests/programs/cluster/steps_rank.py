"""One rank of a job that makes steps without end. After the first steps, the rank writes its pid to
a file in $FOLDER. If another rank dies, this rank stands still and writes another file."""

from __future__ import annotations

import itertools
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import workerserver


def stand_still() -> None:
    Path(os.environ["FOLDER"], f"stands{os.environ['RANK']}").touch()
    signal.pause()


@workerserver.worker_main()
def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=600))
    for step in itertools.count():
        workerserver.heartbeat(step)
        time.sleep(0.02)
        try:
            dist.all_reduce(torch.ones(4))
        except RuntimeError:  # another rank has died
            stand_still()
        if step == 5:
            Path(os.environ["FOLDER"], f"begun{os.environ['RANK']}").write_text(str(os.getpid()))


if __name__ == "__main__":
    main()
