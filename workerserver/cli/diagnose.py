"""``workerserver diagnose``: ask every rank, and print one verdict with its evidence."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workerserver.cli.console import STYLES, Output
from workerserver.cli.job_command import (
    Judged,
    add_backends,
    add_native,
    add_rounds,
    ask,
    by_job,
    cost,
    ended,
    find_all,
    job_parser,
    look_at_all,
    show_gone,
    write_json,
)
from workerserver.cli.parser import CommandParser
from workerserver.cli.places import is_place_named
from workerserver.cli.slow import ask_all, weigh
from workerserver.cli.stacks import show_groups
from workerserver.cli.text import seconds
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.native_stacks import native_stacks
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.find.discovery import Found
from workerserver.cluster.find.group import base_name
from workerserver.cluster.find.jobs import JobView
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.sentences import SENTENCES
from workerserver.cluster.judge.slow.stragglers import slow_fact
from workerserver.cluster.judge.verdict import Verdict, over
from workerserver.cluster.show.brief import Line, brief, called
from workerserver.cluster.show.report import verdict_dict

if TYPE_CHECKING:
    from workerserver.cli.together import Together

__all__ = [
    "Verdicts",
    "judge",
    "judge_beside",
    "judge_live",
    "main",
    "render",
    "render_all",
    "report",
    "report_all",
]

#: Of several jobs, by status: which one is shown.
ORDER = (2, 0, 1, 3)
#: Lines of a terminal, or of a pipe, that a person sees without -v.
MAX_BRIEF = 20
#: Other jobs, and leftovers, that are told by default.
MAX_OTHERS = 4
MAX_LEFTOVERS = 2
#: Suspects and other lines that -v shows without --all.
MAX_SUSPECTS = 8
MAX_LINES = 20
#: How the brief form ends.
MORE = "(-v: evidence and stacks)"
#: Of a larger job, a verdict on the first look costs more than it saves.
MAX_EARLY = 4096
#: Of a healthy job of so many ranks at most, the whole recorders are asked for slow ranks.
MAX_HISTORIES = 256
#: Ranks that are asked for native frames, the accused ones first.
MAX_NATIVE = 64


def make_parser() -> CommandParser:
    parser = job_parser(
        "diagnose",
        "Say whether a job hangs, which rank is to blame, and why. Without a TARGET, all jobs of "
        "this user on this machine are judged, and the one that hangs is shown. "
        "A TARGET may be a folder of black boxes (docs/blackbox.md). If live ranks are named, too, "
        "a rank that does not answer is judged by its box. "
        "A TARGET may also name the files that torch's flight recorders have left "
        "(TORCH_FR_DUMP_TEMP_FILE): a prefix, a folder, or files. Black boxes may be named, too. "
        "Exit status: 0 healthy, 1 suspects found, 2 could not tell, 3 there is no job, or the job "
        "has ended.",
        examples=(
            (
                "workerserver diagnose",
                "all jobs of this user on this machine; the one that hangs in full",
            ),
            ("workerserver diagnose --job train", "one of them"),
            ("workerserver diagnose 4711", "the job of process 4711"),
            (
                "workerserver diagnose '/tmp/job/rank{rank}.sock'",
                "the workers behind these sockets",
            ),
            (
                "workerserver diagnose --store node1:29500 --world-size 64",
                "all ranks of a job on many hosts",
            ),
            ("workerserver diagnose /shared/boxes", "a job that has ended, from its black boxes"),
            (
                "workerserver diagnose '/tmp/job/rank{rank}.sock' /shared/boxes",
                "live ranks, and the boxes of those that do not answer",
            ),
            (
                "workerserver diagnose /tmp/nccl_trace_rank_",
                "a job that has ended, from what torch's flight recorders have left",
            ),
            (
                "workerserver diagnose --native",
                "with the C or C++ function that an accused rank waits in",
            ),
            ("workerserver diagnose --json | jq -r .verdict", "the sentence alone"),
        ),
    )
    add_rounds(parser, None)
    add_backends(parser)
    add_native(parser)
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show all evidence, the answers that are missing, and the groups of equal stacks",
    )
    parser.add_argument(
        "--all", action="store_true", help="as -v, with every suspect and every group of stacks"
    )
    parser.add_json("one object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0: no rank is suspected, 1: at least one is, 2: could not tell, 3: no job, or it
    has ended. Of several jobs the worst one counts."""
    options = make_parser().parse_intermixed_args(list(argv))
    if any(map(os.path.isdir, options.targets)):
        from workerserver.cli.boxes import divided  # 15 ms

        boxes, options.targets = divided(options.targets)
        if boxes:
            return _with_boxes(options, boxes)
    if options.targets:
        from workerserver.cli.dumps import dumps_among

        dumps, others = dumps_among(options.targets)
        if dumps:
            return _of_dumps(options, dumps, others)
    judged = judge_live(options)
    if options.json:
        write_json(sys.stdout, report_all(judged))
    else:
        out = Output(sys.stdout)
        render_all(judged, out, verbose=options.verbose or options.all, everything=options.all)
    return judged[0].verdict.status


