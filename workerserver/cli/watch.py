"""``workerserver watch``: a verdict at regular intervals, each in a file of its own."""

from __future__ import annotations

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
from workerserver.cli.console import Output
from workerserver.cli.diagnose import STYLES, judge, report_all
from workerserver.cli.errors import UsageError
from workerserver.cli.job_command import ask, by_job, count, find_some, job_parser, versioned
from workerserver.cli.looks import add_every, looks
from workerserver.cli.parser import CommandParser
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.rounds import EVERYTHING, Round

__all__ = ["Folder", "main"]

#: Looks behind one verdict. Without flight recorders, only several looks tell stuck from slow.
MAX_HISTORY = 4
WORDS = ("healthy", "SUSPECT", "unclear", "ended")
_NAME = re.compile(r"round-[0-9]{8}T[0-9]{6}\.[0-9]{3}Z\.json\Z")


def make_parser() -> CommandParser:
    parser = job_parser(
        "watch",
        "Diagnose a job again and again. Print a line for each look. Keep the verdicts, with "
        "stacks and process groups, as JSON files in a folder. Ctrl-C ends the watch. "
        "Exit status: the status of the last verdict, see diagnose.",
        examples=(
            (
                "workerserver watch --folder verdicts",
                "all jobs of this user on this machine, every 30 seconds",
            ),
            (
                "workerserver watch --folder verdicts --every 300 --keep 500 --job train",
                "one job, every five minutes",
            ),
        ),
    )
    parser.add_argument(
        "--folder", required=True, metavar="DIR", help="where the files go; made if missing"
    )
    parser.add_argument(
        "--keep",
        type=count,
        default=1000,
        metavar="N",
        help="keep the newest N files (default 1000)",
    )
    add_every(parser, 30.0)
    return parser


def main(argv: Sequence[str]) -> int:
    """The exit status of the last verdict; 2 without a verdict, 3 without a job."""
    options = make_parser().parse_intermixed_args(list(argv))
    found = find_some(options)
    out = Output(sys.stdout)
    folder = Folder(options.folder, options.keep)

    async def watch(client: Client) -> int:
        history: deque[Round] = deque(maxlen=MAX_HISTORY)
        status = 2
        async for look in looks(
            client, found.workers, EVERYTHING, every=options.every, most=options.count
        ):
            history.append(look)
            judged = judge(by_job(options, found, list(history)), found)
            status = judged[0].verdict.status
            try:
                folder.add(look.started, versioned(report_all(judged)))
            except OSError as error:  # the disk is full, say; the next round may find room
                complain(f"{options.folder}: {error.strerror}; this round's file is left out")
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(look.started))
            for view, verdict in judged:
                name = f"{view.label or 'no known name'}: " if len(judged) > 1 else ""
                word = WORDS[verdict.status]
                out.line(f"{at}  {word}  {name}{verdict.sentence}", STYLES[verdict.status])
            sys.stdout.flush()
        return status

    return ask(options, watch)


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
