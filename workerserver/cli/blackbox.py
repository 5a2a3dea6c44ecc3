"""``workerserver blackbox``: list what the ranks of a job have left behind."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from workerserver.blackbox.runs import Problem, Run, runs_in
from workerserver.cli.console import STYLES, Output
from workerserver.cli.errors import NoJobError, UsageError
from workerserver.cli.job_command import cost, write_json
from workerserver.cli.parser import CommandParser
from workerserver.cluster.ask.boxes.samples import rounds_of
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.ends import Ended, conclude, place_text, who_ended
from workerserver.cluster.judge.verdict import over
from workerserver.cluster.read.boxes.counters import waited
from workerserver.cluster.read.boxes.endings import Ending, ending, raised_before
from workerserver.cluster.show.report import verdict_dict

__all__ = [
    "box_fields",
    "judge_boxes",
    "main",
    "make_parser",
    "notes_on",
    "read_runs",
    "show_endings",
    "show_problems",
    "title",
]

MAX_LINES = 40


def make_parser() -> CommandParser:
    parser = CommandParser(
        "blackbox",
        description="List the black boxes in a folder: rank, last step, how and when the rank "
        "ended. Exit status: 0 all could be read, 1 some, 2 none, 3 there are none.",
        epilog="workerserver diagnose DIR says which rank ended first, and why. docs/blackbox.md "
        "says what is in a box, and how a job gets boxes.",
        examples=(
            ("workerserver blackbox /shared/boxes", "the last run"),
            ("workerserver blackbox --all /shared/boxes", "all runs that are kept"),
        ),
    )
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="the folder that WORKERSERVER_BLACKBOX named"
    )
    parser.add_argument("--all", action="store_true", help="earlier runs, too")
    parser.add_json("one object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0: all boxes could be read, 1: some, 2: none; 3: there are none."""
    options = make_parser().parse_intermixed_args(list(argv))
    runs, problems = read_runs(options.folders)
    shown = runs if options.all else runs[:1]
    if options.json:
        fields = {
            "runs": [_run_dict(run) for run in shown],
            "problems": [_problem_dict(each) for each in problems],
        }
        write_json(sys.stdout, fields)
    else:
        out = Output(sys.stdout)
        for run in shown:
            _show_run(run, out)
        if len(shown) < len(runs):
            out.line(f"{len(runs) - len(shown)} earlier runs (--all)", "dim")
        show_problems(problems, out)
    if not runs:
        return 2
    return 1 if problems else 0


def read_runs(folders: Sequence[str]) -> tuple[list[Run], list[Problem]]:
    """NoJobError if there is no box, UsageError if a folder can't be read."""
    try:
        runs, problems = runs_in(folders)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    if not runs and not problems:
        raise NoJobError(f"no black box in {', '.join(folders)}")
    return runs, problems


# ---- the verdict


def judge_boxes(folders: Sequence[str], *, as_json: bool, dumps: Sequence[str] = ()) -> int:
    """What ``workerserver diagnose DIR`` prints of the newest run, and its exit status. *dumps*:
    files that torch's recorders have left beside the boxes."""
    runs, problems = read_runs(folders)
    notes = notes_on(runs[0]) if runs else []
    ended = judged(runs[0], dumps, notes) if runs else conclude([], [], None)
    if as_json:
        write_json(sys.stdout, verdict_of(ended, runs[0] if runs else None, problems, notes))
    else:
        _show_verdict(ended, runs, problems, notes, Output(sys.stdout))
    return ended.status


def judged(run: Run, dumps: Sequence[str] = (), notes: list[str] | None = None) -> Ended:
    """*notes* gets lines on the *dumps*."""
    endings = [ending(box) for box in run.boxes]
    # What the last samples would have told of the job while it lived.
    rounds = rounds_of(run.boxes)
    if dumps:
        from workerserver.cli.dumps import beside_boxes

        rounds, told = beside_boxes(rounds, run.boxes, dumps)
        (notes if notes is not None else []).extend(told)
    live = diagnose(rounds, run.world_size) if rounds else None
    return conclude(endings, run.missing, live, old_s=_age(run))


def _age(run: Run) -> float | None:
    """Seconds since something of the *run* was written; None if that is not known. Clocks may
    differ: of the file's own time and what is written in the box, the one that is further away
    counts."""
    ages = []
    now = time.time()
    for box in run.boxes:
        if box.keeper is None:  # it is mapped memory of this host
            written = [] if box.time is None else [box.time]
        else:
            written = [] if box.copied is None else [box.copied]
            with contextlib.suppress(OSError):
                written.append(os.stat(box.path).st_mtime)
        if written:
            ages.append(max(abs(now - each) for each in written))
    return min(ages, default=None)


