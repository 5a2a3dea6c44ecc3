"""Groups of other ranks under one name: one rank counts new_group differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from support.jobs.flight_entries import entry, pending, trace
from test_cluster_waits import looks, main, reasons, state

from workerserver.cluster.judge.diagnose import diagnose

REDUCING = main(".all_reduce", "step")
MAKING = main(".new_group", "setup")


def told(groups: Mapping[str, str], *entries: dict[str, Any], desc: str = "undefined") -> Any:
    """A recorder that knows *groups* by name, besides the default one."""
    found = trace(entry(0, 1), *entries)
    for name, ranks in groups.items():
        found["pg_config"][name] = {"name": name, "desc": desc, "ranks": ranks}
    return found


def in_group(name: str, record: int = 1, desc: str = "undefined") -> dict[str, Any]:
    return pending(record, 1, process_group=[name, desc], pg_id=int(name))


def verdict(*flights: Any, making: int | None = None, count: int = 2) -> Any:
    states = [
        state(number, [MAKING if number == making else REDUCING], flight)
        for number, flight in enumerate(flights)
    ]
    return diagnose(looks(*states, count=count), len(flights))


PAIR, OTHER = "[0, 1]", "[1, 2]"


def test_who_left_out_a_group() -> None:
    """Rank 2 has not called new_group for the pair to which it does not belong."""
    found = verdict(
        told({"1": PAIR}, in_group("1")),
        told({"1": PAIR}),
        told({"1": OTHER}, in_group("1")),
        making=1,
    )
    assert reasons(found) == [(2, "order")]
    assert found.sentence == (
        "rank 2 made process group 1 of ranks 1-2 where ranks 0-1 made it of ranks 0-1: every rank"
        " has to call new_group for each group, in the same order; it stands in"
        " torch.distributed.all_reduce, from step(), train.py:10"
    )


def test_a_group_in_which_nobody_is_seen_to_wait() -> None:
    """The pair has got through its first operation; rank 1 makes the second group."""
    done = entry(1, 1, process_group=["1", "undefined"], pg_id=1)
    pair = told({"1": PAIR}, done)
    found = verdict(pair, pair, told({"1": OTHER}, in_group("1")), making=1)
    assert reasons(found) == [(2, "order")]


def test_one_look_at_ranks_that_have_gone_on_is_enough() -> None:
    """Rank 1 waits for the second group; the others have got to a barrier of all ranks."""
    old = entry(1, 1, process_group=["1", "undefined"], pg_id=1)
    barrier = pending(2, 2, "barrier")
    flights = (told({"1": PAIR}, old, barrier), told({"1": PAIR}, old))
    found = verdict(*flights, told({"1": OTHER}, old, barrier), making=1, count=1)
    assert reasons(found) == [(2, "order")]


def test_of_two_groups_with_as_many_makers_nobody_knows_which_is_right() -> None:
    pair = (told({"1": PAIR}, in_group("1")), told({"1": OTHER}, in_group("1")))
    found = verdict(*pair, told({}), making=2)
    assert (found.status, found.suspects) == (2, ())  # rank 2 would tell
    one, other = "[0, 1, 2]", "[1, 2, 3]"
    flights = [told({"1": each}, in_group("1")) for each in (one, one, other, other)]
    found = verdict(*flights)
    assert reasons(found) == [(rank, "order") for rank in range(4)]
    assert "no side has the majority" in found.suspects[0].evidence


@pytest.mark.parametrize(
    ("first", "other", "desc"),
    [
        ("[0, 1]", "[2, 3]", "undefined"),  # only the members have called new_group
        ("[0, 1]", "[0, 1]", "undefined"),
        ("[0, 1]", "[1, 2]", "mesh:split:0"),  # only the members count a part of a group
    ],
)
def test_what_proves_nothing(first: str, other: str, desc: str) -> None:
    found = verdict(
        told({"1": first}, in_group("1", desc=desc), desc=desc),
        told({"1": first}, desc=desc),
        told({"1": other}, in_group("1", desc=desc), desc=desc),
        told({}),
    )
    assert " made process group " not in found.sentence
