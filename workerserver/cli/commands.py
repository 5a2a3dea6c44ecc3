"""All commands, in the order in which the usage lists them. This is the only list of them."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from workerserver.cli.parser import CommandParser

__all__ = ["COMMANDS", "NAMES", "USAGE", "Command", "load", "parser_of"]


class Command(NamedTuple):
    """A command is the module of its name here, with ``main(argv) -> exit status`` and
    ``make_parser()``. *json*: it has --json, and a schema in schemas/."""

    name: str
    arguments: str
    summary: str
    json: bool = False


COMMANDS = (
    Command(
        "run",
        "[--socket TEMPLATE] [--tcp HOST:PORT] [--blackbox DIR] (script.py | -m module) [ARGS...]",
        "run an unchanged program with a server inside it",
    ),
    Command(
        "diagnose", "[TARGET...]", "if a job hangs, say which rank is to blame, and why", json=True
    ),
    Command("ls", "[TARGET...]", "list workers, and how each is doing", json=True),
    Command(
        "call", "NAME [key=value...] TARGET", "call a handler and print what it answers", json=True
    ),
    Command(
        "stacks", "[TARGET...]", "show what all ranks do; equal stacks are shown once", json=True
    ),
    Command(
        "slow",
        "[TARGET...]",
        "say which rank the others wait for, how often and how long",
        json=True,
    ),
    Command("fr", "[TARGET...]", "show the flight recorders, by process group", json=True),
    Command("ping", "[TARGET...]", "show which workers of a job answer, and how fast", json=True),
    Command(
        "record",
        "-o FILE [TARGET...]",
        "sample the stacks of all ranks, and say where their time goes",
        json=True,
    ),
    Command("profile", "-o FILE [TARGET...]", "profile all ranks into one Chrome trace", json=True),
    Command(
        "watch",
        "[TARGET...]",
        "diagnose again and again, and say when the verdict changes",
        json=True,
    ),
    Command("top", "[TARGET...]", "show all ranks as a live table", json=True),
    Command("blackbox", "DIR...", "list the black boxes that the ranks of a job left", json=True),
    Command(
        "report",
        "-o FILE [--redact] [TARGET...]",
        "write the verdict as one HTML page",
        json=True,
    ),
    Command("collector", "--listen HOST:PORT TARGET...", "answer for all workers of this host"),
    Command("bench", "TARGET [NAME[?key=value]]", "measure how fast a handler answers", json=True),
    Command("mcp", "[TARGET...]", "answer an agent's questions about a job, by MCP"),
    Command("help", "[COMMAND]", "show this, or what one command does, with examples"),
    Command("schema", "COMMAND", "print the JSON Schema of what a command's --json prints"),
    Command("completion", "bash|zsh|fish", "print a script that completes our commands in a shell"),
    Command("man", "[COMMAND]", "print the manual page"),
)
NAMES = tuple(command.name for command in COMMANDS)

_COLUMN = 35


def _line(command: Command) -> str:
    head = f"  {command.name} {command.arguments}"
    if len(head) < _COLUMN - 1:
        return f"{head:<{_COLUMN}}{command.summary}\n"
    return f"{head}\n{'':<{_COLUMN}}{command.summary}\n"


USAGE = f"""\
usage: workerserver COMMAND ...
       workerserver --version

{"".join(map(_line, COMMANDS))}
TARGET is a Unix socket, a folder or pattern of them, host:port, https://host:port, or the pid of a
worker or of its launcher. Workers are also found through --job, --store, --hosts, --dns,
--collectors and --slurm. The commands whose TARGET is optional find the jobs of this user on this
machine by themselves.
"workerserver help COMMAND" says more.
"""


def load(name: str) -> Any:
    """The module of the command *name*."""
    return importlib.import_module(f"{__package__}.{name}")


def parser_of(name: str) -> CommandParser:
    """The parser of the command *name*."""
    parser: CommandParser = load(name).make_parser()
    return parser
