"""The answers of real jobs' ranks, recorded by tests/data/flight/record.py.

``<scene>-ours.json``: ranks with our server; ``<scene>-torch.json``: with torch's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workerserver.cluster.ask import bodies
from workerserver.cluster.model import Failure, RankState, Worker
from workerserver.cluster.read import stacks

FOLDER = Path(__file__).parents[2] / "data" / "flight"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


@dataclass
class Round:
    """The fields of ``rounds.Round`` that a verdict needs."""

    states: list[RankState]
    started: float


def recording(name: str) -> dict[str, Any]:
    """The file, with the answers that two rounds share filled in."""
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    first, second = (each["ranks"] for each in loaded["rounds"])
    for before, after in zip(first, second, strict=True):
        after.update({key: before[key] for key, value in after.items() if value == "same"})
    return loaded


def flights(name: str) -> dict[int, Any]:
    """Each rank's ``fr_trace_json`` in the last round."""
    ranks = recording(name)["rounds"][-1]["ranks"]
    return {
        rank: answers["flight"]
        for rank, answers in enumerate(ranks)
        if "failure" not in answers.get("flight", {"failure": ""})
    }


def rounds(name: str) -> list[Round]:
    loaded = recording(name)
    return [
        Round(
            [
                state(rank, answers, loaded["kind"] == "ours")
                for rank, answers in enumerate(each["ranks"])
            ],
            each["time"],
        )
        for each in loaded["rounds"]
    ]


def state(rank: int, answers: dict[str, Any], ours: bool) -> RankState:
    made = RankState(
        Worker(f"/run/rank{rank}.sock", True, rank), rank, "workerserver" if ours else "torch"
    )
    for question, answer in answers.items():
        if isinstance(answer, dict) and "failure" in answer:
            made.failures[question] = Failure(answer["failure"], "as it was recorded")
            continue
        made.responded = True
        body = json.dumps(answer).encode()
        if question == "healthz":
            made.health = bodies.health(body)
        elif question == "digest":
            made.digest, made.main_digest = bodies.digest(body)
        elif question == "stacks":
            made.threads, made.mode = tuple(stacks.parse_json(body)), answer["mode"]
        elif question == "text":
            made.threads = tuple(stacks.parse_text(answer))
        elif question == "fr_summary":
            made.flight_summary = answer
        else:
            made.flight = answer
    return made


def without_traces(given: Iterable[Round]) -> list[Round]:
    """*given* without full traces: of ranks not worth a trace, a look has only the summaries."""
    return [
        Round([replace(each, flight=None) for each in one.states], one.started) for one in given
    ]
