"""A command in a terminal of a given size: tmux."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from support.waiting import becomes

__all__ = ["Terminal", "needs_tmux", "terminal"]

needs_tmux = pytest.mark.skipif(
    shutil.which("tmux") is None, reason="needs tmux: apt-get install tmux"
)


class Terminal:
    """What runs in the pane of one tmux server of its own."""

    def __init__(self, server: Path, width: int, height: int) -> None:
        self._server = str(server)
        self.width, self.height = width, height

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._server, "-f", "/dev/null", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run *words*; what is on the screen at their end stays there."""
        given = [f"{name}={value}" for name, value in environment.items()]
        command = shlex.join(["env", "-i", *given, "TERM=screen-256color", *words])
        command += "; printf 'ended with %s\\n' $?; cat"
        size = ("-x", str(self.width), "-y", str(self.height))
        self.tmux("new-session", "-d", *size, command)

    def screen(self) -> list[str]:
        """The lines of the screen."""
        return self.tmux("capture-pane", "-p").splitlines()

    def text(self) -> str:
        """All lines, also those that have scrolled away, as they were written: a line that the
        terminal itself has wrapped is one line."""
        return self.tmux("capture-pane", "-p", "-J", "-S", "-")

    def lines(self) -> list[str]:
        """All lines, also those that have scrolled away, as they are on the screen."""
        return self.tmux("capture-pane", "-p", "-S", "-").splitlines()

    def is_wrapped(self) -> bool:
        """Whether the terminal had to wrap a line."""
        return len(self.text().splitlines()) != len(self.lines())

    def wait_for(self, seen: Callable[[], object], what: str) -> None:
        if not becomes(seen, 100):
            raise AssertionError(f"{what}:\n{self.text()}")

    def keys(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)


@contextlib.contextmanager
def terminal(
    server: Path,
    words: Sequence[str],
    environment: Mapping[str, str],
    *,
    width: int,
    height: int,
) -> Iterator[Terminal]:
    """``workerserver WORDS`` in a terminal of *width* columns and *height* lines."""
    found = Terminal(server, width, height)
    found.start([sys.executable, "-m", "workerserver", *words], environment)
    try:
        yield found
    finally:
        found.tmux("kill-server")
