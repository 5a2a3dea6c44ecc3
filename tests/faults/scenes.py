"""What a job of the corpus is: what its ranks do, how it is started, and what is true of it."""

from __future__ import annotations

import ctypes
import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import workerserver

__all__ = [
    "FAMILIES",
    "FOLDER",
    "FOREVER",
    "RANK",
    "SCENES",
    "STEPS",
    "How",
    "Play",
    "Scene",
    "Suspect",
    "apart",
    "beat",
    "begun",
    "fault",
    "gets_stuck_in_backward",
    "healthy",
    "late",
    "load",
    "only",
    "prepare",
    "reduce",
    "sleeps_with_gil",
    "standing",
    "train",
    "unclear",
]

FAMILIES = (
    "alone",
    "checkpoints",
    "deadlocks",
    "disagreeing",
    "files",
    "going_on",
    "grids",
    "launching",
    "pausing",
    "pipelines",
    "regrouping",
    "street",
    "threads",
    "unequal",
)  # fmt: skip

FOREVER = 600.0
#: The steps before the scene; each is one all_reduce, so the next one is #6.
STEPS = 5
RANK = int(os.environ.get("RANK", "-1"))
FOLDER = Path(os.environ.get("FOLDER", "/nonexistent"))

Play = Callable[[], None]


class Suspect(NamedTuple):
    """*function*: where it stands; None if its stacks are out of reach."""

    rank: int
    reason: str
    process_group: str | None
    collective: str | None
    seq: int | None
    function: str | None


@dataclass(frozen=True)
class How:
    """How the job is started, and how it is asked.

    *words*: torchrun's. *settings*: environment variables. *ring*: entries of the recorders of the
    ranks in *recorded* (None: of all). *kind*: "workerserver", "torch" (stock workers) or "mixed":
    odd ranks are stock. *joined*: all ranks make the default group before the scene, and *steps*
    steps. *begins*: the scene begins then, else it says so itself. *stays*: whoever gets through
    the scene stays; else the program ends. *beats*: with heartbeats.
    *settled_s*: seconds from the last rank's start of the scene to the first question.
    *patience_s*: so long the question may be repeated. *sockets*: the pattern of the workers'
    sockets, where it isn't the usual one. *processes*: how many torchrun starts, if they are not
    the ranks. *watched_by_torchrun*: it looks after its workers each second, and not only when all
    is over.
    """

    words: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    ring: int = 2000
    recorded: Sequence[int] | None = None
    kind: str = "workerserver"
    joined: bool = True
    begins: bool = True
    stays: bool = True
    steps: int = STEPS
    beats: bool = True
    settled_s: float = 2.0
    patience_s: float = 150.0
    deadline_s: float | None = None
    sockets: str = "rank{rank}.sock"
    processes: int | None = None
    watched_by_torchrun: bool = False


@dataclass(frozen=True)
class Scene:
    """*status*: of the right verdict. *suspects*: whom it names. *says*: a part of its sentence.
    *stock*: whom it names on stock workers; None if the job isn't run on them.

    Of a healthy job: *moments*: when it is looked at, in seconds. *earns*: heartbeats or recorders
    tell that it goes on, so that "could not tell" would be wrong. *slow_rank*: the straggler that
    is named; -1 if any may be."""

    name: str
    play: Play
    ranks: int
    status: int
    suspects: tuple[Suspect, ...] = ()
    says: str = ""
    how: How = field(default_factory=How)
    stock: tuple[Suspect, ...] | None = None
    quick: bool = False
    earns: bool = False
    slow_rank: int | None = None
    moments: Sequence[float] = ()

    @property
    def family(self) -> str:
        return self.play.__module__.rpartition(".")[2]


SCENES: dict[str, Scene] = {}
Decorator = Callable[[Play], Play]


def _add(scene: Scene) -> None:
    assert scene.name not in SCENES, scene.name
    SCENES[scene.name] = scene


