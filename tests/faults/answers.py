"""What the ranks of a job answered in two looks: kept as it came, and read as ``diagnose`` does.

``answers.py FAMILY…``, with tests/ in PYTHONPATH, runs the family's jobs that hang and writes
recorded/FAMILY.json.gz, without what only this machine has.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scenes
from running import HERE, job
from simulator.recorded.record import QUESTIONS, STOCK, UnixConnection, anonymous, trimmed

from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.rounds import settle_ranks
from workerserver.cluster.model import Failure, Own, RankState, Worker
from workerserver.cluster.read.stacks import parse_text, read_json

__all__ = ["FOLDER", "Look", "anonymised", "looks", "rounds", "written"]

FOLDER = HERE / "recorded"
#: Seconds from the first look to the second, and from the hang to the first.
BETWEEN_S = 6.0
SETTLED_S = 32.0

Json = dict[str, Any]


@dataclass
class Look:
    """What a judge needs of one."""

    states: list[RankState]
    started: float


# --- taking them


def ask(path: Path, method: str, target: str) -> Any:
    """The body, or a sentence why there is none."""
    connection = UnixConnection(path)
    try:
        connection.request(method, target)
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, http.client.HTTPException) as error:
        return {"failure": "timeout" if isinstance(error, TimeoutError) else "unreachable"}
    finally:
        connection.close()
    if reply.status != 200:
        return {"failure": "missing" if reply.status == 404 else "refused"}
    return json.loads(body) if body[:1] == b"{" else body.decode()


def look(paths: Sequence[Path]) -> Json:
    started = time.time()
    ranks = []
    for path in paths:
        answers = {question: ask(path, *where) for question, where in QUESTIONS.items()}
        if answers["healthz"] == {"failure": "missing"}:
            answers = {question: ask(path, *where) for question, where in STOCK.items()}
        elif "failure" in answers["stacks"]:
            answers.pop("stacks")
        elif "threads" in answers["stacks"]:
            answers = trimmed(answers)
        ranks.append(answers)
    return {"started": started, "ranks": ranks}


def looks(sockets: str, ranks: int) -> list[Json]:
    """Two of them, some seconds apart."""
    if "{rank}" in sockets:
        paths = [Path(sockets.replace("{rank}", str(rank))) for rank in range(ranks)]
    else:
        paths = sorted(Path(sockets).parent.glob(Path(sockets).name))
    first = look(paths)
    time.sleep(BETWEEN_S)
    return [first, look(paths)]


def anonymised(found: Any) -> Any:
    text = anonymous(json.dumps(found)).replace(str(HERE), "/home/user/faults")
    return json.loads(re.sub(r"/tmp/ws-\w+", "/run/job", text))


def written(path: Path, found: Any) -> int:
    """Compressed; how many bytes that are."""
    text = json.dumps(found, separators=(",", ":"), sort_keys=True)
    packed = gzip.compress(text.encode(), mtime=0)
    path.write_bytes(packed)
    return len(packed)


# --- reading them


def rounds(recorded: Sequence[Json], named: bool = True) -> list[Look]:
    """As ``diagnose`` makes them of answers. *named*: the sockets' names tell the ranks."""
    found = []
    for each in recorded:
        states = [state(rank, answers, named) for rank, answers in enumerate(each["ranks"])]
        settle_ranks(states)
        found.append(Look(states, each["started"]))
    return found


def state(rank: int, answers: Json, named: bool) -> RankState:
    worker = Worker(f"/run/job/rank{rank}.sock", True, rank if named else None)
    found = RankState(worker, worker.rank)
    for question, answer in answers.items():
        if isinstance(answer, dict) and "failure" in answer:
            found.failures[question] = Failure(answer["failure"], "recorded")
            continue
        found.responded = True
        if question == "healthz":
            found.kind = "workerserver"
            found.health = bodies.health(json.dumps(answer).encode())
        elif question == "stacks":
            told = read_json(json.dumps(answer))
            found.threads, found.mode = told.threads, told.mode
            found.own = Own(told.mode, told.pid, told.namespace, told.children)
        elif question == "text":
            found.kind = "torch"
            found.threads = parse_text(answer)
        elif question == "fr_summary":
            found.flight_summary = answer
        else:
            found.flight = answer
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="+", metavar="FAMILY")
    for family in parser.parse_args().families:
        scenes.load(family)
        found = {}
        for name, scene in sorted(scenes.SCENES.items()):
            if scene.family == family and scene.status:
                with job(scene) as sockets:
                    time.sleep(SETTLED_S)
                    found[name] = anonymised(looks(sockets, scene.ranks))
        print(family, len(found), "jobs", written(FOLDER / f"{family}.json.gz", found), "bytes")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
