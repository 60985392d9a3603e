import { draw, make, plural } from "./dom.js";

const SHORT = 220; // characters that three lines of a result hold at least

/** A ranking as a list. `room`: characters of a cut document that the model read, about; `places`: ranks in the ranking beside. */
export function ranking(answer, documents, room, places) {
  const list = make("ol", { class: "ranking", "aria-label": `Ranking by ${answer.model}` });
  list.append(...answer.rows.map((row, place) => result(row, place + 1, documents[row.index], room, places)));
  return list;
}

/** Where the time of a call went. */
export function timeLine({ model, times, tokens }) {
  const outside = Math.max(0, times.whole - times.total);
  const gateway = Math.max(0, times.total - times.waiting - times.tokenising - times.computing);
  const parts = [
    ["waiting", "waiting for its turn", times.waiting],
    ["tokenising", "tokenising", times.tokenising],
    ["computing", times.tokenising ? "computing" : "tokenising and computing", times.computing],
    ["gateway", "gateway", gateway],
    ["outside", "network and browser", outside],
  ].filter(([name, , ms]) => ms || name !== "tokenising");
  const bar = make("div", { class: "line", "aria-hidden": "true" });
  const legend = make("ul", { class: "legend" });
  for (const [name, label, ms] of parts) {
    const part = make("span", { class: `part ${name}` });
    part.style.flexGrow = ms;
    bar.append(part);
    legend.append(make("li", {}, make("span", { class: `dot ${name}`, "aria-hidden": "true" }), `${label} ${milliseconds(ms)}`));
  }
  const caption = make("figcaption", {}, make("b", {}, model), ` ${milliseconds(times.whole)}, ${plural(tokens, "token")} read`);
  return make("figure", { class: "times" }, caption, bar, legend);
}

/** Two rankings side by side, with a line from each document's place in one to its place in the other. */
export function sideBySide(left, right) {
  const lines = draw("svg", { class: "moves", "aria-hidden": "true" });
  const whole = make("div", { class: "beside" }, left, lines, right);
  new ResizeObserver(() => connect(left, lines, right)).observe(whole);
  return whole;
}

function connect(left, lines, right) {
  const { width, top } = lines.getBoundingClientRect();
  const middle = (item) => {
    const box = item.querySelector(".top").getBoundingClientRect();
    return box.top + box.height / 2 - top;
  };
  const rightItems = new Map([...right.children].map((item) => [item.dataset.index, item]));
  lines.replaceChildren();
  [...left.children].forEach((item, place) => {
    const other = rightItems.get(item.dataset.index);
    if (!other) return;
    const moved = place - [...right.children].indexOf(other);
    const [from, to] = [middle(item), middle(other)];
    const path = `M6 ${from} C${width / 2} ${from} ${width / 2} ${to} ${width - 6} ${to}`;
    lines.append(draw("path", { d: path, class: moved > 0 ? "up" : moved < 0 ? "down" : "same" }));
  });
}

function result(row, rank, { text, name }, room, places) {
  const parts = split(text, row, room);
  const body = make("p", { class: "text" }, ...parts.map(([kind, part]) => (kind === "best" ? make("mark", {}, part) : make("span", { class: kind }, part))));
  const fill = make("span", { class: "fill" });
  fill.style.width = `${100 * Math.min(1, Math.max(0, row.score))}%`;
  const top = make(
    "div",
    { class: "top" },
    make("span", { class: "rank" }, `${rank}`),
    make("span", { class: "bar", "aria-hidden": "true" }, fill),
    make("span", { class: "score", title: "score" }, row.score.toFixed(3)),
  );
  const notes = make("div", { class: "notes" }, make("span", { class: "name" }, `document ${name}`));
  if (row.logit !== null) notes.append(make("span", { class: "logit" }, `logit ${signed(row.logit)}`));
  if (places) notes.append(move(places.get(row.index), rank));
  if (row.best_chunk) notes.append(make("span", { class: "badge chunk" }, "best chunk marked"));
  if (row.truncated) notes.append(make("span", { class: "badge cut" }, cutWords(parts, row)));
  const item = make("li", { "data-index": row.index }, top, notes, body);
  if (parts.length > 1 || [...text].length > SHORT || text.split("\n").length > 3) item.append(opener(item));
  return item;
}

/** A document as [kind, text] parts: what was read, what was not, and the best chunk. Places count characters as Python does. */
function split(text, row, room) {
  const characters = [...text];
  const part = (kind, start, end) => [kind, characters.slice(start, end).join("")];
  let parts = [["read", text]];
  if (row.best_chunk) {
    const [start, end] = row.best_chunk;
    parts = [part("before", 0, start), part("best", start, end), part("after", end)];
  } else if (row.truncated && room(text) < characters.length) {
    parts = [part("read", 0, room(text)), part("unread", room(text))];
  }
  return parts.filter(([, each], at) => each || at === 0);
}

function cutWords(parts, row) {
  if (row.best_chunk) return "cut: its end is in no chunk";
  const unread = parts.find(([kind]) => kind === "unread");
  return unread ? `cut: about the last ${plural([...unread[1]].length, "character")} not read` : "cut: query or document is too long";
}

function move(before, rank) {
  if (before === undefined) return make("span", { class: "move" }, "not in the other list");
  const by = before - rank;
  const [kind, sign, word] = by > 0 ? ["up", `▲ ${by}`, `up by ${by}`] : by < 0 ? ["down", `▼ ${-by}`, `down by ${-by}`] : ["same", "=", "same place"];
  return make("span", { class: `move ${kind}`, role: "img", "aria-label": word }, sign);
}

function opener(item) {
  const button = make("button", { type: "button", class: "link", "aria-expanded": "false" }, "whole text");
  button.addEventListener("click", () => {
    const open = item.classList.toggle("open");
    button.setAttribute("aria-expanded", `${open}`);
    button.textContent = open ? "less" : "whole text";
  });
  return button;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : ms && ms < 1 ? "< 1 ms" : `${Math.round(ms)} ms`);
