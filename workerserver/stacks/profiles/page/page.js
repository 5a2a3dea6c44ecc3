"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [PARENT, NAME, FILE, TOTAL, OWN, ON, RANKS, MEDIAN, MOST, MOST_OF, HERE, OTHERS] =
    Array.from({ length: 12 }, (_, number) => number);
  const HEIGHT = 20;
  const NARROWEST = 0.0008; // of the graph's width
  const MAX_DRAWN = 4000;
  const compared = data.compared !== null;
  const nodes = data.nodes;
  const children = nodes.map(() => []);
  nodes.forEach((node, number) => {
    if (node[PARENT] >= 0) children[node[PARENT]].push(number);
  });
  const idle = document.getElementById("idle");
  // All threads that hardly run are below one call. They are hidden at first.
  const without = (field) => (data.idle > 0 && !idle.checked ? nodes[data.idle][field] : 0);
  const whole = (field) => nodes[0][field] - without(field);
  const value = (number, field) => (number === 0 ? whole(field) : nodes[number][field]);
  const weight = (number) =>
    compared ? Math.max(value(number, HERE), value(number, OTHERS)) : value(number, TOTAL);
  const shown = (number) => number !== data.idle || idle.checked;
  const graph = document.getElementById("graph");
  const about = document.getElementById("about");
  const find = document.getElementById("find");
  const reset = document.getElementById("reset");
  let zoomed = 0;

  const time = (micros) => {
    if (Math.abs(micros) >= 1e6) return (micros / 1e6).toFixed(2) + " s";
    return (micros / 1e3).toFixed(1) + " ms";
  };
  const share = (part, whole) => (whole > 0 ? ((100 * part) / whole).toFixed(1) + " %" : "-");

  const hue = (text) => {
    let hash = 0;
    for (let at = 0; at < text.length; at++) hash = (hash * 31 + text.charCodeAt(at)) >>> 0;
    return hash % 360;
  };
  const colour = (node) => {
    if (compared) {
      const by = (node[HERE] - node[OTHERS]) / Math.max(whole(HERE), whole(OTHERS), 1);
      const strength = Math.min(Math.sqrt(Math.abs(by)) * 1.4, 1);
      return `hsl(${by > 0 ? 8 : 212} ${Math.round(85 * strength)}% ${Math.round(88 - 28 * strength)}%)`;
    }
    const busy = node[TOTAL] > 0 ? node[ON] / node[TOTAL] : 0;
    return `hsl(${hue(node[FILE])} ${Math.round(12 + 55 * busy)}% 76%)`;
  };

  const tell = (number) => {
    const node = nodes[number];
    const lines = [["call", node[NAME]]];
    if (node[FILE]) lines.push(["file", node[FILE]]);
    if (compared) {
      const [here, others] = [value(number, HERE), value(number, OTHERS)];
      lines.push([data.compared, `${time(here)}, ${share(here, whole(HERE))}`]);
      lines.push(["others, median", `${time(others)}, ${share(others, whole(OTHERS))}`]);
    } else {
      const [total, on] = [value(number, TOTAL), value(number, ON)];
      lines.push(["time, all ranks", `${time(total)}, ${share(total, whole(TOTAL))}; own ${time(node[OWN])}`]);
      if (!data.cpuOnly) lines.push(["on a processor", share(on, total)]);
      if (number > 0) {
        lines.push(["a rank, median", `${time(node[MEDIAN])}; most: ${node[MOST_OF]}, ${time(node[MOST])}`]);
      }
    }
    lines.push(["ranks", node[RANKS]]);
    about.replaceChildren(
      ...lines.flatMap(([word, text]) => {
        const term = document.createElement("dt");
        term.textContent = word;
        const description = document.createElement("dd");
        description.textContent = text;
        return [term, description];
      })
    );
  };

  const box = (number, left, width, row, words) => {
    const node = nodes[number];
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = node[NAME];
    made.style.left = left * 100 + "%";
    made.style.width = width * 100 + "%";
    made.style.top = row * HEIGHT + "px";
    made.style.background = colour(node);
    if (words && node[NAME].toLowerCase().includes(words)) made.className = "found";
    made.addEventListener("mouseenter", () => tell(number));
    made.addEventListener("focus", () => tell(number));
    made.addEventListener("click", () => zoom(number));
    return made;
  };

  const draw = () => {
    const words = find.value.trim().toLowerCase();
    const above = [];
    for (let at = nodes[zoomed][PARENT]; at >= 0; at = nodes[at][PARENT]) above.unshift(at);
    const boxes = above.map((number, row) => {
      const made = box(number, 0, 1, row, words);
      made.classList.add("above");
      return made;
    });
    let rows = above.length + 1;
    const waiting = [[zoomed, 0, 1, above.length]];
    for (let next = 0; next < waiting.length && boxes.length < MAX_DRAWN; next++) {
      const [number, left, width, row] = waiting[next];
      boxes.push(box(number, left, width, row, words));
      rows = Math.max(rows, row + 1);
      const below = children[number].filter(shown);
      const sum = below.reduce((before, child) => before + weight(child), 0);
      const most = Math.max(weight(number), sum);
      let at = left;
      for (const child of below) {
        const part = most > 0 ? (width * weight(child)) / most : 0;
        if (part >= NARROWEST) waiting.push([child, at, part, row + 1]);
        at += part;
      }
    }
    graph.replaceChildren(...boxes);
    graph.style.height = rows * HEIGHT + "px";
    reset.disabled = zoomed === 0;
    const hits = words ? nodes.filter((node) => node[NAME].toLowerCase().includes(words)).length : 0;
    document.getElementById("found").textContent = words ? `${hits} call${hits === 1 ? "" : "s"}` : "";
  };
  const zoom = (number) => {
    zoomed = number;
    draw();
    tell(number);
  };

  document.getElementById("title").textContent = data.title;
  const notes = compared
    ? ["Red: more time than the others' median. Blue: less. As wide as the longer of both."]
    : ["As wide as the time in all ranks. Paler: waits."];
  notes.push("A click enlarges a call.");
  if (data.leftOut) notes.push(`${data.leftOut} short calls are left out.`);
  document.getElementById("note").textContent = notes.join(" ");
  reset.addEventListener("click", () => zoom(0));
  find.addEventListener("input", draw);
  idle.addEventListener("change", () => zoom(0));
  document.getElementById("withIdle").hidden = data.idle < 0;
  // Nothing else was recorded.
  idle.checked = data.idle > 0 && children[0].length === 1;
  zoom(0);
})();
