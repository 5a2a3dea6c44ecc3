"""torch_profile beside a training script that profiles too: ``python profiler_overlap.py CASE``.

A mistake here ends in SIGSEGV, so this runs in a process of its own. Prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import torch
from torch.profiler import profile, schedule

from workerserver.handlers import profiler
from workerserver.handlers.profiler import torch_profile
from workerserver.types import WorkerServerError


def train(until: Callable[[], bool]) -> None:
    """Compute matrix products until *until* returns true, at least one."""
    while True:
        torch.ones(8, 8) @ torch.ones(8, 8)
        if until():
            return


class Asked(threading.Thread):
    """A torch_profile request in a thread, as the server's pool would run it."""

    def __init__(self, duration: float) -> None:
        super().__init__()
        self.duration = duration
        self.outcome: dict[str, object] = {}
        self.start()

    def run(self) -> None:
        try:
            response = torch_profile(self.duration)
            trace = json.loads(response.body)
            self.outcome = {"status": 200, "mm": count(trace["traceEvents"])}
            if response.headers:
                self.outcome["early"] = [dict(response.headers), trace["workerserver"]]
        except WorkerServerError as error:
            self.outcome = {"status": error.status, "text": str(error)}


def count(events: list[dict[str, object]]) -> int:
    return sum(event.get("name") == "aten::mm" for event in events)


def profiling() -> bool:
    return bool(torch.autograd.profiler._is_profiler_enabled)


def ask_and_train(duration: float = 0.2) -> dict[str, object]:
    asked = Asked(duration)
    train(lambda: not asked.is_alive())
    return asked.outcome


def alone() -> list[dict[str, object]]:
    return []


def trainer_profiles() -> list[dict[str, object]]:
    with profile() as prof:
        refused = ask_and_train()
    return [refused, {"trainer_mm": sum(event.name == "aten::mm" for event in prof.events())}]


def trainer_warms_up() -> list[dict[str, object]]:
    outcomes = []
    with profile(schedule=schedule(wait=1, warmup=1, active=1, repeat=1)) as prof:
        outcomes.append(ask_and_train())  # in the waiting step: the trainer's profile has not begun
        prof.step()
        outcomes.append(ask_and_train())
        prof.step()
        train(lambda: True)
    return [*outcomes, {"trainer_mm": sum(event.name == "aten::mm" for event in prof.events())}]


def trainer_warms_up_frozen() -> list[dict[str, object]]:
    with profile(schedule=schedule(wait=0, warmup=1, active=1, repeat=1)) as prof:
        gc.freeze()
        outcomes = [ask_and_train()]
        gc.unfreeze()
        prof.step()
        train(lambda: True)
    return [*outcomes, {"trainer_mm": sum(event.name == "aten::mm" for event in prof.events())}]


def start_fails() -> list[dict[str, object]]:
    """The start fails after torch has begun: reading the ranks raises, as during a group's end."""
    kind = torch.profiler._KinetoProfile
    original = kind._get_distributed_info

    def fail(self: object) -> None:
        raise ZeroDivisionError

    kind._get_distributed_info = fail
    try:
        torch_profile(0.1)
    except ZeroDivisionError:
        return [{"enabled": profiling()}]
    finally:
        kind._get_distributed_info = original
    return []


def process_grows() -> list[dict[str, object]]:
    original = profiler.MAX_GROWTH_BYTES
    profiler.MAX_GROWTH_BYTES = 1024 * 1024
    try:
        return [ask_and_train(60.0)]
    finally:
        profiler.MAX_GROWTH_BYTES = original


def disk_is_full() -> list[dict[str, object]]:
    """A limit on the size of files takes the place of a full disk: both fail during the write."""
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            outcome = ask_and_train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            tempfile.tempdir = None
        return [outcome, {"left": os.listdir(folder), "named": folder in str(outcome["text"])}]


def trainer_starts() -> list[dict[str, object]]:
    asked = Asked(60)
    train(profiling)
    with profile() as prof:
        train(lambda: not asked.is_alive())
    return [
        asked.outcome,
        {"trainer_mm": sum(event.name == "aten::mm" for event in prof.events())},
    ]


def many_beside_busy_threads() -> list[dict[str, object]]:
    """One profile after the other beside small operators, which write to the queues being read."""
    stop = threading.Event()
    busy = [threading.Thread(target=train, args=(stop.is_set,)) for _ in range(3)]
    for thread in busy:
        thread.start()
    try:
        return [ask_and_train(0.005) for _ in range(int(sys.argv[2]))]
    finally:
        stop.set()
        for thread in busy:
            thread.join()


def process_exits() -> list[dict[str, object]]:
    """Exit while a profile runs in a daemon thread: the pool's threads are daemons too."""

    def ask() -> None:
        try:
            torch_profile(60)
        except WorkerServerError as error:
            sys.stdout.write(json.dumps({"text": str(error)}) + "\n")
            sys.stdout.flush()

    threading.Thread(target=ask, daemon=True).start()
    train(profiling)
    sys.exit(0)


def second_request() -> list[dict[str, object]]:
    first = Asked(1.0)
    train(profiling)
    second = ask_and_train()
    first.join()
    return [second, first.outcome]


CASES = {
    case.__name__: case
    for case in (
        alone,
        trainer_profiles,
        trainer_warms_up,
        trainer_warms_up_frozen,
        trainer_starts,
        start_fails,
        process_grows,
        disk_is_full,
        many_beside_busy_threads,
        process_exits,
        second_request,
    )
}


def main() -> None:
    entries = [
        getattr(torch.autograd.profiler, name) for name in ("_prepare_profiler", "_enable_profiler")
    ]
    started = time.monotonic()
    outcomes = CASES[sys.argv[1]]()
    print(
        json.dumps(
            {
                "outcomes": outcomes,
                # After each case the next profile works, and torch is as before.
                "next": ask_and_train(),
                "restored": entries
                == [
                    getattr(torch.autograd.profiler, name)
                    for name in ("_prepare_profiler", "_enable_profiler")
                ],
                "seconds": time.monotonic() - started,
            }
        )
    )


if __name__ == "__main__":
    main()
