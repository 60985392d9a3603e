"""A running server takes a new version, and goes back, while requests keep coming."""

from __future__ import annotations

import shutil
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pytest
from support import tritons
from support.raw import infer_raw
from support.tiny_models import BOUNDED, write_other_words
from support.tritons import EXPLICIT, wait_until
from tritonclient.grpc import InferenceServerClient

from triton_rerank import RerankClient, RerankError
from triton_rerank_export.cli import main
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_export.repository import store
from triton_rerank_server import ServerConfig, TritonServer

NAME = "tiny-bert"
QUERY, DOCUMENTS = "how to zip a file", ["gzip shrinks files", "the cat sat on the mat"]
PAUSE_S = 0.005  # the changes need the cores too
POLL = ("--model-control-mode=poll", "--repository-poll-secs=3")


@pytest.fixture
def copy(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "model_repository"))


def start(folder: Path, *arguments: str, control: tuple[str, ...] = EXPLICIT) -> TritonServer:
    return tritons.start(folder, *control, *arguments)


class Answer(NamedTuple):
    """When a request was sent, and the logits that came back."""

    begun: float
    logits: tuple[float, ...]


class Load:
    """Four threads that ask the same question until told to stop."""

    def __init__(self, target: str) -> None:
        self.answers: list[Answer] = []
        self.errors: list[str] = []
        self._target = target
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._keep_asking) for _ in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def logits(self, *, since: float = 0.0) -> list[tuple[float, ...]]:
        """What was answered to the requests sent since then."""
        return [answer.logits for answer in list(self.answers) if answer.begun >= since]

    def ask(self, requests: int) -> set[tuple[float, ...]]:
        """Distinct answers to so many requests sent from now on, or to fewer if one fails or half a minute ends.

        However slow the machine, a request that was already under way does not count.
        """
        now = time.monotonic()
        while len(self.logits(since=now)) < requests and not self.errors and time.monotonic() < now + 30:
            time.sleep(0.01)
        return set(self.logits(since=now))

    def _keep_asking(self) -> None:
        with RerankClient(self._target, model=NAME, timeout_s=20.0) as client:
            while not self._stop.wait(PAUSE_S):
                begun = time.monotonic()
                try:
                    ranking = sorted(client.rerank(QUERY, DOCUMENTS), key=lambda ranked: ranked.index)
                    logits = tuple(round(cast("float", ranked.logit), 3) for ranked in ranking)
                    self.answers.append(Answer(begun, logits))
                except Exception as exc:  # noqa: BLE001 - whatever it is, the test is to show it
                    self.errors.append(repr(exc))
                    return


def test_a_new_version_and_the_way_back_drop_no_request(copy: Path, fine_tuned: Path) -> None:
    """Every answer under load is wholly the old version's or wholly the new one's, and none fails. Two are told."""
    with start(copy) as server, start(copy) as other, Load(server.grpc_target) as load:
        load.ask(50)
        export_model(str(fine_tuned), copy, ExportOptions(precision="fp32", **BOUNDED), on_step=lambda _: None)
        load.ask(50)  # the repository changed; the server did not
        old = set(load.logits())
        both = f"{server.grpc_target},{other.grpc_target}"
        assert main(["activate", "--model", NAME, "--model-repository", str(copy), "--target", both]) == 0
        with RerankClient(other.grpc_target, model=NAME) as client:
            assert client.rerank(QUERY, DOCUMENTS).model_version == "2"
        new = load.ask(50)
        back = ["--version", "1", "--target", server.grpc_target]
        assert main(["activate", "--model", NAME, "--model-repository", str(copy), *back]) == 0
        assert load.ask(50) == old
    assert load.errors == []
    assert len(old) == len(new) == 1
    assert np.allclose(np.array(list(new)) - np.array(list(old)), 3.0, atol=0.01)
    assert set(load.logits()) == old | new


