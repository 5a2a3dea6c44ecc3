"""As watched_rank.py, but this host's keeper finds that another one is about to end: the rank has
the lock that a keeper needs, until the rank ends."""

from __future__ import annotations

import fcntl
import os
import runpy
from pathlib import Path

from workerserver.blackbox.place import folder_of, places
from workerserver.job.identity import own

if os.environ["LOCAL_RANK"] == "0":
    agent = own().agent
    assert agent is not None
    lock = (Path(folder_of(places()[0], agent, None)) / "keeper.lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
runpy.run_path(str(Path(__file__).parents[1] / "watched_rank.py"), run_name="__main__")
