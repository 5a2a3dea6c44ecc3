"""A report for strangers: without paths, host names and command lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["redact"]

#: Folders before a file's name, in any text.
_FOLDERS = re.compile(r"(?:[^\s'\"()\[\]{}<>|,;:=]*/)+")
_HOST_PORT = re.compile(
    r"(?<![\w.])(?:(?:\d{1,3}\.){3}\d{1,3}|\[[0-9a-fA-F:.%]+\]|[A-Za-z][\w.-]*)(?=:\d{2,5}\b)"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")
#: Names of files that stay: what a line of a stack is told by.
_SOURCE = re.compile(r"[\w.<>-]+\.(?:py|pyx|ipynb|c|cc|cpp|cu)\Z")
#: What is no host before a colon and a number.
_NO_HOST = re.compile(
    r"(?:[\w.-]+\.(?:py|pyx|ipynb|c|cc|cpp|cu|h)|rank|ranks|line|step|gloo|nccl)\Z"
)


def redact(document: Mapping[str, Any]) -> dict[str, Any]:
    """*document* with ``host-1`` for each host and ``.../`` for each folder, without the job's name
    and command lines. The name of a source file stays: a verdict is told by its lines."""
    names: dict[str, str] = {}
    hosts = sorted({each for each in _hosts(document) if each})
    for index, host in enumerate(hosts, 1):
        names[host] = f"host-{index}"
        short = host.partition(".")[0]
        if short and not short.isdecimal():
            names.setdefault(short, f"host-{index}")
    job = document.get("job")
    if isinstance(job, str) and job:
        names[job] = "the job"
    for path in {*_paths(document)}:
        name = path.rpartition("/")[2]
        names[path] = f".../{name}" if _SOURCE.match(name) else ".../file"
    wanted = sorted(names, key=len, reverse=True)
    pattern = (
        re.compile("|".join(rf"(?<![\w-]){re.escape(each)}(?![\w-])" for each in wanted))
        if wanted
        else None
    )

    def plain(value: str) -> str:
        if pattern is not None:
            value = pattern.sub(lambda found: names[found[0]], value)
        value = _FOLDERS.sub(lambda found: ".../" if "/" in found[0] else found[0], value)
        value = _IPV4.sub("address", value)
        return _HOST_PORT.sub(
            lambda found: found[0] if _NO_HOST.match(found[0]) or _ours(found[0]) else "address",
            value,
        )

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return plain(value)
        if isinstance(value, Mapping):
            return {
                name: None if name in ("argv", "job") else clean(each)
                for name, each in value.items()
            }
        if isinstance(value, list | tuple):
            return list(map(clean, value))
        return value

    cleaned: dict[str, Any] = clean(document)
    cleaned["redacted"] = True
    cleaned["files"] = []
    return cleaned


def _ours(word: str) -> bool:
    return word.startswith("host-")


def _hosts(document: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("workers", "suspects", "culprits", "boxes", "unreachable"):
        for each in document.get(kind) or ():
            if isinstance(each.get("host"), str):
                yield each["host"]
            address = each.get("address")
            if isinstance(address, str) and "/" not in address:
                yield address.rpartition(":")[0]


def _paths(document: Mapping[str, Any]) -> Iterator[str]:
    yield from (each for each in document.get("files") or () if "/" in each)
    for kind in ("workers", "suspects", "unreachable"):
        for each in document.get(kind) or ():
            address = each.get("address")
            if isinstance(address, str) and "/" in address:
                yield address
    for kind in ("culprits", "boxes", "unreadable"):
        for each in document.get(kind) or ():
            if isinstance(each.get("path"), str):
                yield each["path"]