def judge_live(options: argparse.Namespace) -> list[Judged]:
    """The verdict on each job that the options name, that on a hung one first, with its slow
    ranks."""
    found = find_all(options)
    verdicts = Verdicts()
    rounds = look_at_all(options, found, lambda views: are_enough(views, verdicts))
    judged = judge(by_job(options, found, rounds), found, verdicts)
    if getattr(options, "native", False):
        judged = [_with_native(options, each) for each in judged]
    return [_with_slow_ranks(options, each) for each in judged]


def judge_beside(options: argparse.Namespace, folders: Sequence[str]) -> Together | None:
    """The same of live ranks together with *folders* of black boxes; None if nobody is alive."""
    from workerserver.cli.together import judge_together

    verdicts = Verdicts()
    return judge_together(
        options,
        folders,
        lambda views, found: judge(views, found, verdicts),
        lambda views: are_enough(views, verdicts),
    )


def _with_boxes(options: argparse.Namespace, boxes: Sequence[str]) -> int:
    """The same with folders of black boxes among the targets."""
    from workerserver.cli.blackbox import box_fields, judge_boxes, show_endings, show_problems
    from workerserver.cli.dumps import dumps_beside

    dumps, options.targets = dumps_beside(options.targets, boxes)
    alone = not options.targets and not is_place_named(options)
    both = None if alone else judge_beside(options, boxes)
    if both is None:
        return judge_boxes(boxes, as_json=options.json, dumps=dumps)
    view, verdict = both.judged[0]
    if dumps:
        view.notes.append("torch's dumps are not counted beside live ranks")
    if options.json:
        write_json(sys.stdout, {**report_all(both.judged), **box_fields(both.ended, both.problems)})
        return verdict.status
    out = Output(sys.stdout)
    if both.ended is None or not both.ended.culprits:
        verbose = options.verbose or options.all
        render_all(both.judged, out, verbose=verbose, everything=options.all)
    else:
        out.line(verdict.sentence, STYLES[verdict.status])
        for line in view.notes:
            out.line(line, "dim", 2)
    if both.ended is not None and both.ended.endings:
        show_endings(both.ended, out)
    show_problems(both.problems, out)
    return verdict.status


def _of_dumps(options: argparse.Namespace, paths: Sequence[str], others: Sequence[str]) -> int:
    """The same of files that torch's flight recorders have left."""
    from workerserver.cli.dumps import alone, judge_dumps, unread_fields, unread_lines

    alone(options, others)
    judged, found = judge_dumps(options, paths)
    view, verdict = judged
    if options.json:
        fields = {"unreadable": unread_fields(found.unread)}
        write_json(sys.stdout, {**report_all([judged]), **fields})
        return verdict.status
    out = Output(sys.stdout)
    out.line(verdict.sentence, STYLES[verdict.status])
    for line in view.notes:
        out.line(line, "dim", 2)
    for suspect in verdict.suspects[: None if options.all else MAX_SUSPECTS]:
        _show_suspect(verdict_dict(replace(verdict, suspects=(suspect,)))["suspects"][0], out)
    everything = options.all or options.verbose
    _show_lines("problems", verdict.problems, out, everything=everything)
    _show_lines("files that do not count", unread_lines(found.unread), out, everything=everything)
    _show_lines("not looked at", verdict.not_looked_at, out, everything=everything)
    return verdict.status


