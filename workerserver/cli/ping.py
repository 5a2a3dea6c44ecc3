"""``workerserver ping``: which workers of a job answer, how fast, and whether their GIL is free.

Each worker gets all questions on one connection: first ``/healthz``, which tells the rank and how
long the GIL is away, then ``ping``. Our servers answer both without the GIL. Stock torch workers
know only ``ping``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workerserver.cli.console import Output, counting
from workerserver.cli.job_command import ask, count, find_some, job_parser, write_json
from workerserver.cli.parser import CommandParser
from workerserver.cli.text import seconds
from workerserver.cluster.ask.client import Client, Question, Visit
from workerserver.cluster.ask.collectors import behind_collectors
from workerserver.cluster.ask.questions import HEALTH
from workerserver.cluster.failures import NO_SOCKET, REFUSED, Failed
from workerserver.cluster.model import Failure, Health, Worker

__all__ = ["Ping", "main", "render"]

PING = Question.handler("ping", limit=4096)
HEADER = ("RANK", "TARGET", "STATUS", "FASTEST", "SLOWEST", "STEP", "STEP AGE", "GIL AWAY")


@dataclass(frozen=True, slots=True)
class Ping:
    """One worker's row. *status* is ok, torch (a stock server), or the reason of a Failure; then
    *text* explains the failure. *fastest_s* and *slowest_s* are times of answers to ``ping``."""

    address: str
    status: str
    rank: int | None = None
    host: str | None = None
    text: str | None = None
    fastest_s: float | None = None
    slowest_s: float | None = None
    step: int | None = None
    step_age_s: float | None = None
    gil_unavailable_s: float | None = None


def make_parser() -> CommandParser:
    parser = job_parser(
        "ping",
        "Send pings to every worker of a job, and show how long the answers took. "
        "Exit status: 0 all workers answer, 1 some do, 2 none does, 3 no job.",
        deadline=3.0,
        examples=(
            ("workerserver ping", "every worker of this user on this machine"),
            ("workerserver ping --slurm --port 8900", "every worker of this Slurm job"),
        ),
    )
    parser.add_argument(
        "--count", type=count, default=3, metavar="N", help="pings to each worker (default 3)"
    )
    parser.add_json("one object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0: all workers answer, 1: some do, 2: none does, 3: no job, or it has ended."""
    options = make_parser().parse_intermixed_args(list(argv))
    pings = sorted(_ask_all(options, find_some(options).workers), key=_order)
    answered = sum(each.fastest_s is not None for each in pings)
    if options.json:
        rows = [asdict(each) for each in pings]
        write_json(sys.stdout, {"ranks": len(pings), "responded": answered, "workers": rows})
    else:
        render(pings, Output(sys.stdout))
    if not answered and all((each.text or "").startswith((NO_SOCKET, REFUSED)) for each in pings):
        return 3
    return 0 if answered == len(pings) else 1 if answered else 2


def _ask_all(options: argparse.Namespace, workers: Sequence[Worker]) -> list[Ping]:
    async def everybody(client: Client) -> dict[Worker, Ping | Failure]:
        async def talk(visit: Visit) -> Ping:
            return await _talk(visit, options.count)

        everyone = await behind_collectors(workers, client)
        return await client.visit(everyone, talk, lambda worker, result: done())

    with counting("asking", len(workers)) as done:
        results = ask(options, everybody)
    return [
        Ping(worker.address, result.reason, worker.rank, worker.host, result.text)
        if isinstance(result, Failure)
        else result
        for worker, result in results.items()
    ]


async def _talk(visit: Visit, times: int) -> Ping:
    worker = visit.worker
    health: Health | None = None
    try:
        health = await visit.ask(HEALTH)
    except Failed as failed:
        if failed.failure.reason != "missing":
            raise
    said = health.rank if health is not None else None
    if said is not None and worker.rank is not None and not worker.assumed and said != worker.rank:
        raise Failed("lied", f"found as rank {worker.rank}, says that it is rank {said}")
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await visit.ask(PING)
        taken.append(time.perf_counter() - began)
    return Ping(
        worker.address,
        "torch" if health is None else "ok",
        worker.rank if said is None else said,
        worker.host,
        fastest_s=round(min(taken), 6),
        slowest_s=round(max(taken), 6),
        step=health.step if health is not None else None,
        step_age_s=health.step_age_s if health is not None else None,
        gil_unavailable_s=health.gil_unavailable_s if health is not None else None,
    )


def _order(each: Ping) -> tuple[int, str]:
    return (1 << 62 if each.rank is None else each.rank, each.address)


def render(pings: Sequence[Ping], out: Output) -> None:
    """Print a line per worker, and one line for all."""
    out.table(
        HEADER,
        [_row(each) for each in pings],
        ["" if each.fastest_s is not None else "red" for each in pings],
    )
    answered = sum(each.fastest_s is not None for each in pings)
    out.line(f"{answered} of {len(pings)} answered", "bold")


def _row(each: Ping) -> tuple[Any, ...]:
    return (
        _cell(each.rank),
        each.address or "-",
        each.status if each.text is None else f"{each.status}: {each.text}",
        _milliseconds(each.fastest_s),
        _milliseconds(each.slowest_s),
        _cell(each.step),
        seconds(each.step_age_s),
        seconds(each.gil_unavailable_s or None),
    )


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.2f} ms"
