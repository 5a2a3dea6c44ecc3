"""The parser of one command: examples in its help, and a guess at what a wrong option meant."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import NoReturn

from workerserver.cli.errors import UsageError

__all__ = ["CommandParser", "Example", "guess"]

#: A line that a person can type, and what the line does.
Example = tuple[str, str]


def guess(word: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with the known word that *word* is most like, or nothing."""
    import difflib  # after a mistake only

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


class _Paragraphs(argparse.HelpFormatter):
    """Fills each paragraph by itself."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            textwrap.fill(
                " ".join(part.split()), width, initial_indent=indent, subsequent_indent=indent
            )
            for part in text.strip().split("\n\n")
        )


class CommandParser(argparse.ArgumentParser):
    """*name* is the command's. *examples* are shown at the end of the help."""

    def __init__(
        self,
        name: str,
        *,
        description: str,
        examples: Sequence[Example],
        usage: str | None = None,
        epilog: str | None = None,
    ) -> None:
        super().__init__(
            f"workerserver {name}",
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=_Paragraphs,
            allow_abbrev=False,
        )
        self.examples = tuple(examples)

    def format_help(self) -> str:
        lines = [super().format_help(), "\nexamples:\n"]
        for line, what in self.examples:
            lines += [f"  {line}\n", f"      {what}\n"]
        return "".join(lines)

    def parse_intermixed_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        self._refuse(self._unknown(args))
        options, strange = self.parse_known_intermixed_args(args, namespace)
        self._refuse(strange)
        return options

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        self._refuse(self._unknown(args))
        options, strange = self.parse_known_args(args, namespace)
        self._refuse(strange)
        return options

    def _unknown(self, args: Sequence[str] | None) -> list[str]:
        """Options that there are not. argparse would first complain of what is missing, which is
        often the option that was mistyped."""
        words = list(sys.argv[1:] if args is None else args)
        if "--" in words:
            words = words[: words.index("--")]
        known = self._option_string_actions
        return [
            word for word in words if word.startswith("--") and word.partition("=")[0] not in known
        ]

    def _refuse(self, strange: Sequence[str]) -> None:
        if not strange:
            return
        word = next((each for each in strange if each.startswith("-")), strange[0])
        if not word.startswith("-"):
            self.error(f"one argument too many: {word}")
        name = word.partition("=")[0]
        self.error(f"no such option: {name}{guess(name, self.option_names())}")

    def option_names(self) -> list[str]:
        """The options that the help shows."""
        return [
            name
            for action in self._actions
            if action.help != argparse.SUPPRESS
            for name in action.option_strings
        ]

    def arguments(self) -> list[tuple[str, list[argparse.Action]]]:
        """What the help shows of the arguments and options: each group's title, and what is in it.
        The title of the positional ones and that of the plain options are argparse's own."""
        shown = [
            (
                group.title or "",
                [each for each in group._group_actions if each.help != argparse.SUPPRESS],
            )
            for group in self._action_groups
        ]
        return [(title, actions) for title, actions in shown if actions]

    def error(self, message: str) -> NoReturn:
        """One line, and where to read more: the mistake would be lost below ten lines of usage."""
        command = self.prog.rpartition(" ")[2]
        advice = f"workerserver: workerserver help {command} lists the arguments and options"
        self.exit(UsageError.exit_status, f"{self.prog}: {message}\n{advice}\n")

    def add_json(self, what: str) -> None:
        """The option --json; *what* it prints."""
        self.add_argument(
            "--json", action="store_true", help=f"print {what} (see: workerserver schema)"
        )
