"""``workerserver bench TARGET [NAME[?key=value]]``: measure how fast a worker answers.

The client is the package's load generator, the one behind the figures in docs/performance.md. Over
TLS it is bench_tls.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO
from urllib.parse import quote

from workerserver.cli.bench_tls import TlsLoad
from workerserver.cli.errors import NoJobError, TargetError, UsageError
from workerserver.cli.job_command import write_json
from workerserver.cli.parser import CommandParser
from workerserver.cli.places import (
    add_asking,
    add_places,
    client_options,
    find,
    is_place_named,
    shown_address,
)
from workerserver.cli.text import count, positive_seconds, write_table, write_text
from workerserver.cluster.addresses import host_port
from workerserver.cluster.ask.client import Visit
from workerserver.cluster.ask.exchange import Question, request_parts
from workerserver.cluster.ask.in_order import in_order
from workerserver.cluster.failures import NO_SOCKET, REFUSED
from workerserver.cluster.model import Failure, Worker
from workerserver.job.printable import escape_line
from workerserver.loadgen._loadgen import Histogram, Load, Result

__all__ = ["main"]

#: What ends a run by default: there is a training job behind the target.
REQUESTS = 10_000
SECONDS = 5.0
#: The answer to the first, unmeasured request.
MAX_ANSWER_BYTES = 256 << 20
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
INTERRUPTED = 130

DESCRIPTION = """\
Measure how fast one worker answers handler NAME (default ping).

Without --rate, each connection sends its next request as soon as the last one is answered: this
measures how fast the worker can be. With --rate, requests are due on a fixed schedule, and the time
of a request counts from the moment at which it was due. So if the worker stands still, all requests
that were due meanwhile take longer. The run ends after 5 seconds or 10,000 requests, unless
--requests or --duration say otherwise. One more request is sent before; it is not measured.

The worker goes on training. A ping costs it next to nothing. But each dump_traceback (unless
?mode=nogil), and each handler in Python, takes the GIL from the training loop for a while. A bench
does that as often as it can, or R times a second.

Over https the client runs in Python, and its own time is a larger part of what it measures.
"""
#: Why no request is measured where the token would have to be proven.
_BARE = (
    "{}: bench sends the same bytes each time, so it can't prove that it knows the token, and "
    "would send the token itself: measure a Unix socket of this user, or give --send-token"
)
EPILOG = """\
latency: from the sending of the request to the last byte of the answer. With --rate there are three
times instead. response: from when the request was due to the last byte of the answer. service: from
the sending. client late: from when the request was due to its sending, although a connection was
free; the client itself caused this part of the response. Only answers with status 2xx have times.
--json prints one object; keys that end in _ns are in nanoseconds.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    worker: Worker
    question: Question
    connections: int
    rate: float
    fresh: bool


def main(argv: Sequence[str]) -> int:
    """Exit status 0 if every request was answered with 2xx, 1 if some were not, 2 if nothing could
    be measured, 3 if nobody listens there, and 130 if interrupted."""
    options = make_parser().parse_intermixed_args(list(argv))
    name = _name(options)
    plan = Plan(
        _worker(options),
        Question("bench", _path(name), limit=MAX_ANSWER_BYTES),
        options.connections,
        options.rate,
        options.fresh,
    )
    bounded = options.requests or options.duration
    asking = client_options(options)
    load = _load(
        plan,
        asking,
        requests=options.requests if bounded else REQUESTS,
        seconds=options.duration if bounded else SECONDS,
        timeout=options.deadline,
    )
    _ask_once(plan, asking)
    interrupted = False
    try:
        result = load.run()
    except KeyboardInterrupt:
        if load.result is None:
            raise
        result, interrupted = load.result, True
    show = render_json if options.json else render
    show(plan, result, sys.stdout, interrupted=interrupted)
    if interrupted:
        return INTERRUPTED
    return 1 if result.failed else 0


