"""The verdict on what the ranks of the corpus answered once: without running them again.

``answers.py`` has recorded the jobs that hang, with torch 2.13, gloo and CPython 3.11.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import answers
import pytest
import scenes

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.read.columns.summaries import Summary, summary_of
from workerserver.cluster.show.report import verdict_dict

pytestmark = pytest.mark.torch

for family in scenes.FAMILIES:
    scenes.load(family)
RECORDED: dict[str, Any] = {}
for file in sorted(answers.FOLDER.glob("*.json.gz")):
    RECORDED |= json.loads(gzip.decompress(file.read_bytes()))
HANG = {name for name, scene in scenes.SCENES.items() if scene.status}


def test_recorded_jobs_are_those_of_the_corpus() -> None:
    assert set(RECORDED) <= HANG
    assert len(RECORDED) > 10


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_verdict(name: str) -> None:
    scene = scenes.SCENES[name]
    named = "{rank}" in scene.how.sockets
    looks = answers.rounds(RECORDED[name], named)
    verdict = diagnose(looks, scene.ranks)
    found = []
    for each in verdict.suspects:
        location = each.location
        file, function = (location.file, location.function) if location is not None else ("", None)
        assert not file or file.startswith("/home/user/faults/"), each
        found.append(
            scenes.Suspect(
                -1 if each.rank is None else each.rank,
                each.reason,
                each.process_group,
                each.collective,
                each.seq,
                function,
            )
        )
    assert (verdict.status, tuple(found)) == (scene.status, scene.suspects), verdict.sentence
    assert scene.says in verdict.sentence


@pytest.mark.parametrize("traces", [True, False])
@pytest.mark.parametrize("name", sorted(RECORDED))
def test_rows_change_no_document(name: str, traces: bool) -> None:
    """Ranks whose summaries are equal but for times are judged together: that changes nothing."""
    named = "{rank}" in scenes.SCENES[name].how.sockets
    documents = []
    for together in (False, True):
        looks = answers.rounds(RECORDED[name], named)
        for state in (state for look in looks for state in look.states):
            if not traces and state.flight_summary is not None:
                state.flight = None
            if together and state.flight_summary is not None:
                body = json.dumps(state.flight_summary, separators=(",", ":")).encode()
                state.flight_summary = summary_of(body)
                assert isinstance(state.flight_summary, Summary)
        documents.append(verdict_dict(diagnose(looks, scenes.SCENES[name].ranks)))
    assert documents[0] == documents[1]
