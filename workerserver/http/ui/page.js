"use strict";
// All text from the worker is put in as text, never as markup. The token lives in this variable.
let token = "";

const PERIOD_MS = 2000;
const MOST_SHOWN = 1000000; // characters of an answer
const FACTS = [
  ["rank", "rank"], ["world_size", "of"], ["job", "job"], ["host", "host"], ["pid", "process"],
  ["step", "step"], ["step_age_s", "age of the step"], ["step_median_s", "usual step"],
  ["uptime_s", "server up for"], ["gil_unavailable_s", "GIL away for"], ["cpu_s", "processor time"],
  ["rss_bytes", "memory"],
];
const at = (id) => document.getElementById(id);
let names = "";
let saved = null;

function shown(key, value) {
  if (value === null || value === undefined) return "-";
  if (key === "rss_bytes") return `${Math.round(value / 1048576)} MiB`;
  return key.endsWith("_s") ? `${value.toFixed(value < 10 ? 3 : 0)} s` : String(value);
}

async function ask(path, method) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, {
    method, headers, cache: "no-store", credentials: "omit", redirect: "error",
  });
  if (answer.status === 401) at("access").hidden = false;
  return answer;
}

function state(text, good) {
  at("state").textContent = text;
  at("state").className = good ? "ok" : "bad";
}

function facts(health) {
  const rows = FACTS.filter(([key]) => key in health).map(([key, title]) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    const cell = document.createElement("td");
    head.textContent = title;
    cell.textContent = shown(key, health[key]);
    cell.id = `fact-${key}`;
    row.append(head, cell);
    return row;
  });
  at("facts").replaceChildren(...rows);
  const rank = health.rank === null ? "worker" : `rank ${health.rank}`;
  at("title").textContent = document.title = health.job ? `${rank} of ${health.job}` : rank;
}

async function look() {
  try {
    const answer = await ask("/healthz", "GET");
    if (answer.status === 401) return state("needs a token", false);
    const text = await answer.text();
    if (!answer.ok) return state(text.slice(0, 200) || `HTTP ${answer.status}`, false);
    const health = JSON.parse(text);
    facts(health);
    at("access").hidden = true;
    state(health.status, health.status === "ok");
    const listing = await ask("/handler/", "GET");
    if (listing.ok) list(await listing.text());
  } catch (error) {
    state(`no answer: ${error.message}`, false);
  }
}

function list(text) {
  if (text === names) return; // so that what is typed into a field stays
  names = text;
  at("handlers").replaceChildren(...JSON.parse(text).map((name) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const field = document.createElement("input");
    button.type = "button";
    button.textContent = name;
    button.dataset.handler = name;
    field.placeholder = "key=value&key=value";
    field.setAttribute("aria-label", `parameters of ${name}`);
    button.addEventListener("click", () => call(name, field.value, button));
    item.append(button, field);
    return item;
  }));
}

async function call(name, parameters, button) {
  const query = parameters ? `?${parameters}` : "";
  at("answer").hidden = false;
  at("asked").textContent = name + query;
  at("outcome").textContent = "asking";
  at("body").textContent = "";
  button.disabled = true;
  try {
    const answer = await ask(`/handler/${encodeURIComponent(name)}${query}`, "POST");
    const bytes = await answer.arrayBuffer();
    const kind = answer.headers.get("Content-Type") || "";
    at("outcome").textContent = `HTTP ${answer.status}, ${bytes.byteLength} bytes, ${kind}`;
    at("body").textContent = readable(bytes, kind);
    keep(bytes, name);
  } catch (error) {
    at("outcome").textContent = `no answer: ${error.message}`;
  }
  button.disabled = false;
}

function readable(bytes, kind) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (kind.startsWith("application/json")) text = JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    if (text === undefined) return "This answer is no text: save it.";
  }
  return text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)}\n... save it to see all` : text;
}

function keep(bytes, name) {
  if (saved) URL.revokeObjectURL(saved);
  // Never a type that a browser would show: what a handler answers is not this page's.
  saved = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  at("save").href = saved;
  at("save").download = name;
}

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  look();
});

if (!window.isSecureContext) {
  at("note").hidden = false;
  at("note").textContent = "Over plain http a browser says only of localhost that a request comes " +
    "from this very page, so the worker refuses the buttons here. Use https, or forward the port " +
    "with ssh -L and open it as localhost.";
}

async function turn() {
  await look();
  setTimeout(turn, PERIOD_MS);
}
turn();
