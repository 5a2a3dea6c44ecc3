"""The library functions whose named locals say what a thread waits for, and how they are found.

``TABLE`` is the whole list: to add a function, add a row. A snapshot reads the locals that a row
names, of frames that execute exactly that function's code object, and no other local of any frame.
So a function of the user is never read, whatever its name, its file or its variables.

``publish()`` gives the rows to the reader, each as soon as its module is imported. It imports
nothing. A function that somebody has replaced by one of another file is left out.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from workerserver.stacks import proof
from workerserver.stacks._stacks import learn_function, learn_groups, prepare

__all__ = ["TABLE", "Row", "publish"]


class Row(NamedTuple):
    module: str
    qualname: str
    kind: str
    """What the function waits for; ``pass``: it only calls other functions of the table."""
    locals: Mapping[str, str] = MappingProxyType({})
    """By role (``ROLES`` of _stacks): the name of a local variable."""
    attribute: str | None = None
    """Of ``self``: the lock that is waited for, or the process id."""
    op: str | None = None


_SELF = {"self": "self"}
_GROUP = {"group": "group"}
_FROM = {"peer": "src", "group_peer": "group_src", **_GROUP}
_TO = {"peer": "dst", "group_peer": "group_dst", **_GROUP}
_TAG = {"tag": "tag"}


def _rows(module: str, kind: str, *names: str, **options: Any) -> list[Row]:
    return [Row(module, name, kind, **options) for name in names]


def _operations(names: str, locals: Mapping[str, str] = _GROUP) -> list[Row]:
    module = "torch.distributed.distributed_c10d"
    return [Row(module, name, "operation", locals, op=name) for name in names.split()]


_STANDARD = [
    Row("threading", "Condition.wait", "condition", _SELF, "_lock"),
    Row("threading", "Condition.__enter__", "lock", _SELF, "_lock"),
    Row("threading", "Condition._acquire_restore", "lock", _SELF, "_lock"),
    *_rows("threading", "event", "Event.wait", locals=_SELF),
    *_rows("threading", "semaphore", "Semaphore.acquire", locals=_SELF),
    *_rows("threading", "barrier", "Barrier.wait", locals=_SELF),
    *_rows("threading", "thread", "Thread.join", locals=_SELF),
    *_rows(
        "threading", "pass",
        "Condition.wait_for", "Barrier._wait", "Barrier._enter", "Thread._wait_for_tstate_lock",
    ),
    *_rows("queue", "queue", "Queue.get", "Queue.put", "Queue.join", locals=_SELF),
    *_rows(
        "subprocess", "process",
        "Popen.wait", "Popen._wait", "Popen._try_wait", "Popen.communicate", "Popen._communicate",
        locals=_SELF, attribute="pid",
    ),
    *_rows(
        "concurrent.futures._base", "future",
        "Future.result", "Future.exception", locals=_SELF,
    ),
    *_rows("concurrent.futures._base", "future", "wait", "as_completed"),
    *_rows(
        "multiprocessing.popen_fork", "process",
        "Popen.wait", "Popen.poll", locals=_SELF, attribute="pid",
    ),
    *_rows(
        "multiprocessing.popen_forkserver", "process", "Popen.poll", locals=_SELF, attribute="pid"
    ),
    *_rows("multiprocessing.process", "pass", "BaseProcess.join"),
    *_rows(
        "multiprocessing.queues", "queue",
        "Queue.get", "Queue.put", "SimpleQueue.get", "JoinableQueue.join", locals=_SELF,
    ),
    *_rows("multiprocessing.synchronize", "condition", "Condition.wait", locals=_SELF),
    *_rows("multiprocessing.synchronize", "event", "Event.wait", locals=_SELF),
    *_rows(
        "multiprocessing.connection", "pass",
        "wait", "_ConnectionBase.recv", "_ConnectionBase.recv_bytes", "_ConnectionBase.poll",
        "Connection._recv", "Connection._recv_bytes", "Connection._poll",
    ),
    *_rows(
        "selectors", "pass",
        "SelectSelector.select", "_PollLikeSelector.select", "PollSelector.select",
        "EpollSelector.select",
    ),
    Row("logging", "Handler.acquire", "lock", _SELF, "lock"),
    # importlib's own name of itself
    *_rows("_frozen_importlib", "import_lock", "_ModuleLock.acquire", locals=_SELF),
]  # fmt: skip

_TORCH = [
    *_operations("send isend", {**_TO, **_TAG}),
    *_operations("recv irecv", {**_FROM, **_TAG}),
    *_operations("broadcast scatter", _FROM),
    *_operations("reduce gather", _TO),
    *_operations(
        "all_reduce all_reduce_coalesced all_gather all_gather_into_tensor all_gather_single "
        "all_gather_coalesced _all_gather_base reduce_scatter reduce_scatter_tensor "
        "reduce_scatter_single _reduce_scatter_base all_to_all all_to_all_single barrier "
        "monitored_barrier"
    ),
    *_operations("all_gather_object"),
    *_operations("gather_object send_object_list", _TO),
    *_operations("broadcast_object_list scatter_object_list recv_object_list", _FROM),
    *_operations("batch_isend_irecv _CoalescingManager.wait", {}),
    *_operations("_coalescing_manager"),
    Row("torch.distributed._functional_collectives", "wait_tensor", "operation", op="wait_tensor"),
    *_rows("torch.distributed._functional_collectives", "pass", "AsyncCollectiveTensor.wait"),
    *[
        Row("torch.distributed.distributed_c10d", name, "rendezvous", op=name)
        for name in ("init_process_group", "new_group", "split_group")
    ],
    Row("torch.distributed.rendezvous", "_create_c10d_store", "rendezvous", op="create_store"),
    *_rows(
        "torch.distributed.distributed_c10d", "pass",
        "_new_process_group_helper", "_new_group_with_tag",
    ),
    *_rows(
        "torch.distributed.rendezvous", "pass",
        "_env_rendezvous_handler", "_tcp_rendezvous_handler",
    ),
    *_rows(
        "torch.distributed.distributed_c10d", "store", "_store_based_barrier",
        locals={"key": "last_worker_key", "other_key": "store_key"},
    ),
    *_rows(
        "torch.distributed.elastic.utils.store", "store", "barrier",
        locals={"key": "last_member_key", "other_key": "key_prefix"},
    ),
    *_rows(
        "torch.distributed.elastic.utils.store", "store", "get_all",
        locals={"key": "barrier_key", "other_key": "prefix"},
    ),
    *_rows(
        "torch.distributed.elastic.utils.store", "store", "synchronize",
        locals={"key": "key_prefix"},
    ),
]  # fmt: skip

TABLE: tuple[Row, ...] = (*_STANDARD, *_TORCH)

_GROUPS = "torch.distributed.distributed_c10d"  # also the module with the tables of groups

_waiting: dict[str, list[Row]] = {}
for _row in TABLE:
    _waiting.setdefault(_row.module, []).append(_row)
_seen = -1  # modules that were imported at the last look
_names: dict[Any, str] = {}  # torch's own, by process group
_words: dict[str, str] = {}  # the descriptions of these groups
_named: set[int] = set()  # addresses of the names that were looked at


def _is_library(file: str, module: str) -> bool:
    """Whether code of this file may stand for a function of that library module: the standard
    library's own folder, and torch's for a module of torch. Packages beside them don't count."""
    if file.startswith("<frozen "):
        return True
    if module.split(".")[0] == "torch":
        torch = getattr(sys.modules.get("torch"), "__file__", None)
        if torch and file.startswith(os.path.dirname(torch) + os.sep):
            return True
    standard = os.path.dirname(os.__file__) + os.sep
    return file.startswith(standard) and "-packages" not in file[len(standard) :].split(os.sep)[0]


