"""Two kinds of bars: how far ranks have come in a process group, and when their steps began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workerserver.cluster.show.page.document import ranks_in
from workerserver.cluster.show.page.markup import clock, count, duration, number, text
from workerserver.ranks import cut as cut_ranks
from workerserver.ranks import fold

__all__ = ["process_groups", "steps"]

#: Process groups that are drawn, and rows of each.
MAX_GROUPS = 16
MAX_ROWS = 24
WIDTH = 1000.0

Fields = Mapping[str, Any]


def process_groups(document: Fields) -> str:
    """ "" if no flight recorder has told of any."""
    found = document["process_groups"] or ()
    shown = "".join(map(_group, found[:MAX_GROUPS]))
    if len(found) > MAX_GROUPS:
        left = count(len(found) - MAX_GROUPS, "more process group")
        shown += f"<p>... and {left} (<code>workerserver fr --all</code>)</p>"
    return shown


def _group(group: Fields) -> str:
    waits = [each for each in group["waits"] if each["hangs"]]
    rows = _rows(group, waits)
    seqs = [seq for row in rows for seq in row["seqs"] if seq is not None]
    low, high = (min(seqs), max(seqs)) if seqs else (0, 0)
    low -= max(2, (high - low) // 4)  # a lead of one operation has to be seen after millions
    said = []
    for wait in waits:
        name = wait["collective"] + ("" if wait["seq"] is None else f" #{wait['seq']}")
        gone = " and ".join(
            f"{_named(wait[kind])} ({what})"
            for kind, what in (("absent", "absent"), ("silent", "no answer"))
            if wait[kind]
        )
        verb = "waits" if wait["waiting"].isdecimal() else "wait"
        who = f"{_named(wait['waiting'])} {verb} in {name}"
        said.append(f'<p class="red">{text(who)}{text(f" for {gone}") if gone else ""}</p>')
    mismatch = group["mismatch"]
    if mismatch is not None:
        parties = "; ".join(
            f"{cut_ranks(each['ranks'])}: {each['operation']}" for each in mismatch["parties"]
        )
        what = f"#{mismatch['seq']} differs ({mismatch['kind']}): {parties}"
        said.append(f'<p class="red">{text(what)}</p>')
    drawn = "".join(_drawn(row, low, high) for row in rows[:MAX_ROWS])
    more = len(rows) - MAX_ROWS
    left = (
        f"<p>... and {count(more, 'more class', 'more classes')} of ranks</p>" if more > 0 else ""
    )
    title = text(group["desc"] or group["name"], 200)
    backend = f", {text(group['backend'], 60)}" if group["backend"] else ""
    head = (
        '<tr><th scope="col">ranks</th><th scope="col" class="bar">progress</th>'
        '<th scope="col">issued, retired</th></tr>'
    )
    return (
        f'<div class="group"><h3>{title} <span class="soft">(ranks '
        f"{text(cut_ranks(group['ranks']))}{backend})</span></h3>"
        f"{''.join(said)}<table>{head}{drawn}</table>{left}</div>"
    )


def _named(ranks: str) -> str:
    return f"rank {ranks}" if ranks.isdecimal() else f"ranks {cut_ranks(ranks)}"


def _rows(group: Fields, waits: Sequence[Fields]) -> list[dict[str, Any]]:
    """The classes of ranks. What is absent from a wait that hangs is a class of its own."""
    absent = {rank for wait in waits for rank in ranks_in(wait["absent"])}
    silent = {rank for wait in waits for rank in ranks_in(wait["silent"])}
    rows: list[dict[str, Any]] = []
    known: set[int] = set()
    for each in group["positions"]:
        ranks = ranks_in(each["ranks"])
        known.update(ranks)
        for some, mark in (
            ([rank for rank in ranks if rank in absent], "absent"),
            ([rank for rank in ranks if rank in silent - absent], "no answer"),
            ([rank for rank in ranks if rank not in silent | absent], ""),
        ):
            if some:
                at = each["last_issued"], each["last_retired"]
                seqs = [None if one is None else one["seq"] for one in at]
                rows.append({"ranks": fold(some), "mark": mark, "at": at, "seqs": seqs})
    gone = sorted(absent - known)
    if gone:
        rows.append(
            {"ranks": fold(gone), "mark": "absent", "at": (None, None), "seqs": [None, None]}
        )
    return sorted(rows, key=lambda row: ("absent", "no answer", "").index(row["mark"]))


def _drawn(row: Fields, low: int, high: int) -> str:
    def width(seq: int | None) -> str:
        return number(0 if seq is None else (seq - low) / max(high - low, 1) * WIDTH)

    issued, retired = row["seqs"]
    names = [
        "nothing" if one is None else f"{one['collective']} #{one['seq']}" for one in row["at"]
    ]
    mark = ' class="absent"' if row["mark"] == "absent" else ""
    who = text(cut_ranks(row["ranks"]))
    if row["mark"]:
        who += f' <span class="red">{row["mark"]}</span>'
    told = f"issued {text(names[0], 120)}, retired {text(names[1], 120)}"
    if names[0] == names[1]:
        told = f"issued and retired {text(names[0], 120)}" if issued is not None else "nothing"
    return (
        f'<tr{mark}><td>{who}</td><td class="bar">'
        f'<svg viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="1000" height="10"/>'
        f'<rect class="issued" width="{width(issued)}" height="10"/>'
        f'<rect class="retired" width="{width(retired)}" height="10"/></svg></td>'
        f"<td>{told}</td></tr>"
    )


def steps(document: Fields) -> str:
    """When the last steps of some ranks began, who stopped first on top; "" if nobody tells."""
    found = document["steps"]
    if not found:
        return ""
    first = min(each["began"][0] for each in found)
    last = max(each["began"][-1] for each in found)
    looked = document["looks"][-1] if document["looks"] else last
    end = max(last, looked if looked - last < 10 * max(last - first, 1) else last)
    span = max(end - first, 1e-3)
    accused = {each["rank"] for each in (*document["suspects"], *document["culprits"])}
    rows = []
    for each in found:
        path = "".join(f"M{number((at - first) / span * WIDTH)} 0v10" for at in each["began"])
        names = ["suspect"] if each["rank"] in accused else []
        names += [] if each["leaf"] is None else [f"k{each['leaf']}"]
        behind = duration(max(last - each["began"][-1], 0.0))
        rows.append(
            f'<tr class="{" ".join(names)}" data-r="{each["rank"]}"><td>rank {each["rank"]}'
            f'{" (suspected)" if each["rank"] in accused else ""}</td><td class="bar">'
            f'<svg viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect class="track" width="1000" height="10"/><path d="{path}"/></svg></td>'
            f"<td>step {each['steps'][-1]:,}, {behind} before the newest</td></tr>"
        )
    return (
        f"<p>Each stroke is the start of a step, from {clock(first)} to {clock(end)}. The rank "
        f"that stopped first comes first. Each rank counts by the clock of its own host.</p>"
        f'<table class="steps"><tr><th scope="col">rank</th><th scope="col" class="bar">steps</th>'
        f'<th scope="col">last step</th></tr>{"".join(rows)}</table>'
    )