def _with_slow_ranks(options: argparse.Namespace, judged: Judged) -> Judged:
    """The same verdict with the slow ranks of a job that goes on. What the question costs is added
    to the last round."""
    view, verdict = judged
    if verdict.status != 0 or not 1 < len(view.rounds[-1].states) <= MAX_HISTORIES:
        return judged
    last = view.rounds[-1]
    answers = ask_all(options, [state.worker for state in last.states])
    last.questions += answers.questions
    last.bytes_received += answers.bytes_received
    last.duration_s += answers.seconds
    slow = [slow_fact(*each) for each in weigh(answers).study.named]
    verdict = diagnose(view.rounds, view.world_size, view.elsewhere, slow=slow)
    return Judged(view, verdict)


def _with_native(options: argparse.Namespace, judged: Judged) -> Judged:
    """The same verdict with the native frames of those who are accused, and of some others. What
    the question costs is added to the last round."""
    view, verdict = judged
    if verdict.status not in (1, 2) or not view.rounds:
        return judged
    last = view.rounds[-1]
    accused = {each.address for each in verdict.suspects}
    states = sorted(last.states, key=lambda state: state.worker.address not in accused)

    async def question(client: Client) -> None:
        await native_stacks(client, states[:MAX_NATIVE], whole=False)
        last.questions += client.questions
        last.bytes_received += client.bytes_received

    started = time.monotonic()
    ask(options, question)
    last.duration_s += time.monotonic() - started
    return Judged(view, diagnose(view.rounds, view.world_size, view.elsewhere))


class Verdicts:
    """The verdict on each job, found once for the same looks."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[JobView[Round], Verdict]] = {}

    def of(self, view: JobView[Round]) -> Verdict:
        states = (id(state) for each in view.rounds for state in each.states)
        key = (len(view.rounds), view.world_size, view.elsewhere, *states)
        if key not in self._known:  # a view keeps its states, so that no other one gets their ids
            verdict = diagnose(view.rounds, view.world_size, view.elsewhere)
            self._known[key] = view, verdict
        return self._known[key][1]


def judge(
    views: Sequence[JobView[Round]], found: Found, verdicts: Verdicts | None = None
) -> list[Judged]:
    """A verdict on each job, that on a hung one first: 1, then 2, then 0. *verdicts*: those that
    are known already."""
    verdicts = verdicts or Verdicts()
    # Other jobs may run on the nodes of a Slurm job.
    slurm = any(worker.source == "slurm" for worker in found.workers)
    judged = []
    for view in views:
        if view.is_over or not view.rounds:
            verdict = over(ended(view, found))
        else:
            stranger = another_job(view) if slurm else None
            verdict = verdicts.of(view)
            if stranger is not None:
                verdict = replace(verdict, sentence=stranger, status=2, suspects=(), again_s=None)
        judged.append(Judged(view, verdict))
    return sorted(judged, key=lambda each: ORDER[each.verdict.status])


def another_job(view: JobView[Round]) -> str | None:
    """That the workers on this Slurm job's nodes are those of another one; None if they aren't."""
    mine = os.environ.get("SLURM_JOB_ID", "")
    if os.environ.get("SLURM_ARRAY_TASK_ID"):
        array = os.environ.get("SLURM_ARRAY_JOB_ID", mine)
        mine = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    theirs = base_name(view.name or "")
    if not mine or not theirs.startswith("slurm-") or theirs == f"slurm-{mine}":
        return None
    return (
        f"could not tell: the workers on these ports belong to {theirs}, and this is slurm-{mine}"
    )


def are_enough(views: Sequence[JobView[Round]], verdicts: Verdicts) -> bool:
    """Another look would tell no more of any job."""
    return all(is_enough(each, verdicts) for each in views if not each.is_over)


def is_enough(view: JobView[Round], verdicts: Verdicts) -> bool:
    """Another look would tell no more: after one look only of a hang that is old enough."""
    if len(view.rounds) == 1 and len(view.rounds[0].states) > MAX_EARLY:
        return False
    verdict = verdicts.of(view)
    return verdict.sure if len(view.rounds) == 1 else verdict.again_s is None


def report(verdict: Verdict, rounds: Sequence[Round]) -> dict[str, Any]:
    """The verdict and its cost, for JSON."""
    started = rounds[-1].started if rounds else None
    return {**verdict_dict(verdict), "time": started, "cost": cost(rounds)}


def report_all(judged: Sequence[Judged]) -> dict[str, Any]:
    """The verdict on the first job in full, and the others' sentences, for JSON."""
    (view, verdict), *others = judged
    return {
        **report(verdict, view.rounds),
        "job": view.label,
        "leftovers": [line for each in judged for line in each.view.leftovers],
        "notes": [line for each in judged for line in each.view.notes],
        "other_jobs": [
            {
                "job": each.view.label,
                "status": each.verdict.status,
                "verdict": each.verdict.sentence,
            }
            for each in others
        ],
    }


