"""``workerserver profile``: profile many ranks at the same time into one Chrome trace.

Each rank becomes a process of the trace. Times come from each rank's own clock. If the clocks of
two hosts differ, the times in the trace differ by as much.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from workerserver.cli.console import Output, counting
from workerserver.cli.errors import OutputError, UsageError
from workerserver.cli.job_command import ask, find_one, job_parser, write_json
from workerserver.cli.output_file import whole
from workerserver.cli.parser import CommandParser
from workerserver.cli.text import positive_seconds
from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.client import Client, Question, Visit
from workerserver.cluster.ask.collectors import behind_collectors
from workerserver.cluster.ask.questions import HEALTH
from workerserver.cluster.failures import NO_SOCKET, REFUSED, Failed
from workerserver.cluster.model import Failure, Worker

__all__ = ["main", "processes"]

#: The size of one trace, and the number of merged traces. A viewer could not open more.
MAX_TRACE_BYTES = 64 << 20
MAX_RANKS = 256
#: The zero of all times is this long before the command's start. So a host whose clock is behind
#: gives no negative times.
MARGIN_NS = 3600 * 10**9
#: Process numbers reserved for each rank. Each process of a rank gets a number of its own.
PROCESSES = 100


@dataclass(slots=True)
class Profiled:
    """One worker. *body* holds the trace until it is written; *events* counts written events."""

    worker: Worker
    rank: int | None
    failure: Failure | None = None
    body: IO[bytes] | None = None
    note: str | None = None
    events: int = 0

    @property
    def name(self) -> str:
        return self.worker.address if self.rank is None else f"rank {self.rank}"


def make_parser() -> CommandParser:
    parser = job_parser(
        "profile",
        "Run torch's profiler on all ranks of a job at one time, and merge the traces into one "
        "Chrome trace (for ui.perfetto.dev) in which each rank is a process. A rank is slower "
        "while its profile runs. Exit status: 0 with the traces of all workers, 1 of some, 2 of "
        "none, 3 no job.",
        deadline=60.0,
        examples=(
            (
                "workerserver profile -o trace.json.gz",
                "one second of all ranks of the one job on this machine",
            ),
            (
                "workerserver profile -o trace.json --duration 5 /tmp/job/rank0.sock",
                "five seconds of one rank",
            ),
        ),
    )
    parser.add_argument(
        "-o", dest="output", required=True, metavar="FILE", help="output file; may end in .gz"
    )
    parser.add_argument(
        "--duration",
        type=positive_seconds,
        default=1.0,
        metavar="S",
        help="length of the profiles in seconds (default 1), added to the deadline",
    )
    parser.add_json("one object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0: got the traces of all workers, 1: of some, 2: of none, 3: no job."""
    options = make_parser().parse_intermixed_args(list(argv))
    options.deadline += options.duration
    workers = find_one(options)
    started = time.time_ns()
    with contextlib.ExitStack() as stack:
        found = _ask_all(options, workers, stack)
        _write(options.output, found, started - MARGIN_NS)
    good = sum(each.failure is None for each in found)
    if options.json:
        write_json(sys.stdout, {"ranks": len(found), "responded": good, "workers": _dicts(found)})
    else:
        out = Output(sys.stdout)
        for each in found:
            if each.failure is not None:
                out.line(f"{each.name}: {each.failure.reason}: {each.failure.text}", "red")
            else:
                note = f"; {each.note}" if each.note else ""
                out.line(f"{each.name}: {each.events} events{note}")
        out.line(f"{good} of {len(found)} in {options.output}", "bold")
    failures = [each.failure for each in found if each.failure is not None]
    if not good and all(each.text.startswith((NO_SOCKET, REFUSED)) for each in failures):
        return 3
    return 0 if good == len(found) else 1 if good else 2


def _ask_all(
    options: argparse.Namespace, workers: Sequence[Worker], stack: contextlib.ExitStack
) -> list[Profiled]:
    """Profile all workers. The traces are in unnamed files, which *stack* closes."""
    question = Question.handler(
        "torch_profile", f"duration={options.duration:g}", limit=MAX_TRACE_BYTES
    )

    async def talk(visit: Visit) -> Profiled:
        made = Profiled(visit.worker, visit.worker.rank)
        try:
            health = await visit.ask(HEALTH)
            made.rank = made.rank if health.rank is None else health.rank
        except Failed as failed:
            if failed.failure.reason != "missing":
                raise
        answer = await visit.ask(question)
        try:
            # Without a buffer, which would be written, and fail, once more at the end.
            made.body = stack.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
            left = memoryview(answer.body)
            while left:
                left = left[made.body.write(left) :]
        except OSError as error:  # no rank is to blame
            full.append(error)
        early = answer.fields.get("x-ended-early")
        made.note = f"ended early: {early}" if early is not None else None
        return made

    async def everybody(client: Client) -> list[Profiled]:
        everyone = await behind_collectors(workers, client)
        if len(everyone) > MAX_RANKS:
            raise UsageError(f"{len(everyone)} workers, but {MAX_RANKS} at most: name fewer")
        client.concurrency = max(client.concurrency, len(everyone))  # all profiles at one time
        results = await client.visit(everyone, talk, lambda worker, result: done())
        return [
            Profiled(worker, worker.rank, result) if isinstance(result, Failure) else result
            for worker, result in results.items()
        ]

    full: list[OSError] = []
    with counting("profiling", len(workers)) as done:
        found = ask(options, everybody)
    if full:
        place = tempfile.tempdir or "temporary files"  # not gettempdir(): it fails on a full disk
        raise OutputError(f"{place} (see TMPDIR), where traces are kept", full[0])
    return sorted(found, key=lambda each: (1 << 62 if each.rank is None else each.rank, each.name))


