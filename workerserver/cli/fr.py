"""``workerserver fr``: the flight recorders of all ranks, for each process group."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from workerserver.cli.console import Output
from workerserver.cli.job_command import (
    add_backends,
    add_rounds,
    by_job,
    cost,
    find_some,
    job_parser,
    look,
    nobody,
    of_jobs,
    show_gone,
    show_job,
    write_json,
)
from workerserver.cli.parser import CommandParser
from workerserver.cluster.ask.rounds import Part, Round
from workerserver.cluster.failures import unusable
from workerserver.cluster.find.host_lists import unfold
from workerserver.cluster.find.jobs import JobView
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import RankState
from workerserver.cluster.show.report import verdict_dict
from workerserver.cluster.show.tree import short_fold
from workerserver.ranks import fold

__all__ = ["main", "render", "report"]

#: What the ranks are asked for.
ASKED: tuple[Part, ...] = ("health", "flight")
#: Rows and lines that a person sees without --all.
MAX_ROWS = 20


def make_parser() -> CommandParser:
    parser = job_parser(
        "fr",
        "Show the flight recorders of all ranks together. For each process group: the last issued "
        "and the last retired operation of each rank, which ranks wait for which ranks, and which "
        "operations differ. "
        "Exit status: 0 nothing hangs or differs, 1 something does, or a rank could not be read, "
        "2 no recorder has an entry, 3 no job. "
        "A TARGET may be a folder of black boxes (docs/blackbox.md). "
        "A TARGET may also name the files that torch's flight recorders have left "
        "(TORCH_FR_DUMP_TEMP_FILE): a prefix, a folder, or files.",
        examples=(
            ("workerserver fr", "all jobs of this user on this machine"),
            (
                "workerserver fr --all --hosts hosts.txt",
                "every process group of the workers in a file",
            ),
            ("workerserver fr /shared/boxes", "the last records of a job that has ended"),
            ("workerserver fr /tmp/nccl_trace_rank_", "what torch has left of a job that ended"),
        ),
    )
    add_rounds(parser, 1)
    add_backends(parser)
    parser.add_argument("--all", action="store_true", help="show every process group and position")
    parser.add_json("one object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0: nothing differs or hangs, 1: something does, or a rank's recorder could not be
    read, 2: no recorder has an entry, 3: no job."""
    options = make_parser().parse_intermixed_args(list(argv))
    if any(map(os.path.isdir, options.targets)):
        from workerserver.cli.boxes import boxes_of  # 15 ms

        boxes = boxes_of(options)
        if boxes is not None:
            return _of_boxes(options, boxes.view)
    if options.targets:
        from workerserver.cli.dumps import dumps_among

        dumps, others = dumps_among(options.targets)
        if dumps:
            return _of_dumps(options, dumps, others)
    found = find_some(options)
    rounds = look(options, found.workers, ASKED)
    views = by_job(options, found, rounds)
    parts = [report(view.rounds, view.world_size, view.elsewhere) for view in views]
    if options.json:
        write_json(sys.stdout, of_jobs(views, parts))
    else:
        out = Output(sys.stdout)
        for view, fields in zip(views, parts, strict=True):
            show_job(view, len(views), out)
            render(fields, out, everything=options.all)
    if all(nobody(view.rounds[-1].states) for view in views):
        return 3
    # Something hangs, or all recorders tell that nothing does.
    return min(map(_status, parts), key=(1, 2, 0).index)


def _of_boxes(options: argparse.Namespace, view: JobView[Round]) -> int:
    """The same of what black boxes hold: the last record of each rank's recorders."""
    fields = report(view.rounds[-1:], view.world_size, view.elsewhere)
    _show(options, view, fields)
    return _status(fields)


def _show(options: argparse.Namespace, view: JobView[Round], fields: dict[str, Any]) -> None:
    if options.json:
        write_json(sys.stdout, of_jobs([view], [fields]))
        return
    out = Output(sys.stdout)
    show_job(view, 1, out)
    render(fields, out, everything=options.all)


def _of_dumps(options: argparse.Namespace, paths: Sequence[str], others: Sequence[str]) -> int:
    """The same of files that torch's flight recorders have left."""
    from workerserver.cli.dumps import alone, read_all, unread_lines

    alone(options, others)
    view, dumps, unread = read_all(options, paths)
    fields = report(view.rounds, view.world_size, view.elsewhere)
    fields["problems"] = [*unread_lines(unread), *fields["problems"]]
    _show(options, view, fields)
    return _status(fields) if dumps else 2


