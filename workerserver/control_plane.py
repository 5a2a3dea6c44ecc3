"""The face that torch users know: ``worker_main``, the environment, and ``install()``."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from workerserver.job import identity
from workerserver.process import FREE_THREADED
from workerserver.process.free_threaded.stand_ins import WHY_NOT
from workerserver.process.loaded import imported
from workerserver.process.run_folder import make_run_folder, run_folder, run_folders
from workerserver.process.sockets import is_listening
from workerserver.process.threads import why_no_real_threads
from workerserver.registration import StoreRegistration

if TYPE_CHECKING or not FREE_THREADED:
    from workerserver.job import presence
    from workerserver.server import WorkerServer, running_server, serving
else:
    from workerserver.process.free_threaded.stand_ins import WorkerServer, running_server, serving

if TYPE_CHECKING:
    from workerserver.native.watchdog import AskedFor

__all__ = [
    "TORCH_WORKER_SERVER_SOCKET",
    "WORKERSERVER_BLACKBOX",
    "WORKERSERVER_COLLECTOR",
    "WORKERSERVER_STRICT",
    "WORKERSERVER_TCP",
    "WORKERSERVER_WATCHDOG",
    "expand_placeholders",
    "install",
    "serve_from_environment",
    "start",
    "start_at",
    "worker_main",
]

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger("workerserver")

TORCH_WORKER_SERVER_SOCKET = "TORCH_WORKER_SERVER_SOCKET"
WORKERSERVER_TCP = "WORKERSERVER_TCP"
WORKERSERVER_BLACKBOX = "WORKERSERVER_BLACKBOX"
WORKERSERVER_COLLECTOR = "WORKERSERVER_COLLECTOR"
WORKERSERVER_STRICT = "WORKERSERVER_STRICT"
WORKERSERVER_WATCHDOG = "WORKERSERVER_WATCHDOG"

#: The greeting of rank 0 waits so long to hear whether the job is found by its record.
GREETING_SECONDS = 0.25

PLACEHOLDERS = {"rank": "RANK", "local_rank": "LOCAL_RANK"}
#: A process that has one of these was started by a launcher, which should have set RANK.
LAUNCHED = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "LOCAL_RANK")


def expand_placeholders(template: str) -> str:
    """Fill in ``{rank}``, ``{local_rank}`` (from the launcher's RANK, LOCAL_RANK) and ``{pid}``.

    Slurm's own numbers count where it started several tasks. Where no launcher did, a rank is 0.
    Raises ValueError, naming it, for any other placeholder and for a variable that a launcher
    should have set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name == "pid":
            return str(os.getpid())
        if name not in PLACEHOLDERS:
            raise ValueError(
                f"unknown placeholder {{{name}}} in {template!r}; "
                "there are {rank}, {local_rank} and {pid}"
            )
        variable = PLACEHOLDERS[name]
        text = os.environ.get(variable)
        if text:
            return text
        if _is_guessed(name):
            return "0"
        rank = None if identity.is_spawned() else identity.rank_in(os.environ, local=name != "rank")
        if rank is None:
            raise ValueError(f"{{{name}}} in {template!r} needs {variable}, which isn't set")
        return str(rank)

    return re.sub(r"\{([^{}]*)\}", value, template)


def _is_guessed(name: str) -> bool:
    """Whether nobody has told the rank yet, because no launcher started this process."""
    if os.environ.get(PLACEHOLDERS[name]):
        return False
    if identity.is_spawned():
        return True
    if identity.rank_in(os.environ, local=name != "rank") is not None:
        return False
    # Lightning's own launcher never sets RANK.
    return "NODE_RANK" in os.environ or not any(os.environ.get(each) for each in LAUNCHED)


def parse_host_port(text: str) -> tuple[str, int]:
    """``host:port`` or ``[host]:port``; an empty host is every interface. Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host and host != "::":
        separator = ""  # an IPv6 host without brackets: which colon is the port's?
    if not separator or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host, int(port)


@contextlib.contextmanager
def serve_from_environment(
    socket: str | None = None,
    tcp: str | None = None,
    blackbox: str | None = None,
    keep: int | None = None,
    watchdog: bool | None = None,
    stall: float | None = None,
) -> Iterator[list[WorkerServer]]:
    """Serve on *socket* (a path that may hold placeholders) and on *tcp* (``host:port``) while
    the block runs.

    Without both, TORCH_WORKER_SERVER_SOCKET and WORKERSERVER_TCP count; without these, there is no
    server. A TCP server announces itself in the job's TCPStore, in the background. With
    WORKERSERVER_COLLECTOR (``host:port``) the worker of LOCAL_RANK 0 starts its host's collector.

    With *blackbox*, or WORKERSERVER_BLACKBOX, the process keeps a black box from now until it ends,
    and copies of the last *keep* runs are in that folder (docs/blackbox.md). Such a job has a
    watchdog, too, unless *watchdog* or WORKERSERVER_WATCHDOG turns that off (docs/watchdog.md);
    *stall*: as WORKERSERVER_STALL. If a process serves nowhere else, it serves in the run folder.

    The block runs in any case. If a server can't start, one warning line says why. With
    WORKERSERVER_STRICT=1 the error of WorkerServer or expand_placeholders is raised instead, before
    the block begins. Where gevent or eventlet has replaced threads, there is no server. On a
    free-threaded build of CPython there is neither a server nor a black box.
    """
    if socket is None and tcp is None:
        socket = os.environ.get(TORCH_WORKER_SERVER_SOCKET)
        tcp = os.environ.get(WORKERSERVER_TCP) or None
    blackbox = blackbox or os.environ.get(WORKERSERVER_BLACKBOX) or None
    if blackbox is not None and FREE_THREADED:
        logger.warning("this worker runs without a black box: %s", WHY_NOT)
        blackbox = None
    announced = tcp is not None or bool(os.environ.get(WORKERSERVER_COLLECTOR))
    watch = _asked_for_watchdog(blackbox is not None, watchdog, stall, announced)
    if blackbox is not None:
        from workerserver.native.black_box import KEEP, keep_black_box

        settings = None if watch is None else watch.settings
        keep_black_box(os.fspath(blackbox), KEEP if keep is None else keep, settings)
    quiet = watch is not None and socket is None and tcp is None
    if watch is not None and socket is None:
        socket = _watched_socket()
    why_not = WHY_NOT if FREE_THREADED else why_no_real_threads()
    with contextlib.ExitStack() as stack:
        servers: list[WorkerServer] = []
        if socket is None and tcp is None:
            pass
        elif why_not is not None:
            logger.warning("this worker runs without a server: %s", why_not)
        else:
            try:
                with contextlib.ExitStack() as started:
                    servers = _serve(socket, tcp, started, quiet, watch, blackbox is not None)
                    stack.push(started.pop_all())
            except Exception as error:
                if os.environ.get(WORKERSERVER_STRICT) == "1":
                    raise
                servers = []
                logger.warning("this worker runs without a server: %s", _reason(error))
        if watch is not None and blackbox is None and running_server() is not None:
            watch.start_alone()
        yield servers


def _asked_for_watchdog(
    has_box: bool, asked: bool | None, stall: float | None, on_tcp: bool
) -> AskedFor | None:
    if FREE_THREADED or not (has_box or asked or os.environ.get(WORKERSERVER_WATCHDOG)):
        return None  # most jobs: nothing is imported
    from workerserver.native.watchdog import asked_for

    return asked_for(has_box, asked, stall, on_tcp)


def _watched_socket() -> str | None:
    """Where a worker serves that has to be reached on its host, and was given no socket."""
    try:
        return None if running_server() is not None else default_socket()
    except OSError as error:
        logger.warning("the watchdog can't ask this worker: %s", error)
        return None


def _reason(error: Exception) -> str:
    """Why no server could start, in one line."""
    cause = error.__cause__
    text = str(error) or type(error).__name__
    if cause is not None and str(cause):
        text += f": {cause}"
    return " ".join(text.split())


def _serve(
    socket: str | None,
    tcp: str | None,
    stack: contextlib.ExitStack,
    quiet: bool,
    watch: AskedFor | None,
    has_box: bool,
) -> list[WorkerServer]:
    """The servers that were started; *stack* ends them. *quiet*: nobody asked for a server, so
    nobody is greeted. *watch*: its keeper starts the collector, too."""
    servers: list[WorkerServer] = []
    path = None if socket is None else expand_placeholders(socket)
    # Under "workerserver run" the address is served already when the script's own worker_main()
    # comes here.
    if socket is not None and path is not None and not serving(path):
        _make_folder(path)
        servers.append(stack.enter_context(_unix_server(socket, path)))
    host, port = (None, 0) if tcp is None else parse_host_port(expand_placeholders(tcp))
    if host is not None and not serving(host, port):
        servers.append(stack.enter_context(WorkerServer(host, port)))
        server = servers[-1]
        registration = StoreRegistration.from_environment(host, server.port, server.tls)
        if registration is not None:
            stack.callback(registration.stop)
            registration.start()
    collector = os.environ.get(WORKERSERVER_COLLECTOR)
    if collector and servers and os.environ.get("LOCAL_RANK", "0") == "0":
        host, port = parse_host_port(collector)
        if socket is None or path is None:
            logger.warning(
                "no collector was started: WORKERSERVER_COLLECTOR needs this process to serve "
                "on a Unix socket too (TORCH_WORKER_SERVER_SOCKET)"
            )
        else:
            from workerserver.collector.process import started

            if watch is not None and not has_box:
                watch.start_alone()
            through = None if watch is None else watch.ask_keeper
            stack.enter_context(started(host, port, socket, path, through))
    if servers:
        _welcome(servers, path, quiet)
    return servers


def _make_folder(path: str) -> None:
    """Make the folder of a socket, for this user alone, if only that folder is missing."""
    with contextlib.suppress(OSError):  # the server says what is wrong
        os.mkdir(os.path.dirname(path) or ".", 0o700)


def _unix_server(template: str, path: str) -> WorkerServer:
    """A server on *path*. If nobody has told the rank, siblings take rank 0's path too: the first
    one has it, and the others put their pid into the name."""
    try:
        return WorkerServer(path)
    except RuntimeError:
        guessed = any(f"{{{name}}}" in template and _is_guessed(name) for name in PLACEHOLDERS)
        if not guessed or not is_listening(path):
            raise
    base, dot, suffix = os.path.basename(path).rpartition(".")
    name = f"{base}.{os.getpid()}.{suffix}" if dot else f"{suffix}.{os.getpid()}"
    return WorkerServer(os.path.join(os.path.dirname(path), name))


def _welcome(servers: list[WorkerServer], path: str | None, quiet: bool) -> None:
    """One line on rank 0's stderr: where the job serves, and how to ask it. Also removes what ended
    jobs of this user have left in the run folder."""
    me = presence.told()
    if me is None:
        return
    # Not rank 0, or a sibling was first.
    first = me.rank is not None or path is None or servers[0].address in (path, "")
    if first and not me.rank and not quiet:
        _greet(servers)
    if not me.local_rank:  # one worker of a machine
        # Imported by this thread: a child forked while the loop's thread imports never gets the
        # lock of the import.
        from workerserver.job.left import sweep

        servers[0].in_background(lambda: sweep(run_folders(), me))


def _greet(servers: list[WorkerServer]) -> None:
    if sys.stderr is None:
        return
    presence.settled(GREETING_SECONDS)
    addresses = ", ".join(server.address for server in servers)
    where = "" if presence.is_recorded() else f" {servers[0].address}"
    with contextlib.suppress(OSError, ValueError):
        print(
            f"workerserver: serving on {addresses}; if the job hangs: workerserver diagnose{where}",
            file=sys.stderr,
            flush=True,
        )


# ---- without a variable


def start() -> WorkerServer | None:
    """Serve until the process ends, without any variable: in the user's run folder.

    For notebooks, for integrations, and where no block can be put around the work. If
    TORCH_WORKER_SERVER_SOCKET or WORKERSERVER_TCP is set, the server listens there instead. Returns
    the server. If a server runs already, that one is returned. If no server can start, one warning
    line says why, and None is returned. WORKERSERVER_STRICT=1 raises instead.
    """
    with _start_lock:
        running = running_server()
        if running is not None:
            return running
        servers = start_at()
        return servers[0] if servers else None


def start_at(
    socket: str | None = None,
    tcp: str | None = None,
    blackbox: str | None = None,
    keep: int | None = None,
    watchdog: bool | None = None,
    stall: float | None = None,
) -> list[WorkerServer]:
    """As ``start()``, at the given places, as in ``serve_from_environment``.

    atexit closes the servers, and not the end of the program's last line: the program's remaining
    threads and exit handlers can hang too, and then the server has to answer.
    """
    names = (TORCH_WORKER_SERVER_SOCKET, WORKERSERVER_TCP)
    if socket is None and tcp is None and not any(os.environ.get(name) for name in names):
        try:
            socket = default_socket()
        except OSError as error:
            if os.environ.get(WORKERSERVER_STRICT) == "1":
                raise RuntimeError(str(error)) from error
            logger.warning("this worker runs without a server: %s", error)
            return []
    stack = contextlib.ExitStack()
    serving = serve_from_environment(socket, tcp, blackbox, keep, watchdog, stall)
    servers = stack.enter_context(serving)
    owner = os.getpid()

    def close() -> None:
        if os.getpid() == owner:  # a forked child that ends normally calls this too
            stack.close()

    atexit.register(close)
    return servers


def default_socket() -> str:
    """``<tempdir>/workerserver-<uid>/rank<RANK>-<pid>.sock``, or ``<pid>.sock`` without a RANK.

    Makes the folder with mode 0700. If another user has made a folder of that name, makes one with
    a longer name instead. OSError, which says what to do, if the folder is ours but other users
    have access: another user could replace our socket.
    """
    usual = run_folder()
    try:
        folder = make_run_folder()
    except NotADirectoryError:
        raise OSError(f"{usual} is not a folder; remove it, or name a socket") from None
    except PermissionError as error:
        if error.errno is not None:
            raise OSError(f"can't make {usual}: {error.strerror}; name a socket") from None
        raise OSError(
            f"{usual} is open to other users; make it yours (0700), or name a socket"
        ) from None
    except OSError as error:
        raise OSError(f"can't make {usual}: {error.strerror}; name a socket") from None
    rank = os.environ.get("RANK", "")
    prefix = f"rank{rank}-" if rank.isdecimal() else ""
    return os.path.join(folder, f"{prefix}{os.getpid()}.sock")


_start_lock = threading.RLock()


class worker_main:
    """Serve this worker while its main function runs.

    A context manager and a decorator::

        @worker_main()
        def main(): ...

    The server listens on TORCH_WORKER_SERVER_SOCKET and on WORKERSERVER_TCP. If neither variable
    is set, the function runs without a server. torch's ``record`` is applied to the function, so
    that a failure lands in the file that torchrun names in ``TORCHELASTIC_ERROR_FILE``.
    *blackbox*: a folder, as WORKERSERVER_BLACKBOX. *watchdog*: as WORKERSERVER_WATCHDOG.
    """

    def __init__(
        self,
        *,
        blackbox: str | os.PathLike[str] | None = None,
        watchdog: bool | None = None,
    ) -> None:
        self._blackbox = None if blackbox is None else os.fspath(blackbox)
        self._watchdog = watchdog
        self._serving: list[contextlib.AbstractContextManager[Any]] = []  # the innermost last

    def __call__(self, function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R | None:
            @functools.wraps(function)
            def serve(*args: P.args, **kwargs: P.kwargs) -> R:
                with self._served():
                    return function(*args, **kwargs)

            record = _torch_record()
            if record is not None:
                return record(serve)(*args, **kwargs)
            with _recorded():
                return serve(*args, **kwargs)

        return wrapper

    def __enter__(self) -> None:
        with _recorded():
            serving = self._served()
            serving.__enter__()
            self._serving.append(serving)

    def _served(self) -> contextlib.AbstractContextManager[list[WorkerServer]]:
        return serve_from_environment(blackbox=self._blackbox, watchdog=self._watchdog)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # As an ExitStack does: the server stops first, then the error is recorded.
        try:
            self._serving.pop().__exit__(kind, error, trace)
        finally:
            if error is not None:
                _record_error(error)


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        _record_error(error)
        raise


def _record_error(error: BaseException) -> None:
    """Raise *error* inside a recorded function, so that torch's ``record`` writes its file."""
    record = _torch_record(importing=True)
    if record is None:
        return

    def reraise() -> None:
        raise error

    with contextlib.suppress(BaseException):
        record(reraise)()


def _torch_record(
    importing: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R | None]] | None:
    """torch's ``record``, or None.

    torch has to be imported already. With *importing* (the main function has failed) it is
    imported now, if torchrun waits for the file that ``record`` writes.
    """
    wanted = importing and "TORCHELASTIC_ERROR_FILE" in os.environ
    if imported("torch") is None and not wanted:
        return None
    try:
        from torch.distributed.elastic.multiprocessing.errors import record
    except Exception as error:  # not only ImportError: a CUDA library may be missing
        logger.debug("torch's record isn't there: %s", error)
        return None
    return record  # type: ignore[no-any-return, unused-ignore]


