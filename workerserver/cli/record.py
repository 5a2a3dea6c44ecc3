"""``workerserver record``: where the time of all ranks goes, by samples, in one flame graph.

A thread of each worker takes the samples, without the GIL, while this command asks; it ends by
itself when the command goes away (docs/record.md).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workerserver.cli.console import Output, lasting
from workerserver.cli.errors import CommandError, UsageError
from workerserver.cli.job_command import ask, find_one, job_parser, show_gone, write_json
from workerserver.cli.output_file import whole
from workerserver.cli.parser import CommandParser
from workerserver.cli.text import count, positive_seconds
from workerserver.cli.text import seconds as duration
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.full.recordings import Outcome, recordings
from workerserver.cluster.failures import NO_SOCKET, REFUSED
from workerserver.cluster.model import Worker
from workerserver.cluster.show.tree import short_fold
from workerserver.stacks.profiles.job import Job, label, median

__all__ = ["FORMATS", "SUFFIXES", "main"]

FORMATS = ("html", "folded", "speedscope", "pprof", "perfetto")
#: What a file's name says of its format; the first one that fits counts.
SUFFIXES = {
    ".html": "html",
    ".speedscope.json": "speedscope",
    ".perfetto.json": "perfetto",
    ".pb.gz": "pprof",
    ".pprof": "pprof",
    ".folded": "folded",
    ".txt": "folded",
    ".json": "speedscope",
}
MAX_HZ = 1000
MAX_SECONDS = 3600.0
#: Calls that a person is shown.
SHOWN = 5
#: How often the progress bar moves, in seconds.
TICK_SECONDS = 0.2


def make_parser() -> CommandParser:
    parser = job_parser(
        "record",
        "Sample the stacks of all ranks of a job at the same time, and merge the samples into one "
        "flame graph. For each call the graph tells which ranks were in that call. The workers "
        "sample themselves, without the GIL, ptrace or signals. The first Ctrl-C ends the "
        "recording and keeps what has come. Exit status: 0 with the whole recordings of all "
        "workers, 1 of some, 2 of none, 3 no job.",
        examples=(
            ("workerserver record -o job.html", "ten seconds of the one job on this machine"),
            (
                "workerserver record -o slow.html --diff 3",
                "what rank 3 does more, and what less, than the other ranks",
            ),
            (
                "workerserver record -o - --format folded --mode cpu /tmp/job/rank0.sock",
                "one rank, only while it computes, for flamegraph.pl",
            ),
        ),
    )
    parser.add_argument(
        "-o",
        dest="output",
        required=True,
        metavar="FILE",
        help="output file; - is the standard output",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="html: a page of its own; folded: for flamegraph.pl; speedscope: for speedscope.app; "
        "pprof: for go tool pprof; perfetto: for ui.perfetto.dev (default: by the file's name, "
        f"{', '.join(SUFFIXES)})",
    )
    parser.add_argument(
        "--duration",
        type=positive_seconds,
        default=10.0,
        metavar="S",
        help="length of the recording in seconds (default 10), added to the deadline",
    )
    parser.add_argument(
        "--hz", type=count, default=100, metavar="N", help="samples each second (default 100)"
    )
    parser.add_argument(
        "--mode",
        choices=("wall", "cpu"),
        default="wall",
        help="wall: all time; cpu: only time on a processor, or in wait for one (default wall)",
    )
    parser.add_argument(
        "--diff",
        type=_rank,
        metavar="RANK",
        help="compare this rank with the median of the others",
    )
    parser.add_json("one object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0: whole recordings of all workers, 1: of some, 2: of none, 3: no job."""
    options = make_parser().parse_intermixed_args(list(argv))
    form = _format(options)
    if options.hz > MAX_HZ:
        raise UsageError(f"--hz: at most {MAX_HZ}")
    if not 0.05 <= options.duration <= MAX_SECONDS:
        raise UsageError(f"--duration: 0.05 to {MAX_SECONDS:g} seconds")
    if options.json and options.output == "-":
        raise UsageError("--json and -o - both write to the standard output")
    options.deadline += options.duration
    workers = find_one(options)
    job = Job(options.mode, float(options.hz), time.time())
    found = _record(options, workers, job)
    found.sort(key=lambda each: (1 << 62 if each.rank is None else each.rank, each.worker.address))
    if options.diff is not None and job.members:
        _comparable(job, options.diff, found)
    if job.members:
        _write(options.output, _writer(form)(job, options.diff))
    if options.json:
        write_json(sys.stdout, _report(options, form, job, found))
    else:
        out = Output(sys.stderr if options.output == "-" else sys.stdout)
        _show(options, job, found, out)
    failures = [each.failure for each in found if each.failure is not None]
    if not job.members:
        gone = all(each.text.startswith((NO_SOCKET, REFUSED)) for each in failures)
        return 3 if gone else 2
    return 1 if failures else 0


def _rank(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 9):
        raise argparse.ArgumentTypeError(f"{text!r} is no rank")
    return int(text)


def _format(options: argparse.Namespace) -> str:
    if options.format is not None:
        return str(options.format)
    for suffix, name in SUFFIXES.items():
        if options.output.endswith(suffix):
            return name
    raise UsageError(
        f"{options.output}: the name tells no format: end it in {', '.join(SUFFIXES)}, or give "
        f"--format {'|'.join(FORMATS)}"
    )


