"""``diagnose`` and ``fr`` on what torch's own flight recorders have left in files."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from workerserver.blackbox.read import Box
from workerserver.cli.errors import UsageError
from workerserver.cli.job_command import Judged
from workerserver.cli.places import is_place_named
from workerserver.cluster.ask.boxes.with_dumps import beside, lines, with_dumps
from workerserver.cluster.ask.dumps.files import Dump, Unread, find_dumps, read_dumps
from workerserver.cluster.ask.dumps.looks import look_at
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.find.jobs import JobView
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.flight import Group
from workerserver.cluster.judge.grounds.same_moment import Apart, Seqs, apart, are_dated, given_up
from workerserver.cluster.judge.sentences import at
from workerserver.cluster.judge.verdict import Suspect, Verdict
from workerserver.cluster.model import Frame
from workerserver.cluster.read.dumps.issued import issued_at
from workerserver.cluster.read.flight_records import read
from workerserver.cluster.read.recorder import RankRecord, Shared
from workerserver.cluster.show.tree import short_fold
from workerserver.ranks import named

__all__ = [
    "Dumps",
    "alone",
    "beside_boxes",
    "dumps_among",
    "dumps_beside",
    "judge_dumps",
    "read_all",
    "unread_fields",
    "unread_lines",
]

#: Waits and operations of which is told where they were issued.
MAX_PLACES = 8


class Dumps(NamedTuple):
    """*view*: the job, with one look at it. *unread*: files that count for nothing."""

    view: JobView[Round]
    dumps: list[Dump]
    unread: list[Unread]


def dumps_among(targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that *targets* name as dumps, and the other targets. UsageError if a target names
    dumps of several prefixes."""
    paths: list[str] = []
    others = []
    for target in targets:
        try:
            found = None if target.isdecimal() else find_dumps(target)
        except OSError:  # whoever looks for sockets there says why
            found = None
        if found is None:
            others.append(target)
        elif len(found) > 1:
            names = ", ".join(sorted(found)[:4])
            raise UsageError(f"{target}: dumps of {len(found)} prefixes: name one of {names}")
        else:
            paths += next(iter(found.values()))
    return paths, others


def dumps_beside(targets: Sequence[str], folders: Sequence[str]) -> tuple[list[str], list[str]]:
    """As dumps_among(), beside *folders* of black boxes. If no target names dumps, those count that
    torch has written into the folders, if they are of one prefix."""
    paths, others = dumps_among(targets)
    if not paths:
        alike: dict[str, list[str]] = {}
        for folder in folders:
            with contextlib.suppress(OSError):  # whoever reads the boxes says why
                alike.update(find_dumps(folder) or {})
        paths = next(iter(alike.values())) if len(alike) == 1 else []
    return paths, others


def alone(options: argparse.Namespace, others: Sequence[str]) -> None:
    """UsageError if the options name more than dumps."""
    if others or is_place_named(options):
        raise UsageError("dumps of flight recorders are judged by themselves: name nothing else")


class Counted(NamedTuple):
    """The dumps that tell of one moment of one run, as one look. *failed*: operations that are not
    to count as ended. *dated*: the times of the files can be believed."""

    look: Round
    dumps: list[Dump]
    unread: list[Unread]
    records: dict[int, RankRecord]
    failed: Seqs
    dated: bool


def _counted(paths: Sequence[str]) -> Counted:
    dumps, unread = read_dumps(paths)
    shared = Shared()
    records = {dump.rank: read(dump.trace, None, shared) for dump in dumps}
    strange = apart(records, {dump.rank: dump.time for dump in dumps})
    unread += [
        Unread(dump.path, dump.rank, f"not counted: {_why(strange[dump.rank])}")
        for dump in dumps
        if dump.rank in strange
    ]
    counted = [dump for dump in dumps if dump.rank not in strange]
    records = {dump.rank: records[dump.rank] for dump in counted}
    failed = given_up(records)
    dated = are_dated(records, {dump.rank: dump.time for dump in counted}, failed)
    look = look_at(counted, failed, dated=dated)
    return Counted(look, counted, unread, records, failed, dated)


def read_all(options: argparse.Namespace, paths: Sequence[str]) -> Dumps:
    """The dumps that tell of one moment of one run, as one look."""
    look, counted, unread, records, failed, dated = _counted(paths)
    ranks = {dump.rank for dump in counted}
    known = {*ranks, *(each.rank for each in unread if each.rank is not None)}
    for record in records.values():
        for group in record.groups.values():
            known.update(group.ranks or () if group.key.desc == "default_pg" else ())
    size = max((options.world_size or 0) - 1, *known, -1) + 1
    view = JobView(None, [look], None, size)
    view.elsewhere = frozenset(range(size)) - ranks
    view.notes = [*_written(counted, dated=dated), *(_failed(failed) if dated else ())]
    return Dumps(view, counted, unread)


def beside_boxes(
    rounds: Sequence[Round], boxes: Sequence[Box], paths: Sequence[str]
) -> tuple[list[Round], list[str]]:
    """*rounds* of *boxes*, in which a dump stands for the recorder of each rank whose dump is later
    than its box; and which one counts, in lines."""
    look, _, unread, *_ = _counted(paths)
    found = beside(boxes, look)
    return with_dumps(rounds, look, found), [*lines(found), *unread_lines(unread)]


