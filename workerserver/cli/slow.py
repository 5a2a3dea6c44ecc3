"""``workerserver slow``: which rank the others wait for, how often, and by how much."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from workerserver.cli.console import STYLES, Output, counting
from workerserver.cli.errors import UsageError
from workerserver.cli.job_command import (
    ask,
    find_one,
    job_parser,
    name,
    nobody,
    show_gone,
    unreachable,
    world_size,
    write_json,
)
from workerserver.cli.parser import CommandParser
from workerserver.cli.text import count
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.full.histories import History, histories
from workerserver.cluster.failures import unusable
from workerserver.cluster.judge.flight import combine
from workerserver.cluster.judge.sentences import MANY, came_last, duration
from workerserver.cluster.judge.slow.arrivals import LAST, Source, all_series
from workerserver.cluster.judge.slow.pace import same_pace, series_of_steps, usual_steps
from workerserver.cluster.judge.slow.stragglers import slow_fact
from workerserver.cluster.judge.slow.study import MIN_OPERATIONS, Finding, Standing, Study, compare
from workerserver.cluster.model import Worker
from workerserver.cluster.read.steps import Pace
from workerserver.cluster.show.tree import short_fold
from workerserver.ranks import fold

__all__ = ["Answers", "ask_all", "main", "render", "report", "weigh"]

#: Each rank sends its whole recorder: more ranks would not fit into memory.
MAX_RANKS = 1024
#: Rows of a table, tables and lines that a person sees without --all.
MAX_ROWS = 16
MAX_TABLES = 4
#: A recorder holds no more operations.
MAX_LAST = 20_000

HEADER = ("RANK", "CAME LAST", "BY (MEDIAN)", "USUALLY", "STEP")


class Answers(NamedTuple):
    """What was asked and what came: *size* is how many ranks there have to be, if that is known.
    *boxes*: what is to be said of black boxes, if nobody was asked and they were read instead."""

    histories: Sequence[History]
    size: int | None
    started: float = 0.0
    seconds: float = 0.0
    questions: int = 0
    bytes_received: int = 0
    boxes: tuple[str, ...] = ()


class Weighed(NamedTuple):
    study: Study
    paces: Mapping[int, Pace]
    notes: Sequence[str]
    sentence: str
    status: int


def make_parser() -> CommandParser:
    parser = job_parser(
        "slow",
        "Say which rank comes last to the operations, how often and by how much, from the flight "
        "recorders and the step times of all ranks. A rank is named only if chance would name one "
        "of equal ranks in at most one of 1,000 jobs. "
        "A TARGET may be a folder of black boxes (docs/blackbox.md), which hold step times. "
        "Exit status: 0 no rank is slow, 1 at least one is, 2 could not tell, 3 no job.",
        examples=(
            ("workerserver slow", "the one job of this user on this machine"),
            (
                "workerserver slow --job train --last 2000",
                "more operations: smaller delays can be told from chance",
            ),
            ("workerserver slow /shared/boxes", "the last step times of a job that has ended"),
        ),
    )
    parser.add_argument(
        "--last",
        type=count,
        default=LAST,
        metavar="N",
        help=f"operations of each process group that are looked at (default {LAST})",
    )
    parser.add_argument("--all", action="store_true", help="show every rank and process group")
    parser.add_json("one object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0: no rank is slow, 1: at least one is, 2: could not tell, 3: no job."""
    options = make_parser().parse_intermixed_args(list(argv))
    if not MIN_OPERATIONS <= options.last <= MAX_LAST:
        raise UsageError(f"--last: {MIN_OPERATIONS} to {MAX_LAST} operations")
    answers = _of_boxes(options)
    if answers is None:
        answers = ask_all(options, find_one(options), options.last)
    weighed = weigh(answers)
    if options.json:
        write_json(sys.stdout, report(answers, weighed))
    else:
        render(answers, weighed, Output(sys.stdout), everything=options.all)
    return weighed.status


def _of_boxes(options: argparse.Namespace) -> Answers | None:
    """The step times in black boxes; None if the options name none."""
    if not any(map(os.path.isdir, options.targets)):
        return None
    from workerserver.cli.boxes import boxes_of  # 15 ms
    from workerserver.cluster.ask.boxes.samples import paces_of

    boxes = boxes_of(options)
    if boxes is None:
        return None
    look = boxes.view.rounds[-1]
    paces = paces_of(boxes.run.boxes)
    histories = [History(state, pace=paces.get(state.worker.address)) for state in look.states]
    notes = (*boxes.view.notes, "black boxes hold step times, and no times of operations")
    return Answers(histories, boxes.run.world_size, look.started, boxes=notes)


def ask_all(options: argparse.Namespace, workers: Sequence[Worker], last: int = LAST) -> Answers:
    """The histories of all workers, of the *last* operations of each process group."""
    started, clock = time.time(), time.monotonic()

    async def everybody(client: Client) -> Answers:
        found = await histories(workers, client, last, done, MAX_RANKS)
        seconds = time.monotonic() - clock
        size = world_size(options, workers)
        return Answers(found, size, started, seconds, client.questions, client.bytes_received)

    with counting("asking", len(workers)) as done:
        return ask(options, everybody)