def fault(
    ranks: int,
    *suspects: Suspect,
    how: How | None = None,
    stock: Sequence[Suspect] | None = None,
    quick: bool = False,
    name: str = "",
) -> Decorator:
    """A job that hangs, or is to hang, by the fault of *suspects*."""

    def register(play: Play) -> Play:
        own = tuple(stock) if stock is not None else None
        _add(
            Scene(
                name or play.__name__,
                play,
                ranks,
                1,
                suspects,
                how=how or How(),
                stock=own,
                quick=quick,
            )
        )
        return play

    return register


def unclear(ranks: int, says: str = "", how: How | None = None, name: str = "") -> Decorator:
    """A job that hangs, or may only be slow. Nobody can be named for it; a comment says why."""

    def register(play: Play) -> Play:
        how_ = how or How()
        _add(Scene(name or play.__name__, play, ranks, 2, says=says, how=how_))
        return play

    return register


#: When a healthy job is looked at: seconds from its ranks' start of the scene.
MOMENTS = (0.0, 4.0, 8.0, 12.0, 16.0)


def healthy(
    ranks: int,
    how: How | None = None,
    name: str = "",
    earns: bool = False,
    slow_rank: int | None = None,
    moments: Sequence[float] = MOMENTS,
    stock: bool = False,
) -> Decorator:
    """A job without any fault, looked at at *moments*."""

    def register(play: Play) -> Play:
        _add(
            Scene(
                name or play.__name__,
                play,
                ranks,
                0,
                how=how or How(),
                earns=earns,
                slow_rank=slow_rank,
                moments=moments,
                stock=() if stock else None,
            )
        )
        return play

    return register


def only(
    rank: int,
    suspect: Suspect,
    ranks: int = 2,
    how: How | None = None,
    stock: Sequence[Suspect] | None = None,
    quick: bool = False,
) -> Decorator:
    """A scene in which *rank* alone calls the function, before the next collective."""

    def register(function: Play) -> Play:
        def play() -> None:
            beat(STEPS)
            if rank == RANK:
                function()
            reduce()

        play.__module__ = function.__module__
        own = {"how": how, "stock": stock, "quick": quick}
        fault(ranks, suspect, name=function.__name__, **own)(play)  # type: ignore[arg-type]
        return function

    return register


def load(family: str) -> None:
    importlib.import_module(f"corpus.{family}")


# ---- whom the verdict names


def late(rank: int, function: str | None, reason: str = "behind") -> Suspect:
    """It alone has not come to the all_reduce after the first five."""
    return Suspect(rank, reason, "default_pg", "all_reduce", 6, function)


def apart(rank: int, operation: str, function: str, reason: str = "mismatch") -> Suspect:
    """It has issued something else than the others as number 6."""
    return Suspect(rank, reason, "default_pg", operation, 6, function)


def standing(rank: int, function: str | None, reason: str = "behind") -> Suspect:
    """No recorder tells in what the others wait for it."""
    return Suspect(rank, reason, None, None, None, function)


# ---- what many scenes do


def beat(step: int) -> None:
    if "NO_HEARTBEAT" not in os.environ:
        workerserver.heartbeat(step)


def reduce(size: int = 4) -> None:
    dist.all_reduce(torch.ones(size))


def train(steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        beat(step)
        reduce()


def prepare() -> None:
    """Where a rank stands that keeps the others waiting."""
    time.sleep(FOREVER)


def gets_stuck_in_backward(rank: int) -> None:
    """All ranks train a model once; *rank* stays in a hook of the backward pass."""
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    if rank == RANK:
        model.module.weight.register_hook(log_gradient)
    beat(STEPS)
    model(torch.ones(2, 4)).sum().backward()


def log_gradient(gradient: Any) -> None:
    time.sleep(FOREVER)


def sleeps_with_gil() -> None:
    ctypes.PyDLL(None).sleep(int(FOREVER))


def begun() -> None:
    (FOLDER / f"begun{RANK}").touch()
