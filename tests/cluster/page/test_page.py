"""The report as HTML: what stands in it, how large it is, and what a stranger may not see."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from support.jobs.large import fields_of, large_job
from support.jobs.pages import EVIL, hostile_page, large_page, recorded, recorded_page, told_alone
from support.jobs.ranks import LOAD, MODULE, REDUCE, STEP, main, state
from support.jobs.recordings import NAMES, Round

from workerserver.cluster.read.steps import Pace
from workerserver.cluster.show.page.document import document
from workerserver.cluster.show.page.facts import since, sure, ticket
from workerserver.cluster.show.page.markup import duration, size, text
from workerserver.cluster.show.page.page import report_page
from workerserver.cluster.show.page.redact import redact

#: Elements without an end.
VOID = {"meta", "link", "rect", "path"}


class Outline(HTMLParser):
    """Elements, attributes and text; fails on an element that isn't closed."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("\n".join(self.words).split())


@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_job(name: str) -> None:
    """With the looks, and with the verdict's JSON alone, as the watchdog has it on its stdin."""
    fields, looks = recorded(name)
    for made in (report_page(fields, looks), report_page(told_alone(fields))):
        page = Outline(made)
        assert " ".join(fields["verdict"].split()) in page.text
        assert "h1" in page.names
        for suspect in fields["suspects"]:
            for line in suspect["evidence"]:
                assert " ".join(line.split()) in page.text
        squares = [value for key, value in page.attributes if key == "data-r"]
        assert len(squares) == len(set(squares))
        assert len(squares) >= fields["responded"]


