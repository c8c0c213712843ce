
"use strict";
// What models wrote reaches the page as textContent only.

const data = JSON.parse(document.getElementById("data").textContent);
const VOTES = ["a", "b", "tie", "skip"];
const KEYS = { 1: "a", a: "a", arrowleft: "a", 2: "b", b: "b", arrowright: "b", 0: "tie", t: "tie", s: "skip" };
const element = (id) => document.getElementById(id);

let database = null; // stays null in a browser that keeps nothing
let annotator = "";
let votes = new Map(); // number of a pair: its vote, and when
let order = []; // numbers of pairs
let place = 0; // in `order`; past its end all is done

function written() {
  const list = [...votes].sort(([i], [j]) => i - j).map(([pair, { vote, at }]) => ({ pair, vote, at }));
  return JSON.stringify({ page: data.page, annotator, votes: list }, null, 1);
}

function read(text) {
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

function merge(found) {
  for (const { pair, vote, at } of found) {
    if (!votes.has(pair) || Date.parse(votes.get(pair).at) < Date.parse(at)) votes.set(pair, { vote, at });
  }
}

// The browser keeps each vote as a record of its own, so that two tabs never write over each other's.

const settled = (request) =>
  new Promise((done, failed) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });

async function connect() {
  const opening = indexedDB.open(`lpsel ${data.page}`, 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("votes", { keyPath: ["annotator", "pair"] });
    opening.result.createObjectStore("last"); // its one record: who was here last
  };
  database = await settled(opening);
  return settled(database.transaction("last").objectStore("last").get("annotator"));
}

async function recall() {
  if (!database) return;
  const name = annotator;
  const theirs = IDBKeyRange.bound([name], [name, []]);
  try {
    const found = await settled(database.transaction("votes").objectStore("votes").getAll(theirs));
    if (name === annotator) merge(found);
  } catch {
    notice("Earlier votes in this browser cannot be read.");
  }
}

function keep(changed) {
  try {
    const transaction = database.transaction(["votes", "last"], "readwrite", { durability: "strict" });
    transaction.onabort = unkept;
    for (const pair of changed) transaction.objectStore("votes").put({ annotator, pair, ...votes.get(pair) });
    transaction.objectStore("last").put(annotator, "annotator");
    transaction.commit();
  } catch {
    unkept();
  }
}

const unkept = () =>
  notice("This browser does not let the page keep your votes: download them before you close it.");

function notice(text) {
  element("notice").textContent = text;
  element("notice").hidden = !text;
}

// Every annotator has an order of their own, the same each time: by FNV-1a of number, name and page.

function hash(text) {
  let value = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) value = Math.imul(value ^ byte, 0x01000193) >>> 0;
  return value;
}

async function begin(name, found = []) {
  annotator = name;
  votes = new Map();
  const keyed = data.pairs.map((_, pair) => [hash(`${pair} ${name} ${data.page}`), pair]);
  order = keyed.sort(([x, i], [y, j]) => x - y || i - j).map(([, pair]) => pair);
  notice("");
  await recall();
  if (name !== annotator) return; // another name was given meanwhile
  merge(found);
  keep(found.map(({ pair }) => pair));
  element("start").hidden = true;
  element("work").hidden = false;
  turn(open(0));
}

function ask() {
  element("work").hidden = true;
  element("start").hidden = false;
  element("name").value = annotator;
  element("name").focus();
}

function open(from) {
  const without = (pair) => !votes.has(pair);
  const after = order.findIndex((pair, i) => i >= from && without(pair));
  if (after >= 0) return after;
  const before = order.findIndex(without);
  return before >= 0 ? before : order.length;
}

function cast(vote) {
  if (place >= order.length) return;
  votes.set(order[place], { vote, at: new Date().toISOString() });
  keep([order[place]]);
  turn(open(place + 1));
}

function go(step) {
  turn(Math.min(Math.max(place + step, 0), order.length));
}

function turn(to) {
  place = to;
  show();
  window.scrollTo(0, 0);
}

function show() {
  const done = place === order.length;
  element("pair").hidden = done;
  element("done").hidden = !done;
  element("annotator").textContent = annotator;
  element("bar").value = votes.size;
  element("download").classList.toggle("main", done);
  element("back").disabled = place === 0;
  element("forth").disabled = done;
  const vote = done ? "" : votes.get(order[place])?.vote;
  for (const button of document.querySelectorAll("[data-vote]")) {
    button.disabled = done;
    button.setAttribute("aria-pressed", button.dataset.vote === vote);
  }
  if (done) {
    const skipped = [...votes.values()].filter((found) => found.vote === "skip").length;
    element("progress").textContent = `${votes.size} of ${order.length} judged`;
    element("summary").textContent =
      `${votes.size - skipped} votes, ${skipped} skipped, ${order.length - votes.size} left open.`;
  } else {
    const pair = data.pairs[order[place]];
    element("progress").textContent = `Pair ${place + 1} of ${order.length}, ${votes.size} judged`;
    for (const part of ["prompt", "a", "b"]) element(part).textContent = pair[part];
  }
}

async function refresh() {
  if (element("work").hidden) return;
  await recall(); // what another tab has kept meanwhile
  show();
}

async function download() {
  await refresh();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([written()], { type: "application/json" }));
  link.download = `votes-${annotator.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "file"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

element("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = element("name").value.trim();
  if (name) begin(name);
  else notice("Give your name first.");
});
element("earlier").addEventListener("change", async ({ target }) => {
  try {
    await begin(...read(await target.files[0].text()));
  } catch (error) {
    notice(error.message);
  }
  target.value = "";
});
for (const button of document.querySelectorAll("[data-vote]")) {
  button.addEventListener("click", () => cast(button.dataset.vote));
}
element("back").addEventListener("click", () => go(-1));
element("forth").addEventListener("click", () => go(1));
element("download").addEventListener("click", download);
element("leave").addEventListener("click", ask);
window.addEventListener("focus", refresh);
document.addEventListener("keydown", (event) => {
  const held = event.repeat || event.ctrlKey || event.altKey || event.metaKey;
  if (held || element("work").hidden) return;
  const key = event.key.toLowerCase();
  if (Object.hasOwn(KEYS, key)) cast(KEYS[key]);
  else if (key === "j") go(1);
  else if (key === "k") go(-1);
  else return;
  event.preventDefault();
});

connect()
  .catch(() => null) // a browser that keeps nothing
  .then((last) => (last ? begin(last) : ask()));
