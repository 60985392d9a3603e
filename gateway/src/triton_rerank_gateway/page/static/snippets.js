import { address } from "./api.js";

/** Code that makes the same request, as text; the key is read from the environment, never written. */
export const snippets = { curl, python, langchain };

function curl(request, hasKey) {
  const { model, query, top } = request;
  const body = { model, query, documents: texts(request), ...(top && { top_n: top }), ...further(request) };
  return [
    `curl -s ${quoted(address("v1/rerank"))} \\`,
    "  -H 'content-type: application/json' \\",
    ...(hasKey ? ['  -H "authorization: Bearer $RERANK_KEY" \\'] : []),
    "  --data-binary @- <<'JSON'",
    JSON.stringify(body, null, 2),
    "JSON",
    "",
  ].join("\n");
}

function python(request, hasKey) {
  return [
    "# pip install cohere",
    ...(hasKey ? ["import os", ""] : []),
    "import cohere",
    "",
    `client = cohere.ClientV2(${keyOf(hasKey)}, base_url=${literal(base())})`,
    ...listed(request),
    "answer = client.rerank(",
    `    model=${literal(request.model)},`,
    `    query=${literal(request.query)},`,
    "    documents=documents,",
    ...(request.top ? [`    top_n=${request.top},`] : []),
    ...options(request).map((option) => `    ${option},`),
    ")",
    "for result in answer.results:",
    '    print(f"{result.relevance_score:.4f}", documents[result.index])',
    "",
  ].join("\n");
}

function langchain(request, hasKey) {
  const [option] = options(request); // CohereRerank knows none: its client sends them with every request
  return [
    "# pip install langchain-cohere",
    ...(option ? ["from functools import partial", ""] : []),
    ...(hasKey ? ["import os", ""] : []),
    "import cohere",
    "from langchain_cohere import CohereRerank",
    "from langchain_core.documents import Document",
    "",
    `client = cohere.ClientV2(${keyOf(hasKey)}, base_url=${literal(base())})`,
    ...(option ? [`client.rerank = partial(client.rerank, ${option})`] : []),
    ...listed(request),
    `reranker = CohereRerank(client=client, model=${literal(request.model)}, top_n=${request.top ?? "None"})`,
    `found = reranker.compress_documents([Document(page_content=text) for text in documents], ${literal(request.query)})`,
    "for document in found:",
    '    print(f"{document.metadata[\'relevance_score\']:.4f}", document.page_content)',
    "",
  ].join("\n");
}

// Fields of the gateway's own, which Cohere's clients have no argument for.
const further = ({ chunks, instruction }) => ({ ...(chunks && { max_chunks_per_doc: chunks }), ...(instruction && { instruction }) });

function options(request) {
  const fields = Object.entries(further(request)).map(([name, value]) => `${literal(name)}: ${literal(value)}`);
  return fields.length ? [`request_options={"additional_body_parameters": {${fields.join(", ")}}}`] : [];
}

const texts = (request) => request.documents.map(({ text }) => text);

const listed = (request) => ["documents = [", ...texts(request).map((text) => `    ${literal(text)},`), "]"];

const base = () => address(".").replace(/\/$/, "");

const keyOf = (hasKey) => (hasKey ? 'os.environ["RERANK_KEY"]' : '"none"');

// A JSON string is a Python string, too; in a shell, single quotes hold everything but themselves.
const literal = (text) => JSON.stringify(text);
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
