"""Which library calls wait, and for what: the one list, and how a stack's frames are read by it.

The frames that count are those newer than the newest line of the user's own code: what that line
has called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from workerserver.cluster.model import Frame
from workerserver.cluster.read.owners import code_file, dotted
from workerserver.cluster.read.roles import WAITS

__all__ = ["DECISIVE", "FILE_LOCK", "ON_RANKS", "TABLE", "Kind", "Rule", "Told", "by_frames"]

Kind = Literal[
    "collective",
    "p2p",
    "rendezvous",
    "meeting",
    "dataloader",
    "shutdown",
    "lock",
    "backward",
    "wait",
    "device",
    "debugger",
    "io",
    "sleep",
    "stopped",
    "computing",
    "library",
    "unknown",
]
"""collective: any other function of torch.distributed. rendezvous: init_process_group, new_group
and the like, where ranks wait for each other, too. meeting: monitored_barrier, which takes all
ranks and which no recorder holds. lock: a lock, condition, thread or queue of
Python's threading and queue. wait: another thread or process. device: a GPU, and so perhaps other
ranks. library: code of a library that is not known to wait."""


class Rule(NamedTuple):
    """A library call, and what a thread in it is blocked on.

    *function* None: every function of the file. *call*: what people call it; None if the name of
    the function says it. *works*: the call computes, too, so that a later look may find the thread
    blocked on something else though the user's line is the same.
    """

    path: str
    function: str | None
    kind: Kind
    call: str | None = None
    works: bool = False


#: Who ends that wait is not known by its frames.
FILE_LOCK = "a file lock"

_C10D = "torch/distributed/distributed_c10d.py"
_LOADER = "torch/utils/data/dataloader.py"
_RPC = "torch/distributed/rpc/"
#: Until all workers have come, threads of the process work off their calls.
SERVES_CALLS = "torch.distributed.rpc.shutdown"


def _rules(path: str, kind: Kind, *functions: str) -> Iterable[Rule]:
    return (Rule(path, function, kind) for function in functions)


#: In order: of several rules that match frames of one stack, the first group of rules decides; in a
#: group the outermost frame decides, and a rule with a function goes before one without.
TABLE: tuple[tuple[Rule, ...], ...] = (
    (
        Rule("bdb.py", None, "debugger", "a debugger"),
        Rule("pdb.py", None, "debugger", "a debugger"),
    ),
    (
        *_rules(
            _C10D,
            "shutdown",
            "destroy_process_group",
            "_shutdown_backend",
            "_abort_process_group",
        ),
        *_rules(
            _C10D,
            "rendezvous",
            "init_process_group",
            "new_group",
            "_new_group_with_tag",
            "_new_process_group_helper",
            "split_group",
            "_store_based_barrier",
            "new_subgroups",
            "new_subgroups_by_enumeration",
            "rendezvous",
        ),
        *_rules(
            _C10D,
            "p2p",
            "send",
            "recv",
            "isend",
            "irecv",
            "batch_isend_irecv",
            "send_object_list",
            "recv_object_list",
        ),
        Rule(_C10D, "monitored_barrier", "meeting", "torch.distributed.monitored_barrier"),
        Rule(_C10D, None, "collective"),
        Rule("torch/distributed/rendezvous.py", None, "rendezvous"),
        # What other workers of torch.distributed.rpc owe; shutdown() waits until all have come.
        Rule(_RPC + "__init__.py", "init_rpc", "rendezvous", "torch.distributed.rpc.init_rpc"),
        Rule(_RPC + "api.py", "shutdown", "p2p", SERVES_CALLS),
        Rule(_RPC + "api.py", "rpc_sync", "p2p", "torch.distributed.rpc.rpc_sync"),
        Rule(_RPC + "api.py", None, "p2p", "torch.distributed.rpc"),
        Rule("torch/futures/__init__.py", "wait", "p2p", "torch.futures.Future.wait"),
        Rule("torch/futures/__init__.py", "wait_all", "p2p", "torch.futures.wait_all"),
        Rule(
            "torch/distributed/_functional_collectives.py",
            "wait_tensor",
            "collective",
            "torch.distributed wait_tensor",
        ),
    ),
    (
        Rule(_LOADER, "__next__", "dataloader", "next batch of a DataLoader"),
        Rule(_LOADER, "__iter__", "dataloader", "start of a DataLoader"),
        Rule(_LOADER, None, "dataloader"),
    ),
    (
        Rule("torch/cuda/__init__.py", "synchronize", "device", "torch.cuda.synchronize"),
        Rule("torch/cuda/streams.py", "synchronize", "device", "a CUDA stream or event"),
        Rule("torch/accelerator/__init__.py", "synchronize", "device", "an accelerator"),
    ),
    (Rule("threading.py", "_shutdown", "shutdown", "exit: joins threads"),),
    (
        *(
            Rule(path, function, "lock")
            for path in ("threading.py", "queue.py")
            for function in (
                "acquire",
                "__enter__",
                "wait",
                "wait_for",
                "join",
                "_wait_for_tstate_lock",
                "get",
                "put",
            )
        ),
        Rule("logging/__init__.py", "acquire", "lock", "the lock of a logging handler"),
    ),
    (
        Rule(
            "torch/autograd/graph.py",
            "_engine_run_backward",
            "backward",
            "backward pass",
            works=True,
        ),
    ),
    (
        Rule(
            "torch/nn/parallel/distributed.py",
            "forward",
            "library",
            "DistributedDataParallel.forward",
            works=True,
        ),
    ),
    # Files whose locks are asked for again and again: by several ranks, or for one that has ended.
    (
        Rule("filelock/_api.py", None, "wait", FILE_LOCK),
        Rule("torch/utils/_filelock.py", None, "wait", FILE_LOCK),
        Rule("torch/utils/file_baton.py", None, "wait", FILE_LOCK),
    ),
    (Rule("asyncio/base_events.py", "run_forever", "wait", "asyncio event loop", works=True),),
)

#: By path and function: the number of the rule's group, and the rule.
_BY_CALL = {
    (rule.path, rule.function): (number, rule)
    for number, rules in enumerate(TABLE)
    for rule in rules
}
#: What the rules of these kinds say is true whatever the called library calls in turn.
DECISIVE = frozenset(
    {
        "collective",
        "p2p",
        "rendezvous",
        "meeting",
        "dataloader",
        "device",
        "debugger",
        "lock",
        "shutdown",
    }
)
#: The number of the group of rules about torch.distributed.
_DISTRIBUTED = 1

#: Of distributed_c10d.py: these frames stand between a call and what it does.
_WRAPPERS = frozenset({"wrapper", "inner", "decorate_context", "_fn"})
#: Frames that only pass a call on.
_PASSING = frozenset(
    {"_call_impl", "_wrapped_call_impl", "decorate_context", "wrapper", "__call__"}
)

#: Files of which every function waits; the newest frame that is in one of them tells.
_IO = (
    "http/", "requests/", "shutil.py", "socket.py", "ssl.py", "subprocess.py", "tarfile.py",
    "torch/serialization.py", "urllib/", "urllib3/", "zipfile.py",
)  # fmt: skip
_WAITING = frozenset({*WAITS, "concurrent/futures/_base.py", "multiprocessing/popen_fork.py"})


#: A thread that is blocked on one of these waits for other ranks.
ON_RANKS = frozenset({"collective", "p2p", "rendezvous", "meeting"})


class Told(NamedTuple):
    """What frames alone tell. *line*: the number of the newest frame of the user's code. *kind*
    None: no library has been called from there."""

    line: int
    own: bool
    kind: Kind | None
    call: str = ""
    works: bool = False


CallSite = tuple[str, str]
"""A frame's file, as its owner calls it, and its function."""


