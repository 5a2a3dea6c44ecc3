"""All kinds of load on the native transport at the same time, for a sanitizer to watch.

``sanitize_stress.py [--seconds N] [--seed N]``. Two servers stop and start again and again, a third
one does so ten times per second. Clients of every kind run in processes of their own
(sanitize_clients.py). Meanwhile the registry changes, the process forks and sends heartbeats, and a
thread holds the GIL for longer than the servers wait for the GIL. The seed decides what each thread
does, but not the order between threads. Prints one JSON object. Exit status 1 if anything was
wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from workerserver import WorkerServer, heartbeat
from workerserver.handlers import register_builtins
from workerserver.http.registry import Registry
from workerserver.native.torch_standby import fallback
from workerserver.process._pulse import gil_watch, last_heartbeat
from workerserver.server import Limits
from workerserver.types import Request, Response

CLIENTS = Path(__file__).with_name("sanitize_clients.py")
PROCESSES = 2
THREADS = 6
LIMITS = Limits(
    max_connections=48, head_timeout=0.6, body_timeout=1.0, idle_timeout=0.8, gil_deadline=0.04,
    gil_timeout=0.12, max_bodies=16 * 1024 * 1024,
)  # fmt: skip
FORK_SECONDS = 10.0

counts: Counter[str] = Counter()
faults: list[str] = []
ran: Counter[str] = Counter()
ran_lock = threading.Lock()
registry = Registry()
over = threading.Event()


# --- handlers


def note(name: str) -> str:
    with ran_lock:
        ran[name] += 1
    return "noted"


def once(id: str) -> str:
    return note(id)


def once_plain(id: str) -> str:
    return note(id)


async def once_async(id: str) -> str:
    await asyncio.sleep(0.001)
    return note(id)


def quick() -> Response:
    return Response(b"quick")


def plain() -> str:
    time.sleep(0.002)
    return "plain"


async def slow() -> str:
    await asyncio.sleep(0.05)
    return "slow"


def big(size: int = 1) -> Response:
    return Response(b"x" * size)  # a new object each time, which only the transport keeps


def echo(request: Request) -> Response:
    return Response(request.body)


def fails() -> None:
    raise ValueError("on the loop")


async def fails_async() -> None:
    await asyncio.sleep(0)
    raise SystemExit("in a task")


def fails_plain() -> None:
    raise KeyboardInterrupt("in a thread")


def wait_counter_values() -> str:
    return "{}"


wait_counter_values.__module__ = "workerserver.handlers.stress"  # so it counts as the built-in one


def register() -> None:
    register_builtins(registry)
    for function in (once, quick, big, echo, fails, wait_counter_values):
        with contextlib.suppress(ValueError):
            registry.unregister(function.__name__)
        registry.register(function.__name__, function, inline=True, limit=1000)
    for other in (once_plain, once_async, plain, slow, fails_async, fails_plain):
        registry.register(other.__name__, other)


def use_peer(folder: Path) -> None:
    """Let a client's peer take the place of torch's own server, and start after a while."""
    path = os.fsencode(folder / "torch")
    stand_in: dict[str, Callable[[], object]] = {
        "start_if_possible": lambda: True,
        "path_bytes": lambda: path,
        "names": lambda: ("wait_counter_values",),
    }
    for name, function in stand_in.items():
        setattr(fallback, name, function)


# --- what goes on besides the clients


def serve(folder: Path, rng: random.Random) -> None:
    """Two servers; then none, so that the I/O thread and the loop end; then two again."""
    while not over.is_set():
        with contextlib.ExitStack() as stack:
            unix = WorkerServer(str(folder / "a.sock"), registry=registry, limits=LIMITS)
            stack.callback(unix.shutdown)
            tcp = WorkerServer("127.0.0.1", 0, registry=registry, limits=LIMITS)
            stack.callback(tcp.shutdown)
            place = folder / "port.new"
            place.write_text(str(tcp.port))
            place.replace(folder / "port")
            until = time.monotonic() + rng.uniform(1.0, 4.0)
            while time.monotonic() < until and not over.wait(0.02):
                counts["answered"] = max(counts["answered"], sum(unix.requests.values()))
                counts["connections"] = max(counts["connections"], unix.connections)
        counts["serve"] += 1


def serve_briefly(folder: Path, rng: random.Random) -> None:
    while not over.is_set():
        server = WorkerServer(str(folder / "b.sock"), registry=registry, limits=LIMITS)
        over.wait(rng.uniform(0.0, 0.2))
        server.shutdown(rng.choice((0.05, 5.0)))
        counts["serve_briefly"] += 1


def change(folder: Path, rng: random.Random) -> None:
    while not over.wait(rng.uniform(0.0, 0.01)):
        name = rng.choice(("ping", "dump_traceback", "wait_counter_values", "x", "y"))
        handler = registry.own(name)
        if handler is None:
            registry.register(name, quick, inline=True)
        else:
            registry.unregister(name)
            if name not in ("x", "y"):
                over.wait(rng.uniform(0.0, 0.01))
                registry.register(name, handler.function, inline=True, limit=1000)
        counts["change"] += 1


def beat(folder: Path, rng: random.Random) -> None:
    step = 0
    while not over.is_set():
        for _ in range(rng.randrange(1000)):
            step += 1
            heartbeat(step)
        counts["beat"] += last_heartbeat()[0] is not None
        gil_watch()
        over.wait(0.001)


def hold(folder: Path, rng: random.Random) -> None:
    """A C call that keeps the GIL."""
    usleep = ctypes.PyDLL(None).usleep
    while not over.wait(rng.uniform(0.05, 0.4)):
        usleep(rng.randrange(30_000, 300_000))
        counts["hold"] += 1


def compute(folder: Path, rng: random.Random) -> None:
    """A busy thread whose stack changes all the time."""

    def deeper(depth: int) -> int:
        return 0 if depth == 0 else 1 + deeper(depth - 1)

    while not over.is_set():
        deeper(rng.randrange(80))
        threading.Thread(target=deeper, args=(5,)).start()
        over.wait(rng.uniform(0.0, 0.01))
        counts["compute"] += 1


def fork(folder: Path, rng: random.Random) -> None:
    while not over.wait(rng.uniform(0.05, 0.5)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # CPython 3.12: threads and forks
            pid = os.fork()
        if pid == 0:
            os._exit(0 if last_heartbeat() == (None, None) else 9)
        give_up = time.monotonic() + FORK_SECONDS
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > give_up:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                # The sanitizer's own locks may have been held at the time of the fork.
                counts["fork stuck"] += 1
                break
            time.sleep(0.005)
        if ended and status:
            faults.append(f"a forked child ended with {os.waitstatus_to_exitcode(status)}")
        counts["fork"] += 1


JOBS: tuple[Callable[[Path, random.Random], None], ...] = (
    serve, serve_briefly, change, beat, beat, hold, compute, fork,
)  # fmt: skip


def run(job: Callable[[Path, random.Random], None], folder: Path, seed: int) -> None:
    try:
        job(folder, random.Random(seed))
    except BaseException as error:
        faults.append(f"{job.__name__}: {type(error).__name__}: {error}")
        sys.excepthook(type(error), error, error.__traceback__)


# --- the whole


def clients(folder: Path, seed: int, seconds: float) -> list[subprocess.Popen[str]]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LD_PRELOAD", "PYTHONMALLOC", "MALLOC_PERTURB_")
    }
    return [
        subprocess.Popen(
            [sys.executable, str(CLIENTS), str(folder), str(number), str(seconds), str(THREADS)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2 * seed + 1, 2 * seed + 1 + PROCESSES)
    ]


def judge(said: str) -> None:
    found = json.loads(said)
    faults.extend(found["faults"])
    counts.update(found["counts"])
    counts["answered once"] += len(found["answered"])
    counts["refused once"] += len(found["refused"])
    for name in found["answered"]:
        if ran[name] != 1:
            faults.append(f"a request that was answered ran {ran[name]} times")
    for name in found["refused"]:
        if ran[name]:
            faults.append("a request that was answered 503 ran")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], help="jobs to leave out")
    options = parser.parse_args()
    logging.getLogger("workerserver").setLevel(logging.ERROR)  # short shutdowns warn of themselves
    register()
    with tempfile.TemporaryDirectory(prefix="ws-") as name:
        folder = Path(name)
        use_peer(folder)
        processes = clients(folder, options.seed, options.seconds)
        threads = [
            threading.Thread(target=run, args=(job, folder, options.seed * 100 + i))
            for i, job in enumerate(JOBS)
            if job.__name__ not in options.without
        ]
        for thread in threads:
            thread.start()
        for process in processes:
            judge(process.communicate(timeout=options.seconds + 120)[0])
        over.set()
        for thread in threads:
            thread.join(60)
            if thread.is_alive():
                faults.append("a thread of the stress hangs")
    json.dump({"counts": dict(sorted(counts.items())), "faults": faults}, sys.stdout, indent=1)
    print(flush=True)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
