"""``workerserver ls TARGET…``: which workers there are, and how they are doing.

Stock torch workers are listed too. They are told apart by not knowing ``/healthz``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from workerserver.cli.job_command import write_json
from workerserver.cli.parser import CommandParser
from workerserver.cli.places import (
    TOKEN_HELP,
    add_asking,
    add_places,
    client_options,
    find,
    shown_address,
    shown_host,
    target_name,
)
from workerserver.cli.text import positive_seconds, seconds, write_table
from workerserver.cluster.ask.bodies import handler_names
from workerserver.cluster.ask.client import Visit
from workerserver.cluster.ask.exchange import Answer, Question
from workerserver.cluster.ask.in_order import in_order
from workerserver.cluster.failures import NO_SOCKET, REFUSED
from workerserver.cluster.model import Failure, Worker

__all__ = ["main"]

MAX_ANSWER_BYTES = 1 << 20
HEADER = ("TARGET", "STATUS", "RANK", "PID", "UPTIME", "STEP", "STEP AGE", "HANDLERS")


@dataclass(frozen=True, slots=True)
class Row:
    """One worker. *target* is what a person sees; *address* and *host* are for programs. *status*
    is ok, stalled, torch (a stock server), error (it gives answers that no worker gives) or
    unreachable (it gives none); *error* explains the last two."""

    target: str
    address: str
    host: str | None
    status: str
    error: str | None = None
    rank: int | str | None = None
    pid: int | None = None
    uptime_s: float | None = None
    step: int | None = None
    step_age_s: float | None = None
    handlers: tuple[str, ...] = ()
    job: str | None = None


def make_parser() -> CommandParser:
    parser = CommandParser(
        "ls",
        description="Show every worker that TARGET stands for: rank, pid, uptime, training step. "
        "Without a TARGET, every worker of this user on this machine. "
        "Exit status: 0 all workers could be asked, 1 some, 2 none, 3 no job.",
        examples=(
            ("workerserver ls", "every worker of this user on this machine"),
            ("workerserver ls '/tmp/job/*.sock'", "the workers behind these sockets"),
            ("workerserver ls --max-step-age 300", "with no step for 300 s, a worker is stalled"),
        ),
        epilog=TOKEN_HELP,
    )
    add_places(parser, targets=True)
    add_asking(parser, 3.0)
    parser.add_argument(
        "--max-step-age",
        type=positive_seconds,
        metavar="S",
        help="show a worker as stalled if its last heartbeat is older",
    )
    parser.add_json("one object, with the names of the handlers")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0 if every target could be asked, 1 if some could, 2 if none could, 3 if there is
    no job; UsageError for wrong use."""
    options = make_parser().parse_intermixed_args(list(argv))
    found = rows(find(options), max_step_age=options.max_step_age, **client_options(options))
    (render_json if options.json else render)(found, sys.stdout)
    good = sum(row.error is None for row in found)
    if not good and all((row.error or "").startswith((NO_SOCKET, REFUSED)) for row in found):
        return 3
    return 0 if good == len(found) else 1 if good else 2


def rows(
    workers: Sequence[Worker], *, max_step_age: float | None = None, **options: Any
) -> list[Row]:
    """A row for each worker; *options* are the Client's."""
    query = "" if max_step_age is None else f"?max_step_age={max_step_age:g}"
    health = _question(f"/healthz{query}")
    listing = _question("/handler/")

    async def talk(visit: Visit) -> Row:
        answer = await visit.ask(health)
        return _row_of(visit, answer, await visit.ask(listing))

    return [
        Row(*_names(worker), "unreachable", outcome.text, worker.rank)
        if isinstance(outcome, Failure)
        else outcome
        for worker, outcome in in_order(workers, talk, **options)
    ]


def _names(worker: Worker) -> tuple[str, str, str | None]:
    return target_name(worker), shown_address(worker), shown_host(worker)


def _question(path: str) -> Question:
    return Question("ls", path, "GET", limit=MAX_ANSWER_BYTES, any_status=True)


def _row_of(visit: Visit, health: Answer, listing: Answer) -> Row:
    names, pid = _names(visit.worker), visit.peer_pid
    if not listing.ok:
        return Row(*names, "error", visit.client.explain(listing) or listing.status_line, pid=pid)
    try:
        handlers = tuple(handler_names(listing.body))
    except ValueError:
        return Row(*names, "error", "GET /handler/ gives no list of names", pid=pid)
    known = visit.worker.known
    job = None if known is None else known.job
    if health.status == 404:
        return Row(*names, "torch", rank=visit.worker.rank, pid=pid, handlers=handlers, job=job)
    fields = _load(health.body)
    status = fields.get("status") if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or status not in ("ok", "stalled"):
        reason = f"GET /healthz gives {health.status_line}"
        return Row(*names, "error", reason, pid=pid, handlers=handlers)
    rank = fields.get("rank")
    told = fields.get("job")
    return Row(
        *names,
        str(status),
        rank=rank if isinstance(rank, str) else _rank(_integer(rank), visit.worker),
        # In another pid namespace the worker's own word differs from what the kernel tells us.
        pid=_integer(fields.get("pid")) or pid,
        uptime_s=_number(fields.get("uptime_s")),
        step=_integer(fields.get("step")),
        step_age_s=_number(fields.get("step_age_s")),
        handlers=handlers,
        job=told if isinstance(told, str) else job,
    )


def render(found: Sequence[Row], out: TextIO) -> None:
    """The table, a line per worker."""
    write_table(out, HEADER, [_cells(row) for row in found])


def _cells(row: Row) -> tuple[str, ...]:
    known = row.error is None
    return (
        row.target,
        row.status if known else f"{row.status}: {row.error}",
        _cell(row.rank),
        _cell(row.pid),
        seconds(row.uptime_s),
        _cell(row.step),
        seconds(row.step_age_s),
        str(len(row.handlers)) if known else "-",
    )


def render_json(found: Sequence[Row], out: TextIO) -> None:
    """One object, with an object per worker."""
    rows = [asdict(row) for row in found]
    for row in rows:
        del row["target"]
    write_json(out, {"workers": rows})


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _load(body: bytes) -> Any:
    """What a JSON body holds; None if it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _rank(told: int | None, worker: Worker) -> int | None:
    """The rank that the worker tells; else that by which it was found."""
    return worker.rank if told is None and not worker.assumed else told


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
