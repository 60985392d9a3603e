import { address } from "./api.js";

/** Code that makes the same request, as text; the key is read from the environment, never written. */
export const snippets = { curl, python, langchain };

function curl(request, hasKey) {
  const { model, query, top, chunks } = request;
  const body = { model, query, documents: texts(request), ...(top && { top_n: top }), ...(chunks && { max_chunks_per_doc: chunks }) };
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
  const { top, chunks } = request;
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
    ...(top ? [`    top_n=${top},`] : []),
    ...(chunks ? [`    request_options={"additional_body_parameters": {"max_chunks_per_doc": ${chunks}}},`] : []),
    ")",
    "for result in answer.results:",
    '    print(f"{result.relevance_score:.4f}", documents[result.index])',
    "",
  ].join("\n");
}

function langchain(request, hasKey) {
  return [
    "# pip install langchain-cohere",
    ...(hasKey ? ["import os", ""] : []),
    "from langchain_cohere import CohereRerank",
    "from langchain_core.documents import Document",
    "",
    ...listed(request),
    "reranker = CohereRerank(",
    `    model=${literal(request.model)}, cohere_api_key=${keyOf(hasKey)}, base_url=${literal(base())}, top_n=${request.top ?? "None"}`,
    ")",
    `found = reranker.compress_documents([Document(page_content=text) for text in documents], ${literal(request.query)})`,
    "for document in found:",
    '    print(f"{document.metadata[\'relevance_score\']:.4f}", document.page_content)',
    "",
  ].join("\n");
}

const texts = (request) => request.documents.map(({ text }) => text);

const listed = (request) => ["documents = [", ...texts(request).map((text) => `    ${literal(text)},`), "]"];

const base = () => address(".").replace(/\/$/, "");

const keyOf = (hasKey) => (hasKey ? 'os.environ["RERANK_KEY"]' : '"none"');

// A JSON string is a Python string, too; in a shell, single quotes hold everything but themselves.
const literal = (text) => JSON.stringify(text);
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
