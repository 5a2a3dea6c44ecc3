"""``python half_open_scene.py FOLDER [MAX_CONNECTIONS]``: a server on ``FOLDER/s`` with as many
descriptors as the limits allow. Answers each line of stdin with resident bytes, descriptors and
connections."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import sys

from workerserver import Limits, WorkerServer


class All(Limits):
    """The server may use all descriptors, because this process doesn't train."""

    def within_descriptors(self) -> Limits:
        return self


def main(folder: str, most: str = "") -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = int(most or 2 * 4096) + 200
    with contextlib.suppress(OSError, ValueError):  # only root may have more than the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), max(hard, wanted)))
    limits = All(max_connections=int(most), head_timeout=600.0) if most else None
    with WorkerServer(os.path.join(folder, "s"), limits=limits):
        print("serving", flush=True)
        for _ in sys.stdin:
            gc.collect()
            with open("/proc/self/statm", encoding="ascii") as file:
                pages = int(file.read().split()[1])
            facts = {
                "rss": pages * os.sysconf("SC_PAGE_SIZE"),
                "descriptors": len(os.listdir("/proc/self/fd")),
            }
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
