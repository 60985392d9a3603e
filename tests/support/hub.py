"""A model hub on loopback: what huggingface_hub 0.36 asks of one, and the ways in which one fails; and who asks it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

MODEL_ROUTE = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
FILE_ROUTE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
STORE_ROUTE = re.compile(r"/store/(?P<id>[^/]+/[^/]+)/(?P<name>.+)")
LARGE = (".safetensors", ".bin")  # the hub keeps these elsewhere and answers with a redirect

_RESOLVE = """
import dataclasses, json, os, sys, tempfile
from pathlib import Path
from triton_rerank_export.checkpoint.resolve import resolve
from triton_rerank_export.errors import ExportError
from triton_rerank_export.options import ExportOptions
def ask(model, options):
    steps = []
    with tempfile.TemporaryDirectory() as work:
        try:
            found = resolve(model, Path(work), on_step=steps.append, options=ExportOptions(**json.loads(options)))
            print(json.dumps({**dataclasses.asdict(found), "folder": str(found.folder), "steps": steps}))
        except ExportError as exc:
            print(json.dumps({"refusal": str(exc)}))
"""
RESOLVE = f"{_RESOLVE}ask(*sys.argv[1:])"
# A process that has imported what is ours, and nothing that reads the environment; a fork of it answers each line.
_FORKS = f"""{_RESOLVE}
assert not {{"huggingface_hub", "transformers", "torch"}} & set(sys.modules)
for line in sys.stdin:
    environment, *question = json.loads(line)
    child, code = os.fork(), 1
    if not child:
        try:
            os.environ.clear()
            os.environ.update(environment)
            ask(*question)
            sys.stdout.flush()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _forks() -> subprocess.Popen[str]:
    """It ends when this process does."""
    return subprocess.Popen([sys.executable, "-c", _FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


Fault = Literal[
    "gated",  # the model is listed, its files are refused
    "refused",  # every request is, whatever the token
    "down",  # 503 to every request
    "silent",  # takes requests and never answers
    "closes early",  # half of a large file, then end of connection
    "wrong length",  # half of a large file, said to be all of it
    "moves",  # "main" is at another commit once the files are listed
]


@dataclass
class Hub:
    """One model repository on a loopback port.

    Attributes:
        endpoint: for HF_ENDPOINT.
        folder: the files, read anew for each request.
        hub_id: ``org/name``; any other is not found.
        commit: what "main" is at.
        fault: what goes wrong.
        token: the only token that is accepted, if one is wanted.
        requests: method, path and headers of every request so far.
    """

    endpoint: str
    folder: Path
    hub_id: str
    commit: str
    fault: Fault | None = None
    token: str | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.requests if method == "GET" and "/api/" not in path]


@contextlib.contextmanager
def serve_hub(folder: Path, *, hub_id: str, commit: str) -> Iterator[Hub]:
    """Serve a checkpoint folder until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.block_on_close = False  # a silent request would hold the end of the test
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}", folder, hub_id, commit)  # type: ignore[attr-defined]
    server.over = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Machine:
    """A user's machine. huggingface_hub reads its environment when it is imported, so each try imports it anew."""

    environment: dict[str, str]

    @classmethod
    def with_cache(cls, folder: Path, hub: Hub) -> Machine:
        """An environment without the settings of the machine that tests, and with short limits."""
        dropped = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(dropped)}
        limits = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2", "OMP_NUM_THREADS": "1"}
        return cls({**kept, **limits, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder)})

    @property
    def cache(self) -> Path:
        return Path(self.environment["HF_HOME"]) / "hub"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )

    def resolve(self, model: str, **options: Any) -> dict[str, Any]:
        forks = _forks()
        assert forks.stdin is not None and forks.stdout is not None
        print(json.dumps([self.environment, model, json.dumps(options)]), file=forks.stdin, flush=True)
        said = forks.stdout.readline()
        assert said.startswith("{"), f"ended with code {said}"
        assert int(forks.stdout.readline()) == 0
        found: dict[str, Any] = json.loads(said)
        return found

    def refusal(self, model: str, **options: Any) -> str:
        message = self.resolve(model, **options).get("refusal")
        assert isinstance(message, str), "it was not refused"
        assert "\n" not in message
        return message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        return hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append((self.command, path, dict(self.headers)))
        if self.hub.fault == "silent":
            self.server.over.wait()  # type: ignore[attr-defined]
            self.close_connection = True
        elif self.hub.fault == "down":
            self._refuse(503)
        elif self.hub.fault == "refused":
            self._refuse(403, message="this token may not read the model")
        else:
            self._route(path)

    def _route(self, path: str) -> None:
        match = MODEL_ROUTE.fullmatch(path) or FILE_ROUTE.fullmatch(path) or STORE_ROUTE.fullmatch(path)
        if match is None or match["id"] != self.hub.hub_id:
            self._refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        elif (
            self.hub.token
            and self.headers.get("Authorization") != f"Bearer {self.hub.token}"
            and match.re != STORE_ROUTE
        ):
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif match.re == STORE_ROUTE:
            self._send_file(match["name"])
        elif (match["revision"] or "main") not in ("main", self.hub.commit):
            self._refuse(404, "RevisionNotFound")
        elif match.re == MODEL_ROUTE:
            self._send_listing()
        elif self.hub.fault == "gated":
            self._refuse(403, "GatedRepo")
        else:
            self._resolve(match["name"])

    def _send_listing(self) -> None:
        names = sorted(str(path.relative_to(self.hub.folder)) for path in self.hub.folder.rglob("*") if path.is_file())
        listing = {"id": self.hub.hub_id, "sha": self.hub.commit, "siblings": [{"rfilename": name} for name in names]}
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
        if self.hub.fault == "moves":
            self.hub.commit = self.hub.commit[::-1]

    def _resolve(self, name: str) -> None:
        path = self.hub.folder / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
        elif name.endswith(LARGE):
            content = path.read_bytes()
            headers = {
                "Location": f"{self.hub.endpoint}/store/{self.hub.hub_id}/{name}",
                "X-Linked-Etag": f'"{_digest(content)}"',
                "X-Linked-Size": str(len(content)),
            }
            self._answer(302, headers)
        else:
            self._send_file(name)

    def _send_file(self, name: str) -> None:
        content = (self.hub.folder / name).read_bytes()
        if self.command == "GET" and name.endswith(LARGE) and self.hub.fault == "wrong length":
            content = content[: len(content) // 2]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        headers = {"ETag": f'"{_digest(content)}"'}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(206 if asked else 200, headers, content[start:], cut=name.endswith(LARGE))

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        self._answer(status, {"X-Error-Code": code, "X-Error-Message": message})

    def _answer(self, status: int, headers: dict[str, str], content: bytes = b"", *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": self.hub.commit, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut and self.hub.fault == "closes early":
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