def report(
    rounds: Sequence[Round], size: int | None = None, elsewhere: Collection[int] = ()
) -> dict[str, Any]:
    """The JSON form of the part of a verdict that needs no stacks."""
    fields = verdict_dict(diagnose(rounds, size, elsewhere, ASKED))
    parts = ("ranks", "responded", "unreachable", "process_groups", "not_looked_at", "problems")
    failures = [
        f"{'worker ' + state.worker.address if state.rank is None else f'rank {state.rank}'}: "
        f"{question}: {state.failures[question].reason}: {state.failures[question].text}"
        for state in rounds[-1].states
        for question in ("fr_summary", "flight")
        if state.responded and question in state.failures
    ]
    return {
        **{part: fields[part] for part in parts},
        "unread": fold(
            state.rank
            for state in rounds[-1].states
            if state.rank is not None and state.responded and not state.recorded
        ),
        "problems": [*failures, *fields["problems"]],
        "nothing": _why_nothing(rounds[-1].states, fields["process_groups"]),
        "time": rounds[-1].started,
        "cost": cost(rounds),
    }


def _why_nothing(
    states: Sequence[RankState], process_groups: Sequence[Mapping[str, Any]]
) -> str | None:
    """Why no flight recorder shows a collective; None if one does."""
    if _any_entry(process_groups):
        return None
    there = [state for state in states if unusable(state) is None]
    if not there:
        return f"0 of {len(states)} ranks answered"
    missing = [state.failures.get("fr_summary") for state in there if state.kind == "workerserver"]
    if len(missing) == len(there) and all(
        failure is not None and failure.reason == "missing" for failure in missing
    ):
        return "these processes have not loaded torch, so there is no flight recorder"
    return "no flight recorder shows a collective"


def _status(fields: Mapping[str, Any]) -> int:
    process_groups = fields["process_groups"]
    if not _any_entry(process_groups):
        return 2
    hangs = any(wait["hangs"] for group in process_groups for wait in group["waits"])
    differs = any(group["mismatch"] for group in process_groups)
    return 1 if hangs or differs or fields["unreachable"] or fields["unread"] else 0


def _any_entry(process_groups: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        each["last_issued"] is not None or group["waits"]
        for group in process_groups
        for each in group["positions"]
    )


def render(fields: Mapping[str, Any], out: Output, *, everything: bool = False) -> None:
    """Print a table for each process group, groups with trouble first."""
    most = None if everything else MAX_ROWS
    process_groups = fields["process_groups"]
    out.line(
        f"{fields['responded']} of {fields['ranks']} ranks answered, process groups: "
        f"{len(process_groups)}",
        "bold",
    )
    show_gone(out, fields["unreachable"])
    for line in fields["problems"][:most]:
        out.line(line, "yellow")
    if not _any_entry(process_groups):
        out.line(fields["nothing"], "yellow")
    for line in fields["not_looked_at"][:most]:
        out.line(f"not looked at: {line}", "dim")
    for group in process_groups[:most]:
        out.line()
        _show_group(group, out, most)
    if most is not None and len(process_groups) > most:
        out.line(f"... and {len(process_groups) - most} more process groups (--all)")


def _show_group(group: Mapping[str, Any], out: Output, most: int | None) -> None:
    names = " ".join(filter(None, (group["desc"], f"({group['name']})", group["backend"])))
    known = "" if group["complete"] else ", as far as they have issued anything"
    out.line(f"{names}: ranks {_short(group['ranks'])}{known}", "bold")
    positions = group["positions"]
    out.table(
        ("RANKS", "LAST ISSUED", "LAST RETIRED"),
        [
            (
                _short(each["ranks"]),
                _operation(each["last_issued"]),
                _operation(each["last_retired"]),
            )
            for each in positions[:most]
        ],
    )
    if most is not None and len(positions) > most:
        out.line(f"... and {len(positions) - most} more positions (--all)")
    for wait in group["waits"][:most]:
        operation = _operation(wait)
        text = f"{operation}: ranks {_short(wait['waiting'])} wait"
        if wait["absent"]:
            text += f" for {_short(wait['absent'])}"
        if wait["silent"]:
            text += f"; nothing is known of {_short(wait['silent'])}"
        out.line(f"{text}; it hangs" if wait["hangs"] else text, "red" if wait["hangs"] else "")
    mismatch = group["mismatch"]
    if mismatch is not None:
        out.line(f"#{mismatch['seq']} differs ({mismatch['kind']})", "red")
        for party in mismatch["parties"]:
            out.line(f"  ranks {_short(party['ranks'])}: {party['operation']}", "red")


def _operation(brief: Mapping[str, Any] | None) -> str:
    if brief is None:
        return "-"
    name = str(brief["collective"])
    return name if brief["seq"] is None else f"{name} #{brief['seq']}"


def _short(folded: str) -> str:
    """Folded ranks, cut if they are too long for a line."""
    return folded if len(folded) <= 60 else short_fold(unfold(folded))