def verdict_of(
    ended: Ended, run: Run | None, problems: Sequence[Problem], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of a verdict on live workers, and those of the boxes."""
    fields = verdict_dict(over("") if ended.live is None else ended.live)
    if ended.culprits or ended.status != 1:
        fields["suspects"] = []
    return {
        **fields,
        "status": ended.status,
        "verdict": ended.sentence,
        "time": None if run is None else run.ended,
        "cost": cost([]),
        "job": None if run is None else run.job,
        "leftovers": [],
        "notes": list(notes),
        "other_jobs": [],
        **box_fields(ended, problems),
    }


def box_fields(ended: Ended | None, problems: Sequence[Problem]) -> dict[str, Any]:
    """What a verdict's JSON tells of boxes. *ended* None: no box counts."""
    return {
        "culprits": [] if ended is None else [_ending_dict(each) for each in ended.culprits],
        "boxes": [] if ended is None else [_ending_dict(each) for each in ended.endings],
        "without_box": [] if ended is None else list(ended.missing),
        "unreadable": [_problem_dict(each) for each in problems],
    }


def _show_verdict(
    ended: Ended,
    runs: Sequence[Run],
    problems: Sequence[Problem],
    notes: Sequence[str],
    out: Output,
) -> None:
    out.line(ended.sentence, STYLES[ended.status])
    if runs:
        out.line(title(runs[0]), "dim")
    for line in notes:
        out.line(line, "dim", 2)
    if not ended.culprits and ended.live is not None and ended.status == 1:
        for suspect in verdict_dict(ended.live)["suspects"]:
            out.line()
            out.line(f"rank {suspect['rank']}: {suspect['reason']}", "bold red")
            for line in suspect["evidence"]:
                out.line(f"  - {line}")
    show_endings(ended, out)
    show_problems(problems, out)


def show_endings(ended: Ended, out: Output) -> None:
    """The culprits with their tracebacks, and one line for each box."""
    for each in ended.culprits:
        _show_culprit(each, out)
    out.line()
    out.line("how the ranks ended", "bold")
    for each in ended.endings[:MAX_LINES]:
        _show_ending(each, out)
    if len(ended.endings) > MAX_LINES:
        out.line(f"  ... and {len(ended.endings) - MAX_LINES} more (workerserver blackbox)")


def _show_ending(each: Ending, out: Output) -> None:
    out.line(f"  {who_ended(each)}")
    for text in raised_before(each.box):
        out.line(f"    before: {text}", "dim")
    for wait in waited(each.box):
        at = time.strftime("%H:%M:%S", time.localtime(wait.since or wait.at))
        since = f"since {at}" if wait.since is not None else f"at {at}"
        out.line(f"    waited in {wait.counter} {since} (torch's wait counters)", "dim")


def _show_culprit(each: Ending, out: Output) -> None:
    out.line()
    out.line(who_ended(each), "bold red")
    out.line(f"  {'box:':<10}{each.box.path}")
    for end in each.box.ends:
        trace = end.value.get("traceback")
        if end.value.get("why") == "exception" and isinstance(trace, str):
            for line in trace.splitlines()[-20:]:
                out.line(f"  {line}")


# ---- the list


def title(run: Run) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.began))
    size = run.world_size
    ranks = "" if size is None else f", {size} rank{'s' * (size != 1)}"
    again = f", restart {run.restart}" if run.restart else ""
    boxes = f"{len(run.boxes)} box{'es' * (len(run.boxes) != 1)}"
    return f"job {run.job}, began {began}{ranks}{again}, {boxes}"


def notes_on(run: Run) -> list[str]:
    """What has to be known of a run's times."""
    if run.clocks_differ_s is None:
        return []
    differ = f"{run.clocks_differ_s:,.0f} s"
    return [f"the clocks of its hosts differ by about {differ}: each time is by its own host's"]


def _show_run(run: Run, out: Output) -> None:
    out.line(title(run), "bold")
    for line in notes_on(run):
        out.line(line, "dim", 2)
    for box in run.boxes:
        _show_ending(ending(box), out)
    if run.missing:
        names = ", ".join(map(str, run.missing[:20]))
        out.line(f"  no box of ranks {names}{', ...' if len(run.missing) > 20 else ''}", "yellow")
    if run.older:
        out.line(f"  {len(run.older)} boxes of earlier processes of these ranks", "dim")


def show_problems(problems: Sequence[Problem], out: Output) -> None:
    for each in problems[:MAX_LINES]:
        out.line(f"{each.path}: {each.text}", "yellow")
    if len(problems) > MAX_LINES:
        out.line(f"... and {len(problems) - MAX_LINES} more", "yellow")


def _run_dict(run: Run) -> dict[str, Any]:
    return {
        "job": run.job,
        "restart": run.restart,
        "world_size": run.world_size,
        "began": run.began,
        "boxes": [_ending_dict(ending(box)) for box in run.boxes],
        "without_box": run.missing,
        "older": [box.path for box in run.older],
    }


def _ending_dict(each: Ending) -> dict[str, Any]:
    place = each.place
    return {
        "rank": each.rank,
        "host": each.host,
        "pid": each.pid,
        "end": each.kind,
        "text": who_ended(each),
        "time": each.time,
        "last_written": each.box.time,
        "step": each.step,
        "location": None
        if place is None
        else {"file": place.file, "line": place.line, "function": place.function},
        "place": place_text(each) or None,
        "waited": [wait._asdict() for wait in waited(each.box)],
        "torn": each.box.torn,
        "path": each.box.path,
    }


def _problem_dict(each: Problem) -> dict[str, Any]:
    return {"path": each.path, "rank": each.rank, "text": each.text}
