"""What torch's flight recorders hold: whole traces, and a summary that fits in one packet.

torch has several recorders with one format: NCCL's (in builds with NCCL), and one for all other
backends. From torch 2.15 on, each other backend has a recorder of its own: gloo, and the backends
that a hook records ("nccl" is one of them if torch builds it as NCCL2). Beware when reading them:
with gloo a finished operation keeps ``"state": "scheduled"`` and shows it by ``"retired": true``,
and the configuration of its groups is recorded without name and ranks; ``pg_status`` values and
``pg_config`` ranks are strings; ``entries`` is absent when there are none.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

from workerserver.handlers.torch_bridge import BinaryContent, call, distributed
from workerserver.http.registry import Registry
from workerserver.process.loaded import imported
from workerserver.ranks import pack
from workerserver.types import NotImplementedHere, Request, Response

__all__ = [
    "dump_nccl_trace_json",
    "dump_nccl_trace_pickle",
    "fr_summary",
    "fr_trace_json",
    "marks",
    "own_summary",
    "register",
    "summarize",
]

#: The backend whose recorder torch's functions dump unless they are told a name.
GLOO = "gloo"

#: Backends that record by themselves, or not at all, and not by torch 2.15's hook.
NOT_HOOKED = frozenset({GLOO, "nccl", "xccl", "fake", "undefined"})

UNKNOWN_TEXT = "Invalid parameters - unexpected param passed in"

#: Tensors of one operation whose shapes a summary names. A coalesced operation can have any number.
MAX_SHAPES = 8

Json = dict[str, Any]


def _binding(name: str) -> Any:
    """The function *name* of torch's bindings; NotImplementedHere if this torch has none."""
    module = distributed()
    if module is None:
        if imported("torch") is None:
            raise NotImplementedHere("this process hasn't imported torch to the end")
        raise NotImplementedHere("this torch was built without torch.distributed")
    function = getattr(module, name, None)
    if function is not None:
        return function
    if "nccl" in name:
        raise NotImplementedHere(
            "this torch was built without NCCL and has no NCCL flight recorder; "
            "fr_trace_json answers for the other backends"
        )
    raise NotImplementedHere("this torch has no flight recorder that can be dumped as JSON")


def dump_nccl_trace_pickle(
    includecollectives: bool = True, includestacktraces: bool = True, onlyactive: bool = False
) -> Response:
    """NCCL's recorder, pickled: a dict with ``version``."""
    dump = _binding("_dump_nccl_trace")
    trace = dump(includecollectives, includestacktraces, onlyactive)
    return Response(trace, content_type="application/octet-stream")


def dump_nccl_trace_json(includecollectives: bool = True, onlyactive: bool = False) -> Response:
    """NCCL's recorder as JSON, without stack traces."""
    dump = _binding("_dump_nccl_trace_json")
    return Response(dump(includecollectives, onlyactive), content_type="application/json")


def fr_trace_json(**parameters: str) -> Response:
    """Another backend's recorder as JSON: only the collectives that are active.

    torch 2.15 reads ``backend`` (default "gloo"); older torch reads no parameter.

    torch's own handler answers, if this torch has one: that handler releases the GIL. The binding
    holds the GIL for tens of milliseconds if the recorder is full. If no server of torch's stands
    by, only the binding can pass on content that isn't UTF-8.
    """
    with contextlib.suppress(NotImplementedHere, BinaryContent):
        return call("fr_trace_json", Request("POST", "/handler/fr_trace_json", parameters))
    dump = _binding("_dump_fr_trace_json")
    trace = _of_backend(dump, (True, True), parameters.get("backend") or GLOO)
    return Response(trace, content_type="application/json")


def _of_backend(dump: Any, flags: tuple[bool, ...], backend: str) -> Any:
    """What torch's *dump* gives for *backend*; a torch with a single recorder gives that."""
    if backend == GLOO or not _takes_backend(dump):
        return dump(*flags)
    return dump(*flags, backend)