def weigh(answers: Answers) -> Weighed:
    """What the answers show, and the exit status."""
    known = {
        each.state.rank: each
        for each in answers.histories
        if each.state.rank is not None and unusable(each.state) is None
    }
    records = {rank: each.record for rank, each in known.items() if each.record is not None}
    paces = {rank: each.pace for rank, each in known.items() if each.pace is not None}
    sources = {
        rank: Source(each.state.worker.host, paces.get(rank)) for rank, each in known.items()
    }
    analysis = combine(records, answers.size)
    series = all_series(analysis.groups, sources)
    by_steps = series_of_steps(paces) if not series else None
    study = compare([*series, by_steps] if by_steps is not None else series)
    notes = [*_notes(study), *_missing(answers, known, records, study)]
    if by_steps is not None and same_pace(paces):
        usual = usual_steps(paces)
        notes.append(
            f"the steps of all ranks take equally long ({duration(min(usual.values()))}): if the "
            "ranks wait for each other at each step, step times can't tell who is slow"
        )
    sentence, status = _verdict(study, answers, notes)
    return Weighed(study, paces, notes, sentence, status)


def _verdict(study: Study, answers: Answers, notes: Sequence[str]) -> tuple[str, int]:
    named = study.named
    if answers.histories and nobody(each.state for each in answers.histories):
        return "no job here: nobody listens at any of these addresses", 3
    if named:
        texts = [_text(*each) for each in named]
        return "; ".join(texts[:MAX_TABLES]) + ("; ..." if len(texts) > MAX_TABLES else ""), 1
    if not study.findings:
        return "could not tell: no operations or steps of two ranks can be compared", 2
    if notes or not all(finding.enough for finding in study.findings):
        ranks = sorted({rank for each in study.findings for rank in each.series.ranks})
        return f"could not tell: of ranks {short_fold(ranks)} none stands out so far", 2
    operations = sum(finding.series.operations for finding in study.findings)
    return f"no rank is slow: in {operations} operations none came last too often", 0


def _text(finding: Finding, standing: Standing) -> str:
    return f"rank {standing.rank} {came_last(slow_fact(finding, standing))}"


def _notes(study: Study) -> list[str]:
    """What the comparison does not rest on."""
    notes = []
    hosts: dict[str, int] = {}
    for finding in study.findings:
        series = finding.series
        label = _label(finding)
        if series.queued:
            notes.append(
                f"{label}: the times are those at which operations were given to a GPU, which may "
                "have run behind; TORCH_NCCL_ENABLE_TIMING=1 in the job's environment tells more"
            )
        if series.group is not None and len(series.among) < len(series.group.ranks):
            hosts[label] = hosts.get(label, 0) + 1
        if not finding.enough and not finding.slow:
            notes.append(
                f"{label}: {series.operations} operations on {len(series.occasions)} occasions are "
                "too few to tell"
            )
    notes += [
        f"{label}: clocks of different hosts are not compared, so ranks are compared within "
        f"{number} host{'s' * (number > 1)}; with heartbeat(step) at the start of each step they "
        "can be compared each by its own clock"
        for label, number in hosts.items()
    ]
    return list(dict.fromkeys(notes))


def _missing(
    answers: Answers, known: Mapping[int, History], records: Mapping[int, Any], study: Study
) -> list[str]:
    """Which ranks could not be compared, and why."""
    notes = []
    by_operations = [each.series for each in study.findings if each.series.group is not None]
    compared = {rank for series in by_operations for rank in series.ranks}
    alone = sorted(set(known) - compared)
    empty = [rank for rank in alone if rank not in records or records[rank].empty]
    if answers.boxes:  # they have no times of operations
        stepped = {rank for each in study.findings for rank in each.series.ranks}
        alone, empty = sorted(set(alone) - stepped), []
    if empty:
        notes.append(
            f"no recorded operations of ranks {short_fold(empty)}: set TORCH_FR_BUFFER_SIZE=2000 "
            "in the job's environment"
        )
    others = sorted(set(alone) - set(empty))
    if others:
        notes.append(f"nothing to compare ranks {short_fold(others)} with")
    silent = len(answers.histories) - len(known)
    if silent:
        notes.append(f"{silent} workers gave no usable answer, or don't know their rank")
    if answers.size is not None and len(answers.histories) < answers.size:
        notes.append(f"{answers.size - len(answers.histories)} ranks were not found")
    return notes


def _label(finding: Finding) -> str:
    return finding.series.group.label if finding.series.group is not None else "steps"


# ---- what is written


