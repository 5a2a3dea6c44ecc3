"""What a report says, as plain data: a verdict, and what was learned of each rank."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workerserver.cluster.failures import unusable
from workerserver.cluster.judge.sentences import SENTENCES
from workerserver.cluster.model import Frame, RankState, RoundLike, Thread
from workerserver.cluster.read.acting import acting
from workerserver.cluster.read.roles import main_thread
from workerserver.cluster.read.steps import Pace
from workerserver.cluster.read.tree import Node, prefix_tree, tree
from workerserver.cluster.show.tree import where
from workerserver.ranks import fold, unpack

__all__ = ["MAX_PACES", "document", "ranks_in"]

#: Ranks whose last steps are drawn, and steps of each.
MAX_PACES = 64
MAX_STEPS = 128
#: Suspects that have a card, frames of a stack, and nodes of the tree.
MAX_CARDS = 16
MAX_FRAMES = 60
MAX_NODES = 512
MAX_DEPTH = 48
#: A list of ranks in a verdict stands for so many at most.
MAX_RANKS = 1 << 20


def document(
    fields: Mapping[str, Any],
    rounds: Sequence[RoundLike] = (),
    paces: Mapping[int, Pace] | None = None,
    *,
    targets: Sequence[str] = (),
    commands: Mapping[int, str] | None = None,
    samples: Sequence[RankState] = (),
) -> dict[str, Any]:
    """*fields*: what ``diagnose --json`` prints of the job. *rounds*: the looks that the verdict
    rests on. Without them, the map and the tree are made of the verdict's groups of equal stacks:
    then hosts, steps and silent ranks are known only as far as the verdict tells them. *paces*: the
    last steps of some ranks. *targets*: how the job was named, for the commands that ask more.
    *commands*: the command lines of some ranks. *samples*: what ranks that have ended did last."""
    states = list(rounds[-1].states) if rounds else []
    by_rank = {state.rank: state for state in states if state.rank is not None and state.threads}
    for state in samples:
        if state.rank is not None:
            by_rank.setdefault(state.rank, state)
    commands = commands or {}
    suspects = [dict(each) for each in fields.get("suspects", ())]
    for each in suspects[:MAX_CARDS]:
        each.update(_more(by_rank.get(each["rank"]), each["reason"]))
        each["commands"] = _commands(each, targets, fields.get("job"))
        each["argv"] = commands.get(each["rank"])
    culprits = [dict(each) for each in fields.get("culprits", ())]
    for each in culprits[:MAX_CARDS]:
        each.update(_more(by_rank.get(each["rank"]), None))
        each["commands"] = [shlex.join(["workerserver", "blackbox", *(targets or [each["path"]])])]
        each["argv"] = commands.get(each["rank"])
    leaves: dict[int, int] = {}
    root = tree(states) if states else _tree_told(fields)
    nodes = _nodes(root, leaves) if root.count else []
    workers = [_worker(state, leaves) for state in states]
    hosts = {each["rank"]: each["host"] for each in fields.get("boxes") or ()}
    holders = {each["rank"] for each in suspects if each["gil_holder"]} - {None}
    for worker in workers:
        worker["gil_held"] = worker["gil_held"] or worker["rank"] in holders
        worker["host"] = worker["host"] or hosts.get(worker["rank"])
    asked = [each["address"] for each in workers if not each["address"].endswith(".box")]
    return {
        **{name: fields.get(name) for name in _KEPT},
        "of_boxes": bool(fields.get("boxes")) and not asked,  # nobody was asked
        "suspects": suspects,
        "culprits": culprits,
        "looks": [look.started for look in rounds],
        "workers": [*workers, *_told(fields, {each["rank"] for each in workers}, leaves)],
        "tree": nodes,
        "steps": _steps(paces or {}, [each["rank"] for each in [*culprits, *suspects]], leaves),
        "files": sorted({*_files(states), *_files_told(nodes)}),
    }


#: What is taken from the verdict as it is.
_KEPT = (
    "job", "verdict", "status", "ranks", "responded", "unreachable", "stragglers", "groups",
    "process_groups", "problems", "progress", "not_looked_at", "notes", "leftovers", "time",
    "boxes", "without_box", "unreadable", "again_s", "other_jobs",
)  # fmt: skip


def ranks_in(text: Any) -> list[int]:
    """The ranks of a list in a verdict; none if it is no such list."""
    try:
        return unpack(text, MAX_RANKS) if isinstance(text, str) else []
    except ValueError:
        return []


# ---- ranks


def _worker(state: RankState, leaves: Mapping[int, int]) -> dict[str, Any]:
    health = state.health
    gone = unusable(state)
    return {
        "rank": state.rank,
        "host": (health.host if health is not None else None) or state.worker.host,
        "local_rank": None if health is None else health.local_rank,
        "address": state.worker.address,
        "silent": None if gone is None else gone.reason,
        "gil_held": _holds_gil(state),
        "step": None if health is None else health.step,
        "step_age_s": None if health is None else health.step_age_s,
        "leaf": None if state.rank is None else leaves.get(state.rank),
    }


def _told(
    fields: Mapping[str, Any], known: Iterable[Any], leaves: Mapping[int, int]
) -> list[dict[str, Any]]:
    """The ranks of which the verdict tells, and no look: those with a stack, those without an
    answer, those that left a box, and those that left none."""
    found: dict[int, dict[str, Any]] = {}

    def add(rank: Any, **more: Any) -> None:
        if type(rank) is int and rank not in seen:
            usual: dict[str, Any] = dict.fromkeys(("host", "local_rank", "silent"))
            usual.update(address="", gil_held=False, step=None, step_age_s=None)
            usual.update(rank=rank, leaf=leaves.get(rank))
            worker = found.setdefault(rank, usual)
            worker.update({name: value for name, value in more.items() if value is not None})

    seen = set(known)
    for rank in leaves:
        add(rank)
    for each in fields.get("unreachable") or ():
        add(each["rank"], host=each["host"], address=each["address"], silent=each["reason"])
    for rank in (fields.get("without_box") or ())[:MAX_RANKS]:
        add(rank, silent="it left no box")
    for each in fields.get("boxes") or ():
        gone = None if each["rank"] in leaves else f"it has ended: {each['end']}"
        add(each["rank"], host=each["host"], step=each["step"], silent=gone)
    for each in fields.get("suspects") or ():
        add(
            each["rank"], host=each["host"], address=each["address"], step=each["step"],
            step_age_s=each["step_age_s"], gil_held=each["gil_holder"] or None,
        )  # fmt: skip
    return [found[rank] for rank in sorted(found)]


def _tree_told(fields: Mapping[str, Any]) -> Node:
    """The tree of the verdict's groups, of which each has the frames of its main thread first."""
    items: list[tuple[tuple[Frame, ...], int | None]] = []
    for group in fields.get("groups") or ():
        frames: list[Frame] = []
        for line in group["stack"]:
            if line.startswith("["):
                break
            place, _, function = line.rpartition(" ")
            file, _, at = place.rpartition(":")
            frames.append(Frame(file, int(at) if at.isdecimal() else None, function))
        stack = tuple(reversed(frames))
        items += [(stack, rank) for rank in ranks_in(group["ranks"])]
    return prefix_tree(items)


