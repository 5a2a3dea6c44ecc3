"""Dumps of torch's flight recorder at its full length, from real collectives over gloo."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from typing import NamedTuple

from benchmarks.asking import Connection, Reply
from benchmarks.context import Context
from benchmarks.report.model import Bars, Report, Table
from benchmarks.report.stats import median, ratio, spread
from benchmarks.rounds import PER_CONNECTION, Measured
from benchmarks.subjects.servers import Missing, Server, served
from benchmarks.watched.gaps import FLOOR, Gaps, watched
from workerserver.loadgen._loadgen import Load

QUESTION = "What does a dump of a flight recorder with 2,000 entries cost?"

ENTRIES = 2000
LOADS = ("idle", "python")
#: Requests in a round.
REQUESTS = {"idle": 12, "python": 8}
TIMEOUT_SECONDS = 10.0


class Subject(NamedTuple):
    kind: str
    handler: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.handler}"


SUBJECTS = (
    Subject("ours", "fr_trace_json"),
    Subject("ours-uvloop", "fr_trace_json"),
    Subject("torch", "fr_trace_json"),
    Subject("ours", "fr_summary"),
)
NOTHING = "no dump"
#: The kinds whose gaps are measured. With uvloop's transport the handler is the same as in ours.
WATCHED = ("ours", "torch")


@dataclass
class Found:
    """One subject's figures."""

    size: int = 0
    loads: dict[str, Measured] = field(default_factory=dict)
    gaps: list[Gaps] = field(default_factory=list)

    def longest(self) -> list[float]:
        return [max(gaps.longest, FLOOR) for gaps in self.gaps]


def check(entries: int, handler: str, reply: Reply) -> None:
    """Raise RuntimeError unless the reply comes from a recorder with *entries* entries."""
    answer = json.loads(reply.body)
    if handler == "fr_summary":
        (group,) = answer["groups"]
        # Numbers begin with 1, so the last number is the count.
        count = group["last_issued"]["seq"]
    else:
        count = len(answer.get("entries", ()))
    if count != entries:
        raise RuntimeError(f"{handler}: {count} entries, not {entries}")


def size_of(server: Server, handler: str, entries: int) -> int:
    with server.awake(), Connection(server.address) as connection:
        reply = connection.ask(handler)
    check(entries, handler, reply)
    return len(reply.body)


def latencies(
    load: str,
    subjects: Sequence[Subject],
    found: dict[Subject, Found],
    entries: int,
    context: Context,
    missing: dict[str, str],
) -> None:
    number = REQUESTS[load] // 3 if context.quick else REQUESTS[load]
    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for kind in dict.fromkeys(subject.kind for subject in subjects):
            try:
                one = served(kind, load=load, folder=context.folder, flight=entries)
                servers[kind] = stack.enter_context(one)
            except (Missing, RuntimeError) as error:
                missing[kind] = str(error)
        for subject in subjects:
            if subject.kind in servers:
                here = found.setdefault(subject, Found())
                here.loads[load] = Measured()
                try:
                    here.size = size_of(servers[subject.kind], subject.handler, entries)
                except (RuntimeError, OSError) as error:
                    here.loads[load].problem = str(error)
        for _ in range(context.rounds):
            for subject, here in found.items():
                if subject.kind not in servers or here.loads[load].problem:
                    continue
                server = servers[subject.kind]
                client = Load(
                    server.address,
                    server.request(subject.handler),
                    requests=number,
                    timeout=TIMEOUT_SECONDS,
                    per_connection=PER_CONNECTION,
                )
                with server.awake():
                    result = client.run()
                here.loads[load].results.append(result)
                if result.statuses != {200: number}:
                    here.loads[load].problem = f"{result.answered} of {number} answered"


def longest_reply(found: Mapping[Subject, Found]) -> float:
    """The longest time of a reply in the last round, in milliseconds."""
    return max(here.gaps[-1].reply for here in found.values() if here.gaps)


def gaps(
    found: dict[Subject, Found], entries: int, context: Context, missing: dict[str, str]
) -> list[Gaps]:
    """Fill in the gaps that dumps cause in a busy thread. Returns its gaps without any dump."""
    requests = 2 if context.quick else 3
    quiet: list[Gaps] = []
    with contextlib.ExitStack() as stack:
        processes = {}
        for kind in dict.fromkeys(subject.kind for subject in found):
            if kind not in WATCHED:
                continue
            try:
                one = watched(kind, context.folder, str(entries))
                processes[kind] = stack.enter_context(one)
            except (Missing, RuntimeError) as error:
                missing[kind] = str(error)
        for _ in range(context.rounds):
            for subject, here in found.items():
                if subject.kind not in processes:
                    continue
                process = processes[subject.kind]
                looked = partial(check, entries, subject.handler)
                try:
                    with process.server.awake():
                        here.gaps.append(process.gaps(subject.handler, requests, looked))
                except (RuntimeError, OSError, HTTPException) as error:
                    missing[subject.kind] = f"{subject.handler}: {error!r}"
                    here.gaps.clear()
                    del processes[subject.kind]
            if "ours" in processes:  # every subject has had a round
                with processes["ours"].server.awake():
                    quiet.append(processes["ours"].quiet(requests, longest_reply(found)))
    return quiet


