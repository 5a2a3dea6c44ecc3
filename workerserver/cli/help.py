"""``workerserver help [COMMAND]``: what a command does, its options, and examples."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from workerserver.cli.commands import NAMES, USAGE, parser_of
from workerserver.cli.errors import UsageError
from workerserver.cli.parser import CommandParser, guess

__all__ = ["checked_name", "main", "make_parser"]


def make_parser() -> CommandParser:
    parser = CommandParser(
        "help",
        description="Show what a command does, its options, and examples. Without COMMAND, show "
        "all commands.",
        examples=(
            ("workerserver help", "all commands"),
            ("workerserver help diagnose", "as workerserver diagnose --help"),
        ),
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="the name of a command")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0; UsageError if there is no such command."""
    options = make_parser().parse_intermixed_args(list(argv))
    if options.command is None:
        sys.stdout.write(USAGE)
    else:
        sys.stdout.write(parser_of(checked_name(options.command)).format_help())
    return 0


def checked_name(name: str) -> str:
    """*name*, if a command is called so; else UsageError."""
    if name not in NAMES:
        raise UsageError(f"no such command: {name}{guess(name, NAMES)}")
    return name