def report(answers: Answers, weighed: Weighed) -> dict[str, Any]:
    """The whole report, for JSON."""
    states = [each.state for each in answers.histories]
    gone = unreachable(states)
    usual = usual_steps(weighed.paces)
    return {
        "verdict": weighed.sentence,
        "status": weighed.status,
        "ranks": max(len(states), answers.size or 0),
        "responded": len(states) - len(gone),
        "unreachable": gone,
        "slow": [
            {
                "rank": standing.rank,
                "process_group": _label(finding) if finding.series.group is not None else None,
                "text": _text(finding, standing),
                **_standing_dict(standing),
            }
            for finding, standing in weighed.study.named
        ],
        "compared": [_finding_dict(each) for each in weighed.study.findings],
        "steps": [
            {"rank": rank, "steps": len(pace.steps), "median_s": usual.get(rank)}
            for rank, pace in sorted(weighed.paces.items())
        ],
        "notes": [*answers.boxes, *weighed.notes],
        "problems": _problems(answers),
        "time": answers.started,
        "cost": {
            "rounds": 1,
            "seconds": round(answers.seconds, 6),
            "questions": answers.questions,
            "bytes_received": answers.bytes_received,
        },
    }


def _finding_dict(finding: Finding) -> dict[str, Any]:
    series = finding.series
    return {
        "process_group": series.group.label if series.group is not None else None,
        "ranks": fold(series.ranks),
        "basis": "queue" if series.queued else series.basis,
        "operation": series.name or None,
        "operations": sum(each.operations for each in finding.occasions),
        "occasions": len(finding.occasions),
        "all_waits": finding.all_waits,
        "every_s": round(finding.every_s, 6),
        "enough": finding.enough,
        "standings": [
            {"rank": each.rank, **_standing_dict(each), "slow": each.slow}
            for each in finding.standings
        ],
    }


def _standing_dict(standing: Standing) -> dict[str, Any]:
    late = standing.late_interval
    return {
        "came_last": standing.last,
        "share": round(standing.share, 4),
        "share_interval": [round(each, 4) for each in standing.share_interval],
        "late_s": None if standing.late_s is None else round(standing.late_s, 6),
        "late_interval_s": None if late is None else [round(each, 6) for each in late],
        "behind_s": round(standing.behind_s, 6),
        "chance": standing.chance,
    }


def _problems(answers: Answers) -> list[str]:
    return [
        f"{name(each.state)}: {question}: {failure.reason}: {failure.text}"
        for each in answers.histories
        for question, failure in sorted(each.failures.items())
    ]


def render(answers: Answers, weighed: Weighed, out: Output, *, everything: bool = False) -> None:
    """Print the sentence, a table for each process group, and what is not known."""
    states = [each.state for each in answers.histories]
    gone = unreachable(states)
    out.line(weighed.sentence, STYLES[weighed.status])
    if not answers.boxes:
        out.line(
            f"{len(states) - len(gone)} of {max(len(states), answers.size or 0)} ranks answered; "
            f"{answers.questions} questions, {answers.bytes_received} bytes, "
            f"{answers.seconds:.1f} s",
            "dim",
        )
    show_gone(out, gone)
    findings = sorted(
        weighed.study.findings, key=lambda each: (not each.slow, -len(each.occasions))
    )
    shown = findings if everything else findings[:MAX_TABLES]
    for finding in shown:
        out.line()
        _show(finding, usual_steps(weighed.paces), out, everything=everything)
    if len(shown) < len(findings):
        out.line(f"... and {len(findings) - len(shown)} more process groups (--all)")
    lines = [*answers.boxes, *weighed.notes, *_problems(answers)]
    if lines:
        out.line()
    for line in lines if everything else lines[:MAX_ROWS]:
        out.line(line, "yellow")


def _show(finding: Finding, usual: Mapping[int, float], out: Output, *, everything: bool) -> None:
    series = finding.series
    operations = sum(each.operations for each in finding.occasions)
    which = f"{operations} {series.name or 'operation'}s"
    if operations > MANY * len(finding.occasions):
        which += f" on {len(finding.occasions)} occasions"
    every = f"one every {duration(finding.every_s)}" if finding.every_s else "one"
    out.line(f"{_label(finding)}: ranks {short_fold(series.ranks)}, {which}, {every}", "bold")
    rows = sorted(finding.standings, key=lambda each: (not each.slow, -each.share, each.rank))
    shown = rows if everything else rows[:MAX_ROWS]
    out.table(HEADER, [_row(each, usual) for each in shown])
    if len(shown) < len(rows):
        out.line(f"... and {len(rows) - len(shown)} more ranks (--all)")


def _row(standing: Standing, usual: Mapping[int, float]) -> tuple[str, ...]:
    low, high = standing.share_interval
    by = "-"
    if standing.late_s is not None and standing.late_interval is not None:
        least, most = map(duration, standing.late_interval)
        by = f"{duration(standing.late_s)} ({least} to {most})"
    step = usual.get(standing.rank)
    sign = "-" if standing.behind_s < 0 else "+"
    return (
        str(standing.rank),
        f"{standing.share * 100:.0f} % ({low * 100:.0f} to {high * 100:.0f})",
        by,
        f"{sign}{duration(abs(standing.behind_s))}",
        "-" if step is None else duration(step),
    )
