"""The corpora in tests/fuzz/corpora, a file for each target.

``found``: inputs that broke something once, by name, with the sentence that says what. ``seeds``:
inputs that reach different code. Both as Latin-1. A fuzzer wants a folder of files instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from support.requests.raw import FOLDER as CASES
from support.requests.raw import read_cases

__all__ = ["FOLDER", "bounded", "from_wire", "read", "unpack", "write"]

FOLDER = Path(__file__).parents[2] / "fuzz" / "corpora"
#: Of raw inputs that become seeds: longer ones only test limits.
SHORT = 400
#: Of a committed corpus, in all.
MOST_BYTES = 5 << 10


def read(name: str) -> tuple[dict[str, bytes], list[bytes]]:
    """``(found, seeds)`` of the target *name*."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return {}, []
    held = json.loads(path.read_text())
    found = {why: text.encode("latin-1") for why, text in held["found"].items()}
    return found, [text.encode("latin-1") for text in held["seeds"]]


def write(name: str, found: dict[str, bytes], seeds: Iterable[bytes]) -> None:
    """One input a line, in an order that does not depend on how the seeds came."""
    lines = [
        json.dumps(seed.decode("latin-1")) for seed in sorted(seeds, key=lambda s: (len(s), s))
    ]
    named = [
        f"{json.dumps(why)}: {json.dumps(data.decode('latin-1'))}" for why, data in found.items()
    ]
    FOLDER.mkdir(parents=True, exist_ok=True)
    parts = [",".join(f"\n{line}" for line in each) for each in (named, lines)]
    text = f'{{"found": {{{parts[0]}}},\n"seeds": [{parts[1]}]}}\n'
    (FOLDER / f"{name}.json").write_text(text)


def unpack(inputs: Iterable[bytes], folder: Path) -> None:
    """A file for each input, named by its hash, as libFuzzer names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def bounded(inputs: Iterable[bytes]) -> list[bytes]:
    """The shortest ones, MOST_BYTES in all."""
    kept, size = [], 0
    for data in sorted(inputs, key=len):
        size += len(data)
        if size > MOST_BYTES:
            break
        kept.append(data)
    return kept


def from_wire() -> list[bytes]:
    """The short ones of the raw inputs in tests/wire/cases."""
    cases = [case for path in sorted(CASES.glob("*.json")) for case in read_cases(path.stem)]
    return [case.data for case in cases if len(case.data) <= SHORT]