def test_a_version_that_does_not_load_leaves_the_server_as_it_was(
    two_versions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(two_versions, tmp_path / "model_repository"))
    graph = folder / "tiny-bert-encoder" / "2" / "model.onnx"
    store.activate(folder, NAME, 1)
    whole = graph.read_bytes()
    graph.unlink()
    shutil.rmtree(graph.parent)
    for step in ("tiny-bert-encoder", "tiny-bert-tokenizer"):  # as the repository was before the second export
        path = folder / step / "config.pbtxt"
        path.write_text(path.read_text().replace("versions: 1\n    versions: 2", "versions: 1"))
    with start(folder) as server, Load(server.grpc_target) as load:
        load.ask(10)
        graph.parent.mkdir()
        graph.write_bytes(whole[:1000])
        assert (
            main(["activate", "--model", NAME, "--model-repository", str(folder), "--target", server.grpc_target]) == 1
        )
        error = capsys.readouterr().err
        assert "was not loaded" in error
        assert "it serves version 1 as before" in error
        load.ask(20)
    assert load.errors == []
    assert len(set(load.logits())) == 1


def test_other_settings_and_the_way_back_drop_no_request(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pairs a request than the ensemble that serves, and more; another ladder; the very same answers.

    A proxy of the environment, where nobody is, is not asked for this machine.
    """
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with start(copy) as server, Load(server.grpc_target) as load:
        old = load.ask(20)
        for setting in ("--max-batch-size=8", "--max-batch-size=512", "--instances=2", "--length-ladder=128"):
            assert main(["set", "--model", NAME, "--model-repository", str(copy), setting]) == 0
            reloaded = ["activate", "--model", NAME, "--model-repository", str(copy), "--target", server.grpc_target]
            assert main(reloaded) == 0
            assert load.ask(20) == old, setting
    assert load.errors == []


def test_changes_within_one_look_of_a_polling_server_drop_no_request(copy: Path) -> None:
    """What it serves stays until it has taken the last one, whatever came in between."""
    with start(copy, control=POLL) as server, Load(server.grpc_target) as load:
        load.ask(20)
        for setting in ("--instances=2", "--max-batch-size=8", "--max-batch-size=64"):
            assert main(["set", "--model", NAME, "--model-repository", str(copy), setting]) == 0
        with RerankClient(server.grpc_target, model=NAME, timeout_s=20.0) as client:
            assert wait_until(lambda: client.rerank(QUERY, DOCUMENTS).model_version == "4", 60)
        assert len(load.ask(20)) == 1
    assert load.errors == []


@pytest.fixture
def replace_it(fine_tuned: Path, tmp_path: Path) -> Callable[[Path], object]:
    """Puts a model in place of the one in a repository that tokenises otherwise."""
    other = write_other_words(fine_tuned, tmp_path / "other" / NAME)
    options = ExportOptions(precision="fp32", replace=True, **BOUNDED)
    return lambda repository: export_model(str(other), repository, options, on_step=lambda _: None)


def test_a_model_that_is_replaced_drops_no_request_and_is_never_half(
    copy: Path, replace_it: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    """No answer is of a step of either model with the other's, nor is one that does not load tried at their cost."""
    with start(copy) as server, Load(server.grpc_target) as load:
        old = load.ask(20)
        replace_it(copy)
        assert main(["set", "--model", NAME, "--model-repository", str(copy), "--instances=2"]) == 0
        told = ["activate", "--model", NAME, "--model-repository", str(copy), "--target", server.grpc_target]
        graph = copy / f"{NAME}-encoder" / "3" / "model.onnx"
        graph.rename(graph.with_suffix(".away"))
        assert main(told) == 1
        assert f"it serves version 1 as before, which was replaced in {copy}" in capsys.readouterr().err
        graph.with_suffix(".away").rename(graph)
        assert load.ask(20) == old
        assert main(told) == 0
        new = load.ask(50)
        with InferenceServerClient(server.grpc_target) as client:
            index = client.get_model_repository_index()
        ready = {model.name for model in index.models if model.state == "READY" and model.name.startswith(NAME)}
    assert load.errors == []
    assert ready == {NAME, f"{NAME}-tokenizer", f"{NAME}-encoder"}
    assert len(old) == len(new) == 1 and old != new
    assert set(load.logits()) == old | new
    assert sorted(path.name for path in copy.glob(f"{NAME}*")) == sorted(ready)


def test_two_activations_at_once_of_a_model_that_is_replaced_drop_no_request(
    copy: Path, replace_it: Callable[[Path], object]
) -> None:
    """The second comes when the ensemble is swapped, and before the old steps are unloaded."""
    told = ["activate", "--model", NAME, "--model-repository", str(copy)]
    with start(copy) as server, Load(server.grpc_target) as load, ThreadPoolExecutor(1) as pool:
        old = load.ask(20)
        replace_it(copy)
        told += ["--target", server.grpc_target]
        first = pool.submit(main, told)
        with RerankClient(server.grpc_target, model=NAME, timeout_s=20.0) as client:
            assert wait_until(lambda: client.model_info().version == "2", 60)
        assert main(told) == first.result(60) == 0
        new = load.ask(20)
    assert load.errors == []
    assert len(new) == 1 and set(load.logits()) == old | new


@pytest.mark.parametrize("how", ["polling", "told of a copy"])
def test_a_model_that_is_replaced_is_never_half_where_the_server_looks_for_itself_or_elsewhere(
    copy: Path, replace_it: Callable[[Path], object], tmp_path: Path, how: str
) -> None:
    """It may be away while it loads, which is told; no answer is of a step of either model with the other's."""
    with (
        start(copy, control=POLL if how == "polling" else EXPLICIT) as server,
        RerankClient(server.grpc_target, model=NAME, timeout_s=20.0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        (old,) = {logits(client)}
        if how == "polling":
            replace_it(copy)
        else:
            elsewhere = Path(shutil.copytree(copy, tmp_path / "elsewhere"))
            replace_it(elsewhere)
            for folder in copy.glob(f"{NAME}*"):
                shutil.rmtree(folder)
                shutil.copytree(elsewhere / folder.name, folder)
        asking = pool.submit(lambda: list(until_it_is_another(client, old)))
        if how != "polling":
            told = ["activate", "--model", NAME, "--model-repository", str(elsewhere), "--target", server.grpc_target]
            assert main(told) == 0
        answers, new = asking.result(60), logits(client)
    assert answers[-1] == new
    assert {answer for answer in answers if isinstance(answer, tuple)} <= {old, new}
    told_of = {answer for answer in answers if isinstance(answer, str)}
    print(how, Counter(answer if isinstance(answer, str) else "answered" for answer in answers))
    assert all("no available versions" in error or "not at ready state" in error for error in told_of)


def logits(client: RerankClient) -> tuple[float, ...]:
    ranking = sorted(client.rerank(QUERY, DOCUMENTS), key=lambda ranked: ranked.index)
    return tuple(round(cast("float", ranked.logit), 3) for ranked in ranking)


def until_it_is_another(client: RerankClient, old: tuple[float, ...]) -> Iterator[tuple[float, ...] | str]:
    """Answers and errors until one comes that is wholly of version 2."""
    while True:
        time.sleep(PAUSE_S)
        try:
            yield (found := logits(client))
        except RerankError as exc:
            yield str(exc)
            continue
        if found != old and client.model_info().version == "2":
            yield logits(client)
            return


@pytest.fixture
def cached(copy: Path, checkpoints: dict[str, Path]) -> Iterator[TritonServer]:
    options = ExportOptions(precision="fp32", response_cache=True, replace=True)
    export_model(str(checkpoints[NAME]), copy, options, on_step=lambda _: None)
    with start(copy, "--cache-config=local,size=4194304") as server:
        yield server


def test_the_response_cache_answers_a_repeated_request_and_heeds_max_length(cached: TritonServer) -> None:
    inputs = {"query": [QUERY] * 2, "document": [" ".join(DOCUMENTS)] * 2}

    def ask(max_length: int) -> float:
        answer = infer_raw(cached.grpc_target, NAME, inputs, ["logits"], {"max_length": max_length})
        return float(answer["logits"][0, 0])

    first, shorter, again = ask(128), ask(10), ask(128)
    assert first == again != shorter
    with urllib.request.urlopen(f"http://127.0.0.1:{cached.metrics_port}/metrics", timeout=10) as page:
        metrics = page.read().decode()
    assert 'nv_cache_num_hits_per_model{model="tiny-bert-encoder",version="2"} 1' in metrics


def test_every_length_of_the_ladder_was_run_before_ready(copy: Path) -> None:
    """Triton counts no warm-up as a request, but its log has each sample."""
    log = copy.parent / "triton.log"
    config = ServerConfig(copy, grpc_port=0, http_port=0, metrics_port=0, log_file=log, extra_args=("--log-verbose=1",))
    with tritons.ShortLived(config):
        text = log.read_text()
    for rung in (32, 64, 96, 128):
        for size in (1, 1024 // rung):
            assert f"{size}x{rung}" in text
