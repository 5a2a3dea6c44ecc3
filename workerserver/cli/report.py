"""``workerserver report``: a verdict as one HTML page that explains itself."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workerserver.blackbox.read import Box
from workerserver.cli.blackbox import box_fields, judged, read_runs, verdict_of
from workerserver.cli.boxes import divided
from workerserver.cli.console import STYLES, Output
from workerserver.cli.diagnose import judge_beside, judge_live, report_all
from workerserver.cli.job_command import (
    add_backends,
    add_rounds,
    ask,
    job_parser,
    versioned,
    write_json,
)
from workerserver.cli.output_file import is_plain, whole
from workerserver.cli.parser import CommandParser
from workerserver.cli.places import is_place_named
from workerserver.cluster.ask.boxes.samples import rounds_of
from workerserver.cluster.ask.client import Client, Visit
from workerserver.cluster.ask.full.histories import STEPS
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.judge.ends import conclude
from workerserver.cluster.model import RankState
from workerserver.cluster.read.steps import Pace, read_steps
from workerserver.cluster.show.page.document import MAX_PACES
from workerserver.cluster.show.page.page import report_page

__all__ = ["main", "make_parser"]


@dataclass
class Told:
    """A verdict as ``diagnose --json`` prints it, and what the page has beside it."""

    fields: Mapping[str, Any]
    rounds: Sequence[Round] = ()
    paces: dict[int, Pace] = field(default_factory=dict)
    commands: dict[int, str] = field(default_factory=dict)
    samples: Sequence[RankState] = ()


def make_parser() -> CommandParser:
    parser = job_parser(
        "report",
        "Write the verdict on a job as one HTML page. The page has the verdict, since when the job "
        "hangs, how sure that is, text for a ticket, a map of the ranks, the process groups, all "
        "stacks as a picture, the last steps, and a card for each suspect. The page is one file "
        "that loads nothing and sends nothing. A TARGET may be a folder of black boxes. "
        "Exit status, as of diagnose: 0 healthy, 1 suspects found, 2 could not tell, 3 there is no "
        "job, or the job has ended.",
        examples=(
            ("workerserver report -o report.html", "the one job of this user on this machine"),
            ("workerserver report -o report.html /shared/boxes", "a job that has ended"),
            (
                "workerserver report --redact -o report.html --job train",
                "a page for strangers, without paths, host names and command lines",
            ),
        ),
    )
    parser.add_argument("-o", dest="output", required=True, metavar="FILE", help="the page's file")
    parser.add_argument(
        "--redact",
        action="store_true",
        help="replace paths, host names and addresses, and leave out command lines and the job's "
        "name. What a program says in its own words stays: read the page before you publish it",
    )
    add_rounds(parser, None)
    add_backends(parser)
    parser.add_json("one object about the page")
    return parser


def main(argv: Sequence[str]) -> int:
    """The exit status of the verdict."""
    options = make_parser().parse_intermixed_args(list(argv))
    targets = list(options.targets)
    boxes: list[str] = []
    if any(map(os.path.isdir, targets)):
        boxes, options.targets = divided(targets)
    told = _told(options, boxes)
    page = report_page(
        versioned(told.fields),
        told.rounds,
        told.paces,
        targets=targets,
        commands=told.commands,
        samples=told.samples,
        redact=options.redact,
    ).encode()
    with whole(options.output) as file:
        file.write(page)
    verdict, status = told.fields["verdict"], told.fields["status"]
    if options.json:
        about = {"file": options.output, "bytes": len(page), "redacted": options.redact}
        kept = {name: told.fields[name] for name in ("verdict", "status", "job", "ranks")}
        write_json(sys.stdout, {**about, **kept})
    elif is_plain(options.output):  # else the page itself may be on the terminal
        out = Output(sys.stdout)
        out.line(verdict, STYLES[status])
        out.line(f"{options.output}: {len(page)} bytes", "bold")
    return int(status)


def _told(options: argparse.Namespace, boxes: Sequence[str]) -> Told:
    if not boxes:
        return _live(options)
    if options.targets or is_place_named(options):
        told = _together(options, boxes)
        if told is not None:
            return told
    return _boxes(boxes)


def _live(options: argparse.Namespace) -> Told:
    every = judge_live(options)
    looks = every[0].view.rounds
    paces = _paces(options, looks[-1].states, every[0].verdict.suspects) if looks else {}
    return Told(report_all(every), looks, paces)


def _together(options: argparse.Namespace, folders: Sequence[str]) -> Told | None:
    """None if nobody is alive."""
    both = judge_beside(options, folders)
    if both is None:
        return None
    view, verdict = both.judged[0]
    told = Told({**report_all(both.judged), **box_fields(both.ended, both.problems)}, view.rounds)
    boxes = [each.box for each in both.ended.endings] if both.ended is not None else []
    _add_boxes(told, boxes)
    told.paces.update(_paces(options, view.rounds[-1].states, verdict.suspects))
    return told


def _boxes(folders: Sequence[str]) -> Told:
    runs, problems = read_runs(folders)
    if not runs:
        return Told(verdict_of(conclude([], [], None), None, problems))
    run = runs[0]
    told = Told(verdict_of(judged(run), run, problems), rounds_of(run.boxes))
    _add_boxes(told, run.boxes)
    return told


def _add_boxes(told: Told, boxes: Sequence[Box]) -> None:
    if boxes:
        told.samples = rounds_of(boxes)[-1].states
    for box in boxes:
        if box.rank is None:
            continue
        argv = box.identity.get("argv")
        if isinstance(argv, list) and all(isinstance(each, str) for each in argv):
            told.commands[box.rank] = shlex.join(argv)
        if box.steps is not None:
            with contextlib.suppress(ValueError):  # then this rank has no row of steps
                told.paces[box.rank] = read_steps(box.steps.value)


def _paces(
    options: argparse.Namespace, states: Sequence[RankState], suspects: Sequence[Any]
) -> dict[int, Pace]:
    """The last steps of the suspects, and of the ranks whose last step is the oldest."""
    accused = {each.rank for each in suspects}
    stepping = [
        state
        for state in states
        if state.responded
        and state.rank is not None
        and state.health is not None
        and state.health.step_age_s is not None
        and not state.worker.address.endswith(".box")
    ]
    stepping.sort(key=lambda each: (each.rank not in accused, -_age(each), each.rank or 0))
    ranks = {state.worker: state.rank for state in stepping[:MAX_PACES]}

    async def talk(visit: Visit) -> Pace:
        pace: Pace = await visit.ask(STEPS)
        return pace

    async def everybody(client: Client) -> dict[int, Pace]:
        answers = await client.visit(list(ranks), talk)
        found = {ranks[worker]: pace for worker, pace in answers.items() if isinstance(pace, Pace)}
        return {rank: pace for rank, pace in found.items() if rank is not None}

    return ask(options, everybody) if ranks else {}


def _age(state: RankState) -> float:
    age = state.health.step_age_s if state.health is not None else None
    return -1.0 if age is None else age