class _Match(NamedTuple):
    """*group*: the number of the rule's group. *frame*: its number, from the outermost one."""

    group: int
    frame: int
    rule: Rule


@lru_cache(maxsize=8192)
def by_frames(frames: tuple[Frame, ...]) -> Told:
    line, own = _users_line(frames)
    everything = [(code_file(frame.file).path, frame.function) for frame in reversed(frames)]
    if line or (frames and code_file(frames[0].file).owner == "library"):
        # Outermost first. Without any code of the user's, all of the stack.
        called = everything[len(frames) - line :] or everything
    else:
        called = []
    if own:
        everything = called
    found = _matching(called, everything)
    if not found and not called:
        return Told(line, own, None)
    kind = found[0].rule.kind if found else _by_files(called)
    works = (
        found[0].group > _DISTRIBUTED + 1 and any(each.rule.works for each in found)
        if found
        else False
    )
    return Told(line, own, kind, _in_words(called, everything, found), works)


def _in_words(
    called: Sequence[CallSite], everything: Sequence[CallSite], found: Sequence[_Match]
) -> str:
    if (
        found
        and found[0].group == _DISTRIBUTED
        and (name := _function_of_torch(everything)) is not None
    ):
        return name
    for each in found:
        if each.rule.call is not None:
            return each.rule.call
    places = called or [everything[found[0].frame]]
    return dotted(*next((each for each in places if each[1] not in _PASSING), places[0]))


def _users_line(frames: Sequence[Frame]) -> tuple[int, bool]:
    """The number of the newest frame of the user's code, and whether it is the user's own."""
    package = None
    for index, frame in enumerate(frames):
        owner = code_file(frame.file).owner
        if owner == "user":
            return index, True
        if owner == "package" and package is None:
            package = index
    return package or 0, False


def _matching(called: Sequence[CallSite], everything: Sequence[CallSite]) -> list[_Match]:
    """The rules that match, the one that decides first."""
    found: list[_Match] = []
    for index, (path, function) in enumerate(everything):
        if path == _C10D and function in _WRAPPERS:
            continue
        match = _BY_CALL.get((path, function)) or _BY_CALL.get((path, None))
        newer = index >= len(everything) - len(called)
        if match is not None and (newer or match[1].kind in DECISIVE):
            found.append(_Match(match[0], index, match[1]))
    return sorted(found, key=lambda each: (each.group, each.frame))


def _function_of_torch(places: Sequence[CallSite]) -> str | None:
    """The outermost function of torch.distributed, a public one if possible."""
    private = None
    for path, function in places:
        if path == _C10D and function not in _WRAPPERS:
            if not function.startswith("_"):
                return f"torch.distributed.{function}"
            private = private or f"torch.distributed.{function}"
        elif (rule := _BY_CALL.get((path, function))) and rule[0] == _DISTRIBUTED:
            return rule[1].call
    return private


def _by_files(places: Sequence[CallSite]) -> Kind:
    for path, _ in reversed(places):
        if path.startswith(_IO):
            return "io"
        if path in _WAITING:
            return "wait"
    return "library"
