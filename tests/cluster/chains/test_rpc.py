"""Ranks in torch.distributed.rpc wait for other ranks, which no recorder tells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.jobs.flight_entries import pending, trace
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


SERVING = calling(
    ("/usr/lib/python3/selectors.py", "select"),
    ("/usr/lib/python3/socketserver.py", "serve_forever"),
)
POLLING = calling(("/usr/lib/python3/site-packages/zmq/sugar/poll.py", "poll"))
RECEIVING = main("serve", wchan="sk_wait_data")
IN_C = main("tokenize")


@pytest.mark.parametrize("server", [SERVING, POLLING, RECEIVING])
def test_who_serves_sleepers_is_not_accused(server: Thread) -> None:
    """It may wait for their next message. Whether the second one has run is told by the first one,
    which has the same stack."""
    assert verdict(server, ASLEEP, replace(ASLEEP, switches=None)).status == 2


@pytest.mark.parametrize("server", [SERVING, POLLING, RECEIVING])
def test_who_serves_others_is_accused_only_if_all_of_them_wait(server: Thread) -> None:
    """Rank 2 is in a lock of its own, or in an operation that no recorder holds."""
    reduces = main(".all_reduce", "step")
    found = verdict(server, reduces, IN_C)
    assert (found.status, found.suspects) == (2, ())
    assert "rank 2 stands in a lock, or an operation that no recorder holds" in found.sentence
    assert reasons(verdict(server, reduces, reduces)) == [(0, "behind")]


def test_a_thread_that_works_off_calls_acts_for_who_waits_in_shutdown() -> None:
    """The trainers run in calls of the master; one of them waits for its queue."""
    runs = [Frame("/home/user/train.py", 20, "epoch"), Frame(RPC + "internal.py", 10, "_run")]
    pair = trace(pending(0, 1), ranks="[1, 2]")
    reduces = replace(main(".all_reduce", "step"), main=False, native_id=2, name="rpc")
    waits = calling(("/usr/lib/python3/queue.py", "get"))
    waits = replace(waits, main=False, native_id=2, name="rpc")
    reduces, waits = (replace(each, frames=(*each.frames, *runs)) for each in (reduces, waits))
    states = [
        state(0, [IN_C], trace(ranks="[1, 2]")),
        state(1, [LEAVING, reduces], pair),
        state(2, [LEAVING, waits], trace(ranks="[1, 2]")),
    ]
    found = diagnose(looks(*states), 3)
    assert reasons(found) == [(2, "lock")]
    assert "thread rpc: serve(), train.py:10 < epoch(), train.py:20" in found.suspects[0].evidence
