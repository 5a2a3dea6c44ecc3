"""``python -m benchmarks``: options, failures, Ctrl-C; and ``make bench-check`` as a whole."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from benchmarks.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

RATIOS = "{'ping ours/torch p50': (0.6, 0.5, 0.7)}"
GOOD = f"""
from benchmarks.report.model import Report, Table, Target
QUESTION = "How long is a ping?"
def run(context):
    assert context.folder.is_dir() and not list(context.folder.iterdir())
    context.say("round 1")
    return Report(
        name="good",
        question=QUESTION,
        tables=[Table("Ping", ["load", "p50 µs"], [["idle", 12.0], ["python", None]], ["why not"])],
        targets=[Target("ping", 0.5, 0.6, "of torch's", True), Target("dump", 2.0, 1.0, "", False)],
        ratios={RATIOS},
        missing={{"granian": "Traceback:\\n  line 1\\ngranian is not installed"}},
    )
"""
PLAIN = """
from benchmarks.report.model import Report
QUESTION = "Nothing to compare?"
def run(context):
    return Report(name="plain", question=QUESTION, tables=[])
"""
BROKEN = """
QUESTION = "Does it fail?"
def run(context):
    raise RuntimeError(f"nobody answered at {__file__}")
"""
ABSENT = """
from benchmarks.subjects.servers import Missing
QUESTION = "Is it here?"
def run(context):
    raise Missing("gdb is not installed")
"""
# A child and a grandchild, both stopped, as a subject is between its turns.
CHILDREN = """
import os, signal, subprocess, sys, time
from pathlib import Path
QUESTION = "Who stays?"
def run(context):
    code = "import subprocess as s, sys; print(s.Popen(['sleep', '600']).pid, flush=True)"
    code += "; sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    grandchild = child.stdout.readline().strip()
    os.killpg(child.pid, signal.SIGSTOP)
    Path(os.environ["PIDS"]).write_text(f"{child.pid} {grandchild}\\n")
    time.sleep(60)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An empty package of suites; a name of its own keeps other tests' modules out."""
    name = f"suites_{uuid.uuid4().hex}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def suite(package: ModuleType, name: str, source: str) -> None:
    """Write the suite *name*, in the place of an older one."""
    Path(package.__path__[0], f"{name}.py").write_text(source)
    sys.modules.pop(f"{package.__name__}.{name}", None)
    # Size and date of the file may stay the same, because times of files are coarse.
    for compiled in Path(package.__path__[0]).glob(f"__pycache__/{name}.*"):
        compiled.unlink()
    importlib.invalidate_caches()


