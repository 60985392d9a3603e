/** An answer that is no ranking: what happened, and what the gateway said of it. */
export class Refusal extends Error {
  constructor(message, detail = "") {
    super(message);
    this.detail = detail;
  }
}

const PROXY = "Is there a proxy in between that answers in the gateway's place?";

/** The models that this key may use: `id`, and whether it `takes_instruction`, null until the gateway knows. */
export async function models(key) {
  const { body } = await ask("v1/models", key);
  if (!Array.isArray(body?.data)) throw new Refusal("The answer is no list of models.", PROXY);
  return body.data;
}

/** Tokens that a model reads of a query and a document together. */
export async function maxTokens(model, key) {
  const { body } = await ask(`v1/models/${encodeURIComponent(model)}`, key);
  return body.max_tokens;
}

/** Rank; with timings in milliseconds: of the gateway's headers, and `whole` as this browser saw it. */
export async function rank({ query, documents, model, top, chunks, instruction }, key, signal) {
  const asked = { query, texts: documents.map(({ text }) => text), model, return_details: true, truncate: true };
  if (top) asked.top_n = top;
  if (chunks) asked.max_chunks_per_doc = chunks;
  if (instruction) asked.instruction = instruction;
  const began = performance.now();
  const { body, headers } = await ask("tei/rerank", key, { method: "POST", body: JSON.stringify(asked), signal });
  if (!Array.isArray(body)) throw new Refusal("The answer is no ranking.", PROXY);
  const header = (name) => Number(headers.get(name) ?? 0);
  return {
    rows: body,
    model: headers.get("x-rerank-model") ?? model,
    degraded: headers.has("x-rerank-degraded") ? `${headers.get("x-rerank-served-by")} (${headers.get("x-rerank-reason")})` : "",
    tokens: header("x-compute-tokens"),
    times: {
      whole: performance.now() - began,
      total: header("x-total-time"),
      waiting: header("x-queue-time"),
      tokenising: header("x-tokenization-time"),
      computing: header("x-inference-time"),
    },
  };
}

/** Address of a path of this gateway, wherever a proxy has put it. */
export const address = (path) => new URL(path, document.baseURI.split(/[?#]/)[0]).href;

async function ask(path, key, options = {}) {
  if (!/^[\x21-\x7e]*$/.test(key)) throw new Refusal("This is no key: keys have ASCII letters, digits and signs only.");
  const headers = { ...(options.body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  let response, text;
  try {
    response = await fetch(address(path), { ...options, headers, cache: "no-store", credentials: "omit" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The gateway does not answer.", "Is it still running, and can this machine reach it?");
  }
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Refusal(`The answer is no JSON (HTTP ${response.status}).`, PROXY);
  }
  if (!response.ok) throw refusal(response, body, key);
  return { body, headers: response.headers };
}

function refusal(response, body, key) {
  const after = response.headers.get("retry-after");
  const titles = {
    401: key ? "The gateway does not know this key." : "The gateway wants a key.",
    403: "This key may not do that.",
    404: "The gateway does not serve this model.",
    413: "The request is too large.",
    429: `Too much at once${after ? `: try again in ${after} s` : ""}.`,
    503: "No reranker behind the gateway can be reached.",
    504: "The time for this request passed.",
  };
  const said = [body?.error, body?.message, body?.detail].find((each) => typeof each === "string") ?? "";
  return new Refusal(titles[response.status] ?? `The gateway refused this (HTTP ${response.status}).`, said);
}
