"""The map of a job: a row for each host, a square for each rank, a colour for each stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from workerserver.cluster.show.page.markup import count, short, text
from workerserver.cluster.show.tree import short_fold

__all__ = ["colours", "rank_map", "stack_classes"]

#: Squares, and classes of equal stacks that are listed.
MAX_CELLS = 16_384
MAX_CLASSES = 80
#: More hosts than this get small squares, in several columns.
FEW_HOSTS = 24
#: Of the calls that make a stack another one, the newest that a line has.
MAX_CALLS = 3
#: Local ranks beyond this are drawn without gaps.
MAX_COLUMNS = 64
#: Ranks in a row, where nobody tells the hosts.
ROW = 32

Worker = Mapping[str, Any]


def by_leaf(document: Mapping[str, Any]) -> list[tuple[int, list[int]]]:
    """The stacks by their numbers with the ranks of each, the rarest first."""
    ranks: dict[int, list[int]] = {}
    for each in document["workers"]:
        if each["leaf"] is not None and each["rank"] is not None:
            ranks.setdefault(each["leaf"], []).append(each["rank"])
    return sorted(ranks.items(), key=lambda each: (len(each[1]), each[0]))


def colours(document: Mapping[str, Any]) -> str:
    """The rules that give each stack its colour. What most ranks do is pale, so that the others
    catch the eye."""
    rules = []
    for place, (leaf, _) in enumerate(reversed(by_leaf(document))):
        hue, strength = (212, 26) if place == 0 else (round(25 + (place - 1) * 137.5) % 360, 75)
        rules.append(f".k{leaf}{{--h:{hue};--s:{strength}%}}")
    return "".join(rules)


def stack_classes(document: Mapping[str, Any]) -> str:
    """A line for each stack: how many ranks have it, which ones, and where it stands."""
    # The nodes are in the order of a walk: the last one with a number is where that stack ends.
    ends = {node["leaf"]: node["frames"] for node in document["tree"] if node["frames"]}
    found = by_leaf(document)
    items = []
    for leaf, ranks in found[:MAX_CLASSES]:
        frames = ends.get(leaf) or ["no Python stack"]
        where = text(" > ".join(map(short, frames[-MAX_CALLS:])), 200)
        what = f"{count(len(ranks), 'rank')}: {text(short_fold(sorted(ranks)))}"
        items.append(
            f'<li><button class="k{leaf}" data-l="{leaf}" data-m="{leaf}" aria-pressed="false" '
            f'title="{what}: {where}"><span class="key"></span>{what} &middot; '
            f"<code>{where}</code></button></li>"
        )
    if len(found) > MAX_CLASSES:
        items.append(f"<li>... and {len(found) - MAX_CLASSES:,} more stacks</li>")
    return f'<ul class="classes">{"".join(items)}</ul>' if items else ""


def rank_map(document: Mapping[str, Any]) -> str:
    """ "" if no rank is known."""
    workers = [each for each in document["workers"] if each["rank"] is not None]
    if not workers:
        return ""
    workers.sort(key=lambda each: int(each["rank"]))
    accused = {each["rank"] for each in (*document["suspects"], *document["culprits"])}
    hosts: dict[str, list[Worker]] = {}
    told = any(each["host"] for each in workers)
    last = workers[-1]["rank"]
    for each in workers[:MAX_CELLS]:
        at = each["rank"] // ROW * ROW
        other = "host not known" if told else f"ranks {at}-{min(at + ROW - 1, last)}"
        hosts.setdefault(each["host"] or other, []).append(each)
    order = list(hosts.items())
    many, said, scroll = "", "", ""
    if len(hosts) > FEW_HOSTS:

        def is_odd(each: Worker) -> bool:
            return each["rank"] in accused or each["silent"] is not None

        order.sort(key=lambda each: not any(map(is_odd, each[1])))
        many, scroll = " many", ' tabindex="0" role="group" aria-label="hosts"'
        said = "<p>Hosts with suspected or silent ranks come first.</p>"
    rows = "".join(_row(host, some, accused) for host, some in order)
    more = len(workers) - MAX_CELLS
    left = f"<p>... and {more:,} more ranks</p>" if more > 0 else ""
    return f'{said}<div class="hosts{many}"{scroll}>{rows}</div>{left}{_legend(workers, accused)}'


def _row(host: str, workers: Sequence[Worker], accused: set[Any]) -> str:
    columns = [each["local_rank"] for each in workers]
    if all(type(each) is int and 0 <= each < MAX_COLUMNS for each in columns) and len(
        set(columns)
    ) == len(columns):
        places = dict(zip(columns, workers, strict=True))
        cells = [
            _cell(places[column], accused) if column in places else '<i class="e"></i>'
            for column in range(max(columns) + 1)
        ]
    else:
        cells = [_cell(each, accused) for each in workers]
    about = f"{host}: ranks {short_fold([each['rank'] for each in workers])}"
    named = [each["rank"] for each in workers if each["rank"] in accused]
    silent = [each["rank"] for each in workers if each["silent"] is not None]
    if named:
        about += f"; suspected: {short_fold(named)}"
    if silent:
        about += f"; without an answer: {short_fold(silent)}"
    name = text(host, 200)
    return (
        f'<div class="host"><div class="name" title="{name}">{name}</div>'
        f'<div class="cells" role="img" aria-label="{text(about, 400)}">'
        f"{''.join(cells)}</div></div>"
    )


def _cell(worker: Worker, accused: set[Any]) -> str:
    names = [f"k{worker['leaf']}" if worker["leaf"] is not None else "u"]
    about = f"rank {worker['rank']}"
    if worker["silent"] is not None:
        names[0] = "x"
        about += f": {worker['silent']}"
    if worker["gil_held"]:
        names.append("g")
        about += ", GIL held"
    if worker["rank"] in accused:
        names.append("s")
    if type(worker["step"]) is int:
        about += f", step {worker['step']:,}"
    return f'<i class="{" ".join(names)}" data-r="{worker["rank"]}" title="{text(about, 120)}"></i>'


def _legend(workers: Sequence[Worker], accused: set[Any]) -> str:
    """Only what the map shows."""
    silent = [each["rank"] for each in workers if each["silent"] is not None]
    held = [each["rank"] for each in workers if each["gil_held"]]
    bare = [each["rank"] for each in workers if each["leaf"] is None and each["silent"] is None]
    named = [each["rank"] for each in workers if each["rank"] in accused]
    kinds = (("s", "suspected", named), ("g", "the GIL is held", held),
             ("x", "no answer", silent), ("u", "no stack", bare))  # fmt: skip
    items = "".join(
        f'<li><span class="key {name}"></span>{what}: {count(len(ranks), "rank")} '
        f"({text(short_fold(ranks))})</li>"
        for name, what, ranks in kinds
        if ranks
    )
    counts = Counter(each["leaf"] for each in workers if each["leaf"] is not None)
    if counts:
        items += f"<li>{count(len(counts), 'stack')}, a colour each</li>"
    return f'<ul class="legend">{items}</ul>'