def test_tables_targets_and_missing_subjects_are_shown(
    package: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    suite(package, "good", GOOD)
    suite(package, "absent", ABSENT)
    assert main([], package) == 0
    shown, progress = capsys.readouterr()
    assert "How long is a ping?" in shown
    assert "12.0" in shown
    assert "why not" in shown
    assert "Targets: 1 of 2 met" in shown
    assert "MISSED" in shown
    assert "missing in good: granian: granian is not installed" in shown
    assert "missing: all of absent: gdb is not installed" in shown
    assert "round 1" in progress
    assert "round 1" not in shown


def test_an_unknown_suite_is_an_error_that_names_the_known_ones(
    package: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    suite(package, "good", GOOD)
    with pytest.raises(SystemExit) as stop:
        main(["good", "goood"], package)
    assert stop.value.code == 2
    assert "unknown: goood; there are good" in capsys.readouterr().err


def test_a_suite_that_fails_does_not_stop_the_others(
    package: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite(package, "broken", BROKEN)
    suite(package, "good", GOOD)
    assert main(["--json", str(tmp_path / "new" / "found.json")], package) == 1
    shown, progress = capsys.readouterr()
    assert "RuntimeError: nobody answered" in progress
    assert "Traceback" in progress
    assert "FAILED: broken: RuntimeError" in shown
    assert "How long is a ping?" in shown
    found = json.loads((tmp_path / "new" / "found.json").read_text())
    assert list(found["failed"]) == ["broken"]
    assert [report["name"] for report in found["reports"]] == ["good"]


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ("tables=[Table('T', ['a', 'b'], [[1]])]", "T: 2 columns"),
        ("tables=[], ratios={'k': (float('nan'), 1.0, 1.0)}", "ratio k"),
        ("tables=[], ratios={'k': (2.0, 1.0, 1.5)}", "ratio k"),
        ("tables=[], plots=[Bars('p', '', '', ['g'], {'s': [1.0, 2.0]})]", "p: 1 groups"),
    ],
)
def test_a_report_that_contradicts_itself_is_a_failure(
    package: ModuleType, capsys: pytest.CaptureFixture[str], returned: str, complaint: str
) -> None:
    source = "from benchmarks.report.model import *\nQUESTION = '?'\n"
    source += f"def run(context):\n    return Report('odd', '?', {returned})\n"
    suite(package, "odd", source)
    assert main([], package) == 1
    assert f"FAILED: odd: ValueError: {complaint}" in capsys.readouterr().out


def test_json_on_stdout_is_nothing_but_json_and_names_no_place(
    package: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite(package, "good", GOOD)
    suite(package, "infinite", "from benchmarks.report.model import *\nQUESTION = '?'\n"
          "def run(context):\n"
          "    return Report('infinite', str(context.rounds),"
          " [Table('T', ['x'], [[float('inf')]])])\n")  # fmt: skip
    assert main(["--json", "-", "--rounds", "2"], package) == 0
    shown, progress = capsys.readouterr()
    found = json.loads(shown, parse_constant=pytest.fail)
    assert "How long is a ping?" in progress
    good, infinite = found["reports"]
    assert good["ratios"] == {"ping ours/torch p50": [0.6, 0.5, 0.7]}
    assert good["seconds"] >= 0
    assert infinite["question"] == "2"
    assert infinite["tables"][0]["rows"] == [[None]]
    description = found["machine"]
    assert {"cpu", "cores", "kernel", "python", "date", "load_start", "load_end"} <= set(
        description
    )
    assert "torch" in description["packages"]
    for secret in (os.uname().nodename, str(ROOT), sys.prefix):
        assert len(secret) < 3 or secret not in json.dumps(description)


def test_list_shows_the_questions(package: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    suite(package, "good", GOOD)
    suite(package, "latency", PLAIN)
    suite(package, "another", BROKEN)
    assert main(["--list"], package) == 0
    lines = capsys.readouterr().out.splitlines()
    # First in the order of the list, then in the order of the alphabet.
    assert [line.split()[0] for line in lines] == ["latency", "another", "good"]
    assert lines[0].endswith("Nothing to compare?")


def test_the_suites_that_are_there_each_have_a_question(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--list"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert line.partition(" ")[2].strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_behind(
    package: ModuleType, tmp_path: Path, number: signal.Signals
) -> None:
    suite(package, "children", CHILDREN)
    pids = tmp_path / "pids"
    code = f"import sys, {package.__name__} as package\n"
    code += "from benchmarks.__main__ import main\nsys.exit(main([], package))\n"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        "PIDS": str(pids),
        "TMPDIR": str(tmp_path),
    }
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        while not (pids.exists() and pids.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in shown
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_plot_that_cannot_be_drawn_is_a_failure(
    package: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "from benchmarks.report.model import *\nQUESTION = '?'\ndef run(context):\n"
    source += "    good, bad = [(1.0, 2.0)], [('x', 'y', 'z')]\n"
    source += "    plots = [Lines(n, '', '', '', {'s': p}) for n, p in [('b', bad), ('g', good)]]\n"
    source += "    return Report('drawn', '?', [], plots=plots)\n"
    suite(package, "drawn", source)
    assert main(["--plots", str(tmp_path / "plots")], package) == 1
    assert sorted(path.name for path in (tmp_path / "plots").glob("g.*")) == ["g.png", "g.svg"]
    assert "FAILED: drawn, plot b" in capsys.readouterr().out


def test_record_then_check_then_regress(
    package: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line: new, same, worse, better, gone."""
    path = str(tmp_path / "baseline.json")
    suite(package, "good", GOOD)
    suite(package, "plain", PLAIN)

    def checked() -> tuple[int, str, str]:
        status = main(["--quick", "--check", "--baseline", path], package)
        return status, *capsys.readouterr()

    status, shown, _ = checked()
    assert status == 0
    assert "Regression gate: 1 new" in shown
    assert "nothing is recorded yet" in shown

    assert main(["--quick", "--save-baseline", "--runs", "2", "--baseline", path], package) == 0
    assert "recorded good" in capsys.readouterr().err
    runs = json.loads(Path(path).read_text())["suites"]
    # A suite without ratios runs once: --check has nothing to repeat.
    assert runs == {"good": {"ping ours/torch p50": [[0.6, 0.5, 0.7]] * 2}, "plain": {}}

    status, shown, progress = checked()
    assert status == 0
    assert "Regression gate: 1 same" in shown
    assert "Nothing to compare?" not in shown
    assert "attempt 2" not in progress

    suite(package, "good", GOOD.replace(RATIOS, "{'ping ours/torch p50': (0.9, 0.75, 1.05)}"))
    status, shown, progress = checked()
    assert status == 1
    assert "WORSE" in shown
    assert "attempt 3 for good" in progress
    assert "attempt 4" not in progress

    suite(package, "good", GOOD.replace(RATIOS, "{'ping ours/torch p50': (0.3, 0.2, 0.4)}"))
    status, shown, _ = checked()
    assert (status, "1 better" in shown) == (0, True)

    suite(package, "good", GOOD.replace(RATIOS, "{'another': (0.3, 0.2, 0.4)}"))
    status, shown, _ = checked()
    assert (status, "1 gone, 1 new" in shown) == (0, True)

    # A suite that fails changes nothing in the figures of the other suites.
    suite(package, "good", BROKEN)
    before = Path(path).read_text()
    assert main(["--quick", "--save-baseline", "--baseline", path], package) == 1
    assert Path(path).read_text() == before
    assert checked()[0] == 1