def run(
    context: Context,
    entries: int = ENTRIES,
    subjects: Sequence[Subject] = SUBJECTS,
    loads: Sequence[str] = LOADS,
) -> Report:
    missing: dict[str, str] = {}
    found: dict[Subject, Found] = {}
    for load in loads:
        context.say(f"beside {load}")
        latencies(load, subjects, found, entries, context, missing)
    context.say("gaps")
    quiet = gaps(found, entries, context, missing)
    return Report(
        "flight",
        QUESTION,
        (table_of(found, quiet, entries),),
        (plot(found),) if found else (),
        (),
        ratios(found),
        missing,
    )


def figures(measured: Measured | None, percentile: float) -> list[float]:
    """The percentile of each round in milliseconds; empty if a round failed."""
    if measured is None or measured.problem:
        return []
    return [us / 1000 for us in measured.figures(percentile)]


def ms(measured: Measured | None, percentile: float) -> float | None:
    values = figures(measured, percentile)
    return round(median(values), 2) if values else None


def table_of(found: Mapping[Subject, Found], quiet: list[Gaps], entries: int) -> Table:
    rows: list[list[str | int | float | None]] = []
    notes = [
        f"A gloo group of one rank, TORCH_FR_BUFFER_SIZE={entries}, {entries} all_reduces; every "
        "reply was checked for that number of entries. Latencies: closed loop on one connection, "
        "medians of the rounds; client and server where the scheduler puts them.",
        "Gaps: times from a request to its reply in which a thread that runs Python without pause "
        "could not run, the longest and the sum. Time in which other processes had the processors "
        f"is not counted. '{NOTHING}': the same without a dump, for as long a time.",
        "Only our server has fr_summary: each group's last issued and last retired operation.",
    ]
    for subject, here in found.items():
        cells = [ms(here.loads.get(load), p) for load in LOADS for p in (50.0, 99.0)]
        rows.append([subject.name, here.size or None, *cells, *gap_cells(here.gaps)])
        notes += [
            f"{subject.name}, {load}: {measured.problem}, {measured.failed}"
            for load, measured in here.loads.items()
            if measured.problem
        ]
    if quiet:
        rows.append([NOTHING, None, None, None, None, None, *gap_cells(quiet)])
    columns = ["subject", "bytes", "idle p50 ms", "idle p99 ms", "busy p50 ms", "busy p99 ms"]
    columns += ["longest gap ms", "all gaps ms"]
    return Table(f"A dump of {entries:,} entries", columns, rows, notes)


def gap_cells(rounds: list[Gaps]) -> list[float | None]:
    if not rounds:
        return [None, None]
    return [
        round(median([gaps.longest for gaps in rounds]), 2),
        round(median([gaps.total for gaps in rounds]), 2),
    ]


GROUPS = ("idle, p50", "busy Python loop, p50", "longest gap of that loop")


def plot(found: Mapping[Subject, Found]) -> Bars:
    series: dict[str, list[float | None]] = {}
    errors: dict[str, list[tuple[float, float] | None]] = {}
    for subject, here in found.items():
        series[subject.name] = bars = []
        errors[subject.name] = ranges = []
        lists = [figures(here.loads.get(load), 50.0) for load in LOADS]
        for values in (*lists, here.longest()):
            middle, low, high = spread(values) if values else (None, 0.0, 0.0)
            bars.append(middle)
            ranges.append((low, high) if values else None)
    title = "A dump of the flight recorder (no bar: not measured)"
    return Bars("flight", title, "ms", GROUPS, series, errors, log=True)


def ratios(found: Mapping[Subject, Found]) -> dict[str, tuple[float, float, float]]:
    """Ratios of latencies only: torch's gaps are no longer than the gaps without any dump."""
    peer = found.get(Subject("torch", "fr_trace_json"))
    compared: dict[str, tuple[float, float, float]] = {}
    for kind in ("ours", "ours-uvloop"):
        own = found.get(Subject(kind, "fr_trace_json"))
        if own is None or peer is None:
            continue
        for load in LOADS:
            mine = figures(own.loads.get(load), 50.0)
            theirs = figures(peer.loads.get(load), 50.0)
            if mine and len(mine) == len(theirs):
                compared[f"flight fr_trace_json {load} {kind}/torch p50"] = ratio(mine, theirs)
    return compared
