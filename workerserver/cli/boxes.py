"""Folders of black boxes as TARGETs of ``stacks``, ``fr``, ``top`` and ``slow``: what the ranks of
the newest run left last, in place of answers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NamedTuple

from workerserver.blackbox.runs import Problem, Run, holds_boxes
from workerserver.cli.blackbox import notes_on, read_runs, title
from workerserver.cli.errors import CommandError, UsageError
from workerserver.cli.places import is_place_named
from workerserver.cluster.ask.boxes.samples import rounds_of
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.find.jobs import JobView

__all__ = ["Boxes", "boxes_of", "divided", "status_of"]


class Boxes(NamedTuple):
    """*view*: the job, with one or two looks at it: the last samples."""

    view: JobView[Round]
    run: Run
    problems: list[Problem]


def divided(targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folders of black boxes among *targets*, and the other ones."""
    boxes = [each for each in targets if os.path.isdir(each) and holds_boxes(each)]
    return boxes, [each for each in targets if each not in boxes]


def boxes_of(options: argparse.Namespace) -> Boxes | None:
    """The newest run in the folders that the options name; None if they name none. UsageError if
    they name workers, too; CommandError if no box can be read."""
    folders, others = divided(options.targets)
    if not folders:
        return None
    if others or is_place_named(options):
        raise UsageError("black boxes are shown by themselves: name nothing else")
    runs, problems = read_runs(folders)
    if not runs:
        raise CommandError(f"{problems[0].path}: {problems[0].text}")
    run = runs[0]
    view = JobView(run.job, rounds_of(run.boxes), run.job, run.world_size)
    view.elsewhere = frozenset(run.missing)
    view.notes = [title(run), *notes_on(run)]
    if len(runs) > 1:
        view.notes.append(f"{len(runs) - 1} earlier runs are not shown (workerserver blackbox)")
    if run.missing:
        names = ", ".join(map(str, run.missing[:20]))
        view.notes.append(f"no box of ranks {names}{', ...' if len(run.missing) > 20 else ''}")
    view.notes += [f"{each.path}: {each.text}" for each in problems]
    return Boxes(view, run, problems)


def status_of(boxes: Boxes, have: int) -> int:
    """0 if what was asked for is in every box, 1 in some, 2 in none."""
    asked = len(boxes.run.boxes) + len(boxes.run.missing) + len(boxes.problems)
    if have:
        return 0 if have == asked else 1
    return 2
