"""Ping and dump, under each load."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.context import Context
from benchmarks.report.model import Bars, Lines, Plot, Report, Table, Target
from benchmarks.report.stats import ratio
from benchmarks.rounds import Case, Measured, Subject, measure
from benchmarks.subjects.loads import LOADS
from benchmarks.subjects.servers import KINDS

QUESTION = "How long does a ping, or a dump of all stacks, take under each load?"

PINGS = tuple(Subject(kind) for kind in KINDS)
SERVERS = PINGS[:-1]
DUMPS = (
    Subject("ours", "dump_traceback?mode=gil"),
    Subject("ours", "dump_traceback?mode=nogil"),
    Subject("ours-uvloop", "dump_traceback?mode=gil"),
    Subject("torch", "dump_traceback"),
    Subject("uvicorn", "dump_traceback"),
    Subject("granian", "dump_traceback"),
)
#: Requests per second beside a running load. Each request is sent at a fixed time.
RATE = 100.0

IDLE = (
    Case("ping", "idle", PINGS, 3000, placement="one core"),
    Case("ping", "idle", PINGS, 3000, placement="two cores"),
    Case("ping", "idle", PINGS, 3000, placement="one core", tcp=True),
    Case("ping", "idle", PINGS, 1000, placement="one core", fresh=True),
    Case("dump", "idle", DUMPS, 300, placement="one core"),
)


def beside(load: str) -> tuple[Case, ...]:
    """The cases of a running load: a request every 10 ms, on enough connections."""
    pings = Case("ping", load, SERVERS, 80, RATE)
    return pings, Case("dump", load, DUMPS, 40, RATE)


def parked(load: str) -> tuple[Case, ...]:
    """The cases of a load that only makes stacks larger."""
    pings = Case("ping", load, SERVERS, 1000, placement="one core")
    return pings, Case("dump", load, DUMPS, 60, placement="one core")


def held() -> tuple[Case, ...]:
    """The cases of a held GIL, with mode=auto, as a user would ask."""
    dumps = tuple(dict.fromkeys(Subject(one.kind, "dump_traceback") for one in DUMPS))
    return (
        Case("ping", "gil-c", SERVERS, 80, RATE),
        Case("dump", "gil-c", dumps, 40, RATE),
    )


CASES = (
    *IDLE,
    *beside("python"),
    *beside("training"),
    *held(),
    *parked("threads"),
    *parked("recursion"),
)
#: The cases of a short run, and of the regression gate.
SHORT = ("ping idle one-core", "dump idle one-core", "ping python", "dump python")

#: The ratios for the regression gate. Both sides of a ratio are slow for the same reasons, but not
#: beside a busy loop: there one side waits for the switch interval, and the other side computes.
GATED = (
    ("ping idle one-core", "ours", "torch"),
    ("ping idle one-core", "ours", "epoll"),
    ("ping idle one-core", "ours-uvloop", "torch"),
    ("dump idle one-core", "ours gil", "torch"),
    ("dump idle one-core", "ours nogil", "torch"),
    ("dump idle one-core", "ours-uvloop gil", "torch"),
    ("ping python", "ours", "torch"),
    ("dump python", "ours gil", "torch"),
    ("dump python", "ours-uvloop gil", "torch"),
)
#: The cases whose whole distribution is drawn.
TAILS = ("ping idle one-core", "ping python", "ping training", "dump python", "dump training")
PERCENTILES = (50.0, 90.0, 99.0, 99.9)

#: Case, subject, percentile, peer, limit of the ratio. Ratios to torch's server are judged on one
#: core: on two cores even the bare epoll loop is as slow as torch's server.
TARGETS = (
    ("ping idle one-core", "ours", 50.0, "torch", 0.6),
    ("ping idle one-core", "ours", 50.0, "epoll", 1.3),
    ("ping idle two-cores", "ours", 50.0, "epoll", 1.3),
    ("ping python", "ours", 50.0, "torch", 0.7),
    ("ping python", "ours", 99.0, "torch", 0.7),
    ("dump python", "ours gil", 50.0, "torch", 1.0),
    ("dump python", "ours nogil", 50.0, "torch", 0.1),
)

Found = Mapping[Subject, Measured]


def by_label(found: Found) -> dict[str, Measured]:
    return {subject.label: measured for subject, measured in found.items()}


def us(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def ratio_to(
    found: Found, label: str, peer: str, percentile: float
) -> tuple[float, float, float] | None:
    labelled = by_label(found)
    own, other = labelled.get(label), labelled.get(peer)
    if own is None or other is None:
        return None
    mine, theirs = own.figures(percentile), other.figures(percentile)
    if not mine or len(mine) != len(theirs):
        return None
    return ratio(mine, theirs)


def note(case: Case, subject: Subject, measured: Measured) -> str | None:
    """The note on a row whose subject did not answer all requests."""
    who = f"{case.name}, {subject.label}"
    if measured.problem:
        return f"{who}: {measured.problem}"
    if measured.failed:
        sent = sum(result.sent for result in measured.results)
        reasons = ", ".join(f"{count} {reason}" for reason, count in measured.failed.items())
        return f"{who}: of {sent} requests {reasons}"
    return None


def table_of(case: Case, found: Found, missing: Mapping[str, str]) -> Table:
    rows = []
    notes = []
    for subject, measured in found.items():
        cells = [us(measured.figure(p)) for p in PERCENTILES] if measured.results else [None] * 4
        to: list[float | None] = []
        for peer in ("torch", "epoll"):
            one = ratio_to(found, subject.label, peer, 50.0)
            to.append(None if one is None or subject.label == peer else round(one[0], 3))
        rows.append([subject.label, *cells, *to])
        if subject.kind in missing:
            notes.append(f"{subject.label}: missing: {missing[subject.kind]}")
        elif (said := note(case, subject, measured)) is not None:
            notes.append(said)
    columns = ["subject", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "p50 / torch", "p50 / epoll"]
    pace = f"{case.rate:g} requests per second, open loop" if case.rate else "closed loop"
    return Table(f"{case.name} ({pace}, {case.placement})", columns, rows, notes)


def tails(case: Case, found: Found) -> Lines:
    series = {}
    for subject, measured in found.items():
        whole = measured.merged()
        if whole.count:
            points = [(p, ns / 1000) for p, ns in whole.points() if p < 100]
            series[subject.label] = points
    return Lines(
        "tail-" + case.name.replace(" ", "-"),
        f"{case.request} beside {case.load}: the whole distribution",
        "percentile",
        "µs",
        series,
        log_y=True,
        x_axis="percentile",
    )


def overview(request: str, results: Mapping[str, tuple[Case, Found]]) -> Bars:
    """p50 of each subject under each load."""
    chosen: dict[str, Found] = {}
    for case, found in results.values():
        if case.request == request and not case.tcp and not case.fresh:
            chosen.setdefault(case.load, found)
    labels = list(dict.fromkeys(label for found in chosen.values() for label in by_label(found)))
    loads = [load for load in LOADS if load in chosen]
    series = {
        label: [
            by_label(chosen[load])[label].figure(50.0)
            if label in by_label(chosen[load]) and by_label(chosen[load])[label].results
            else None
            for load in loads
        ]
        for label in labels
    }
    title = f"{request}: median by load (no bar: no answer)"
    return Bars(f"latency-{request}", title, "µs", loads, series, log=True)


def targets(results: Mapping[str, tuple[Case, Found]]) -> list[Target]:
    found = []
    for name, label, percentile, peer, limit in TARGETS:
        if name not in results:
            continue
        one = ratio_to(results[name][1], label, peer, percentile)
        what = f"{name}: p{percentile:g} of {label} / {peer}"
        if one is None:
            found.append(Target(what, None, limit, "ratio", False, note="not measured"))
        else:
            middle, low, high = (round(value, 3) for value in one)
            found.append(Target(what, middle, limit, "ratio", middle <= limit, low, high))
    return found


def run(context: Context) -> Report:
    missing: dict[str, str] = {}
    results: dict[str, tuple[Case, Found]] = {}
    for case in CASES:
        if context.quick and case.name not in SHORT:
            continue
        context.say(case.name)
        results[case.name] = case, measure(case, context, missing)
    ratios = {}
    for name, label, peer in GATED:
        one = ratio_to(results[name][1], label, peer, 50.0) if name in results else None
        if one is not None:
            ratios[f"{name} {label}/{peer} p50"] = one
    plots: list[Plot] = [overview("ping", results), overview("dump", results)]
    plots += [tails(*results[name]) for name in TAILS if name in results]
    tables = [table_of(case, found, missing) for case, found in results.values()]
    return Report("latency", QUESTION, tables, plots, targets(results), ratios, missing)
