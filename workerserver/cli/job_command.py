"""What the commands on whole jobs share: how they find the workers, ask them, and say who is gone.

They end with status 2 where they could not begin: 1 is for what they found.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, TextIO, TypeVar

from workerserver.cli.client import read_token
from workerserver.cli.console import Output, counting
from workerserver.cli.errors import UsageError
from workerserver.cli.text import positive_seconds
from workerserver.cluster.ask.client import Client, run, tls_context
from workerserver.cluster.ask.rounds import Part, Round, collect
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.failures import unusable
from workerserver.cluster.find.discovery import Options, discover
from workerserver.cluster.model import RankState, Worker
from workerserver.cluster.show.tree import short_fold

__all__ = [
    "add_rounds",
    "ask",
    "cost",
    "count",
    "find",
    "job_parser",
    "look",
    "problems",
    "show_gone",
    "unreachable",
    "world_size",
    "write_json",
]

T = TypeVar("T")

#: Lines of workers without an answer that people are shown.
MAX_GONE = 20


def job_parser(name: str, description: str, *, deadline: float = 10.0) -> argparse.ArgumentParser:
    """A parser that knows how workers are found and asked."""
    parser = argparse.ArgumentParser(
        f"workerserver {name}",
        description=description,
        allow_abbrev=False,
        epilog="Without any place named: the job of torchrun's environment (MASTER_ADDR, "
        "MASTER_PORT), of Slurm's, TORCH_WORKER_SERVER_SOCKET, or what `workerserver run` started "
        "here. A token is taken from WORKERSERVER_TOKEN or WORKERSERVER_TOKEN_FILE.",
    )
    where = parser.add_argument_group("where the workers are (all that is given counts)")
    where.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="a Unix socket, a folder, pattern or template ({rank}) of them, host:port, a URL",
    )
    where.add_argument("--store", metavar="HOST:PORT", help="the job's TCPStore (rendezvous)")
    where.add_argument(
        "--hosts", metavar="FILE", help="lines such as node[001-128]:25[000-007]; # is a comment"
    )
    where.add_argument(
        "--dns",
        action="append",
        default=[],
        metavar="NAME:PORT[-PORT]",
        help="every address of NAME: a headless Kubernetes service",
    )
    where.add_argument(
        "--collectors",
        action="append",
        default=[],
        metavar="HOST:PORT,...",
        help="collectors, one for each host: node[001-128]:25998",
    )
    where.add_argument("--slurm", action="store_true", help="the nodes of this Slurm job")
    where.add_argument(
        "--port",
        metavar="PORT",
        help="for hosts of --hosts and --collectors without one, and for --slurm",
    )
    where.add_argument(
        "--world-size", type=count, metavar="N", help="ranks that the job has to have"
    )
    how = parser.add_argument_group("how they are asked")
    how.add_argument(
        "--deadline",
        type=positive_seconds,
        default=deadline,
        metavar="S",
        help=f"for each worker (default {deadline:g})",
    )
    how.add_argument(
        "--concurrency", type=count, default=128, metavar="N", help="at one time (default 128)"
    )
    how.add_argument("--cacert", metavar="FILE", help="authorities for https addresses")
    return parser


def add_rounds(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument(
        "--rounds",
        type=count,
        default=rounds,
        metavar="N",
        help=f"looks at the job, to tell stuck from slow (default {rounds})",
    )
    parser.add_argument(
        "--interval",
        type=positive_seconds,
        default=2.0,
        metavar="S",
        help="between two looks (default 2)",
    )


def count(text: str) -> int:
    """A positive number, for argparse."""
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def find(options: argparse.Namespace) -> list[Worker]:
    """The workers that the options name; UsageError if there are none."""
    try:
        return discover(
            Options(
                targets=options.targets,
                hosts_file=options.hosts,
                store=options.store,
                dns=options.dns,
                collectors=options.collectors,
                slurm=options.slurm,
                port=options.port,
                world_size=options.world_size,
                deadline=options.deadline,
            )
        )
    except ClusterError as error:
        raise UsageError(str(error)) from None


def world_size(options: argparse.Namespace, workers: Iterable[Worker]) -> int | None:
    """How many ranks the job has, as far as that is known without asking them."""
    if options.world_size is not None:
        return int(options.world_size)
    said = os.environ.get("WORLD_SIZE", "")
    if any(worker.source == "torchrun" for worker in workers):
        return int(said) if said.isascii() and said.isdecimal() and len(said) < 9 else None
    return None


def ask(options: argparse.Namespace, main: Callable[[Client], Awaitable[T]]) -> T:
    """``main(client)`` with a client as the options want it. The first Ctrl-C ends the questions,
    and *main* goes on with the answers that came."""
    try:
        return run(
            main,
            deadline=options.deadline,
            concurrency=options.concurrency,
            token=read_token(),
            tls=tls_context(options.cacert) if options.cacert is not None else None,
        )
    except ClusterError as error:
        raise UsageError(str(error)) from None


def look(
    options: argparse.Namespace, workers: Sequence[Worker], want: Collection[Part]
) -> list[Round]:
    """As many looks at *workers* as add_rounds()'s options say, with a progress bar."""
    with counting("asking", options.rounds * len(workers)) as done:
        return ask(
            options,
            lambda client: collect(
                workers,
                want=want,
                rounds=options.rounds,
                interval=options.interval,
                on_done=lambda state: done(),
                client=client,
            ),
        )


# ---- what is told of the answers


def unreachable(states: Iterable[RankState]) -> list[dict[str, Any]]:
    """Those that answered nothing that can be used, by rank."""
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
    """What single answers lacked, one line each; not of those who answered nothing."""
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
    """Who did not answer, and why: those with the same reason on one line."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for each in gone:
        alike.setdefault(f"{each['reason']}: {each['text']}", []).append(each)
    for text, some in list(alike.items())[:MAX_GONE]:
        ranks = [each["rank"] for each in some if each["rank"] is not None]
        names = [f"rank{'s' * (len(ranks) > 1)} {short_fold(ranks)}"] if ranks else []
        if len(some) == 1 and some[0]["address"]:
            names = [*names, f"({some[0]['address']})"] if names else [some[0]["address"]]
        elif len(ranks) < len(some):
            names.append(f"{'and ' * bool(ranks)}{len(some) - len(ranks)} of unknown rank")
        out.line(f"{' '.join(names)}: {text}", "yellow")
    if len(alike) > MAX_GONE:
        out.line(f"... and {len(alike) - MAX_GONE} more reasons", "yellow")


def write_json(out: TextIO, value: object) -> None:
    """ASCII only, so it is safe to look at."""
    json.dump(value, out, indent=1)
    out.write("\n")
