"""What a black box with its watchdog costs: training, heartbeats, a share of a core, and the
keeper, which is the watchdog.

Two training processes on one core take turns in short blocks, one with a black box and one without.
The process that has not its turn is stopped by SIGSTOP. Each block with a box is compared with the
two blocks without one beside it. A process has its place in memory for its whole life, so there are
several pairs of processes, one after another. The interval is a bootstrap over all blocks. The
processor time of the box's threads is their own count in /proc, over turns of that process alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.context import Context
from benchmarks.report.model import Report, Table, Target
from benchmarks.report.stats import bootstrap
from benchmarks.rounds import placed
from benchmarks.suites.training import Trainer, interval, slower, training

__all__ = ["QUESTION", "run"]

QUESTION = "What does a black box with its watchdog cost training, its heartbeats and the host?"

LIMIT = 1.0  # %, the upper end of the interval
CORE_LIMIT = 0.5  # % of a core
KEEPER_LIMIT = 30.0  # MB
BLOCKS = 40
SECONDS = 0.5
BEATS = 200_000


@dataclass
class Found:
    wall: list[float] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)  # % dearer
    plain_ns: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)  # % of a core
    keeper_mb: list[float] = field(default_factory=list)
    keeper_share: list[float] = field(default_factory=list)


@contextlib.contextmanager
def turn(trainer: Trainer) -> Iterator[Trainer]:
    os.kill(trainer.process.pid, signal.SIGCONT)
    try:
        yield trainer
    finally:
        os.kill(trainer.process.pid, signal.SIGSTOP)


def block(trainer: Trainer) -> float:
    """Seconds for each step."""
    with turn(trainer):
        return trainer.block(SECONDS).step


def beat(trainer: Trainer) -> float:
    with turn(trainer):
        trainer.order(f"beat {BEATS}")
        return float(trainer.heard()["ns"])


def spent(trainer: Trainer) -> tuple[float, float]:
    """Seconds that the box's threads have computed, and the time."""
    trainer.order("spent -")
    told = trainer.heard()
    return told["ns"] / 1e9, told["at"]


def compare(plain: Trainer, boxed: Trainer, blocks: int, found: Found) -> None:
    with turn(boxed):
        boxed.serve("boxed")
    os.kill(plain.process.pid, signal.SIGSTOP)
    for _ in range(2):
        block(plain)
        block(boxed)
    before = block(plain)
    for _ in range(blocks):
        own = block(boxed)
        after = block(plain)
        found.wall.append(slower(own, before, after))
        before = after
    before = beat(plain)
    for _ in range(max(blocks // 4, 2)):
        own = beat(boxed)
        after = beat(plain)
        found.beats.append(slower(own, before, after))
        found.plain_ns.append(before)
        before = after
    with turn(boxed):
        for _ in range(max(blocks // 10, 1)):
            began = spent(boxed)
            keeper = keeper_spent(boxed)
            boxed.block(4.0)
            ended = spent(boxed)
            passed = ended[1] - began[1]
            found.share.append(100 * (ended[0] - began[0]) / passed)
            found.keeper_share.append(100 * (keeper_spent(boxed)[0] - keeper[0]) / passed)
        found.keeper_mb.append(keeper_spent(boxed)[1])


def keeper_spent(boxed: Trainer) -> tuple[float, float]:
    """Its processor time so far in seconds, and its memory in MB: what is its alone, and its share
    of what it shares with others (Pss). With the process that it has forked for diagnoses."""
    folder = f"{boxed.path}.boxes".encode()
    seconds = megabytes = 0.0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if folder not in words:
                continue
            spent = int((path.parent / "schedstat").read_text().split()[0]) / 1e9
            memory = re.search(
                r"^Pss:\s+(\d+) kB", (path.parent / "smaps_rollup").read_text(), re.M
            )
            seconds += spent
            megabytes += int(memory[1]) * 1024 / 1e6 if memory is not None else 0.0
    if not megabytes:
        raise RuntimeError("there is no keeper")
    return seconds, megabytes


def run(context: Context) -> Report:
    found = Found()
    cpus = os.sched_getaffinity(0)
    first, last = min(cpus), max(cpus)
    pairs = min(context.rounds, 1) if context.quick else context.rounds
    began = time.monotonic()
    with placed({last}):
        for number in range(pairs):
            context.say(f"pair {number + 1} of {pairs}")
            with (
                training(context.folder, f"plain{number}", first, last) as plain,
                training(context.folder, f"boxed{number}", first, last) as boxed,
            ):
                compare(plain, boxed, 4 if context.quick else BLOCKS, found)
    return report(found, time.monotonic() - began)


def report(found: Found, seconds: float) -> Report:
    wall, beats = bootstrap(found.wall), bootstrap(found.beats)
    share, keeper = bootstrap(found.share), bootstrap(found.keeper_share)
    memory = max(found.keeper_mb)
    plain = bootstrap(found.plain_ns)[0]
    table = Table(
        "Cost of a black box with its watchdog (samples every 5 s)",
        ["what", "figure", "95 % interval", "measured"],
        [
            ["training slower, %", round(wall[0], 2), interval(wall), len(found.wall)],
            ["heartbeat dearer, %", round(beats[0], 2), interval(beats), len(found.beats)],
            ["heartbeat without a box, ns", round(plain, 1), None, len(found.plain_ns)],
            [
                "the box's threads, % of a core",
                round(share[0], 3),
                interval(share),
                len(found.share),
            ],
            [
                "the keeper with the watchdog, % of a core",
                round(keeper[0], 3),
                interval(keeper),
                len(found.share),
            ],
            [
                "the keeper with the watchdog, MB (Pss)",
                round(memory, 1),
                None,
                len(found.keeper_mb),
            ],
        ],
        ["both training processes on one core, in turns; the keeper with them"],
    )
    targets = [
        Target(
            "slow-down with a black box, upper end",
            round(wall[2], 2),
            LIMIT,
            "%",
            met=wall[2] <= LIMIT,
            lowest=round(wall[1], 2),
            highest=round(wall[2], 2),
        ),
        Target(
            "a black box's threads",
            round(share[0], 3),
            CORE_LIMIT,
            "% of a core",
            met=share[0] <= CORE_LIMIT,
        ),
        Target("keeper's memory", round(memory, 1), KEEPER_LIMIT, "MB", met=memory <= KEEPER_LIMIT),
    ]
    return Report("blackbox", QUESTION, [table], [], targets, seconds=seconds)