def install() -> Callable[[], None]:
    """Put this package's server in place of torch's. Returns a function that undoes the change.

    Replaces ``worker_main`` in ``torch.distributed.elastic.control_plane`` and ``_WorkerServer``
    in ``torch._C._distributed_c10d``. ``torch.distributed.debug`` uses that ``_WorkerServer``,
    whether the module is imported already or later. After several calls, our server stays until all
    calls are undone. Raises RuntimeError if torch is missing or was built without distributed.
    """
    try:
        import torch
        import torch.distributed.elastic.control_plane as control_plane
    except ImportError as error:
        raise RuntimeError("install() needs torch, which can't be imported") from error
    bindings = getattr(torch._C, "_distributed_c10d", None)
    if bindings is None or not hasattr(bindings, "_WorkerServer"):
        raise RuntimeError("install() needs a torch with torch.distributed and its _WorkerServer")
    with _install_lock:
        _replace(control_plane, "worker_main", worker_main)
        _replace(bindings, "_WorkerServer", WorkerServer)
        debug = sys.modules.get("torch.distributed.debug")
        if debug is not None:
            _replace(debug, "_WorkerServer", WorkerServer)
        token = object()
        _installs.append(token)

    def undo() -> None:
        with _install_lock:
            if token not in _installs:
                return
            _installs.remove(token)
            if not _installs:
                _restore()

    return undo


_install_lock = threading.RLock()
_installs: list[object] = []
_replaced: list[tuple[Any, str, Any, Any]] = []  # (where, name, ours, theirs)


def _replace(place: Any, name: str, ours: Any) -> None:
    theirs = getattr(place, name)
    if theirs is not ours:
        setattr(place, name, ours)
        _replaced.append((place, name, ours, theirs))


def _restore() -> None:
    originals = {ours: theirs for _, _, ours, theirs in _replaced}
    debug = sys.modules.get("torch.distributed.debug")  # it may have been imported meanwhile
    if getattr(debug, "_WorkerServer", None) is WorkerServer and WorkerServer in originals:
        _replaced.append((debug, "_WorkerServer", WorkerServer, originals[WorkerServer]))
    while _replaced:
        place, name, ours, theirs = _replaced.pop()
        if getattr(place, name) is ours:  # not what somebody else put there since
            setattr(place, name, theirs)