def make_parser() -> CommandParser:
    parser = CommandParser(
        "bench",
        usage="%(prog)s TARGET [NAME[?key=value]] [--requests N | --duration S] [--rate R]\n"
        "       [--connections N] [--fresh] [--json]\n"
        "       [--job NAME] [--store HOST:PORT] [--hosts FILE] [--dns NAME:PORT]\n"
        "       [--collectors HOST:PORT] [--slurm] [--port PORT] [--world-size N]\n"
        "       [--deadline S] [--token-file FILE] [--cacert FILE] [--cert FILE] [--key FILE]\n"
        "       [--send-token]",
        description=DESCRIPTION,
        examples=(
            ("workerserver bench /tmp/job/rank0.sock", "pings, as fast as they are answered"),
            (
                "workerserver bench 4711 'dump_traceback?mode=nogil' --rate 20 --duration 10",
                "20 dumps a second of process 4711, for ten seconds",
            ),
        ),
        epilog=EPILOG,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="TARGET [NAME[?key=value]]",
        help="one worker, and a handler with its parameters, e.g. 'dump_traceback?mode=nogil'. "
        "TARGET can be left out if an option says where the worker is",
    )
    parser.add_argument(
        "--connections", type=count, default=1, metavar="N", help="open at most N (default 1)"
    )
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--requests", type=count, default=0, metavar="N", help="end after N requests")
    end.add_argument(
        "--duration", type=_duration, default=0.0, metavar="S", help="end after S seconds"
    )
    parser.add_argument(
        "--rate", type=_rate, default=0.0, metavar="R", help="requests per second, on a schedule"
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="a new connection for each request; connecting counts",
    )
    parser.add_json("one object")
    add_places(parser, targets=False)
    add_asking(parser, 10.0)
    return parser


def _name(options: argparse.Namespace) -> str:
    """The handler with its parameters; the target is put where find() looks for targets."""
    words: list[str] = options.words
    count_of_targets = 0 if is_place_named(options) and len(words) < 2 else 1
    if len(words) < count_of_targets:
        raise UsageError("TARGET is missing: workerserver bench TARGET [NAME]")
    if len(words) > count_of_targets + 1:
        raise UsageError(f"one argument too many: {words[count_of_targets + 1]}")
    options.targets = words[:count_of_targets]
    return words[count_of_targets] if len(words) > count_of_targets else "ping"


def _duration(text: str) -> float:
    return positive_seconds(text.removesuffix("s"))


def _rate(text: str) -> float:
    try:
        value = float(text.removesuffix("/s"))
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number per second")
    return value


def _path(name: str) -> str:
    handler, mark, query = name.partition("?")
    if not handler:
        raise UsageError(f"{name!r} names no handler")
    if not all("!" <= c <= "~" and c != "#" for c in query):
        raise UsageError(f"{name!r}: a query holds visible ASCII only; write the rest as %XX")
    return f"/handler/{quote(handler, safe='')}{mark}{query}"


def _worker(options: argparse.Namespace) -> Worker:
    """The one worker that the options name."""
    found = find(options)
    if len(found) > 1:
        named = options.targets[0] if options.targets else "what the options name"
        raise UsageError(f"bench asks one worker, and {named} stands for {len(found)}")
    (worker,) = found
    if worker.collector or worker.via is not None:
        raise UsageError(f"{worker.address}: bench can't measure a worker behind a collector")
    return worker


def _load(
    plan: Plan, asking: Mapping[str, Any], *, requests: int, seconds: float, timeout: float
) -> Load | TlsLoad:
    worker = plan.worker
    fields = {}
    if asking["token"] is not None:
        fields["Authorization"] = f"Bearer {asking['token']}"
    if plan.fresh:
        fields["Connection"] = "close"
    host = b"localhost" if worker.unix else worker.address.encode("ascii", "replace")
    request = host.join(request_parts(plan.question, fields))
    options: dict[str, Any] = {
        "connections": plan.connections,
        "requests": requests,
        "seconds": seconds,
        "rate": plan.rate,
        "fresh": plan.fresh,
        "timeout": timeout,
    }
    if worker.tls:
        return TlsLoad(worker, request, asking, limit=MAX_ANSWER_BYTES, **options)
    try:
        place = worker.address if worker.unix else host_port(worker.address)
        return Load(place, request, **options)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:  # the look-up of the name
        raise TargetError(worker.address, error.strerror or str(error)) from None


