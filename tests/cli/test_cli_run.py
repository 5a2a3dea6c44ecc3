"""``workerserver run``: what the program sees and does is what it would under plain Python.

Most tests run one program twice, plainly and served, and compare.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import wait_until

RUN = [sys.executable, "-m", "workerserver", "run"]
OURS = ("TORCH_WORKER_SERVER_SOCKET", "WORKERSERVER_", "RANK", "LOCAL_RANK", "WORLD_SIZE")

INTROSPECT = """
    import json, pickle, sys, threading

    class Thing:
        pass

    main = sys.modules["__main__"]
    spec = main.__spec__
    print(json.dumps({
        "argv": sys.argv,
        "path": sys.path,
        "own globals": vars(main) is globals(),
        "names": sorted(globals()),
        "file": __file__,
        "cached": getattr(main, "__cached__", "absent"),
        "package": main.__package__,
        "spec": spec and [spec.name, spec.origin, spec.parent],
        "loader": type(main.__loader__).__name__,
        "builtins": type(main.__builtins__).__name__,
        "annotations": getattr(main, "__annotations__", "absent"),
        "pickled": type(pickle.loads(pickle.dumps(Thing()))) is Thing,
        "main thread": threading.current_thread() is threading.main_thread(),
        "torch": "torch" in sys.modules,
    }))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for any socket (tmp_path's can be too long)."""
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as name:
        yield Path(os.path.realpath(name))


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
    return {**kept, **more}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def execute(
    command: list[str], cwd: Path, stdin: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(**more),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def welcome(address: object) -> str:
    """Our one line on stderr."""
    return f"workerserver: serving on {address}; if the job hangs: workerserver diagnose\n"


def both(
    folder: Path, *words: str, flags: tuple[str, ...] = (), **more: str
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """The program run by Python and by us, our one line taken off stderr."""
    plain = execute([sys.executable, *flags, *words], folder, **more)
    served = execute(
        [sys.executable, *flags, *RUN[1:], "--socket", str(folder / "s.sock"), *words],
        folder,
        **more,
    )
    said = welcome(folder / "s.sock")
    assert served.stderr.startswith(said), served.stderr
    served.stderr = served.stderr[len(said) :]
    return plain, served


def assert_same(
    runs: tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]],
) -> subprocess.CompletedProcess[str]:
    plain, served = runs
    assert served.stdout == plain.stdout
    assert served.stderr == plain.stderr
    assert served.returncode == plain.returncode
    return served


# --- what the program sees --------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("-I",), ("-W", "error")])
def test_a_script_sees_what_python_shows_it(folder: Path, flags: tuple[str, ...]) -> None:
    if "-I" in flags and not _installed():
        pytest.skip("-I leaves PYTHONPATH out, and the package is not installed")
    write(folder / "sub" / "script.py", INTROSPECT)
    words = ["sub/script.py", "a", "", "--socket", "x", "-h", "--", "--tcp=y", "-m", "z"]
    seen = json.loads(assert_same(both(folder, *words, flags=flags)).stdout)
    assert seen["argv"] == words
    assert seen["pickled"]


def _installed() -> bool:
    probe = [sys.executable, "-I", "-c", "import workerserver"]
    return subprocess.run(probe, cwd="/", capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["module", "package", "package.inner", "package.sub"])
def test_a_module_sees_what_python_shows_it(folder: Path, name: str) -> None:
    write(folder / "module.py", INTROSPECT)
    write(folder / "package" / "__init__.py", "import sys; print(sys.argv[0], __name__)")
    for inner in ("__main__.py", "inner.py", "sub/__main__.py", "sub/__init__.py"):
        write(folder / "package" / inner, "from . import __name__ as parent\n")
    for inner in ("__main__.py", "inner.py", "sub/__main__.py"):
        write(folder / "package" / inner, INTROSPECT)
    assert_same(both(folder, "-m", name, "-m", "--socket", "x"))


@pytest.mark.parametrize("kind", ["folder", "zip", "pyc", "link", "no suffix"])
def test_other_kinds_of_script(folder: Path, kind: str) -> None:
    source = write(folder / "app" / "__main__.py", INTROSPECT)
    words = {
        "folder": ["app"],
        "zip": ["app.zip"],
        "pyc": ["app.pyc"],
        "link": ["elsewhere/link.py"],
        "no suffix": ["program"],
    }[kind]
    if kind == "zip":
        subprocess.run([sys.executable, "-m", "zipapp", "app", "-o", "app.zip"], cwd=folder)
    elif kind == "pyc":
        code = f"import py_compile; py_compile.compile({str(source)!r}, 'app.pyc', doraise=True)"
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    elif kind == "link":
        (folder / "elsewhere").mkdir()
        (folder / "elsewhere" / "link.py").symlink_to(source)
    elif kind == "no suffix":
        source.rename(folder / "program")
    assert_same(both(folder, *words, "a"))


def test_a_script_leaves_no_bytecode_behind(folder: Path) -> None:
    write(folder / "script.py", "print(1)")
    assert_same(both(folder, "script.py"))
    assert not (folder / "__pycache__").exists()


# --- how it ends ------------------------------------------------------------------------------

ENDINGS = {
    "nothing": "pass",
    "exit 0": "import sys; sys.exit()",
    "exit 7": "import sys; sys.exit(7)",
    "exit text": "import sys; sys.exit('no data found')",
    "exit in a thread": "import sys, threading; threading.Thread(target=sys.exit).start()",
    "os._exit": "import os; os._exit(9)",
    "exception": "def f():\n    raise ValueError('boom')\nf()",
    "chain": "try:\n    1 / 0\nexcept Exception as e:\n    raise KeyError('x') from e",
    "group": "import unittest\nunittest.TestCase().fail('text')",
    "missing import": "import there_is_no_such_module",
    "interrupt": "raise KeyboardInterrupt",
    "syntax": "print('never')\ndef f(:\n",
    "hook": "import sys\nsys.excepthook = lambda k, v, t: print('hook', k, v, t.tb_lineno)\n1 / 0",
    "atexit": "import atexit\natexit.register(print, 'last words')\nraise RuntimeError('x')",
    "usage error of its own": "import argparse; argparse.ArgumentParser().parse_args(['--x'])",
    "system error text": "raise SystemExit(['a', 1])",
    "broken pipe": "raise BrokenPipeError(32, 'Broken pipe')",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_it_ends_as_under_python(folder: Path, name: str) -> None:
    write(folder / "script.py", ENDINGS[name])
    plain = execute([sys.executable, "script.py"], folder)
    served = execute([*RUN, "--socket", str(folder / "s.sock"), "script.py"], folder)
    said = welcome(folder / "s.sock")
    if name != "syntax":  # found before anything starts
        assert served.stderr.startswith(said)
    assert served.stderr.removeprefix(said) == plain.stderr
    assert served.stdout == plain.stdout
    assert served.returncode == plain.returncode
    assert "workerserver" not in served.stderr.removeprefix(said)


def test_a_module_that_fails_shows_only_its_own_frames(folder: Path) -> None:
    write(folder / "package" / "__init__.py", "")
    write(folder / "package" / "__main__.py", "from . import broken\n")
    write(folder / "package" / "broken.py", "def f():\n    raise ValueError('boom')\nf()\n")
    _, served = both(folder, "-m", "package")
    assert served.returncode == 1
    assert served.stderr.splitlines()[0] == "Traceback (most recent call last):"
    files = [line.split('"')[1] for line in served.stderr.splitlines() if '  File "' in line]
    assert [Path(file).name for file in files] == ["__main__.py", "broken.py", "broken.py"]
    assert served.stderr.endswith("ValueError: boom\n")


def test_a_package_that_fails_on_import(folder: Path) -> None:
    write(folder / "package" / "__init__.py", "import there_is_no_such_module")
    write(folder / "package" / "__main__.py", "")
    _, served = both(folder, "-m", "package")
    assert served.returncode == 1
    assert "No module named 'there_is_no_such_module'" in served.stderr
    assert "workerserver" not in served.stderr


def test_ctrl_c_ends_it_by_the_signal(folder: Path) -> None:
    script = write(folder / "script.py", "import time\nprint('on', flush=True)\ntime.sleep(100)\n")
    with started(folder, str(script)) as process:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGINT
        assert error.endswith("KeyboardInterrupt\n")
        assert "workerserver" not in error.partition("\n")[2]
    assert not (folder / "s.sock").exists()


# --- serving ----------------------------------------------------------------------------------


@contextlib.contextmanager
def started(
    folder: Path, *words: str, options: tuple[str, ...] | None = None, **more: str
) -> Iterator[subprocess.Popen[str]]:
    """A served program that has printed its first line; killed at the end if it still runs."""
    chosen = ("--socket", str(folder / "s.sock")) if options is None else options
    with subprocess.Popen(
        [*RUN, *chosen, *words],
        cwd=folder,
        env=environment(**more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "on\n", process.communicate()[1]
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return execute([sys.executable, "-m", "workerserver", "call", *words], folder)


def test_it_serves_while_the_program_runs(folder: Path) -> None:
    script = write(folder / "script.py", "print('on', flush=True)\ninput()\nprint('off')\n")
    with started(folder, str(script)) as process:
        assert call(folder, "ping", "s.sock").stdout == "pong"
        traceback = call(folder, "dump_traceback", "s.sock").stdout
        assert 'script.py", line 2' in traceback
        out, _ = process.communicate("\n", timeout=30)
        assert out == "off\n"
        assert process.returncode == 0
    assert not (folder / "s.sock").exists()


LINGERING = {
    "thread": "import threading\nthreading.Thread(target=input).start()",
    "atexit": "import atexit\natexit.register(input)",
}


def has_passed_the_script(folder: Path) -> bool:
    stacks = call(folder, "dump_traceback", "s.sock").stdout
    return "most recent call first" in stacks and "script.py" not in stacks


@pytest.mark.parametrize("name", LINGERING)
def test_it_serves_what_outlives_the_last_line(folder: Path, name: str) -> None:
    script = write(folder / "script.py", f"{LINGERING[name]}\nprint('on', flush=True)")
    with started(folder, str(script)) as process:
        wait_until(lambda: has_passed_the_script(folder), 60)
        assert call(folder, "ping", "s.sock").stdout == "pong"
        process.communicate("\n", timeout=30)
        assert process.returncode == 0
    assert not (folder / "s.sock").exists()


def test_tcp(folder: Path) -> None:
    script = write(folder / "script.py", "print('on', flush=True)\ninput()\n")
    with started(folder, str(script), options=("--tcp", "127.0.0.1:0")) as process:
        address = said(process).removeprefix("workerserver: serving on ").partition(";")[0]
        assert address.startswith("127.0.0.1:")
        assert call(folder, "ping", address).stdout == "pong"
        assert call(folder, "ping", f"http://{address}/").stdout == "pong"
        process.communicate("\n", timeout=30)


def test_the_environment_says_where(folder: Path) -> None:
    script = write(folder / "script.py", "print('on', flush=True)\ninput()\n")
    where = {"TORCH_WORKER_SERVER_SOCKET": str(folder / "r{rank}-{pid}.sock"), "RANK": "5"}
    with started(folder, str(script), options=(), **where) as process:
        assert call(folder, "ping", str(folder / f"r5-{process.pid}.sock")).stdout == "pong"
        process.communicate("\n", timeout=30)


@pytest.mark.parametrize("rank", [None, "3", "../x"])
def test_the_default_socket_is_in_a_private_folder(folder: Path, rank: str | None) -> None:
    script = write(folder / "script.py", "print('on', flush=True)\ninput()\n")
    more = {"TMPDIR": str(folder), **({} if rank is None else {"RANK": rank})}
    with started(folder, str(script), options=(), **more) as process:
        own = folder / f"workerserver-{os.geteuid()}"
        assert own.stat().st_mode & 0o777 == 0o700
        prefix = "rank3-" if rank == "3" else ""
        path = own / f"{prefix}{process.pid}.sock"
        if rank != "3":  # one line for each job is enough
            assert said(process) == welcome(path)
        assert call(folder, "ping", str(own)).stdout == "pong"
        process.communicate("\n", timeout=30)


def test_it_removes_what_a_killed_program_has_left(folder: Path) -> None:
    """A socket that nobody listens on, in the folder where ``run`` serves by itself."""
    script = write(folder / "script.py", "print('on', flush=True)\ninput()\n")
    with started(folder, str(script), options=(), TMPDIR=str(folder), RANK="2") as process:
        process.kill()
        process.wait(30)
    own = folder / f"workerserver-{os.geteuid()}"
    (left,) = own.glob("*.sock")
    with started(folder, str(script), options=(), TMPDIR=str(folder), RANK="2") as process:
        wait_until(lambda: not left.exists(), 60)
        assert list(own.glob("*.sock")) == [own / f"rank2-{process.pid}.sock"]
        process.communicate("\n", timeout=30)


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_without_a_folder_of_its_own_there_is_no_server(folder: Path, kind: str) -> None:
    write(folder / "script.py", "print('started')")
    own = folder / f"workerserver-{os.geteuid()}"
    if kind == "open":
        own.mkdir()
        own.chmod(0o770)
    elif kind == "link":
        (folder / "real").mkdir(0o700)
        own.symlink_to(folder / "real")
    else:
        own.touch()
    result = execute([*RUN, "script.py"], folder, TMPDIR=str(folder))
    assert (result.returncode, result.stdout) == (0, "started\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith("this worker runs without a server: ")
    assert str(own) in line
    result = execute([*RUN, "script.py"], folder, TMPDIR=str(folder), WORKERSERVER_STRICT="1")
    assert (result.returncode, result.stdout) == (64, "")
    assert str(own) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 2>&-"])
def test_a_closed_standard_stream_is_no_trouble(folder: Path, closed: str) -> None:
    """libuv aborts the process if it has to close a socket that got such a descriptor."""
    write(folder / "script.py", "import sys; print(sys.stdin is None, sys.stderr is None)")
    command = " ".join([*RUN, "--socket", str(folder / "s.sock"), "script.py", closed])
    result = execute(["sh", "-c", command], folder)
    assert result.returncode == 0
    assert result.stdout == f"{'0<' in closed} {'2>' in closed}\n"


# --- what can't start -------------------------------------------------------------------------

REFUSED = {
    "no script": (["missing.py"], "missing.py"),
    "script is unreadable": (["folder/nothing.py"], "folder/nothing.py"),
    "folder without __main__": (["folder"], "__main__"),
    "no module": (["-m", "there_is_no_such_module"], "there_is_no_such_module"),
    "no submodule": (["-m", "json.nothing"], "json.nothing"),
    "relative module": (["-m", ".x"], ".x"),
    "no __main__": (["-m", "email"], "email.__main__"),
    "built-in": (["-m", "sys"], "sys"),
    "nothing": ([], "which program"),
    "nothing after --": (["--"], "which program"),
    "unknown option": (["--sock", "x", "script.py"], "--sock"),
    "option without value": (["--socket"], "--socket"),
    "taken": (["--socket", "taken.txt", "script.py"], "taken.txt"),
    "missing folder": (["--socket", "no/such/folder/x", "script.py"], "no/such/folder/x"),
    "too long": (["--socket", "x" * 200, "script.py"], "xxx"),
    "placeholder": (["--socket", "{nonsense}.sock", "script.py"], "nonsense"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_start_exits_64(folder: Path, name: str) -> None:
    words, named = REFUSED[name]
    write(folder / "script.py", "print('started')")
    write(folder / "taken.txt", "not a socket")
    (folder / "folder").mkdir()
    result = execute([*RUN, *words], folder, TMPDIR=str(folder), WORKERSERVER_STRICT="1")
    assert result.returncode == 64, result.stderr
    assert result.stdout == ""
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert (folder / "taken.txt").read_text() == "not a socket"


def test_help(folder: Path) -> None:
    result = execute([*RUN, "--help"], folder)
    assert result.returncode == 0
    assert "{local_rank}" in result.stdout


# --- children ---------------------------------------------------------------------------------

CHILDREN = """
    import multiprocessing, os, sys, threading

    class Item:
        def __init__(self, n):
            self.n = n

    def work(item, queue):
        queue.put((item.n, type(item).__name__, "workerserver.cli" in sys.modules,
                   sorted(t.name for t in threading.enumerate())))

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[1])
        queue = context.Queue()
        for n in range(2):
            process = context.Process(target=work, args=(Item(n), queue))
            process.start()
            print(queue.get(timeout=60))
            process.join()
            print(process.exitcode)
        print(sorted(name for name in os.listdir(".") if name.endswith(".sock")))
"""


@pytest.mark.parametrize("form", ["script", "module"])
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_spawned_children_are_the_programs_alone(folder: Path, form: str, method: str) -> None:
    write(folder / "script.py", CHILDREN)
    words = ["script.py"] if form == "script" else ["-m", "script"]
    plain, served = both(folder, *words, method)
    assert served.stderr == plain.stderr == ""
    *children, sockets = served.stdout.splitlines()
    assert children == plain.stdout.splitlines()[:-1]
    assert children[0].startswith("(0, 'Item', False, ")
    assert sockets == "['s.sock']"  # the parent's


def test_forked_children_end_without_closing_the_parents_server(folder: Path) -> None:
    script = write(
        folder / "script.py",
        """
        import os, sys
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        print("on", flush=True)
        input()
        """,
    )
    with started(folder, str(script)) as process:
        assert call(folder, "ping", "s.sock").stdout == "pong"
        process.communicate("\n", timeout=30)
        assert process.returncode == 0


@pytest.mark.torch
def test_dataloader_with_spawned_workers(folder: Path) -> None:
    pytest.importorskip("torch")
    write(
        folder / "script.py",
        """
        import os, sys
        from torch.utils.data import DataLoader, Dataset

        class Squares(Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, i):
                return i * i, os.getpid(), "workerserver.cli" in sys.modules

        if __name__ == "__main__":
            loader = DataLoader(Squares(), num_workers=1, multiprocessing_context="spawn")
            for value, pid, served in loader:
                print(value.item(), pid.item() != os.getpid(), served.item())
        """,
    )
    _, served = both(folder, "script.py")
    assert served.stdout.splitlines() == [f"{n * n} True False" for n in range(4)], served.stderr


@pytest.mark.torch
def test_under_torchrun(folder: Path) -> None:
    pytest.importorskip("torch")
    write(
        folder / "script.py",
        """
        import os, sys, time
        rank = os.environ["RANK"]
        open(f"argv{rank}", "w").write(repr(sys.argv[1:]))
        while not os.path.exists("go"):
            time.sleep(0.05)
        """,
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ours = ["-m", "workerserver", "run", "--socket", f"{folder}/w{{rank}}.sock"]
    listing = [sys.executable, "-m", "workerserver", "ls", "--json", "w*.sock"]
    with subprocess.Popen(
        [*torchrun, *ours, "script.py", "--socket", "x", "-m"], cwd=folder, env=environment()
    ) as process:
        try:
            end = time.monotonic() + 60
            while not all((folder / f"argv{rank}").exists() for rank in (0, 1)):
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.05)
            result = execute(listing, folder)
            assert result.returncode == 0, result.stdout
            workers = json.loads(result.stdout)["workers"]
            assert [str(worker["rank"]) for worker in workers] == ["0", "1"]
            assert all("ping" in worker["handlers"] for worker in workers)
            (folder / "go").touch()
            assert process.wait(timeout=60) == 0
        finally:
            process.terminate()  # torchrun ends its workers
    for rank in (0, 1):
        assert (folder / f"argv{rank}").read_text() == "['--socket', 'x', '-m']"
        assert not (folder / f"w{rank}.sock").exists()
