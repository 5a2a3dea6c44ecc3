"""``workerserver run script.py ARGS…``: an unchanged program with a server inside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from workerserver.cli.errors import UsageError
from workerserver.cli.parser import CommandParser
from workerserver.cli.program import LoadError, Module, Program, Script, execute, hide_our_frames
from workerserver.cli.text import positive_seconds
from workerserver.job.identity import name_program

__all__ = ["main"]

#: Options that the next word belongs to.
WITH_VALUE = ("--socket", "--tcp", "--blackbox", "--keep", "--stall")


def main(argv: Sequence[str]) -> int:
    """Serve, run the program, return 0. An exception of the program passes unchanged.

    UsageError before the program starts, if there is no such program. What keeps a server from
    starting is a warning, and the program runs without one.
    """
    options, program = _parse(list(argv))
    try:
        program.load()
    except LoadError as error:
        raise UsageError(str(error)) from None
    except Exception as error:  # for example a syntax error, to be shown as Python shows it
        hide_our_frames(error)
        raise
    name_program(options.module or program.argv[0])
    from workerserver.control_plane import start_at

    try:
        start_at(
            options.socket,
            options.tcp,
            options.blackbox,
            options.keep,
            options.watchdog or None,
            options.stall,
        )
    except (OSError, RuntimeError, ValueError) as error:  # with WORKERSERVER_STRICT=1
        reason = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise UsageError(f"can't serve: {error}{reason}") from None
    try:
        execute(program)
    except LoadError as error:
        raise UsageError(str(error)) from None
    return 0


def make_parser() -> CommandParser:
    parser = CommandParser(
        "run",
        usage="%(prog)s [--socket TEMPLATE] [--tcp HOST:PORT] [--blackbox DIR] [--keep N] "
        "[--watchdog] [--stall S] (script.py | -m module) [ARGS...]",
        description="Run a program with a worker server inside its process.",
        epilog="Without --socket and --tcp, the server listens where TORCH_WORKER_SERVER_SOCKET "
        "and WORKERSERVER_TCP say. If neither variable is set, the server listens on a socket in a "
        "private folder of the user. If no server can start, a warning says why, and the program "
        "runs without one (WORKERSERVER_STRICT=1: it does not run).",
        examples=(
            ("workerserver run train.py --its --own args", "one process"),
            (
                "torchrun --nproc-per-node 4 -m workerserver run train.py",
                "each rank of a job of torchrun",
            ),
            (
                "torchrun --nproc-per-node 4 -m workerserver run --blackbox /shared/boxes train.py",
                "the same, and each rank leaves a file that says how it ended",
            ),
            (
                "workerserver run --tcp 127.0.0.1:8900 -m package.train",
                "a module; http://127.0.0.1:8900/ui is a page for a browser",
            ),
        ),
    )
    parser.add_argument(
        "--socket",
        metavar="TEMPLATE",
        help="path of a Unix socket; may contain {rank}, {local_rank}, {pid}",
    )
    parser.add_argument(
        "--tcp", metavar="HOST:PORT", help="address to listen on; port 0 takes any free port"
    )
    parser.add_argument(
        "--blackbox",
        metavar="DIR",
        help="leave behind in DIR what this process was doing when it ended (docs/blackbox.md)",
    )
    parser.add_argument(
        "--keep",
        type=_count,
        metavar="N",
        help="in DIR, keep the black boxes of the last N runs of each host (10)",
    )
    parser.add_argument(
        "--watchdog",
        action="store_true",
        help="watch the job, and write a verdict on stderr when it hangs or a rank is gone "
        "(docs/watchdog.md); --blackbox does that, too, unless WORKERSERVER_WATCHDOG is 0",
    )
    parser.add_argument(
        "--stall",
        type=positive_seconds,
        metavar="S",
        help="seconds without a step after which the watchdog looks (default: the job's own pace, "
        "at least 60)",
    )
    parser.add_argument(
        "-m", dest="module", metavar="module", help="run a module, as python -m does"
    )
    return parser


def _parse(argv: list[str]) -> tuple[argparse.Namespace, Program]:
    """Our options end at the program's name. All arguments after the name go to the program."""
    parser = make_parser()
    end = 0
    while end < len(argv) and argv[end].startswith("-") and argv[end] != "-":
        option = argv[end]
        if option.startswith("-m"):
            end += 2 if option == "-m" else 1
            break
        if option == "--":
            end += 1
            break
        end += 2 if option in WITH_VALUE else 1
    options = parser.parse_args([word for word in argv[:end] if word != "--"])
    rest = argv[end:]
    if options.module is not None:
        return options, Module(options.module, rest)
    if not rest:
        parser.error("which program? give script.py or -m module")
    return options, Script(rest[0], rest[1:])


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10_000):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 9999")
    return int(text)
