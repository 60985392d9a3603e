"""The scorer in process, on real exported models, without a server."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from support.load import BusyClock
from tokenizers import Tokenizer

from triton_rerank import (
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    InvalidRequestError,
    InvalidResponseError,
)
from triton_rerank.core.deadline import Deadline
from triton_rerank.core.runtime import AsyncRuntime, SyncRuntime, run_sync
from triton_rerank.core.scorer import Call, ModelScorer, PairRequest, Scored
from triton_rerank.local.scorer import LocalScorer
from triton_rerank_export.repository.store import activate
from triton_rerank_export.repository.triton_config import ServedModel, to_text
from triton_rerank_server.backends.encoder.engine import Engine

NAME = "tiny-bert"
LONG = " ".join(["how to shrink a file that is too large for mail"] * 60).encode()
REQUEST = PairRequest(b"how to zip a file", (b"gzip shrinks files", b"", b"the cat sat on the mat", LONG))

Ask = Callable[[Callable[[Call], Coroutine[Any, Any, Any]], float], Any]


def ask_sync(method: Callable[[Call], Coroutine[Any, Any, Any]], timeout_s: float = 30.0) -> Any:
    return run_sync(method(Call(Deadline(timeout_s), SyncRuntime())))


def ask_async(method: Callable[[Call], Coroutine[Any, Any, Any]], timeout_s: float = 30.0) -> Any:
    async def main() -> Any:
        return await method(Call(Deadline(timeout_s), AsyncRuntime()))

    return asyncio.run(main())


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen


@pytest.fixture(scope="module")
def loaded(tiny_repository: Path) -> LocalScorer:
    """For tests that only ask it, since each new one loads the model again."""
    return LocalScorer(tiny_repository, NAME, threads=1)


@pytest.fixture
def copy(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "model_repository"))


def scoring(scorer: LocalScorer, request: PairRequest = REQUEST) -> Callable[[Call], Coroutine[Any, Any, Scored]]:
    return lambda call: scorer.score(request, call)


def score(scorer: LocalScorer, request: PairRequest = REQUEST, timeout_s: float = 30.0) -> Scored:
    scored: Scored = ask_sync(scoring(scorer, request), timeout_s)
    return scored


def logits_of(scorer: LocalScorer, request: PairRequest = REQUEST) -> npt.NDArray[np.float32]:
    logits = score(scorer, request).logits
    assert logits is not None
    return logits


def config(repository: Path, step: str = "") -> Path:
    return repository / f"{NAME}{step}" / "config.pbtxt"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_request_is_scored_whole_and_says_who_did_it(tiny_repository: Path, ask: Ask) -> None:
    scorer = LocalScorer(tiny_repository, NAME, threads=1)
    scored = ask(scoring(scorer), 30.0)
    assert isinstance(scorer, ModelScorer)
    assert (scored.model, scored.served_by, scored.model_version, scored.requests) == (NAME, "local", "1", 1)
    assert scored.logits.dtype == np.float32
    np.testing.assert_allclose(scored.scores, 1 / (1 + np.exp(-scored.logits.astype(np.float64))))
    assert scored.truncated.tolist() == [False, False, False, True]
    assert scored.token_count > 128
    assert not scored.degraded


def test_a_name_of_its_own_is_on_the_result(tiny_repository: Path) -> None:
    assert score(LocalScorer(str(tiny_repository), NAME, name="spare")).served_by == "spare"


def test_model_info_and_readiness(tiny_repository: Path, ask: Ask) -> None:
    scorer = LocalScorer(tiny_repository, NAME)
    info = ask(scorer.model_info, 30.0)
    assert (info.name, info.activation, info.precision, info.version) == (NAME, "sigmoid", "fp32", "1")
    assert (info.max_length, info.length_ladder) == (128, (32, 64, 96, 128))
    assert ask(scorer.is_ready, 30.0) is True


def test_the_split_into_blocks_and_batches_changes_no_logit(tiny_repository: Path) -> None:
    scorer = LocalScorer(tiny_repository, NAME, threads=1)
    texts = tuple(f"{number} {'zip files ' * (number % 40)}".encode() for number in range(600))
    together = logits_of(scorer, PairRequest(b"how to zip", texts))
    rows = [0, 7, 39, 40, 599]
    alone = np.concatenate([logits_of(scorer, PairRequest(b"how to zip", (texts[row],))) for row in rows])
    np.testing.assert_allclose(together[rows], alone, atol=1e-5)
    assert len(set(together.round(3).tolist())) > 50  # rows that are mixed up would show


@pytest.mark.parametrize("max_length", [4, 129, 0, -1, True, "64"])
def test_a_max_length_outside_the_bounds_is_refused(loaded: LocalScorer, ask: Ask, max_length: Any) -> None:
    request = PairRequest(b"q", (b"d",), max_length=max_length)
    with pytest.raises(InvalidRequestError, match=r"max_length is .*: it must be a whole number from 5 to 128"):
        ask(scoring(loaded, request), 30.0)


@pytest.mark.parametrize("most", [0, 125, True, "64"])
@pytest.mark.parametrize("name", ["max_query_tokens", "max_document_tokens"])
def test_a_length_of_a_text_outside_the_bounds_is_refused(loaded: LocalScorer, ask: Ask, name: str, most: Any) -> None:
    request = replace(PairRequest(b"q", (b"d",)), **{name: most})
    with pytest.raises(InvalidRequestError, match=rf"{name} is .*: it must be a whole number from 1 to 124"):
        ask(scoring(loaded, request), 30.0)


def test_the_query_is_cut_where_the_caller_says(loaded: LocalScorer, ask: Ask) -> None:
    request = PairRequest(b"how to zip a file " * 4, (b"gzip",), max_query_tokens=4)
    scored = ask(scoring(loaded, request), 30.0)
    whole = ask(scoring(loaded, replace(request, max_query_tokens=None)), 30.0)
    assert (scored.truncated.tolist(), whole.truncated.tolist()) == ([True], [False])
    assert scored.token_count < whole.token_count


def test_documents_are_cut_where_the_caller_says(loaded: LocalScorer, ask: Ask) -> None:
    request = PairRequest(b"how to zip a file", (b"gzip " * 20, b"gzip"), max_document_tokens=4)
    scored = ask(scoring(loaded, request), 30.0)
    whole = ask(scoring(loaded, replace(request, max_document_tokens=None)), 30.0)
    assert (scored.truncated.tolist(), whole.truncated.tolist()) == ([True, False], [False, False])
    assert scored.token_count < whole.token_count


def missing_model(repository: Path) -> None:
    shutil.rmtree(repository / NAME)


def missing_repository(repository: Path) -> None:
    shutil.rmtree(repository)


def broken_config(repository: Path) -> None:
    config(repository).write_text("name: {", encoding="utf-8")


def two_active_versions(repository: Path) -> None:
    edit(config(repository), "versions: 1\n", "versions: 1\n    versions: 2\n")


def no_ladder(repository: Path) -> None:
    edit(config(repository, "-tokenizer"), '"length_ladder"', '"ladder"')


def no_activation(repository: Path) -> None:
    edit(config(repository), '"activation"', '"actuation"')


def foreign_steps(repository: Path) -> None:
    edit(config(repository), f'model_name: "{NAME}-encoder"', 'model_name: "tiny-xlmr-encoder"')


def plan(repository: Path) -> None:
    model = ServedModel(NAME, "sigmoid", 128, "fp16", "s", True, 0, engine="tensorrt")
    config(repository, "-encoder").write_text(to_text(model.configs()[f"{NAME}-encoder"]), encoding="utf-8")
    (repository / f"{NAME}-encoder" / "1" / "model.onnx").rename(repository / f"{NAME}-encoder" / "1" / "model.plan")


def missing_graph(repository: Path) -> None:
    (repository / f"{NAME}-encoder" / "1" / "model.onnx").unlink()


def half_a_graph(repository: Path) -> None:
    path = repository / f"{NAME}-encoder" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def graph_of_another_model(repository: Path) -> None:
    shutil.copyfile(
        repository / "tiny-xlmr-encoder" / "1" / "model.onnx", repository / f"{NAME}-encoder" / "1" / "model.onnx"
    )


def missing_tokenizer(repository: Path) -> None:
    (repository / f"{NAME}-tokenizer" / "1" / "tokenizer.json").unlink()


def broken_tokenizer(repository: Path) -> None:
    (repository / f"{NAME}-tokenizer" / "1" / "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (missing_repository, "no such file; the models of this repository are none"),
        (missing_model, "no such file; the models of this repository are tiny-xlmr: check the folder"),
        (broken_config, r"config\.pbtxt: not a model config"),
        (two_active_versions, "not as triton-rerank-export writes them"),
        (no_ladder, "not as triton-rerank-export writes them .*length_ladder"),
        (no_activation, "has no parameter activation"),
        (foreign_steps, "not as triton-rerank-export writes them .*tiny-bert-encoder"),
        (plan, "tiny-bert-encoder is made for 'tensorrt', and only ONNX models can be scored"),
        (missing_graph, r"model\.onnx: no such file; export the model again"),
        (half_a_graph, r"model\.onnx: ONNX Runtime cannot load it"),
        (graph_of_another_model, "the config belongs to another model, export it again"),
        (missing_tokenizer, r"tokenizer\.json: cannot be read"),
        (broken_tokenizer, r"tokenizer\.json: not a tokenizer file"),
    ],
)
def test_artefacts_that_cannot_be_used_are_a_configuration_error(
    copy: Path, ask: Ask, harm: Callable[[Path], None], message: str
) -> None:
    harm(copy)
    scorer = LocalScorer(copy, NAME)
    with pytest.raises(ConfigurationError, match=message):
        ask(scoring(scorer), 30.0)
    with pytest.raises(ConfigurationError, match=message):
        scorer.load()
    assert ask(scorer.is_ready, 30.0) is False


def test_what_was_repaired_is_loaded_by_the_next_call(copy: Path) -> None:
    scorer = LocalScorer(copy, NAME)
    path = copy / f"{NAME}-encoder" / "1" / "model.onnx"
    path.rename(copy / "away")
    with pytest.raises(ConfigurationError):
        score(scorer)
    (copy / "away").rename(path)
    assert score(scorer).model_version == "1"


def test_the_steps_of_a_model_are_no_model(tiny_repository: Path) -> None:
    with pytest.raises(ConfigurationError, match="ask for the ensemble, not for its steps"):
        LocalScorer(tiny_repository, f"{NAME}-encoder").load()


def test_a_logit_that_is_not_finite_is_an_error_and_never_a_rank(copy: Path, ask: Ask) -> None:
    path = copy / f"{NAME}-encoder" / "1" / "model.onnx"
    graph = onnx.load(path)
    (bias,) = [weight for weight in graph.graph.initializer if weight.name.endswith("classifier.bias")]
    bias.CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float32), bias.name))
    onnx.save(graph, path)
    with pytest.raises(InvalidResponseError, match=r"4 values that are not finite, the first \(nan\) in row 0"):
        ask(scoring(LocalScorer(copy, NAME)), 30.0)


def test_tokens_that_the_graph_does_not_know_are_an_inference_error(copy: Path, ask: Ask) -> None:
    path = copy / f"{NAME}-tokenizer" / "1" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["zyzzyva"])
    tokenizer.save(str(path))
    scorer = LocalScorer(copy, NAME)
    assert ask(scoring(scorer), 30.0).token_count > 0
    with pytest.raises(InferenceError, match="ONNX Runtime cannot score these tensors"):
        ask(scoring(scorer, PairRequest(b"a zyzzyva", (b"a weevil",))), 30.0)


def test_a_missing_extra_is_named_at_once(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_rerank_server", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'triton-rerank\[local\]'"):
        LocalScorer(tiny_repository, NAME)


def test_an_extra_without_its_engine_is_named_when_the_model_loads(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton_rerank_server.backends.encoder.engine", None)
    scorer = LocalScorer(tiny_repository, NAME)
    with pytest.raises(ConfigurationError, match=r"pip install 'triton-rerank\[local\]'"):
        scorer.load()


def test_a_number_of_threads_below_zero_is_refused(tiny_repository: Path) -> None:
    with pytest.raises(ConfigurationError, match="threads is -1"):
        LocalScorer(tiny_repository, NAME, threads=-1)


def test_an_activated_version_is_loaded_once_model_info_has_seen_it(
    two_versions: Path, tmp_path: Path, ask: Ask
) -> None:
    copy = Path(shutil.copytree(two_versions, tmp_path / "model_repository"))
    scorer = LocalScorer(copy, NAME)
    newer = ask(scoring(scorer), 30.0)
    assert newer.model_version == "2"
    activate(copy, NAME, 1)
    assert ask(scoring(scorer), 30.0).model_version == "2"
    assert ask(scorer.model_info, 30.0).version == "1"
    older = ask(scoring(scorer), 30.0)
    assert older.model_version == "1"
    np.testing.assert_allclose(newer.logits - older.logits, 3.0, atol=1e-4)  # version 2 is 3 higher


def test_close_frees_the_model_and_a_later_call_loads_it_again(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    scorer = LocalScorer(tiny_repository, NAME)
    scorer.close()
    first = logits_of(scorer)
    scorer.close()
    assert scorer._loaded is None
    asyncio.run(scorer.aclose())
    second = logits_of(scorer)
    assert len(loads) == 2
    np.testing.assert_array_equal(first, second)


def count_loads(monkeypatch: pytest.MonkeyPatch, delay_s: float = 0.0) -> list[Path]:
    """Model files opened from now on, each after a delay."""
    opened: list[Path] = []
    open_engine = Engine.__init__

    def counted(self: Engine, model_file: Path, *arguments: Any) -> None:
        opened.append(model_file)
        time.sleep(delay_s)
        open_engine(self, model_file, *arguments)

    monkeypatch.setattr(Engine, "__init__", counted)
    return opened


def test_threads_share_one_model_and_get_their_own_answers(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch, delay_s=0.2)
    scorer = LocalScorer(tiny_repository, NAME, threads=1)
    requests = [
        PairRequest(f"query {n}".encode(), tuple(f"{n} file {m}".encode() for m in range(5 + n))) for n in range(16)
    ]
    with ThreadPoolExecutor(16) as pool:
        parallel = list(pool.map(lambda request: logits_of(scorer, request), requests * 3))
    assert len(loads) == 1
    for request, logits in zip(requests * 3, parallel, strict=True):
        np.testing.assert_allclose(logits, logits_of(scorer, request), atol=1e-5)


@pytest.mark.alone
def test_a_deadline_holds_while_the_model_loads_and_the_loading_goes_on(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask, busy: BusyClock
) -> None:
    loads = count_loads(monkeypatch, delay_s=1.0)
    scorer = LocalScorer(tiny_repository, NAME)
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"timeout_s of 0\.2 s passed before local had scored 4 documents"):
        ask(lambda call: failing_in_time(scorer.score(REQUEST, call), start, busy), 0.2)
    assert ask(scorer.is_ready, 0.01) is False
    assert ask(scoring(scorer), 30.0).model_version == "1"
    assert len(loads) == 1


async def failing_in_time(job: Coroutine[Any, Any, Scored], start: float, busy: BusyClock) -> None:
    """Hand on the job's error, which must come within 0.2 s of a deadline of 0.2 s, and not after the load."""
    try:
        await job
    finally:
        assert time.monotonic() - start >= 0.2 and busy.own_s(start) < 0.4


