"""``workerserver stacks``: the stacks of all ranks; equal stacks are shown once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from workerserver.cli.console import Output
from workerserver.cli.job_command import (
    add_native,
    add_rounds,
    ask,
    by_job,
    cost,
    find_some,
    job_parser,
    look,
    of_jobs,
    problems,
    share,
    show_gone,
    show_job,
    unreachable,
    write_json,
)
from workerserver.cli.parser import CommandParser
from workerserver.cli.text import seconds
from workerserver.cluster.ask.native_stacks import native_stacks
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.find.jobs import JobView
from workerserver.cluster.read.groups import Group, groups
from workerserver.cluster.read.progress import observe
from workerserver.cluster.read.tree import Node, tree
from workerserver.cluster.show.groups import render_group, stack_lines
from workerserver.cluster.show.tree import render_tree, short_fold, where
from workerserver.ranks import fold

__all__ = ["group_dict", "main", "report", "show_groups", "tree_dicts"]

#: Groups that a person sees without --all: the smallest groups, and the largest one.
MAX_GROUPS = 12
#: Lines of a tree that a person sees without --all.
MAX_BRANCHES = 200


def make_parser() -> CommandParser:
    parser = job_parser(
        "stacks",
        "Show the stacks of all ranks. Equal stacks are shown once; rare stacks come first. "
        "A TARGET may be a folder of black boxes (docs/blackbox.md). "
        "Exit status: 0 with the stacks of all workers, 1 of some, 2 of none, 3 no job.",
        examples=(
            ("workerserver stacks", "the stacks of all jobs of this user on this machine"),
            ("workerserver stacks --tree --job train", "the main threads of one job, as a tree"),
            (
                "workerserver stacks --rounds 3",
                "three looks: which ranks are stuck, and which move",
            ),
            ("workerserver stacks --native", "with the C and C++ functions that threads wait in"),
            ("workerserver stacks /shared/boxes", "the last stacks of a job that has ended"),
        ),
    )
    add_rounds(parser, 1)
    add_native(parser)
    parser.add_argument("--tree", action="store_true", help="show main threads as a prefix tree")
    parser.add_argument("--all", action="store_true", help="show every group, or the whole tree")
    parser.add_json("one object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0: got the stacks of all workers, 1: of some, 2: of none; 3: no job."""
    options = make_parser().parse_intermixed_args(list(argv))
    if any(map(os.path.isdir, options.targets)):
        from workerserver.cli.boxes import boxes_of, status_of  # 15 ms

        boxes = boxes_of(options)
        if boxes is not None:
            view = boxes.view
            view.rounds = view.rounds[-options.rounds :]
            return status_of(boxes, _show(options, [view]))
    found = find_some(options)
    rounds = look(options, found.workers, ("health", "stacks"))
    if options.native:
        states = rounds[-1].states
        ask(options, lambda client: native_stacks(client, states, whole=True))
    views = by_job(options, found, rounds)
    have = _show(options, views)
    states = [state for view in views for state in view.rounds[-1].states]
    return share(have, len(states), states)


def _show(options: argparse.Namespace, views: Sequence[JobView[Round]]) -> int:
    """Print each job. How many workers have shown their stacks."""
    alike = [groups(view.rounds[-1].states) for view in views]
    if options.json:
        write_json(
            sys.stdout,
            of_jobs(
                views,
                [
                    report(view.rounds, some, with_tree=options.tree)
                    for view, some in zip(views, alike, strict=True)
                ],
            ),
        )
    else:
        out = Output(sys.stdout)
        for view, some in zip(views, alike, strict=True):
            show_job(view, len(views), out)
            _render(view.rounds, some, out, as_tree=options.tree, everything=options.all)
    return sum(group.count for some in alike for group in some)


def report(
    rounds: Sequence[Round], found: Sequence[Group], *, with_tree: bool = False
) -> dict[str, Any]:
    """The whole report, for JSON."""
    states = rounds[-1].states
    fields: dict[str, Any] = {
        "ranks": len(states),
        "responded": len(states) - len(unreachable(states)),
        "unreachable": unreachable(states),
        "groups": [group_dict(group) for group in found],
        "problems": problems(states),
        "time": rounds[-1].started,
        "cost": cost(rounds),
    }
    if with_tree:
        fields["tree"] = list(tree_dicts(tree(states)))
    if len(rounds) > 1:
        fields["motion"] = {motion: fold(ranks) for motion, ranks in _motions(rounds).items()}
    return fields


def group_dict(group: Group) -> dict[str, Any]:
    """The JSON form of a group."""
    return {
        "ranks": group.folded,
        "count": group.count,
        "stack": stack_lines(group),
        "unranked": group.unranked,
        "idle": {role: {"least": low, "most": high} for role, (low, high) in group.idle.items()},
    }


def tree_dicts(root: Node) -> Iterator[dict[str, Any]]:
    """The nodes as a flat list in depth-first order. Nested, a stack could be too deep for a JSON
    parser."""
    waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        yield {
            "depth": depth,
            "ranks": fold(node.ranks),
            "count": node.count,
            "ended": node.ended,
            "frames": [where(frame) for frame in node.frames],
        }
        waiting += [(child, depth + 1) for child in reversed(node.children)]


def _motions(rounds: Sequence[Round]) -> dict[str, list[int]]:
    motions: dict[str, list[int]] = {}
    for rank, observation in sorted(observe(rounds).items()):
        motions.setdefault(observation.motion, []).append(rank)
    return motions


def _render(
    rounds: Sequence[Round], found: Sequence[Group], out: Output, *, as_tree: bool, everything: bool
) -> None:
    states = rounds[-1].states
    gone = unreachable(states)
    spent = cost(rounds)
    out.line(
        f"{len(states) - len(gone)} of {len(states)} ranks answered, different stacks: "
        f"{len(found)}; {spent['bytes_received']} bytes, {seconds(spent['seconds'])}",
        "bold",
    )
    show_gone(out, gone)
    for line in problems(states)[: None if everything else MAX_GROUPS]:
        out.line(line, "yellow")
    if len(rounds) > 1:
        for motion, ranks in _motions(rounds).items():
            style = "red" if motion == "stuck" else ""
            out.line(f"{motion}: ranks {short_fold(ranks)}", style)
    out.line()
    if as_tree:
        lines = render_tree(tree(states))
        shown = lines if everything else lines[:MAX_BRANCHES]
        for line in shown:
            out.line(line)
        if len(shown) < len(lines):
            out.line(f"... and {len(lines) - len(shown)} more lines (--all)")
    else:
        show_groups(found, out, everything=everything)


def show_groups(found: Sequence[Group], out: Output, *, everything: bool = False) -> None:
    """Print the groups, the smallest first. Of many groups, print only the first ones and the last
    one, which is the largest."""
    shown = list(found)
    left = 0 if everything else max(len(shown) - MAX_GROUPS, 0)
    if left:
        del shown[MAX_GROUPS - 1 : -1]
    for index, group in enumerate(shown):
        if left and index == len(shown) - 1:
            out.line(f"... {left} more groups (--all)")
        out.line(_head(group), "bold" if group is found[-1] else "bold yellow")
        for line in render_group(group)[1:]:
            out.line(line)


def _head(group: Group) -> str:
    names = []
    if group.ranks:
        names.append(f"rank{'s' * (len(group.ranks) > 1)} {short_fold(group.ranks)}")
    if len(group.unranked) == 1:
        names.append(group.unranked[0])
    elif group.unranked:
        names.append(f"{len(group.unranked)} workers of unknown rank")
    text = " and ".join(names)
    return f"{text} ({group.count} in all)" if len(group.ranks) > 1 else text
