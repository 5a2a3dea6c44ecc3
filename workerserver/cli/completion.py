"""``workerserver completion SHELL``: what makes a shell complete our commands and options.

shtab makes the scripts from the parsers. They hold all names, so no Python starts at a Tab.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from workerserver.cli.commands import COMMANDS, parser_of
from workerserver.cli.errors import CommandError
from workerserver.cli.parser import CommandParser

__all__ = ["main", "make_parser", "whole_parser"]

SHELLS = ("bash", "zsh", "fish")
INSTALL = "pip install 'workerserver[completion]'"
#: Where parsers keep what is the path of a file or a socket, and what is a folder.
PATHS = (
    "hosts",
    "cacert",
    "cert",
    "key",
    "token_file",
    "output",
    "targets",
    "words",
    "rest",
    "socket",
)
FOLDERS = ("folder", "folders", "blackbox")


def make_parser() -> CommandParser:
    parser = CommandParser(
        "completion",
        description="Print a script with which a shell completes the commands and options of "
        f"workerserver. This command needs shtab: {INSTALL}.",
        examples=(
            (
                "workerserver completion bash "
                "> ~/.local/share/bash-completion/completions/workerserver",
                "for bash with the package bash-completion; else: source the script in ~/.bashrc",
            ),
            (
                "workerserver completion zsh > ~/.zfunc/_workerserver",
                "for zsh; ~/.zfunc has to be in fpath before compinit",
            ),
            (
                "workerserver completion fish > ~/.config/fish/completions/workerserver.fish",
                "for fish",
            ),
        ),
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0; CommandError without shtab."""
    options = make_parser().parse_intermixed_args(list(argv))
    try:
        import shtab
    except ImportError:
        raise CommandError(f"completion needs shtab: {INSTALL}") from None
    root, parsers = whole_parser()
    for parser in parsers:
        for action in parser._actions:
            if action.dest in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.dest in FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.dest == "command":
                with_schema = parser.prog.endswith(" schema")
                action.choices = [each.name for each in COMMANDS if each.json or not with_schema]
    sys.stdout.write(shtab.complete(root, options.shell))
    return 0


def whole_parser() -> tuple[argparse.ArgumentParser, list[CommandParser]]:
    """One parser that has all commands as its subcommands, and the parsers of these."""
    root = argparse.ArgumentParser("workerserver", description="An operator's client.")
    root.add_argument("--version", action="store_true", help="show the version")
    commands = root.add_subparsers(dest="command", metavar="COMMAND")
    parsers = []
    for command in COMMANDS:
        commands.add_parser(command.name, help=command.summary)
        parsers.append(parser_of(command.name))
        commands.choices[command.name] = parsers[-1]
    return root, parsers
