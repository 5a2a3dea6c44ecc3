"""How a process ended, as its black box tells it: only what is recorded, and nothing is guessed."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from workerserver.blackbox.read import Box, Moment
from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read import stacks
from workerserver.cluster.read.acting import acting
from workerserver.cluster.read.blocked_on import blocked_on
from workerserver.cluster.read.owners import code_file
from workerserver.cluster.read.roles import main_thread

__all__ = ["Ending", "Kind", "ended_by_launcher", "ending", "raised_before", "stacks_of"]

Kind = Literal[
    "alive",
    "clean",
    "left",
    "exception",
    "crash",
    "terminated",
    "killed",
    "oom",
    "status",
    "no trace",
]
"""alive: nothing says that it has ended. left: it left with exit status 0, but not by its
interpreter's exit. crash: a fatal signal of its own. terminated: somebody
sent it SIGTERM or the like. killed: SIGKILL. oom: SIGKILL, and the kernel has killed for want of
memory then. status: it left with that exit status, and no exception. no trace: it is gone, and
nothing tells why: SIGKILL, os._exit, or its host."""

#: What an exception says, or an abort does, when other ranks have gone or do not come.
_OTHERS = re.compile(
    r"timed? ?out|timeout|connection (?:closed|reset|refused|aborted)|closed by (?:peer|remote)|"
    r"broken pipe|remote process exited|socket (?:closed|error)|peer closed|network error|"
    r"heartbeat|store .{0,40}(?:closed|gone|lost)|rendezvous",
    re.I | re.S,
)


class Memory(NamedTuple):
    """Bytes in use by the process's cgroup, and its limit."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Ending:
    """*time*: seconds since the epoch, by its host's clock. *detail*: how, in words for people.
    *waits_for_others*: it ended because other ranks had gone or did not come, as it says itself.
    *interrupted*: somebody ended it by Ctrl-C.
    *place*: the newest line of the user's code on the stack that counts; *step*: the last one.
    *seen*: when both were written, if nothing of its end was; None: at its end."""

    rank: int | None
    host: str | None
    pid: int
    kind: Kind
    detail: str
    time: float | None
    step: int | None
    place: Frame | None
    waits_for_others: bool
    interrupted: bool
    memory: Memory | None
    seen: float | None
    box: Box


def ending(box: Box) -> Ending:
    events = [end.value for end in box.ends if end.value.get("why") in ("signal", "exception")]
    signals = [each for each in events if each["why"] == "signal"]
    # What came after a signal comes of it: KeyboardInterrupt, say.
    exceptions = [each for each in events[:1] if each["why"] == "exception"]
    exits = [end.value for end in box.ends if end.value.get("why") == "exit"]
    keeper = {} if box.keeper is None else box.keeper.value
    gone = _seconds(keeper.get("ended"))
    status = keeper.get("wait_status")
    status = status if type(status) is int and 0 <= status < 1 << 16 else None
    kind, detail, told = _how(signals, exceptions, exits, gone, status, keeper)
    kills = keeper.get("oom_kills")
    if kind in ("exception", "status") and type(kills) is int and kills > 0:
        # Of a DataLoader's worker, say.
        detail += " after the kernel had killed a process of its cgroup (out of memory)"
    others = False
    if kind == "exception" and told is not None:
        others = _OTHERS.search(f"{told.get('type')}: {told.get('text')}") is not None
    if kind == "crash" and told is not None and told.get("signal") == signal.SIGABRT:
        # std::terminate: a watchdog's, mostly. The main thread then waits for others.
        others = not _waits_for_no_rank(box)
    time = None if told is None else _seconds(told.get("time"))
    if time is None and kind != "alive":
        time = gone
    host = box.identity.get("host")
    step = box.health.get("step")
    return Ending(
        rank=box.rank,
        host=host if isinstance(host, str) else None,
        pid=box.pid,
        kind=kind,
        detail=detail,
        time=time,
        step=step if type(step) is int else None,
        place=None if kind == "clean" else _place(box, told),
        waits_for_others=others,
        interrupted=kind == "terminated" and told is not None and told["why"] == "exception",
        memory=_memory(box),
        seen=box.time if told is None and kind != "alive" else None,
        box=box,
    )


