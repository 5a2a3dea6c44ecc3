"""A rank of the real job whose answers benchmarks/simulated/workers.py records; it takes orders.

``python -m benchmarks.simulated.job SOCKET RANK PLACES STORE``: one of two ranks of a gloo job with
a model, a DataLoader and a pool of threads, as in training. Rank 0 enters an all_reduce in one of
PLACES layers, each with a source line of its own. Rank 1 enters the all_reduce later, or never.
An order is a line of input: for rank 0 the number of a layer, for rank 1 ``join`` or ``stay``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.subjects.serve import PDEATHSIG

FOREVER = 3600.0


def layers(count: int) -> list[Callable[[Any], Any]]:
    """*count* functions of one line each, in a file that doesn't exist."""
    names = [f"layer_{number}" for number in range(count)]
    source = "\n".join(f"def {name}(tensor): reduce(tensor)" for name in names)
    import torch.distributed as dist

    found: dict[str, Any] = {"reduce": dist.all_reduce}
    exec(compile(source, str(Path(__file__).with_name("layers.py")), "exec"), found)
    return [found[name] for name in names]


def compute() -> None:
    time.sleep(FOREVER)


def train(places: int) -> None:
    import torch
    import torch.distributed as dist
    from torch.utils.data import DataLoader

    import workerserver

    class Layer(torch.nn.Module):  # type: ignore[misc]
        def forward(self, tensor: Any) -> Any:
            reducing[number](tensor)
            return tensor

    reducing = layers(places)
    # As deep as a tensor-parallel layer of a transformer when it reduces: model, block, MLP, layer.
    block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(Layer()))
    model = torch.nn.Sequential(torch.nn.Sequential(block))
    batches = iter(DataLoader(torch.zeros(1 << 16, 4), num_workers=1))
    checkpoints = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    checkpoints.submit(os.getpid).result()
    for step, order in enumerate(sys.stdin):
        workerserver.heartbeat(step)
        if order == "stay\n":
            compute()
        if order == "join\n":
            dist.all_reduce(torch.ones(1, 4))
        else:
            number = int(order)
            with torch.no_grad():
                model(next(batches))
        print(json.dumps({"step": step}), flush=True)


def main() -> None:
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    path, rank, places, store = sys.argv[1:]
    settings = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
    os.environ.update(settings, TORCH_FR_BUFFER_SIZE="2000", GLOO_SOCKET_IFNAME="lo")
    print("{}", flush=True)
    import torch.distributed as dist

    import workerserver

    server = workerserver.WorkerServer(path)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=int(rank), world_size=2)
    dist.barrier()
    train(int(places))
    server.shutdown()


if __name__ == "__main__":
    main()
