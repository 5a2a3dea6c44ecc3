"""A verdict on a run of which black boxes are left: who ended first, and of what.

A rank is accused of what its own box, or the kernel, tells of its end. A rank that was ended by
somebody, or that lost its connection to others, is none that began it. If nobody began it, the
judge of live jobs looks at the last samples: the job may have hung before it was ended.
"""

from __future__ import annotations

import os.path
import time
from collections.abc import Sequence
from dataclasses import dataclass

from workerserver.cluster.judge.verdict import Status, Verdict
from workerserver.cluster.read.boxes.endings import Ending, ended_by_launcher
from workerserver.ranks import fold, named

__all__ = ["Ended", "conclude", "place_text", "who_ended"]

#: Culprits that a sentence names.
MAX_NAMED = 3
GIB = 1 << 30
#: Boxes are copied every 10 s. An older one tells nothing of now; clocks may differ a little, too.
FRESH_SECONDS = 60.0
#: A launcher that ends a job sends SIGTERM, and SIGKILL to those that still live some time later:
#: torchrun and Slurm after 30 s. A death may be noticed some seconds late.
SIGKILL_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Ended:
    """*culprits*: who began it, the first one first, as far as that is known. *live*: what the
    judge of live jobs says of the last samples; None if it was not asked."""

    sentence: str
    status: Status
    culprits: tuple[Ending, ...]
    endings: tuple[Ending, ...]
    missing: tuple[int, ...]
    live: Verdict | None


def conclude(
    endings: Sequence[Ending],
    missing: Sequence[int],
    live: Verdict | None,
    answering: Sequence[int] = (),
    old_s: float | None = None,
) -> Ended:
    """*missing*: ranks without a box that can be read. *answering*: ranks that are alive and have
    answered; then *live* is the verdict on them, and *endings* are of the other ranks. *old_s*: the
    age of the newest box. Old boxes that tell no end don't say that a job is healthy: their keeper
    may be gone, or their folder full."""
    culprits = _culprits(endings) or _missed(endings, live if answering else None)
    culprits = culprits or _singled_out(endings)
    if answering and live is not None:
        status, sentence = _beside_living(endings, culprits, live, answering)
    else:
        status, sentence = _sentence(endings, culprits, missing, live, old_s)
    return Ended(sentence, status, tuple(culprits), tuple(endings), tuple(missing), live)


def _culprits(endings: Sequence[Ending]) -> list[Ending]:
    began = [each for each in endings if _began(each) and not _outlived(each, endings)]
    own = [each for each in began if not each.waits_for_others]
    if not own and len(began) == 1 and (len(endings) == 1 or began[0].kind == "crash"):
        own = began  # there is nobody whom it could have lost, or nothing else that accuses
    hosts = {each.host for each in own}
    if len(hosts) == 1 and all(each.time is not None for each in own):
        return sorted(own, key=lambda each: (each.time or 0.0, _rank(each)))
    return sorted(own, key=_rank)  # clocks of hosts differ


def _missed(endings: Sequence[Ending], live: Verdict | None) -> list[Ending]:
    """Who left with exit status 0, if that is no end of a job that is done: the others were ended,
    or lost it, or, as *live* tells, hang. Many programs end by ``os._exit(0)``."""
    if live is None:
        misses = any(each.kind == "terminated" or _began(each) for each in endings)
    else:
        misses = live.status == 1 or any(state.hanging for state in live.process_groups)
    return sorted((each for each in endings if misses and each.kind == "left"), key=_rank)


def _outlived(each: Ending, endings: Sequence[Ending]) -> bool:
    """Whether it was killed long after SIGTERM had ended others on its host: then it is not why the
    others were ended. It could not act on a SIGTERM of its own: it was stopped, say."""
    if each.kind != "killed" or each.time is None:
        return False
    told = (e.time for e in endings if e.kind == "terminated" and e.host == each.host)
    return any(time is not None and time <= each.time - SIGKILL_SECONDS for time in told)


def _singled_out(endings: Sequence[Ending]) -> list[Ending]:
    """The one rank that somebody else than its launcher has ended, by ``kill PID``, if the launcher
    has ended all others. Slurm and a person end all ranks of a job alike."""
    by_launcher = {
        id(each): ended_by_launcher(each.box) for each in endings if each.kind == "terminated"
    }
    others = [each for each in endings if by_launcher.get(id(each)) is False]
    rest = sum(told is True for told in by_launcher.values())
    return others if len(others) == 1 and 0 < rest == len(endings) - 1 else []


def _began(each: Ending) -> bool:
    return each.kind in ("exception", "crash", "killed", "oom", "status", "no trace")


def _rank(each: Ending) -> int:
    return 1 << 31 if each.rank is None else each.rank


