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
