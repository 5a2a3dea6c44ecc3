"""The command line: ``workerserver COMMAND``.

Each command is a module with ``main(argv) -> exit status``; what it prints goes through a
``render_*(…, out)`` function that writes to the stream it is given. Nothing here imports torch,
and only ``run`` and ``collector`` import the server.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Sequence

from workerserver.cli.errors import CommandError, UsageError
from workerserver.cli.streams import NOT_WRITTEN, bearable_streams
from workerserver.cli.text import escape_line

__all__ = ["main"]

USAGE = """\
usage: workerserver COMMAND ...

  run [--socket TEMPLATE] [--tcp HOST:PORT] [--blackbox DIR] (script.py | -m module) [ARGS...]
                                   run an unchanged program with a server inside it
  call NAME [key=value...] TARGET  call a handler and print what it answers
  ls [TARGET...]                   list workers, and how each is doing
  diagnose [TARGET...]             if a job hangs, say which rank is to blame, and why
  stacks [TARGET...]               show what all ranks do; equal stacks are shown once
  slow [TARGET...]                 say which rank the others wait for, how often, how long
  fr [TARGET...]                   show the flight recorders, by process group
  ping [TARGET...]                 show which workers of a job answer, and how fast
  profile -o FILE [TARGET...]      profile all ranks into one Chrome trace
  watch --folder DIR [TARGET...]   diagnose again and again, and keep the verdicts
  top [TARGET...]                  show all ranks as a live table
  blackbox DIR                     list what the ranks of a job have left behind
  collector --listen HOST:PORT TARGET...
                                   answer for all workers of this host
  bench TARGET [NAME[?key=value]]  measure how fast a handler answers

TARGET is a Unix socket, a folder or pattern of them, host:port, https://host:port, or the pid of a
worker or of its launcher. Workers are also found through --job, --store, --hosts, --dns,
--collectors and --slurm. The commands whose TARGET is optional find the jobs of this user on this
machine by themselves.
"workerserver COMMAND --help" says more.
"""
COMMANDS = (
    "run",
    "call",
    "ls",
    "diagnose",
    "stacks",
    "slow",
    "fr",
    "ping",
    "profile",
    "watch",
    "top",
    "blackbox",
    "collector",
    "bench",
)


#: With which argparse ends the process.
ARGPARSE_WRONG_USE = 2


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
            if status == ARGPARSE_WRONG_USE:
                status = UsageError.exit_status
            sys.stdout.flush()
            if losses.error is None:
                raise SystemExit(status) from None
        sys.stdout.flush()
        if losses.error is not None:
            complain(f"the output could not be written: {losses.error.strerror}")
            return NOT_WRITTEN
    return status


def _run(arguments: Sequence[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(USAGE)
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        if arguments:
            complain(f"no such command: {arguments[0]}")
        if sys.stderr is not None:
            sys.stderr.write(USAGE)
        return UsageError.exit_status
    if arguments[0] != "run":
        # Thousands of answers hold no garbage, and to look for some among them took half of the
        # time of a diagnosis.
        gc.set_threshold(100_000)
    command = importlib.import_module(f"{__name__}.{arguments[0]}")
    try:
        status: int = command.main(arguments[1:])
        return status
    except CommandError as error:
        complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        if arguments[0] == "run":  # the program's own: it ends as under plain Python
            raise
        return 130


def complain(text: str) -> None:
    """Write one line to stderr, if there is a stderr."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"workerserver: {escape_line(text)}", file=sys.stderr, flush=True)
