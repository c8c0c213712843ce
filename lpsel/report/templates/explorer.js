"use strict";
const element = (id) => document.getElementById(id);
const PER_PAGE = matchMedia("(max-width: 800px)").matches ? 10 : 25;
const COUNT = new Intl.NumberFormat("en-US");
const FORMULA = /^[=+\-@\t\r\n]/; // what a spreadsheet would take for a formula

let data, columns, keys; // of the page: see `page_data` in explorer.py
const MARGIN = { l: 56, r: 12, t: 8, b: 44 }; // pixels around the points, for the axes
const NEAR = 14; // pixels
const texts = []; // of the rows, in lower case, for the search
// The rows in the list, in its order; those brushed; the row that the list is at; the view with its axes and their range.
const state = { order: [], page: 0, sort: "rank", down: false, brushed: null, focused: null };

async function inflated(id) {
  const characters = atob(element(id).textContent);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = characters.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
}

function make(tag, text, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  made.textContent = text;
  return made;
}

function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? COUNT.format(value) : String(Number(value.toPrecision(4)));
}

function counted(n) {
  return `${COUNT.format(n)} ${n === 1 ? "row" : "rows"}`;
}

// What the points are colored by: labels with their colors, and the place of a row's label.
function colorKeys() {
  const [muted, series] = ["--quiet", Array.from({ length: data.series }, (_, i) => `--series-${i}`)];
  const made = {};
  const { selected, reason, score, cluster } = columns;
  const kinds = reason ? ["not selected", "not selectable", "selected"] : ["not selected", "selected"];
  made.selection = {
    labels: kinds,
    colors: reason ? [muted, series[1], series[0]] : [muted, series[0]],
    at: (row) => (selected[row] ? kinds.length - 1 : reason && reason[row] !== null ? 1 : 0),
  };
  if (score) {
    made[data.labels.score] = {
      labels: ["none", ...data.tenths.map(() => ""), ""],
      colors: [muted, ...data.scale],
      at: (row) => {
        const tenth = data.tenths.findIndex((edge) => score[row] <= edge);
        return score[row] === null ? 0 : 1 + (tenth < 0 ? data.tenths.length : tenth);
      },
      edges: data.tenths,
    };
  }
  if (cluster) {
    const all = [...new Set(cluster)].filter((name) => name !== null && name >= 0).sort((a, b) => a - b);
    const place = new Map(all.map((name, i) => [name, 1 + (i % series.length)]));
    const few = all.length <= series.length;
    made.cluster = {
      labels: ["none", ...series.slice(0, all.length).map((_, i) => (few ? `cluster ${all[i]}` : ""))],
      colors: [muted, ...series],
      at: (row) => place.get(cluster[row]) ?? 0,
      note: few ? "" : `${COUNT.format(all.length)} clusters share ${series.length} colors`,
    };
  }
  if (reason) {
    const all = [...new Set(reason)].filter((name) => name !== null);
    made.reason = {
      labels: ["selectable", ...all],
      colors: [muted, ...all.map((_, i) => series[(i + 1) % series.length])],
      at: (row) => all.indexOf(reason[row]) + 1,
    };
  }
  return made;
}

function textOf(row) {
  texts[row] ??= `${columns.prompt[row]}\n${columns.response[row]}`.toLowerCase();
  return texts[row];
}

// Tests of a row, one for each filter that is set.
function filters() {
  const tests = [];
  const value = (id) => element(id)?.value.trim() ?? "";
  const words = value("search").toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length) tests.push((row) => words.every((word) => textOf(row).includes(word)));
  if (value("selection")) tests.push((row) => String(columns.selected[row]) === value("selection"));
  if (value("reason")) tests.push((row) => columns.reason[row] === value("reason"));
  const spans = [...value("cluster").matchAll(/(-?\d+)(?:\s*-\s*(\d+))?/g)].map((m) => [+m[1], +(m[2] ?? m[1])]);
  if (spans.length) {
    tests.push((row) => columns.cluster[row] !== null
      && spans.some(([low, high]) => low <= columns.cluster[row] && columns.cluster[row] <= high));
  }
  for (const input of document.querySelectorAll("input[data-end]")) {
    if (input.value === "" || Number.isNaN(input.valueAsNumber)) continue;
    const [column, limit, sign] = [columns[input.dataset.column], input.valueAsNumber, input.dataset.end === "to" ? -1 : 1];
    tests.push((row) => column[row] !== null && sign * column[row] >= sign * limit);
  }
  return tests;
}

