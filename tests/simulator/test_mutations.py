"""The simulator finds planted faults of the judge."""

from __future__ import annotations

import os

from .mutations import MUTATIONS, find

#: The long form: WORKERSERVER_SIMULATED_JOBS=3000 pytest tests/simulator/test_mutations.py
JOBS = int(os.environ.get("WORKERSERVER_SIMULATED_JOBS", "0"))
#: These take more jobs to find than the suite has time for.
RARE = frozenset(
    {
        "a rank that computes or writes may be accused",
        "a rank that counts on may be accused",
        "a rank whose child works may be accused",
        "a step that is too old accuses nobody",
    }
)


def test_each_mutation_is_found() -> None:
    names = [name for name in MUTATIONS if JOBS or name not in RARE]
    found = {each.mutation for each in find(names, 0, max(JOBS, 140))}
    assert found == {*names}


def test_there_are_twenty() -> None:
    assert len(MUTATIONS) >= 20