class _Nothing(Exception):
    """No worker gave a trace."""


def _write(path: str, found: Sequence[Profiled], base_ns: int) -> None:
    """Write one trace after the other, so that only one trace is in memory. *path* is written as a
    whole, or not at all."""
    with contextlib.suppress(_Nothing), contextlib.ExitStack() as stack:
        binary = stack.enter_context(whole(path))
        if path.endswith(".gz"):
            # Without this, gzip writes the name of the unfinished file.
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=binary)
            binary = cast(BinaryIO, stack.enter_context(packed))
        file = stack.enter_context(io.TextIOWrapper(binary, encoding="ascii"))
        head = {"displayTimeUnit": "ms", "baseTimeNanoseconds": base_ns}
        file.write(json.dumps(head)[:-1] + ', "traceEvents": [')
        comma = ""
        for number, each in enumerate(found):
            for event in _events(each, number, base_ns):
                file.write(f"{comma}\n{json.dumps(event)}")
                comma = ","
        file.write("\n]}\n")
        if all(each.failure is not None for each in found):
            raise _Nothing


def _events(profiled: Profiled, number: int, base_ns: int) -> Iterator[dict[str, Any]]:
    if profiled.body is None:
        return
    profiled.body.seek(0)
    try:
        trace = bodies.json_object(profiled.body.read(MAX_TRACE_BYTES))
        events, base = trace.get("traceEvents"), trace.get("baseTimeNanoseconds", 0)
        if not isinstance(events, list) or type(base) is not int or not 0 <= base < 1 << 63:
            raise ValueError("no Chrome trace")
    except ValueError as error:
        profiled.failure = Failure("malformed", str(error))
        return
    key = number if profiled.rank is None else profiled.rank
    for event in processes(events, key, profiled.name, (base - base_ns) / 1000):
        profiled.events += 1
        yield event


def processes(
    events: Sequence[Any], key: int, name: str, shift_us: float
) -> Iterator[dict[str, Any]]:
    """The *events* of one rank, changed so that they don't clash with other ranks' events.

    The processes of the rank (the rank itself, its GPUs, the profiler's own process) get numbers
    from *key* upwards and names with *name*. Times are shifted. Flows get numbers of their own.
    """
    numbers: dict[str, int] = {}
    for event in events:
        if not isinstance(event, dict) or not _is_plain(event):
            continue
        kind, title, pid = event.get("ph"), event.get("name"), str(event.get("pid", ""))
        if kind == "M" and title in ("process_name", "process_sort_index"):
            continue
        if pid not in numbers:
            index = numbers[pid] = min(len(numbers), PROCESSES - 1)
            own = key * PROCESSES + index
            shown = name if index == 0 else f"{name}, {pid}"
            named = {"name": "process_name", "args": {"name": shown}}
            order = {"name": "process_sort_index", "args": {"sort_index": own}}
            for more in (named, order):
                yield {"ph": "M", "pid": own, "tid": 0, "ts": 0, **more}
        event["pid"] = key * PROCESSES + numbers[pid]
        if "ts" in event:
            event["ts"] = round(event["ts"] + shift_us, 3)
        for field in ("id", "bind_id"):
            if kind in ("s", "t", "f") and type(event.get(field)) is int:
                event[field] = (key << 32) + (event[field] & 0xFFFFFFFF)
        yield event


def _is_plain(event: dict[str, Any]) -> bool:
    """Whether the times of *event* are numbers, and JSON can hold *event*: 1e999 is read as
    infinity, which JSON can't hold."""
    if not all(type(event.get(field, 0)) in (int, float) for field in ("ts", "dur")):
        return False
    if not all(abs(event.get(field, 0)) < 1e15 for field in ("ts", "dur")):
        return False
    try:
        json.dumps(event, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return True


def _dicts(found: Sequence[Profiled]) -> list[dict[str, Any]]:
    return [
        {
            "rank": each.rank,
            "host": each.worker.host,
            "address": each.worker.address,
            "events": each.events,
            "reason": each.failure.reason if each.failure is not None else None,
            "text": each.failure.text if each.failure is not None else each.note,
        }
        for each in found
    ]
