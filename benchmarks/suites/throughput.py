"""Requests per second, and per second of processor time."""

from __future__ import annotations

import contextlib
import os
import time

from benchmarks.context import Context
from benchmarks.report.model import Bars, Report, Table
from benchmarks.report.stats import median, ratio, spread
from benchmarks.rounds import PER_CONNECTION, placed
from benchmarks.subjects.servers import KINDS, Server, start
from workerserver.loadgen._loadgen import Load

QUESTION = "How many requests does one core of the server answer?"

CONNECTIONS = 16
SECONDS = 0.7
REQUESTS = {"ping": KINDS, "dump_traceback": KINDS[:-1]}


def one_round(server: Server, request: str, seconds: float) -> tuple[float, float]:
    """Requests per second of the clock, and requests per second of the server's processor time."""
    load = Load(
        server.address,
        server.request(request),
        connections=CONNECTIONS,
        seconds=seconds,
        per_connection=PER_CONNECTION,
    )
    with server.awake():
        used = server.cpu_seconds()
        begin = time.monotonic()
        result = load.run()
        took = time.monotonic() - begin
        used = server.cpu_seconds() - used
    if result.answered < result.sent:
        raise RuntimeError(f"{result.sent - result.answered} of {result.sent} not answered")
    # The kernel counts processor time in hundredths of a second.
    return result.answered / took, result.answered / max(used, 0.01)


def compared(
    request: str, context: Context, missing: dict[str, str]
) -> tuple[Table, Bars, dict[str, tuple[float, float, float]]]:
    cpus = os.sched_getaffinity(0)
    found: dict[str, list[tuple[float, float]]] = {}
    notes = []
    seconds = SECONDS / 2 if context.quick else SECONDS
    with contextlib.ExitStack() as stack:
        servers = start(stack, REQUESTS[request], missing, folder=context.folder)
        for server in servers.values():
            server.place({max(cpus)})
        stack.enter_context(placed({min(cpus)}))
        for turn in range(context.rounds + 1):
            for kind, server in list(servers.items()):
                try:
                    figures = one_round(server, request, seconds if turn else 0.1)
                except RuntimeError as error:
                    notes.append(f"{kind}: {error}")
                    del servers[kind]
                    found.pop(kind, None)
                    continue
                if turn:
                    found.setdefault(kind, []).append(figures)
    rows: list[list[str | int | float | None]] = []
    ratios = {}
    for kind in REQUESTS[request]:
        if kind not in found:
            rows.append([kind, None, None, None])
            continue
        per_second, per_core = ([f[i] for f in found[kind]] for i in (0, 1))
        to_torch = None
        if kind != "torch" and "torch" in found:
            to_torch = ratio(per_core, [f[1] for f in found["torch"]])
            if kind.startswith("ours"):
                # Below 1 is better, as everywhere.
                inverse = ratio([f[1] for f in found["torch"]], per_core)
                ratios[f"throughput {request} torch/{kind}"] = inverse
        rows.append(
            [
                kind,
                round(median(per_second)),
                round(median(per_core)),
                None if to_torch is None else round(to_torch[0], 2),
            ]
        )
    columns = ["subject", "requests/s", "requests per core-second", "per core / torch's"]
    title = f"{request}: {CONNECTIONS} connections, the server on one core, the client on another"
    groups = [kind for kind in REQUESTS[request] if kind in found]
    plot = Bars(
        f"throughput-{request.partition('_')[0]}",
        f"{request}: requests per second of the server's processor time",
        "requests",
        groups,
        {"per core": [median([f[1] for f in found[kind]]) for kind in groups]},
        {"per core": [spread([f[1] for f in found[kind]])[1:] for kind in groups]},
    )
    return Table(title, columns, rows, notes), plot, ratios


def run(context: Context) -> Report:
    missing: dict[str, str] = {}
    tables, plots, ratios = [], [], {}
    for request in REQUESTS:
        context.say(request)
        table, plot, found = compared(request, context, missing)
        tables.append(table)
        plots.append(plot)
        ratios.update(found)
    return Report("throughput", QUESTION, tables, plots, (), ratios, missing)
