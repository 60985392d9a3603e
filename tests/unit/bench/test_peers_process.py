"""The lines between us and a worker: a real process that answers, chatters, dies, hangs or refuses."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from triton_rerank_bench.compare import worker
from triton_rerank_bench.compare.process import WORKER, PeerProcess
from triton_rerank_bench.errors import PeerError

# A library that the real worker's loop loads: scores are lengths, and it does what the model folder's name says.
LIBRARY = """
import os, sys, time
sys.path.insert(0, {folder!r})
import worker

def load(arguments):
    print("loading: this is no JSON")
    os.write(1, b"nor is this, from C\\n")
    if arguments["folder"] == "missing":
        raise FileNotFoundError("no such\\nmodel")
    def score(query, documents, options):
        print("progress", flush=True)
        if options.get("die"):
            print("Illegal instruction", file=sys.stderr, flush=True)
            os._exit(3)
        if options.get("kill"):
            os.kill(os.getpid(), 9)
        time.sleep(options.get("sleep_s", 0.0))
        return [len(document) for document in documents][: options.get("at_most")]
    return score, {{"threads": os.environ["OMP_NUM_THREADS"]}}

def make(checkpoint, folder, detail):
    print("making", flush=True)
    with open(os.path.join(folder, "made"), "x") as file:
        file.write(checkpoint + detail)

worker.LOADERS["fake"], worker.MAKERS["fake"] = load, make
sys.exit(worker.main())
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "fake.py"
    path.write_text(LIBRARY.format(folder=str(WORKER.parent)), encoding="utf-8")
    return path


def process(script: Path) -> PeerProcess:
    return PeerProcess("fake", Path(sys.executable), n_threads=1, script=script)


def test_a_worker_scores_and_the_librarys_chatter_is_not_taken_for_answers(script: Path) -> None:
    with process(script) as peer:
        peer.load("fake", {"folder": "x"})
        assert peer.notes == {"threads": "1"}
        assert peer.scores("q", ["a", "bbb", "ü"], {}) == [1.0, 3.0, 1.0]
        assert peer.scores("q", [], {}) == []


def test_a_worker_makes_files_and_says_why_it_cannot(script: Path, tmp_path: Path) -> None:
    request = {"op": "make", "kind": "fake", "arguments": ["checkpoint ", str(tmp_path), "avx2"]}
    with process(script) as peer:
        peer.ask(request, 60.0)
        assert (tmp_path / "made").read_text() == "checkpoint avx2"
        with pytest.raises(PeerError, match="FileExistsError"):
            peer.ask(request, 60.0)


def test_what_a_library_raises_is_one_line_and_the_worker_lives_on(script: Path) -> None:
    with process(script) as peer:
        with pytest.raises(PeerError, match=r"^FileNotFoundError: no such model$"):
            peer.load("fake", {"folder": "missing"})
        with pytest.raises(PeerError, match="KeyError: 'unheard of'"):
            peer.load("unheard of", {})
        peer.load("fake", {"folder": "x"})
        with pytest.raises(PeerError, match="1 scores for 2 documents"):
            peer.scores("q", ["a", "b"], {"at_most": 1})
        assert peer.scores("q", ["a"], {}) == [1.0]


def test_a_dead_workers_last_words_are_told(script: Path) -> None:
    with process(script) as peer:
        peer.load("fake", {"folder": "x"})
        ended = "its process ended with 3; it said last: .*Illegal instruction"
        with pytest.raises(PeerError, match=ended):
            peer.scores("q", ["a"], {"die": True})
        with pytest.raises(
            PeerError, match=ended
        ):  # its other settings share the process, and the report has one reason
            peer.scores("q", ["a"], {})


def test_a_worker_that_the_kernel_killed_for_memory_is_told_as_that(script: Path) -> None:
    with process(script) as peer:
        peer.load("fake", {"folder": "x"})
        with pytest.raises(
            PeerError, match=r"its process was killed, .* memory runs out: measure fewer peers .*--only"
        ):
            peer.scores("q", ["a"], {"kill": True})


def test_a_late_answer_ends_the_worker_and_is_not_taken_for_the_next_one(script: Path) -> None:
    with process(script) as peer:
        peer.load("fake", {"folder": "x"})
        start = time.monotonic()
        with pytest.raises(PeerError, match="no answer in 0.2 s"):
            peer.scores("q", ["a"], {"sleep_s": 60.0}, timeout_s=0.2)
        assert time.monotonic() - start < 10
        with pytest.raises(PeerError, match="no answer in 0.2 s"):
            peer.scores("q", ["a"], {})


def test_a_worker_that_was_closed_says_so(script: Path) -> None:
    with process(script) as peer:
        peer.load("fake", {"folder": "x"})
    with pytest.raises(PeerError, match="is closed"):
        peer.scores("q", ["a"], {})


def test_a_waiting_worker_uses_no_processor_time(script: Path) -> None:
    with process(script) as peer:
        peer.load("fake", {"folder": "x"})
        before = peer.cpu_seconds
        time.sleep(1.0)
        assert peer.cpu_seconds - before < 0.05


def test_an_environment_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"python cannot be started .*make perf-peers"):
        PeerProcess("fake", tmp_path / "bin/python", n_threads=1)


def test_the_worker_imports_nothing_of_ours() -> None:
    text = Path(worker.__file__).read_text(encoding="utf-8")
    assert "triton_rerank" not in text


# What the worker starts as Infinity's server: answers as it does, hangs up on who is quiet, ends by itself.
SERVER = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import http.server, json, sys, threading
if "--broken" in sys.argv:
    raise ValueError("no model here")
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, timeout = "HTTP/1.1", 0.2
    def do_GET(self):
        self.answer({{"unix": 1.0}})
    def do_POST(self):
        documents = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["documents"]
        results = [{{"index": i, "relevance_score": len(text)}} for i, text in enumerate(documents)]
        self.answer({{"results": sorted(results, key=lambda each: -each["relevance_score"])}})
    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
threading.Timer(10, server.shutdown).start()
server.serve_forever()
"""


@pytest.fixture
def infinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose environment has that server; the worker's own code runs here."""
    program = tmp_path / "infinity_emb"
    program.write_text(SERVER.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return tmp_path


def test_infinitys_ranked_answers_are_put_in_order_and_its_hanging_up_does_no_harm(infinity: Path) -> None:
    score, _ = worker.LOADERS["infinity"]({"folder": str(infinity), "flags": []})
    assert score("q", ["a", "bbb", "cc"], {}) == [1, 3, 2]
    time.sleep(0.6)
    assert score("q", ["aaaa", "b"], {}) == [4, 1]


def test_why_infinitys_server_ended_is_told(infinity: Path) -> None:
    with pytest.raises(RuntimeError, match="its server ended with 1; ValueError: no model here"):
        worker.LOADERS["infinity"]({"folder": str(infinity), "flags": ["--broken"]})