def _waits_for_no_rank(box: Box) -> bool:
    """At its end, the thread that acts for it surely waited for no other rank. Whoever waits for
    one has given the GIL back."""
    told = stacks_of(box.last)
    if told is None:
        return False
    blocked = blocked_on(told.threads)
    holds = blocked.thread is not None and blocked.thread.holds_gil and told.mode == "nogil"
    return holds or blocked.on_no_rank


#: Of a process that has ended, and its interpreter has not.
_HOW_ELSE = " by os._exit, exec or from C"
_How = tuple[Kind, str, "Mapping[str, Any] | None"]


def _how(
    signals: Sequence[Mapping[str, Any]],
    exceptions: Sequence[Mapping[str, Any]],
    exits: Sequence[Mapping[str, Any]],
    gone: float | None,
    status: int | None,
    keeper: Mapping[str, Any],
) -> _How:
    """The kind, the words, and the record that tells it."""
    exception = exceptions[0] if exceptions else None
    sent = [each for each in signals if each.get("signal") == signal.SIGTERM]
    crash = next((each for each in signals if each.get("signal") != signal.SIGTERM), None)
    number = None if status is None else status & 127
    code = None if status is None else status >> 8
    if exception is not None and exception.get("type") == "KeyboardInterrupt":
        return "terminated", "was ended by Ctrl-C (KeyboardInterrupt)", exception
    if exception is not None and (not number or number in (signal.SIGTERM, signal.SIGKILL)):
        return "exception", f"ended by {_exception(exception)}", exception
    if number:
        if number == signal.SIGKILL:
            if sent:
                return "terminated", f"{_sent(sent[0])}, and by SIGKILL later", sent[0]
            kills = keeper.get("oom_kills")
            if type(kills) is int and kills > 0:
                return "oom", "was killed (out of memory)", None
            return "killed", "was killed (SIGKILL)", None
        if number == signal.SIGTERM:
            return "terminated", _sent(sent[0] if sent else {}), sent[0] if sent else None
        return "crash", f"ended by {_name(number)}{_where(crash)}", crash
    if crash is not None and not exits:
        name = _name(crash.get("signal"))
        return "crash", f"ended by {name}{_where(crash)}", crash
    if sent:
        return "terminated", _sent(sent[0]), sent[0]
    if code:
        how = "" if exits else _HOW_ELSE
        return "status", f"left with exit status {code}{how}", None
    if exits:
        return "clean", "ended by itself", exits[0]
    if code == 0:
        return "left", f"left with exit status 0{_HOW_ELSE}", None
    if gone is not None:
        return "no trace", "ended without a trace: SIGKILL, os._exit or its host", None
    return "alive", "has not ended as far as its box tells", None


def _name(number: Any) -> str:
    if type(number) is not int or not 0 < number < 128:
        return "a signal"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _sent(told: Mapping[str, Any]) -> str:
    pid = told.get("pid")
    by = f" from process {pid}" if type(pid) is int and pid > 0 else ""
    return f"was ended by SIGTERM{by}"


def _where(told: Mapping[str, Any] | None) -> str:
    """The address of a fault."""
    address = None if told is None else told.get("address")
    return f" at address 0x{address:x}" if type(address) is int and address > 0 else ""


def _exception(told: Mapping[str, Any]) -> str:
    kind, text = _line(told.get("type")) or "an exception", _line(told.get("text"))
    return f"{kind}: {text}" if text else kind


