"""What a person needs beside the sentence of a verdict, in a few lines however many ranks there
are. The text is as the workers sent it: escape it before you print it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from workerserver.cluster.judge.facts import Gone, known_rank
from workerserver.cluster.judge.sentences import duration
from workerserver.cluster.judge.verdict import Suspect, Verdict
from workerserver.cluster.model import Frame, Health, RoundLike
from workerserver.cluster.read.groups import Group
from workerserver.cluster.read.owners import is_library
from workerserver.cluster.show.tree import short_fold, where

__all__ = ["Line", "brief"]

#: Suspects of which different things are to be said, reasons for no answer, lines of a kind.
MAX_SUSPECTS = 4
MAX_REASONS = 2
MAX_LINES = 3
#: How the evidence begins that the line "last step" tells too.
HEARTBEAT = "last heartbeat: "


class Line(NamedTuple):
    """*extra*: 0 if the line is always shown. Where the lines are too many, those with the highest
    number go first. *hang*: by how much the rest of a long line is indented."""

    text: str = ""
    style: str = ""
    extra: int = 0
    hang: int = 0


def brief(verdict: Verdict, rounds: Sequence[RoundLike]) -> list[Line]:
    """The suspects, who gave no answer, what is known, and what is missing."""
    lines = [*_suspects(verdict.suspects, alone=verdict.ranks == 1), *_silent(verdict)]
    if verdict.status == 2:
        lines += _unsure(verdict, rounds)
    else:
        lines += _some("not looked at", verdict.not_looked_at, 4)
    if verdict.problems:
        count = len(verdict.problems)
        what = "answer was" if count == 1 else "answers were"
        lines.append(Line(f"{count} {what} not as expected (-v shows more)", "yellow", 3))
    return lines


# ---- suspects


def _suspects(suspects: Sequence[Suspect], *, alone: bool) -> Iterator[Line]:
    alike: dict[tuple[object, ...], list[Suspect]] = {}
    for each in suspects:
        key = (each.reason, each.process_group, each.collective, each.seq, each.location)
        alike.setdefault((*key, each.call, each.waits_for), []).append(each)
    groups = list(alike.values())
    said: set[str] = set()
    for number, group in enumerate(groups[:MAX_SUSPECTS]):
        for line in _group(group, number, alone=alone):
            if not line.text or line.text not in said:  # what holds for several is said once
                said.add(line.text)
                yield line
    rest = [each for group in groups[MAX_SUSPECTS:] for each in group]
    if rest:
        ranks = [each.rank for each in rest if each.rank is not None]
        more = f": rank{'s' * (len(ranks) > 1)} {short_fold(ranks)}" if ranks else ""
        what = "suspect" if len(rest) == 1 else "suspects"
        yield Line(f"... and {len(rest)} more {what}{more} (-v)", "bold red")


def _group(group: Sequence[Suspect], number: int, *, alone: bool) -> Iterator[Line]:
    """Suspects of which the same is to be said. Less is said of the later ones: *number*. *alone*:
    the job has no other rank."""
    first = group[0]
    yield Line(extra=3)
    yield Line(f"{_names(group, alone=alone)}: {first.reason}", "bold red", hang=2)
    operation = first.collective
    if operation is not None:
        if first.seq is not None:
            operation += f" #{first.seq}"
        operation += f" of {first.process_group}" if first.process_group else ""
    place = None
    if first.location is not None:
        place = where(first.location) + (f", in {first.call}" if first.call else "")
    facts = (
        ("stands in", place, 0),
        ("operation", operation, 0),
        ("waits for", first.waits_for, 1),
        ("holds the GIL", "yes" if first.gil_holder else None, 1),
        ("last step", _last_step(group), 1),
    )
    for title, value, extra in facts:
        if value is not None:
            yield Line(f"  {title + ':':<14} {value}", extra=number and extra + number, hang=17)
    rest = [set(each.evidence) for each in group[1:]]
    evidence = [each for each in first.evidence if all(each in other for other in rest)]
    for index, line in enumerate(each for each in evidence if not each.startswith(HEARTBEAT)):
        yield Line(f"  - {line}", extra=4 + index + 2 * number, hang=4)


def called(rank: int | None, *, alone: bool) -> str:
    """*alone*: the job has no other rank."""
    if rank is not None:
        return f"rank {rank}"
    return "the process" if alone else "worker of unknown rank"


def _names(group: Sequence[Suspect], *, alone: bool) -> str:
    first = group[0]
    if len(group) == 1:
        who = called(first.rank, alone=alone)
        at = ", ".join(filter(None, (first.host, first.address)))
        return f"{who} ({at})" if at else who
    ranks = [each.rank for each in group if each.rank is not None]
    names = [f"ranks {short_fold(ranks)}"] if ranks else []
    if len(ranks) < len(group):
        names.append(f"{len(group) - len(ranks)} of unknown rank")
    return f"{' and '.join(names)} ({len(group)} in all)"


def _last_step(group: Sequence[Suspect]) -> str | None:
    steps = [each.step for each in group if each.step is not None]
    if not steps:
        return None
    ages = [each.step_age_s for each in group if each.step_age_s is not None]
    text = str(min(steps)) if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
    return text + (f", {duration(min(ages))} ago" if ages else "")


# ---- no answer


def _silent(verdict: Verdict) -> Iterator[Line]:
    """Who gave no answer, beside the suspects: those with the same reason share a line."""
    suspects = {each.rank for each in verdict.suspects if each.reason == "unreachable"}
    alike: dict[str, list[Gone]] = {}
    for gone in verdict.unreachable:
        if known_rank(gone.rank) not in suspects:
            alike.setdefault(f"{gone.reason}: {gone.text}", []).append(gone)
    for reason, some in list(alike.items())[:MAX_REASONS]:
        yield Line(f"no answer from {_gone(some)}: {reason}", "yellow", hang=2)
    rest = [gone for each in list(alike.values())[MAX_REASONS:] for gone in each]
    if rest:
        yield Line(f"no answer from {len(rest)} more (-v)", "yellow")


def _gone(some: Sequence[Gone]) -> str:
    ranks = [rank for each in some if (rank := known_rank(each.rank)) is not None]
    if len(some) == 1:
        who = f"rank {ranks[0]}" if ranks else "a worker of unknown rank"
        return f"{who} ({some[0].address})" if some[0].address else who
    names = [f"rank{'s' * (len(ranks) > 1)} {short_fold(ranks)}"] if ranks else []
    if len(ranks) < len(some):
        names.append(f"{len(some) - len(ranks)} of unknown rank")
    return " and ".join(names)


# ---- could not tell


def _unsure(verdict: Verdict, rounds: Sequence[RoundLike]) -> Iterator[Line]:
    """What is known, what is missing, and when to ask again."""
    healths = [state.health for look in rounds[-1:] for state in look.states]
    yield from _some("known", _known(verdict, [each for each in healths if each is not None]), 0)
    yield from _some("missing", verdict.not_looked_at, 1)
    if verdict.again_s is not None:
        yield Line(f"Ask again in {duration(verdict.again_s)}: another look may tell more.", "bold")
    else:
        yield Line("Another look tells no more as long as nothing changes.", "bold")


def _known(verdict: Verdict, healths: Sequence[Health]) -> Iterator[str]:
    steps = [each.step for each in healths if each.step is not None]
    ages = [each.step_age_s for each in healths if each.step_age_s is not None]
    usual = sorted(each.step_median_s for each in healths if each.step_median_s is not None)
    if steps:
        text = f"the last step is {max(steps)}"
        if min(steps) != max(steps):
            text = f"the last steps are {min(steps)} to {max(steps)}"
        if ages:
            text += f", {duration(min(ages))} ago"
        if usual:
            text += f"; a step usually takes {duration(usual[len(usual) // 2])}"
        yield text
    for group in verdict.groups[: MAX_LINES - 1]:
        frame = _own_frame(group)
        if frame is not None:
            ranks = group.ranks
            who = f"rank{'s' * (len(ranks) > 1)} {short_fold(ranks)}" if ranks else "a worker"
            yield f"{who} in {where(frame)}"


def _own_frame(group: Group) -> Frame | None:
    """Where the main thread is in the user's code."""
    frames: Iterable[Frame] = group.threads[0].frames if group.threads else ()
    return next((frame for frame in frames if not is_library(frame)), None)


def _some(title: str, lines: Iterable[str], extra: int) -> Iterator[Line]:
    found = list(lines)
    shown = found if len(found) <= MAX_LINES else found[: MAX_LINES - 1]
    for index, line in enumerate(shown):
        yield Line(f"{title}: {line}", "dim", extra + index if extra else 0, 2)
    if len(shown) < len(found):
        yield Line(f"{title}: {len(found) - len(shown)} more lines (-v)", "dim", extra + 1)
