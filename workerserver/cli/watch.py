"""``workerserver watch``: a verdict at regular intervals; a line whenever the verdict changes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from workerserver.cli import complain
from workerserver.cli.console import STYLES, Output
from workerserver.cli.diagnose import judge, report_all
from workerserver.cli.errors import UsageError
from workerserver.cli.job_command import (
    Judged,
    ask,
    by_job,
    count,
    find_all,
    find_some,
    job_parser,
    printable,
)
from workerserver.cli.looks import Look, Looker, add_every
from workerserver.cli.parser import CommandParser
from workerserver.cli.streams import reader_left
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.rounds import EVERYTHING, Round
from workerserver.cluster.find.discovery import Found
from workerserver.cluster.find.jobs import JobView
from workerserver.cluster.judge.verdict import Verdict, over

__all__ = ["Folder", "essence", "main"]

#: Looks behind one verdict. Without flight recorders, only several looks tell stuck from slow.
MAX_HISTORY = 4
WORDS = ("healthy", "SUSPECT", "unclear", "ended")
_NAME = re.compile(r"round-[0-9]{8}T[0-9]{6}\.[0-9]{3}Z\.json\Z")
#: What differs in each look at a job that goes on as before: times, shares, steps and operations.
_NUMBERS = re.compile(r"[0-9.]+ ?(?:s|ms|%)(?![a-z])|#[0-9]+|(?<=steps )[0-9]+ to [0-9]+")
_STEP = re.compile(r"(?<=step )[0-9]+")


def make_parser() -> CommandParser:
    parser = job_parser(
        "watch",
        "Diagnose a job again and again, and print a line whenever the verdict changes. Each look "
        "finds the workers anew. With --folder, keep all verdicts, with stacks and process groups, "
        "as JSON files. Ctrl-C ends the watch. "
        "Exit status: the status of the last verdict, see diagnose.",
        examples=(
            ("workerserver watch", "all jobs of this user on this machine, every 30 seconds"),
            (
                "workerserver watch --folder verdicts --every 300 --keep 500 --job train",
                "one job, every five minutes",
            ),
        ),
    )
    parser.add_argument("--folder", metavar="DIR", help="where the files go; made if missing")
    parser.add_argument(
        "--keep",
        type=count,
        default=1000,
        metavar="N",
        help="keep the newest N files (default 1000)",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print every verdict, changed or not"
    )
    parser.add_json("the verdicts as diagnose --json, one a line")
    add_every(parser, 30.0)
    return parser


def main(argv: Sequence[str]) -> int:
    """The exit status of the last verdict; 2 without a verdict, 3 without a job."""
    options = make_parser().parse_intermixed_args(list(argv))
    found = find_some(options)
    folder = Folder(options.folder, options.keep) if options.folder is not None else None
    looker = Looker(found, lambda: find_all(options), every=options.every, most=options.count)
    printer = _Printer(options)

    async def watch(client: Client) -> int:
        history: deque[Round] = deque(maxlen=MAX_HISTORY)
        status = 2
        async for look in looker.looks(client, lambda: EVERYTHING):
            if look.begins:
                history.clear()
            history.append(look.round)
            judged = _judged(options, look, list(history))
            status = judged[0].verdict.status
            if folder is not None:
                try:
                    folder.add(look.round.started, printable(report_all(judged)))
                except OSError as error:  # the disk is full, say; the next round may find room
                    what = "this round's file is left out"
                    complain(f"{options.folder}: {error.strerror}; {what}")
            printer.show(look, judged, young=len(history) == 1)
            if folder is None and reader_left():
                break
        return status

    return ask(options, watch)


def _judged(options: argparse.Namespace, look: Look, history: Sequence[Round]) -> list[Judged]:
    found: Found = look.found
    if look.round.states or found.ended:
        return judge(by_job(options, found, history), found)
    return [Judged(JobView(None, [look.round]), over(f"the job has ended: {look.why}"))]


def essence(verdict: Verdict) -> tuple[object, ...]:
    """What makes a verdict another one: not that a wait has got longer, or a step later."""
    sentence = _STEP.sub("", _NUMBERS.sub("", verdict.sentence))
    if verdict.status == 1:
        sentence = ""
    suspects = [(each.rank, each.reason, each.location) for each in verdict.suspects]
    slow = [each.rank for each in verdict.stragglers]
    return (verdict.status, sentence, frozenset(suspects), frozenset(slow))


class _Printer:
    """Prints the verdicts that have changed since they were printed last."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._everything = options.verbose
        self._as_json = options.json
        self._out = Output(sys.stdout)
        self._last: dict[str | None, tuple[object, ...]] = {}

    def show(self, look: Look, judged: Sequence[Judged], *, young: bool) -> None:
        """*young*: there was one look only, which seldom tells: a change to "unclear" has to wait
        for the next one."""
        now = {each.view.label: essence(each.verdict) for each in judged}
        before, self._last = self._last, now
        for view, verdict in judged:
            if young and verdict.status == 2 and view.label in before:
                now[view.label] = before[view.label]
        changed = [each for each in judged if before.get(each.view.label) != now[each.view.label]]
        living = [label for label, known in before.items() if known[0] != 3]
        ended = [label for label in living if label not in now and judged[0].verdict.status != 3]
        if self._everything:
            changed = list(judged)
        if self._as_json:
            if changed or ended:
                sys.stdout.write(json.dumps(printable(report_all(judged))) + "\n")
        else:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(look.round.started))
            for label in ended:
                self._out.line(f"{at}  ended  {_name(label)}the job is there no more", hang=2)
            for view, verdict in changed:
                name = _name(view.label) if len(judged) > 1 else ""
                text = f"{at}  {WORDS[verdict.status]}  {name}{verdict.sentence}"
                self._out.line(text, STYLES[verdict.status], 2)
        sys.stdout.flush()


def _name(label: str | None) -> str:
    return f"{label or 'no known name'}: "


class Folder:
    """Verdicts as files, named after their time. Beyond *keep* files, the oldest are removed.

    Files with other names are never touched.
    """

    def __init__(self, path: str, keep: int) -> None:
        self._path = path
        self._keep = keep
        try:
            os.makedirs(path, 0o700, exist_ok=True)
            self._names = sorted(name for name in os.listdir(path) if _NAME.match(name))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None

    def add(self, when: float, fields: dict[str, Any]) -> None:
        """Write a whole file or none. OSError if the file can't be written."""
        second = time.strftime("%Y%m%dT%H%M%S", time.gmtime(when))
        name = f"round-{second}.{int(when % 1 * 1000):03}Z.json"
        part = os.path.join(self._path, f".{name}.part")
        try:
            with open(part, "w", encoding="ascii") as file:
                json.dump(fields, file)
                file.write("\n")
            os.replace(part, os.path.join(self._path, name))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        self._names = sorted({*self._names, name})
        while len(self._names) > self._keep:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._path, self._names[0]))
            del self._names[0]
