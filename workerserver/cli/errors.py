"""What a command raises to end with one line on stderr and an exit status."""

from __future__ import annotations

__all__ = ["STATUSES", "CommandError", "NoJobError", "OutputError", "TargetError", "UsageError"]


#: What the exit statuses of all commands mean.
STATUSES = {
    0: "healthy, with evidence of progress; or the command did all that was asked",
    1: "suspects; or a part of what was asked",
    2: "could not tell; or nothing of what was asked",
    3: "no job here, or the job has ended",
    64: "wrong use, or a place that may not be read",
    74: "the output could not be written",
    130: "interrupted",
}


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
