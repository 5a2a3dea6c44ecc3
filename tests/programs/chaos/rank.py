"""A rank of a gloo job that trains deterministically. ``rank.py FOLDER STEPS HOW``.

STEPS: how many steps, or 0 to train until FOLDER has a file ``stop``. HOW: ``alone`` imports
nothing of ours; ``served`` has a server; ``twice`` has one, and trains as many steps again without
it. The result is FOLDER/result{rank}.json: the steps, and a hash of the loss of each.

A served rank has lived through more before it trains: something closes all descriptors of its
process, and it replaces itself (exec) while it answers. While it trains, it forks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FOLDER, STEPS, HOW = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if HOW != "alone":
    from workerserver import Request
RANK = int(os.environ["RANK"])
REPLACED = "CHAOS_REPLACED"
#: Seconds between two steps beside the server, so that a job lasts without much work.
PAUSE = 0.03
LARGE = bytes(range(256)) * 8192  # 2 MiB
forked = 0


def register() -> None:
    from workerserver import handler

    @handler("slow", permission="read")
    def slow() -> str:
        time.sleep(0.05)
        return "slow"

    @handler("echo", permission="read")
    def echo(request: Request) -> bytes:
        return request.body

    @handler("large", permission="read")
    def large() -> bytes:
        return LARGE

    @handler("file", permission="read")
    def file() -> str:
        """Writes a file, as profilers do; the disk may be full."""
        try:
            with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR")) as kept:
                kept.write(bytes(4096))
        except OSError:
            return "full"
        return "kept"

    @handler("stop", permission="admin")
    async def stop() -> str:
        asyncio.get_running_loop().stop()
        return "stopped"


def first_life() -> None:
    """Lose all descriptors, serve again, and replace the process while requests are under way."""
    from support.lifecycle import ask, sleeps
    from support.waiting import wait_until

    from workerserver import WorkerServer

    path = str(FOLDER / f"first{RANK}")
    server = WorkerServer(path)
    assert ask(path)[0] == 200
    # A loop that is at work at this moment ends the process, or takes the wake-ups of the next one:
    # a limit of ours (docs/limits.md). The job that was started here stood still then.
    mine = [
        each.native_id for each in threading.enumerate() if each.name.startswith("workerserver")
    ]
    wait_until(lambda: all(sleeps(each) for each in mine if each), 60.0)
    os.closerange(3, 4096)
    del server
    path += "-again"
    again = WorkerServer(path)

    def pester() -> None:
        while True:
            ask(path, "/handler/dump_traceback?mode=gil")
            ask(path)

    for _ in range(2):
        threading.Thread(target=pester, daemon=True).start()
    while sum(again.requests.values()) < 10:
        time.sleep(0.01)
    os.environ[REPLACED] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv])


def fork(step: int) -> None:
    """A child that closes all, as daemonisers do, and a child that runs another program."""
    global forked
    try:
        pid = os.fork()
    except BlockingIOError:
        return  # under the fault "processes", for training too
    if pid == 0:
        os.closerange(3, 4096)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    if step % 3 == 0:
        with contextlib.suppress(BlockingIOError):
            subprocess.run(["true"], check=True)
    forked += 1


def train(steps: int, served: bool) -> tuple[int, str]:
    """The number of steps, and the hash of their losses."""
    import torch
    import torch.distributed as dist

    torch.manual_seed(7)
    network = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Tanh(), torch.nn.Linear(96, 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    data = torch.Generator().manual_seed(1000 + RANK)
    losses = hashlib.blake2b(digest_size=16)
    step = 0
    while step < steps or not steps:
        inputs = torch.randn(32, 64, generator=data)
        targets = torch.randint(10, (32,), generator=data)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(inputs), targets)
        loss.backward()
        for parameter in network.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        losses.update(struct.pack("<f", loss.item()))
        step += 1
        if served:
            from workerserver import heartbeat

            heartbeat(step)
            time.sleep(PAUSE)
            if step % 29 == 13 + RANK:
                fork(step)
        if step == 20:
            (FOLDER / f"begun{RANK}").touch()
        if not steps and step % 10 == 0:
            ends = torch.tensor(int((FOLDER / "stop").exists()))
            dist.broadcast(ends, 0)
            if ends.item():
                break
    return step, losses.hexdigest()


def main() -> None:
    if HOW != "alone" and REPLACED not in os.environ:
        first_life()
    import torch
    import torch.distributed as dist

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if HOW == "alone":
        steps, losses = train(STEPS, False)
    else:
        from workerserver import worker_main

        register()
        (FOLDER / f"pid{RANK}").write_text(str(os.getpid()))
        with worker_main():
            steps, losses = train(STEPS, True)
    result = {"steps": steps, "losses": losses, "forked": forked}
    if HOW == "twice":
        result["alone"] = train(steps, False)[1]
    (FOLDER / f"result{RANK}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