def test_the_policy_lets_through_the_style_and_the_script_alone() -> None:
    made = recorded_page("two_asleep-ours")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', made)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("style", "script"):
        (content,) = re.findall(f"<{name}>(.*?)</{name}>", made, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    names = {key for key, _ in Outline(made).attributes}
    assert not names & {"style", "src", "onclick", "onload", "action", "srcset"}
    assert re.findall(r'href="([^"]*)"', made) == ["data:,"]


def test_what_the_page_says_of_a_hang() -> None:
    page = Outline(recorded_page("two_asleep-ours", targets=["/tmp/job/rank{rank}.sock"])).text
    for words in (
        "rank 0 waits in all_reduce #6 for ranks 1,3 (absent) and rank 2 (no answer)",
        "1,3 absent issued and retired all_reduce #5",
        "0 issued all_reduce #6, retired all_reduce #5",
        "suspected: 3 ranks (1-3)",
        "no answer: 1 rank (2)",
        "3 of 4 ranks answered; 2 looks in 19 s tell stuck from slow",
        "workerserver diagnose -v '/tmp/job/rank{rank}.sock'",
        "workerserver call dump_traceback /run/rank1.sock",
        "step 5, 45 s before the last look",
        "1 x 3 /home/user/scenes.py:83",
    ):
        assert words in page or words.startswith("1 x 3"), words
    assert "1 x 3" in page


def test_since_when() -> None:
    fields, looks = recorded("two_asleep-ours")
    told = document(fields, looks)
    assert "then step 5 began, the last one of any rank, 27 s before the last look" in since(told)
    assert since(document({**fields, "suspects": []})).startswith("not known")
    for worker in told["workers"]:
        worker["step_age_s"] = None
    assert since(told) == "not known: no rank that answered has called heartbeat()"


def test_a_ticket() -> None:
    fields, looks = recorded("two_asleep-ours")
    told = document(fields, looks)
    lines = ticket(told).splitlines()
    assert lines[0] == fields["verdict"]
    assert "rank 1: behind" in lines
    assert "    /home/user/scenes.py:39 compute" in lines
    assert "rests on 3 kinds of evidence, each with its suspect" in sure(told)


def test_the_gil_is_hatched() -> None:
    fields, looks = recorded("gil-ours")
    (holder,) = (each["rank"] for each in fields["suspects"] if each["gil_holder"])
    made = report_page(fields, looks)
    (names,) = re.findall(rf'<i class="([^"]+)" data-r="{holder}"', made)
    assert {"g", "s"} <= set(names.split())
    assert f"the GIL is held: 1 rank ({holder})" in Outline(made).text


def test_who_stopped_first_comes_first() -> None:
    fields, looks = recorded("asleep-ours")
    second = 10**9
    paces = {
        rank: Pace(tuple(range(10)), tuple(at * second for at in range(1000, 1010)), 0.01)
        for rank in range(4)
    }
    paces[2] = Pace((0, 1), (1000 * second, 1001 * second), 0.01)
    made = report_page(fields, looks, paces)
    ranks = re.findall(r'<tr class="[^"]*" data-r="(\d)"', made)
    assert ranks == ["2", "0", "1", "3"]
    assert "step 1, 8.0 s before the newest" in Outline(made).text


def test_a_large_job_fits() -> None:
    made = large_page(4096, 65)
    assert 100_000 < len(made.encode()) < 1_000_000
    page = Outline(made)
    assert len([key for key, _ in page.attributes if key == "data-r"]) >= 4096
    leaves = {value for key, value in page.attributes if key == "class" and value}
    colours = {name for value in leaves for name in value.split() if re.fullmatch(r"k\d+", name)}
    assert len(colours) == 65
    # The width is ranks.
    grows = {int(each) for each in re.findall(r"\.w(\d+)\{flex-grow:\1\}", made)}
    assert grows == {1, 4096 - 64, 4096}
    assert "node511" in page.text


def test_a_huge_job_is_cut_and_says_so() -> None:
    fields = fields_of(large_job(64, 3))
    fields["groups"][-1]["ranks"] = "0-4,8-99999"
    page = Outline(report_page(fields))
    assert len([key for key, _ in page.attributes if key == "data-r"]) == 16_384
    assert re.search(r"\.\.\. and 83,\d{3} more ranks", page.text)


def test_all_ranks_do_something_else() -> None:
    """More stacks than are drawn: the page stays small, and has every rank."""
    made = large_page(2048, 2000)
    page = Outline(made)
    assert len(made) < 1_000_000
    squares = [value for key, value in page.attributes if key == "data-r"]
    assert len(set(squares)) == 2048
    assert re.search(r"then 1,?\d\d\d more ways, which are not drawn", page.text)
    assert re.search(r"\.\.\. and \d+ more stacks", page.text)
    # The rarest are drawn, and the suspect is one of them.
    (names,) = set(re.findall(r'<i class="([^"]+)" data-r="5"', made))
    leaf = names.split()[0]
    assert len(re.findall(rf'<i class="{leaf}[ "]', made)) == 1


def test_the_width_is_ranks_also_where_stacks_end_early() -> None:
    """Of six ranks, four stand in step() itself, two in what it calls: a third of the width."""
    states = [state(rank, main(STEP, MODULE)) for rank in range(4)]
    states += [state(rank, main(LOAD, STEP, MODULE)) for rank in (4, 5)]
    looks = [Round(states, 1_700_000_000.0 + at) for at in (0, 2)]
    made = report_page(fields_of(looks), looks)
    assert re.findall(r'<div class="node (w\d+)">(<button|</div>)', made) == [
        ("w6", "<button"),  # everybody
        ("w6", "<button"),  # <module>, step
        ("w4", "</div>"),  # who ends there
        ("w2", "<button"),  # load
    ]
    for width in (2, 4, 6):
        assert f".w{width}{{flex-grow:{width}}}" in made


def test_a_process_without_a_rank() -> None:
    looks = [Round([state(None, main(*REDUCE))], 1_700_000_000.0 + at) for at in (0, 2)]
    page = Outline(report_page(fields_of(looks), looks))
    assert "1 x unknown rank" in page.text
    assert "data-r" not in dict(page.attributes)


def test_hostile_texts_are_escaped() -> None:
    for made in (hostile_page(), hostile_page(redact=True)):
        page = Outline(made)
        assert page.names.count("script") == 1
        assert page.names.count("style") == 1
        assert not {"img", "b", "iframe", "object", "svg:script"} & set(page.names)
        assert not {key for key, _ in page.attributes if key.startswith("on")}
        assert "\u202e" not in made
        made.encode()  # no lone surrogate is left
        assert len(made) < 1_000_000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a<b>&\"'", "a&lt;b&gt;&amp;&quot;&#x27;"),
        ("\u202eabc\ud800\x1b", "\\u202eabc\\ud800\\x1b"),
        ("Grüße, 世界", "Grüße, 世界"),
        (None, "None"),
    ],
)
def test_text(value: Any, shown: str) -> None:
    assert text(value) == shown


