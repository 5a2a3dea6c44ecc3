"""What the commands on whole jobs share: how they find and ask workers, and report failures.

Such a command ends with status 3 if there is no job, and 64 for wrong use: 0, 1 and 2 are for what
it found.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar

from workerserver.cli import places
from workerserver.cli.console import Output, counting
from workerserver.cli.errors import NoJobError, UsageError
from workerserver.cli.parser import CommandParser, Example
from workerserver.cli.places import TOKEN_HELP, add_asking, add_places, client_options
from workerserver.cli.text import backend_name, count, positive_seconds
from workerserver.cluster.ask.client import Client, run
from workerserver.cluster.ask.rounds import EVERYTHING, Part, Round, collect
from workerserver.cluster.failures import NO_SOCKET, no_such_socket, nobody_listens, unusable
from workerserver.cluster.find.discovery import Found, why_nobody
from workerserver.cluster.find.hosts import from_slurm, slurm_port
from workerserver.cluster.find.jobs import JobView, identity_of, split
from workerserver.cluster.model import MAX_HOST_WORKERS, RankState, Worker
from workerserver.cluster.show.tree import short_fold
from workerserver.job.printable import escape_line

if TYPE_CHECKING:
    from workerserver.cluster.judge.verdict import Verdict

__all__ = [
    "SCHEMA_VERSION",
    "SENTENCES",
    "Judged",
    "add_backends",
    "add_rounds",
    "ask",
    "by_job",
    "cost",
    "count",
    "ended",
    "find_all",
    "find_one",
    "find_one_job",
    "find_some",
    "job_parser",
    "look",
    "look_at_all",
    "nobody",
    "of_jobs",
    "printable",
    "problems",
    "share",
    "show_gone",
    "show_job",
    "unreachable",
    "versioned",
    "world_size",
    "write_json",
]

T = TypeVar("T")

#: Of all that --json prints: raised when a field is removed or changes its meaning.
SCHEMA_VERSION = 1
#: The fields of --json that hold sentences. A program shows them to people as they are: in a chat,
#: a ticket or a log.
SENTENCES = frozenset(
    {
        "error", "evidence", "leftovers", "not_looked_at", "notes", "nothing", "problems", "text",
        "verdict", "waits_for",
    }
)  # fmt: skip
#: Lines about workers without an answer.
MAX_GONE_LINES = 20


class Judged(NamedTuple):
    """One job and the verdict on it."""

    view: JobView[Round]
    verdict: Verdict


def job_parser(
    name: str, description: str, *, examples: Sequence[Example], deadline: float = 10.0
) -> CommandParser:
    """A parser with the options for finding and asking workers."""
    parser = CommandParser(
        name,
        description=description,
        examples=examples,
        epilog="If no place is named, the first of these that has workers counts: torchrun's "
        "variables (MASTER_ADDR, MASTER_PORT), Slurm's variables, TORCH_WORKER_SERVER_SOCKET, all "
        f"jobs of this user on this machine. {TOKEN_HELP}",
    )
    add_places(parser, targets=True)
    how = add_asking(parser, deadline)
    how.add_argument(
        "--concurrency",
        type=count,
        default=128,
        metavar="N",
        help="how many workers are asked at the same time (default 128)",
    )
    return parser


def add_backends(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        dest="backends",
        action="append",
        type=backend_name,
        default=[],
        metavar="NAME",
        help="also ask torch's own servers for the flight recorder of this backend. Needed only "
        "for a backend that torch doesn't bring itself: torch's servers don't tell its name",
    )


def add_native(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--native",
        action="store_true",
        help="also ask for the native (C and C++) frames of threads that are blocked (Linux; "
        "docs/native.md)",
    )


def add_rounds(parser: argparse.ArgumentParser, rounds: int | None) -> None:
    """*rounds* None: by default as many as are enough."""
    usual = "1 or 2, then more for 10 s if they may help" if rounds is None else str(rounds)
    parser.add_argument(
        "--rounds",
        type=count,
        default=rounds,
        metavar="N",
        help=f"number of looks at the job; two looks tell stuck from slow (default {usual})",
    )
    parser.add_argument(
        "--interval",
        type=positive_seconds,
        default=2.0,
        metavar="S",
        help="seconds between two looks (default 2)",
    )


def world_size(options: argparse.Namespace, workers: Iterable[Worker]) -> int | None:
    """How many ranks the job has, if that is known without asking them."""
    if options.world_size is not None:
        return int(options.world_size)
    said = os.environ.get("WORLD_SIZE", "")
    if any(worker.source == "torchrun" for worker in workers):
        return int(said) if said.isascii() and said.isdecimal() and len(said) < 9 else None
    return None


def find_all(options: argparse.Namespace) -> Found:
    """The workers that the options name, and what ended ones have left.

    On the nodes of a Slurm job, with a port for each local rank, the environment only tells how
    many tasks the step of whoever asks has. The workers tell how many theirs has, so they are asked
    first.
    """
    found = places.find_all(options)
    port = slurm_port(os.environ, options.port)
    if not port or not any(worker.source == "slurm" for worker in found.workers):
        return found
    health: tuple[Part, ...] = ("health",)
    (first,) = ask(options, lambda client: collect(found.workers, want=health, client=client))
    told = (identity_of(state.health) for state in first.states)
    counts = [each.local_world_size or 0 for each in told if each is not None]
    most = min(max(counts, default=0), MAX_HOST_WORKERS)
    if most == 0:
        return found
    others = [worker for worker in found.workers if worker.source != "slurm"]
    return replace(found, workers=[*others, *from_slurm(os.environ, options.port, most)])


def find_some(options: argparse.Namespace) -> Found:
    """The workers of one job or of several. NoJobError if none is left."""
    found = find_all(options)
    if not found.workers:
        raise NoJobError(_with_boxes(why_nobody(found)))
    return found


def find_one(options: argparse.Namespace) -> list[Worker]:
    """The workers of one job, for commands that can't keep two apart."""
    return find_one_job(options).workers


