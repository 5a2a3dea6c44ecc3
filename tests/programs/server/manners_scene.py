"""The state of a process before, with and after a server. ``manners_scene.py SCENE PATH``.

Imports only what it looks at, because the test is about what our server adds.
"""

import json
import os
import signal
import sys
import threading

SCENE, PATH = sys.argv[1], sys.argv[2]


def status(task: int | str, field: str) -> str:
    with open(f"/proc/self/task/{task}/status", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith(f"{field}:")]
    return line.split()[1]


def tasks() -> set[int]:
    return set(map(int, os.listdir("/proc/self/task")))


def state() -> dict[str, object]:
    """Everything that a guest must not change."""
    import asyncio
    import locale
    import logging
    import warnings

    root = logging.getLogger()
    return {
        "mask of the main thread": status(os.getpid(), "SigBlk"),
        "handlers": {
            number: repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())
        },
        "caught": status(os.getpid(), "SigCgt"),
        "ignored": status(os.getpid(), "SigIgn"),
        "wakeup fd": wakeup_fd(),
        "switch interval": sys.getswitchinterval(),
        "umask": status(os.getpid(), "Umask"),
        "environment": dict(os.environ),
        "policy": repr(type(policy(asyncio))),
        "log level": root.level,
        "log handlers": [repr(handler) for handler in root.handlers],
        "log disabled": logging.root.manager.disable,
        "hooks": [repr(h) for h in (sys.excepthook, threading.excepthook, sys.unraisablehook)],
        "trace": [repr(sys.gettrace()), repr(sys.getprofile()), repr(threading.gettrace())],
        "stack size": threading.stack_size(),
        "recursion": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings": len(warnings.filters),
        "cwd": os.getcwd(),
        "tiny": 5e-324 * 1.0,
    }


def policy(asyncio: object) -> object:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.14 on
        return asyncio.get_event_loop_policy()  # type: ignore[attr-defined]


def wakeup_fd() -> int:
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


def unchanged() -> dict[str, object]:
    # The first thread of a process makes the C library catch a signal of its own.
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    before = state()
    from support.lifecycle import ask

    import workerserver

    with workerserver.WorkerServer(PATH):
        assert ask(PATH) == (200, "pong")
        assert ask(PATH, "/handler/dump_traceback")[0] == 200
        during = state()
    after = state()
    return {
        "during": [key for key in before if before[key] != during[key]],
        "after": [key for key in before if before[key] != after[key]],
    }


def threads() -> dict[str, object]:
    before = tasks()
    from support.lifecycle import ask

    import workerserver

    workerserver.register_handler("plain", lambda: "ran")
    with workerserver.WorkerServer(PATH), workerserver.WorkerServer(PATH + "2"):
        serving = tasks() - before
        assert ask(PATH, "/handler/plain") == (200, "ran")
        new = tasks() - before
        names = {t.native_id: t for t in threading.enumerate()}
        everything = 0
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            everything |= 1 << (number - 1)
        return {
            "serving": len(serving),
            "names": sorted(names[task].name for task in new),
            "kernel names": sorted(
                open(f"/proc/self/task/{task}/comm", encoding="ascii").read().strip()
                for task in serving
            ),
            "daemons": all(names[task].daemon for task in new),
            # Signals 32 and 33 are the C library's own; it never lets them be blocked.
            "all blocked": all(
                int(status(task, "SigBlk"), 16) & everything == everything for task in new
            ),
        }


def signals() -> dict[str, object]:
    """SIGTERM and SIGINT, sent to the process, reach Python handlers in the main thread."""
    from support.lifecycle import send
    from support.waiting import wait_until

    import workerserver

    workerserver.register_handler("sleep", lambda: threading.Event().wait())
    seen: list[list[object]] = []

    def note(number: int, frame: object) -> None:
        seen.append([signal.Signals(number).name, threading.current_thread().name])

    signal.signal(signal.SIGTERM, note)
    with workerserver.WorkerServer(PATH), send(PATH, "/handler/sleep"):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: len(seen) == 1)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(30)
        except KeyboardInterrupt:
            seen.append(["SIGINT", threading.current_thread().name])
        workerserver.WorkerServer(PATH + "2").shutdown()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: len(seen) == 3)
    return {"seen": seen}


def terminated() -> dict[str, object]:
    """Without a handler of its own, the process dies of SIGTERM as without a server."""
    import workerserver

    workerserver.WorkerServer(PATH)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(30)
    return {}


def light() -> dict[str, object]:
    before = set(sys.modules)
    import workerserver

    workerserver.heartbeat(1)
    new = set(sys.modules) - before
    heavy = {"asyncio", "uvloop", "httptools", "logging", "socket", "ssl", "torch", "numpy"}
    imported = sorted(heavy & new)
    workerserver.WorkerServer(PATH).shutdown()
    unneeded = ("cli", "cluster", "collector", "dashboard", "loadgen")
    return {
        "imported": imported,
        "unneeded": [name for name in unneeded if f"workerserver.{name}" in sys.modules],
        "torch": "torch" in sys.modules,
        "numpy": "numpy" in sys.modules,
        "names": set(workerserver.__all__) <= set(dir(workerserver)),
    }


if __name__ == "__main__":
    scenes = {f.__name__: f for f in (unchanged, threads, signals, terminated, light)}
    print(json.dumps(scenes[SCENE]()), flush=True)
