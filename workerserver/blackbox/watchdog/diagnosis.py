"""The diagnosis of an incident: ``workerserver diagnose`` in a process of its own.

So the watchdog stays small, and whatever becomes of a diagnosis, the watchdog goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from workerserver.blackbox.place import LEFT, SUFFIX
from workerserver.blackbox.watchdog.others import Places
from workerserver.blackbox.watchdog.ranks import Rank
from workerserver.blackbox.watchdog.ready import Ready

__all__ = ["bounded", "diagnosed", "report_words", "targets_of"]

#: A diagnosis of hanging ranks takes 10 s at most, and the start of Python on a busy machine.
SECONDS = 60.0
#: For each rank, in each round.
DEADLINE_SECONDS = 4
MAX_OUTPUT_BYTES = 64 << 20


def targets_of(ranks: Sequence[Rank], boxes: str, copies: str) -> list[str]:
    """What to name in a diagnosis: the sockets of *ranks*, and folders of boxes: *boxes* on the
    tmpfs, and *copies*, which may block, so that this folder is not looked at here. "": none."""
    targets = [_target(rank) for rank in ranks if rank.addresses]
    return targets + [boxes] * _has_boxes(boxes) + [copies] * bool(copies)


def _target(rank: Rank) -> str:
    first = min(rank.addresses, key=lambda each: not each.unix)
    return f"https://{first.address}" if first.tls else first.address


def _has_boxes(folder: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(folder) and any(name.endswith((SUFFIX, LEFT)) for name in os.listdir(folder))
    return False


def diagnosed(
    targets: Sequence[str],
    store: str,
    interval: float = 2.0,
    places: Places | None = None,
    ready: Ready | None = None,
) -> dict[str, Any] | None:
    """The JSON of ``workerserver diagnose``; None if there is none in time. *interval*:
    seconds between two rounds. *places*: of the ranks of all hosts, in place of the *store*.
    *ready*: makes it in a process that is started already."""
    places = places or Places()
    if not targets and not store and not places.any:
        return None
    words = ["--json", "--deadline", str(DEADLINE_SECONDS), "--interval", f"{interval:g}"]
    words += ["--store", store] if store else []
    words += ["--hosts", "/dev/stdin"] if places.ranks else []
    words += ["--collectors", ",".join(places.collectors)] if places.collectors else []
    words += ["--", *targets]
    given = "\n".join(places.ranks).encode("utf-8")
    output = None if ready is None else ready.diagnosed(words, given, SECONDS)
    if output is None:
        output = bounded([sys.executable, "-m", "workerserver", "diagnose", *words], given, SECONDS)
    try:
        told = json.loads(output[:MAX_OUTPUT_BYTES])
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) and "verdict" in told and "status" in told else None


def report_words(path: str, targets: Sequence[str]) -> list[str]:
    """The command that writes the verdict as a page."""
    words = [sys.executable, "-m", "workerserver", "report", "-o", path]
    return [*words, "--deadline", str(DEADLINE_SECONDS), "--", *targets]


def bounded(
    command: Sequence[str] | str,
    given: bytes,
    seconds: float,
    *,
    cwd: str = "/",
    more: Mapping[str, str] | None = None,
    umask: int = -1,
) -> bytes:
    """What *command* writes, which gets *given* on its stdin; a text is a shell's command. After
    *seconds* it is killed, with all that it has started and that did not leave its group."""
    with contextlib.suppress(OSError):
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            cwd=cwd,
            env={**os.environ, **(more or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            umask=umask,
        )
        try:
            return process.communicate(given, seconds)[0]
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            # Where a file system blocks, a process may outlive its kill: nobody waits for it.
            with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
                process.wait(1.0)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
    return b""
