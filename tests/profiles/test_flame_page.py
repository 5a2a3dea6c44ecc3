"""The page with the flame graph, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.requests import browser as browsers
from support.waiting import wait_until

from workerserver.stacks.profiles.job import Job, Member, Own
from workerserver.stacks.profiles.page import page
from workerserver.stacks.profiles.recorded import Node, Recorded, Thread

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsers.missing() is not None, reason=str(browsers.missing())),
]
EVIL = "<img src=x onerror='document.title=1'></script>"


def job() -> Job:
    """Rank 1 waits in load() for most of its time, ranks 0 and 2 compute in step()."""
    made = Job("wall", 100.0)
    for rank, load in enumerate((20, 90, 20)):
        nodes = [
            Node(-1, 0, 0, 0), Node(0, 0, 0, load), Node(0, 1, 100 - load, 0), Node(-1, 1, 0, 0),
            Node(3, 2, 0, 100),
        ]  # fmt: skip
        functions = [("/job/a.py", "load", 1), ("/job/a.py", "step", 9), ("/b.py", EVIL, 3)]
        threads = [Thread("MainThread", 1, 1), Thread("pool", 2, 2)]
        own = Own()
        own.add(Recorded("wall", 100.0, 0.0, 1.0, 100, 0, 0, 0, 0.0, functions, threads, nodes),
                made.stacks)  # fmt: skip
        made.add(Member(rank, f"rank {rank}"), own)
    return made


def test_in_chromium(tmp_path: Path) -> None:
    whole, compared = tmp_path / "whole.html", tmp_path / "compared.html"
    whole.write_bytes(page(job(), None))
    compared.write_bytes(page(job(), 1))
    with browsers.browser(tmp_path) as browser:

        def boxes() -> Any:
            return browser.run(
                "return [...document.querySelectorAll('#graph button')].map((each) =>"
                " [each.textContent, Math.round(each.getBoundingClientRect().width /"
                " document.getElementById('graph').clientWidth * 100), each.style.background])"
            )

        browser.open(whole.as_uri())
        wait_until(lambda: browser.text("#title") == "3 ranks, 1 s, wall time")
        widths = {name: width for name, width, _ in boxes()}
        assert widths["all ranks"] == widths["MainThread"] == 100
        assert abs(widths["step (job/a.py:9)"] - 57) <= 1
        assert abs(widths["load (job/a.py:1)"] - 43) <= 1
        assert "idle threads" not in widths
        browser.click("#idle")
        widths = {name: width for name, width, _ in boxes()}
        assert abs(widths["idle threads"] - 50) <= 1
        assert any(name.startswith(EVIL) for name in widths)
        assert browser.run("return document.querySelectorAll('#graph img').length") == 0
        browser.type("#find", "LOAD")
        assert browser.text("#found") == "1 call"
        browser.run("document.querySelectorAll('#graph button.found')[0].click()")
        assert {name: width for name, width, _ in boxes()}["load (job/a.py:1)"] == 100
        assert "most: 1, 900.0 ms" in browser.text("#about")
        browser.click("#reset")
        assert len(boxes()) == len(widths)
        browser.open(compared.as_uri())
        wait_until(lambda: browser.text("#title").startswith("rank 1 against the median of 2"))
        colours = {name: tuple(map(int, background[4:-1].split(", ")))
                   for name, _, background in boxes()}  # fmt: skip
        red, _, blue = colours["load (job/a.py:1)"]
        assert red > blue + 50
        red, _, blue = colours["step (job/a.py:9)"]
        assert blue > red + 50
        assert not [each for each in browser.problems() if "Content Security" in each]
        # The policy holds: nothing else may run, and nothing is loaded.
        assert browser.run(
            "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
            "document.body.append(s); return window.ran === undefined"
        )
        assert [each for each in browser.problems() if "Content Security" in each]
