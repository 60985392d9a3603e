"""Start, drain, death: real processes, real signals, nothing left behind."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.raw import infer_raw
from support.serving import Serving, start_serving
from support.slow_model import NAME as SLOW
from support.slow_model import write_slow
from support.tritons import received, wait_until

from triton_rerank import RerankClient, ServerUnavailableError
from triton_rerank_server import ServerConfig, ServerStartError, TritonServer, process
from triton_rerank_server.running.watch import Watch

SHARED_MEMORY = Path("/dev/shm")


def start(repository: Path, **settings: object) -> TritonServer:
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    return TritonServer(ServerConfig(repository, **{**ports, **settings}))  # type: ignore[arg-type]


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def gone(processes: list[psutil.Process], timeout_s: float = 20.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


STARTED = [os.getpid()]  # processes whose shared memory is ours; other Tritons run beside these


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    before = shared_memory()
    yield
    assert shared_memory() <= before


def shared_memory() -> set[Path]:
    return set(itertools.chain(*(SHARED_MEMORY.glob(f"triton_rerank_{pid}_*") for pid in STARTED)))


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_repository, tmp_path / "model_repository"))


@pytest.mark.usefixtures("no_leftovers")
def test_stop_leaves_no_process_no_shared_memory_and_no_files(tiny_repository: Path) -> None:
    server = start(tiny_repository)
    with server:
        processes = family(server.pid)
        runtime = server.log_file.parent
        assert len(processes) >= 5  # tritonserver and two stubs a model
    assert gone(processes, timeout_s=0.1)
    assert not runtime.exists()
    assert server.stop() is None  # a second time is harmless


def test_triton_is_told_to_end_when_nothing_is_loaded_any_more(tiny_repository: Path, tmp_path: Path) -> None:
    """It looks once a second whether its models are gone, so the first look is to find none."""
    log_file = tmp_path / "triton.log"
    server = start(tiny_repository, log_file=log_file)
    server.start()
    assert server.stop() == 0
    assert "Found 0 live models" in log_file.read_text()
    assert not re.search("Found [1-9][0-9]* live models", log_file.read_text())


@pytest.mark.usefixtures("no_leftovers")
def test_requests_in_flight_are_answered_before_it_stops(tiny_repository: Path, tmp_path: Path) -> None:
    """One is computed and the others wait before the second step; Triton alone would refuse these."""
    folder = write_slow(tiny_repository, tmp_path / "model_repository", delay_s=0.5)
    answers: list[int] = []
    with start(folder) as server, RerankClient(server.grpc_target, model=SLOW, timeout_s=60.0) as client:
        client.model_info()
        ask = lambda: answers.append(len(client.score("heap", ["a", "b"])))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        assert wait_until(lambda: received(server.grpc_target) == len(threads), 60)  # tokenised; the encoder is slow
        assert len(answers) < len(threads)
        server.stop()
        for thread in threads:
            thread.join(60)
    assert answers == [2] * len(threads)


@pytest.mark.usefixtures("no_leftovers")
def test_a_server_killed_in_mid_request_is_unavailable_at_once(tiny_repository: Path) -> None:
    documents = [f"{n}: a binary heap keeps its largest element at the root " * 10 for n in range(20_000)]
    with start(tiny_repository) as server, RerankClient(server.grpc_target, model="tiny-bert") as client:
        processes = family(server.pid)
        client.rerank("heap", documents[:10])
        before = received(server.grpc_target)

        def kill_when_it_is_under_way() -> None:
            assert wait_until(lambda: received(server.grpc_target) > before, 60)
            server.send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill_when_it_is_under_way)
        killer.start()
        with pytest.raises(ServerUnavailableError) as error:
            client.rerank("heap", documents, timeout_s=120)
        killer.join(60)
        assert error.value.falls_back
        assert server.wait(30) == -signal.SIGKILL
        assert "Started GRPCInferenceService" in server.explanation()
    assert gone(processes)


@pytest.mark.parametrize(
    ("service", "port"), [("grpc", "grpc_port"), ("http", "http_port"), ("metrics", "metrics_port")]
)
def test_a_port_that_is_taken_is_named(tiny_repository: Path, service: str, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        with pytest.raises(
            ServerStartError, match=f"{service} port {taken} on 127.0.0.1 cannot be bound: it is in use"
        ) as error:
            start(tiny_repository, **{port: taken}).start()
    assert f"--{service}-port" in str(error.value)


def break_missing_graph(repository: Path) -> None:
    (repository / "tiny-bert-encoder" / "1" / "model.onnx").unlink()


def break_missing_tokenizer(repository: Path) -> None:
    (repository / "tiny-bert-tokenizer" / "1" / "tokenizer.json").unlink()


def break_graph(repository: Path) -> None:
    path = repository / "tiny-bert-encoder" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def break_tokenizer(repository: Path) -> None:
    (repository / "tiny-bert-tokenizer" / "1" / "tokenizer.json").write_text('{"version": "1.0"}')


def swap_graphs(repository: Path) -> None:
    shutil.copyfile(
        repository / "tiny-xlmr-encoder" / "1" / "model.onnx", repository / "tiny-bert-encoder" / "1" / "model.onnx"
    )


def swap_configs(repository: Path) -> None:
    shutil.copyfile(
        repository / "tiny-xlmr-encoder" / "config.pbtxt", repository / "tiny-bert-encoder" / "config.pbtxt"
    )


def swap_canaries(repository: Path) -> None:
    path = repository / "tiny-bert" / "1" / "manifest.json"
    manifest = path.read_text()
    first, second = manifest.split('"documents": [\n      ', 1)[1].split("\n    ]", 1)[0].split(",\n      ")
    path.write_text(manifest.replace(f"{first},\n      {second}", f"{second},\n      {first}"))


def break_manifest(repository: Path) -> None:
    (repository / "tiny-bert" / "1" / "manifest.json").write_text("{")


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (break_missing_graph, "model.onnx: no such file; export the model again"),
        (break_missing_tokenizer, "tokenizer.json: cannot be read"),
        (break_graph, "ONNX Runtime cannot load it"),
        (break_tokenizer, "not a tokenizer file"),
        (swap_graphs, "the config belongs to another model"),
        (swap_configs, "tiny-xlmr-encoder"),
        (swap_canaries, "orders its canary [1, 0] instead of [0, 1]"),
        (break_manifest, "manifest.json: not as export writes it"),
    ],
)
def test_a_broken_repository_does_not_start_and_says_why(
    repository: Path, damage: Callable[[Path], None], fragment: str
) -> None:
    damage(repository)
    server = start(repository, start_timeout_s=60.0)
    with pytest.raises(ServerStartError) as error:
        server.start()
    assert fragment in str(error.value)


def test_a_repository_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match="no such model repository"):
        start(tmp_path / "nothing").start()


def serve(repository: Path) -> Serving:
    """A command that is ready, and whose shared memory is looked for."""
    running = start_serving(repository)
    STARTED.append(running.process.pid)
    return running


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_serve_command_stops_cleanly_on_a_signal(tiny_repository: Path, number: signal.Signals) -> None:
    running = serve(tiny_repository)
    process, children = running.process, running.family()
    assert running.target.startswith("127.0.0.1:")
    with RerankClient(running.target, model="tiny-xlmr") as client:
        assert client.is_ready()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert f"{number.name}, letting running requests finish" in rest
    assert gone(children, timeout_s=1)


@pytest.mark.usefixtures("no_leftovers")
def test_the_serve_command_reports_the_death_of_triton_with_its_log(tiny_repository: Path) -> None:
    running = serve(tiny_repository)
    process, children = running.process, running.family()
    os.kill(next(child.pid for child in children if child.name() == "tritonserver"), signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "tritonserver died with code -9" in rest
    assert "Started GRPCInferenceService" in rest
    assert gone(children)


def test_a_death_is_not_explained_by_what_went_wrong_long_before(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_RECENT_LOOKS", 2)
    log_file, looks = tmp_path / "triton.log", 0
    config = ServerConfig(tiny_repository, grpc_port=0, http_port=0, metrics_port=0, log_file=log_file)
    with TritonServer(config) as server:
        with log_file.open("a", encoding="utf-8") as log:
            log.write("E1130 10:00:00.000000 1 x.cc:1] \"Invalid argument: ensemble 'm' depends on 's'\"\n")
        look = Watch.look

        def counting(watch: Watch) -> str | None:
            nonlocal looks
            looks += 1
            if looks == 4:
                server.send_signal(signal.SIGKILL)
            return look(watch)

        monkeypatch.setattr(Watch, "look", counting)
        assert "died with code -9" in server.watch()
        assert len(server.explanation().splitlines()) > 1  # its last lines, not the one error


def test_killing_the_launcher_leaves_no_orphans(tiny_repository: Path) -> None:
    """pingdotgg/t3code#5241, cms-sw/cmssw#32576: child processes outlived a parent that was killed."""
    running = serve(tiny_repository)
    process, children = running.process, running.family()
    process.kill()
    process.communicate(timeout=60)
    assert gone(children, timeout_s=45)