def find_one_job(options: argparse.Namespace) -> Found:
    """The same, with what ended workers have left."""
    found = find_some(options)
    labels = found.labels
    if len(labels) > 1:
        raise UsageError(f"{len(labels)} jobs: choose one with --job: {', '.join(labels)}")
    return found


def by_job(
    options: argparse.Namespace, found: Found, rounds: Sequence[Round]
) -> list[JobView[Round]]:
    """The looks at each job by itself. With --job, at that one."""
    likely = world_size(options, found.workers)
    views = split(rounds, found.ended, options.world_size, likely)
    if options.job is not None:
        wanted = [view for view in views if options.job in (view.name, view.label)]
        return wanted or views
    return views


def nobody(states: Iterable[RankState]) -> bool:
    """Whether the job has ended: nobody listens at any address."""
    return all(map(nobody_listens, states))


def share(have: int, asked: int, states: Iterable[RankState]) -> int:
    """The exit status of a command that wants something of all workers."""
    if have:
        return 0 if have == asked else 1
    return 3 if nobody(states) else 2


def of_jobs(views: Sequence[JobView[Round]], parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is told of each job, for JSON: the first one's fields, and the others beside it."""
    first, *others = (
        {**fields, "notes": view.notes, "job": view.label}
        for view, fields in zip(views, parts, strict=True)
    )
    return {**first, "other_jobs": others}


def show_job(view: JobView[Round], count: int, out: Output) -> None:
    """The head of what is told of one job, if there are more."""
    if count > 1:
        out.line(f"job {view.label or 'of no known name'}", "bold")
    for line in (*view.leftovers, *view.notes):
        out.line(line, "dim")


def ended(view: JobView[Round], found: Found) -> str:
    """That a job has ended, in words, and where its black boxes may lie. A path that is not there
    may be mistyped, too."""
    return _with_boxes(_ended(view, found))


def _with_boxes(sentence: str) -> str:
    return "; ".join(filter(None, (sentence, places.boxes_near())))


def _ended(view: JobView[Round], found: Found) -> str:
    states = [state for look in view.rounds[-1:] for state in look.states]
    addresses = [state.worker.address for state in states]
    if not addresses:
        return why_nobody(found)
    if len(states) == 1 and states[0].worker.source == "argument" and no_such_socket(states[0]):
        return f"no job here, or it has ended: {addresses[0]}: {NO_SOCKET}"
    more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
    return f"the job has ended: nobody listens at {min(addresses)}{more}"


def ask(options: argparse.Namespace, main: Callable[[Client], Awaitable[T]]) -> T:
    """``main(client)`` with a client as the options want it. The first Ctrl-C ends the questions,
    and *main* goes on with the answers that came."""
    return run(main, concurrency=options.concurrency, **client_options(options))


def look(
    options: argparse.Namespace,
    workers: Sequence[Worker],
    want: Collection[Part],
    enough: Callable[[Sequence[Round]], bool] | None = None,
) -> list[Round]:
    """As many rounds of *workers* as add_rounds()'s options say, with a progress bar. If they don't
    say how many: as many as are *enough*."""
    then = ""
    if options.rounds != 1:
        then = f"{len(workers)} asked; another look {options.interval:g} s after the last one"
    with counting("asking", len(workers), then) as done:
        return ask(
            options,
            lambda client: collect(
                workers,
                want=want,
                rounds=options.rounds or 1,
                interval=options.interval,
                on_done=lambda state: done(),
                client=client,
                enough=enough if options.rounds is None else None,
                backends=getattr(options, "backends", ()),
            ),
        )


def look_at_all(
    options: argparse.Namespace, found: Found, enough: Callable[[list[JobView[Round]]], bool]
) -> list[Round]:
    """The rounds of all that was found, each with everything, as :func:`look`. *enough* gets the
    looks at each job by itself."""
    if not found.workers:
        return []
    return look(
        options, found.workers, EVERYTHING, lambda rounds: enough(by_job(options, found, rounds))
    )


# ---- what is said about the answers


def unreachable(states: Iterable[RankState]) -> list[dict[str, Any]]:
    """The workers without a usable answer, by rank."""
    gone = [(state, unusable(state)) for state in states]
    return [
        {
            "rank": state.rank,
            "host": state.worker.host,
            "address": state.worker.address,
            "reason": failure.reason,
            "text": failure.text,
        }
        for state, failure in sorted(gone, key=lambda each: _order(each[0]))
        if failure is not None
    ]


def problems(states: Iterable[RankState]) -> list[str]:
    """What single answers lacked, one line each. Not of workers without any usable answer."""
    return [
        f"{name(state)}: {question}: {failure.reason}: {failure.text}"
        for state in sorted(states, key=_order)
        if unusable(state) is None
        for question, failure in sorted(state.failures.items())
    ]


def name(state: RankState) -> str:
    return f"rank {state.rank}" if state.rank is not None else f"worker {state.worker.address}"


def _order(state: RankState) -> tuple[int, str]:
    return (1 << 62 if state.rank is None else state.rank, state.worker.address)


def cost(rounds: Sequence[Round]) -> dict[str, Any]:
    """What the answers cost, for JSON."""
    return {
        "rounds": len(rounds),
        "seconds": round(sum(each.duration_s for each in rounds), 6),
        "questions": sum(each.questions for each in rounds),
        "bytes_received": sum(each.bytes_received for each in rounds),
    }


def show_gone(out: Output, gone: Sequence[dict[str, Any]]) -> None:
    """Which workers did not answer, and why. Those with the same reason share a line."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for each in gone:
        alike.setdefault(f"{each['reason']}: {each['text']}", []).append(each)
    for text, some in list(alike.items())[:MAX_GONE_LINES]:
        ranks = [each["rank"] for each in some if each["rank"] is not None]
        names = [f"rank{'s' * (len(ranks) > 1)} {short_fold(ranks)}"] if ranks else []
        if len(some) == 1 and some[0]["address"]:
            names = [*names, f"({some[0]['address']})"] if names else [some[0]["address"]]
        elif len(ranks) < len(some):
            names.append(f"{'and ' * bool(ranks)}{len(some) - len(ranks)} of unknown rank")
        out.line(f"{' '.join(names)}: {text}", "yellow")
    if len(alike) > MAX_GONE_LINES:
        out.line(f"... and {len(alike) - MAX_GONE_LINES} more reasons", "yellow")


def versioned(fields: Mapping[str, Any]) -> dict[str, Any]:
    """*fields*, behind the version of their schema."""
    return {"schema_version": SCHEMA_VERSION, **fields}


def printable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What --json prints: as :func:`versioned`, with SENTENCES safe to print. The other texts are
    data, which JSON escapes."""
    return {name: _printable(name, value) for name, value in versioned(fields).items()}


def _printable(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return escape_line(value) if name in SENTENCES else value
    if isinstance(value, list | tuple):
        return [_printable(name, each) for each in value]
    if isinstance(value, dict):
        return {inner: _printable(inner, each) for inner, each in value.items()}
    return value


def write_json(out: TextIO, fields: Mapping[str, Any]) -> None:
    """Only ASCII is written, so a terminal can show it."""
    json.dump(printable(fields), out, indent=1)
    out.write("\n")
