"""What a command raises to end with one line on stderr and an exit status."""

from __future__ import annotations

__all__ = ["CommandError", "OutputError", "TargetError", "UsageError"]


class CommandError(Exception):
    """The command could not do what it was asked."""

    exit_status = 1


class UsageError(CommandError):
    """The command was used wrongly."""

    exit_status = 2


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
