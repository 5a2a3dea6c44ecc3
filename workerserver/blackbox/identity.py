"""Who a process is, for its black box. What looks like a secret is left out."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from workerserver.job.identity import Identity, short
from workerserver.job.proc import namespace, stat_of
from workerserver.process.loaded import imported

__all__ = ["cgroup_files", "identity_bytes", "without_secrets"]

#: The record's room is 16 KiB.
MAX_ARGUMENTS = 6 << 10
MAX_RECORD_BYTES = 15 << 10
HIDDEN = "***"
_SECRET = re.compile(r"token|key|secret|passw", re.I)
#: A name and its value in one word: --hub-token=abc, api_key:abc, {"password": "abc"}.
_VALUE = re.compile(r"((?:token|key|secret|passw)[^\s=:]*\s*[=:]\s*)(.*)", re.I | re.S)
#: https://user:password@host
_LOGIN = re.compile(r"(://[^\s/@:]*:)[^\s/@]*@")
#: Files of the cgroup that tell what memory a process may have, and what was killed for it.
CGROUP_FILES = (
    "memory.current",
    "memory.max",
    "memory.high",
    "memory.peak",
    "memory.events",
    "memory.usage_in_bytes",
    "memory.limit_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.oom_control",
)


def without_secrets(words: Sequence[str]) -> list[str]:
    """A command line without the values of what is called a token, key, secret or password."""
    shown: list[str] = []
    hide = False
    for word in words:
        if hide and not word.startswith("-"):
            shown.append(HIDDEN)
            hide = False
            continue
        found = _VALUE.search(word)
        hide = found is None and word.startswith("-") and _SECRET.search(word) is not None
        if found is not None:
            word = word[: found.start(2)] + HIDDEN
        shown.append(_LOGIN.sub(rf"\1{HIDDEN}@", word))
    return shown


def identity_bytes(identity: Identity, watched: Mapping[str, str], interval: float) -> bytes:
    """The record, as JSON. *watched*: the files that are read with each state."""
    pid = os.getpid()
    stat = stat_of(pid)
    torch = imported("torch")
    value: dict[str, Any] = {
        "version": 1,
        "pid": pid,
        "ticks": None if stat is None else stat.ticks,
        "pid_namespace": namespace("pid"),
        **short(identity),
        "boot": _boot(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": str(getattr(torch, "__version__", None)) if torch is not None else None,
            "workerserver": _own_version(),
        },
        "interval_s": interval,
        "watched": dict(watched),
        "argv": _cut(without_secrets(sys.orig_argv)),
    }
    data = json.dumps(value).encode("ascii")
    if len(data) > MAX_RECORD_BYTES:
        data = json.dumps({**value, "argv": [], "watched": {}}).encode("ascii")
    return data


def _cut(words: Sequence[str]) -> list[str]:
    shown: list[str] = []
    left = MAX_ARGUMENTS
    for word in words:
        left -= len(json.dumps(word))
        if left < 0:
            return [*shown, "..."]
        shown.append(word)
    return shown


def _own_version() -> str:
    package = sys.modules["workerserver"]
    return str(package.__version__)


def _boot() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return None


def cgroup_files(pid: int | str = "self", root: str = "") -> dict[str, str]:
    """The files that tell of the process's memory, by name: of its cgroup, v2 or v1, as far as
    they can be seen from here. *root*: where the file systems are looked for."""
    found = {}
    for folder in _cgroup_folders(pid, root):
        for name in CGROUP_FILES:
            path = os.path.join(folder, name)
            if name not in found and os.access(path, os.R_OK):
                found[name] = path
    return found


def _cgroup_folders(pid: int | str, root: str) -> list[str]:
    """Where the process's memory may be accounted, the likeliest first. A container may see its
    own cgroup as the root of the hierarchy, whatever its path is outside."""
    mounts = f"{root}/sys/fs/cgroup"
    folders = []
    try:
        with open(f"{root}/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            lines = file.read(64 << 10).splitlines()
    except OSError:
        return []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            folders += [f"{mounts}/memory{path}", f"{mounts}/memory"]
        elif number == "0" and not controllers:
            folders += [f"{mounts}{path}", f"{mounts}/unified{path}", mounts]
    return folders
