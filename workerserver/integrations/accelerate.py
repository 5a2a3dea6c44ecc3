"""Hugging Face accelerate: a tracker, because the Accelerator knows no other callbacks."""

from __future__ import annotations

from typing import Any

from accelerate.tracking import GeneralTracker

from workerserver.control_plane import start
from workerserver.integrations.loops import OptimizerBeats

__all__ = ["AccelerateTracker"]


class AccelerateTracker(GeneralTracker):
    """Serves in each process, and beats after each step of an optimizer.

    ``Accelerator(log_with=AccelerateTracker())``. The server starts at once, before the Accelerator
    sets up its process group, and no other call is needed. The tracker keeps nothing of ``log()``.
    If the loop calls ``heartbeat`` or uses ``steps``, the steps of that count are reported.
    """

    name = "workerserver"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self) -> None:
        start()
        super().__init__()
        self._beats = OptimizerBeats()

    @property
    def tracker(self) -> None:
        """There is no object of a library behind this tracker."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keeps nothing."""

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Keeps nothing."""

    def finish(self) -> None:
        """The heartbeats end. The server serves until the process ends."""
        self._beats.stop()