def fr_summary() -> Response:
    """For each process group, the last issued operation and the last retired operation.

    JSON; see :func:`summarize`. ``rank`` is this process's rank, null without a default group.
    """
    rank, world, backends = _world()
    dumps = {"fr": _whole("_dump_fr_trace")}
    if hasattr(distributed(), "_dump_nccl_trace_json"):
        dumps["nccl"] = _whole("_dump_nccl_trace")
    if _takes_backend(getattr(distributed(), "_dump_fr_trace", None)):
        _hooked.update(backends - NOT_HOOKED)
        dumps |= {name: _whole("_dump_fr_trace", name) for name in sorted(_hooked)}
    return Response.json({"rank": rank, **summarize(dumps, world)})


def marks() -> tuple[str, ...]:
    """What changes whenever a recorder's process issues or ends an operation, of the recorders that
    :func:`own_summary` reads; empty where there are none. Some microseconds."""
    dump = getattr(distributed(), "_dump_fr_trace_json", None)
    if dump is None:
        return ()
    told = [json.loads(_of_backend(dump, (False, False), name)) for name in _without_device(dump)]
    found = [trace.get("pg_status") for trace in told]
    return tuple(map(json.dumps, found)) if any(found) else ()


def own_summary() -> Json:
    """As :func:`fr_summary`, for this process itself: nobody has asked for it, so nothing that may
    block is asked. NCCL's own recorder asks CUDA for each operation: it is left out."""
    rank, world, backends = _world()
    _hooked.update(backends - NOT_HOOKED)
    names = _without_device(getattr(distributed(), "_dump_fr_trace", None))
    dumps = {"fr" if name == GLOO else name: _whole("_dump_fr_trace", name) for name in names}
    return {"rank": rank, **summarize(dumps, world)}


def _without_device(dump: Any) -> list[str]:
    return [GLOO, *sorted(_hooked)] if _takes_backend(dump) else [GLOO]


def counters() -> list[tuple[str, str, int, int]]:
    """For each process group: its backend, torch's number of the group (``id`` in the summary), and
    how many collectives it has issued and ended by torch's own counters.

    Only these are asked for, and no entry of a ring: some microseconds. Empty where this process
    has no torch, or its torch keeps no counters. AMD's build asks the library of communication
    itself, which may not answer: it is not asked.
    """
    found: list[tuple[str, str, int, int]] = []
    module = distributed()
    dump = getattr(module, "_dump_fr_trace_json", None)
    asked = {GLOO: dump}
    if getattr(getattr(imported("torch"), "version", None), "hip", None) is None:
        asked["nccl"] = getattr(module, "_dump_nccl_trace_json", None)
    if _takes_backend(dump):
        asked |= dict.fromkeys(sorted(_world()[2] - NOT_HOOKED), dump)
    for backend, function in asked.items():
        if function is None:
            continue
        flags = (False, False)
        trace = function(*flags) if backend == "nccl" else _of_backend(function, flags, backend)
        for group, told in sorted((json.loads(trace).get("pg_status") or {}).items()):
            status = _status(told)
            if status is not None and status["enqueued"] >= 0:
                found.append((backend, group, status["enqueued"], max(status["completed"], 0)))
    return found


#: Backends of this process's present and former groups: recorders outlive the groups.
_hooked: set[str] = set()


def _takes_backend(dump: Any) -> bool:
    """Whether torch's function *dump* reads the recorder of a backend that is named: from 2.15 on.

    pybind11 writes the signature into the documentation. torch makes a recorder for any name.
    """
    return "backend: str" in (getattr(dump, "__doc__", None) or "")


def _whole(name: str, backend: str = GLOO) -> Json:
    """All entries of the recorder that *name* dumps. A pickle, where torch has it, takes a third of
    the time that JSON takes. Both hold the GIL for the whole time."""
    pickled = getattr(distributed(), name, None)
    whole: Json
    if pickled is None:
        whole = json.loads(_of_backend(_binding(f"{name}_json"), (True, False), backend))
    else:  # without stacks; torch's own bytes
        whole = pickle.loads(_of_backend(pickled, (True, False, False), backend))
    return whole


