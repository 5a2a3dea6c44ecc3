"""``workerserver call NAME [key=value…] TARGET``: call a handler and print what it answers."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO
from urllib.parse import quote, urlencode

from workerserver.cli.client import Answer, ask_all, read_token, request
from workerserver.cli.errors import CommandError, TargetError, UsageError
from workerserver.cli.targets import Target, parse_targets
from workerserver.cli.text import escape, escape_line, positive_seconds, write_text

__all__ = ["main"]

#: Bytes of one answer: flight-recorder pickles and Chrome traces are large.
LIMIT = 256 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one target: an answer, or the reason why there is none."""

    target: str
    answer: Answer | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.answer is not None and self.answer.ok


def main(argv: Sequence[str]) -> int:
    """Exit status 0 if every target answered 2xx, else 1; UsageError for wrong use."""
    options = _parser().parse_intermixed_args(list(argv))
    *parameters, last = options.rest
    path = f"/handler/{quote(options.name, safe='')}{_query(parameters)}"
    targets = parse_targets([last])
    if options.output is not None and not options.json and len(targets) > 1:
        raise UsageError(f"-o holds one answer, and {last} stands for {len(targets)} targets")
    ask = partial(_ask, path=path, timeout=options.timeout, token=read_token())
    results = ask_all(targets, ask, parallel=8)
    raw = options.raw or not sys.stdout.isatty()
    if options.output is None:
        if options.json:
            return render_json(results, sys.stdout)
        return render(results, sys.stdout, sys.stderr, raw=raw, headers=len(targets) > 1)
    return _save(results, options.output, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "workerserver call",
        usage="%(prog)s NAME [key=value...] TARGET [--timeout S] [--json] [--raw] [-o FILE]",
        description="Call handler NAME in one worker, or in all that a folder or pattern names.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="e.g. ping, dump_traceback, fr_trace_json")
    parser.add_argument("rest", nargs="+", metavar="key=value... TARGET", help="TARGET comes last")
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=30.0,
        metavar="S",
        help="per target (default 30)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print an array of {target, status, content_type, body, error}; "
        "body_base64 stands in for a body that is not UTF-8",
    )
    parser.add_argument(
        "--raw", action="store_true", help="write the bytes as they are, to a terminal too"
    )
    parser.add_argument("-o", dest="output", metavar="FILE", help="write the answer to FILE")
    return parser


def _query(parameters: Sequence[str]) -> str:
    pairs = []
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        if not key or not equals:
            raise UsageError(f"{parameter!r} is not key=value (TARGET is the last argument)")
        pairs.append((key, value))
    return f"?{urlencode(pairs, quote_via=quote, safe='')}" if pairs else ""


def _ask(target: Target, *, path: str, timeout: float, token: str | None) -> Result:
    try:
        answer = request(target, "POST", path, timeout=timeout, limit=LIMIT, token=token)
    except TargetError as error:
        return Result(target.name, error=error.reason)
    return Result(target.name, answer)


def render(results: Iterable[Result], out: TextIO, err: TextIO, *, raw: bool, headers: bool) -> int:
    """Each good answer to *out* as it comes, each bad one to *err*; returns the exit status.

    *raw* writes bodies as they are; else they are made safe for a terminal, and a binary one is
    refused. *headers* puts ``== TARGET`` above each answer.
    """
    status = 0
    for result in results:
        if headers:
            write_text(out, f"== {escape_line(result.target)}\n")
            out.flush()
        answer = result.answer
        complaint = _complaint(result, terminal=not raw)
        if complaint is not None:
            status = 1
            write_text(err, f"workerserver: {escape_line(result.target)}: {complaint}\n")
            err.flush()
        elif answer is not None:
            _write_body(answer.body, out, raw=raw, line_end=headers)
    return status


def _complaint(result: Result, *, terminal: bool) -> str | None:
    answer = result.answer
    if answer is None:
        return escape_line(result.error or "")
    if not answer.ok:
        body = escape(_text(answer.body)).rstrip("\n")
        return escape_line(answer.status_line) + (f"\n{body}" if body else "")
    if terminal and _is_binary(answer):
        kind = escape_line(answer.content_type or "of no known type")
        return (
            f"the answer is binary ({len(answer.body)} bytes, {kind}): "
            "use -o FILE or send it into a pipe"
        )
    return None


def _write_body(body: bytes, out: TextIO, *, raw: bool, line_end: bool) -> None:
    if raw:
        out.flush()
        out.buffer.write(body)
        if line_end and not body.endswith(b"\n"):
            out.buffer.write(b"\n")
        out.buffer.flush()
    else:
        text = escape(_text(body))
        write_text(out, text if text.endswith("\n") else f"{text}\n")
        out.flush()


def render_json(results: Iterable[Result], out: TextIO) -> int:
    """One array, an object per target; returns the exit status."""
    status = 0
    out.write("[")
    for index, result in enumerate(results):
        status = status if result.ok else 1
        out.write(",\n " if index else "\n ")
        out.write(json.dumps(_as_json(result)))
    out.write("\n]\n")
    out.flush()
    return status


def _as_json(result: Result) -> dict[str, Any]:
    answer = result.answer
    fields: dict[str, Any] = {
        "target": result.target,
        "status": answer.status if answer else None,
        "content_type": answer.content_type if answer else None,
        "body": None,
        "error": result.error,
    }
    if answer is not None:
        try:
            fields["body"] = answer.body.decode("utf-8")
        except UnicodeDecodeError:
            fields["body_base64"] = base64.b64encode(answer.body).decode("ascii")
    return fields


def _save(results: Iterable[Result], path: str, *, as_json: bool) -> int:
    """The answer into *path*; the file is not touched if there is none."""
    answers = list(results)
    try:
        if as_json:
            with open(path, "w", encoding="utf-8") as file:
                return render_json(answers, file)
        complaint = _complaint(answers[0], terminal=False)
        if complaint is not None:
            write_text(sys.stderr, f"workerserver: {escape_line(answers[0].target)}: {complaint}\n")
            return 1
        answer = answers[0].answer
        with open(path, "wb") as binary:
            binary.write(answer.body if answer else b"")
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    return 0


def _text(body: bytes) -> str:
    return body.decode("utf-8", "backslashreplace")


def _is_binary(answer: Answer) -> bool:
    kind = answer.content_type.partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind.endswith("json"):
        return False
    try:
        return "\0" in answer.body.decode("utf-8")
    except UnicodeDecodeError:
        return True
