"""How the operator's side is built: who may import whom, one place for each kind of knowledge."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from support.jobs.recordings import NAMES, rounds

import workerserver.cluster
from workerserver.cluster.judge import facts, suspicions
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.reasons import STRENGTH, Reason
from workerserver.cluster.judge.sentences import LINES, SENTENCES
from workerserver.cluster.judge.suspicions import RULES, Suspicions

CLUSTER = Path(workerserver.cluster.__file__).parent
FILES = sorted(CLUSTER.rglob("*.py"))

#: For each folder, the other folders that it may import. Modules of one folder may import one
#: another.
ARROWS: dict[str, set[str]] = {
    "find": {"ask", "read"},
    "read": set(),
    "ask": {"read"},
    "judge": {"read"},
    "show": {"read", "judge"},
}


def imports(path: Path) -> Iterator[str]:
    """The modules of the cluster side that *path* needs when it is imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield from {f"{node.module}.{alias.name}", str(node.module)}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules(path: Path) -> set[str]:
    """Of those, the ones that are files: ``read.groups``."""
    found = set()
    for name in imports(path):
        inside = name.removeprefix("workerserver.cluster.")
        if inside != name and (CLUSTER / f"{inside.replace('.', '/')}.py").is_file():
            found.add(inside)
    return found


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_run_one_way(folder: str) -> None:
    for path in sorted((CLUSTER / folder).glob("*.py")):
        folders = {name.partition(".")[0] for name in modules(path) if "." in name}
        assert folders <= ARROWS[folder] | {folder}, path


def test_the_modules_beside_the_folders_need_none_of_them() -> None:
    for path in sorted(CLUSTER.glob("*.py")):
        assert not [name for name in modules(path) if "." in name], path


def test_no_module_needs_itself() -> None:
    """A circle of modules, whatever their folders."""
    needs = {
        str(path.relative_to(CLUSTER).with_suffix("")).replace("/", "."): modules(path)
        for path in FILES
    }
    while free := [name for name, needed in needs.items() if not needed & needs.keys()]:
        for name in free:
            del needs[name]
    assert needs == {}


def literals(path: Path) -> Iterator[str]:
    """The texts of a module, without its docstrings and those of its attributes."""
    tree = ast.parse(path.read_text())
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def test_only_one_module_of_the_judges_speaks_english() -> None:
    english = re.compile(r"[A-Za-z']{2,}[,;:]? +[A-Za-z']{2,}|\A[a-z]+ \Z|\A [a-z]+\Z")
    spoken = {
        path.stem: found
        for path in sorted((CLUSTER / "judge").rglob("*.py"))
        if (found := {text for text in literals(path) if english.search(text)} - {*STRENGTH})
    }
    # words: those of deadlocks; ends: those of black boxes.
    assert spoken.keys() == {"sentences", "words", "ends"}


def test_only_one_module_knows_the_fields_of_a_summary() -> None:
    fields = {"first_pending", "p2p_seq", "recorder"}
    knowing = {path.stem for path in FILES if fields & {*literals(path)}}
    assert knowing == {"summary"}


def test_the_tables_of_reasons_agree() -> None:
    """A new reason is one entry, one rule, one sentence."""
    assert [*STRENGTH] == [*get_args(Reason)] == [*SENTENCES]
    assert {reason for rule in RULES for reason in rule.reasons} == STRENGTH.keys()
    speakers = [sentence.claim for sentence in SENTENCES.values()]
    assert len({*speakers}) == len(speakers)


def test_every_fact_has_its_line() -> None:
    told = {*get_args(facts.Evidence), *get_args(facts.Doubt), *get_args(facts.Remark)}
    assert told == LINES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_rules_accuse_for_their_own_reasons(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: Any = rounds(name)
    wrong: list[tuple[int, Reason]] = []

    def watched(rule: suspicions.Rule) -> suspicions.Rule:
        def weigh(judge: Suspicions) -> None:
            before = {rank: each.reason for rank, each in judge.accused.items()}
            rule.weigh(judge)
            wrong.extend(
                (rank, each.reason)
                for rank, each in judge.accused.items()
                if each.reason not in (*rule.reasons, before.get(rank))
            )

        return rule._replace(weigh=weigh)

    monkeypatch.setattr(suspicions, "RULES", tuple(map(watched, RULES)))
    Suspicions(Job(given, None)).weigh()
    assert wrong == []
