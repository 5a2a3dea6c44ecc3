"""``workerserver call NAME [key=value…] TARGET``: call a handler and print what it answers."""

from __future__ import annotations

import argparse
import base64
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO
from urllib.parse import quote, urlencode

from workerserver.cli.errors import OutputError, UsageError
from workerserver.cli.job_command import SCHEMA_VERSION
from workerserver.cli.parser import CommandParser
from workerserver.cli.places import (
    TARGET_HELP,
    TOKEN_HELP,
    add_asking,
    add_places,
    client_options,
    find,
    is_place_named,
    shown_address,
    shown_host,
    target_name,
)
from workerserver.cli.text import write_text
from workerserver.cluster.addresses import is_address
from workerserver.cluster.ask.client import Visit
from workerserver.cluster.ask.exchange import Answer, Question
from workerserver.cluster.ask.in_order import in_order
from workerserver.cluster.ask.questions import HANDLERS
from workerserver.cluster.failures import NO_SOCKET, REFUSED, Failed, web_server
from workerserver.cluster.model import Failure, Worker
from workerserver.job.printable import escape, escape_line

__all__ = ["main"]

#: Flight-recorder pickles and Chrome traces are large.
MAX_ANSWER_BYTES = 256 << 20
#: Answers are in memory whole, so few workers are asked at one time.
CONCURRENCY = 8
#: Statuses that a server may give because it has no such handler.
NO_HANDLER = (404, 405, 501)
#: Handlers that our servers have once torch is loaded.
OF_TORCH = frozenset(
    {
        "dump_nccl_trace_json",
        "dump_nccl_trace_pickle",
        "fr_trace_json",
        "torch_profile",
        "wait_counter_values",
    }
)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one worker: an answer, or the *error* why there is none. *hint* explains an
    answer that is an HTTP error better than the answer itself does."""

    worker: Worker
    answer: Answer | None = None
    error: str | None = None
    hint: str | None = None

    @property
    def target(self) -> str:
        """What a person sees."""
        return target_name(self.worker)

    @property
    def ok(self) -> bool:
        return self.answer is not None and self.answer.ok


@dataclass(slots=True)
class Tally:
    """How many targets gave what was asked; *silent*: at how many nobody listens."""

    good: int = 0
    bad: int = 0
    silent: int = 0

    def count(self, result: Result, good: bool) -> None:
        self.good += good
        self.bad += not good
        self.silent += (result.error or "").startswith((NO_SOCKET, REFUSED))

    @property
    def status(self) -> int:
        """The exit status."""
        if self.good:
            return 1 if self.bad else 0
        return 3 if self.silent == self.bad else 2


def main(argv: Sequence[str]) -> int:
    """Exit status 0 if every target answered 2xx, 1 if some did, 2 if none did, 3 if nobody
    listens; UsageError for wrong use."""
    options = make_parser().parse_intermixed_args(list(argv))
    if not options.name:
        raise UsageError("NAME is empty: which handler?")
    parameters, options.targets = _sorted(options)
    question = Question(
        options.name,
        f"/handler/{quote(options.name, safe='')}{_query(parameters)}",
        limit=MAX_ANSWER_BYTES,
        any_status=True,
    )
    workers = find(options)
    several = len(workers) > 1 or workers[0].collector
    if options.output is not None and not options.json and several:
        raise UsageError("-o holds one answer: name one worker, or add --json")
    results = ask_all(workers, question, **client_options(options))
    raw = options.raw or not sys.stdout.isatty()
    if options.output is None:
        if options.json:
            return render_json(results, sys.stdout)
        return render(results, sys.stdout, sys.stderr, raw=raw, headers=several)
    return _save(results, options.output, as_json=options.json)


def make_parser() -> CommandParser:
    parser = CommandParser(
        "call",
        usage="%(prog)s NAME [key=value...] TARGET [--json] [--raw] [-o FILE]\n"
        "       [--job NAME] [--store HOST:PORT] [--hosts FILE] [--dns NAME:PORT]\n"
        "       [--collectors HOST:PORT] [--slurm] [--port PORT] [--world-size N]\n"
        "       [--deadline S] [--token-file FILE] [--cacert FILE] [--cert FILE] [--key FILE]\n"
        "       [--send-token]",
        description="Call handler NAME in one worker, or in every worker that TARGET stands for. "
        "TARGET can be left out if an option says where the workers are. "
        "Exit status: 0 every worker answered with success, 1 some, 2 none, 3 no job.",
        examples=(
            ("workerserver call dump_traceback 4711", "the stacks of process 4711"),
            ("workerserver call fr_summary --job train", "an answer from every rank of a job"),
            (
                "workerserver call torch_profile duration=2 /tmp/job/rank2.sock -o trace.json",
                "a profile of rank 2 in a file",
            ),
        ),
        epilog=TOKEN_HELP,
    )
    parser.add_argument("name", metavar="NAME", help="e.g. ping, dump_traceback, fr_trace_json")
    parser.add_argument(
        "rest", nargs="*", metavar="key=value... TARGET", help=f"TARGET comes last: {TARGET_HELP}"
    )
    parser.add_json("one object; a body that is not UTF-8 is in body_base64")
    parser.add_argument(
        "--raw", action="store_true", help="write the bytes unchanged, even to a terminal"
    )
    parser.add_argument("-o", dest="output", metavar="FILE", help="write the answer to FILE")
    add_places(parser, targets=False)
    add_asking(parser, 30.0)
    return parser


def _sorted(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The parameters and the targets. Without a place among the options, the last is the target,
    even if it looks like key=value."""
    words: list[str] = options.rest
    if is_place_named(options) and not (words and not _is_parameter(words[-1])):
        return words, []
    if not words:
        raise UsageError(f"TARGET is missing: workerserver call {shlex.quote(options.name)} TARGET")
    if not is_address(words[-1]) and is_address(options.name):
        line = shlex.join([*words, options.name])
        raise UsageError(f"the target comes last: workerserver call {line}")
    return words[:-1], words[-1:]


