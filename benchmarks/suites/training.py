"""How much slower training gets with the server, idle and polled.

One training process does everything, so that model, memory and placement are the same. It gets
orders over a pipe: start or stop the server (outside the timed part), or train for a short block.
Blocks alternate: without a server, under a condition, without a server, under the next condition.
Each block under a condition is compared with the two blocks next to it, which removes the machine's
drift. The figure is the median of these slow-downs, because other work hits single blocks and the
tails are heavy. The interval is a bootstrap over the blocks. The condition ``no server`` shows how
much of a figure is noise.

torch's server can't be stopped, because that can deadlock. So torch's server has a training process
of its own, in which polled blocks stand between blocks with the idle server. So the figure leaves
out the cost of torch's idle server.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.context import Context
from benchmarks.report.model import Bars, Cell, Report, Table, Target
from benchmarks.report.stats import bootstrap
from benchmarks.rounds import PER_CONNECTION, placed
from benchmarks.subjects.servers import Missing, available
from benchmarks.subjects.trainer import WARM
from workerserver.loadgen._loadgen import Load, Result

__all__ = ["QUESTION", "run"]

QUESTION = "How much slower does training get with the server, idle and polled?"

LIMIT = 0.5  # %
QUICK_ROUNDS = 2  # of ten seconds each
SEED = 4
BETWEEN = 0.25  # seconds of a block between two conditions
AHEAD = 0.02  # seconds from the start of polling to the start of training
SLACK = 0.05  # seconds for which polling goes on after the expected end of a block ...
MORE = 0.1  # ... and again and again, if the block takes still longer
REPOSITORY = Path(__file__).parents[2]

Kind = Literal["none", "ours", "torch", "boxed"]


@dataclass(frozen=True)
class Condition:
    """*pings* and *dumps* per second during a block of *seconds*, with *repeats* blocks a round.

    A block is at least as long as the time between two requests of a kind.
    """

    name: str
    kind: Kind
    pings: float = 0.0
    dumps: float = 0.0
    seconds: float = 0.25
    repeats: int = 2

    @property
    def polls(self) -> str:
        if not self.pings:
            return "-"
        return f"{self.pings:g} pings" + (f", {self.dumps:g} dump" if self.dumps else "")


CONDITIONS = (
    Condition("no server", "none"),
    Condition("idle", "ours"),
    Condition("polled", "ours", pings=1, seconds=1.0, repeats=1),
    *(Condition("polled", "ours", pings=rate) for rate in (10, 100, 1000)),
    Condition("polled", "ours", pings=100, dumps=1, seconds=1.0),
)
TORCH = Condition("torch's, polled", "torch", pings=100, dumps=1, seconds=1.0, repeats=1)


@dataclass(frozen=True)
class Block:
    """The training in one block, and the polling during it."""

    steps: int
    seconds: float
    cpu: float
    polls: Mapping[str, Sequence[Result]] = field(default_factory=dict)

    @property
    def step(self) -> float:
        return self.seconds / self.steps

    @property
    def cpu_step(self) -> float:
        return self.cpu / self.steps


@dataclass
class Found:
    """One condition's slow-downs of time and of processor time per step, in percent."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)  # seconds, of blocks under the condition
    pings: list[float] = field(default_factory=list)  # µs, the p50 of each block
    asked: int = 0
    answered: int = 0

    def add(self, before: Block, block: Block, after: Block) -> None:
        self.wall.append(slower(block.step, before.step, after.step))
        self.cpu.append(slower(block.cpu_step, before.cpu_step, after.cpu_step))
        self.steps.append(block.step)


def slower(value: float, before: float, after: float) -> float:
    """By how many percent *value* exceeds the geometric mean of its two neighbours."""
    return (value / math.sqrt(before * after) - 1) * 100


