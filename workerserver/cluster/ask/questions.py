"""What is asked of workers, and what of their answers is kept once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workerserver.cluster.ask import wire
from workerserver.cluster.ask.client import Answer, Question
from workerserver.cluster.model import Thread, Worker
from workerserver.cluster.read import stacks
from workerserver.cluster.read.summary import share

__all__ = ["DIGEST", "HEALTH", "STACKS", "SUMMARY", "TEXT", "TRACES", "Memory"]

#: Bytes: stacks of a thousand threads; a trace of a recorder with 20,000 entries.
STACK_LIMIT = 8 << 20
TRACE_LIMIT = 32 << 20


def _digest(answer: Answer) -> tuple[wire.Digest, str | None] | str:
    """Stock torch ignores the format that was asked for: its text."""
    if answer.content_type.startswith("text/plain") and answer.body[:1] != b"{":
        return _text(answer)
    return wire.digest(answer.body), _mode(answer)


def _text(answer: Answer) -> str:
    return answer.body.decode("utf-8", "backslashreplace")


def _mode(answer: Answer) -> str | None:
    mode = answer.fields.get("x-traceback-mode")
    return mode if mode in ("gil", "nogil", "kernel") else None


@dataclass(slots=True)
class Memory:
    """What is the same on many ranks or in many looks, kept once: stacks, by what identifies them,
    and each worker's last summary."""

    threads: dict[tuple[str, str | None], tuple[Thread, ...]] = field(default_factory=dict)
    summaries: dict[Worker, Mapping[str, Any]] = field(default_factory=dict)

    def kept(self, worker: Worker, summary: Mapping[str, Any]) -> Mapping[str, Any]:
        """*summary*, or the one that is there already. Where a job hangs nothing changes, and
        summaries are most of what a look at it takes in memory."""
        known = self.summaries.get(worker)
        if known is not None and known == summary:
            return known
        share(summary)
        self.summaries[worker] = summary
        return summary


HEALTH = Question(
    "healthz", "/healthz", "GET", limit=4096, parse=lambda answer: wire.health(answer.body)
)
DIGEST = Question.handler("dump_traceback", "format=digest", limit=STACK_LIMIT, parse=_digest)
STACKS = Question.handler(
    "dump_traceback",
    "format=json",
    limit=STACK_LIMIT,
    parse=lambda a: tuple(stacks.parse_json(a.body)),
)
TEXT = Question.handler("dump_traceback", limit=STACK_LIMIT, parse=_text)
SUMMARY = Question.handler("fr_summary", limit=1 << 20, parse=lambda a: wire.json_object(a.body))
#: There are two recorders: NCCL's, and one for the other backends.
TRACES = {
    "fr": Question.handler(
        "fr_trace_json", limit=TRACE_LIMIT, parse=lambda a: wire.json_object(a.body)
    ),
    "nccl": Question.handler(
        "dump_nccl_trace_json",
        "includecollectives=true&onlyactive=true",
        limit=TRACE_LIMIT,
        parse=lambda a: wire.json_object(a.body),
    ),
}
