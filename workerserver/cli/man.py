"""``workerserver man [COMMAND]``: manual pages, made from the parsers."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from workerserver import __version__
from workerserver.cli.commands import COMMANDS, Command, parser_of
from workerserver.cli.errors import STATUSES, OutputError
from workerserver.cli.help import checked_name
from workerserver.cli.parser import CommandParser

__all__ = ["main", "make_parser", "page", "page_of_all"]

VARIABLES = (
    ("WORKERSERVER_TOKEN, WORKERSERVER_TOKEN_FILE", "the token that is sent to workers"),
    ("MASTER_ADDR, MASTER_PORT", "the job's TCPStore, where no place is named"),
    ("TORCH_WORKER_SERVER_SOCKET", "the template of the sockets, where no place is named"),
)


def make_parser() -> CommandParser:
    parser = CommandParser(
        "man",
        description="Print the manual page of a command, or that of workerserver itself, for man "
        "or groff.",
        examples=(
            ("workerserver man diagnose | man -l -", "read a page"),
            ("workerserver man --folder ~/.local/share/man/man1", "write all pages"),
        ),
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="the name of a command")
    parser.add_argument(
        "--folder", metavar="DIR", help="write the pages of all commands into DIR; made if missing"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Exit status 0; UsageError if there is no such command."""
    options = make_parser().parse_intermixed_args(list(argv))
    if options.folder is None:
        name = options.command
        sys.stdout.write(page_of_all() if name is None else _page_named(checked_name(name)))
        return 0
    pages = {f"workerserver-{each.name}.1": page(each) for each in COMMANDS}
    try:
        os.makedirs(options.folder, exist_ok=True)
        for name, text in {"workerserver.1": page_of_all(), **pages}.items():
            with open(os.path.join(options.folder, name), "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise OutputError(options.folder, error) from None
    return 0


def _page_named(name: str) -> str:
    return page(next(each for each in COMMANDS if each.name == name))


def page_of_all() -> str:
    """The page workerserver(1)."""
    lines = [
        *_head("workerserver", "ask and diagnose the processes of a PyTorch training job"),
        ".B workerserver",
        _text("COMMAND ..."),
        ".SH DESCRIPTION",
        _text(
            "workerserver is an HTTP control plane inside the processes of a PyTorch training job, "
            "and the client that asks them."
        ),
        ".SH COMMANDS",
    ]
    for command in COMMANDS:
        lines += [".TP", f".BR workerserver-{_text(command.name)} (1)", _text(command.summary)]
    return "\n".join([*lines, *_tail()]) + "\n"


def page(command: Command) -> str:
    """The page of one command."""
    parser = parser_of(command.name)
    name = f"workerserver-{command.name}"
    lines = _head(name, command.summary)
    lines += [f".B workerserver {_text(command.name)}", _text(command.arguments)]
    lines += [".SH DESCRIPTION", *_paragraphs(parser.description)]
    for title, actions in parser.arguments():
        lines.append(f".SH {_text(title.upper())}")
        for action in actions:
            lines += [".TP", _names(parser, action), _text(_help(parser, action))]
    if parser.epilog:
        lines += [".SH NOTES", *_paragraphs(parser.epilog)]
    lines.append(".SH EXAMPLES")
    for line, what in parser.examples:
        lines += [".TP", f".B {_text(line)}", _text(what)]
    return "\n".join([*lines, *_tail()]) + "\n"


def _head(name: str, summary: str) -> list[str]:
    return [
        f'.TH {_text(name.upper())} 1 "" "workerserver {__version__}" "User Commands"',
        ".nh",  # a line to be typed has no hyphens of its own
        ".ad l",
        ".SH NAME",
        f"{_text(name)} \\- {_text(summary)}",
        ".SH SYNOPSIS",
    ]


def _tail() -> list[str]:
    lines = [".SH EXIT STATUS"]
    for status, meaning in STATUSES.items():
        lines += [".TP", f".B {status}", _text(meaning)]
    lines += [
        ".PP",
        _text("workerserver run ends with the status of the program."),
        ".SH ENVIRONMENT",
    ]
    for names, meaning in VARIABLES:
        lines += [".TP", f".B {_text(names)}", _text(meaning)]
    return [*lines, ".SH SEE ALSO", ".BR workerserver (1)"]


def _names(parser: CommandParser, action: argparse.Action) -> str:
    """An option with its value, or what an argument is called."""
    value = parser._get_formatter()._format_args(action, _metavar(action))
    if not action.option_strings:
        return f".I {_text(value)}"
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in action.option_strings)
    return f"{names} \\fI{_text(value)}\\fR" if value else names


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _help(parser: CommandParser, action: argparse.Action) -> str:
    text = action.help or ""
    return text % {"prog": parser.prog, "default": action.default} if "%(" in text else text


def _paragraphs(text: str | None) -> list[str]:
    lines: list[str] = []
    for part in (text or "").strip().split("\n\n"):
        lines += [".PP", _text(" ".join(part.split()))]
    return lines


def _text(text: str) -> str:
    """*text* as one line of roff that means nothing but itself."""
    text = re.sub(r"[\\]", r"\\e", text).replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{text}" if text.startswith((".", "\\(aq")) else text