def summarize(dumps: Mapping[str, Json], world: dict[str, Json]) -> Json:
    """The summary of full dumps *dumps*, by the recorder they come from: ``fr`` (gloo's, and before
    torch 2.15 that of all other backends), ``nccl``, or the name of a backend with one of its own.

    ``{"version": str, "groups": [GROUP]}``, where GROUP is::

        recorder      "nccl", or "fr" for any other; null if neither holds anything of the group
        id            torch's number of the group, null if it has no entries
        name, desc    str: "0" and "default_pg" for the default group
        ranks         global ranks in the group as text ("0-4095", "3-59:8,64"; see
                      :mod:`workerserver.ranks`), null if torch doesn't say
        status        {"enqueued", "started", "completed"}: torch's own counters, -1 for none;
                      null if it keeps none. They also count operations that it doesn't record
        pending       number of recorded operations that haven't ended
        last_issued, last_retired, first_pending   OPERATION or null
        backend       whose recorder it is, as torch's ``fr_trace_json?backend=`` takes it; null if
                      recorder is. A group with several backends is there once for each

    and OPERATION is::

        seq, p2p_seq  the group's counters: compare across ranks within a group
        p2p           bool
        op            "gloo:all_reduce"
        state         "scheduled", "started" or "completed", as torch says it
        retired       bool: torch has done with it
        input_sizes, output_sizes   shapes, of at most MAX_SHAPES tensors
        input_dtypes  their types
        created_ns, started_ns, completed_ns   wall-clock; null if it hasn't happened
        duration_ms   null unless torch measured it

    Recorders are rings, so the summary misses what was overwritten. *world* maps the name of each
    group that torch.distributed knows to its ``desc`` and ``ranks``.
    """
    groups: list[Json] = []
    version = ""
    for recorder, dump in dumps.items():
        version = str(dump.get("version", version))
        config = dump.get("pg_config") or {}
        status = dump.get("pg_status") or {}
        entries: dict[tuple[int, str, str], list[Json]] = {}
        for entry in sorted(dump.get("entries") or (), key=_record_id):
            name, desc = entry.get("process_group") or ("", "")
            entries.setdefault((entry.get("pg_id", -1), name, desc), []).append(entry)
        for (number, name, desc), operations in entries.items():
            ranks = _ranks(config.get(name, {}).get("ranks")) or world.get(name, {}).get("ranks")
            counters = _status(status.get(str(number)))
            groups.append(_group(recorder, number, name, desc, ranks, counters, operations))
    seen = {group["name"] for group in groups}
    groups += [
        _group(None, None, name, known["desc"], known["ranks"], None, ())
        for name, known in world.items()
        if name not in seen
    ]
    groups.sort(key=lambda group: (group["id"] is None, group["id"] or 0, group["name"]))
    return {"version": version, "groups": groups}


def _record_id(entry: Json) -> int:
    return int(entry.get("record_id", 0))


def _group(
    recorder: str | None,
    number: int | None,
    name: str,
    desc: str,
    ranks: list[int] | None,
    status: Json | None,
    operations: Iterable[Json],
) -> Json:
    last_issued = last_retired = first_pending = None
    pending = 0
    operations = list(operations)
    closed = {
        _batch(entry)
        for entry in operations
        if _ended(entry) and str(entry.get("profiling_name")).endswith(":coalesced")
    }
    for last_issued in operations:
        if _ended(last_issued):
            last_retired = last_issued
        elif _batch(last_issued) not in closed:
            pending += 1
            first_pending = first_pending or last_issued
    return {
        "recorder": recorder if recorder in (None, "nccl") else "fr",
        "id": number,
        "name": name,
        "desc": desc,
        "ranks": None if ranks is None else pack(ranks),
        "status": status,
        "pending": pending,
        "last_issued": _operation(last_issued),
        "last_retired": _operation(last_retired),
        "first_pending": _operation(first_pending),
        "backend": GLOO if recorder == "fr" else recorder,
    }


