"""The answers of one look: what each worker says to each question, as JSON and text.

Made for speed: equal stacks are one object, and a rank's full trace is only made if it is asked
for (:meth:`Answers.trace`), as the operator's side does for the ranks that stand out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import ceil, inf
from typing import Any

from ..job.machine import Machine, Rank, Thread
from .frames import Stack, stack_of
from .recorder import EPOCH, Recorded, summary, trace
from .waits import PID, children, holds, waits_for

__all__ = ["Answers", "Told", "answers", "stacks_json", "tell", "text_of"]

#: How fast a checkpoint is written.
BYTES_PER_S = 1e8

Json = dict[str, Any]


@dataclass(slots=True)
class Told:
    """A thread, as it is told."""

    thread: Thread
    stack: Stack
    state: str | None
    wchan: str | None
    main: bool
    holds_gil: bool
    switches: int | None = None
    waits: Json | None = None
    holds: list[Json] = field(default_factory=list)


@dataclass(slots=True)
class Answers:
    """What one rank answers; None where it gives no answer, and *failures* says why.

    *healthz* and *summary*: as JSON. *recorded*: of trace(). *threads*: of stacks_json() and
    text_of(). *io_bytes*: what the process has written; ``/healthz`` does not tell it yet."""

    rank: int
    stock: bool
    time: float
    failures: dict[str, str] = field(default_factory=dict)
    healthz: Json | None = None
    io_bytes: int | None = None
    digest: tuple[str, str | None] | None = None
    mode: str | None = None
    threads: list[Told] | None = None
    children: list[Json] = field(default_factory=list)
    summary: Json | None = None
    recorded: Recorded | None = None

    @property
    def silent(self) -> bool:
        return self.recorded is None

    def trace(self, backend: str) -> Json:
        """``fr_trace_json`` ("gloo"), ``dump_nccl_trace_json`` ("nccl")."""
        assert self.recorded is not None
        return trace(self.recorded, backend)


@lru_cache(maxsize=65536)
def _digest(numbers: tuple[int, ...]) -> str:
    return blake2b(repr(numbers).encode(), digest_size=8).hexdigest()


def tell(machine: Machine, now: float) -> list[Answers]:
    """One look at all ranks."""
    return [answers(machine, rank, now) for rank in machine.ranks]


def answers(machine: Machine, rank: Rank, now: float) -> Answers:
    plan = rank.plan
    told = Answers(rank.number, plan.stock, now)
    if not plan.served:
        told.failures["healthz"] = "missing"
        return told
    if not rank.alive:
        told.failures["healthz"] = "unreachable"
        return told
    if rank.stopped:
        told.failures["healthz"] = "timeout"
        return told
    held = rank.gil is not None
    told.recorded = Recorded.of(machine, rank, now)
    if plan.stock:
        if held:
            told.failures["stacks"] = "timeout"
        else:
            told.threads = _threads(machine, rank, now)
        return told
    told.healthz = _health(machine, rank, now)
    told.io_bytes = int(_spent(rank, now)[1] * BYTES_PER_S)
    told.mode = "nogil" if held else "gil"
    told.threads = _threads(machine, rank, now)
    told.digest = _digests(told.threads)
    if plan.facts:
        told.children = children(rank, now)
    if held:
        told.failures["fr_summary"] = "timeout"
    else:
        told.summary = summary(told.recorded)
    return told


# --- /healthz


def _spent(rank: Rank, now: float) -> tuple[float, float]:
    """Seconds of processor time, and of writing, until *now*."""
    cpu, writing = rank.cpu, rank.io_s
    for thread in rank.threads:
        op = thread.op
        if op is None:
            continue
        if thread.in_stream and op.name != "event":
            cpu += now - thread.since  # CUDA waits by spinning
        elif op.kind == "compute" and thread.state == "forever":
            cpu += now - thread.since
        elif thread.state == "on" and (op.kind == "compute" or op.key == "cpu"):
            cpu -= max(thread.until - now, 0.0)
        elif thread.state == "on" and op.key == "io":
            writing -= max(thread.until - now, 0.0)
    return max(cpu, 0.0), max(writing, 0.0)


def _health(machine: Machine, rank: Rank, now: float) -> Json:
    step: int | None = rank.step
    age: float | None = round(now - rank.beat, 6)
    if rank.beat == -inf:
        step = age = None
    return {
        "status": "ok",
        "pid": PID + rank.number,
        "rank": rank.number if rank.plan.named else None,
        "uptime_s": round(now + 3.0, 3),
        "step": step,
        "step_age_s": age,
        "gil_wait_s": 0.00006,
        "gil_wait_max_s": 0.0206,
        "gil_unavailable_s": round(now - rank.frozen, 6) if rank.gil is not None else 0.0,
        "cpu_s": round(_spent(rank, now)[0] + 5.0, 6),
        "rss_bytes": 250_000_000,
        "step_median_s": _median(rank),
    }


#: As ``workerserver.heartbeat()`` times steps: by a clock that ticks so often, so many ticks at a
#: time, but at most so many steps; and not before there are so many times.
TICK_S, TICKS, STEPS_AT_ONCE, LEAST_TIMES = 0.004, 64, 64, 8


def _median(rank: Rank) -> float | None:
    beats = rank.beats
    if len(beats) < LEAST_TIMES + 1 or beats[-1] == beats[0]:
        return None
    step = (beats[-1] - beats[0]) / (len(beats) - 1)
    many = min(max(ceil(TICKS * TICK_S / step), 1), STEPS_AT_ONCE)
    if len(beats) <= max(many, LEAST_TIMES):
        return None
    times = sorted((beats[n] - beats[n - many]) / many for n in range(many, len(beats), many))
    return round(times[len(times) // 2] / rank.plan.stride, 6)


# --- stacks


def _threads(machine: Machine, rank: Rank, now: float) -> list[Told]:
    """The newest thread first, and so the main thread last."""
    found = []
    for thread in reversed(rank.threads):
        main = thread.strand.name == "main"
        if not main and (thread.op is None or thread.state == "ended"):
            continue
        stack, (state, wchan) = stack_of(thread, now)
        told = Told(thread, stack, state, wchan, main, thread is rank.gil)
        if not rank.plan.stock:
            told.switches = _switches(thread, now)
        if rank.plan.facts:
            told.waits, told.holds = waits_for(machine, thread), holds(thread)
        found.append(told)
    if not any(each.main for each in found):
        return found[::-1]
    return found


def _switches(thread: Thread, now: float) -> int:
    """How often the kernel has switched it: not at all while it sleeps for one thing."""
    op = thread.op
    count = 100 * thread.turns + thread.pc
    if op is not None and (op.kind in ("compute", "poll", "write") or thread.in_stream):
        still = op.kind == "write" and op.key == "still"
        return count if still else count + int(now * 50)
    return count


def _digests(threads: list[Told]) -> tuple[str, str | None]:
    main = next((each.stack.number for each in threads if each.main), None)
    others = sorted({each.stack.number for each in threads if not each.main})
    return _digest((-1 if main is None else main, *others)), _digest(
        (main,)
    ) if main is not None else None


def _name(told: Told) -> str:
    if told.main:
        return "MainThread"
    name = told.thread.strand.name
    return f"Thread-{told.thread.number} ({name})"


def _ident(told: Told) -> int:
    return 140_000_000_000_000 + told.thread.number * 8_392_704


def stacks_json(told: Answers) -> Json:
    """``dump_traceback?format=json``."""
    threads = told.threads or []
    pid = PID + told.rank
    holder = next((_ident(each) for each in threads if each.holds_gil), None)
    return {
        "version": 1,
        "pid": pid,
        "mode": told.mode or "gil",
        "time": EPOCH + told.time,
        "gil_holder": holder if told.mode == "nogil" else 139_999_000_000_000,
        "truncated": False,
        "threads": [
            {
                "ident": _ident(each),
                "native_id": pid if each.main else pid + 10_000 + each.thread.number,
                "name": _name(each),
                "daemon": not each.main,
                "current": each.holds_gil,
                "state": each.state,
                "wchan": each.wchan,
                "truncated": False,
                "unstable": False,
                "frames": each.stack.json,
                "switches": each.switches,
                **({"waits_for": each.waits} if each.waits is not None else {}),
                **({"holds": each.holds} if each.holds else {}),
            }
            for each in threads
        ],
        **({"children": told.children} if told.children else {}),
    }


def text_of(told: Answers) -> str:
    """``dump_traceback`` of a stock worker: its own thread, of C++, comes first."""
    parts = ["Current thread 0x00007fd48dffb6c0 (most recent call first):\n  <no Python frame>\n"]
    for each in told.threads or []:
        head = f"Thread 0x{_ident(each):016x} (most recent call first):\n"
        parts.append(head + each.stack.text)
    return "\n".join(parts)
