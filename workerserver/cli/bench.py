"""``workerserver bench TARGET [NAME[?key=value]]``: measure how fast a worker answers.

The client is the package's load generator, the one behind the figures in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO
from urllib.parse import quote

from workerserver.cli.client import read_token, request
from workerserver.cli.errors import TargetError, UsageError
from workerserver.cli.targets import Target, parse_targets
from workerserver.cli.text import escape_line, positive_seconds, write_table, write_text
from workerserver.loadgen._loadgen import Histogram, Load, Result

__all__ = ["main"]

#: What ends a run that nothing else was asked of: there is a training job behind the target.
REQUESTS = 10_000
SECONDS = 5.0
#: Bytes of the answer to the first, unmeasured request.
LIMIT = 256 << 20
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
INTERRUPTED = 130

DESCRIPTION = """\
Measure how fast one worker answers handler NAME (default ping).

Without --rate, each connection sends its next request once the last was answered: as fast as the
worker can. With it, requests are due on a fixed schedule, and a request's time counts from the
moment at which it was due; so a worker that stands still is charged for all that it held up.
The run ends after 5 seconds or 10,000 requests, unless --requests or --duration say otherwise; one
request goes before it, which is not measured.

The worker is alive, and so is its training. A ping costs it next to nothing; but each
dump_traceback (unless ?mode=nogil), like every handler in Python, takes the GIL from the training
loop for a while, and a bench does that as often as it can, or R times per second.
"""
EPILOG = """\
latency or response: until the last byte of the answer, from the sending of the request, with --rate
from when it was due. service: from the sending. client late: from when it was due to the sending,
though a connection was free; that much of the response is the client's own. Only answers with a
status of 2xx have times. --json: the same as one object; keys ending in _ns are nanoseconds.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    target: Target
    path: str
    connections: int
    rate: float
    fresh: bool


def main(argv: Sequence[str]) -> int:
    """Exit status 0 if every request was answered with 2xx, else 1, and 130 if interrupted."""
    options = _parser().parse_intermixed_args(list(argv))
    targets = parse_targets([options.target])
    if len(targets) > 1:
        raise UsageError(f"bench asks one worker, and {options.target} stands for {len(targets)}")
    path = _path(options.name)
    plan = Plan(targets[0], path, options.connections, options.rate, options.fresh)
    bounded = options.requests or options.duration
    token = read_token()
    load = _load(
        plan,
        token,
        requests=options.requests if bounded else REQUESTS,
        seconds=options.duration if bounded else SECONDS,
        timeout=options.timeout,
    )
    _ask_once(plan, options.timeout, token)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "workerserver bench",
        usage="%(prog)s TARGET [NAME[?key=value]] [--requests N | --duration S] [--rate R]\n"
        "       [--connections N] [--fresh] [--timeout S] [--json]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument(
        "name",
        nargs="?",
        default="ping",
        metavar="NAME[?key=value]",
        help="a handler with its parameters, e.g. 'dump_traceback?mode=nogil'",
    )
    parser.add_argument(
        "--connections", type=_positive, default=1, metavar="N", help="at most (default 1)"
    )
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--requests", type=_positive, default=0, metavar="N")
    end.add_argument("--duration", type=_duration, default=0.0, metavar="S", help="e.g. 5s")
    parser.add_argument(
        "--rate", type=_rate, default=0.0, metavar="R", help="requests per second, on a schedule"
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="a new connection for each request; connecting counts",
    )
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=10.0,
        metavar="S",
        help="for each request (default 10)",
    )
    parser.add_argument("--json", action="store_true")
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


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


def _load(plan: Plan, token: str | None, *, requests: int, seconds: float, timeout: float) -> Load:
    target = plan.target
    host = f"[{target.host}]" if ":" in target.host else target.host
    head = [
        f"POST {plan.path} HTTP/1.1",
        "Host: localhost" if target.path is not None else f"Host: {host}:{target.port}",
        "Content-Length: 0",
    ]
    if token is not None:
        head.append(f"Authorization: Bearer {token}")
    if plan.fresh:
        head.append("Connection: close")
    try:
        return Load(
            (target.host, target.port) if target.path is None else target.path,
            "\r\n".join([*head, "", ""]).encode("latin-1"),
            connections=plan.connections,
            requests=requests,
            seconds=seconds,
            rate=plan.rate,
            fresh=plan.fresh,
            timeout=timeout,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:  # the look-up of the name
        raise TargetError(target.name, error.strerror or str(error)) from None


def _ask_once(plan: Plan, timeout: float, token: str | None) -> None:
    """One request that is not measured. TargetError if it isn't answered as it should: to measure
    that would only be a lot of failures."""
    answer = request(plan.target, "POST", plan.path, timeout=timeout, limit=LIMIT, token=token)
    if not answer.ok:
        text = answer.body[:200].decode("utf-8", "backslashreplace").strip()
        raise TargetError(plan.target.name, f"{answer.status_line}: {text}".rstrip(": "))


# --- output -----------------------------------------------------------------------------------


def render(plan: Plan, result: Result, out: TextIO, *, interrupted: bool = False) -> None:
    """What was asked, what came of it, and the table of times."""
    ways = "a new connection each" if plan.fresh else _number(plan.connections, "connection")
    if plan.fresh and plan.connections > 1:
        ways += f", {plan.connections} at a time"
    pace = f", {plan.rate:g} per second" if plan.rate else ""
    lines = [
        f"{'POST ' + plan.path} at {plan.target.name}{pace}, {ways}",
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
        "target": plan.target.name,
        "path": plan.path,
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
    json.dump(report, out, indent=1)
    out.write("\n")


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