def ended_by_launcher(box: Box) -> bool | None:
    """Whether the first signal was a SIGTERM of the process that has started the rank; None if that
    is not known."""
    agent = str(box.identity.get("agent")).partition(":")[0]
    for end in box.ends:
        if end.value.get("why") == "signal":
            pid = end.value.get("pid")
            known = agent.isdecimal() and type(pid) is int and pid > 0
            is_sigterm = end.value.get("signal") == signal.SIGTERM
            return str(pid) == agent if known and is_sigterm else None
    return None


def raised_before(box: Box) -> list[str]:
    """Exceptions that ended other threads, and not the process: a prefetcher's, say. It may be why
    the process waited later."""
    told = []
    for end in box.ends:
        if end.value.get("why") == "thread":
            frames = end.value.get("frames")
            at = _own_frame(_frames(frames)) if isinstance(frames, list) else None
            where = "" if at is None else f", in {at.function}(), {at.file}:{at.line}"
            thread = _line(end.value.get("name")) or "another thread"
            told.append(f"{_exception(end.value)}, in the thread {thread}{where}")
    return told


def _line(text: Any) -> str:
    """The first line of a text, as much of it as a sentence may have: a box is never trusted."""
    return text.strip().partition("\n")[0][:200] if isinstance(text, str) else ""


def _seconds(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12:
        return float(value)
    return None


# ---- where


def _threads(moment: Moment | None) -> tuple[Thread, ...]:
    """The threads of a record of stacks; none if there is none that can be understood."""
    told = stacks_of(moment)
    return () if told is None else told.threads


def stacks_of(moment: Moment | None) -> stacks.Stacks | None:
    if moment is None:
        return None
    try:
        return stacks.of_value(moment.value.get("stacks"))
    except ValueError:
        return None


def _place(box: Box, told: Mapping[str, Any] | None) -> Frame | None:
    if told is not None and isinstance(told.get("frames"), list):
        return _own_frame(_frames(told["frames"]))
    sampled = _threads(box.stacks[-1] if box.stacks else None)
    threads = _threads(box.last) or sampled
    thread = told.get("thread") if told is not None else None
    crashed = [each for each in threads if each.native_id == thread and thread]
    chosen = crashed[0] if crashed else acting(threads) or main_thread(threads)
    if not _is_users(chosen):
        chosen = acting(threads) or chosen
    if told is None and not _is_users(chosen):  # sys.exit(): the program's own frames are gone
        before = acting(sampled) or main_thread(sampled)
        chosen = before if _is_users(before) else chosen
    return None if chosen is None else _own_frame(chosen.frames)


def _is_users(thread: Thread | None) -> bool:
    """Whether code of the user's is on its stack."""
    return thread is not None and any(code_file(e.file).owner == "user" for e in thread.frames)


def _frames(given: Sequence[Any]) -> list[Frame]:
    """Those of a traceback, the newest first."""
    found = []
    for each in reversed(given):
        match each:
            case [str(file), int() | None as line, str(function)]:
                found.append(Frame(file, line, function))
    return found


def _own_frame(frames: Sequence[Frame]) -> Frame | None:
    """The newest frame of the user's code, else the newest one."""
    own = (frame for frame in frames if code_file(frame.file).owner == "user")
    found = next(own, frames[0] if frames else None)
    if found is None:
        return None
    return found._replace(file=_line(found.file), function=_line(found.function))


# ---- memory


def _memory(box: Box) -> Memory | None:
    if not box.states:
        return None
    files = box.states[-1].value.get("files")
    if not isinstance(files, dict):
        return None
    for used, limit in (
        ("memory.current", "memory.max"),
        ("memory.usage_in_bytes", "memory.limit_in_bytes"),
    ):
        values = [_count(files.get(name)) for name in (used, limit)]
        if values[0] is not None and values[1] is not None and values[1] < 1 << 60:
            return Memory(values[0], values[1])
    return None


def _count(text: Any) -> int | None:
    text = text.strip() if isinstance(text, str) else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
