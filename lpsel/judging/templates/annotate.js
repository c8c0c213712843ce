
"use strict";
// Prompts and answers are HTML that lpsel rendered, with all HTML of the models as text; other texts are textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const VOTES = ["a", "b", "tie", "skip"];
const KEYS = { 1: "a", a: "a", arrowleft: "a", 2: "b", b: "b", arrowright: "b", 0: "tie", t: "tie", s: "skip" };
const element = (id) => document.getElementById(id);

let database = null; // stays null in a browser without storage
let annotator = "";
let votes = new Map(); // index of a pair: its vote and time
let order = []; // indices of pairs
let position = 0; // in `order`; at its end everything is done

function serialize() {
  const list = [...votes].sort(([i], [j]) => i - j).map(([pair, { vote, at }]) => ({ pair, vote, at }));
  return JSON.stringify({ page: data.page, annotator, votes: list }, null, 1);
}

function parse(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This is not a file of votes.");
  }
  const name = typeof file?.annotator === "string" ? file.annotator.trim() : "";
  if (!name || !Array.isArray(file.votes)) throw new Error("This is not a file of votes.");
  if (file.page !== data.page) throw new Error("The votes in this file are for another page.");
  for (const entry of file.votes) {
    const { pair, vote, at } = entry ?? {};
    const known = Number.isInteger(pair) && pair in data.pairs && VOTES.includes(vote);
    if (!known || typeof at !== "string" || Number.isNaN(Date.parse(at))) {
      throw new Error("This file of votes is damaged.");
    }
  }
  return [name, file.votes];
}

function merge(entries) {
  for (const { pair, vote, at } of entries) {
    if (!votes.has(pair) || Date.parse(votes.get(pair).at) < Date.parse(at)) votes.set(pair, { vote, at });
  }
}

// Each vote is a record of its own, so that two tabs never overwrite each other's votes.

const settled = (request) =>
  new Promise((done, failed) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });

async function connect() {
  const opening = indexedDB.open(`lpsel ${data.page}`, 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("votes", { keyPath: ["annotator", "pair"] });
    opening.result.createObjectStore("last"); // one record: the last annotator
  };
  database = await settled(opening);
  return settled(database.transaction("last").objectStore("last").get("annotator"));
}

async function load() {
  if (!database) return;
  const name = annotator;
  const own = IDBKeyRange.bound([name], [name, []]);
  try {
    const entries = await settled(database.transaction("votes").objectStore("votes").getAll(own));
    if (name === annotator) merge(entries);
  } catch {
    notice("Votes saved in this browser cannot be read.");
  }
}

function save(changed) {
  try {
    const transaction = database.transaction(["votes", "last"], "readwrite", { durability: "strict" });
    transaction.onabort = warnNotSaved;
    for (const pair of changed) transaction.objectStore("votes").put({ annotator, pair, ...votes.get(pair) });
    transaction.objectStore("last").put(annotator, "annotator");
    transaction.commit();
  } catch {
    warnNotSaved();
  }
}

const warnNotSaved = () =>
  notice("This browser does not allow the page to save your votes. Download them before you close it.");

function notice(text) {
  element("notice").textContent = text;
  element("notice").hidden = !text;
}

// Every annotator has their own fixed order: by FNV-1a of index, name and page.

function hash(text) {
  let value = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) value = Math.imul(value ^ byte, 0x01000193) >>> 0;
  return value;
}

async function begin(name, entries = []) {
  annotator = name;
  votes = new Map();
  const keyed = data.pairs.map((_, pair) => [hash(`${pair} ${name} ${data.page}`), pair]);
  order = keyed.sort(([x, i], [y, j]) => x - y || i - j).map(([, pair]) => pair);
  notice("");
  await load();
  if (name !== annotator) return; // the name has changed since
  merge(entries);
  save(entries.map(({ pair }) => pair));
  element("start").hidden = true;
  element("work").hidden = false;
  goTo(nextOpen(0));
}

function ask() {
  element("work").hidden = true;
  element("start").hidden = false;
  element("name").value = annotator;
  element("name").focus();
}

function nextOpen(from) {
  const without = (pair) => !votes.has(pair);
  const after = order.findIndex((pair, i) => i >= from && without(pair));
  if (after >= 0) return after;
  const before = order.findIndex(without);
  return before >= 0 ? before : order.length;
}

function cast(vote) {
  if (position >= order.length) return;
  votes.set(order[position], { vote, at: new Date().toISOString() });
  save([order[position]]);
  goTo(nextOpen(position + 1));
}

function move(step) {
  goTo(Math.min(Math.max(position + step, 0), order.length));
}

function goTo(index) {
  position = index;
  show();
  window.scrollTo(0, 0);
}

function show() {
  const done = position === order.length;
  element("pair").hidden = done;
  element("done").hidden = !done;
  element("annotator").textContent = annotator;
  element("bar").value = votes.size;
  element("download").classList.toggle("main", done);
  element("back").disabled = position === 0;
  element("next").disabled = done;
  const vote = done ? "" : votes.get(order[position])?.vote;
  for (const button of document.querySelectorAll("[data-vote]")) {
    button.disabled = done;
    button.setAttribute("aria-pressed", button.dataset.vote === vote);
  }
  if (done) {
    const skipped = [...votes.values()].filter((entry) => entry.vote === "skip").length;
    element("progress").textContent = `${votes.size} of ${order.length} done`;
    element("summary").textContent =
      `${votes.size - skipped} votes, ${skipped} skipped, ${order.length - votes.size} open.`;
  } else {
    const pair = data.pairs[order[position]];
    element("progress").textContent = `Pair ${position + 1} of ${order.length}, ${votes.size} done`;
    for (const part of ["prompt", "a", "b"]) element(part).innerHTML = pair[part];
  }
}

async function refresh() {
  if (element("work").hidden) return;
  await load(); // votes from other tabs
  show();
}

async function download() {
  await refresh();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([serialize()], { type: "application/json" }));
  link.download = `votes-${annotator.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "file"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

element("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = element("name").value.trim();
  if (name) begin(name);
  else notice("Enter your name first.");
});
element("earlier").addEventListener("change", async ({ target }) => {
  try {
    await begin(...parse(await target.files[0].text()));
  } catch (error) {
    notice(error.message);
  }
  target.value = "";
});
for (const button of document.querySelectorAll("[data-vote]")) {
  button.addEventListener("click", () => cast(button.dataset.vote));
}
element("back").addEventListener("click", () => move(-1));
element("next").addEventListener("click", () => move(1));
element("download").addEventListener("click", download);
element("leave").addEventListener("click", ask);
window.addEventListener("focus", refresh);
document.addEventListener("keydown", (event) => {
  const held = event.repeat || event.ctrlKey || event.altKey || event.metaKey;
  if (held || element("work").hidden) return;
  const key = event.key.toLowerCase();
  if (Object.hasOwn(KEYS, key)) cast(KEYS[key]);
  else if (key === "j") move(1);
  else if (key === "k") move(-1);
  else return;
  event.preventDefault();
});

connect()
  .catch(() => null) // a browser without storage
  .then((last) => (last ? begin(last) : ask()));
