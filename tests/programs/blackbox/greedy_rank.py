"""A worker with a black box that takes more memory than its cgroup may have.

    greedy_rank.py FOLDER CGROUP

It enters the cgroup itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

LIMIT = 128 << 20


def load_batch() -> bytes:
    return b"x" * (4 * LIMIT)


for name in ("memory.max", "memory.limit_in_bytes"):
    if os.path.exists(f"{sys.argv[2]}/{name}"):
        Path(sys.argv[2], name).write_text(str(LIMIT))
Path(sys.argv[2], "cgroup.procs").write_text(str(os.getpid()))

from workerserver import heartbeat, worker_main  # noqa: E402

with worker_main(blackbox=sys.argv[1]):
    heartbeat(7)
    print("begins", flush=True)
    sys.stdin.readline()
    load_batch()