def _ask_once(plan: Plan, asking: Mapping[str, Any]) -> None:
    """One request that is not measured. TargetError if its answer is no success: there would be
    nothing to measure but failures. UsageError if the token may not be sent there as it is."""
    token = asking["token"]
    named = shown_address(plan.worker)
    if token is not None and not (plan.worker.unix or plan.worker.tls or asking["send_token"]):
        raise UsageError(_BARE.format(named))

    async def talk(visit: Visit) -> bool:
        await visit.ask(plan.question)
        return visit.may_send_token

    for worker, outcome in in_order([plan.worker], talk, **asking):
        if isinstance(outcome, Failure):
            if outcome.text.startswith((NO_SOCKET, REFUSED)):
                raise NoJobError(f"{worker.address}: {outcome.text}")
            raise TargetError(worker.address, outcome.text)
        if token is not None and not outcome:
            raise UsageError(_BARE.format(named))


# --- output -----------------------------------------------------------------------------------


def render(plan: Plan, result: Result, out: TextIO, *, interrupted: bool = False) -> None:
    """What was sent, what was answered, and the table of times."""
    ways = "a new connection each" if plan.fresh else _number(plan.connections, "connection")
    if plan.fresh and plan.connections > 1:
        ways += f", {plan.connections} at a time"
    pace = f", {plan.rate:g} per second" if plan.rate else ""
    lines = [
        f"POST {plan.question.path} at {shown_address(plan.worker)}{pace}, {ways}",
        f"{_number(result.sent, 'request')} in {result.seconds:.2f} s"
        + (", interrupted" if interrupted else ""),
        f"answered: {result.answered}, {_per_second(result):.0f} per second, "
        f"{_bytes(result.received)} received",
        f"statuses: {_counts(result.statuses)}",
        f"failed: {_counts(result.failed)}",
    ]
    for line in lines:
        write_text(out, escape_line(line) + "\n")
    rows = [_row(name, times) for name, times in _times(plan, result) if times.count]
    if rows:
        out.write("\n")
        names = [f"p{percentile:g}" for percentile in PERCENTILES]
        write_table(out, ("", *names, "max"), rows)


def _times(plan: Plan, result: Result) -> list[tuple[str, Histogram]]:
    if not plan.rate:
        return [("latency", result.service)]
    return [
        ("response", result.response),
        ("service", result.service),
        ("client late", result.late),
    ]


def _row(name: str, times: Histogram) -> tuple[str, ...]:
    values = [times.percentile(percentile) for percentile in PERCENTILES]
    return (name, *map(_time, values), _time(times.max))


def _time(ns: int) -> str:
    """To three digits, or to 10 ns: ``9.87 us``, ``123 us``, ``1.50 ms``, ``2.00 s``."""
    if ns < 999_500:
        return f"{_three(ns / 1e3)} us"
    return f"{_three(ns / 1e6)} ms" if ns < 999_500_000 else f"{_three(ns / 1e9)} s"


def _three(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _counts(counts: dict[Any, int]) -> str:
    return ", ".join(f"{times} x {name}" for name, times in counts.items()) or "none"


def _bytes(count: int) -> str:
    if count < 10_000:
        return f"{count} bytes"
    return f"{count / 1e3:.0f} kB" if count < 10_000_000 else f"{count / 1e6:.0f} MB"


def _per_second(result: Result) -> float:
    return result.answered / result.seconds if result.seconds else 0.0


def render_json(plan: Plan, result: Result, out: TextIO, *, interrupted: bool = False) -> None:
    """One object. A histogram without values is null, ``late_ns`` in a closed loop, too."""
    report = {
        "address": shown_address(plan.worker),
        "rank": plan.worker.rank,
        "host": plan.worker.host,
        "path": plan.question.path,
        "connections": plan.connections,
        "rate": plan.rate or None,
        "fresh": plan.fresh,
        "interrupted": interrupted,
        "sent": result.sent,
        "answered": result.answered,
        "failed": result.failed,
        "statuses": {str(status): times for status, times in result.statuses.items()},
        "seconds": result.seconds,
        "answered_per_second": _per_second(result),
        "received_bytes": result.received,
        "response_ns": _as_json(result.response),
        "service_ns": _as_json(result.service),
        "late_ns": _as_json(result.late),
    }
    write_json(out, report)


def _as_json(times: Histogram) -> dict[str, float] | None:
    if not times.count:
        return None
    facts: dict[str, float] = {
        "count": times.count,
        "min": times.min,
        "mean": round(times.mean, 1),
    }
    facts |= {f"p{percentile:g}": times.percentile(percentile) for percentile in PERCENTILES}
    return facts | {"max": times.max}
