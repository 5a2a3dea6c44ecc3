"""How long a stack snapshot stops a trainer, by the number of threads and the depth of stacks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from itertools import product
from typing import Any, NamedTuple

from benchmarks.asking import Reply
from benchmarks.context import Context
from benchmarks.report.model import Lines, Report, Table
from benchmarks.report.stats import median, ratio, spread
from benchmarks.subjects.servers import Missing
from benchmarks.watched.gaps import FLOOR, Gaps, Watched, watched

QUESTION = "How long does a stack snapshot hold the GIL as threads and depth grow?"

Point = tuple[int, int]
"""Threads, and frames of each."""

GRID: Sequence[Point] = tuple(product((1, 10, 50, 200, 1000), (10, 100, 1000)))
QUICK: Sequence[Point] = ((1, 10), (10, 100), (50, 10), (200, 100))
#: The points whose ratios the regression gate compares.
GATED: Sequence[Point] = ((10, 100), (200, 100))
#: Requests to each subject in a round.
REQUESTS = 1
#: The walk in Python gets no point with more frames, because it would need seconds.
MAX_NAIVE_FRAMES = 20_000


QUIET = "no snapshot"
#: What the last table shows of our own times.
HELD = ("first", "again", "handler", "nogil")


class Subject(NamedTuple):
    """A kind of benchmarks.watched.program, and the handler to ask; ``""`` asks nothing."""

    name: str
    kind: str
    handler: str


SUBJECTS = (
    Subject("ours gil", "ours", "dump_traceback?mode=gil"),
    Subject(QUIET, "ours", ""),
    Subject("ours nogil", "ours", "dump_traceback?mode=nogil"),
    Subject("torch", "torch", "dump_traceback"),
    Subject("naive walk", "naive", "naive"),
)


@dataclass
class Measured:
    """One subject at one point."""

    rounds: list[Gaps] = field(default_factory=list)
    frames: int = 0
    """The number of frames in the last reply."""

    def figures(self, name: str) -> list[float]:
        return [max(getattr(gaps, name), FLOOR) for gaps in self.rounds]

    def check(self, subject: Subject, reply: Reply) -> None:
        """Raise RuntimeError if *reply* isn't the wanted snapshot."""
        asked = subject.handler.partition("mode=")[2]
        mode = reply.headers.get("X-Traceback-Mode", asked)
        self.frames = reply.body.count(b"  File ")
        if mode != asked or not self.frames:
            raise RuntimeError(f"{subject.name}: {self.frames} frames, taken by mode {mode}")


ByPoint = dict[Point, dict[str, Measured]]
"""By the subject's name, without subjects that were not asked at a point."""


@dataclass
class Findings:
    gaps: ByPoint = field(default_factory=dict)
    held: dict[Point, dict[str, Any]] = field(default_factory=dict)
    """Times of our walk."""
    missing: dict[str, str] = field(default_factory=dict)
    """Reasons by kind, also for a kind that failed midway."""


def one_point(
    point: Point,
    subjects: Sequence[Subject],
    processes: dict[str, Watched],
    findings: Findings,
    context: Context,
) -> None:
    here = {subject.name: Measured() for subject in subjects}

    def attempt(kind: str, act: Callable[[Watched], None]) -> None:
        if kind not in processes:
            return
        try:
            with processes[kind].server.awake():
                act(processes[kind])
        except (RuntimeError, OSError, HTTPException) as error:
            findings.missing[kind] = f"{error!r} with {point[0]} threads of {point[1]} frames"
            del processes[kind]

    def look(subject: Subject, process: Watched) -> None:
        one = here[subject.name]
        if subject.handler:
            check = partial(one.check, subject)
            one.rounds.append(process.gaps(subject.handler, REQUESTS, check))
        else:
            one.rounds.append(process.quiet(REQUESTS, here["ours gil"].rounds[-1].reply))

    def hold(process: Watched) -> None:
        findings.held[point] = process.do(f"hold {context.rounds}")

    for kind in dict.fromkeys(subject.kind for subject in subjects):
        attempt(kind, lambda process: process.do(f"park {point[0]} {point[1]}"))
    attempt("ours", hold)
    for _ in range(context.rounds):
        for subject in subjects:
            attempt(subject.kind, partial(look, subject))
    findings.gaps[point] = {
        name: measured for name, measured in here.items() if len(measured.rounds) == context.rounds
    }


def measure(grid: Sequence[Point], subjects: Sequence[Subject], context: Context) -> Findings:
    findings = Findings()
    with contextlib.ExitStack() as stack:
        processes = {}
        for kind in dict.fromkeys(subject.kind for subject in subjects):
            try:
                processes[kind] = stack.enter_context(watched(kind, context.folder))
            except (Missing, RuntimeError) as reason:
                findings.missing[kind] = str(reason)
        for point in grid:
            threads, depth = point
            context.say(f"{threads} threads, {depth} frames deep")
            asked = [
                subject
                for subject in subjects
                if subject.kind in processes
                and (subject.kind != "naive" or threads * depth <= MAX_NAIVE_FRAMES)
            ]
            one_point(point, asked, processes, findings, context)
    return findings


