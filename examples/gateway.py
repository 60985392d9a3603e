"""Start Triton on a model repository and the gateway in front of it; Ctrl-C drains both. `make gateway` runs it."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from triton_rerank_server import ServerConfig, ServerStartError, TritonServer

HERE = Path(__file__).parent
QUERY = "how do I make a file smaller?"
TEXTS = ["A file cabinet with four drawers.", "gzip shrinks files, so that they take less room."]
CALLS: dict[str, tuple[str, dict[str, object]]] = {
    "Cohere, v2": ("/v2/rerank", {"model": "rerank-v3.5", "query": QUERY, "documents": TEXTS, "top_n": 1}),
    "Cohere v1, Jina, vLLM, Xinference": ("/v1/rerank", {"query": QUERY, "documents": TEXTS, "return_documents": True}),
    "Voyage": ("/v1/rerank", {"model": "rerank-2.5", "query": QUERY, "documents": TEXTS, "top_k": 1}),
    "TEI": ("/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True}),
    "Infinity": ("/rerank", {"query": QUERY, "documents": TEXTS, "raw_scores": False}),
    "NIM": ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]}),
    "vLLM, scores": ("/score", {"text_1": QUERY, "text_2": TEXTS}),
}


def main() -> int:
    """Start Triton and the gateway in front of it, and stay until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=HERE.parent / "model_repository")
    parser.add_argument("--model", default="minilm-l6-demo")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("gateway", nargs="*", help="after --, passed to triton-rerank-gateway as they are")
    options = parser.parse_args()
    server = TritonServer(ServerConfig(options.model_repository, grpc_port=0, http_port=0, metrics_port=0))
    try:
        with server:
            return serve(server.grpc_target, options.model, options.port, options.gateway)
    except ServerStartError as exc:
        print(f"gateway: {exc}", file=sys.stderr)
        return 1


def serve(target: str, model: str, port: int, further: list[str]) -> int:
    """Run the gateway until it ends; a signal to this process ends it, and running requests with an answer."""
    command = [sys.executable, "-m", "triton_rerank_gateway.cli", "--target", target, "--model", model]
    # Ctrl-C reaches the whole group of processes: in it, the gateway would get it twice, and may end at once.
    gateway = subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "warning", *further], start_new_session=True
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: gateway.send_signal(number) if gateway.poll() is None else None)
    if is_ready(f"http://127.0.0.1:{port}", gateway):
        tell(f"http://127.0.0.1:{port}")
    return gateway.wait()


def is_ready(url: str, gateway: subprocess.Popen[bytes]) -> bool:
    """Wait until it says so; False if it ended instead."""
    while gateway.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=2):  # noqa: S310 - loopback
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def tell(url: str) -> None:
    """Print a call to copy for each dialect, and the addresses to look at."""
    for dialect, (path, body) in CALLS.items():
        content = shlex.quote(json.dumps(body))
        print(f"\n# {dialect}\ncurl -s {url}{path} -H 'content-type: application/json' -d {content}")
    print(f"\n{url}/  ·  {url}/metrics  ·  {url}/openapi.json  ·  Ctrl-C stops the gateway and Triton", flush=True)


if __name__ == "__main__":
    sys.exit(main())
