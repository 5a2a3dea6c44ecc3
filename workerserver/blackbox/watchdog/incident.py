"""What the watchdog knows of an incident, and how it is set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Incident", "Settings", "essence"]


@dataclass(frozen=True, slots=True)
class Settings:
    """*boxes*: the folder on the tmpfs. *folder*: the one that the user named; "" if there is none.
    *agent*: who has started the job's workers, ``PID:TICKS``. *cwd*: where the job was started.
    *stall*: seconds, None: the job's own pace. *hosts*: the job has ranks on other hosts. *store*:
    their TCPStore, if the ranks or collectors serve on TCP; else "". *world*: ranks of the job."""

    boxes: str
    folder: str
    label: str
    agent: str
    cwd: str
    stall: float | None = None
    store: str = ""
    hosts: bool = False
    world: int = 0


@dataclass(slots=True)
class Incident:
    """*began*: when it was found, by the monotonic clock. *name*: the verdict's file. *silent*:
    another host's watchdog tells it. *told*: the verdict's document. *mark*: of Others, by which
    other hosts know that it is told."""

    kind: Literal["stall", "gone"]
    restart: int | None
    began: float
    name: str = ""
    silent: bool = False
    told: Mapping[str, Any] | None = None
    quiet_s: float = 0.0
    mark: Sequence[str] = ()


def essence(document: Mapping[str, Any]) -> object:
    """What stays the same in the verdicts on ranks of which none moves."""
    groups = [(each.get("ranks"), each.get("stack")) for each in document.get("groups", ())]
    places = [each.get("positions") for each in document.get("process_groups", ())]
    return groups, places
