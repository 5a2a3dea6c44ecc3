"""What --json prints, against the schemas that ``workerserver schema`` publishes."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jobs.peers import make_socket
from support.jobs.replaying import answer, replaying
from support.served import Serve

from workerserver.cli import main
from workerserver.cli.commands import COMMANDS
from workerserver.cli.schema import SHARED, _read, schema_of
from workerserver.http.registry import Registry
from workerserver.types import Response

jsonschema = pytest.importorskip("jsonschema")

WITH_JSON = [command.name for command in COMMANDS if command.json]
#: Recordings in which much of a verdict is filled: suspects, waits, a mismatch, a straggler, locks.
SCENES = (
    "asleep-ours",
    "asleep-torch",
    "gil-ours",
    "healthy-ours",
    "lock-ours",
    "operations-ours",
    "straggler-ours",
)


def closed(schema: Any) -> Any:
    """*schema* that allows no field which it does not describe. (The published one does: fields
    may be added.)"""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        made["additionalProperties"] = False
    return made


def check(command: str, text: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(closed(schema_of(command))).validate(fields)
    assert next(iter(fields)) == "schema_version"
    return fields


@pytest.fixture
def job(folder: Path, no_leaks: None) -> Iterator[Any]:
    with replaying(folder) as start:
        yield start


@pytest.mark.parametrize("command", WITH_JSON)
def test_a_schema_is_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", command]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"] == {"const": 1}
    assert "schema_version" in schema["required"]
    empty = jsonschema.Draft202012Validator(schema).is_valid({"schema_version": 1})
    assert not empty


def test_every_definition_is_used() -> None:
    used = {name for command in WITH_JSON for name in schema_of(command).get("$defs", {})}
    assert used == set(_read(SHARED))


def test_the_check_finds_what_is_not_described(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", job("asleep-ours"), "--json", "--interval", "0.05"]) == 1
    fields = json.loads(capsys.readouterr().out)
    changes: tuple[Callable[[Any], object], ...] = (
        lambda each: each.update(news=1),
        lambda each: each["suspects"][0].update(news=1),
        lambda each: each["suspects"][0].pop("location"),
        lambda each: each.update(ranks="4"),
        lambda each: each.update(schema_version=2),
    )
    for change in changes:
        changed = copy.deepcopy(fields)
        change(changed)
        with pytest.raises(jsonschema.ValidationError):
            check("diagnose", json.dumps(changed))


@pytest.mark.parametrize("scene", SCENES)
def test_verdicts(scene: str, job: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = job(scene)
    make_socket(folder / "rank9.sock")
    soon = ("--interval", "0.05")
    main(["diagnose", target, "--json", *soon])
    fields = check("diagnose", capsys.readouterr().out)
    assert fields["ranks"] >= 4
    main(["stacks", target, "--json", "--tree", "--rounds", "2", *soon])
    assert check("stacks", capsys.readouterr().out)["tree"]
    main(["fr", target, "--json"])
    check("fr", capsys.readouterr().out)
    main(["slow", target, "--json"])
    check("slow", capsys.readouterr().out)
    main(["report", target, "-o", "page.html", "--json", *soon])
    assert check("report", capsys.readouterr().out)["bytes"] == Path("page.html").stat().st_size
    main(["watch", target, "--folder", "kept", "--count", "1"])
    (kept,) = Path("kept").iterdir()
    check("watch", kept.read_text())


def test_workers(serve: Serve, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = serve("unix")
    (folder / "rank0.sock").symlink_to(str(served.address))
    make_socket(folder / "rank1.sock")
    target = "rank{rank}.sock"
    served.registry.register("binary", lambda: b"\xff")
    for command, words in (
        ("ls", []),
        ("call", ["binary"]),
        ("call", ["ping"]),
        ("ping", ["--count", "1"]),
    ):
        assert main([command, *words, target, "--json"]) == 1
        fields = check(command, capsys.readouterr().out)
        assert [each["address"] for each in fields["workers"]] == ["rank0.sock", "rank1.sock"]
        assert fields["workers"][1]["rank"] == 1
    assert main(["top", target, "--count", "2", "--every", "0.05", "--json"]) == 1
    for line in capsys.readouterr().out.splitlines():
        check("top", line)
    assert main(["bench", "rank0.sock", "--requests", "3", "--json"]) == 0
    check("bench", capsys.readouterr().out)
    assert main(["bench", "rank0.sock", "--requests", "3", "--rate", "1000", "--json"]) == 0
    assert check("bench", capsys.readouterr().out)["late_ns"]


def test_profiles(folder: Path, capsys: pytest.CaptureFixture[str], no_leaks: None) -> None:
    from workerserver.server import WorkerServer

    registry = Registry()

    def torch_profile(duration: float) -> Response:
        return answer({"traceEvents": [], "baseTimeNanoseconds": 0})

    registry.register("torch_profile", torch_profile)
    make_socket(folder / "rank1.sock")
    with contextlib.closing(_Closing(WorkerServer("rank0.sock", -1, registry=registry))):
        words = ["profile", "rank{rank}.sock", "-o", "all.json", "--duration", "0.1", "--json"]
        assert main(words) == 1
    check("profile", capsys.readouterr().out)


def test_recordings(serve: Serve, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rank0.sock").symlink_to(str(serve("unix").address))
    make_socket(folder / "rank1.sock")
    words = ["record", "rank{rank}.sock", "-o", "all.html", "--duration", "0.1", "--json"]
    assert main(words) == 1
    assert check("record", capsys.readouterr().out)["responded"] == 1
    assert main([*words[:1], "rank1.sock", *words[2:]]) == 3
    assert check("record", capsys.readouterr().out)["file"] is None


class _Closing:
    def __init__(self, server: Any) -> None:
        self.close = server.shutdown


def test_commands_without_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "run"]) == 64
    assert "run has no --json" in capsys.readouterr().err
    assert main(["schema"]) == 0
    assert capsys.readouterr().out.split() == WITH_JSON
