"""The questions to workers, and the answers that are kept once for many of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.exchange import Answer, Question
from workerserver.cluster.model import Thread, Worker
from workerserver.cluster.read import stacks

__all__ = [
    "DIGEST",
    "HANDLERS",
    "HEALTH",
    "STACKS",
    "SUMMARY",
    "TEXT",
    "TRACES",
    "Memory",
    "process_groups",
]

#: The stacks of a thousand threads, and a trace of a recorder with 20,000 entries.
MAX_STACKS_BYTES = 8 << 20
MAX_TRACE_BYTES = 32 << 20


def _digest(answer: Answer) -> tuple[bodies.Digest, str | None] | str:
    """Our digest. Stock torch ignores the format that was asked for, and gives its text."""
    if answer.content_type.startswith("text/plain") and answer.body[:1] != b"{":
        return _text(answer)
    return bodies.digest(answer.body), _mode(answer)


def _text(answer: Answer) -> str:
    return answer.body.decode("utf-8", "backslashreplace")


def _mode(answer: Answer) -> str | None:
    mode = answer.fields.get("x-traceback-mode")
    return mode if mode in ("gil", "nogil", "kernel") else None


@dataclass(slots=True)
class Memory:
    """What is equal on many ranks or in many rounds, kept once: stacks, by their digest and mode,
    and each worker's last summary."""

    threads: dict[tuple[str, str | None], tuple[Thread, ...]] = field(default_factory=dict)
    summaries: dict[Worker, Mapping[str, Any]] = field(default_factory=dict)

    def kept(self, worker: Worker, summary: Mapping[str, Any]) -> Mapping[str, Any]:
        """*summary*, or the equal one of an earlier round. In a job that hangs nothing changes, and
        summaries are most of the memory that a round takes."""
        known = self.summaries.get(worker)
        if known is not None and known == summary:
            return known
        for group in process_groups(summary):
            last = group.get("last_issued")
            if last is not None and group.get("first_pending") == last:
                group["first_pending"] = last
        self.summaries[worker] = summary
        return summary


HEALTH = Question(
    "healthz", "/healthz", "GET", limit=4096, parse=lambda answer: bodies.health(answer.body)
)
HANDLERS = Question(
    "handlers", "/handler/", "GET", limit=1 << 20, parse=lambda a: bodies.handler_names(a.body)
)
DIGEST = Question.handler("dump_traceback", "format=digest", limit=MAX_STACKS_BYTES, parse=_digest)
STACKS = Question.handler(
    "dump_traceback",
    "format=json",
    limit=MAX_STACKS_BYTES,
    parse=lambda a: tuple(stacks.parse_json(a.body)),
)
TEXT = Question.handler("dump_traceback", limit=MAX_STACKS_BYTES, parse=_text)
SUMMARY = Question.handler("fr_summary", limit=1 << 20, parse=lambda a: bodies.json_object(a.body))
#: There are two recorders: NCCL's, and one for the other backends.
TRACES = {
    "fr": Question.handler(
        "fr_trace_json", limit=MAX_TRACE_BYTES, parse=lambda a: bodies.json_object(a.body)
    ),
    "nccl": Question.handler(
        "dump_nccl_trace_json",
        "includecollectives=true&onlyactive=true",
        limit=MAX_TRACE_BYTES,
        parse=lambda a: bodies.json_object(a.body),
    ),
}


def process_groups(summary: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    groups = (summary or {}).get("groups")
    some = itertools.islice(groups, 4096) if isinstance(groups, list) else ()
    return [group for group in some if isinstance(group, dict)]
