"""Recorded jobs, each rank's answers given by a server of ours."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.jobs.recordings import recording
from workerserver.http.registry import Registry
from workerserver.server import WorkerServer
from workerserver.types import Response

__all__ = ["answer", "replayed", "replaying"]


def answer(value: object) -> Response:
    return Response(json.dumps(value).encode(), content_type="application/json")


def replayed(rounds: list[dict[str, Any]]) -> Registry:
    """The handlers of one rank: what it answered in each of *rounds*, the last one for ever."""
    registry = Registry()
    looks = {"digest": 0, "fr_summary": 0}

    def at(question: str) -> dict[str, Any]:
        looks[question] += 1
        return rounds[min(looks[question], len(rounds)) - 1]

    def dump_traceback(format: str = "text") -> Response:
        if format == "digest":
            return answer(at("digest")["digest"])
        return answer(rounds[min(looks["digest"], len(rounds)) - 1]["stacks"])

    def fr_summary() -> Response:
        return answer(at("fr_summary")["fr_summary"])

    def fr_trace_json() -> Response:
        return answer(rounds[min(looks["fr_summary"], len(rounds)) - 1]["flight"])

    for handler in (dump_traceback, fr_summary, fr_trace_json):
        registry.register(handler.__name__, handler)
    return registry


@contextlib.contextmanager
def replaying(folder: Path) -> Iterator[Callable[[str], str]]:
    """``start(name)``: serves a recording's ranks; gives the target that they are found by."""
    with contextlib.ExitStack() as stack:

        def start(name: str) -> str:
            rounds = recording(name)["rounds"]
            for rank in range(len(rounds[0]["ranks"])):
                registry = replayed([each["ranks"][rank] for each in rounds])
                server = WorkerServer(str(folder / f"rank{rank}.sock"), -1, registry=registry)
                stack.callback(server.shutdown)
            return str(folder / "rank{rank}.sock")

        yield start