def test_a_call_whose_time_is_up_starts_nothing(tiny_repository: Path, ask: Ask) -> None:
    scorer = LocalScorer(tiny_repository, NAME)
    with pytest.raises(DeadlineExceededError):
        ask(scoring(scorer), 1e-9)
    assert scorer._pool is None


def test_a_cancelled_task_stops_its_thread(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = LocalScorer(tiny_repository, NAME, threads=1)
    scorer.load()
    batches = count_batches(monkeypatch, delay_s=0.02)
    request = PairRequest(b"q", tuple(b"%d " % number + LONG for number in range(200)))

    async def main() -> None:
        task = asyncio.create_task(scorer.score(request, Call(Deadline(60.0), AsyncRuntime())))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert_stopped(batches)


def count_batches(monkeypatch: pytest.MonkeyPatch, delay_s: float = 0.0) -> list[float]:
    """Time of each micro-batch from now on."""
    times: list[float] = []
    logits = Engine.logits

    def counted(self: Engine, requests: Any) -> Any:
        times.append(time.monotonic())
        time.sleep(delay_s)
        return logits(self, requests)

    monkeypatch.setattr(Engine, "logits", counted)
    return times


def assert_stopped(batches: list[float]) -> None:
    time.sleep(0.5)  # the micro-batch that runs may end
    assert batches
    before = len(batches)
    time.sleep(0.5)
    assert len(batches) == before


def test_the_event_loop_is_not_held_up(tiny_repository: Path) -> None:
    scorer = LocalScorer(tiny_repository, NAME, threads=1)
    request = PairRequest(b"q", tuple(b"%d " % number + LONG for number in range(800)))

    async def main() -> tuple[int, float]:
        scored = asyncio.create_task(scorer.score(request, Call(Deadline(60.0), AsyncRuntime())))
        ticks, start = 0, time.monotonic()
        while not scored.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert (await scored).truncated.all()
        return ticks, time.monotonic() - start

    ticks, elapsed_s = asyncio.run(main())
    assert ticks > elapsed_s / 0.01 / 4


def test_more_calls_than_threads_keep_their_deadlines(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch, busy: BusyClock
) -> None:
    scorer = LocalScorer(tiny_repository, NAME, threads=1)
    scorer.load()
    count_batches(monkeypatch, delay_s=0.5)
    before, start = threading.active_count(), time.monotonic()

    async def main() -> list[Any]:
        scored = [scorer.score(REQUEST, Call(Deadline(0.2), AsyncRuntime())) for _ in range(40)]
        return await asyncio.gather(*(failing_in_time(each, start, busy) for each in scored), return_exceptions=True)

    assert {type(outcome) for outcome in asyncio.run(main())} == {DeadlineExceededError}
    assert threading.active_count() < before + 20  # those of tests before it are not ours


def test_a_model_that_was_loaded_before_a_fork_says_so(tiny_repository: Path) -> None:
    script = f"""
        import os
        from triton_rerank.core.deadline import Deadline
        from triton_rerank.core.runtime import SyncRuntime, run_sync
        from triton_rerank.errors import ConfigurationError
        from triton_rerank.core.scorer import Call, PairRequest
        from triton_rerank.local.scorer import LocalScorer

        def score(scorer):
            return run_sync(scorer.score(PairRequest(b"q", (b"d",)), Call(Deadline(20.0), SyncRuntime()))).served_by

        used, unused = (LocalScorer({str(tiny_repository)!r}, "tiny-bert") for _ in range(2))
        used.load()
        if os.fork() == 0:
            try:
                score(used)
            except ConfigurationError as error:
                print("before process" in str(error), score(unused), flush=True)
            used.close()
            os._exit(0)
        os.wait()
        print(score(used))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["True", "local", "local"], done.stderr


def test_importing_the_scorer_imports_no_engine() -> None:
    script = "import sys, triton_rerank.local.scorer as _; print({'onnxruntime', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