def _sentence(
    endings: Sequence[Ending],
    culprits: Sequence[Ending],
    missing: Sequence[int],
    live: Verdict | None,
    old_s: float | None,
) -> tuple[Status, str]:
    if culprits:
        return 1, f"{_named(culprits)}{_others(endings, culprits)}{_without(missing)}"
    if live is not None and live.status == 1:
        alive = any(each.kind == "alive" for each in endings)
        when = "" if alive else "before the job was ended: "
        return 1, f"{when}{live.sentence}{_without(missing)}"
    if all(each.kind in ("clean", "left") for each in endings) and endings:
        if missing:
            return 2, f"could not tell: {_kinds(endings)}{_without(missing)}"
        return 3, f"the job has ended, and nothing accuses a rank: {_kinds(endings)}"
    if not endings:
        return 2, f"could not tell: no box can be read{_without(missing)}"
    if all(each.kind == "alive" for each in endings) and live is not None:
        if not live.status and old_s is not None and old_s > FRESH_SECONDS:
            when = f"the newest black box is {old_s:,.0f} s old by this machine's clock"
            return 2, f"could not tell: {when}; as the boxes told then: {live.sentence}"
        return live.status, f"as the boxes tell: {live.sentence}{_without(missing)}"
    return 2, f"could not tell who began it: {_kinds(endings)}{_without(missing)}"


def _beside_living(
    endings: Sequence[Ending], culprits: Sequence[Ending], live: Verdict, answering: Sequence[int]
) -> tuple[Status, str]:
    ended = [each for each in endings if each.kind != "alive"]
    if culprits:
        return 1, f"{_named(culprits)}{_others(ended, culprits)}; {_living(live, answering)}"
    if not ended:
        return live.status, live.sentence
    # Who ended without a fault of its own accuses nobody, and a job is not healthy without it.
    return (2 if live.status == 0 else live.status), f"{live.sentence}; {_kinds(ended)}"


def _living(live: Verdict, answering: Sequence[int]) -> str:
    """What the ranks that answer do: a hanging operation, if there is one."""
    for state in live.process_groups:
        for wait in state.hanging or state.waits:
            waiting = sorted(set(wait.waiting) & set(answering))
            if waiting:
                verb = "waits" if len(waiting) == 1 else "wait"
                return f"{named(waiting)} {verb} in {wait.op} #{wait.seq}"
    return f"{named(answering)} {'is' if len(answering) == 1 else 'are'} alive"


def _named(culprits: Sequence[Ending]) -> str:
    named = "; ".join(map(who_ended, culprits[:MAX_NAMED]))
    more = len(culprits) - MAX_NAMED
    return f"{named}; and {more} more ranks ended by themselves" if more > 0 else named


def who_ended(each: Ending) -> str:
    """One rank's end in words: how, when, at which step, where."""
    who = f"rank {each.rank}" if each.rank is not None else f"process {each.pid}"
    text = f"{who} {each.detail}"
    if each.kind == "oom" and each.memory is not None:
        used, limit = (value / GIB for value in each.memory)
        text += f", with {used:.1f} of {limit:.1f} GiB in use"
    if each.time is not None:
        text += f" at {time.strftime('%H:%M:%S', time.localtime(each.time))}"
    at = [] if each.step is None else [f"at step {each.step:,}"]
    if each.place is not None:
        at.append(f"in {place_text(each)}")
    if not at:
        return text
    if each.seen is None or each.time is None:
        return f"{text}, {', '.join(at)}"
    # Of a process that could not write any more, the last figures are up to a second old.
    return f"{text}; last seen {', '.join(at)} ({max(each.time - each.seen, 0.0):.1f} s before)"


def place_text(each: Ending) -> str:
    """``load_batch(), data.py:33``; "" if no place is known."""
    if each.place is None:
        return ""
    line = "" if each.place.line is None else f":{each.place.line}"
    function = each.place.function
    shown = function if function.startswith("<") else f"{function}()"
    return f"{shown}, {os.path.basename(each.place.file)}{line}"


def _others(endings: Sequence[Ending], culprits: Sequence[Ending]) -> str:
    """What became of the other ranks."""
    left = [each for each in endings if each not in culprits]
    return f"; {_kinds(left)}" if left else ""


def _kinds(endings: Sequence[Ending]) -> str:
    stopped = [each for each in endings if each.kind == "terminated"]
    outlived = [each for each in endings if _outlived(each, endings)]
    kinds = (
        (
            "was ended by SIGTERM",
            "were ended by SIGTERM",
            [e for e in stopped if not e.interrupted],
        ),
        ("was ended by Ctrl-C", "were ended by Ctrl-C", [e for e in stopped if e.interrupted]),
        (
            "was killed (SIGKILL) long after the others got SIGTERM",
            "were killed (SIGKILL) long after the others got SIGTERM",
            outlived,
        ),
        (
            "lost the others",
            "lost the others",
            [e for e in endings if _began(e) and e.waits_for_others],
        ),
        ("ended by itself", "ended by themselves", [e for e in endings if e.kind == "clean"]),
        (
            "left with exit status 0",
            "left with exit status 0",
            [e for e in endings if e.kind == "left"],
        ),
        (
            "is still without an end",
            "are still without an end",
            [e for e in endings if e.kind == "alive"],
        ),
    )
    return ", ".join(
        f"{_ranks(some)} {one if len(some) == 1 else many}" for one, many, some in kinds if some
    )


def _ranks(endings: Sequence[Ending]) -> str:
    known = sorted(each.rank for each in endings if each.rank is not None)
    if len(known) == 1 and len(endings) == 1:
        return f"rank {known[0]}"
    if not known:
        return "a process" if len(endings) == 1 else f"{len(endings)} processes"
    return f"ranks {fold(known)}"


def _without(missing: Sequence[int]) -> str:
    if not missing:
        return ""
    if len(missing) == 1:
        return f"; of rank {missing[0]} there is no box"
    return f"; of ranks {fold(missing)} there are no boxes"
