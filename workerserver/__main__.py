"""``python -m workerserver``: the command line."""

from __future__ import annotations

import socket
import sys

from workerserver.cli import main


def serve(sock: socket.socket, collects: bool) -> None:
    """The same, for the process of a watchdog that keeps its commands ready (cli/ready.py)."""
    from workerserver.cli import ready  # no other program needs it

    ready.serve(sock, collects)


if __name__ == "__main__":
    sys.exit(main())