def _ended(entry: Json) -> bool:
    """NCCL's watchdog retires an operation some time after its end; gloo never says "completed"."""
    return bool(entry.get("retired")) or entry.get("state") == "completed"


def _batch(entry: Json) -> tuple[Any, ...]:
    """NCCL's recorder hears of a batch only that the operation which closes it has ended."""
    return tuple(entry.get(each) for each in ("is_p2p", "collective_seq_id", "p2p_seq_id"))


def _operation(entry: Json | None) -> Json | None:
    if entry is None:
        return None
    return {
        "seq": entry.get("collective_seq_id"),
        "p2p_seq": entry.get("p2p_seq_id"),
        "p2p": bool(entry.get("is_p2p")),
        "op": entry.get("profiling_name"),
        "state": entry.get("state"),
        "retired": bool(entry.get("retired")),
        "input_sizes": (entry.get("input_sizes") or [])[:MAX_SHAPES],
        "input_dtypes": (entry.get("input_dtypes") or [])[:MAX_SHAPES],
        "output_sizes": (entry.get("output_sizes") or [])[:MAX_SHAPES],
        "created_ns": entry.get("time_created_ns"),
        # The JSON dump writes 0 for what hasn't happened.
        "started_ns": entry.get("time_discovered_started_ns") or None,
        "completed_ns": entry.get("time_discovered_completed_ns") or None,
        "duration_ms": entry.get("duration_ms"),
    }


def _ranks(text: Any) -> list[int] | None:
    """``"[0, 1]"`` as a list; None for gloo's ``"[]"`` and for anything else."""
    try:
        ranks = json.loads(text)
    except (TypeError, ValueError):
        return None
    return sorted(set(ranks)) if isinstance(ranks, list) and ranks else None


def _status(counters: Any) -> Json | None:
    if not isinstance(counters, dict):
        return None
    return {
        word: int(counters.get(f"last_{word}_collective", -1))
        for word in ("enqueued", "started", "completed")
    }


def _world() -> tuple[int | None, dict[str, Json], set[str]]:
    """From torch.distributed: this process's rank; each group's ``desc`` and ``ranks`` by name; the
    names of the backends of all groups.

    A recorder alone knows neither the ranks of a gloo group nor the groups in which this rank has
    issued nothing. torch has no public list of groups. Without the private list the answer has
    fewer groups and ranks, but is still right.
    """
    module = imported("torch.distributed.distributed_c10d")
    state = getattr(module, "_world", None)
    if module is None or state is None:
        return None, {}, set()
    rank = None
    groups: dict[str, Json] = {}
    backends: set[str] = set()
    try:
        if module.is_initialized():
            rank = module.get_rank()
        # list() of a dict's items is one step under the GIL: the trainer may add groups meanwhile.
        for group, name in list(state.pg_names.items()):
            groups[str(name)] = {
                "desc": str(getattr(group, "group_desc", "")),
                "ranks": sorted(state.pg_group_ranks.get(group, ())) or None,
            }
            backends |= _backends(group)
    except (AttributeError, RuntimeError, ValueError):
        pass  # a group is being torn down, or this torch keeps its list elsewhere
    return rank, groups, backends


def _backends(group: Any) -> set[str]:
    """The names under which the backends of *group* are recorded; none of one that has none."""
    names = set()
    for device in getattr(group, "_device_types", ()):
        with contextlib.suppress(Exception):  # one that is written in Python may raise anything
            names.add(str(group._get_backend(device).name()))
    return names


def register(registry: Registry) -> None:
    for function in (dump_nccl_trace_pickle, dump_nccl_trace_json, fr_trace_json, fr_summary):
        registry.register(
            function.__name__,
            function,
            requires="torch",
            unknown_text=UNKNOWN_TEXT,
            permission="read",
            shadow=True,
        )