class Trainer:
    """A training process; see benchmarks/subjects/trainer.py."""

    def __init__(self, process: subprocess.Popen[str], path: str) -> None:
        self.process = process
        self.path = path
        self.heard()  # the process is warm

    def heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the training process ended ({self.process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def order(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def serve(self, kind: Kind) -> None:
        self.order(f"serve {kind}")
        self.heard()

    def block(self, seconds: float, pings: float = 0.0, dumps: float = 0.0) -> Block:
        with polled(self.path, {"ping": pings, "dump_traceback": dumps}, seconds) as polls:
            self.order(f"train {seconds}")
            answer = self.heard()
        results = {poll.name: poll.results for poll in polls}
        return Block(answer["steps"], answer["seconds"], answer["cpu"], results)


class Poll(threading.Thread):
    """Asks *name* at a fixed rate, independent of answers, for *seconds* and until ``enough``."""

    def __init__(self, path: str, name: str, rate: float, seconds: float) -> None:
        super().__init__(daemon=True)
        self.name = name
        self.path = path
        self.rate = rate
        self.seconds = seconds
        self.enough = threading.Event()
        self.results: list[Result] = []

    def run(self) -> None:
        seconds = self.seconds
        while not self.enough.is_set():
            requests = math.floor(seconds * self.rate) + 1  # the first is due at once
            until = time.monotonic() + requests / self.rate
            self.results.append(self.ask(requests))
            self.enough.wait(until - time.monotonic())
            seconds = MORE

    def ask(self, requests: int) -> Result:
        head = f"POST /handler/{self.name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        return Load(
            self.path,
            head.encode(),
            rate=self.rate,
            requests=requests,
            per_connection=PER_CONNECTION,
        ).run()


@contextlib.contextmanager
def polled(path: str, rates: Mapping[str, float], seconds: float) -> Iterator[list[Poll]]:
    """Poll during a block of *seconds*, which trains inside. The results are there afterwards."""
    lasting = AHEAD + WARM + seconds + SLACK
    polls = [Poll(path, name, rate, lasting) for name, rate in rates.items() if rate]
    for poll in polls:
        poll.start()
    time.sleep(AHEAD)
    try:
        yield polls
    finally:
        if not polls:  # the DataLoader's worker gets the same time ahead of each block
            time.sleep(SLACK)
        for poll in polls:
            poll.enough.set()
            poll.join()


@contextlib.contextmanager
def training(folder: Path, kind: str, cpu: int, workers_cpu: int) -> Iterator[Trainer]:
    path = str(folder / kind)
    command = [
        sys.executable,
        "-m",
        "benchmarks.subjects.trainer",
        path,
        str(cpu),
        str(workers_cpu),
    ]
    with (
        open(folder / f"{kind}.err", "w", encoding="utf-8") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=REPOSITORY,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Trainer(process, path)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the DataLoader's worker too


def sequence(conditions: Sequence[Condition], chosen: random.Random) -> list[Condition]:
    """Each condition *repeats* times, in a new random order."""
    once = [condition for condition in conditions for _ in range(condition.repeats)]
    chosen.shuffle(once)
    return once


def measure(
    trainer: Trainer,
    base: Kind,
    blocks: Sequence[Condition],
    found: Mapping[Condition, Found],
) -> None:
    """Train each of *blocks* between two blocks without polling and with the server *base*."""

    def between() -> Block:
        trainer.serve(base)
        return trainer.block(BETWEEN)

    before = between()
    for condition in blocks:
        trainer.serve(condition.kind)
        facts = found[condition]
        block = trainer.block(condition.seconds, condition.pings, condition.dumps)
        after = between()
        facts.add(before, block, after)
        for results in block.polls.values():
            facts.asked += sum(result.sent for result in results)
            facts.answered += sum(result.answered for result in results)
        if "ping" in block.polls:
            facts.pings.append(block.polls["ping"][0].service.percentile(50) / 1e3)
        before = after


def run(context: Context) -> Report:
    conditions, theirs = (CONDITIONS, TORCH)
    if context.quick:  # the same comparisons, with fewer rounds
        conditions = tuple(replace(condition, repeats=1) for condition in conditions)
    rounds = min(context.rounds, QUICK_ROUNDS) if context.quick else context.rounds
    found = {condition: Found() for condition in (*conditions, theirs)}
    missing: dict[str, str] = {}
    chosen = random.Random(SEED)
    began = time.monotonic()
    cpus = os.sched_getaffinity(0)
    first, last = min(cpus), max(cpus)
    placement = "the training process, its server with it, on one core; the client and the "
    placement += "DataLoader's worker on " + ("the same" if first == last else "another")
    try:
        available("torch")
    except Missing as error:
        return report(found, placement, {"torch": str(error)}, 0.0)
    with placed({last}), contextlib.ExitStack() as stack:
        ours = stack.enter_context(training(context.folder, "ours", first, last))
        torchs = stack.enter_context(training(context.folder, "torch", first, last))
        ours.serve("ours")  # so that no block pays for the first start
        torchs.serve("torch")
        for number in range(rounds):
            context.say(f"round {number + 1} of {rounds}")
            measure(ours, "none", sequence(conditions, chosen), found)
            if "torch" in missing:
                continue
            try:
                measure(torchs, "torch", [theirs], found)
            except (RuntimeError, OSError) as error:
                missing["torch"] = str(error)
                found[theirs] = Found()
    return report(found, placement, missing, time.monotonic() - began)


def report(
    found: Mapping[Condition, Found],
    placement: str,
    missing: Mapping[str, str],
    seconds: float,
) -> Report:
    rows: list[list[Cell]] = []
    names: list[str] = []
    heights: list[float | None] = []
    errors: list[tuple[float, float] | None] = []
    for condition, facts in found.items():
        names.append(f"{condition.name} {condition.polls}".rstrip(" -"))
        if not facts.wall:
            rows.append([condition.name, condition.polls, 0, *[None] * 7])
            heights.append(None)
            errors.append(None)
            continue
        wall, cpu = bootstrap(facts.wall), bootstrap(facts.cpu)
        rows.append(
            [
                condition.name,
                condition.polls,
                len(facts.wall),
                round(bootstrap(facts.steps)[0] * 1e3, 2),
                round(wall[0], 2),
                interval(wall),
                round(cpu[0], 2),
                interval(cpu),
                f"{facts.answered} of {facts.asked}" if facts.asked else None,
                round(bootstrap(facts.pings)[0], 1) if facts.pings else None,
            ]
        )
        heights.append(wall[0])
        errors.append(wall[1:])
    table = Table(
        "Slow-down of training: time for each step, against the blocks beside without a server",
        [
            "server",
            "a second",
            "blocks",
            "step ms",
            "slower %",
            "95 % interval",
            "CPU added %",
            "95 % interval ",
            "answered",
            "ping p50 µs",
        ],
        rows,
        [
            placement,
            "'no server' against no server is the noise of this run",
            "CPU: processor time of the training process, its server with it, for each step",
            "torch's server against itself idle, in its own training process: stopping it "
            "can deadlock",
        ],
    )
    bars = Bars(
        "training",
        "Slow-down of training, median and 95 % interval",
        "%",
        names,
        {"slow-down": heights},
        {"slow-down": errors},
    )
    return Report(
        "training",
        QUESTION,
        [table],
        [bars],
        [target(found, missing)],
        missing=missing,
        seconds=seconds,
    )


def interval(found: tuple[float, float, float]) -> str:
    return f"{found[1]:+.2f} to {found[2]:+.2f}"


def target(found: Mapping[Condition, Found], missing: Mapping[str, str]) -> Target:
    what = "training slow-down at 100 pings and 1 dump a second"
    facts = next(f for c, f in found.items() if (c.kind, c.pings, c.dumps) == ("ours", 100, 1))
    if not facts.wall or facts.answered < facts.asked:
        note = missing.get("torch", "not all polls were answered")
        return Target(what, None, LIMIT, "%", met=False, note=note)
    figure, low, high = bootstrap(facts.wall)
    cpu = bootstrap(facts.cpu)
    inside = low <= 0
    note = f"CPU {cpu[0]:+.2f} % ({interval(cpu)})"
    if inside:
        note = f"inside the noise, which reaches up to {high:+.2f} %; {note}"
    return Target(
        what,
        round(figure, 2),
        LIMIT,
        "%",
        met=figure < LIMIT or inside,
        lowest=round(low, 2),
        highest=round(high, 2),
        note=note,
    )