def _holds_gil(state: RankState) -> bool:
    """A thread of it keeps the GIL: the server has waited for a second, or has read the stacks
    without it and has met the holder."""
    unavailable = state.health.gil_unavailable_s if state.health is not None else None
    return bool(unavailable is not None and unavailable >= 1)


def _more(state: RankState | None, reason: Any) -> dict[str, Any]:
    """What a card has beside the suspicion."""
    sentence = SENTENCES.get(reason) if reason is not None else None
    fields: dict[str, Any] = {"rests_on": None if sentence is None else sentence.rests_on}
    thread = _thread(state)
    fields["stack"] = [] if thread is None else list(map(where, thread.frames[:MAX_FRAMES]))
    fields["kernel"] = None if thread is None else thread.wchan
    health = None if state is None else state.health
    fields["rss_bytes"] = None if health is None else health.rss_bytes
    if health is not None and health.pid is not None:
        fields["pid"] = health.pid
    return fields


def _thread(state: RankState | None) -> Thread | None:
    """The thread that acts for the rank."""
    if state is None or not state.threads:
        return None
    return acting(state.threads) or main_thread(state.threads)


def _commands(suspect: Mapping[str, Any], targets: Sequence[str], job: Any) -> list[str]:
    place = list(targets) or (["--job", job] if isinstance(job, str) else [])
    lines = [shlex.join(["workerserver", "diagnose", "-v", *place])]
    address = suspect.get("address")
    if isinstance(address, str) and address and not address.endswith(".box"):
        for handler in (["dump_traceback"], ["pyspy_dump", "native=1"], ["wait_counter_values"]):
            lines.append(shlex.join(["workerserver", "call", *handler, address]))
    lines.append(shlex.join(["workerserver", "fr", *place]))
    return lines


