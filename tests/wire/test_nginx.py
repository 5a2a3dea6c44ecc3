"""nginx as a second judge of the table: each difference from our answers is explained.

``nginx.json`` holds the differences of nginx 1.22, Debian's. A later nginx may agree where it did
not; a difference that isn't there fails.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.requests.nginx import answer_of, missing, nginx, ours
from support.requests.raw import FOLDER, read_cases

EXPLAINED = json.loads(Path(__file__).with_name("nginx.json").read_text())
CASES = {case.name: case for path in FOLDER.glob("*.json") for case in read_cases(path.stem)}


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_nginx_answers_alike_or_for_a_reason(tmp_path: Path) -> None:
    explained = {name: group["nginx"] for group in EXPLAINED for name in group["cases"]}
    with nginx(tmp_path) as address:
        answers = {name: answer_of(address, case) for name, case in CASES.items()}
    unexplained = {
        name: (ours(CASES[name]), answer)
        for name, answer in answers.items()
        if answer not in (ours(CASES[name]), explained.get(name))
    }
    assert unexplained == {}


def test_the_explanations() -> None:
    """Each is one of a case that there is, and of the answer that the table asks for."""
    names = [name for group in EXPLAINED for name in group["cases"]]
    assert sorted(names) == sorted(set(names))
    for group in EXPLAINED:
        assert group["why"]
        for name in group["cases"]:
            assert ours(CASES[name]) == group["ours"] != group["nginx"], name
