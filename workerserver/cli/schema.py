"""``workerserver schema COMMAND``: the JSON Schema of what a command's --json prints."""

from __future__ import annotations

import importlib.resources
import json
import sys
from collections.abc import Sequence
from typing import Any

from workerserver.cli.commands import COMMANDS
from workerserver.cli.errors import UsageError
from workerserver.cli.help import checked_name
from workerserver.cli.parser import CommandParser

__all__ = ["main", "make_parser", "schema_of"]

#: What several schemas use; it becomes the ``$defs`` of each.
SHARED = "shared"


def make_parser() -> CommandParser:
    parser = CommandParser(
        "schema",
        description="Print the JSON Schema (draft 2020-12) of what a command's --json prints. "
        "Fields may be added under one schema_version. If a field is removed, or changes its "
        "meaning, schema_version is raised.",
        examples=(
            ("workerserver schema diagnose", "the schema of workerserver diagnose --json"),
            ("workerserver schema", "the names of the commands that have --json"),
        ),
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="the name of a command")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0; UsageError for a command that prints no JSON."""
    options = make_parser().parse_intermixed_args(list(argv))
    names = [command.name for command in COMMANDS if command.json]
    if options.command is None:
        sys.stdout.write("".join(f"{name}\n" for name in names))
        return 0
    name = checked_name(options.command)
    if name not in names:
        raise UsageError(f"{name} has no --json; these commands have: {', '.join(names)}")
    json.dump(schema_of(name), sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 0


def schema_of(name: str) -> dict[str, Any]:
    """The schema of the command *name*, complete in itself."""
    schema = _read(name)
    known = _read(SHARED)
    wanted = _references(schema)
    while True:  # a definition may use others
        more = {each for name in wanted for each in _references(known[name])} - wanted
        if not more:
            break
        wanted |= more
    if wanted:
        schema["$defs"] = {each: known[each] for each in sorted(wanted)}
    return schema


def _read(name: str) -> dict[str, Any]:
    files = importlib.resources.files(f"{__package__}.schemas")
    fields: dict[str, Any] = json.loads((files / f"{name}.json").read_text("utf-8"))
    return fields


def _references(value: Any) -> set[str]:
    """The names of the definitions that *value* uses."""
    if isinstance(value, dict):
        found = {value["$ref"].removeprefix("#/$defs/")} if "$ref" in value else set()
        return found.union(*map(_references, value.values()))
    return set().union(*map(_references, value)) if isinstance(value, list) else set()
