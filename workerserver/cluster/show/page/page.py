"""The report as one HTML page, which loads nothing and sends nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from workerserver.cluster.model import RankState, RoundLike
from workerserver.cluster.read.steps import Pace
from workerserver.cluster.show.page.bars import process_groups, steps
from workerserver.cluster.show.page.cards import cards
from workerserver.cluster.show.page.document import document
from workerserver.cluster.show.page.facts import TITLES, looked, since, sure, ticket
from workerserver.cluster.show.page.icicle import icicle, tree_text, widths
from workerserver.cluster.show.page.markup import clock, count, lines, text
from workerserver.cluster.show.page.rank_map import colours, rank_map, stack_classes
from workerserver.cluster.show.page.redact import redact as redacted

__all__ = ["report_page"]

#: Lines of one list.
MAX_LINES = 200
USUAL = "All ranks are shown. Choose a stack or a box to see which ranks have it."


def report_page(
    fields: Mapping[str, Any],
    rounds: Sequence[RoundLike] = (),
    paces: Mapping[int, Pace] | None = None,
    *,
    targets: Sequence[str] = (),
    commands: Mapping[int, str] | None = None,
    samples: Sequence[RankState] = (),
    redact: bool = False,
) -> str:
    """The page of a verdict: *fields* is the object that ``diagnose --json`` prints. The other
    arguments make the page richer (:func:`.document.document`). *redact*: without paths, host
    names, the job's name and command lines."""
    told = document(fields, rounds, paces, targets=targets, commands=commands, samples=samples)
    return _page(redacted(told) if redact else told)


@cache
def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _page(told: Mapping[str, Any]) -> str:
    style = _asset("page.css") + colours(told) + widths(told)
    script = _asset("page.js")
    # "data:" is for the empty icon: without one, a browser asks the page's server for one.
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    status = told["status"]
    name = f" - {text(told['job'], 80)}" if told["job"] else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
        f"<title>{TITLES[status]}{name}</title><style>{style}</style></head>\n<body>"
        f"{_head(told)}<main>{_body(told)}</main>{_foot(told)}"
        f"<script>{script}</script></body></html>\n"
    )


def _head(told: Mapping[str, Any]) -> str:
    status = told["status"]
    facts = [("since", text(since(told)))] if status != 3 else []
    how = "; ".join(text(each, 600) for each in sure(told))
    facts += [("how sure", how)] if how else []
    when = looked(told)
    nameless = "its name is left out" if told.get("redacted") else "of no known name"
    job = text(told["job"], 200) if told["job"] else nameless
    facts.append(("job", f"{job}, {count(told['ranks'], 'rank')}" if told["ranks"] else job))
    if when is not None:
        facts.append(("last sample" if told["of_boxes"] else "looked at", clock(when)))
    rows = "".join(f"<dt>{title}</dt><dd>{value}</dd>" for title, value in facts)
    whole = ticket(told)
    return (
        f'<header><div class="answer st{status}"><p class="badge">{TITLES[status]}</p>'
        f"<h1>{text(told['verdict'])}</h1><dl>{rows}</dl></div>"
        '<p><button id="copy" class="plain" hidden>Copy text for a ticket</button></p>'
        '<details><summary>Text for a ticket</summary><label for="ticket" class="soft">'
        "the verdict with its evidence, as plain text</label>"
        f'<textarea id="ticket" readonly rows="12">\n{text(whole, 20_000)}</textarea>'
        "</details></header>"
    )


def _body(told: Mapping[str, Any]) -> str:
    tree = icicle(told)
    marks = (
        f'<p class="marks"><button id="all" class="plain" hidden>Show all ranks</button> '
        f'<span id="said" class="said" role="status" data-usual="{USUAL}">{USUAL}</span></p>'
        if tree
        else ""
    )
    words = tree_text(told)
    as_text = (
        "<details><summary>The same as text</summary>"
        f'<pre tabindex="0" aria-label="the tree as text">{words}</pre></details>'
        if words
        else ""
    )
    wide = (
        "<p>Each box is a run of calls that ranks share: the oldest on top, the newest at the "
        "bottom. The width is the number of ranks; a rare stack is widened until it can be seen."
        "</p>"
    )
    sections = (
        ("Suspects", cards(told)),
        ("Ranks", rank_map(told)),
        ("Equal stacks", stack_classes(told) if tree else ""),
        ("Stacks of all ranks", wide + tree + as_text if tree else ""),
        ("Process groups", process_groups(told)),
        ("Steps", steps(told)),
        ("Slow, but not stuck", lines(each["text"] for each in told["stragglers"] or ())),
        ("How the ranks ended", _some(each["text"] for each in told["boxes"] or ())),
        ("No answer", _some(map(_gone, told["unreachable"] or ()))),
        ("Boxes that can't be read", _some(map(_unreadable, told["unreadable"] or ()))),
        ("Answers that were not as expected", _some(told["problems"] or ())),
        ("Notes", _some([*(told["notes"] or ()), *(told["leftovers"] or ())])),
        ("Other jobs", _some(map(_other, told["other_jobs"] or ()))),
    )
    made = {
        title: f"<section><h2>{title}</h2>{content}</section>" if content else ""
        for title, content in sections
    }
    # What a click filters stands together, below a line that stays in sight.
    first, linked = "Suspects", ("Ranks", "Equal stacks", "Stacks of all ranks")
    rest = [part for title, part in made.items() if title != first and title not in linked]
    together = "".join(made[title] for title in linked)
    return f"{made[first]}<div>{marks}{together}</div>{''.join(rest)}"


def _some(values: Any) -> str:
    every = list(values)
    more = len(every) - MAX_LINES
    return lines(every[:MAX_LINES]) + (f"<p>... and {more:,} more</p>" if more > 0 else "")


def _gone(each: Mapping[str, Any]) -> str:
    who = "a worker of unknown rank" if each["rank"] is None else f"rank {each['rank']}"
    at = ", ".join(filter(None, (each["host"], each["address"])))
    return f"{who}{f' ({at})' if at else ''}: {each['reason']}: {each['text']}"


def _unreadable(each: Mapping[str, Any]) -> str:
    return f"{each['path']}: {each['text']}"


def _other(each: Mapping[str, Any]) -> str:
    return f"{each['job'] or 'of no known name'}: {each['verdict']}"


def _foot(told: Mapping[str, Any]) -> str:
    hidden = " Paths, host names and command lines are left out." if told.get("redacted") else ""
    return (
        "<footer>Written by <code>workerserver report</code>. This page loads nothing and sends "
        f"nothing.{hidden} Times are in the zone of the machine that wrote it.</footer>"
    )
