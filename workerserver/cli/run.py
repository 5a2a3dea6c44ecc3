"""``workerserver run script.py ARGS…``: an unchanged program with a server inside it."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import sys
from collections.abc import Sequence

from workerserver.cli.errors import UsageError
from workerserver.cli.program import LoadError, Module, Program, Script, execute, hide_our_frames
from workerserver.process.run_folder import make_run_folder, run_folder

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Serve, run the program, return 0. An exception of the program passes unchanged.

    UsageError before the program starts, if there is no such program or no server can start.
    """
    options, program = _parse(list(argv))
    try:
        program.load()
    except LoadError as error:
        raise UsageError(str(error)) from None
    except Exception as error:  # for example a syntax error, to be shown as Python shows it
        hide_our_frames(error)
        raise
    _serve(options.socket, options.tcp)
    try:
        execute(program)
    except LoadError as error:
        raise UsageError(str(error)) from None
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, Program]:
    """Our options end at the program's name. All arguments after the name go to the program."""
    parser = argparse.ArgumentParser(
        "workerserver run",
        usage="%(prog)s [--socket TEMPLATE] [--tcp HOST:PORT] (script.py | -m module) [ARGS...]",
        description="Run a program with a worker server inside its process.",
        epilog="Without --socket and --tcp, the server listens where TORCH_WORKER_SERVER_SOCKET "
        "and WORKERSERVER_TCP say. If neither variable is set, the server listens on a socket in a "
        "private folder of the user.",
        allow_abbrev=False,
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
        "-m", dest="module", metavar="module", help="run a module, as python -m does"
    )
    end = 0
    while end < len(argv) and argv[end].startswith("-") and argv[end] != "-":
        option = argv[end]
        if option.startswith("-m"):
            end += 2 if option == "-m" else 1
            break
        if option == "--":
            end += 1
            break
        end += 2 if option in ("--socket", "--tcp") else 1
    options = parser.parse_args([word for word in argv[:end] if word != "--"])
    rest = argv[end:]
    if options.module is not None:
        return options, Module(options.module, rest)
    if not rest:
        parser.error("which program? give script.py or -m module")
    return options, Script(rest[0], rest[1:])


def _serve(socket: str | None, tcp: str | None) -> None:
    """Start a server that serves until the process ends.

    atexit closes the server, and not the end of the program's last line: the program's remaining
    threads and exit handlers can hang too, and then the server has to answer.
    """
    from workerserver.control_plane import serve_from_environment

    if socket is None and tcp is None and not _environment_decides():
        socket = default_socket()
    stack = contextlib.ExitStack()
    try:
        servers = stack.enter_context(serve_from_environment(socket=socket, tcp=tcp))
    except (OSError, RuntimeError, ValueError) as error:
        reason = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise UsageError(f"can't serve: {error}{reason}") from None
    owner = os.getpid()

    def close() -> None:
        if os.getpid() == owner:  # a forked child that ends normally calls this too
            stack.close()

    atexit.register(close)
    if servers and sys.stderr is not None:
        with contextlib.suppress(OSError):
            addresses = ", ".join(server.address for server in servers)
            print(f"workerserver: serving on {addresses}", file=sys.stderr, flush=True)


def _environment_decides() -> bool:
    names = ("TORCH_WORKER_SERVER_SOCKET", "WORKERSERVER_TCP")
    return any(os.environ.get(name) for name in names)


def default_socket() -> str:
    """``<tempdir>/workerserver-<uid>/rank<RANK>-<pid>.sock``, or ``<pid>.sock`` without a RANK.

    Makes the folder with mode 0700. If another user has made a folder of that name, makes one with
    a longer name instead. UsageError if the folder is ours but other users have access: another
    user could replace our socket.
    """
    usual = run_folder()
    try:
        folder = make_run_folder()
    except NotADirectoryError:
        raise UsageError(f"{usual} is not a folder; remove it or give --socket") from None
    except PermissionError as error:
        if error.errno is not None:
            raise UsageError(f"can't make {usual}: {error.strerror}; give --socket") from None
        raise UsageError(
            f"{usual} is open to other users; make it yours (0700) or give --socket"
        ) from None
    except OSError as error:
        raise UsageError(f"can't make {usual}: {error.strerror}; give --socket") from None
    rank = os.environ.get("RANK", "")
    prefix = f"rank{rank}-" if rank.isdecimal() else ""
    return os.path.join(folder, f"{prefix}{os.getpid()}.sock")