def render_all(
    judged: Sequence[Judged], out: Output, *, verbose: bool = False, everything: bool = False
) -> None:
    """Print the verdict on the first job, with one line for each other job. *verbose*: with all
    that is behind the verdict. Where that has scrolled the sentence away, the sentence comes once
    more."""
    (view, verdict), *others = judged
    out.line(verdict.sentence, STYLES[verdict.status])
    if others:
        out.line(f"job {view.label or 'of no known name'}, 1 of {len(judged)}; the others:", "bold")
        shown = others if verbose or len(others) <= MAX_OTHERS else others[: MAX_OTHERS - 1]
        for each in shown:
            name = each.view.label or "no known name"
            out.line(f"  {name}: {each.verdict.sentence}", STYLES[each.verdict.status], 4)
        if len(shown) < len(others):
            out.line(f"  ... and {len(others) - len(shown)} more jobs (-v)")
    leftovers = [line for each in judged for line in (*each.view.leftovers, *each.view.notes)]
    for line in leftovers if verbose else leftovers[:MAX_LEFTOVERS]:
        out.line(line, "dim", 2)
    if not verbose and len(leftovers) > MAX_LEFTOVERS:
        out.line(f"... and {len(leftovers) - MAX_LEFTOVERS} more lines on leftovers (-v)", "dim")
    if verdict.status == 3:
        return
    if verbose:
        render(verdict, view.rounds, out, everything=everything)
    else:
        render_brief(verdict, view.rounds, out)
    if out.size is not None and out.lines >= out.size[1]:  # a line is the prompt's
        out.line()
        out.line(verdict.sentence, STYLES[verdict.status])


def render_brief(verdict: Verdict, rounds: Sequence[Round], out: Output) -> None:
    """Print what a person needs beside the sentence, in MAX_BRIEF lines in all."""
    lines = [
        *brief(verdict, rounds),
        Line(extra=3),
        Line(f"{_spent(verdict, rounds)} {MORE}", "dim"),
    ]
    heights = {id(line): len(out.fitted(line.text, line.hang)) for line in lines}
    while sum(heights[id(line)] for line in lines) > MAX_BRIEF - out.lines:
        last = max(range(len(lines)), key=lambda number: (lines[number].extra, number))
        if not lines[last].extra:
            break
        del lines[last]
    for line in lines:
        out.line(line.text, line.style, line.hang)


def _spent(verdict: Verdict, rounds: Sequence[Round]) -> str:
    spent = cost(rounds)
    return (
        f"{verdict.responded} of {verdict.ranks} ranks answered; {spent['questions']} questions, "
        f"{spent['bytes_received']} bytes, {seconds(spent['seconds'])}"
    )


def render(
    verdict: Verdict, rounds: Sequence[Round], out: Output, *, everything: bool = False
) -> None:
    """Print what is behind the sentence: the suspects with their evidence, then the stacks of all
    ranks."""
    fields = verdict_dict(verdict)
    out.line(_spent(verdict, rounds), "dim")
    suspects = fields["suspects"]
    shown = suspects if everything else suspects[:MAX_SUSPECTS]
    for suspect in shown:
        _show_suspect(suspect, out, alone=verdict.ranks == 1)
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


def _show_suspect(suspect: Mapping[str, Any], out: Output, *, alone: bool = False) -> None:
    """*alone*: the job has no other rank."""
    rank, host = suspect["rank"], suspect["host"]
    at = ", ".join(filter(None, (host, suspect["address"])))
    out.line()
    out.line(f"{called(rank, alone=alone)} ({at}): {suspect['reason']}", "bold red")
    rests_on = SENTENCES[suspect["reason"]].rests_on
    if alone:
        rests_on = rests_on.removeprefix("others wait for it, and ")
    out.line(f"  {rests_on}", "dim")
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
