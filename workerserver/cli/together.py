"""``workerserver diagnose TARGET DIR``: one verdict from live ranks and black boxes together.

A rank that answers is judged by its answers. A rank that does not answer, but has left a box, is
judged by its box.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from workerserver.blackbox.read import Box
from workerserver.blackbox.runs import Problem, Run
from workerserver.cli.blackbox import read_runs
from workerserver.cli.errors import NoJobError
from workerserver.cli.job_command import Judged, by_job, find_all, look_at_all
from workerserver.cluster.ask.boxes.samples import rounds_of
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.find.discovery import Found
from workerserver.cluster.find.jobs import JobView
from workerserver.cluster.judge.ends import Ended, conclude
from workerserver.cluster.model import RankState
from workerserver.cluster.read.boxes.endings import ending
from workerserver.ranks import named

__all__ = ["Together", "judge_together"]

Judge = Callable[[Sequence[JobView[Round]], Found], list[Judged]]
Enough = Callable[[Sequence[JobView[Round]]], bool]


class Matched(NamedTuple):
    """A live job with the run of it that has left boxes. *living*: the ranks that answered, with
    their pids. *boxes*: those of ranks that did not answer."""

    view: JobView[Round]
    run: Run
    living: dict[int, int | None]
    boxes: list[Box]


class Together(NamedTuple):
    """*judged*: each job, the one with boxes first. *ended*: what its boxes tell; None if they are
    of another job."""

    judged: list[Judged]
    ended: Ended | None
    problems: list[Problem]


def judge_together(
    options: argparse.Namespace, folders: Sequence[str], judge: Judge, enough: Enough
) -> Together | None:
    """The verdict on the live job that the options name, with what its silent ranks have left in
    *folders*. None if nobody is alive."""
    runs, problems = read_runs(folders)
    try:
        found = find_all(options)
    except NoJobError:
        return None
    rounds = look_at_all(options, found, enough)
    views = by_job(options, found, rounds)
    if not any(state.responded for each in rounds[-1:] for state in each.states):
        return None
    matched = next((each for view in views if (each := match(view, runs)) is not None), None)
    if matched is None:
        names = ", ".join(sorted({run.job for run in runs})[:3]) or "no job that can be read"
        views[0].notes.append(f"the black boxes are of another job or run ({names}): not counted")
        return Together(judge(views, found), None, problems)
    living, boxes = matched.living, matched.boxes
    silent = [box for box in boxes if ending(box).kind == "alive"]
    view = replace(matched.view, rounds=_with_samples(matched.view.rounds, silent))
    view.notes = [*view.notes, *_notes(matched.run, living)]
    judged = judge([view if each is matched.view else each for each in views], found)
    of_view = next(each for each in judged if each.view is view)
    live = of_view.verdict
    ended = conclude([ending(box) for box in boxes], [], live, sorted(living))
    verdict = replace(live, sentence=ended.sentence, status=ended.status)
    if ended.culprits:
        verdict = replace(verdict, suspects=())
    others = [each for each in judged if each is not of_view]
    return Together([Judged(view, verdict), *others], ended, problems)


def match(view: JobView[Round], runs: Sequence[Run]) -> Matched | None:
    """The newest run that is surely of the live job."""
    states = [state for state in view.rounds[-1].states if state.responded] if view.rounds else []
    healths = [state.health for state in states if state.health is not None]
    for run in runs:
        if not any(
            (health.agent is not None and health.agent == box.identity.get("agent"))
            or (health.pid is not None and health.pid == box.pid)
            for health in healths
            for box in run.boxes
            if health.host == box.identity.get("host")
            and health.restart == box.number("restart")
            and health.job == run.job
        ):
            continue
        living = {
            state.rank: None if state.health is None else state.health.pid
            for state in states
            if state.rank is not None
        }
        boxes = [box for box in run.boxes if box.rank is not None and box.rank not in living]
        return Matched(view, run, living, boxes)
    return None


def _notes(run: Run, living: dict[int, int | None]) -> list[str]:
    """About the boxes of ranks that are alive, a line for each kind."""
    both = [box for box in run.boxes if box.rank in living]
    same = [box.rank for box in both if box.rank is not None and living[box.rank] == box.pid]
    other = [box.rank for box in both if box.rank is not None and living[box.rank] != box.pid]
    notes = []
    if same:
        are, have = ("is", "has") if len(same) == 1 else ("are", "have")
        notes.append(f"{named(same)} {are} alive and {have} a box: the answers count")
    if other:
        are, have = ("is", "has") if len(other) == 1 else ("are", "have")
        what = "a box of an earlier process: it is not counted"
        notes.append(f"{named(other)} {are} alive, and {have} {what}")
    return notes


def _with_samples(rounds: Sequence[Round], boxes: Sequence[Box]) -> list[Round]:
    """*rounds*, in which the samples of *boxes* stand for their silent ranks."""
    if not boxes:
        return list(rounds)
    samples = rounds_of(boxes)
    taken = []
    for back in range(len(rounds), 0, -1):
        said = {state.rank: state for state in samples[-min(back, len(samples))].states}
        states: list[RankState] = []
        for state in rounds[-back].states:
            own = said.pop(state.rank, None)
            states.append(state if own is None else own)
        taken.append(replace(rounds[-back], states=[*states, *said.values()]))
    return taken