def run(
    context: Context,
    grid: Sequence[Point] | None = None,
    subjects: Sequence[Subject] = SUBJECTS,
) -> Report:
    findings = measure(grid or (QUICK if context.quick else GRID), subjects, context)
    found = findings.gaps
    names = [
        subject.name for subject in subjects if any(subject.name in here for here in found.values())
    ]
    notes = (*OUTSIDE_NOTES, *(f"{kind}: {why}" for kind, why in findings.missing.items()))
    tables = (
        outside("Longest gap of a busy Python thread", "longest", found, names, notes),
        outside("All its gaps together", "total", found, names, ("As above.",)),
        inside(findings, names),
    )
    plots = (*gap_plots(found, names), walk_plot(findings.held))
    return Report("snapshot", QUESTION, tables, plots, (), ratios(found), findings.missing)


def ratios(found: ByPoint) -> dict[str, tuple[float, float, float]]:
    """Without mode=nogil: its gaps are no longer than the gaps without any snapshot."""
    return {
        f"snapshot {point[0]}x{point[1]} ours gil/torch longest gap": ratio(
            here["ours gil"].figures("longest"), here["torch"].figures("longest")
        )
        for point, here in found.items()
        if point in GATED and "ours gil" in here and "torch" in here
    }


OUTSIDE_NOTES = (
    "The process's main thread runs Python without a pause and records the gaps in which it could "
    "not run, from a request to its reply. Time in which other processes had the processors is not "
    "counted. Medians of rounds; the plots show the ranges. Client and server run where the "
    "scheduler puts them.",
    f"'{QUIET}': the gaps without a snapshot, in the time that our reply takes. Gaps below "
    f"{FLOOR:g} ms are not recorded.",
    "'naive walk': traceback.walk_stack() over the parked threads only, which is safe. The walk "
    "releases the GIL midway: its gaps are many but short, and its frames are from different "
    f"moments. No figures above {MAX_NAIVE_FRAMES:,} frames.",
    "torch (faulthandler's dump) stops at 100 threads and 100 frames of each, ours at 65,536 "
    "frames: the last table has the frames that each reply names.",
)


def outside(
    title: str, figure: str, found: ByPoint, names: Sequence[str], notes: Sequence[str]
) -> Table:
    rows = [
        (
            *point,
            *(
                round(median(here[name].figures(figure)), 3) if name in here else None
                for name in names
            ),
        )
        for point, here in found.items()
    ]
    columns = ("threads", "depth", *(f"{name} ms" for name in names))
    return Table(title, columns, rows, notes)


def inside(findings: Findings, names: Sequence[str]) -> Table:
    asked = [name for name in names if name != QUIET]
    rows = []
    for point, times in findings.held.items():
        figures = [round(median(times[each]), 1) for each in HELD]
        here = findings.gaps[point]
        frames = [here[name].frames if name in here else None for name in asked]
        rows.append((*point, *figures, *frames))
    columns = (
        "threads",
        "depth",
        "walk, new frames µs",
        "walk, again µs",
        "handler µs",
        "nogil µs",
    )
    return Table(
        "The time of the snapshot itself",
        (*columns, *(f"frames in {name}" for name in asked)),
        rows,
        (
            "Called directly inside the process, while no other thread wants the GIL. The walk "
            "holds the GIL from begin to end. CPython makes a frame's object at the first look, "
            "so new frames cost more.",
            "The handler is a walk and its text. Above 50 threads or 2,000 frames the text is made "
            "without the GIL. 'nogil': a snapshot that takes no GIL at all, without its text.",
        ),
    )


def gap_plots(found: ByPoint, names: Sequence[str]) -> Iterator[Lines]:
    for depth in sorted({depth for _, depth in found}):
        series: dict[str, list[tuple[float, float]]] = {}
        bands: dict[str, list[tuple[float, float, float]]] = {}
        for (threads, deep), here in found.items():
            for name in names:
                if deep == depth and name in here:
                    middle, low, high = spread(here[name].figures("longest"))
                    series.setdefault(name, []).append((threads, middle))
                    bands.setdefault(name, []).append((threads, low, high))
        yield Lines(
            f"snapshot-gap-{depth}",
            f"Longest gap of a busy Python thread, stacks {depth:,} frames deep",
            "threads",
            "milliseconds",
            series,
            bands,
            log_x=True,
            log_y=True,
        )


def walk_plot(held: dict[Point, dict[str, Any]]) -> Lines:
    series: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    for label, figure in (("walk, new frames", "first"), ("walk, again", "again")):
        points = sorted((times["frames"], *spread(times[figure])) for times in held.values())
        series[label] = [(frames, middle / 1000) for frames, middle, _, _ in points]
        bands[label] = [(frames, low / 1000, high / 1000) for frames, _, low, high in points]
    return Lines(
        "snapshot-walk",
        "The compiled walk: all of it under the GIL",
        "frames in the snapshot",
        "milliseconds",
        series,
        bands,
        log_x=True,
        log_y=True,
    )
