"""Question → passages → rerank → context → an answer with citations.

Offline, a stand-in on loopback answers by quoting the best passage. A real model answers if RAG_BASE_URL (an endpoint
in OpenAI's form, such as http://127.0.0.1:8000/v1) and RAG_MODEL are set; OPENAI_API_KEY is sent where it is set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from triton_rerank import FallbackScorer, LocalScorer, RerankError, TritonScorer
from triton_rerank_retrieval import NearDuplicates, Pipeline, llm, pack
from triton_rerank_retrieval.first_stages.bm25 import Bm25

HERE = Path(__file__).parent


def main() -> int:
    """Answer one question from the passages, with Triton or in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="which file takes less room on disk?")
    parser.add_argument("--passages", type=Path, default=HERE / "passages.txt", help="one a line")
    parser.add_argument("--model-repository", type=Path, default=HERE.parent / "model_repository")
    parser.add_argument("--model", default="minilm-l6-demo")
    parser.add_argument("--target", help="host:port of a Triton; else the model is run in this process")
    options = parser.parse_args()
    try:
        with endpoint() as model:
            ask(options, model)
    except RerankError as error:
        print(f"rag: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def ask(options: argparse.Namespace, model: llm.Endpoint) -> None:
    """Find, rerank and pack passages, and print the model's answer and what it cites."""
    first = Bm25.build(options.passages.read_text(encoding="utf-8").splitlines())
    triton = TritonScorer(options.target, options.model) if options.target else None
    scorer = FallbackScorer([triton or LocalScorer(str(options.model_repository), options.model)])
    with Pipeline([first], scorer=scorer, steps=[NearDuplicates(0.9)]) as pipeline:
        found = pipeline.search(options.question, k=5)
    if found.degraded:
        print(f"(not reranked: {found.reason})", file=sys.stderr)
    context = pack(found.candidates, budget=1000)
    pieces = []
    for piece in llm.stream(model, options.question, context):
        print(piece, end="", flush=True)
        pieces.append(piece)
    answer = llm.read("".join(pieces), context)
    print("\n")
    for passage in answer.citations.cited:
        print(f"[{context.passages.index(passage) + 1}] {passage.text}")
    if answer.citations.invented:
        print(f"(cites passages that are not there: {answer.citations.invented})", file=sys.stderr)


@contextmanager
def endpoint() -> Iterator[llm.Endpoint]:
    """The real one of the environment, or a stand-in."""
    if "RAG_BASE_URL" in os.environ:
        yield llm.Endpoint(os.environ["RAG_MODEL"], base_url=os.environ["RAG_BASE_URL"])
        return
    server = HTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield llm.Endpoint("stand-in", base_url=f"http://127.0.0.1:{server.server_port}/v1")
    finally:
        server.shutdown()
        server.server_close()


class StandIn(BaseHTTPRequestHandler):
    """No model: quotes the first passage, and cites it."""

    def do_POST(self) -> None:
        """Answer a chat completion as a stream of words."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        passages = json.loads(body["messages"][-1]["content"])["passages"]
        first = passages.split("\n\n")[0].removeprefix("[1] ")
        text = f"The best passage says: “{first}” [1]" if first else "No passage was found."
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for word in text.split(" "):
            choice = {"index": 0, "delta": {"content": f"{word} "}}
            part = {"id": "x", "object": "chat.completion.chunk", "choices": [choice]}
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on the terminal."""


if __name__ == "__main__":
    sys.exit(main())
