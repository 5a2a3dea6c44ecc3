"""One rank of a gloo job with torch's unmodified debug frontend, on our server or on torch's.

``torchrun ... frontend_rank.py ours|torch PORT FOLDER``; lives until FOLDER/done exists.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import workerserver


def hold_rank_0(folder: Path) -> None:
    while not (folder / "done").exists():
        time.sleep(0.02)


def hold_rank_1(folder: Path) -> None:
    while not (folder / "done").exists():
        time.sleep(0.02)


def main(kind: str, port: int, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    if kind == "ours":
        workerserver.install()
    from torch.distributed import debug

    dist.init_process_group("gloo")
    for _ in range(3):
        dist.all_reduce(torch.ones(4))
    dumps: dict[str, Any] = {"dump_dir": str(folder / "dumps"), "dump_interval": 1.0}
    if "dump_dir" not in inspect.signature(debug.start_debug_server).parameters:  # torch 2.10
        dumps = {}
    debug.start_debug_server(port=port, **dumps)
    server = debug._WORKER_SERVER
    facts = {"type": f"{type(server).__module__}.{type(server).__name__}", "port": server.port}
    (folder / f"rank{rank}.json.tmp").write_text(json.dumps(facts))
    os.rename(folder / f"rank{rank}.json.tmp", folder / f"rank{rank}.json")
    (hold_rank_1 if rank else hold_rank_0)(folder)
    if kind == "torch":
        if debug._DEBUG_SERVER_PROC is not None:
            debug._DEBUG_SERVER_PROC.kill()
            debug._DEBUG_SERVER_PROC.join()
        os._exit(0)  # how torch's own server ends after a fork is not what is tested here
    if rank == 0:
        debug.stop_debug_server()
    else:
        debug._WORKER_SERVER.shutdown()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
