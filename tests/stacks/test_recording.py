"""Recordings: samples of all threads, counted without the GIL by a thread that ends with them."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.parking import Stay, parked, untraced, where_it_works
from support.waiting import wait_until

from workerserver.stacks._stacks import Recording, recording_left

pytestmark = [pytest.mark.cpython, untraced, where_it_works]


class Counted:
    """What a recording tells, by thread: each stack (names, oldest first) with its counts."""

    def __init__(self, recording: Recording) -> None:
        self.told: dict[str, Any] = json.loads(recording.json())
        self.stacks: dict[str, dict[tuple[str, ...], tuple[int, int]]] = {}
        paths: list[tuple[str, tuple[str, ...]]] = []
        for parent, function, active, idle in self.told["nodes"]:
            if parent == -1:
                paths.append((self.told["threads"][function][0], ()))
            else:
                name, above = paths[parent]
                paths.append((name, (*above, self.told["functions"][function][1])))
            name, path = paths[-1]
            if active or idle:
                stacks = self.stacks.setdefault(name, {})
                before = stacks.get(path, (0, 0))
                stacks[path] = (before[0] + active, before[1] + idle)

    @property
    def samples(self) -> int:
        return int(self.told["samples"])

    def total(self, thread: str) -> int:
        return sum(map(sum, self.stacks.get(thread, {}).values()))


def samplers() -> int:
    """Threads of recordings in this process."""
    names = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm") as file:
                names.append(file.read().strip())
        except OSError:
            continue
    return names.count("ws-sampler")


def finished(recording: Recording) -> Recording:
    wait_until(lambda: not recording.running, 60)
    return recording


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert recording_left() == 0.0
    assert samplers() == 0


def stand(stay: Stay) -> None:
    stay()


class Spinner(threading.Thread):
    """Computes for seven parts in seven() and for three in three(), and measures both."""

    def __init__(self) -> None:
        super().__init__(name="spinner")
        self.ending = False
        self.spent: Counter[str] = Counter()

    def run(self) -> None:
        while not self.ending:
            start = time.perf_counter_ns()
            seven()
            between = time.perf_counter_ns()
            three()
            self.spent["seven"] += between - start
            self.spent["three"] += time.perf_counter_ns() - between

    def __enter__(self) -> Spinner:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ending = True
        self.join(60)


def spin(count: int) -> None:
    for _ in range(count):
        pass


def seven() -> None:
    spin(70_000)


def three() -> None:
    spin(30_000)


def test_shares_are_those_that_the_program_measured() -> None:
    """The bound is five standard deviations of as many samples."""
    with Spinner() as spinner:
        recording = Recording(3.0, 200)
        before = Counter(spinner.spent)
        finished(recording)
        spent = spinner.spent - before
    counted = Counted(recording)
    found = counted.stacks["spinner"]
    met = {
        name: sum(sum(each) for path, each in found.items() if name in path)
        for name in ("seven", "three")
    }
    total = sum(met.values())
    expected = spent["seven"] / sum(spent.values())
    assert total > 0.9 * counted.total("spinner")
    assert abs(met["seven"] / total - expected) < 5 * (expected * (1 - expected) / total) ** 0.5
    assert sum(each[0] for each in found.values()) > 0  # it computes


def rests(thread: threading.Thread) -> bool:
    """It has not run for a while: it does not stand in the line before its wait any more, for which
    it may have waited for the GIL or for a processor."""
    path = Path(f"/proc/self/task/{thread.native_id}/schedstat")
    runs = path.read_text()
    time.sleep(0.1)
    return path.read_text() == runs


def test_a_thread_that_waits_is_idle_in_every_sample() -> None:
    with parked(stand, name="waiter") as waiter:
        wait_until(lambda: rests(waiter))
        counted = Counted(finished(Recording(0.5, 100)))
    assert counted.samples > 0
    ((path, (active, idle)),) = counted.stacks["waiter"].items()
    assert "stand" in path
    assert (active, idle) == (0, counted.samples)
    assert counted.total("MainThread") == counted.samples
    # A thread that did not run is not read again.
    assert counted.told["read"] < counted.samples * len(counted.stacks)


def test_on_processors_only_what_runs_counts() -> None:
    with Spinner(), parked(stand, name="waiter") as waiter:
        wait_until(lambda: rests(waiter))
        counted = Counted(finished(Recording(0.5, 100, "cpu")))
    assert "waiter" not in counted.stacks
    assert all(idle == 0 for found in counted.stacks.values() for _, idle in found.values())
    assert counted.total("spinner") > 0


def hold_gil(seconds: float) -> None:
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def test_samples_come_while_the_gil_is_held() -> None:
    recording = Recording(60.0, 100)
    hold_gil(1.0)
    recording.stop()
    counted = Counted(recording)
    held = sum(
        sum(each) for path, each in counted.stacks["MainThread"].items() if path[-1] == "hold_gil"
    )
    assert held > 0


def test_one_at_a_time() -> None:
    recording = Recording(60.0, 10)
    assert recording.running
    assert 0 < recording_left() <= 60
    with pytest.raises(BlockingIOError, match="another recording"):
        Recording(0.1, 10)
    recording.stop()
    recording.stop()
    assert not recording.running
    assert recording.json() == recording.json()
    Counted(finished(Recording(0.05, 100)))


def test_it_ends_with_its_last_reference() -> None:
    recording = Recording(60.0, 1000)
    assert recording_left() > 0
    del recording
    assert recording_left() == 0.0


@pytest.mark.parametrize(
    ("seconds", "hz", "mode"), [(0, 10, "wall"), (61, 10, "wall"), (1, 0, "wall"),
                                (1, 1001, "cpu"), (float("nan"), 1, "cpu"), (1, 1, "gil")],
)  # fmt: skip
def test_bounds(seconds: float, hz: float, mode: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        Recording(seconds, hz, mode)


def test_in_a_forked_child() -> None:
    """The child has no recording, and may make one."""
    recording = Recording(60.0, 1000)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            recording.stop()
            if not recording.running and recording_left() == 0.0:
                own = Recording(0.2, 200)
                time.sleep(0.3)
                status = 0 if json.loads(own.json())["samples"] > 0 else 2
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended) == 0
    assert recording.running
    recording.stop()


def test_threads_that_come_and_go() -> None:
    """Idents are used again; every thread that was met has a name."""
    recording = Recording(60.0, 1000)
    for number in range(200):
        thread = threading.Thread(target=spin, args=(2_000,), name=f"short {number}")
        thread.start()
        thread.join()
    recording.stop()
    counted = Counted(recording)
    assert len(counted.told["threads"]) < 210
    assert counted.total("MainThread") > 0


def deep(stay: Stay, depth: int) -> None:
    if depth:
        deep(stay, depth - 1)
    else:
        stay()


def test_a_deep_stack() -> None:
    with parked(lambda stay: deep(stay, 500), name="deep"):
        counted = Counted(finished(Recording(0.2, 50)))
    (path,) = counted.stacks["deep"]
    assert path.count("deep") == 501
