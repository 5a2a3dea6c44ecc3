"""Sentences are safe to print wherever a command tells them, --json included.

Names in them are chosen by whoever writes the job's code, or lies as one of its workers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jobs.recordings import recording
from support.jobs.replaying import replayed

from workerserver.cli import main
from workerserver.cli.job_command import SENTENCES
from workerserver.job.printable import escape, escape_line
from workerserver.server import WorkerServer

EVIL = "\x1b[2J\u202e\x9b\u2066"
SPELLED = "\\x1b[2J\\u202e\\x9b\\u2066"


def test_spelled_out_once() -> None:
    for character in map(chr, (*range(0x3000), 0xD800, 0xFEFF, 0xFFF9, 0xE0001, 0x10FFFF)):
        spelled = escape_line(character)
        assert spelled.isprintable()
        assert escape_line(spelled) == spelled
        assert (spelled == character) == character.isprintable()
        assert escape(character) == (character if character in "\n\t" else spelled)


@pytest.fixture
def target(folder: Path, no_leaks: None) -> Iterator[str]:
    """A job of which each worker gives hostile names to threads, functions, files and groups."""
    rounds = recording("asleep-ours")["rounds"]
    with contextlib.ExitStack() as stack:
        for rank in range(len(rounds[0]["ranks"])):
            looks = [spoilt(each["ranks"][rank]) for each in rounds]
            path = str(folder / f"rank{rank}.sock")
            stack.callback(WorkerServer(path, -1, registry=replayed(looks)).shutdown)
        yield str(folder / "rank{rank}.sock")


def spoilt(value: Any) -> Any:
    """The names in an answer, each with EVIL in it. Numbers and numbers as texts stay."""
    if isinstance(value, list):
        return list(map(spoilt, value))
    if not isinstance(value, dict):
        return value
    return {
        name: f"{each}{EVIL}"
        if name in ("function", "qualname", "desc", "pg_desc") and isinstance(each, str)
        else spoilt(each)
        for name, each in value.items()
    }


def sentences(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, str) and name in SENTENCES:
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from sentences(each, name)
    elif isinstance(value, dict):
        for inner, each in value.items():
            yield from sentences(each, inner)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


@pytest.mark.parametrize(
    "words",
    [
        ("diagnose", "--json", "--interval", "0.05"),
        ("watch", "--json", "--count", "1", "--every", "0.05"),
        ("watch", "--count", "1", "--every", "0.05", "--folder", "FOLDER"),
        ("stacks", "--json"),
        ("fr", "--json"),
    ],
)
def test_sentences_of_json(
    words: tuple[str, ...], target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sentences are spelled out. Data is as the worker sent it, for programs to compare."""
    main([word.replace("FOLDER", str(tmp_path)) for word in (*words, target)])
    out = capsys.readouterr().out
    assert out.isascii()
    if "FOLDER" in words:
        (path,) = tmp_path.glob("*.json")
        out = path.read_text()
    told = json.loads(out)
    assert all(map(str.isprintable, sentences(told)))
    assert any(EVIL in each for each in texts(told)), "no data with a hostile name"
    if "verdict" in told:
        assert SPELLED in told["verdict"]


def test_the_sentence_of_a_report(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    main(["report", "--json", "-o", str(page), "--interval", "0.05", target])
    assert SPELLED in json.loads(capsys.readouterr().out)["verdict"]
    assert not set(EVIL).difference("[2J").intersection(page.read_text())
