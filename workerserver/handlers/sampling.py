"""``sample_stacks`` and ``GET /debug/pprof/profile``: where the time of this process goes.

A thread of C takes the samples, without the GIL, while somebody asks (``stacks/sampler/``). Both
are coroutines: they only wait, and when the asker goes away they are cancelled, which ends the
recording. A recording also ends by itself, so a loop that can't get the GIL keeps none running.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Annotated, Literal

from workerserver.stacks._stacks import (
    MAX_RECORDING_HZ,
    MAX_RECORDING_SECONDS,
    Recording,
    recording_left,
)
from workerserver.types import NotImplementedHere, Range, Response, ServerBusy, WorkerServerError

if TYPE_CHECKING:
    from workerserver.http.registry import Registry

__all__ = ["RecordingInUse", "profile_page", "register", "sample_stacks"]

Mode = Literal["wall", "cpu"]
Seconds = Annotated[float, Range(0.01, MAX_RECORDING_SECONDS)]
Hz = Annotated[float, Range(1.0, MAX_RECORDING_HZ)]


class RecordingInUse(WorkerServerError):
    """Stacks of this process are already recorded for somebody else."""

    status = 409

    def __init__(self, left: float) -> None:
        wait = max(1, math.ceil(left))
        self.headers = (("Retry-After", str(wait)),)
        super().__init__(
            f"somebody else records the stacks of this process, for at most {left:.1f} s more; "
            "one recording runs at a time"
        )


async def _record(duration: float, hz: float, mode: Mode) -> bytes:
    try:
        recording = Recording(duration, hz, mode)
    except BlockingIOError:
        raise RecordingInUse(recording_left()) from None
    except NotImplementedError as error:
        raise NotImplementedHere(f"stacks can't be recorded here: {error}") from None
    except MemoryError as error:
        raise ServerBusy(str(error)) from None
    try:
        await asyncio.sleep(duration)
    finally:
        recording.stop()
    return recording.json()


async def sample_stacks(duration: Seconds = 1.0, hz: Hz = 100.0, mode: Mode = "wall") -> Response:
    """Samples of the stacks of all Python threads, as a tree of counts for each thread.

    For *duration* seconds, *hz* times a second. *mode*: ``wall`` counts every thread in every
    sample, and apart from each other those that run and those that don't; ``cpu`` counts only
    threads that run or wait for a processor. Where reading takes more than a fifth of a processor,
    samples are left out; the answer says how many (``missed``).

    Raises RecordingInUse (409) while another recording runs in this process, NotImplementedHere
    (501) where stacks can't be read without the GIL.
    """
    return Response(await _record(duration, hz, mode), content_type="application/json")


async def profile_page(seconds: Seconds = 30.0, hz: Hz = 100.0) -> Response:
    """``GET /debug/pprof/profile``: the same by the clock, for ``go tool pprof``."""
    from workerserver.stacks.profiles import pprof
    from workerserver.stacks.profiles.recorded import parse

    recorded = parse(await _record(seconds, hz, "wall"))
    return Response(
        pprof.of_process(recorded),
        content_type="application/octet-stream",
        headers=(("Content-Disposition", 'attachment; filename="profile.pb.gz"'),),
    )


def register(registry: Registry) -> None:
    registry.register("sample_stacks", sample_stacks, permission="profile", shadow=True)