def _writer(form: str) -> Callable[[Job, int | None], bytes]:
    """Only the form that is wanted is imported."""
    if form == "html":
        from workerserver.stacks.profiles.page import page

        return page
    if form == "pprof":
        from workerserver.stacks.profiles.pprof import of_job

        return of_job
    from workerserver.stacks.profiles import forms

    writers: Mapping[str, Callable[[Job, int | None], bytes]] = {
        "folded": forms.folded,
        "speedscope": forms.speedscope,
        "perfetto": forms.perfetto,
    }
    return writers[form]


def _record(options: argparse.Namespace, workers: Sequence[Worker], job: Job) -> list[Outcome]:
    answered = 0

    def done() -> None:
        nonlocal answered
        answered += 1

    async def everybody(client: Client) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        begin = loop.time()

        async def tick() -> None:
            while True:
                passed = loop.time() - begin
                update(passed, f"{answered} of {len(workers)} have answered")
                await asyncio.sleep(TICK_SECONDS)

        ticking = asyncio.create_task(tick())
        try:
            return await recordings(workers, client, job, options.duration, done)
        finally:
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking

    with lasting("recording", options.duration) as update:
        return ask(options, everybody)


def _comparable(job: Job, rank: int, found: Sequence[Outcome]) -> None:
    """CommandError if *rank* can't be compared with others."""
    if job.place_of(rank) is None:
        known = [each.rank for each in found if each.rank is not None]
        mine = next((each.failure for each in found if each.rank == rank), None)
        if rank in known:
            why = f": {mine.reason}: {mine.text}" if mine is not None else ""
            raise CommandError(f"--diff {rank}: that rank gave no recording{why}")
        there = f"there are {short_fold(known)}" if known else "the workers tell no rank"
        raise CommandError(f"--diff {rank}: no such rank; {there}")
    if len(job.members) < 2:
        raise CommandError(f"--diff {rank}: no other rank gave a recording to compare with")


def _write(path: str, body: bytes) -> None:
    """*path* is written as a whole, or not at all."""
    if path == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
        return
    with whole(path) as file:
        file.write(body)


# ---- what is said about the recording


def _show(options: argparse.Namespace, job: Job, found: Sequence[Outcome], out: Output) -> None:
    show_gone(
        out,
        [
            {
                "rank": each.rank,
                "address": each.worker.address,
                "reason": each.failure.reason,
                "text": each.failure.text
                + (" (its first parts are kept)" if each.own.samples else ""),
            }
            for each in found
            if each.failure is not None
        ],
    )
    if not job.members:
        out.line("no recording", "bold")
        return
    place = "the standard output" if options.output == "-" else options.output
    missed = f", {job.missed} missed" if job.missed else ""
    out.line(
        f"{len(job.members)} of {len(found)} ranks, {duration(job.seconds)}, {job.samples} samples"
        f"{missed}, in {place}",
        "bold",
    )
    for line in _differences(job, options.diff) if options.diff is not None else _longest(job):
        out.line(line, hang=8)


def _by_function(job: Job) -> dict[int, dict[int, float]]:
    """For each function the time of each member in itself. Not of idle threads."""
    found: dict[int, dict[int, float]] = {}
    for (group, stack), times in job.times.items():
        if not group.idle and stack >= 0:
            own = found.setdefault(job.stacks.nodes[stack][1], {})
            for who, on, off in times.each():
                own[who] = own.get(who, 0.0) + on + off
    return found


def _longest(job: Job) -> list[str]:
    """The functions with the most time of their own."""
    functions = _by_function(job)
    whole = sum(sum(own.values()) for own in functions.values())
    order = sorted(functions.items(), key=lambda each: -sum(each[1].values()))
    lines = []
    for number, own in order[:SHOWN]:
        part = sum(own.values()) / whole
        ranks = job.names(sorted(own)) if len(own) < len(job.members) else ""
        where = f", only in {_short(ranks)}" if ranks else ""
        lines.append(f"{part:7.1%} {label(job.stacks.functions[number])}{where}")
    return lines


def _differences(job: Job, rank: int) -> list[str]:
    """The functions in which *rank* differs most from the median of the others."""
    place = job.place_of(rank)
    rows = []
    for number, own in _by_function(job).items():
        here = own.pop(place, 0.0) if place is not None else 0.0
        others = median(list(own.values()), len(job.members) - 1)
        rows.append((abs(here - others), here, others, number))
    rows.sort(reverse=True)
    return [
        f"{here / 1e6:7.2f} s in {label(job.stacks.functions[number])}; the others' median is "
        f"{others / 1e6:.2f} s"
        for _, here, others, number in rows[:SHOWN]
        if here != others
    ]


def _short(names: str) -> str:
    return names if len(names) <= 60 else f"{names[:57]}..."


def _report(
    options: argparse.Namespace, form: str, job: Job, found: Sequence[Outcome]
) -> dict[str, Any]:
    idle = sum(times.total for (group, _), times in job.times.items() if group.idle)
    whole = sum(times.total for times in job.times.values())
    return {
        "ranks": len(found),
        "responded": len(job.members),
        "file": options.output if job.members else None,
        "format": form,
        "mode": job.mode,
        "hz": options.hz,
        "time": job.time,
        "seconds": round(job.seconds, 6),
        "thread_seconds": round((whole - idle) / 1e6, 6),
        "idle_thread_seconds": round(idle / 1e6, 6),
        "workers": [
            {
                "rank": each.rank,
                "host": each.worker.host,
                "address": each.worker.address,
                "seconds": round(each.own.seconds, 6),
                "samples": each.own.samples,
                "missed": each.own.missed,
                "cost_seconds": round(each.own.cost_seconds, 6),
                "reason": each.failure.reason if each.failure is not None else None,
                "text": each.failure.text if each.failure is not None else None,
            }
            for each in found
        ],
    }
