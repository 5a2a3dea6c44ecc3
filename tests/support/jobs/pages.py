"""Pages for the tests: of recorded jobs, of a large one, and of one whose ranks lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.jobs.large import fields_of, large_job, paces_of
from support.jobs.recordings import Round, rounds
from workerserver.cluster.model import Frame
from workerserver.cluster.show.page.page import report_page

__all__ = ["EVIL", "MARK", "hostile_page", "large_page", "put", "recorded", "recorded_page"]

#: What a page that takes texts for markup would run, load or show.
EVIL = (
    "</textarea></style></script><script>document.title='MARK'</script>"
    "<img src=http://127.0.0.1:9/MARK onerror=document.title='MARK'>\"'><b id=MARK>&lt;MARK&gt;"
    "\u202eMARK\ud800\x00\x1b[31m\n<!--"
)
MARK = "MARK"


def recorded(name: str) -> tuple[dict[str, Any], list[Round]]:
    looks = rounds(name)
    return fields_of(looks), looks


def recorded_page(name: str, **more: Any) -> str:
    fields, looks = recorded(name)
    return report_page(fields, looks, **more)


def large_page(ranks: int = 4096, stacks: int = 65) -> str:
    looks = large_job(ranks, stacks)
    return report_page(fields_of(looks), looks, paces_of(looks))


def hostile_page(**more: Any) -> str:
    """Every text of a worker is EVIL: functions, files, hosts, and what a verdict says of them."""
    fields, looks = recorded("two_asleep-ours")
    for look in looks:
        for state in look.states:
            state.threads = tuple(
                replace(
                    thread,
                    wchan=EVIL,
                    frames=tuple(
                        Frame(f"/{EVIL}/{file}", line, f"{function}{EVIL}")
                        for file, line, function in thread.frames
                    ),
                )
                for thread in state.threads
            )
            if state.health is not None:
                state.health = replace(state.health, host=EVIL)
            state.worker = replace(state.worker, address=f"/run/{EVIL}")
    return report_page(
        _evil(fields), looks, targets=[EVIL], commands={1: EVIL}, samples=looks[-1].states, **more
    )


#: Fields that only a judge writes, and that decide what is drawn.
_OURS = {"ranks", "waiting", "absent", "silent"}


def _evil(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _evil(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_evil(each, name) for each in value]
    return f"{value}{EVIL}" if isinstance(value, str) and name not in _OURS else value


def put(folder: Path, page: str) -> str:
    """The address of *page* in a file."""
    path = folder / "report.html"
    path.write_bytes(page.encode())
    return path.as_uri()


def told_alone(fields: dict[str, Any]) -> dict[str, Any]:
    """*fields* as another process reads them."""
    loaded: dict[str, Any] = json.loads(json.dumps(fields))
    return loaded