def _is_parameter(word: str) -> bool:
    """Whether *word* is key=value, and not the path of a socket with "=" in it."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key


def _query(parameters: Sequence[str]) -> str:
    pairs = []
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        if not key or not equals:
            raise UsageError(f"{parameter!r} is not key=value (TARGET is the last argument)")
        pairs.append((key, value))
    return f"?{urlencode(pairs, quote_via=quote, safe='')}" if pairs else ""


def ask_all(workers: Sequence[Worker], question: Question, **options: Any) -> Iterator[Result]:
    """What becomes of each worker, in the order of *workers*; *options* are the Client's."""

    async def talk(visit: Visit) -> Result:
        answer: Answer = await visit.ask(question)
        hint = None if answer.ok else await _hint(visit, question.name, answer)
        return Result(visit.worker, answer, hint=hint)

    asking = in_order(workers, talk, concurrency=CONCURRENCY, strict=True, **options)
    for worker, outcome in asking:
        if isinstance(outcome, Failure):
            yield Result(worker, error=outcome.text)
        else:
            yield outcome


async def _hint(visit: Visit, name: str, answer: Answer) -> str | None:
    """What *answer*, an HTTP error, means; None if it says so itself."""
    known = visit.client.explain(answer)
    if known is not None or answer.status not in NO_HANDLER:
        return known
    try:
        names = await visit.ask(HANDLERS)
    except Failed as failed:
        if failed.failure.reason in ("unreachable", "timeout"):
            return None
        return web_server(answer.status_line, answer.fields)
    if name in names:
        return None
    if name in OF_TORCH and OF_TORCH.isdisjoint(names):
        return f"no handler {name}: torch is not loaded in this process"
    return f"no handler {name}; there are: {', '.join(sorted(names)) or 'none'}"


def render(results: Iterable[Result], out: TextIO, err: TextIO, *, raw: bool, headers: bool) -> int:
    """Write each good answer to *out* as it comes, each bad one to *err*; return the exit status.

    *raw* writes bodies unchanged. Else they are made safe for a terminal, and binary ones are
    refused. *headers* puts ``== TARGET`` above each answer.
    """
    tally = Tally()
    for result in results:
        if headers:
            write_text(out, f"== {escape_line(result.target)}\n")
            out.flush()
        answer = result.answer
        complaint = _complaint(result, terminal=not raw)
        tally.count(result, complaint is None)
        if complaint is not None:
            write_text(err, f"workerserver: {escape_line(result.target)}: {complaint}\n")
            err.flush()
        elif answer is not None:
            _write_body(answer.body, out, raw=raw, line_end=headers)
    return tally.status


def _complaint(result: Result, *, terminal: bool) -> str | None:
    answer = result.answer
    if answer is None:
        return escape_line(result.error or "")
    if result.hint is not None:
        return escape_line(result.hint)
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
    """Write one object, with an object per worker as its answer comes; return the exit status."""
    tally = Tally()
    out.write(f'{{"schema_version": {SCHEMA_VERSION}, "workers": [')
    for index, result in enumerate(results):
        tally.count(result, result.ok)
        out.write(",\n " if index else "\n ")
        out.write(json.dumps(_as_json(result)))
    out.write("\n]}\n")
    out.flush()
    return tally.status


def _as_json(result: Result) -> dict[str, Any]:
    answer = result.answer
    fields: dict[str, Any] = {
        "address": shown_address(result.worker),
        "rank": result.worker.rank,
        "host": shown_host(result.worker),
        "status": answer.status if answer else None,
        "content_type": answer.content_type if answer else None,
        "body": None,
        "error": escape_line(result.error) if result.error is not None else None,
    }
    if answer is not None:
        try:
            fields["body"] = answer.body.decode("utf-8")
        except UnicodeDecodeError:
            fields["body_base64"] = base64.b64encode(answer.body).decode("ascii")
    return fields


def _save(results: Iterable[Result], path: str, *, as_json: bool) -> int:
    """Write the answer to *path*. Without an answer the file is not touched."""
    answers = list(results)
    try:
        if as_json:
            with open(path, "w", encoding="utf-8") as file:
                return render_json(answers, file)
        complaint = _complaint(answers[0], terminal=False)
        if complaint is not None:
            write_text(sys.stderr, f"workerserver: {escape_line(answers[0].target)}: {complaint}\n")
            tally = Tally()
            tally.count(answers[0], False)
            return tally.status
        answer = answers[0].answer
        with open(path, "wb") as binary:
            binary.write(answer.body if answer else b"")
    except OSError as error:
        raise OutputError(path, error) from None
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