def test_a_dynamic_batcher_that_really_merges(server: TritonServer) -> None:
    """The best of some attempts counts: callers that other work holds up meet less often, never more."""
    merged = [pairs_an_execution(server) for _ in range(3)]
    assert max(merged) > 1.2, f"{merged} pairs an execution"


def pairs_an_execution(server: TritonServer) -> float:
    """Of eight callers with thirty single pairs each, at the encoder."""
    import tritonclient.grpc as triton

    def counts() -> tuple[int, int]:
        with triton.InferenceServerClient(server.grpc_target) as raw:
            stats = raw.get_inference_statistics("tiny-bert-encoder").model_stats[0]
        return stats.inference_count, stats.execution_count

    before = counts()
    with RerankClient(server.grpc_target, model="tiny-bert", timeout_s=60) as client:
        threads = [
            threading.Thread(target=lambda: [client.score("heap", ["short text"]) for _ in range(30)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wait_until(lambda: counts()[0] >= before[0] + 240, 10)  # Triton counts a request after its answer has gone
    after = counts()
    pairs, executions = after[0] - before[0], after[1] - before[1]
    assert pairs == 240
    return pairs / executions


def test_several_versions_and_instances_are_served_side_by_side(repository: Path) -> None:
    encoder = repository / "tiny-bert-encoder"
    shutil.copytree(encoder / "1", encoder / "2")
    config = (encoder / "config.pbtxt").read_text().replace("count: 1", "count: 2")
    (encoder / "config.pbtxt").write_text(config.replace("versions: 1", "versions: 1 versions: 2"))
    ids = np.array([[5, 6, 7, 8]], dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with start(repository) as server:
        answers = [
            infer_raw(server.grpc_target, "tiny-bert-encoder", inputs, ["logits"], version=version)["logits"]
            for version in ("1", "2", "")
        ]
        stubs = [process for process in family(server.pid) if "stub" in process.name()]
        assert len(stubs) == 3 + 2 * 2  # two tokenizers and an encoder, and two versions with two instances each
    assert np.allclose(answers[0], answers[1]) and np.allclose(answers[0], answers[2])
