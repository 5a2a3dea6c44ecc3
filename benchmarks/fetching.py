"""torch's way to ask all ranks for their stacks, and ours, in turns and in one process.

``python -m benchmarks.fetching ROUNDS``, with the workers' ports as JSON in its input. Both find
the workers in a TCPStore, where torch's workers register. Prints a line of JSON for each round, of
which a first one warms up: for ``torch`` and ``ours`` the ``seconds``, the processor's (``cpu``),
the ``bytes`` that were received, and the number of ``groups``, for torch of different texts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import aiohttp  # noqa: F401 - without it torch asks in another way
import torch.distributed as dist
from torch.distributed.debug import _frontend

from workerserver.cluster.client import Client, run
from workerserver.cluster.collect import Part, collect
from workerserver.cluster.merge import groups
from workerserver.cluster.store import workers_in_store

TIMEOUT = 60.0
HOST = "127.0.0.1"
WANT: tuple[Part, ...] = ("stacks",)

Found = dict[str, Any]


def theirs() -> Found:
    _, responses = _frontend.fetch_all("dump_traceback", timeout=TIMEOUT)
    if any(response.status_code != 200 for response in responses):
        raise RuntimeError("torch's collector was not answered by all")
    texts = [response.text for response in responses]
    return {"groups": len(set(texts)), "bytes": sum(map(len, texts))}


def ours(port: int, size: int) -> Found:
    workers = workers_in_store(f"{HOST}:{port}", world_size=size)

    async def everything(client: Client) -> Found:
        (found,) = await collect(workers, want=WANT, client=client)
        if not all(state.threads for state in found.states):
            raise RuntimeError("our collector has not the stacks of all")
        return {"groups": len(groups(found.states)), "bytes": found.bytes_received}

    return run(everything)


def timed(work: Callable[[], Found]) -> Found:
    began, cpu = time.perf_counter(), time.process_time()
    found = work()
    spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return {**spent, **found}


def main() -> None:
    rounds = int(sys.argv[1])
    ports = json.load(sys.stdin)
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    addresses = dist.PrefixStore("debug_server", store)
    for rank, port in enumerate(ports):
        addresses.set(f"rank{rank}", f"http://{HOST}:{port}")
    os.environ.update(MASTER_ADDR=HOST, MASTER_PORT=str(store.port), WORLD_SIZE=str(len(ports)))
    for turn in range(rounds + 1):
        found = {"torch": timed(theirs), "ours": timed(lambda: ours(store.port, len(ports)))}
        if turn:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
