"""The prefix tree of all stacks as boxes: the oldest frames on top, the width is ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workerserver.cluster.show.page.markup import count, short, text
from workerserver.ranks import cut as cut_ranks

__all__ = ["icicle", "tree_text", "widths"]

#: Frames of a box that its title has, the newest ones.
MAX_TITLE = 6
#: Of the tree as text.
MAX_LINES = 2000

Node = Mapping[str, Any]


def widths(document: Mapping[str, Any]) -> str:
    """A rule for each width: the policy of the page forbids styles of single elements."""
    counts = sorted({node[name] for node in document["tree"] for name in ("count", "ended")} - {0})
    return "".join(f".w{each}{{flex-grow:{each}}}" for each in counts)


def icicle(document: Mapping[str, Any]) -> str:
    """ "" if there is no stack."""
    nodes: Sequence[Node] = document["tree"]
    if not nodes:
        return ""
    parts: list[str] = []
    depths: list[int] = []
    for index, node in enumerate(nodes):
        while depths and depths[-1] >= node["depth"]:
            parts.append("</div></div>")
            depths.pop()
        parts.append(f'<div class="node w{node["count"]}">{_box(node)}<div class="kids">')
        depths.append(node["depth"])
        deeper = index + 1 < len(nodes) and nodes[index + 1]["depth"] > node["depth"]
        if deeper and node["ended"]:  # ranks that end here take their width below, too
            parts.append(f'<div class="node w{node["ended"]}"></div>')
    parts.append("</div></div>" * len(depths))
    return f'<div class="scroll">{"".join(parts)}</div>'


def _box(node: Node) -> str:
    frames = node["frames"]
    if not frames:
        label = "all ranks" if node["depth"] == 0 else "no Python stack"
    else:
        label = short(frames[-1])
    more = len(frames) + node["more"] - 1
    title = f"{count(node['count'], 'rank')}: {cut_ranks(node['ranks'])}"
    if node["undrawn"]:
        title += f", with {node['undrawn']} more ways below that are not drawn"
    if frames:
        title += f": {' > '.join(map(short, frames[-MAX_TITLE:]))}"
    one = f" k k{node['leaf']}" if node["leaf"] == node["last"] else ""
    return (
        f'<button class="box{one}" data-l="{node["leaf"]}" data-m="{node["last"]}" '
        f'aria-pressed="false" title="{text(title, 600)}">{text(label, 80)}'
        f"{f' (+{more})' if more > 0 else ''}</button>"
    )


def tree_text(document: Mapping[str, Any]) -> str:
    """The same as text, for those without a script: each frame once, the newest one last."""
    lines: list[str] = []
    for node in document["tree"]:
        if len(lines) >= MAX_LINES:
            lines.append("...")
            break
        indent = "  " * min(node["depth"], 30)
        lines.append(f"{indent}{node['count']} x {cut_ranks(node['ranks']) or 'unknown rank'}")
        lines += [f"{indent}  {text(frame, 200)}" for frame in node["frames"]]
        if node["undrawn"]:
            lines.append(f"{indent}  ... then {node['undrawn']} more ways, which are not drawn")
        if node["more"]:
            lines.append(f"{indent}  ... {node['more']} more frames")
    return "\n".join(lines)
