"""One rank under torchrun with WORKERSERVER_TCP: finds itself and its peers in the store."""

from __future__ import annotations

import json
import os
import urllib.request

import torch.distributed as dist
from torch.distributed.debug._store import get_world_size, tcpstore_client

import workerserver


@workerserver.worker_main()
def main() -> None:
    dist.init_process_group("gloo")
    store = tcpstore_client()  # torch's own; get() waits for the key
    urls = [store.get(f"rank{rank}").decode() for rank in range(get_world_size())]
    ranks = []
    for url in urls:
        with urllib.request.urlopen(f"{url}/healthz", timeout=30) as reply:
            ranks.append(json.load(reply)["rank"])
    # In one write: torchrun's workers are unbuffered, and share the pipe.
    found = {"rank": int(os.environ["RANK"]), "urls": urls, "ranks": ranks}
    os.write(1, f"{json.dumps(found)}\n".encode())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
