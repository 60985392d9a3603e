import { maxTokens, models, rank, Refusal } from "./api.js";
import { InputError, parse, readFile } from "./documents.js";
import { byId, make, plural } from "./dom.js";
import { ranking, sideBySide, timeLine } from "./results.js";
import { snippets } from "./snippets.js";

const [form, query, source, key, alertBox, told] = ["form", "query", "documents", "key", "alert", "told"].map(byId);
let running = null; // the AbortController of the ranking under way
let prompted = new Set(); // names of the models that take an instruction
let again = 0; // the timer that asks for the models once more

async function loadModels() {
  clearTimeout(again);
  const rows = await models(key.value);
  const names = rows.map(({ id }) => id);
  prompted = new Set(names.filter((_, at) => rows[at].takes_instruction));
  for (const id of ["model", "other"]) {
    const [select, chosen] = [byId(id), byId(id).value];
    const options = names.map((name) => make("option", { value: name }, name));
    select.replaceChildren(...(id === "other" ? [select.options[0]] : []), ...options);
    if (names.includes(chosen)) select.value = chosen;
  }
  byId("other").closest(".field").hidden = names.length < 2;
  offerInstruction();
  if (rows.some((row) => row.takes_instruction === null)) again = setTimeout(() => loadModels().catch(complain), 2000);
}

function offerInstruction() {
  const told = [...new Set([byId("model").value, byId("other").value])].filter((name) => prompted.has(name));
  byId("instruction").closest(".field").hidden = told.length === 0;
  byId("toldwhom").textContent = `What ${told.join(" and ")} is to look for; empty: the model's own.`;
}

/** The request as one model gets it: an instruction is for those that take one. */
const toModel = (request, model) => ({ ...request, model, instruction: prompted.has(model) ? request.instruction : null });

/** The request that the form describes; an InputError names the field at fault. */
function asked() {
  const field = (element, read) => {
    try {
      return read(element.value);
    } catch (error) {
      throw Object.assign(error, { field: element });
    }
  };
  const some = (found, message) => {
    if (!found) throw new InputError(message);
    return found;
  };
  return {
    query: field(query, (text) => some(text.trim() && text, "Give a query to rank the documents by.")),
    documents: field(source, (text) => some(text.trim() && parse(text).documents, "Give at least one document.")),
    top: field(byId("top"), (text) => text === "" ? null : some(/^[1-9]\d*$/.test(text) && Number(text), "Show the best: give a whole number from 1.")),
    chunks: Number(byId("chunks").value) || null,
    instruction: byId("instruction").value.trim() && byId("instruction").value,
    model: byId("model").value,
  };
}

async function run() {
  running = new AbortController();
  forgive();
  for (const id of ["times", "lists"]) byId(id).replaceChildren();
  byId("run").textContent = "Stop";
  told.textContent = "Ranking …";
  try {
    if (!byId("model").value) await loadModels();
    const request = asked();
    const others = [byId("other").value].filter((name) => name && name !== request.model);
    const answers = [];
    for (const model of [request.model, ...others]) answers.push(await rank(toModel(request, model), key.value, running.signal));
    await show(request, answers);
    await loadModels(); // by now the gateway may know more of them, or more models
  } catch (error) {
    complain(error);
  } finally {
    running = null;
    byId("run").textContent = "Rank";
  }
}

async function show(request, answers) {
  const rooms = await Promise.all(answers.map((answer) => roomOf(request, answer)));
  const places = new Map(answers[0].rows.map((row, place) => [row.index, place + 1]));
  const lists = answers.map((answer, at) => ranking(answer, request.documents, rooms[at], at > 0 ? places : null));
  const titles = make("div", { class: "titles" }, ...answers.map(({ model }) => make("h2", {}, model)));
  byId("lists").replaceChildren(...(lists.length > 1 ? [titles, sideBySide(...lists)] : lists));
  byId("times").replaceChildren(...answers.map(timeLine));
  const shown = answers[0].rows.length;
  told.textContent = `${plural(request.documents.length, "document")} ranked${shown < request.documents.length ? `, the best ${shown} shown` : ""}.`;
  for (const { model, degraded } of answers) if (degraded) warn(`Another than the first choice answered for ${model}.`, degraded);
}

/** How many characters of a document a model read, by a rule of thumb: four letters a token, one sign outside ASCII. */
async function roomOf(request, answer) {
  if (!answer.rows.some((row) => row.truncated && !row.best_chunk)) return () => Infinity;
  const perToken = (text) => (/^[\x00-\x7f]*$/.test(text) ? 4 : 1);
  const length = await maxTokens(answer.model, key.value);
  const used = Math.min(length / 2, [...request.query].length / perToken(request.query)) + 3;
  return (text) => Math.floor(Math.max(0, length - used) * perToken(text));
}

function forgive() {
  alertBox.replaceChildren();
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

function warn(title, detail) {
  alertBox.append(make("div", { class: "warning" }, make("b", {}, title), detail ? make("p", {}, detail) : ""));
}

function complain(error) {
  told.textContent = error.name === "AbortError" ? "Stopped." : "";
  if (error.name === "AbortError") return;
  forgive();
  const known = error instanceof InputError || error instanceof Refusal;
  warn(known ? error.message : "This page has a fault.", known ? error.detail : `${error}`);
  error.field?.setAttribute("aria-invalid", "true");
  error.field?.focus();
}

function count() {
  try {
    const { documents, how } = parse(source.value);
    byId("counted").textContent = documents.length ? `${plural(documents.length, "document")}, ${how}` : "";
  } catch (error) {
    byId("counted").textContent = error.message;
  }
}

async function take(files) {
  forgive();
  try {
    if (files.length > 1) throw new InputError("Drop one file at a time.");
    if (files.length) source.value = await readFile(files[0]);
    count();
  } catch (error) {
    complain(error);
  }
}

async function copy(kind) {
  forgive();
  try {
    const request = asked();
    const text = snippets[kind](toModel(request, request.model), key.value !== "");
    Object.assign(byId("snippet"), { textContent: text, hidden: false });
    const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false); // none on plain HTTP from afar
    if (!copied) getSelection().selectAllChildren(byId("snippet"));
    const note = key.value ? " It reads your key from RERANK_KEY." : "";
    byId("copied").textContent = (copied ? "Copied." : "Press Ctrl+C to copy.") + note;
  } catch (error) {
    complain(error);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else run();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
source.addEventListener("input", count);
for (const id of ["model", "other"]) byId(id).addEventListener("change", offerInstruction);
key.addEventListener("change", () => { forgive(); loadModels().catch(complain); });
byId("file").addEventListener("change", (event) => take(event.target.files));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault(); // a file dropped beside the field would take the place of the page
    source.classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files);
  });
}
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button.dataset.copy));
count();
loadModels().catch(complain);
