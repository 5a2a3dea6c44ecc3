"""``workerserver ls TARGET…``: who listens, and how it is doing.

Works on stock torch workers too: they know no ``/healthz``, which is how they are told apart.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TextIO

from workerserver.cli.client import ask_all, read_token, request
from workerserver.cli.errors import TargetError
from workerserver.cli.targets import Target, parse_targets
from workerserver.cli.text import positive_seconds, seconds, write_table

__all__ = ["main"]

#: Bytes of one answer; the list of names is the larger of the two asked for.
LIMIT = 1 << 20
HEADER = ("TARGET", "STATUS", "RANK", "PID", "UPTIME", "STEP", "STEP AGE", "HANDLERS")


@dataclass(frozen=True, slots=True)
class Worker:
    """One row. *status* is ok, stalled, torch (a stock server), or error or unreachable, both of
    which *error* explains: the first answers what it should not, the second not at all."""

    target: str
    status: str
    error: str | None = None
    rank: int | str | None = None
    pid: int | None = None
    uptime_s: float | None = None
    step: int | None = None
    step_age_s: float | None = None
    handlers: tuple[str, ...] = ()


def main(argv: Sequence[str]) -> int:
    """Exit status 0 if every target could be asked, else 1; UsageError for wrong use."""
    parser = argparse.ArgumentParser(
        "workerserver ls",
        description="Show every worker that TARGET names: rank, pid, uptime, training step.",
        allow_abbrev=False,
    )
    parser.add_argument("targets", nargs="+", metavar="TARGET")
    parser.add_argument(
        "--timeout", type=positive_seconds, default=3.0, metavar="S", help="per target (default 3)"
    )
    parser.add_argument(
        "--max-step-age",
        type=positive_seconds,
        metavar="S",
        help="show a worker as stalled whose last heartbeat is older",
    )
    parser.add_argument("--json", action="store_true", help="an array of objects, with the names")
    options = parser.parse_intermixed_args(list(argv))
    ask = partial(
        ask_worker,
        timeout=options.timeout,
        max_step_age=options.max_step_age,
        token=read_token(),
    )
    workers = list(ask_all(parse_targets(options.targets), ask))
    (render_json if options.json else render)(workers, sys.stdout)
    return 1 if any(worker.error is not None for worker in workers) else 0


def ask_worker(
    target: Target, *, timeout: float, max_step_age: float | None = None, token: str | None = None
) -> Worker:
    """One worker's row; *timeout* (seconds) holds for each of the two questions."""
    ask = partial(request, target, "GET", timeout=timeout, limit=LIMIT, token=token)
    query = "" if max_step_age is None else f"?max_step_age={max_step_age:g}"
    try:
        health = ask(f"/healthz{query}")
        listing = ask("/handler/")
    except TargetError as error:
        return Worker(target.name, "unreachable", error.reason)
    if not listing.ok:
        return Worker(target.name, "error", listing.status_line, pid=listing.peer_pid)
    names = _load(listing.body)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        reason = "GET /handler/ gives no list of names"
        return Worker(target.name, "error", reason, pid=listing.peer_pid)
    handlers = tuple(names)
    if health.status == 404:
        return Worker(target.name, "torch", pid=health.peer_pid, handlers=handlers)
    fields = _load(health.body)
    status = fields.get("status") if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or status not in ("ok", "stalled"):
        reason = f"GET /healthz gives {health.status_line}"
        return Worker(target.name, "error", reason, pid=health.peer_pid, handlers=handlers)
    rank = fields.get("rank")
    return Worker(
        target.name,
        str(status),
        rank=rank if isinstance(rank, str) else _integer(rank),
        # In another pid namespace the worker's own word differs from what the kernel tells us.
        pid=_integer(fields.get("pid")) or health.peer_pid,
        uptime_s=_number(fields.get("uptime_s")),
        step=_integer(fields.get("step")),
        step_age_s=_number(fields.get("step_age_s")),
        handlers=handlers,
    )


def render(workers: Sequence[Worker], out: TextIO) -> None:
    """The table, a line per worker."""
    write_table(out, HEADER, [_row(worker) for worker in workers])


def _row(worker: Worker) -> tuple[str, ...]:
    known = worker.error is None
    return (
        worker.target,
        worker.status if known else f"{worker.status}: {worker.error}",
        _cell(worker.rank),
        _cell(worker.pid),
        seconds(worker.uptime_s),
        _cell(worker.step),
        seconds(worker.step_age_s),
        str(len(worker.handlers)) if known else "-",
    )


def render_json(workers: Sequence[Worker], out: TextIO) -> None:
    """An array with one object per worker."""
    json.dump([asdict(worker) for worker in workers], out, indent=1)
    out.write("\n")


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _load(body: bytes) -> Any:
    """What a JSON body holds, None if it is no JSON: a worker's word is not to be relied on."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
