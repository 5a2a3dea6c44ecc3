"""A card for each suspect: what is known of it, its stack, and the commands that ask more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workerserver.cluster.show.page.document import MAX_CARDS
from workerserver.cluster.show.page.facts import who
from workerserver.cluster.show.page.markup import (
    clock,
    count,
    duration,
    is_number,
    lines,
    size,
    text,
)

__all__ = ["cards"]

#: Frames that are seen without a click.
FIRST_FRAMES = 6
#: Of one line of a stack.
MAX_LINE = 300


def cards(document: Mapping[str, Any]) -> str:
    """ "" if nobody is accused."""
    made = [_culprit(each) for each in document["culprits"][:MAX_CARDS]]
    made += [_suspect(each) for each in document["suspects"][:MAX_CARDS]]
    left = max(len(document["suspects"]) - MAX_CARDS, 0) + max(
        len(document["culprits"]) - MAX_CARDS, 0
    )
    more = (
        f"<p>... and {count(left, 'more suspect')} (<code>--json</code> has all)</p>"
        if left
        else ""
    )
    return f'<div class="cards">{"".join(made)}</div>{more}' if made else ""


def _culprit(each: Mapping[str, Any]) -> str:
    location = each["location"]
    place = None
    if location is not None:
        line = "" if location["line"] is None else f":{location['line']}"
        place = f"{location['file']}{line} {location['function']}"
    facts = {
        "host": each["host"],
        "stood in": place,
        "ended": clock(each["time"]) or None,
        "last step": None if each["step"] is None else f"step {each['step']:,}",
        "memory": _memory(each),
        "process": f"pid {each['pid']}",
        "command": each.get("argv"),
        "black box": each["path"],
    }
    return _card(each["text"], facts, (), each)


def _suspect(each: Mapping[str, Any]) -> str:
    operation = each["collective"]
    if operation is not None:
        operation += "" if each["seq"] is None else f" #{each['seq']}"
        operation += f" of {each['process_group']}" if each["process_group"] else ""
    place = each["location"]
    if place is not None and each["call"]:
        place += f", in {each['call']}"
    facts = {
        "rests on": each.get("rests_on"),
        "stands in": place,
        "waits for": each["waits_for"],
        "operation": operation,
        "holds the GIL": "yes" if each["gil_holder"] else None,
        "last heartbeat": _beat(each),
        "memory": _memory(each),
        "in the kernel": each.get("kernel"),
        "process": None if each.get("pid") is None else f"pid {each['pid']}",
        "command": each.get("argv"),
        "address": each["address"] or None,
    }
    evidence = [*each["evidence"], *map(_circle, each["deadlock"])]
    return _card(f"{who(each)}: {each['reason']}", facts, evidence, each)


def _card(
    title: str,
    facts: Mapping[str, Any],
    evidence: Any,
    each: Mapping[str, Any],
) -> str:
    told = "".join(
        f"<dt>{name}</dt><dd>{text(value, 1000)}</dd>"
        for name, value in facts.items()
        if value is not None
    )
    stack = each.get("stack") or ()
    shown = "\n".join(text(line, MAX_LINE) for line in stack[:FIRST_FRAMES])
    parts = [f"<h3>{text(title, 1000)}</h3><dl>{told}</dl>", lines(evidence)]
    if shown:
        parts.append(f'<pre tabindex="0" aria-label="newest frames">{shown}</pre>')
    if len(stack) > FIRST_FRAMES:
        rest = "\n".join(text(line, MAX_LINE) for line in stack[FIRST_FRAMES:])
        parts.append(
            f"<details><summary>{count(len(stack) - FIRST_FRAMES, 'older frame')}</summary>"
            f'<pre tabindex="0" aria-label="older frames">{rest}</pre></details>'
        )
    commands = "\n".join(text(line, MAX_LINE) for line in each.get("commands") or ())
    if commands:
        parts.append(
            "<details><summary>ask more</summary>"
            f'<pre tabindex="0" aria-label="commands">{commands}</pre></details>'
        )
    return f'<article class="card">{"".join(parts)}</article>'


def _beat(each: Mapping[str, Any]) -> str | None:
    if not is_number(each["step_age_s"]):
        return None
    step = "" if each["step"] is None else f"step {each['step']:,}, "
    return f"{step}{duration(each['step_age_s'])} before the last look"


def _memory(each: Mapping[str, Any]) -> str | None:
    resident = each.get("rss_bytes")
    return None if resident is None else f"{size(resident)} resident"


def _circle(circle: Mapping[str, Any]) -> str:
    line = f"{circle['thread']} waits for {circle['waits_for']}"
    if circle["holds"]:
        line += f", and holds {circle['holds']}"
    if circle["took"]:
        line += f", taken at {circle['took']}"
    return line + (f"; it stands in {circle['stands']}" if circle["stands"] else "")
