"""A rank that leaves what its flight recorder holds, as torch's watchdog of NCCL does: a pickle of
torch's at PREFIX and the rank, and JSON beside it. ``dumping_rank.py PREFIX TIMEOUT``: rank 1 does
not come to the sixth all_reduce; the others dump when gloo's time-out has ended it, rank 1 later.
"""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

c10d = torch._C._distributed_c10d


def step() -> None:
    dist.all_reduce(torch.ones(4))


def leave(prefix: str, rank: int) -> None:
    for suffix, dump in (("", c10d._dump_fr_trace), (".json", c10d._dump_fr_trace_json)):
        Path(f"{prefix}{rank}{suffix}.new").write_bytes(dump())
        Path(f"{prefix}{rank}{suffix}.new").rename(f"{prefix}{rank}{suffix}")


def main() -> None:
    prefix, timeout = sys.argv[1], float(sys.argv[2])
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
    rank = dist.get_rank()
    for _ in range(5):
        step()
    if rank == 1:
        others = [Path(f"{prefix}{each}.json") for each in range(dist.get_world_size())]
        others.remove(Path(f"{prefix}1.json"))
        while not all(map(Path.exists, others)):
            time.sleep(0.2)
    else:
        try:
            step()
        except RuntimeError:
            pass
        else:
            raise SystemExit("the all_reduce ended without rank 1")
    leave(prefix, rank)


if __name__ == "__main__":
    main()