def _files(states: Iterable[RankState]) -> set[str]:
    """Every file that a stack names: a report may have to be without their folders."""
    seen: set[int] = set()
    files: set[str] = set()
    for state in states:
        if id(state.threads) in seen:
            continue
        seen.add(id(state.threads))
        files.update(frame.file for thread in state.threads for frame in thread.frames)
    return files


def _files_told(nodes: Sequence[Mapping[str, Any]]) -> set[str]:
    lines = {line for node in nodes for line in node["frames"]}
    return {line.rpartition(" ")[0].rpartition(":")[0] for line in lines}


# ---- stacks


def _nodes(root: Node, leaves: dict[int, int]) -> list[dict[str, Any]]:
    """The tree, depth first. *leaves* gets for each rank the number of its stack: of a node's ranks
    these numbers are one run, ``leaf`` to ``last``."""
    nodes: list[dict[str, Any]] = []
    open_nodes: list[tuple[int, dict[str, Any]]] = []
    count = 0
    waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        while open_nodes and open_nodes[-1][0] >= depth:
            open_nodes.pop()[1]["last"] = count - 1
        made = {
            "depth": depth,
            "ranks": fold(node.ranks),
            "count": node.count,
            "ended": node.count,
            "undrawn": 0,
            "frames": [where(frame) for frame in node.frames[:MAX_FRAMES]],
            "more": max(len(node.frames) - MAX_FRAMES, 0),
            "leaf": count,
            "last": count,
        }
        nodes.append(made)
        open_nodes.append((depth, made))
        # The rarest come first. Where there is no room for all, the others end here.
        room = 0 if depth >= MAX_DEPTH else max(MAX_NODES - len(nodes) - len(waiting), 0)
        children = node.children[:room]
        made["undrawn"] = len(node.children) - len(children)
        made["ended"] = node.count - sum(child.count for child in children)
        below = {rank for child in children for rank in child.ranks}
        here = [rank for rank in node.ranks if rank not in below]
        if here or not children:
            leaves.update(dict.fromkeys(here, count))
            count += 1
        waiting += [(child, depth + 1) for child in reversed(children)]
    for _, made in open_nodes:
        made["last"] = count - 1
    return nodes


# ---- steps


def _steps(
    paces: Mapping[int, Pace], first: Sequence[Any], leaves: Mapping[int, int]
) -> list[dict[str, Any]]:
    """The last steps of at most MAX_PACES ranks: of those that are accused, then of those that
    stopped first. The first to stop comes first."""
    known = {rank: pace for rank, pace in paces.items() if pace.steps}

    def order(rank: int) -> tuple[bool, int, int]:
        return rank not in first, known[rank].began_ns[-1], rank

    shown = sorted(known, key=order)[:MAX_PACES]
    return [
        {
            "rank": rank,
            "leaf": leaves.get(rank),
            "steps": list(known[rank].steps[-MAX_STEPS:]),
            "began": [each / 1e9 for each in known[rank].began_ns[-MAX_STEPS:]],
        }
        for rank in sorted(shown, key=lambda rank: (known[rank].began_ns[-1], rank))
    ]