def _why(apart: Apart) -> str:
    operation = apart.operation or "its operations"
    if apart.kind == "run":
        return (
            f"it issued {operation} {apart.seconds:.0f} s apart from rank {apart.other}: "
            "it is of another run, or its clock is wrong"
        )
    what = f"{operation} of {apart.group}, which it has not issued"
    if apart.kind == "ended":
        return f"it is of an earlier moment, or of another run: rank {apart.other} has ended {what}"
    return f"it was written {apart.seconds:.0f} s before rank {apart.other} issued {what}"


def _written(dumps: Sequence[Dump], *, dated: bool) -> Iterator[str]:
    if dumps:
        times = sorted(dump.time for dump in dumps)
        began, ended = (
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each))
            for each in (times[0], times[-1])
        )
        when = began if began == ended else f"{began} to {ended}"
        ranks = named([dump.rank for dump in dumps])
        yield f"torch's dumps of {ranks}, written {when} (the files' own times)"
        if not dated:
            yield "these are times of a copy: operations would have waited beyond their time-outs"


def _failed(failed: Seqs) -> Iterator[str]:
    alike: dict[tuple[str, int], list[int]] = {}
    for (rank, key), numbers in failed.items():
        alike.setdefault((key.label, min(numbers)), []).append(rank)
    for (label, seq), ranks in sorted(alike.items()):
        have = "has" if len(ranks) == 1 else "have"
        yield (
            f"{named(sorted(ranks))} {have} ended #{seq} of {label} without all ranks in it: "
            "so it failed, as by a time-out"
        )


def judge_dumps(options: argparse.Namespace, paths: Sequence[str]) -> tuple[Judged, Dumps]:
    """The verdict on the moment of the dumps. Status 3 if nothing hung then."""
    found = read_all(options, paths)
    view = found.view
    verdict = diagnose(view.rounds, view.world_size, view.elsewhere)
    if not found.dumps:
        verdict = replace(verdict, sentence="could not tell: no dump can be read", status=2)
    traces = {dump.rank: dump.trace for dump in found.dumps}
    suspects = tuple(_with_places(each, verdict, traces) for each in verdict.suspects)
    verdict = replace(verdict, suspects=suspects, again_s=None)
    if verdict.status == 0:
        sentence = f"no rank was stuck when {_of(found.dumps)} written"
        verdict = replace(verdict, sentence=sentence, status=3)
    view.notes += _places(verdict, traces)
    return Judged(view, verdict), found


def _of(dumps: Sequence[Dump]) -> str:
    return "the dump was" if len(dumps) == 1 else "the dumps were"


def _places(verdict: Verdict, traces: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    """Where the ranks that wait have issued what they wait in."""
    waits = [(state.group, wait) for state in verdict.process_groups for wait in state.hanging]
    for group, wait in waits[:MAX_PLACES]:
        if wait.seq is None:
            continue
        found: Counter[Frame] = Counter()
        for rank in wait.waiting:
            frame = issued_at(traces[rank], group.key, wait.seq) if rank in traces else None
            if frame is not None:
                found[frame] += 1
        for frame, _ in found.most_common(2):
            yield f"{wait.name} of {group.label} was issued in {at(frame)}"


def _with_places(
    suspect: Suspect, verdict: Verdict, traces: Mapping[int, Mapping[str, Any]]
) -> Suspect:
    """*suspect*, with where it issued its last operation, or the one that differs."""
    group = _group_of(suspect, verdict)
    rank = suspect.rank
    if group is None or rank is None or rank not in traces:
        return suspect
    record = group.records.get(rank)
    last = record.last_issued if record is not None else None
    mine = record is not None and suspect.seq in record.collectives
    seq = suspect.seq if mine else last.seq if last is not None else None
    frame = issued_at(traces[rank], group.key, seq) if seq is not None else None
    if record is None or frame is None or seq is None:
        return suspect
    line = f"it issued {record.collectives[seq][-1].name} of {group.label} in {at(frame)}"
    return replace(suspect, evidence=(*suspect.evidence, line))


def _group_of(suspect: Suspect, verdict: Verdict) -> Group | None:
    return next(
        (
            state.group
            for state in verdict.process_groups
            if state.group.label == suspect.process_group and suspect.rank in state.group.ranks
        ),
        None,
    )


def unread_fields(unread: Sequence[Unread]) -> list[dict[str, Any]]:
    return [{"path": each.path, "rank": each.rank, "text": each.text} for each in unread]


def unread_lines(unread: Sequence[Unread]) -> list[str]:
    """One line for each reason, with its files."""
    alike: dict[str, list[Unread]] = {}
    for each in unread:
        alike.setdefault(each.text, []).append(each)
    lines = []
    for text, some in alike.items():
        ranks = sorted(each.rank for each in some if each.rank is not None)
        who = f" and {len(some) - 1} more (ranks {short_fold(ranks)})" if len(some) > 1 else ""
        lines.append(f"{some[0].path}{who}: {text}")
    return lines