def test_text_is_cut_before_it_is_escaped() -> None:
    assert html.unescape(text("<" * 9000, 100)) == "<" * 97 + "..."


def test_figures() -> None:
    assert [duration(each) for each in (0.25, 61, 3700, 90_000, None)] == [
        "0.2 s", "1 min 1 s", "1 h 1 min", "1 d 1 h", "-",
    ]  # fmt: skip
    assert [size(each) for each in (0, 1023, 3 << 30, 1 << 50, "x")] == [
        "0 B", "1023 B", "3 GiB", "1024 TiB", "-",
    ]  # fmt: skip


# ---- for strangers


def test_redacted() -> None:
    looks = large_job(16, 3)
    for made in (
        report_page(fields_of(looks), looks, redact=True, targets=["/srv/secret/job"]),
        report_page(fields_of(looks), redact=True, commands={5: "train --token abc"}),
    ):
        page = Outline(made).text
        for word in (
            "/opt",
            "/srv",
            "node0",
            "example.org",
            "secret",
            "--token",
            "model_3/",
        ):
            assert word not in made, word
        assert "host-1" in page
        assert ".../data.py:33 load_batch" in page  # what a verdict is told by
        assert "are left out" in page


def test_texts_without_names() -> None:
    fields, looks = recorded("asleep-ours")
    fields["problems"] = [
        "rank 3: stacks: timeout: https://gpu-07.example.org:29501/handler did not answer",
        "10.1.2.3 and [fe80::1%eth0]:2950 in /home/alice/train.py:12, line 12, rank 3:0",
        "node-a.corp says: /data/run-7/notes.txt, ckpt/alice.pt, 3 MiB/s; /srv/my run/a b.py:3",
    ]
    gone = {"rank": 9, "host": "node-a.corp", "address": "/srv/my run/a b.py", "reason": "timeout"}
    fields["unreachable"] = [{**gone, "text": "node-a."}]
    told = redact(document(fields, looks))
    said = str(told["problems"])
    assert not re.search(r"gpu-07|example|10\.1\.2|fe80|alice|node-a|corp|data|run|srv", said)
    assert "train.py:12, line 12, rank 3:0" in said
    assert "3 MiB/s" in said
    assert "timeout: address did not answer" in said
    assert told["workers"][-1]["host"] == "host-1"
    assert told["unreachable"][0]["text"] == "host-1."
    assert told["job"] is None


def test_a_job_that_is_called_as_a_function_is() -> None:
    fields, looks = recorded("asleep-ours")
    fields.update(job="compute", notes=["compute is over", "compute."])
    told = redact(document(fields, looks))
    assert told["notes"] == ["the job is over", "the job."]
    assert any("compute" in frame for node in told["tree"] for frame in node["frames"])


def test_evil_is_what_it_should_be() -> None:
    """Unescaped, the text of these tests would make elements."""
    page = HTMLParser()
    found: list[str] = []
    page.handle_starttag = lambda tag, attrs: found.append(tag)  # type: ignore[method-assign]
    page.feed(f"<p>{EVIL}")
    assert {"script", "img"} <= set(found)
