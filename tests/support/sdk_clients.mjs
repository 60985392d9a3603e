/**
 * Node's clients of rerank APIs, each as a function of one call. `sdk_clients.py` says what stands in the plan on standard
 * input and what is written; both are the same here. Run in the folder whose node_modules has the clients.
 */
import { text } from "node:stream/consumers";

const row = ({ documents }) => ({ index, relevanceScore }) => [documents[index], relevanceScore];

async function cohereV1({ url, key, model, query, documents, topN }) {
  const { CohereClient } = await import("cohere-ai");
  const objects = documents.map((each, page) => ({ text: each, page: `${page}` }));
  const found = await new CohereClient({ token: key, environment: url }).rerank({ model, query, documents: objects, topN, returnDocuments: true });
  return found.results.map(({ document, relevanceScore }) => [document.text, relevanceScore]);
}

async function cohereV2(call) {
  const { CohereClientV2 } = await import("cohere-ai");
  const { url, key, model, query, documents, topN } = call;
  const found = await new CohereClientV2({ token: key, environment: url }).rerank({ model, query, documents, topN });
  return found.results.map(row(call));
}

async function vercel({ url, key, model, query, documents, topN }) {
  const { rerank } = await import("ai");
  const { createCohere } = await import("@ai-sdk/cohere");
  const reranker = createCohere({ baseURL: `${url}/v2`, apiKey: key }).reranking(model);
  const found = await rerank({ model: reranker, query, documents, topN });
  return found.ranking.map(({ document, score }) => [document, score]);
}

async function voyage({ url, key, model, query, documents, topN }, returnDocuments) {
  const { VoyageAIClient } = await import("voyageai");
  const client = new VoyageAIClient({ apiKey: key, environment: `${url}/voyage/v1` });
  const found = await client.rerank({ model, query, documents, topK: topN, returnDocuments });
  return found.data.map(({ index, document, relevanceScore }) => [returnDocuments ? document : documents[index], relevanceScore]);
}

async function langchain({ url, key, model, query, documents, topN }) {
  const { CohereClient } = await import("cohere-ai");
  const { CohereRerank } = await import("@langchain/cohere");
  const { Document } = await import("@langchain/core/documents");
  const reranker = new CohereRerank({ client: new CohereClient({ token: key, environment: url }), model, topN: topN ?? 100 });
  const found = await reranker.compressDocuments(documents.map((pageContent) => new Document({ pageContent })), query);
  return found.map(({ pageContent, metadata }) => [pageContent, metadata.relevanceScore]);
}

async function llamaIndex({ url, key, model, query, documents, topN }) {
  const { CohereRerank } = await import("@llamaindex/cohere");
  const { TextNode } = await import("@llamaindex/core/schema");
  const reranker = new CohereRerank({ apiKey: key, baseUrl: url, model, topN: topN ?? 100 });
  const nodes = documents.map((each) => ({ node: new TextNode({ text: each }), score: 0 }));
  return (await reranker.postprocessNodes(nodes, query)).map(({ node, score }) => [node.text, score]);
}

const CLIENTS = {
  "cohere-ai v1": cohereV1,
  "cohere-ai v2": cohereV2,
  "vercel-ai": vercel,
  "voyageai-ts": (call) => voyage(call, undefined),
  "voyageai-ts, documents": (call) => voyage(call, true),
  "langchain-js cohere": langchain,
  "llamaindex-ts cohere": llamaIndex,
};

async function outcome(name, call) {
  try {
    return { rows: await CLIENTS[name](call) };
  } catch (error) {
    return { error: error.name === "Error" ? error.constructor.name : error.name, said: `${error.message} ${error.responseBody ?? ""}` };
  }
}

async function second(name, call) {
  const { url, key, query, documents } = call;
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const first = await fetch(`${url}/v1/rerank`, { method: "POST", headers, body: JSON.stringify({ query, documents }) });
  if (!first.ok) throw new Error(`the first request was refused: ${first.status}`);
  return outcome(name, call);
}

const plan = JSON.parse(await text(process.stdin));
const told = Object.fromEntries(plan.clients.map((name) => [name, {}]));
for (const [check, { at_once: atOnce, top_n: topN, ...changes }] of Object.entries(plan.checks)) {
  const call = { ...plan, topN, ...changes };
  if (atOnce) {
    const calls = plan.clients.map((name) => second(name, { ...call, key: `${call.key} ${name}` }));
    (await Promise.all(calls)).forEach((found, at) => { told[plan.clients[at]][check] = found; });
  } else {
    for (const name of plan.clients) told[name][check] = await outcome(name, call);
  }
}
process.stdout.write(JSON.stringify(told));
