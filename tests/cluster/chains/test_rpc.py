"""Ranks in torch.distributed.rpc wait for other ranks, which no recorder tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.jobs.recordings import Round
from test_cluster_waits import ASLEEP, NOW, looks, main, reasons, reducing, state

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read.blocked_on import blocked_on

RPC = "/usr/lib/python3/site-packages/torch/distributed/rpc/"
FUTURES = "/usr/lib/python3/site-packages/torch/futures/__init__.py"


def calling(*library: tuple[str, str]) -> Thread:
    """The newest frame first."""
    waiting = main("serve")
    frames = [Frame(file, 10, function) for file, function in library]
    return replace(waiting, frames=(*frames, *waiting.frames))


LEAVING = calling((RPC + "api.py", "_all_gather"), (RPC + "api.py", "shutdown"))
CALLING = calling((FUTURES, "wait"), (RPC + "api.py", "rpc_sync"))
ANSWERED = calling((FUTURES, "wait"))
JOINING = calling((RPC + "backend_registry.py", "init_backend"), (RPC + "__init__.py", "init_rpc"))


@pytest.mark.parametrize(
    ("thread", "kind", "call"),
    [
        (LEAVING, "p2p", "torch.distributed.rpc.shutdown"),
        (CALLING, "p2p", "torch.distributed.rpc.rpc_sync"),
        (ANSWERED, "p2p", "torch.futures.Future.wait"),
        (JOINING, "rendezvous", "torch.distributed.rpc.init_rpc"),
    ],
)
def test_in_words(thread: Thread, kind: str, call: str) -> None:
    found = blocked_on([thread])
    assert (found.kind, found.call, found.on_ranks) == (kind, call, True)


def verdict(*threads: Thread) -> Any:
    states = [state(number, [thread]) for number, thread in enumerate(threads)]
    return diagnose(looks(*states), len(threads))


@pytest.mark.parametrize("server", [LEAVING, CALLING, ANSWERED])
def test_a_server_that_waits_for_its_trainers_is_not_accused(server: Thread) -> None:
    """Trainers stand together in a long sleep. The server of the job waits for them."""
    assert verdict(server, ASLEEP, ASLEEP).status == 2
    assert verdict(server, main(".all_reduce", "step"), ASLEEP).suspects[0].rank == 2


@pytest.mark.parametrize("server", [LEAVING, CALLING, ANSWERED])
def test_nor_is_it_beside_trainers_that_wait_for_one(server: Thread) -> None:
    states = [state(0, [server]), reducing(1), state(2, [ASLEEP])]
    assert reasons(diagnose(looks(*states), 3)) != [(0, "behind")]


def test_who_moves_beside_ranks_that_wait_is_named() -> None:
    """It polls for a file, and has run in between."""
    meeting = main(".monitored_barrier", "step")
    polling = [replace(ASLEEP, switches=number) for number in (5, 9)]
    rounds = [
        Round([state(0, [meeting]), state(1, [meeting]), state(2, [each])], NOW + 10.0 * number)
        for number, each in enumerate(polling)
    ]
    found = diagnose(rounds, 3)
    assert (found.status, found.again_s) == (2, 10.0)
    assert found.sentence == (
        "could not tell: rank 2 stands apart from the others; it moves, and may only be slow in"
        " prepare(), train.py:10"
    )


def test_who_serves_sleepers_is_not_accused() -> None:
    """Nor is a server that waits in a library that is not known to wait: sleepers need nobody."""
    polling = calling(("/usr/lib/python3/site-packages/zmq/sugar/poll.py", "poll"))
    assert verdict(polling, ASLEEP, ASLEEP).status == 2
