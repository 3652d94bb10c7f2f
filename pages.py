"""What the pages of report.py are made of: HTML, CSS and JavaScript, without anything from outside.

A page is one file that works offline. Its data stand in it as JSON, and every text goes in as text: what a
model or a data set says is never read as HTML.
"""

import json

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>nanoR1V</title>
<style>
__STYLE__
</style>
<h1 id="name"></h1>
<div class="dim" id="facts"></div>
__MARKUP__
<main id="list"></main>
<button id="more">more</button>
<dialog id="viewer" aria-label="the whole picture">
  <div id="stage"><img id="whole" alt="" draggable="false"></div>
  <div id="about"></div>
  <div id="tools">
    <button id="smaller" aria-label="smaller">−</button>
    <button id="larger" aria-label="larger">+</button>
    <button id="fit">fit</button>
    <button id="pixels">1:1</button>
    <span id="zoom"></span>
    <button id="shut">close</button>
  </div>
</dialog>
<script type="text/json" id="data">__DATA__</script>
<script>
__PROGRAM__
</script>
</html>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --good: light-dark(#0072b2, #56b4e9);
  --bad: light-dark(#d55e00, #f08a3c);
  --ink: light-dark(#1f2937, #e5e7eb);
  --dim: light-dark(#6b7280, #9ca3af);
  --line: light-dark(#e2e5ea, #33383f);
  --card: light-dark(#fff, #1c2026);
  --page: light-dark(#f6f7f9, #121519);
  --mark: light-dark(#fff1c2, #4d4115);
}
body {
  font: 14px/1.45 system-ui, sans-serif;
  color: var(--ink);
  background: var(--page);
  max-width: 1160px;
  margin: 16px auto;
  padding: 0 12px;
}
h1 { margin: 0; font-size: 22px }
small, th { font-size: 12px }
img { border-radius: 6px; width: 100% }
a { color: inherit }
input, select, button { font: inherit; accent-color: var(--good) }
details, nav, article {
  background: var(--card);
  border: 1px solid var(--line);
  border-radius: 10px;
  padding: 10px 14px;
  margin: 10px 0;
}
.dim, th, label, .think { color: var(--dim) }
.answer { background: var(--mark) }

/* the controls stay in view */
nav {
  position: sticky;
  top: 0;
  z-index: 1;
  display: flex;
  flex-wrap: wrap;
  gap: 6px 18px;
  align-items: center;
}
#text { flex: 1; min-width: 150px }

/* a card: images on the left, problem and outputs on the right */
article { display: grid; grid: auto / 132px minmax(0, 1fr); gap: 14px; overflow-wrap: anywhere }
.pill { border: 1px solid var(--line); border-radius: 9px; padding: 0 8px; margin: 4px }
table { border-collapse: collapse; width: 100%; margin-top: 6px; font-variant-numeric: tabular-nums }
th, td {
  text-align: right;
  padding: 2px 8px;
  vertical-align: top;
  white-space: nowrap;
  font-weight: 400;
}
td { border-top: 1px solid var(--line) }
td:first-child { border-left: 4px solid; color: var(--c) }
th:last-child, td:last-child { text-align: left; width: 99% }

/* a small picture, a button that opens the viewer; there the whole one lies over the page */
.picture { width: 100%; padding: 0; margin-bottom: 6px; border: none; background: none; cursor: zoom-in }
.picture img { display: block; max-height: 420px; object-fit: contain; object-position: 0 0 }
.picture:focus-visible { outline: 3px solid var(--good) }
#viewer {
  width: 100vw;
  height: 100dvh;
  max-width: none;
  max-height: none;
  padding: 0;
  border: none;
  overflow: hidden;
  color: #e5e7eb;
  background: #15181d;
}
#viewer[open] { display: grid; grid: minmax(0, 1fr) auto / 100% }
#stage { position: relative; overflow: hidden; touch-action: none; cursor: grab }
#whole { position: absolute; width: auto; border-radius: 0; transform-origin: 0 0 }
#tools { position: absolute; top: 8px; right: 8px; display: flex; gap: 6px; align-items: center }
#tools button { min-width: 40px; min-height: 36px }
#zoom { min-width: 4em; text-align: right }
#zoom { background: #15181d }
#about { max-height: 22vh; overflow: auto; padding: 8px 12px; white-space: pre-wrap; overflow-wrap: anywhere }

/* a narrow window: pictures above the outputs, and a table's cells below each other, named */
@media (max-width: 700px) {
  nav { position: static }
  #tables { overflow-x: auto }
  article { grid: none / minmax(0, 1fr) !important }
  article table, article tr, article td { display: block; text-align: left; white-space: normal }
  article th { display: none }
  article tr { border-left: 4px solid; color: var(--c); margin-top: 8px }
  article td { border: none !important; display: inline-block; color: var(--ink); max-width: none !important }
  article td:last-child { display: block; width: auto }
  article td[data-name]::before { content: attr(data-name) " "; color: var(--dim); font-size: 12px }
}

/* a text: long pieces show four lines until it is clicked */
summary, .text { cursor: pointer }
.text { white-space: pre-wrap }
.text:not(.open) .long {
  overflow: hidden;
  display: -webkit-box;
  -webkit-box-orient: vertical;
  -webkit-line-clamp: 4;
}
"""

# the start of both programs
TOOLS = r"""
const $ = id => document.getElementById(id);
const D = JSON.parse($("data").textContent);

// text goes in as textContent: a completion is never read as HTML
function make(tag, className, text, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  element.append(...children);
  return element;
}

// a row of a table; cells: texts, or finished elements; head: their names, for narrow windows
function tableRow(tag, cells, head = []) {
  const row = make("tr", "", "", ...cells.map(cell => cell instanceof Node ? cell : make(tag, "", cell)));
  head.forEach((name, i) => row.children[i].dataset.name = name);
  return row;
}

// a picture of a row; a click or Enter shows it whole, with a text about it below
function pictureOf(src, about) {
  const image = make("img", "", "");
  image.src = src;
  image.decoding = "async";
  image.alt = "picture of the row";
  const button = make("button", "picture", "", image);
  button.title = "show the whole picture";
  button.onclick = () => openViewer(src, about);
  return button;
}

// the viewer: wheel, pinch, keys and buttons zoom; dragging and arrows move; Escape closes

const view = {x: 0, y: 0, scale: 1};  // where the corner of the picture is, and pixels per pixel of it
const fingers = new Map();  // pointers that are down
const stage = $("stage");
const whole = $("whole");

function place() {
  whole.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  $("zoom").textContent = Math.round(100 * view.scale) + " %";
}

// the point of the picture at (x, y) stays where it is
function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const scale = Math.min(Math.max(view.scale * factor, 0.05), 16);
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  place();
}

function fit() {
  const [width, height] = [whole.naturalWidth, whole.naturalHeight];
  view.scale = Math.min(stage.clientWidth / width, stage.clientHeight / height, 4);
  view.x = (stage.clientWidth - width * view.scale) / 2;
  view.y = (stage.clientHeight - height * view.scale) / 2;
  place();
}

function openViewer(src, about) {
  $("about").textContent = about;
  whole.src = src;
  $("viewer").showModal();
  whole.decode().then(fit);
}

// the point between two fingers moves the picture, their distance zooms
const mean = (list, key) => list.reduce((sum, event) => sum + event[key], 0) / list.length;
const middle = list => [mean(list, "clientX"), mean(list, "clientY")];
const spread = ([a, b]) => b ? Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1 : 1;

function moved(event) {
  if (!fingers.has(event.pointerId)) return;
  const before = [...fingers.values()];
  fingers.set(event.pointerId, event);
  const now = [...fingers.values()];
  const [from, to] = [middle(before), middle(now)];
  view.x += to[0] - from[0];
  view.y += to[1] - from[1];
  zoom(spread(now) / spread(before), ...to);
}

const keys = {
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  0: fit,
  1: () => zoom(1 / view.scale),
  ArrowLeft: () => { view.x += 80; place(); },
  ArrowRight: () => { view.x -= 80; place(); },
  ArrowUp: () => { view.y += 80; place(); },
  ArrowDown: () => { view.y -= 80; place(); },
};
$("viewer").onkeydown = event => {
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
};
stage.onwheel = event => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
};
stage.ondblclick = event => view.scale == 1 ? fit() : zoom(1 / view.scale, event.clientX, event.clientY);
stage.onpointerdown = event => {
  stage.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
};
stage.onpointermove = moved;
stage.onpointerup = stage.onpointercancel = event => fingers.delete(event.pointerId);
$("smaller").onclick = keys["-"];
$("larger").onclick = keys["+"];
$("fit").onclick = fit;
$("pixels").onclick = keys[1];
$("shut").onclick = () => $("viewer").close();

// the thinking dimmed, the answer marked; split() puts the matches at the odd places
const pieces = /(<think>[^]*?(?:<\/think>|(?=<answer>)|$)|<answer>[^]*?(?:<\/answer>|$)|\\boxed\{[^}]*\})/i;

function textOf(completion) {
  const text = make("div", "text", "");
  completion.split(pieces).forEach((piece, i) => {
    let kind = "";
    if (i % 2 == 1) kind = /^<think/i.test(piece) ? "think" : "answer";
    if (piece.length > 400) kind += " long";
    text.append(make("span", kind, piece));
  });
  text.onclick = () => {
    if (getSelection().isCollapsed) text.classList.toggle("open");
  };
  return text;
}

// the cards of the first hits; "more" shows again with a higher limit
function list(hits, card, limit, show, note) {
  $("list").replaceChildren(...hits.slice(0, limit).map(hit => card(hit)));
  $("more").hidden = hits.length <= limit;
  $("more").onclick = () => show(limit + 100);
  $("count").textContent = `${hits.length} match; ${note}`;
}

$("name").textContent = D.name;
$("facts").textContent = D.facts;
document.title = D.name;
"""

ROLLOUTS_MARKUP = """
<details open>
  <summary>Curves</summary>
  <img id="curves">
</details>
<nav>
  <input type="search" id="text" placeholder="find text or id">
  <select id="sort">
    <option value="step 1">first steps first
    <option value="step -1">last steps first
    <option value="mean -1">highest reward
    <option value="mean 1">lowest reward
    <option value="std -1">widest spread
    <option value="std 1">narrowest spread
  </select>
  <label>steps <input type="range" id="from"> <input type="range" id="to"> <span id="range"></span></label>
  <label><input type="checkbox" id="spread"> only groups with spread</label>
  <label><input type="checkbox" id="wrong"> only wrong completions</label>
  <small class="dim" id="count"></small>
</nav>
"""

ROLLOUTS_PROGRAM = r"""
const number = x => Number(x).toFixed(2);
const sum = list => list.reduce((a, b) => a + b, 0);
const steps = [...new Set(D.groups.map(group => group.step))];

for (const group of D.groups) {
  const rewards = group.completions.map(completion => completion.reward);
  const texts = group.completions.map(completion => completion.text);
  group.mean = sum(rewards) / rewards.length;
  const squares = sum(rewards.map(reward => (reward - group.mean) ** 2));
  group.std = Math.sqrt(squares / (rewards.length - 1));  // n - 1, as the trainer
  group.text = [group.id, group.problem, group.solution, ...texts].join("\n").toLowerCase();
}
const sorted = D.groups.flatMap(group => group.completions.map(c => c.reward)).sort((a, b) => a - b);
const low = sorted[0];
const high = sorted.at(-1);

// without a reward for accuracy: all but the highest reward
function wrong(completion) {
  if ("accuracy" in completion.parts) return completion.parts.accuracy < 1;
  return completion.reward < high;
}

function completionRow(completion, names, head) {
  const parts = names.map(name => number(completion.parts[name]));
  const advantage = (completion.advantage > 0 ? "+" : "") + number(completion.advantage);
  const tokens = (completion.finished ? "" : "cut off at ") + completion.tokens;
  const text = make("td", "", "", textOf(completion.text));
  const row = tableRow("td", [number(completion.reward), ...parts, advantage, tokens, text], head);
  const good = 100 * (completion.reward - low) / (high - low || 1);
  row.style.setProperty("--c", `color-mix(in oklab, var(--good) ${good}%, var(--bad))`);
  return row;
}

function card(group) {
  const names = Object.keys(group.completions[0].parts);
  const shown = group.completions.filter(completion => !$("wrong").checked || wrong(completion));
  const head = ["reward", ...names, "advantage", "tokens", "completion"];
  const table = make("table", "", "",
    tableRow("th", head),
    ...shown.map(completion => completionRow(completion, names, head)));
  const pills = [
    "answer " + group.solution,
    "mean reward " + number(group.mean),
    "spread " + number(group.std),
  ].map(pill => make("small", "pill", pill));
  const id = make("div", "", group.id);
  const about = group.problem + "\nanswer " + group.solution;
  const images = group.images.map(src => pictureOf(src, about));
  const left = make("div", "dim", "step " + group.step, ...images, id);
  const right = make("div", "", "", make("b", "", group.problem), ...pills, table);
  return make("article", "", "", left, right);
}

function show(limit = 30) {
  const words = $("text").value.toLowerCase();
  const from = steps[$("from").value];
  const to = steps[$("to").value];
  const hits = D.groups.filter(group =>
    group.step >= from && group.step <= to
    && group.text.includes(words)
    && (group.std > 0 || !$("spread").checked)
    && (group.completions.some(wrong) || !$("wrong").checked));
  const [key, sign] = $("sort").value.split(" ");
  hits.sort((a, b) => sign * (a[key] - b[key]) || a.step - b.step);
  list(hits, card, limit, show, `the page has ${D.groups.length} of ${D.total} groups, evenly spread`);
  $("range").textContent = `${from} to ${to}`;
}

$("from").max = steps.length - 1;
$("to").max = steps.length - 1;
$("from").value = 0;
$("to").value = steps.length - 1;
$("curves").src = D.curves;
document.querySelector("nav").oninput = () => show();
show();
"""

EVAL_STYLE = """
article { grid: auto / 210px minmax(0, 1fr) }
article td { font-size: 13px }
.problem, .options { white-space: pre-wrap }
.options { margin: 4px 0 }
#tables td, #tables th { width: auto }
#tables td:first-child, #tables th:first-child { text-align: left; color: inherit; border-left: none }
td.given { min-width: 60px; max-width: 220px; white-space: pre-wrap }
.yes { color: var(--good) }
.no { color: var(--bad) }
"""

EVAL_MARKUP = """
<details open>
  <summary>Figures</summary>
  <div id="tables"></div>
</details>
<nav>
  <input type="search" id="text" placeholder="find text, id or label">
  <select id="bench">
    <option value="">all benchmarks
  </select>
  <select id="model">
    <option value="">all checkpoints
  </select>
  <select id="verdict">
    <option value="">all outputs
    <option value="wrong">wrong
    <option value="right">right
    <option value="lost">wrong even if lenient
    <option value="untagged">right, but not in a tag
    <option value="disputed">ours and the published rule differ
    <option value="flipped">checkpoints differ
    <option value="regraded">ours and the recorded verdict differ
    <option value="cut">cut off
  </select>
  <small class="dim" id="count"></small>
</nav>
"""

EVAL_PROGRAM = r"""
const percent = share => share == null ? "–" : (100 * share).toFixed(1) + " %";
const interval = figure => percent(figure.interval[0]) + " to " + percent(figure.interval[1]);
const joined = facts => facts.filter(fact => fact).join("  ·  ");
const outputs = D.rows.flatMap(row => row.outputs);
const several = new Set(D.figures.map(figure => figure.model)).size > 1;
const published = D.figures.some(figure => figure.published != null);
const recorded = outputs.some(output => output.recorded != null);
const own = D.figures.map(figure => (figure.own_metric || {}).name).find(name => name);  // --metric
const ownTitle = own && own.split(":").pop();
const digits = value => value == null ? "–" : String(Number(value.toPrecision(4)));

// the tables: figures, checkpoints x benchmarks, categories

function table(head, rows) {
  const filled = rows.map(cells => tableRow("td", [...cells, ""]));
  return make("table", "", "", tableRow("th", [...head, ""]), ...filled);
}

function figuresTable() {
  const head = ["checkpoint", "benchmark", "rows", "accuracy", "95 % interval"];
  head.push("lenient", "published rule", "format", "skipped");
  if (own) head.push(ownTitle);
  const rows = D.figures.map(figure => {
    const accuracy = [percent(figure.accuracy), interval(figure)];
    const others = [figure.lenient, figure.published, figure.format].map(percent);
    const n = figure.of && figure.of != figure.n ? `${figure.n} of ${figure.of}` : figure.n;
    const cells = [figure.model, figure.bench, n, ...accuracy, ...others, figure.skipped];
    return own ? [...cells, digits((figure.own_metric || {}).mean)] : cells;
  });
  return table(head, rows);
}

function change(cell) {
  const points = (cell.difference < 0 ? "" : "+") + (100 * cell.difference).toFixed(1);
  return ` (${points}, p ${cell.p.toPrecision(2)})`;
}

function matrixTable(matrix) {
  const rows = matrix.models.map((model, i) => {
    const cells = matrix.benchmarks.map(bench => matrix.cells[model][bench]);
    return [model, ...cells.map(cell => percent(cell.accuracy) + (i > 0 ? change(cell) : ""))];
  });
  return table(["accuracy (change in points, p)", ...matrix.benchmarks], rows);
}

function categoryTable(figure, name) {
  const rows = Object.entries(figure.categories[name]).map(([value, found]) =>
    [value, found.n, percent(found.accuracy), interval(found)]);
  const summary = make("summary", "", joined([figure.model, figure.bench, "by " + name]));
  return make("details", "", "", summary, table([name, "rows", "accuracy", "95 % interval"], rows));
}

$("tables").append(figuresTable());
if (D.matrix) $("tables").append(matrixTable(D.matrix));
for (const figure of D.figures) {
  for (const name of Object.keys(figure.categories)) $("tables").append(categoryTable(figure, name));
}

// the rows

for (const row of D.rows) {
  const texts = row.outputs.map(output => output.text);
  const labels = Object.values(row.labels || {});
  const all = [row.id, row.problem, row.solution, ...(row.options || []), ...labels, ...texts];
  row.text = all.join("\n").toLowerCase();
  row.flipped = new Set(row.outputs.map(output => output.accuracy)).size > 1;
}

const right = verdict => verdict > 0.5;  // also of the tasks whose verdicts lie between 0 and 1
const differ = (a, b) => a != null && b != null && right(a) != right(b);
const verdicts = {
  "": output => true,
  wrong: output => !right(output.accuracy),
  right: output => right(output.accuracy),
  lost: output => !right(output.lenient),
  untagged: output => right(output.lenient) && !right(output.accuracy),
  disputed: output => differ(output.published, output.lenient),
  regraded: output => differ(output.recorded, output.lenient),
  flipped: output => true,  // a question about the row; see show
  cut: output => output.finished === false,
};

function fits(output) {
  const model = $("model").value;
  return (!model || output.model == model) && verdicts[$("verdict").value](output);
}

function mark(verdict) {
  if (verdict == null) return make("td", "no", "");
  const sign = {1: "✓", 0: "✗"}[verdict] ?? verdict.toFixed(2);
  return make("td", right(verdict) ? "yes" : "no", sign);
}

function outputRow(output, head) {
  const cells = [];
  if (several) cells.push(output.model);
  cells.push(mark(output.accuracy), mark(output.lenient));
  if (published) cells.push(mark(output.published));
  if (recorded) cells.push(mark(output.recorded));
  if (own) cells.push(digits(output[own]));
  cells.push(make("td", "given", output.answer ?? "none"));
  cells.push((output.finished === false ? "cut off at " : "") + (output.tokens ?? ""));
  cells.push(make("td", "", "", textOf(output.text)));
  const row = tableRow("td", cells, head);
  row.style.setProperty("--c", right(output.accuracy) ? "var(--good)" : "var(--bad)");
  return row;
}

function outputTable(row) {
  const head = ["tag", "lenient"];
  if (several) head.unshift("checkpoint");
  if (published) head.push("rule");
  if (recorded) head.push("recorded");
  if (own) head.push(ownTitle);
  head.push("answer", "tokens", "output");
  const shown = row.outputs.filter(fits).map(output => outputRow(output, head));
  return make("table", "", "", tableRow("th", head), ...shown);
}

function card(row) {
  const about = row.problem + "\nreference " + row.solution;
  const images = row.images.map((src, i) => pictureOf(src, joined([about, (row.notes || [])[i]])));
  // a picture that is too large for the page
  for (const [i, file] of (row.files || []).entries()) {
    if (!file) continue;
    const link = make("a", "", "open the file");
    link.href = file;
    images[i] = make("div", "", "", images[i], link);
  }
  const left = make("div", "dim", "", ...images, make("div", "", joined([row.bench, row.id])));
  const letters = (row.options || []).map((option, i) => String.fromCharCode(65 + i) + ". " + option);
  const labels = Object.entries(row.labels || {}).map(([name, value]) => name + " " + value);
  const pills = ["reference " + row.solution, row.task, ...labels].map(pill => make("small", "pill", pill));
  const right = make("div", "", "",
    make("b", "problem", row.problem),
    make("div", "options", letters.join("\n")),
    ...pills,
    outputTable(row));
  return make("article", "", "", left, right);
}

function show(limit = 30) {
  const words = $("text").value.toLowerCase();
  const bench = $("bench").value;
  const flipped = $("verdict").value == "flipped";
  const hits = D.rows.filter(row =>
    (!bench || row.bench == bench)
    && row.text.includes(words)
    && (!flipped || row.flipped)
    && row.outputs.some(fits));
  list(hits, card, limit, show, `the page has ${D.rows.length} of ${D.total} rows`);
}

for (const id of ["bench", "model"]) {
  const names = [...new Set(D.figures.map(figure => figure[id]))];
  $(id).hidden = names.length < 2;
  for (const name of names) {
    const option = make("option", "", name);
    option.value = name;
    $(id).append(option);
  }
}
document.querySelector("nav").oninput = () => show();
show();
"""


def fill(style: str, markup: str, program: str, content: dict) -> str:
    """The page with its data."""
    # in JSON '<' stands in strings only, and without it no text can end the script element
    data = json.dumps(content).replace("<", "\\u003c")
    page = PAGE.replace("__STYLE__", style)
    page = page.replace("__MARKUP__", markup)
    page = page.replace("__PROGRAM__", TOOLS + program)
    return page.replace("__DATA__", data)  # last, since a text may hold one of the other names
