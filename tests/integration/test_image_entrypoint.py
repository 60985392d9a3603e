"""The image's own command lines and healthcheck, run against the Triton of the wheel.

Only what differs outside the image is replaced or added: interpreter, repository, ports. NVIDIA's script before it and
its native ONNX Runtime backend are not in the wheel; our stand-in takes the backend's place.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton
from support import chart, image
from support.tls import Authority
from support.tritons import free_ports, wait_until

from triton_rerank import RerankClient, RerankError, TritonOptions
from triton_rerank_server.launch.child import Child

START_TIMEOUT_S = 120.0
COMMANDS: dict[str, Callable[[], list[str]]] = {
    "image": lambda: image.command(image.SERVING),
    "compose": lambda: image.service()["command"],
    "chart": chart.container_args,
}
OPTIONS = {  # of those that tritonserver prints at its start
    "image": {"model_control_mode": "MODE_EXPLICIT", "strict_model_config": "1", "cache_enabled": "0"},
    "compose": {"model_control_mode": "MODE_EXPLICIT", "cache_enabled": "1", "rate_limit": "EXEC_COUNT"},
    "chart": {"model_control_mode": "MODE_EXPLICIT", "cache_enabled": "0", "exit_timeout": "30"},
}
CACHED = "tiny-bert"  # its encoder asks for the response cache


@dataclass
class Running:
    """A Triton that was started with the image's command line."""

    how: str
    child: Child
    grpc_port: int
    http_port: int
    metrics_port: int
    log: Path

    @property
    def target(self) -> str:
        return f"localhost:{self.grpc_port}"

    def healthcheck(self) -> subprocess.CompletedProcess[str]:
        """Run the image's healthcheck; only the port differs."""
        python, *arguments = image.healthcheck(image.SERVING)
        assert python == "python3" and ":8000/" in arguments[-1]
        ours = [argument.replace(":8000/", f":{self.http_port}/") for argument in arguments]
        return subprocess.run([sys.executable, *ours], capture_output=True, text=True, timeout=30, check=False)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://localhost:{self.metrics_port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def wait_until_ready(self) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while self.healthcheck().returncode:
            assert self.child.wait(0) is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)


# Everything is read-only but /tmp and shared memory: what compose.yaml's read_only and tmpfs leave to the image's user.
READ_ONLY = 'mount --make-rprivate / && mount --bind /tmp /tmp && mount -o remount,bind,ro / && exec "$@"'


def read_only() -> list[str]:
    """What runs a command so; skipped where nobody may mount."""
    prefix = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    if (done := subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"{' '.join(prefix)}: {done.stderr.strip()}")
    return [*prefix, "sh", "-c", READ_ONLY, "sh"]


@contextlib.contextmanager
def start(
    how: str, command: Sequence[str], repository: Path, folder: Path, *, prefix: Sequence[str] = ()
) -> Iterator[Running]:
    """The image's entry point with a command, ready; only the repository, the ports and the log's place are others."""
    elsewhere = {"--model-repository=/models": f"--model-repository={repository}"}
    flags = image.serve_flags()
    assert elsewhere.keys() <= set(flags)
    log = folder / "output.log"
    with free_ports(3) as (grpc, http, metrics):
        ports = [f"--grpc-port={grpc}", f"--http-port={http}", f"--metrics-port={metrics}"]
        flags = [*(elsewhere.get(flag, flag) for flag in flags), *ports, "--", *command]
        child = Child([*prefix, sys.executable, *image.SERVE[1:], *flags], environment=dict(os.environ), log_file=log)
        try:
            started = Running(how, child, grpc, http, metrics, log)
            started.wait_until_ready()
            yield started
        finally:
            child.stop(image.stop_grace_s(), kill=False)


@pytest.fixture(scope="module")
def repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(tiny_repository, tmp_path_factory.mktemp("image") / "model_repository"))
    with (copy / f"{CACHED}-encoder" / "config.pbtxt").open("a", encoding="utf-8") as config:
        config.write("response_cache { enable: true }\n")
    return copy


