"""The head of a report, beside the verdict: since when, how sure, and text for a ticket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workerserver.cluster.show.page.markup import clock, count, cut, duration, is_number

__all__ = ["TITLES", "looked", "since", "sure", "ticket", "who"]

#: By status.
TITLES = ("Healthy", "Suspects found", "Could not tell", "No job to judge")
#: Of a ticket.
MAX_SUSPECTS = 4
MAX_EVIDENCE = 6
MAX_FRAMES = 10


def who(accused: Mapping[str, Any]) -> str:
    """``rank 5 on node7``."""
    name = "worker of unknown rank" if accused["rank"] is None else f"rank {accused['rank']}"
    return f"{name} on {accused['host']}" if accused.get("host") else name


def looked(document: Mapping[str, Any]) -> float | None:
    """When the job was looked at last."""
    when = document["looks"][-1] if document["looks"] else document["time"]
    return float(when) if is_number(when) and when > 0 else None


def since(document: Mapping[str, Any]) -> str:
    """Since when the job is as the verdict says, as far as anything tells it."""
    ended = [each["time"] for each in document["culprits"] if is_number(each["time"])]
    if ended:
        first = document["culprits"][0]
        return f"{clock(ended[0])}: then {who(first)} ended, by the clock of its host"
    now = looked(document)
    beats = [
        (each["step_age_s"], each["step"])
        for each in document["workers"]
        if is_number(each["step_age_s"]) and each["silent"] is None
    ]
    if not beats or now is None:
        return "not known: no rank that answered has called heartbeat()"
    age, step = min(beats, key=lambda each: float(each[0]))
    told = f"step {step:,}" if type(step) is int else "the last step"
    return (
        f"{clock(now - age)}: then {told} began, the last one of any rank, "
        f"{duration(age)} before the last look"
    )


def sure(document: Mapping[str, Any]) -> list[str]:
    """What the verdict rests on, and what it does not rest on."""
    lines = []
    looks = document["looks"]
    boxes = document["boxes"] or ()
    answered = f"{document['responded']:,} of {count(document['ranks'], 'rank')} answered"
    if boxes:
        lines.append(f"{count(len(boxes), 'black box', 'black boxes')} counted")
    if document["of_boxes"]:
        if len(looks) > 1:
            lines.append(
                f"the last two samples of the stacks, {duration(looks[-1] - looks[0])} apart"
            )
    elif document["ranks"]:
        if len(looks) > 1:
            passed = duration(looks[-1] - looks[0])
            answered += f"; {len(looks)} looks in {passed} tell stuck from slow"
        elif looks:
            answered += "; one look"
        lines.append(answered)
    rests = {each["rests_on"] for each in document["suspects"] if each.get("rests_on")}
    if len(rests) == 1:
        lines.append(f"rests on: {rests.pop()}")
    elif rests:
        lines.append(f"rests on {len(rests)} kinds of evidence, each with its suspect")
    if document["culprits"]:
        lines.append("rests on: what the process itself, or the kernel, recorded of its end")
    lines += [f"not looked at: {each}" for each in document["not_looked_at"] or ()]
    if document["problems"]:
        many = count(len(document["problems"]), "answer was", "answers were")
        lines.append(f"{many} not as expected (see below)")
    if is_number(document.get("again_s")):
        lines.append(f"another look after {duration(document['again_s'])} may tell more")
    return lines


def ticket(document: Mapping[str, Any]) -> str:
    """Plain text for a ticket or a chat."""
    job = document["job"]
    lines = [document["verdict"], ""]
    if not document.get("redacted"):
        lines.append(f"job: {job or 'of no known name'}")
    now = looked(document)
    if now is not None:
        what = "last sample" if document["of_boxes"] else "looked at"
        lines.append(f"{what}: {clock(now)}")
    lines.append(f"since: {since(document)}")
    lines += [f"sure: {each}" for each in sure(document)]
    for each in document["culprits"][:MAX_SUSPECTS]:
        lines += ["", each["text"], *_stack(each)]
    for each in document["suspects"][:MAX_SUSPECTS]:
        lines += ["", f"{who(each)}: {each['reason']}"]
        lines += [f"- {line}" for line in each["evidence"][:MAX_EVIDENCE]]
        lines += _stack(each)
    left = len(document["suspects"]) - MAX_SUSPECTS
    if left > 0:
        lines += ["", f"... and {count(left, 'more suspect')}"]
    return "\n".join(cut(str(line), 2000) for line in lines)


def _stack(accused: Mapping[str, Any]) -> list[str]:
    return [f"    {line}" for line in (accused.get("stack") or ())[:MAX_FRAMES]]
