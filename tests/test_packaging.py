"""The archive of the sources, and what pip says of it where no compiler is. Wheels are tested by
``make wheels``."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.lifecycle import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from run_cpythons import copy_tests, pytest_command
from source_tree import copy_sources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "workerserver").exists(), reason="needs the sources"),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("Cython", "pip", "setuptools")),
        reason="needs Cython, pip and setuptools",
    ),
]

#: Of the working tree alone: what git, CI and the hosting service read.
NOT_PACKED = (".gitignore", ".ci/", ".github/")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The archive, and the files of the tree that it was made of."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    copy_sources(tree)
    names = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    program = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("workerserver-*.tar.gz")
    return archive, names


def test_the_archive_is_complete(sdist: tuple[Path, set[str]]) -> None:
    """Sources, tests with their helpers and data, docs, tools, the changelog: all but what only the
    working tree needs. And nothing that a build leaves behind."""
    archive, names = sdist
    with tarfile.open(archive) as tar:
        packed = {each.name.partition("/")[2] for each in tar.getmembers() if each.isfile()}
    assert {each for each in names - packed if not each.startswith(NOT_PACKED)} == set()
    added = {"PKG-INFO", "setup.cfg"}
    assert {each for each in packed - names - added if ".egg-info/" not in each} == set()


def test_without_a_compiler_the_build_says_what_to_install(
    sdist: tuple[Path, set[str]], tmp_path: Path
) -> None:
    """In the last line of the build. What pip adds is about its own work."""
    (tmp_path / "bin").mkdir()
    words = ["install", "--no-build-isolation", "--no-deps", "--no-index", "--target", "target"]
    kept = {key: value for key, value in os.environ.items() if key not in ("CC", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, str(sdist[0])],
        cwd=tmp_path,
        env={**kept, "PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    lines = [each.strip() for each in (done.stdout + done.stderr).splitlines()]
    (end,) = (n for n, line in enumerate(lines) if line == "[end of output]")
    assert "╰─> [1 lines of output]" in lines[end - 2].replace("1 line of", "1 lines of"), lines
    said = lines[end - 1]
    assert said.startswith("workerserver needs a C compiler and Python's headers here: "), lines
    for command in ("apt-get install gcc python3-dev", "dnf install", "apk add"):
        assert command in said


def test_releases_test_wheels_as_we_do(tmp_path: Path) -> None:
    """cibuildwheel copies the named files and runs the command: both are those of our tools."""
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    assert shlex.split(settings["test-command"]) == ["python", *pytest_command([])]
    copy_sources(tmp_path / "tree")
    copy_tests(tmp_path / "tree", tmp_path / "tests")
    names = {path.name for path in (tmp_path / "tests").iterdir()}
    assert set(settings["test-sources"]) == {name for name in names if not name.startswith(".")}