@pytest.fixture(scope="module", params=COMMANDS)
def running(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp(request.param)
    prefix = read_only() if request.param == "compose" else []
    with start(request.param, COMMANDS[request.param](), repository, folder, prefix=prefix) as started:
        yield started


def test_every_model_of_the_repository_answers(running: Running) -> None:
    for model in ("tiny-bert", "tiny-xlmr"):
        with RerankClient(running.target, model=model, timeout_s=60.0) as client:
            result = client.rerank("a query", ["one document", "another"])
            assert sorted(ranked.index for ranked in result) == [0, 1]


def test_nothing_but_grpc_and_metrics_is_reached_from_outside(running: Running) -> None:
    (triton_process,) = psutil.Process(running.child.pid).children()
    connections = triton_process.net_connections(kind="tcp")
    listening = {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}
    outside = {address.port for address in listening if address.ip != "127.0.0.1"}
    assert outside == {running.grpc_port, running.metrics_port}


def test_metrics_answer(running: Running) -> None:
    assert "nv_inference_request_success" in running.metrics()


def test_models_are_loaded_and_unloaded_over_grpc(running: Running) -> None:
    with triton.InferenceServerClient(running.target) as client:
        client.unload_model("tiny-xlmr")
        assert not client.is_model_ready("tiny-xlmr")
        client.load_model("tiny-xlmr")
        assert client.is_model_ready("tiny-xlmr")
    assert running.healthcheck().returncode == 0


def test_triton_understood_the_flags(running: Running) -> None:
    table = dict(re.findall(r"^\| (\w+) +\| (\S+) +\|$", running.log.read_text(), flags=re.MULTILINE))
    expected = OPTIONS[running.how]
    assert {name: table[name] for name in expected} == expected


def test_the_response_cache_answers_where_there_is_one(running: Running) -> None:
    with RerankClient(running.target, model=CACHED, timeout_s=60.0) as client:
        first, second = (client.rerank("the same query", ["the same document"]) for _ in range(2))
    assert [ranked.score for ranked in first] == [ranked.score for ranked in second]
    hits = re.search(rf'nv_cache_num_hits_per_model{{model="{CACHED}-encoder",version="1"}} (\d+)', running.metrics())
    assert (hits is not None and int(hits[1]) > 0) == (running.how == "compose")


def test_under_compose_nothing_is_written_but_in_memory_and_in_tmp(running: Running) -> None:
    """As `read_only: true` has it; the other command lines run where everything may be written."""
    (triton_process,) = psutil.Process(running.child.pid).children()
    mounts = [line.split() for line in Path(f"/proc/{triton_process.pid}/mountinfo").read_text().splitlines()]
    ((options, *_),) = {tuple(mount[5].split(",")) for mount in mounts if mount[4] == "/"}
    assert options == ("ro" if running.how == "compose" else "rw")


# The last one: it ends the server.
def test_sigterm_ends_it_within_the_grace_and_the_healthcheck_says_so(running: Running) -> None:
    stubs = psutil.Process(running.child.pid).children(recursive=True)
    assert stubs
    before = time.monotonic()
    os.kill(running.child.pid, signal.SIGTERM)
    assert running.child.wait(image.stop_grace_s()) == 0, running.log.read_text()
    assert time.monotonic() - before < image.stop_grace_s()
    assert not psutil.wait_procs(stubs, timeout=10)[1]
    after = running.healthcheck()
    assert after.returncode == 1
    assert "Connection refused" in after.stderr


def test_a_backend_that_dies_ends_the_container_and_fails_the_healthcheck(repository: Path, tmp_path: Path) -> None:
    with start("image", image.command(image.SERVING), repository, tmp_path) as started:
        stub = next(
            process
            for process in psutil.Process(started.child.pid).children(recursive=True)
            if "stub" in process.name()
        )
        stub.kill()
        assert wait_until(lambda: started.healthcheck().returncode == 1, 60)
        assert started.child.wait(image.stop_grace_s()) == 1, started.log.read_text()


def test_with_tls_models_are_loaded_by_those_who_know_the_secret_alone(repository: Path, tmp_path: Path) -> None:
    """docker/tls.yaml: its command as it stands, with the two variables that it asks for."""
    authority = Authority.write(tmp_path / "certificates", "localhost")
    shutil.copy(authority.server_chain, tmp_path / "certificates" / "server.crt")
    shutil.copy(authority.server_key, tmp_path / "certificates" / "server.key")
    service = image.compose(image.TLS)["services"]["triton-cpu"]
    assert service["volumes"] == ["${CERTIFICATES:?the folder of server.crt and server.key}:/certificates:ro"]
    given = {r"/certificates": str(tmp_path / "certificates"), r"\$\{ADMIN_SECRET:\?[^}]*\}": "open sesame"}
    command = service["command"]
    for what, value in given.items():
        command = [re.sub(what, value, flag) for flag in command]
    with start("tls", command, repository, tmp_path) as started:
        options, secret = TritonOptions(tls=authority.tls(mutual=False)), {"triton-grpc-protocol-admin": "open sesame"}
        with RerankClient(started.target, model="tiny-bert", options=options, timeout_s=60.0) as client:
            assert len(client.rerank("a query", ["one document", "another"])) == 2
        with pytest.raises(RerankError), RerankClient(started.target, model="tiny-bert", timeout_s=5.0) as client:
            client.rerank("a query", ["one document"])
        with triton.InferenceServerClient(started.target, ssl=True, root_certificates=str(authority.root)) as client:
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                client.unload_model("tiny-xlmr")
            assert client.is_model_ready("tiny-xlmr")
            client.unload_model("tiny-xlmr", headers=secret)
            assert not client.is_model_ready("tiny-xlmr")
