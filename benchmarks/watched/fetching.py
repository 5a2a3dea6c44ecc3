"""Ask all ranks for their stacks with torch's code and with ours, in turns and in one process.

``python -m benchmarks.watched.fetching ROUNDS``. The input is JSON with the ports of the workers
and of their hosts' collectors. Both sides find the workers in a TCPStore, where torch's workers
register. The program prints a line of JSON for each round; the first round only warms up. The line
has entries for ``torch``, ``ours`` (asks each worker) and ``collectors`` (asks each host): the
``seconds``, the processor seconds (``cpu``), the received ``bytes``, and the number of ``groups``
(for torch: of different texts).
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

from workerserver.cluster.ask.client import Client, run
from workerserver.cluster.ask.rounds import Part, collect
from workerserver.cluster.find.store import workers_in_store
from workerserver.cluster.read.groups import groups

TIMEOUT_SECONDS = 60.0
HOST = "127.0.0.1"
WANT: tuple[Part, ...] = ("stacks",)

Found = dict[str, Any]


def theirs() -> Found:
    _, responses = _frontend.fetch_all("dump_traceback", timeout=TIMEOUT_SECONDS)
    if any(response.status_code != 200 for response in responses):
        raise RuntimeError("torch's collector did not get all answers")
    texts = [response.text for response in responses]
    return {"groups": len(set(texts)), "bytes": sum(map(len, texts))}


def ours(port: int, size: int, *, collectors: bool) -> Found:
    found = workers_in_store(f"{HOST}:{port}", world_size=size)
    workers = [worker for worker in found if collectors or not worker.collector]

    async def everything(client: Client) -> Found:
        (found,) = await collect(workers, want=WANT, client=client)
        if not all(state.threads for state in found.states):
            raise RuntimeError("our collector did not get the stacks of all ranks")
        return {"groups": len(groups(found.states)), "bytes": found.bytes_received}

    return run(everything)


def timed(work: Callable[[], Found]) -> Found:
    began, cpu = time.perf_counter(), time.process_time()
    found = work()
    spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return {**spent, **found}


def main() -> None:
    rounds = int(sys.argv[1])
    ports, hosts = json.load(sys.stdin)
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    addresses = dist.PrefixStore("debug_server", store)
    for rank, port in enumerate(ports):
        addresses.set(f"rank{rank}", f"http://{HOST}:{port}")
    size = len(ports)
    for number, port in enumerate(hosts):
        first, last = number * size // len(hosts), (number + 1) * size // len(hosts) - 1
        addresses.set(f"collector{number}", f"http://{HOST}:{port}#{first}-{last}")
    os.environ.update(MASTER_ADDR=HOST, MASTER_PORT=str(store.port), WORLD_SIZE=str(size))
    for turn in range(rounds + 1):
        found = {
            "torch": timed(theirs),
            "ours": timed(lambda: ours(store.port, size, collectors=False)),
            "collectors": timed(lambda: ours(store.port, size, collectors=True)),
        }
        if turn:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
