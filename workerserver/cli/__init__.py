"""The command line: ``workerserver COMMAND``.

Each command is a module with ``make_parser()`` and ``main(argv) -> exit status``; ``commands.py``
lists them. What a command prints goes through a ``render_*(…, out)`` function that writes to the
stream it is given. Nothing here imports torch; only ``run`` and ``collector`` import the server.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Sequence

from workerserver import __version__
from workerserver.cli.commands import NAMES, USAGE, load
from workerserver.cli.errors import CommandError, UsageError
from workerserver.cli.parser import guess
from workerserver.cli.streams import NOT_WRITTEN, bearable_streams
from workerserver.job.printable import escape_line

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: see :mod:`errors`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"]:  # its output, and its errors, are the program's own
        return _run(arguments)
    with bearable_streams() as losses:
        try:
            status = _run(arguments)
        except SystemExit as end:  # of argparse: --help, or wrong use
            status = end.code if isinstance(end.code, int) else 0
            sys.stdout.flush()
            if losses.error is None:
                raise SystemExit(status) from None
        sys.stdout.flush()
        if losses.error is not None:
            complain(f"the output could not be written: {losses.error.strerror}")
            return NOT_WRITTEN
    return status


def _run(arguments: Sequence[str]) -> int:
    if not arguments:
        if sys.stderr is not None:
            sys.stderr.write(USAGE)
        return UsageError.exit_status
    name = arguments[0]
    if name in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    if name == "--version":
        sys.stdout.write(f"workerserver {__version__}\n")
        return 0
    if name not in NAMES:
        option = name.startswith("-")
        known = ("--help", "--version") if option else NAMES
        kind = "option" if option else "command"
        complain(f"no such {kind}: {name}{guess(name, known)}")
        complain("workerserver --help lists the commands")
        return UsageError.exit_status
    if name != "run":
        # Thousands of answers hold no garbage, and to look for some among them took half of the
        # time of a diagnosis.
        gc.set_threshold(100_000)
    try:
        status: int = load(name).main(arguments[1:])
        return status
    except CommandError as error:
        for line in (str(error), *error.advice):
            complain(line)
        return error.exit_status
    except KeyboardInterrupt:
        if name == "run":  # the program's own: it ends as under plain Python
            raise
        return 130


def complain(text: str) -> None:
    """Write one line to stderr, if there is a stderr."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"workerserver: {escape_line(text)}", file=sys.stderr, flush=True)
