"""A report for strangers: without paths, host names and command lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["redact"]

#: A path in any text: folders, and the name of a file.
_PATH = re.compile(r"((?:[^\s'\"()\[\]{}<>|,;:=]*/)+)([^\s'\"()\[\]{}<>|,;:=]*)")
_URL = re.compile(r"\b[a-z]+://[^\s'\"<>]+")
_NETWORK = re.compile(
    r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w.-])"
    r"|(?:\[[0-9a-zA-Z:.%]+\]|(?<![\w.-])[A-Za-z][\w.-]*)(?=:\d{2,5}\b)"
)
#: A name of a host or of a job stands alone, or at the end of a sentence.
_WORD = re.compile(r"[^\s'\"()\[\]{}<>|,;:=/@]+")
#: Names of files that stay: what a line of a stack is told by.
_SOURCE = re.compile(r"[\w.<>-]+\.(?:py|pyx|ipynb|c|cc|cpp|cu|h)\Z")
#: What is no host before a colon and a number.
_NO_HOST = re.compile(
    r"(?:[\w.-]+\.(?:py|pyx|ipynb|c|cc|cpp|cu|h)|ranks?|line|step|gloo|nccl|host-\d+)\Z"
)
#: Fields of a stack: no job is named there, and a function may be called as the job is.
_OF_STACKS = frozenset({"frames", "stack", "location", "call", "took", "stands", "kernel"})


def redact(document: Mapping[str, Any]) -> dict[str, Any]:
    """*document* with ``host-1`` for each host and ``.../`` for each folder, without the job's name
    and command lines. The name of a source file stays: a verdict is told by its lines."""
    names = _hosts(document)
    paths = {
        path: _file(path.rpartition("/")[2]) for path in _paths(document) if not _is_plain(path)
    }
    odd = {**{name: new for name, new in names.items() if not _WORD.fullmatch(name)}, **paths}
    job = document.get("job")
    if isinstance(job, str) and job and not _WORD.fullmatch(job):
        odd[job] = "the job"
    longest = sorted(odd, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest))) if longest else None

    def plain(value: str, in_stack: bool) -> str:
        def word(found: re.Match[str]) -> str:
            bare = found[0].rstrip(".")
            if bare == job and not in_stack:
                return f"the job{found[0][len(bare) :]}"
            return names.get(bare, bare) + found[0][len(bare) :]

        if pattern is not None:
            value = pattern.sub(lambda found: odd[found[0]], value)
        value = _URL.sub("address", value)
        value = _PATH.sub(_path, value)
        value = _WORD.sub(word, value)
        return _NETWORK.sub(
            lambda found: found[0] if _NO_HOST.match(found[0]) else "address", value
        )

    def clean(value: Any, in_stack: bool = False) -> Any:
        if isinstance(value, str):
            return plain(value, in_stack)
        if isinstance(value, Mapping):
            return {
                name: None
                if name in ("argv", "job")
                else clean(each, in_stack or name in _OF_STACKS)
                for name, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [clean(each, in_stack) for each in value]
        return value

    cleaned: dict[str, Any] = clean(document)
    cleaned["redacted"] = True
    cleaned["files"] = []
    return cleaned


def _is_plain(path: str) -> bool:
    """The pattern of paths finds all of it in any text."""
    return _PATH.fullmatch(path) is not None


def _path(found: re.Match[str]) -> str:
    folders, name = found.groups()
    is_path = folders[0] in "/~." or folders.count("/") > 1 or "." in name
    return _file(name) if is_path else found[0]


def _file(name: str) -> str:
    return f".../{name if not name or _SOURCE.match(name) else 'file'}"


def _hosts(document: Mapping[str, Any]) -> dict[str, str]:
    """The new name of each host, also for the first part of a full name."""
    found = set()
    for kind in ("workers", "suspects", "culprits", "boxes", "unreachable"):
        for each in document.get(kind) or ():
            address = each.get("address")
            if isinstance(address, str) and "/" not in address:
                found.add(address.rpartition(":")[0])
            if isinstance(each.get("host"), str):
                found.add(each["host"])
    names: dict[str, str] = {}
    numbers: dict[str, str] = {}
    for host in sorted(found - {""}):
        first = host if host.replace(".", "").isdecimal() else host.partition(".")[0] or host
        names[host] = numbers.setdefault(first, f"host-{len(numbers) + 1}")
        names.setdefault(first, names[host])
    return names


def _paths(document: Mapping[str, Any]) -> Iterator[str]:
    yield from (each for each in document.get("files") or () if "/" in each)
    for kind in ("workers", "suspects", "unreachable", "culprits", "boxes", "unreadable"):
        for each in document.get(kind) or ():
            for name in ("address", "path"):
                path = each.get(name)
                if isinstance(path, str) and "/" in path:
                    yield path
