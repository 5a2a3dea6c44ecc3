"""``workerserver top``: all ranks as a live table, from ``/healthz``.

While ranks are in trouble, or where no rank tells its steps, a look now and then asks all that
``diagnose`` asks. Then the head has the verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from workerserver.cli.console import STYLES, Output
from workerserver.cli.diagnose import judge
from workerserver.cli.job_command import (
    ask,
    by_job,
    find_all,
    find_one_job,
    job_parser,
    printable,
    share,
)
from workerserver.cli.looks import Look, Looker, add_every
from workerserver.cli.parser import CommandParser
from workerserver.cli.rows import COLUMNS, Row, rows
from workerserver.cli.screen import Picture, View, draw, keys, plain, screen
from workerserver.cli.streams import reader_left
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.rounds import EVERYTHING, Part, Round
from workerserver.cluster.find.discovery import Found
from workerserver.cluster.judge.verdict import Verdict

if TYPE_CHECKING:
    from workerserver.cli.boxes import Boxes

__all__ = ["main"]

HEALTH: tuple[Part, ...] = ("health",)
#: States of ranks that need no verdict.
FINE = frozenset({"ok", "torch", "starting"})
#: Looks behind one verdict.
MAX_HISTORY = 4
#: The least deadline of a look for a verdict, as that of diagnose.
VERDICT_SECONDS = 10.0
#: While nothing changes, a verdict holds for so long.
AGAIN_SECONDS = 30.0
_TITLES = [title for title, _ in COLUMNS]
HEADER = (_TITLES[0], _TITLES[-1], *_TITLES[1:-1])


def make_parser() -> CommandParser:
    parser = job_parser(
        "top",
        "Show all ranks of a job as a live table: the step, the age of the step, the time that the "
        "server waited for the GIL, the processor time since the last look (100% is one core), and "
        "the memory. Each look finds the ranks anew. While ranks are in trouble, the verdict of "
        "diagnose stands above the table, and the ranks that the verdict names come first. If the "
        "terminal has no room for all ranks, ranks with equal values share a line. Keys: q ends "
        "the table, s sorts, / filters by words, states and ranks (no step 2-5), f folds equal "
        "ranks, the arrows scroll. "
        "A TARGET may be a folder of black boxes (docs/blackbox.md): then one table shows the last "
        "figures of the ranks, and how each rank ended. "
        "Exit status: 0 all workers answered the last look, 1 some, 2 none, 3 no job.",
        deadline=3.0,
        examples=(
            ("workerserver top", "the one job of this user on this machine"),
            ("workerserver top --every 10 --job train", "a look every ten seconds"),
            ("workerserver top --count 1 --json", "one look, for a program"),
            ("workerserver top /shared/boxes", "the last figures of a job that has ended"),
        ),
    )
    add_every(parser, 2.0)
    parser.add_json("one object for each look, on a line of its own")
    return parser


def main(argv: Sequence[str]) -> int:
    """The exit status of the last look: 0 if all workers answer, 1 if some do, 2 if none does, 3 if
    the job has ended."""
    options = make_parser().parse_intermixed_args(list(argv))
    if any(map(os.path.isdir, options.targets)):
        from workerserver.cli.boxes import boxes_of  # 15 ms

        boxes = boxes_of(options)
        if boxes is not None:
            return _of_boxes(options, boxes)
    return ask(options, _Top(options, find_one_job(options)).run)


def _of_boxes(options: argparse.Namespace, boxes: Boxes) -> int:
    """One table of the last figures in black boxes, with how each rank ended, and the verdict."""
    from workerserver.cli.blackbox import judged
    from workerserver.cli.boxes import status_of
    from workerserver.cluster.judge.ends import who_ended
    from workerserver.cluster.read.boxes.endings import ending

    looks = boxes.view.rounds
    table = rows(looks[-1], looks[-2] if len(looks) > 1 else None)
    endings = {box.path: ending(box) for box in boxes.run.boxes}
    for row in table:
        its = endings[row["address"]]
        row["text"] = who_ended(its)
        if its.kind != "alive":
            row["state"] = its.kind
    ended = judged(boxes.run)
    if options.json:
        suspects = [each.rank for each in ended.culprits]
        value = {"time": looks[-1].started, "workers": table, "verdict": ended.sentence}
        write_line(sys.stdout, {**value, "status": ended.status, "suspects": suspects})
    else:
        out = Output(sys.stdout)
        out.line(ended.sentence, STYLES[ended.status])
        for line in boxes.view.notes:
            out.line(line, "dim")
        out.table(HEADER, plain(table))
    return status_of(boxes, sum(row["answered"] for row in table))


def write_line(out: TextIO, fields: Mapping[str, Any]) -> None:
    out.write(json.dumps(printable(fields)) + "\n")


class _Top:
    """*answered*, *asked*, *last*: of the last look."""

    def __init__(self, options: argparse.Namespace, found: Found) -> None:
        self.options = options
        self.looker = Looker(found, self._find, every=options.every, most=options.count)
        self.out = Output(sys.stdout)
        self.view = View()
        self.picture: Picture | None = None
        self.judge = _Judge(options)
        self.name: str | None = None
        self.seen: set[str] = set()
        self.size: tuple[int, int] | None = None
        self.last: Look | None = None
        self.terminated = False

    async def run(self, client: Client) -> int:
        answered = asked = 0
        with self._shown(client):
            async for look in self.looker.looks(client, lambda: self._want(client), self._resized):
                before = self.last.round if self.last is not None else None
                table = rows(look.round, before, look.vanished, self.seen)
                self.judge.take(look, table)
                self.seen |= {row["address"] for row in table if row["answered"]}
                self.last = look
                answered, asked = sum(row["answered"] for row in table), len(table)
                self._name(look)
                self._show(look, table)
                if reader_left():
                    break
        if self.picture is not None and self.out.console is not None and not self.options.json:
            width, height = self.out.size or (80, 24)
            for text, style in draw(self.picture, self.view, width, height - 1, help=False):
                self.out.line(text, style)
        return share(answered, asked, self.last.round.states if self.last is not None else ())

    def _want(self, client: Client) -> Collection[Part]:
        """What to ask in the next look. All that a verdict needs gets more time than the health: a
        rank that is slow to answer is no suspect."""
        parts = self.judge.parts()
        client.deadline = self.options.deadline
        if parts is EVERYTHING:
            client.deadline = max(client.deadline, VERDICT_SECONDS)
        return parts

    # ---- the job

    def _find(self) -> Found:
        """The workers of the same job, once its name is known; else those of the newest one."""
        return find_all(self.options).of_job(self.name)

    def _name(self, look: Look) -> None:
        if self.name is None and look.round.states:
            views = by_job(self.options, look.found, [look.round])
            self.name = views[0].name if len(views) == 1 else None

    # ---- what is shown

    def _show(self, look: Look, table: Sequence[Row]) -> None:
        verdict = self.judge.verdict
        if self.options.json:
            value = {
                "time": look.round.started,
                "workers": table,
                "verdict": verdict.sentence if verdict is not None else None,
                "status": verdict.status if verdict is not None else None,
                "suspects": [each.rank for each in verdict.suspects] if verdict is not None else [],
            }
            write_line(sys.stdout, value)
        elif self.out.console is None:
            if verdict is not None:
                self.out.line(verdict.sentence)
            self.out.table(HEADER, plain(table))
            self.out.line()
        else:
            self.picture = self._picture(look, table)
            self._draw()
        sys.stdout.flush()

    def _picture(self, look: Look, table: Sequence[Row]) -> Picture:
        verdict = self.judge.verdict
        words = Counter(row["state"] for row in table)
        states = ", ".join(f"{count} {word}" for word, count in words.most_common())
        steps = [row["step"] for row in table if row["step"] is not None]
        at = ""
        if steps:
            low, high = min(steps), max(steps)
            at = f"  step {low}" if low == high else f"  steps {low}-{high}"
        clock = time.strftime("%H:%M:%S", time.localtime(look.round.started))
        ranks = f"{len(table)} rank{'s' * (len(table) != 1)}"
        head = f"{self.name or 'job'}  {ranks}: {states}{at}  {clock}"
        if not any(row["answered"] for row in table):
            head = f"{self.name or 'job'}  {look.why or 'nobody answers'}  {clock}"
        if verdict is None:
            return Picture(head, table)
        suspects = frozenset(each.rank for each in verdict.suspects if each.rank is not None)
        return Picture(head, table, verdict.sentence, STYLES[verdict.status], suspects)

    def _draw(self) -> None:
        self.size = self.out.size
        if self.picture is not None and self.size is not None:
            self.fill(draw(self.picture, self.view, *self.size))

    def _resized(self) -> None:
        if self.size is not None and self.out.size != self.size:
            self._draw()

    @contextlib.contextmanager
    def _shown(self, client: Client) -> Iterator[None]:
        """The terminal as ``top`` needs it."""
        if self.out.console is None or self.options.json:
            yield
            return

        def take(key: str) -> None:
            if not self.view.key(key):
                client.stop()
            self._draw()

        def end() -> None:
            self.terminated = True
            client.stop()

        loop = asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError, ValueError):  # this is not the main thread
            loop.add_signal_handler(signal.SIGTERM, end)
        try:
            with screen(self.out.console) as self.fill, keys(take):
                yield
        finally:
            with contextlib.suppress(RuntimeError, ValueError):
                loop.remove_signal_handler(signal.SIGTERM)
        if self.terminated:  # the terminal is as it was
            signal.raise_signal(signal.SIGTERM)


class _Judge:
    """When a look has to ask for all, and the verdict on those looks: as long as something is wrong
    that is new, and again after a while. No rank is asked for more than its health otherwise."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.verdict: Verdict | None = None
        self._history: deque[Round] = deque(maxlen=MAX_HISTORY)
        self._trouble: Counter[str] = Counter()
        self._wanted = self._asked = False
        self._due = 0.0  # on this process's clock

    def parts(self) -> Collection[Part]:
        self._asked = self._wanted and time.monotonic() >= self._due
        return EVERYTHING if self._asked else HEALTH

    def take(self, look: Look, table: Sequence[Row]) -> None:
        """Judge a look that asked for all, and decide what the next one has to ask."""
        trouble = Counter(row["state"] for row in table if row["state"] not in FINE)
        quiet = all(row["step"] is None and row["state"] != "starting" for row in table)
        if look.changed or trouble != self._trouble:
            self._due = 0.0
        if look.begins:
            self._history.clear()
        self._trouble = trouble
        over = all(row["state"] == "ended" for row in table)
        self._wanted = bool(look.round.states) and not over and (bool(trouble) or quiet)
        if not self._wanted:
            self._history.clear()
            self.verdict = None
        elif self._asked:
            self._history.append(look.round)
            views = by_job(self.options, look.found, list(self._history))
            verdict = judge(views, look.found)[0].verdict
            once = len(self._history) == 1
            enough = verdict.sure if once else verdict.again_s is None
            if enough or not once or verdict.status == 1:  # one look seldom tells
                self.verdict = verdict
            if enough or len(self._history) == MAX_HISTORY:
                self._due = time.monotonic() + AGAIN_SECONDS
