"""What a command raises to end with one line on stderr and an exit status.

The exit statuses of all commands: 0 all that was asked, or healthy; 1 a part, or suspects; 2
nothing of what was asked, or could not tell; 3 no job, or one that has ended; 64 wrong use, or a
place that may not be read; 74 the output could not be written; 130 interrupted.
"""

from __future__ import annotations

__all__ = ["CommandError", "NoJobError", "OutputError", "TargetError", "UsageError"]


class CommandError(Exception):
    """The command could not do what it was asked. ``advice``: lines that say what to do."""

    exit_status = 2
    advice: tuple[str, ...] = ()


class NoJobError(CommandError):
    """There is no job here, or it has ended."""

    exit_status = 3


class UsageError(CommandError):
    """The command was used wrongly, or names a place that may not be read."""

    exit_status = 64


class OutputError(CommandError):
    """What the command was to write could not be written: *place* has no room, say."""

    exit_status = 74

    def __init__(self, place: str, error: OSError) -> None:
        super().__init__(f"{place}: {error.strerror or error}")


class TargetError(CommandError):
    """*target* could not be asked; *reason* says why."""

    def __init__(self, target: str, reason: str) -> None:
        self.target = target
        self.reason = reason
        super().__init__(f"{target}: {reason}")
