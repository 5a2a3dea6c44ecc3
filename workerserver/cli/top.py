"""``workerserver top``: a live table of all ranks, from ``/healthz``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from workerserver.cli.console import Output, rich_table
from workerserver.cli.job_command import ask, find_one, job_parser, share, unreachable, versioned
from workerserver.cli.looks import add_every, looks
from workerserver.cli.parser import CommandParser
from workerserver.cli.streams import reader_left
from workerserver.cli.text import seconds
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.rounds import Part, Round
from workerserver.cluster.model import Health, RankState, cores_used

__all__ = ["main", "rows"]

HEALTH: tuple[Part, ...] = ("health",)
HEADER = (
    "RANK", "TARGET", "STATE", "STEP", "STEP AGE", "GIL WAIT", "GIL AWAY", "CPU", "MEMORY", "UPTIME"
)  # fmt: skip
#: The style of a row, by its state.
STYLES = {"ok": "", "torch": "dim", "stalled": "yellow", "no GIL": "red"}
#: If the server has waited this long for the GIL, a thread of the worker holds the GIL.
GIL_AWAY_SECONDS = 1.0


def make_parser() -> CommandParser:
    parser = job_parser(
        "top",
        "Show all ranks of a job as a live table: the step, the age of the step, the time that the "
        "server waited for the GIL, the processor time since the last look (100% is one core), and "
        "the memory. Ranks that don't answer come first, then the ranks with the lowest steps. "
        "Ctrl-C ends the table. "
        "Exit status: 0 all workers answered the last look, 1 some, 2 none, 3 no job.",
        deadline=3.0,
        examples=(
            ("workerserver top", "the one job of this user on this machine"),
            ("workerserver top --every 10 --job train", "a look every ten seconds"),
            ("workerserver top --count 1 --json", "one look, for a program"),
        ),
    )
    add_every(parser, 2.0)
    parser.add_json("one object per look and line")
    return parser


def main(argv: Sequence[str]) -> int:
    """The exit status of the last look: 0 if all workers answer, 1 if some do, 2 if none does, 3 if
    the job has ended."""
    options = make_parser().parse_intermixed_args(list(argv))
    workers = find_one(options)
    out = Output(sys.stdout)

    async def watch(client: Client) -> int:
        answered = asked = 0
        before: Round | None = None
        with contextlib.ExitStack() as stack:
            live = None
            if out.console is not None and not options.json:
                from rich.live import Live

                live = stack.enter_context(
                    Live(console=out.console, auto_refresh=False, vertical_overflow="crop")
                )
            async for look in looks(
                client, workers, HEALTH, every=options.every, most=options.count
            ):
                table = rows(look, before)
                before = look
                answered, asked = sum(row["answered"] for row in table), len(table)
                if options.json:
                    fields = versioned({"time": look.started, "workers": table})
                    sys.stdout.write(json.dumps(fields) + "\n")
                elif live is not None:
                    cells = [_cells(row) for row in table]
                    styles = [STYLES.get(row["state"], "red") for row in table]
                    live.update(rich_table(HEADER, cells, styles), refresh=True)
                else:
                    out.table(HEADER, [_cells(row) for row in table])
                    out.line()
                sys.stdout.flush()
                if reader_left():
                    break
        return share(answered, asked, before.states if before is not None else ())

    return ask(options, watch)


def rows(look: Round, before: Round | None = None) -> list[dict[str, Any]]:
    """A row per worker, workers with trouble first. *before* is the look before this one."""
    gone = {(each["address"], each["rank"]): each for each in unreachable(look.states)}
    last = {state.worker: state.health for state in before.states} if before is not None else {}
    return sorted((_row(state, gone, last.get(state.worker)) for state in look.states), key=_order)


def _row(
    state: RankState, gone: dict[tuple[str, int | None], dict[str, Any]], last: Health | None
) -> dict[str, Any]:
    health, failure = state.health, gone.get((state.worker.address, state.rank))
    used = cores_used(health, last)
    # Only health was asked for, and a stock server has none.
    answered = failure is None if health is not None else state.kind == "torch"
    away = health.gil_unavailable_s if health is not None else None
    if failure is not None and not answered:
        word = failure["reason"]
    elif health is None:
        word = "torch"
    else:
        word = "no GIL" if (away or 0.0) >= GIL_AWAY_SECONDS else health.status
    return {
        "rank": state.rank,
        "host": state.worker.host,
        "address": state.worker.address,
        "answered": answered,
        "state": word,
        "text": failure["text"] if failure is not None and not answered else None,
        "step": health.step if health is not None else None,
        "step_age_s": health.step_age_s if health is not None else None,
        "gil_wait_s": health.gil_wait_s if health is not None else None,
        "gil_unavailable_s": away,
        "cpu": None if used is None else round(used, 3),
        "rss_bytes": health.rss_bytes if health is not None else None,
        "uptime_s": health.uptime_s if health is not None else None,
    }


def _order(row: dict[str, Any]) -> tuple[bool, float, int, str]:
    step = float("inf") if row["step"] is None else row["step"]
    rank = 1 << 62 if row["rank"] is None else row["rank"]
    return (row["answered"], step, rank, row["address"])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    wait = row["gil_wait_s"]
    return (
        "-" if row["rank"] is None else str(row["rank"]),
        row["address"] or "-",
        row["state"],
        "-" if row["step"] is None else str(row["step"]),
        seconds(row["step_age_s"]),
        "-" if wait is None else f"{wait * 1000:.2f} ms",
        seconds(row["gil_unavailable_s"] or None),
        "-" if row["cpu"] is None else f"{row['cpu']:.0%}",
        "-" if row["rss_bytes"] is None else f"{row['rss_bytes'] / 2**20:.0f} MiB",
        seconds(row["uptime_s"]),
    )