function update() {
  const tests = filters();
  state.order = [];
  for (let row = 0; row < columns.index.length; row += 1) {
    if ((!state.brushed || state.brushed.has(row)) && tests.every((passes) => passes(row))) state.order.push(row);
  }
  state.page = 0;
  sort();
  recolor();
  const n = state.order.length;
  const selected = state.order.filter((row) => columns.selected[row]).length;
  const share = n ? ` (${shown((100 * selected) / n)}%)` : "";
  element("count").textContent = `${COUNT.format(n)} of ${counted(columns.index.length)}, `
    + `${COUNT.format(selected)} selected${share}`;
  for (const id of ["csv", "jsonl"]) element(id).disabled = n === 0;
}

function sort() {
  const column = columns[state.sort];
  const sign = state.down ? -1 : 1;
  state.order.sort((a, b) => {
    const [x, y] = [column[a], column[b]];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return sign * (x - y) || a - b;
  });
  for (const button of document.querySelectorAll("#rows thead button")) {
    const head = button.parentElement;
    if (button.dataset.column === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  list();
}

// Where the rows are on the axes of the current view (their logarithms on a logarithmic axis), NaN if nowhere.
function chooseView(number) {
  const view = data.views[number];
  const along = ({ column, log }) => Float64Array.from(columns[column], (value) => {
    if (value === null) return NaN;
    return log ? Math.log10(Math.max(value, 1)) : value;
  });
  const axes = { x: along(view.x), y: along(view.y) };
  const missing = axes.x.reduce((n, x, row) => n + (x + axes.y[row] !== x + axes.y[row] ? 1 : 0), 0);
  const outside = axes.x.reduce((n, x, row) => n + (x < view.x.range[0] || x > view.x.range[1]
    || axes.y[row] < view.y.range[0] || axes.y[row] > view.y.range[1] ? 1 : 0), 0);
  Object.assign(state, { view, axes, range: { x: [...view.x.range], y: [...view.y.range] } });
  const notes = [[missing, "without a value here."], [outside, "outside the axes: double-click to see all."]];
  element("outside").textContent = notes.filter(([n]) => n).map(([n, what]) => `${counted(n)} ${what}`).join(" ");
}

// The rows by color, those that are filtered out first: what `paint` draws, in this order.
function recolor() {
  const key = keys[element("color").value];
  const groups = key.labels.map(() => []);
  const listed = new Uint8Array(columns.index.length);
  for (const row of state.order) {
    listed[row] = 1;
    groups[key.at(row)].push(row);
  }
  const others = [...listed.keys()].filter((row) => !listed[row]);
  const opacity = listed.length > 20000 ? 130 : 190; // of 255
  state.layers = [
    { rows: others, color: "--quiet", opacity: 30 },
    ...groups.map((rows, i) => ({ rows, color: key.colors[i], opacity })),
  ];
  legend(key, groups);
  paint();
}

// The points, pixel by pixel: 50,000 circles or rectangles of the canvas take a tenth of a second, this a few
// milliseconds. Where points overlap, the color is that of the last one, and the opacity their sum.
function paint() {
  const frame = element("frame");
  const [width, height] = [frame.clientWidth - MARGIN.l - MARGIN.r, frame.clientHeight - MARGIN.t - MARGIN.b];
  const canvas = element("points");
  const ratio = window.devicePixelRatio;
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  Object.assign(canvas.style, { left: `${MARGIN.l}px`, top: `${MARGIN.t}px`, width: `${width}px`, height: `${height}px` });
  const pixels = (values, [low, high], length) => values.map((value) => ((value - low) / (high - low)) * length);
  state.x = pixels(state.axes.x, state.range.x, width);
  state.y = pixels(state.axes.y, state.range.y, height).map((y) => height - y);

  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const colors = new Uint32Array(image.data.buffer);
  const style = getComputedStyle(document.documentElement);
  const n = columns.index.length;
  const radius = (n > 20000 ? 1.2 : n > 2000 ? 2 : 3) * ratio;
  const reach = Math.ceil(radius);
  const disk = []; // the pixels of a point, by their distance to its center in the image, and how much of them it covers
  for (let down = -reach; down <= reach; down += 1) {
    for (let right = -reach; right <= reach; right += 1) {
      const covered = Math.min(1, radius + 0.5 - Math.hypot(down, right));
      if (covered > 0) disk.push([down * canvas.width + right, covered]);
    }
  }
  for (const { rows, color, opacity } of state.layers) {
    const hex = color.startsWith("--") ? style.getPropertyValue(color).trim() : color;
    const [red, green, blue] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
    const bytes = (blue << 16) | (green << 8) | red;
    const dot = disk.map(([offset, covered]) => [offset, Math.round(covered * opacity)]);
    for (const row of rows) {
      const x = Math.round(state.x[row] * ratio);
      const y = Math.round(state.y[row] * ratio);
      if (x >= reach && x < canvas.width - reach && y >= reach && y < canvas.height - reach) {
        const center = y * canvas.width + x;
        for (const [offset, added] of dot) {
          colors[center + offset] = (Math.min(255, (colors[center + offset] >>> 24) + added) << 24) | bytes;
        }
      }
    }
  }
  context.putImageData(image, 0, 0);
  ring(context, ratio);
}

// Around the row that the list is at.
function ring(context, ratio) {
  if (state.focused === null) return;
  Object.assign(context, { strokeStyle: getComputedStyle(document.body).color, lineWidth: 2.5 * ratio });
  context.beginPath();
  context.arc(state.x[state.focused] * ratio, state.y[state.focused] * ratio, 9 * ratio, 0, 7);
  context.stroke();
}

// The axes and what dragging does are plotly's, around an empty trace.
function axes() {
  if (!window.Plotly) return;
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
  const { view, range } = state;
  const axis = ({ title, log }, [low, high]) => ({
    title: { text: title, standoff: 8 }, type: log ? "log" : "linear", range: [low, high], gridcolor: line, zeroline: false,
    ...(log ? { dtick: 1 } : { nticks: 7 }),
  });
  const ends = [Math.min(view.x.range[0], view.y.range[0]), Math.max(view.x.range[1], view.y.range[1])];
  const unchanged = { type: "line", x0: ends[0], y0: ends[0], x1: ends[1], y1: ends[1], layer: "below", line: { color: line, width: 2 } };
  const pressed = document.querySelector("#tools [aria-pressed=true]");
  const layout = {
    xaxis: axis(view.x, range.x), yaxis: axis(view.y, range.y), margin: MARGIN, shapes: view.diagonal ? [unchanged] : [],
    dragmode: pressed ? pressed.dataset.mode : false, hovermode: false, showlegend: false, selections: [],
    paper_bgcolor: "#0000", plot_bgcolor: "#0000", font: { color: ink, family: "inherit", size: 12 },
    newselection: { line: { color: ink, width: 1 } },
  };
  const nothing = [{ type: "scatter", mode: "markers", x: [null], y: [null] }];
  Plotly.react("plot", nothing, layout, { displayModeBar: false, responsive: true, doubleClick: false });
}

function zoomTo(range) {
  state.range = range;
  axes();
  paint();
}

// Between the initial range and all points.
function rescale() {
  const { x, y } = state.view;
  const isInitial = String([state.range.x, state.range.y]) === String([x.range, y.range]);
  const ends = (values) => {
    const known = values.filter((value) => !Number.isNaN(value)).sort();
    const margin = 0.03 * (known.at(-1) - known[0]) || 0.5;
    return [known[0] - margin, known.at(-1) + margin];
  };
  zoomTo(isInitial ? { x: ends(state.axes.x), y: ends(state.axes.y) } : { x: [...x.range], y: [...y.range] });
}

// Of the rows that pass the filters, the one whose point is nearest to a place on the screen, null if none is near.
function nearest({ clientX, clientY }) {
  const box = element("points").getBoundingClientRect();
  let [best, at] = [NEAR ** 2, null];
  for (const row of state.order) {
    const distance = (state.x[row] - clientX + box.left) ** 2 + (state.y[row] - clientY + box.top) ** 2;
    if (distance < best) [best, at] = [distance, row];
  }
  return at;
}

// The rows in a box or lasso, of those that pass the filters.
function rowsIn({ range, lassoPoints }) {
  const { view, axes: { x, y } } = state;
  const along = ({ log }, values) => values.map((value) => (log ? Math.log10(value) : value));
  if (range) {
    const [left, right] = along(view.x, range.x).sort((a, b) => a - b);
    const [bottom, top] = along(view.y, range.y).sort((a, b) => a - b);
    return state.order.filter((row) => left <= x[row] && x[row] <= right && bottom <= y[row] && y[row] <= top);
  }
  const [xs, ys] = [along(view.x, lassoPoints.x), along(view.y, lassoPoints.y)];
  const isInside = (row) => { // an odd number of sides to the right
    let inside = false;
    for (let i = 0, j = xs.length - 1; i < xs.length; j = i, i += 1) {
      const crosses = ys[i] > y[row] !== ys[j] > y[row];
      if (crosses && x[row] < xs[i] + ((xs[j] - xs[i]) * (y[row] - ys[i])) / (ys[j] - ys[i])) inside = !inside;
    }
    return inside;
  };
  return state.order.filter(isInside);
}

function legend(key, groups) {
  const part = (text, color, className = "") => {
    const made = make("span", text, { className });
    made.style.setProperty("--dot", color.startsWith("--") ? `var(${color})` : color);
    return made;
  };
  const parts = [];
  if (key.edges) {
    parts.push(part(`tenths of the rows: ${shown(key.edges[0])} or less`, "", "plain"));
    for (let i = 0; i <= key.edges.length; i += 1) parts.push(part("", key.colors[i + 1], "step"));
    parts.push(part(`above ${shown(key.edges.at(-1))}`, "", "plain"));
  }
  if (key.note) parts.push(part(key.note, "", "plain"));
  groups.forEach((rows, i) => {
    if (key.labels[i] && (rows.length || key.labels[i] !== "none")) parts.push(part(`${key.labels[i]} ${COUNT.format(rows.length)}`, key.colors[i]));
  });
  element("legend").replaceChildren(...parts);
}

// A page of the list. Its first column holds buttons, of which Tab reaches one and arrow keys the others.
function list() {
  const pages = Math.max(Math.ceil(state.order.length / PER_PAGE), 1);
  const start = state.page * PER_PAGE;
  const rows = state.order.slice(start, start + PER_PAGE);
  const names = Object.keys(data.labels).filter((name) => name !== "index" && name !== "reason");
  const body = document.querySelector("#rows tbody");
  body.replaceChildren(...rows.map((row, i) => {
    const line = make("tr", "", { className: columns.selected[row] ? "chosen" : "" });
    const button = make("button", columns.index[row], { type: "button", tabIndex: i ? -1 : 0 });
    button.setAttribute("aria-label", `Row ${columns.index[row]}`);
    button.setAttribute("aria-expanded", "false");
    button.dataset.row = row;
    line.append(make("td", ""));
    line.firstChild.append(button);
    for (const name of names) {
      const cell = make("td", shown(columns[name][row]), { className: "n" });
      cell.dataset.label = data.labels[name];
      line.append(cell);
    }
    line.append(make("td", columns.selected[row] ? "selected" : (columns.reason?.[row] ?? "")));
    if (columns.prompt) {
      const words = make("td", "", { className: "words" });
      words.append(make("div", columns.prompt[row], { className: "text" }));
      words.append(make("div", columns.response[row], { className: "text response" }));
      line.append(words);
    }
    return line;
  }));
  const total = state.order.length;
  element("pages").textContent = total
    ? `${COUNT.format(start + 1)} to ${COUNT.format(start + rows.length)} of ${COUNT.format(total)}` : "No rows match.";
  element("previous").disabled = state.page === 0;
  element("next").disabled = state.page === pages - 1;
}

function turn(pages) {
  state.page += pages;
  list();
}

function open(button, isOpen) {
  button.setAttribute("aria-expanded", String(isOpen));
  button.closest("tr").classList.toggle("open", isOpen);
}

// Moves in the list with the arrow keys, over the ends of pages too.
function move(event) {
  const buttons = [...document.querySelectorAll("#rows tbody button")];
  const from = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: from + 1, ArrowUp: from - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (to === undefined || from < 0) return;
  event.preventDefault();
  let target = buttons[to];
  if (to === buttons.length && !element("next").disabled) {
    turn(1);
    target = document.querySelector("#rows tbody button");
  } else if (to < 0 && !element("previous").disabled) {
    turn(-1);
    target = [...document.querySelectorAll("#rows tbody button")].pop();
  }
  if (!target) return;
  for (const button of document.querySelectorAll("#rows tbody button")) button.tabIndex = button === target ? 0 : -1;
  target.focus();
}

function focusOn(row) {
  state.focused = row;
  paint();
}

function tip(event) {
  const row = nearest(event);
  const box = element("tip");
  box.hidden = row === null;
  if (row === null) return;
  const facts = Object.entries(data.labels).slice(1).map(([name, label]) => [label, shown(columns[name][row])]);
  box.replaceChildren(
    make("strong", `Row ${columns.index[row]}${columns.selected[row] ? ", selected" : ""}`), make("br", ""),
    make("span", facts.filter(([, value]) => value).map((pair) => pair.join(" ")).join(" · ")),
    ...(columns.prompt ? [make("p", columns.prompt[row]), make("p", columns.response[row], { className: "response" })] : []),
  );
  const [x, y, room] = [MARGIN.l + state.x[row], MARGIN.t + state.y[row], element("frame").clientWidth - box.offsetWidth];
  box.style.left = `${x + NEAR <= room ? x + NEAR : Math.max(0, Math.min(x - box.offsetWidth - NEAR, room))}px`;
  box.style.top = `${y + NEAR}px`;
}

function brush(rows) {
  if (!rows) state.focused = null;
  state.brushed = rows && new Set(rows);
  update();
}

function exported() {
  const names = [...Object.keys(data.labels), ...["id", "selected", "prompt", "response"].filter((name) => columns[name])];
  return state.order.map((row) => Object.fromEntries(names.map((name) => [name, columns[name][row]])));
}

function asCsv(rows) {
  const cell = (value) => {
    const text = value === null ? "" : String(value);
    const inert = typeof value === "string" && FORMULA.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(inert) ? `"${inert.replaceAll('"', '""')}"` : inert;
  };
  return [Object.keys(rows[0]), ...rows.map(Object.values)].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

function download(ending, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  link.download = `${data.name.replace(/[^\p{L}\p{N}.-]+/gu, "-")}-rows.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function clear() {
  for (const input of document.querySelectorAll("aside input, aside select")) input.value = "";
  brush(null);
}

function press(button, others) {
  for (const other of others) other.setAttribute("aria-pressed", String(other === button));
}

function controls() {
  const views = data.views.map(({ name }) => make("button", name, { type: "button" }));
  element("views").replaceChildren(...views);
  views.forEach((button, i) => button.addEventListener("click", () => {
    press(button, views);
    chooseView(i);
    axes();
    paint();
  }));
  press(views[0], views);
  element("color").replaceChildren(...Object.keys(keys).map((name) => make("option", name)));
  element("color").addEventListener("change", recolor);

  const tools = [...document.querySelectorAll("#tools button")];
  const touch = matchMedia("(pointer: coarse)").matches; // there, dragging scrolls the page until a tool is chosen
  press(touch ? null : tools[0], tools);
  for (const button of tools) {
    button.addEventListener("click", () => {
      const isOn = button.getAttribute("aria-pressed") === "true";
      press(isOn ? null : button, tools);
      axes();
    });
  }
  element("reset").addEventListener("click", () => zoomTo({ x: [...state.view.x.range], y: [...state.view.y.range] }));

  let waiting = 0;
  document.querySelector("aside").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 150);
  });
  element("clear").addEventListener("click", clear);
  element("csv").addEventListener("click", () => download("csv", asCsv(exported())));
  element("jsonl").addEventListener("click", () => {
    download("jsonl", exported().map((row) => `${JSON.stringify(row)}\n`).join(""));
  });

  element("previous").addEventListener("click", () => turn(-1));
  element("next").addEventListener("click", () => turn(1));
  for (const button of document.querySelectorAll("#rows thead button")) {
    button.addEventListener("click", () => {
      state.down = state.sort === button.dataset.column && !state.down;
      state.sort = button.dataset.column;
      state.page = 0;
      sort();
    });
  }
  const body = document.querySelector("#rows tbody");
  body.addEventListener("keydown", move);
  body.addEventListener("focusin", ({ target }) => focusOn(Number(target.dataset.row)));
  body.addEventListener("focusout", ({ relatedTarget }) => body.contains(relatedTarget) || focusOn(null));
  body.addEventListener("click", ({ target }) => {
    const button = target.closest("tr").querySelector("button");
    if (getSelection().isCollapsed) open(button, button.getAttribute("aria-expanded") !== "true");
  });
  document.addEventListener("keydown", ({ key }) => key === "Escape" && state.brushed && brush(null));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { axes(); paint(); });
}

function watchPoints() {
  const frame = element("frame");
  new ResizeObserver(paint).observe(frame);
  frame.addEventListener("pointermove", tip);
  frame.addEventListener("pointerleave", ({ pointerType }) => {
    if (pointerType === "mouse") element("tip").hidden = true; // a finger leaves when it is lifted
  });
  let pressed = { clientX: 0, clientY: 0 };
  frame.addEventListener("pointerdown", (event) => { pressed = event; }, true);
  frame.addEventListener("dblclick", rescale);
  frame.addEventListener("pointerup", (event) => { // plotly makes clicks of its own
    if (Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) > 4) return; // the end of a drag
    tip(event);
    const row = nearest(event);
    if (row === null && state.brushed) brush(null);
    if (row === null || (state.brushed?.size === 1 && state.brushed.has(row))) return;
    state.focused = row;
    brush([row]);
    open(document.querySelector("#rows tbody button"), true);
  });
}

function watchAxes() {
  const plot = element("plot");
  const follow = (event) => {
    for (const name of ["x", "y"]) {
      const [low, high] = [0, 1].map((end) => event[`${name}axis.range[${end}]`]);
      if (low !== undefined) state.range[name] = [low, high];
    }
    paint();
  };
  plot.on("plotly_relayout", follow);
  plot.on("plotly_relayouting", (event) => plot.layout.dragmode === "pan" && follow(event));
  plot.on("plotly_selected", (event) => {
    if (!event?.range && !event?.lassoPoints) return;
    brush(rowsIn(event));
    axes(); // without the outline
  });
}

async function start() {
  const library = inflated("plotly");
  data = JSON.parse(await inflated("data"));
  columns = data.columns;
  if (!columns[state.sort]) state.sort = "index";
  keys = colorKeys();
  controls();
  chooseView(0);
  update();
  watchPoints();
  element("loading").hidden = true;
  const script = make("script", await library);
  await new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); }); // the points are on the screen
  document.head.append(script);
  axes();
  watchAxes();
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  element("loading").hidden = false;
  element("loading").textContent = `This browser cannot show the page: ${error.message}`;
});
