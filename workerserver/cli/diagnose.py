"""``workerserver diagnose``: ask every rank, and print one verdict with its evidence."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from workerserver.cli.console import Output
from workerserver.cli.job_command import (
    add_rounds,
    cost,
    find,
    job_parser,
    look,
    show_gone,
    world_size,
    write_json,
)
from workerserver.cli.stacks import show_groups
from workerserver.cli.text import seconds
from workerserver.cluster.ask.rounds import EVERYTHING, Round
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.job import Memory
from workerserver.cluster.judge.sentences import SENTENCES
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.show.report import verdict_dict

__all__ = ["STYLES", "main", "render", "report"]

#: The style of the verdict, by exit status.
STYLES = ("bold green", "bold red", "bold yellow")
#: Suspects and other lines that a person sees without --all.
MAX_SUSPECTS = 8
MAX_LINES = 20
#: Of a larger job, a verdict on the first look costs more than it saves.
MAX_EARLY = 4096


def main(argv: Sequence[str]) -> int:
    """Exit status 0: no rank is suspected, 1: at least one is, 2: could not tell."""
    parser = job_parser(
        "diagnose",
        "Say whether a job hangs, which rank is to blame, and why. "
        "Exit status: 0 healthy, 1 suspects found, 2 could not tell.",
    )
    add_rounds(parser, None)
    parser.add_argument(
        "--all", action="store_true", help="show every suspect and every group of stacks"
    )
    parser.add_argument("--json", action="store_true", help="one object, see docs/diagnose.md")
    options = parser.parse_intermixed_args(list(argv))
    workers = find(options)
    size = world_size(options, workers)
    memory: Memory = {}
    rounds = look(options, workers, EVERYTHING, lambda rounds: is_enough(rounds, size, memory))
    verdict = diagnose(rounds, size, memory)
    if options.json:
        write_json(sys.stdout, report(verdict, rounds))
    else:
        render(verdict, rounds, Output(sys.stdout), everything=options.all)
    return verdict.status


def is_enough(rounds: Sequence[Round], size: int | None, memory: Memory | None = None) -> bool:
    """Another look would tell no more: after one look only of a hang that is old enough."""
    if len(rounds) == 1 and len(rounds[0].states) > MAX_EARLY:
        return False
    verdict = diagnose(rounds, size, memory)
    return verdict.sure if len(rounds) == 1 else verdict.again_s is None


def report(verdict: Verdict, rounds: Sequence[Round]) -> dict[str, Any]:
    """The verdict and its cost, for JSON."""
    return {**verdict_dict(verdict), "time": rounds[-1].started, "cost": cost(rounds)}


def render(
    verdict: Verdict, rounds: Sequence[Round], out: Output, *, everything: bool = False
) -> None:
    """Print the sentence, then the suspects with their evidence, then the stacks of all ranks."""
    fields = verdict_dict(verdict)
    out.line(verdict.sentence, STYLES[verdict.status])
    spent = cost(rounds)
    out.line(
        f"{verdict.responded} of {verdict.ranks} ranks answered; {spent['questions']} questions, "
        f"{spent['bytes_received']} bytes, {seconds(spent['seconds'])}",
        "dim",
    )
    suspects = fields["suspects"]
    shown = suspects if everything else suspects[:MAX_SUSPECTS]
    for suspect in shown:
        _show_suspect(suspect, out)
    if len(shown) < len(suspects):
        out.line(f"... and {len(suspects) - len(shown)} more suspects (--all)")
    if verdict.unreachable:
        out.line()
        out.line("no answer", "bold")
        show_gone(out, fields["unreachable"])
    if verdict.stragglers:
        out.line()
        out.line("slow, but not stuck", "bold")
        for each in verdict.stragglers:
            out.line(each.text)
    _show_lines("problems", verdict.problems, out, everything=everything)
    _show_lines("not looked at", verdict.not_looked_at, out, everything=everything)
    if verdict.groups:
        out.line()
        out.line("what the ranks do", "bold")
        show_groups(verdict.groups, out, everything=everything)


def _show_suspect(suspect: Mapping[str, Any], out: Output) -> None:
    rank, host = suspect["rank"], suspect["host"]
    who = f"rank {rank}" if rank is not None else "worker of unknown rank"
    at = ", ".join(filter(None, (host, suspect["address"])))
    out.line()
    out.line(f"{who} ({at}): {suspect['reason']}", "bold red")
    out.line(f"  {SENTENCES[suspect['reason']].rests_on}", "dim")
    operation = suspect["collective"]
    if operation is not None and suspect["seq"] is not None:
        operation = f"{operation} #{suspect['seq']}"
    step = suspect["step"]
    if step is not None and suspect["step_age_s"] is not None:
        step = f"{step}, {seconds(suspect['step_age_s'])} ago"
    for title, value in (
        ("process group", suspect["process_group"]),
        ("collective", operation),
        ("location", suspect["location"]),
        ("call", suspect["call"]),
        ("holds the GIL", "yes" if suspect["gil_holder"] else None),
        ("last heartbeat", f"step {step}" if step is not None else None),
    ):
        if value is not None:
            out.line(f"  {title + ':':<16}{value}")
    for line in suspect["evidence"]:
        out.line(f"  - {line}")


def _show_lines(title: str, lines: Sequence[str], out: Output, *, everything: bool) -> None:
    if not lines:
        return
    out.line()
    out.line(title, "bold")
    shown = lines if everything else lines[:MAX_LINES]
    for line in shown:
        out.line(line)
    if len(shown) < len(lines):
        out.line(f"... and {len(lines) - len(shown)} more (--all)")
