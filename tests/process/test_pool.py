"""The pool of daemon threads: bounded, patient, and never in anybody's way."""

from __future__ import annotations

import json
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest
from support.lifecycle import run_isolated
from support.waiting import wait_until

from workerserver.process.pool import DaemonPool

SECONDS = 30.0


class Gate:
    """Jobs that wait until they are let through, and say how many have begun and ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self._open = threading.Event()
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.begun += 1
        self._open.wait(SECONDS)
        with self._lock:
            self.ended += 1

    def open(self) -> None:
        self._open.set()


def done(pool: DaemonPool) -> Callable[[], bool]:
    return lambda: pool.threads == 0


def test_jobs_run_in_daemon_threads() -> None:
    pool = DaemonPool()
    seen: list[threading.Thread] = []
    ran = threading.Event()

    def job() -> None:
        seen.append(threading.current_thread())
        ran.set()

    assert pool.threads == 0
    assert pool.submit(job)
    assert ran.wait(SECONDS)
    (thread,) = seen
    assert thread.daemon
    assert thread.name == "workerserver-handler-1"
    pool.close()
    wait_until(done(pool))
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_an_idle_thread_is_used_again() -> None:
    pool = DaemonPool()
    threads: set[int] = set()
    for _ in range(20):
        ran = threading.Event()

        def job(ran: threading.Event = ran) -> None:
            threads.add(threading.get_ident())
            ran.set()

        assert pool.submit(job)
        assert ran.wait(SECONDS)
        wait_until(lambda: pool._idle == 1)
    assert len(threads) == 1
    pool.close()


def test_threads_are_bounded_and_nothing_waits_for_one() -> None:
    pool = DaemonPool(threads=3)
    gate = Gate()
    assert [pool.submit(gate) for _ in range(6)] == [True] * 3 + [False] * 3
    assert pool.threads == 3
    wait_until(lambda: gate.begun == 3)
    gate.open()
    wait_until(lambda: gate.ended == 3)
    wait_until(lambda: pool._idle == 3)
    assert [pool.submit(gate) for _ in range(3)] == [True] * 3
    wait_until(lambda: gate.ended == 6)
    assert pool.threads == 3
    pool.close()
    wait_until(done(pool))
    assert gate.begun == 6, "what was refused never ran"


def test_a_sleeping_job_does_not_keep_others() -> None:
    """Each job that finds no idle thread gets one of its own, up to the limit."""
    pool = DaemonPool(threads=4)
    gate = Gate()
    for _ in range(3):
        assert pool.submit(gate)
    ran = threading.Event()
    assert pool.submit(ran.set)
    assert ran.wait(SECONDS)
    gate.open()
    pool.close()
    wait_until(done(pool))


def test_idle_threads_end_and_come_back() -> None:
    pool = DaemonPool(idle=0.05)
    for _ in range(3):
        ran = threading.Event()
        assert pool.submit(ran.set)
        assert ran.wait(SECONDS)
        wait_until(done(pool))


def test_no_job_is_lost_to_a_thread_that_ends() -> None:
    """Jobs that come just as the only thread has waited long enough."""
    idle = 0.0003
    pool = DaemonPool(idle=idle)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(4000):
            ran = threading.Event()
            assert pool.submit(ran.set)
            assert ran.wait(10), f"job {number} never ran"
            pause = time.perf_counter() + idle * (0.7 + number % 200 / 150)
            while time.perf_counter() < pause:
                pass
    finally:
        sys.setswitchinterval(interval)
    wait_until(done(pool))


def test_close_refuses_and_lets_go() -> None:
    pool = DaemonPool(threads=4)
    gate = Gate()
    for _ in range(2):
        assert pool.submit(gate)
    ran = threading.Event()
    assert pool.submit(ran.set)
    assert ran.wait(SECONDS)
    wait_until(lambda: pool._idle == 1)
    pool.close()
    pool.close()
    wait_until(lambda: pool.threads == 2)
    assert not pool.submit(gate)
    gate.open()
    wait_until(done(pool))
    assert gate.ended == 2


def test_a_job_that_raises_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    pool = DaemonPool(threads=1)

    def job() -> None:
        raise SystemExit("in a job")

    assert pool.submit(job)
    wait_until(lambda: pool._idle == 1)
    assert "in a job" in caplog.text
    ran = threading.Event()
    assert pool.submit(ran.set)
    assert ran.wait(SECONDS)
    pool.close()
    wait_until(done(pool))


def test_inside() -> None:
    pool, other = DaemonPool(), DaemonPool()
    answers: list[bool] = []
    ran = threading.Event()

    def job() -> None:
        answers.extend((pool.inside(), other.inside()))
        ran.set()

    assert not pool.inside()
    assert pool.submit(job)
    assert ran.wait(SECONDS)
    assert answers == [True, False]
    pool.close()


def test_an_idle_thread_keeps_no_job_alive() -> None:
    pool = DaemonPool()
    gate = Gate()
    gate.open()
    there = weakref.ref(gate)
    assert pool.submit(gate)
    assert pool.threads == 1
    del gate
    wait_until(lambda: there() is None)
    assert pool.threads == 1  # the thread lives, so its end is not what freed the job
    pool.close()


@pytest.mark.parametrize("when", ["first", "later"])
def test_no_more_threads_to_be_had(when: str) -> None:
    """A process at its limit of threads: the job is refused, and the pool goes on."""
    answer = run_isolated("process/pool_limit.py", when)
    assert answer.returncode == 0, answer.stderr
    ran = 1 if when == "first" else 2
    assert json.loads(answer.stdout) == {"accepted": [False, True], "ran": ran}