def _find(module: types.ModuleType, qualname: str) -> object:
    """What *module* has by that name, without running any code of it."""
    found: Any = module
    for part in qualname.split("."):
        found = vars(found).get(part) if isinstance(found, (types.ModuleType, type)) else None
    return found


def _codes(function: object, module: str, files: dict[str, bool]) -> list[types.CodeType]:
    """The code of a library function behind its decorators, innermost first. Empty where any of
    it is not the library's. *files*: what is known of each file, for this *module*."""
    codes: list[types.CodeType] = []
    while isinstance(function, types.FunctionType) and len(codes) < 8:
        code = function.__code__
        codes.insert(0, code)
        file = code.co_filename
        known = files.get(file)
        if known is None:
            known = files[file] = _is_library(file, module)
        if not known:
            return []
        function = vars(function).get("__wrapped__")
    return codes


def _publish_row(module: types.ModuleType, row: Row, files: dict[str, bool]) -> None:
    codes = _codes(_find(module, row.qualname), row.module, files)
    if not codes:
        return
    code = codes[0]
    places = {}
    if row.locals:
        names, cells = code.co_varnames, (*code.co_cellvars, *code.co_freevars)
        for role, name in row.locals.items():
            if name in names and name not in cells:
                places[role] = names.index(name)
    learn_function(code, row.kind, row.op, row.attribute, places)
    for wrapper in codes[1:]:
        learn_function(wrapper, "pass", None, None, {})


def _publish_groups(module: types.ModuleType) -> None:
    global _names
    names, ranks = vars(module).get("_pg_names"), vars(module).get("_pg_group_ranks")
    world = vars(module).get("_world")
    if type(names) is dict and type(ranks) is dict and world is not None:
        learn_groups(names, ranks, _words, world)
        _names = names


def _describe_groups() -> None:
    """Bring the descriptions of process groups up to date. The reader compares names by address,
    so a name that was given anew has no description until then."""
    global _named
    named = {id(name) for name in list(_names.values())}
    if named == _named:
        return
    _named = named
    words = {name: getattr(group, "group_desc", None) for group, name in list(_names.items())}
    _words.clear()
    _words.update(
        (name, text)
        for name, text in words.items()
        if type(name) is str and type(text) is str and text != "undefined"  # torch's own default
    )


def publish() -> None:
    """Prepare the reading of stacks without the GIL, and give the reader the functions of modules
    that are imported by now. Cheap if nothing changed since the last call."""
    global _seen
    count = len(sys.modules)
    if prepare() is not None or not proof.proven():
        return
    if count != _seen:
        _seen = -1 if _publish_modules() else count
    _describe_groups()


def _publish_modules() -> bool:
    """Publish the rows of modules that are imported. Whether one of them is only half imported."""
    late = False
    for name in list(_waiting):
        module = sys.modules.get(name)
        if not isinstance(module, types.ModuleType):
            continue
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            late = True
            continue
        files: dict[str, bool] = {}
        for row in _waiting.pop(name, ()):
            _publish_row(module, row, files)
        if name == _GROUPS:
            _publish_groups(module)
    return late
