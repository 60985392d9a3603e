"""An endpoint in OpenAI's form on loopback: chat, streams and embeddings, by a function, or failing on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Content = str | dict[str, Any]  # of a choice: its text, or its fields


@dataclass
class Fault:
    """What to send instead of an answer; ``hang`` sends nothing until the endpoint closes."""

    status: int = 200
    body: str = ""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False


class ChatEndpoint:
    """Serves until the ``with`` ends.

    Args:
        answer: the request's body -> the text of the answer, the fields of its choice, or a fault.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Content | Fault]) -> None:
        self.answer = answer
        self.received: list[dict[str, Any]] = []
        self.closing = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.owner = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> ChatEndpoint:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


def asked(body: dict[str, Any]) -> Any:
    """The data of a request: what the user's message holds."""
    return json.loads(body["messages"][-1]["content"])


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        owner: ChatEndpoint = self.server.owner  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        owner.received.append(body)
        answer = owner.answer(body)
        if isinstance(answer, Fault):
            if answer.hang:
                owner.closing.wait(60)
                return
            self._send(answer.status, answer.body, answer.content_type, answer.headers)
        elif self.path.endswith("/embeddings"):
            rows = [
                {"object": "embedding", "index": i, "embedding": json.loads(str(answer))}
                for i in range(len(body["input"]))
            ]
            self._send(200, json.dumps({"object": "list", "data": rows, "model": "m"}), "application/json", {})
        elif body.get("stream"):
            self._send(200, _events(str(answer)), "text/event-stream", {})
        else:
            self._send(200, json.dumps(_completion(answer)), "application/json", {})

    def _send(self, status: int, body: str, content_type: str, headers: dict[str, str]) -> None:
        raw = body.encode()
        self.send_response(status)
        for name, value in {"content-type": content_type, "content-length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)


def _events(text: str) -> str:
    """One event a word."""
    lines = []
    for number, word in enumerate(text.split(" ")):
        delta = {"content": word if number == 0 else f" {word}"}
        part = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
        lines.append(f"data: {json.dumps(part)}\n\n")
    return "".join(lines) + "data: [DONE]\n\n"


def _completion(answer: Content) -> dict[str, Any]:
    fields = {"content": answer} if isinstance(answer, str) else dict(answer)
    finish = fields.pop("finish_reason", "stop")
    message = {"role": "assistant", "content": None, "refusal": None, **fields}
    usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
