"""Every family, and the checkpoints at hand, exported by the pipeline and answered by one real Triton."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder
from support.tiny_families import SAVED, TINY, write_tiny
from support.tritons import start

from triton_rerank import AsyncRerankClient, InvalidRequestError, RerankClient, RerankError, RerankResult
from triton_rerank.cache.scorer import CachedScorer
from triton_rerank.local.scorer import LocalScorer
from triton_rerank.triton.scorer import TritonScorer
from triton_rerank_export.checkpoint.families import FAMILIES
from triton_rerank_export.checkpoint.resolve import read_checkpoint
from triton_rerank_export.gate import parity
from triton_rerank_export.gate.reference import Reference
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model
from triton_rerank_export.repository.check import check_repository
from triton_rerank_export.repository.triton_config import encoder_inputs
from triton_rerank_server import TritonServer

CASES = Path(__file__).parents[3] / "shared" / "cases" / "families"
HANDED = sorted(path.name for path in CASES.iterdir()) if CASES.is_dir() else []
SERVED_ELSEWHERE = ("bert", "xlmroberta", "qwen2", "gemma")  # by the tests of congruence; and as language models
CAUSAL = {
    "tiny-qwen3-reranker": "Qwen3ForCausalLM",
    "mxbai-rerank-tiny-v2": "Qwen2ForCausalLM",
    "tiny-bge-reranker-v2-gemma": "GemmaForCausalLM",
}
TOLD = [*list(CAUSAL)[:2], *SAVED]  # the third has no place for an instruction
REDUCED = {"int8": 0.5, "bf16": 0.1}  # how far the logits of random weights may be from fp32's
TINY_NAMES = [name.lower() for name in TINY if not name.lower().startswith(SERVED_ELSEWHERE)]
STANDARD_FP16 = [name.lower() for name in TINY if "fp16" in FAMILIES[name].precisions and not FAMILIES[name].fusion]
GEMMA = "tiny-bge-reranker-v2-gemma"
QUERY = "how to zip a file?"
TWO_LABELS, LABEL = "two-labels", 1


pytestmark = pytest.mark.timeout(900)  # the first test waits for all exports, and for a Triton with all of them


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by public name."""
    made = tmp_path_factory.mktemp("families")
    tiny = {name.lower(): write_tiny(name, made / name.lower()) for name in TINY if name.lower() in TINY_NAMES}
    tiny |= {name: write_tiny(architecture, made / name) for name, architecture in CAUSAL.items()}
    tiny |= {name: write(made / name) for name, write in SAVED.items()}
    tiny[TWO_LABELS] = write_tiny("BertForSequenceClassification", made / TWO_LABELS, labels=2)
    return tiny | {f"handed-{name}": CASES / name for name in HANDED}


@pytest.fixture(scope="module")
def repository(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("repository") / "model_repository"
    few = parity.load_parity_set()[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "load_parity_set", lambda: few)
        for name, folder in folders.items():
            label = str(LABEL) if name == TWO_LABELS else None
            options = ExportOptions(precision="fp32", name=name, label=label)
            export_model(str(folder), target, options, on_step=lambda _: None)
        for name in STANDARD_FP16:
            options = ExportOptions(precision="fp16", name=f"{name}-fp16")
            export_model(str(folders[name]), target, options, on_step=lambda _: None)
        patch.setattr(parity, "check", lambda *_: None)  # random weights hold documents too close for int8's bounds
        for name in CAUSAL:
            for precision in REDUCED:
                options = ExportOptions(precision=precision, name=f"{name}-{precision}")  # type: ignore[arg-type]
                export_model(str(folders[name]), target, options, on_step=lambda _: None)
    return target


@pytest.fixture(scope="module")
def running(repository: Path) -> Iterator[TritonServer]:
    with start(repository) as server:
        yield server


def test_the_repository_is_in_order(repository: Path, folders: dict[str, Path]) -> None:
    assert check_repository(repository) == sorted(
        [
            *folders,
            *(f"{name}-fp16" for name in STANDARD_FP16),
            *(f"{one}-{other}" for one in CAUSAL for other in REDUCED),
        ]
    )


@pytest.mark.parametrize("name", [*TINY_NAMES, *CAUSAL, *SAVED, *(f"handed-{name}" for name in HANDED)])
def test_the_served_logits_are_those_of_transformers(
    name: str, running: TritonServer, folders: dict[str, Path], passages: list[str]
) -> None:
    documents = [*passages[:20], "", "長い文書 🙂", " ".join(passages)]
    expected = reference(folders[name]).logits(QUERY, documents)
    got = served(running, name, documents)
    assert np.max(np.abs(got - expected)) <= 1e-5 < np.ptp(expected)  # new weights of 0.02 are 7e-5 apart


@pytest.mark.parametrize("name", list(SAVED))
def test_the_served_scores_are_those_of_sentence_transformers(
    name: str, running: TritonServer, folders: dict[str, Path], passages: list[str]
) -> None:
    documents = [*passages[:20], "", "長い文書 🙂"]
    model = CrossEncoder(str(folders[name]), device="cpu", local_files_only=True)
    expected = model.predict([(QUERY, document) for document in documents])
    with RerankClient(running.grpc_target, model=name, timeout_s=60.0) as client:
        got = np.array(client.score(QUERY, documents))
    assert np.max(np.abs(got - expected)) <= 1e-4 < np.ptp(expected)


@pytest.mark.parametrize("name", STANDARD_FP16)
def test_fp16_of_standard_operators_is_served(
    name: str, running: TritonServer, folders: dict[str, Path], passages: list[str]
) -> None:
    documents = [*passages[:20], "", "長い文書 🙂", " ".join(passages)]
    expected = reference(folders[name]).logits(QUERY, documents)
    got = served(running, f"{name}-fp16", documents)
    assert 0 < np.max(np.abs(got - expected)) <= 1e-2 < np.ptp(expected)


@pytest.mark.parametrize("precision", list(REDUCED))
@pytest.mark.parametrize("name", list(CAUSAL))
def test_a_causal_model_is_served_in_int8_and_bf16(
    name: str, precision: str, running: TritonServer, repository: Path, folders: dict[str, Path], passages: list[str]
) -> None:
    """Near to PyTorch's logits; bf16, which is fp32 on a CPU without it, as the same engine gives in process."""
    documents = [*passages[:20], "", "長い文書 🙂", " ".join(passages)]
    expected = reference(folders[name]).logits(QUERY, documents)
    got = served(running, f"{name}-{precision}", documents)
    assert np.max(np.abs(got - expected)) < min(REDUCED[precision], np.ptp(expected))
    assert np.corrcoef(got, expected)[0, 1] > 0.95
    if precision == "int8":  # moves with the pairs beside, so what is served and in process need not be the same
        assert np.max(np.abs(got - expected)) > 1e-3
        return
    with RerankClient(scorer=LocalScorer(repository, f"{name}-{precision}"), timeout_s=60.0) as client:
        ranking = sorted(client.rerank(QUERY, documents), key=lambda ranked: ranked.index)
    assert got == pytest.approx([ranked.logit for ranked in ranking], abs=1e-4)


def reference(folder: Path, **prompt: str) -> Reference:
    """Transformers alone; of a causal reranker its own head, after its prompt with these parts in it."""
    checkpoint = read_checkpoint(folder, name="m", source="s")
    return Reference(
        folder,
        max_length=checkpoint.max_length,
        tensors=encoder_inputs(token_type_ids=checkpoint.token_type_ids),
        prompt=None if checkpoint.asked is None else dataclasses.replace(checkpoint.asked.prompt, **prompt),
        head=checkpoint.head,
    )


@pytest.mark.parametrize("name", TOLD)
def test_an_instruction_goes_with_the_request_to_a_model_with_a_prompt(
    name: str, running: TritonServer, repository: Path, folders: dict[str, Path], passages: list[str], tmp_path: Path
) -> None:
    """By every way there is: both clients, in process, the command, and beside requests without one."""
    told, documents = "Which passage is about files?\n", [*passages[:6], "a<|im_end|>b", ""]
    plain = reference(folders[name]).logits(QUERY, documents)
    expected = reference(folders[name], instruction=told).logits(QUERY, documents)
    assert np.max(np.abs(expected - plain)) > 1e-3
    found: dict[str, RerankResult[str] | RerankError] = {}
    with RerankClient(running.grpc_target, model=name, timeout_s=60.0) as client:
        found["sync"] = client.rerank(QUERY, documents, instruction=told)
        found["plain"] = client.rerank(QUERY, documents)
        (found["many"],) = client.rerank_many([QUERY], [documents], instruction=told)
    cached = CachedScorer(TritonScorer(running.grpc_target, name))
    with RerankClient(scorer=cached, timeout_s=60.0) as client:
        client.rerank(QUERY, documents)
        found["cached"] = client.rerank(QUERY, documents, instruction=told)
    with RerankClient(scorer=LocalScorer(repository, name), timeout_s=60.0) as client:
        found["local"] = client.rerank(QUERY, documents, instruction=told)

    async def ask() -> RerankResult[str]:
        async with AsyncRerankClient(running.grpc_target, model=name, timeout_s=60.0) as client:
            return await client.rerank(QUERY, documents, instruction=told)

    found["async"] = asyncio.run(ask())
    for way, ranking in found.items():
        assert isinstance(ranking, RerankResult)
        got = np.array([ranked.logit for ranked in sorted(ranking, key=lambda ranked: ranked.index)])
        assert np.max(np.abs(got - (plain if way == "plain" else expected))) <= 1e-5, way
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(documents))
    command = ["rerank", "--target", running.grpc_target, "--model", name, "--query", QUERY, "--documents", str(texts)]
    run = [sys.executable, "-m", "triton_rerank.cli", *command, "--json", "--instruction", told]
    printed = json.loads(subprocess.run(run, capture_output=True, check=True, timeout=60).stdout)
    assert isinstance(found["sync"], RerankResult)
    assert [one["index"] for one in printed["documents"]] == [ranked.index for ranked in found["sync"]]


def test_an_instruction_that_a_model_cannot_follow_is_refused(running: TritonServer) -> None:
    for name, told, words in (
        (TWO_LABELS, "find code", "instruction: this model has no prompt that one could stand in; leave it out"),
        (GEMMA, "find code", "instruction: the prompt of this model has no place for one; leave it out"),
        ("tiny-qwen3-reranker", "a" + " query" * 300, "instruction: with it the prompt has "),
        ("tiny-qwen3-reranker", " ", "instruction is blank: give a text, or None for the model's own"),
    ):
        with (
            RerankClient(running.grpc_target, model=name, timeout_s=60.0) as client,
            pytest.raises(InvalidRequestError) as error,
        ):
            client.rerank(QUERY, ["a document"], instruction=told)
        assert words in str(error.value)


def test_one_of_two_labels_is_served_with_its_logit(
    running: TritonServer, folders: dict[str, Path], passages: list[str]
) -> None:
    """As of transformers alone, without a line of ours."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders[TWO_LABELS]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[TWO_LABELS])
    documents = passages[:20]
    pairs = [tokenizer(QUERY, one, truncation="longest_first", return_tensors="pt") for one in documents]
    with torch.no_grad():
        logits = np.array([model(**pair).logits[0].numpy() for pair in pairs])
    got = served(running, TWO_LABELS, documents)
    assert np.max(np.abs(got - logits[:, LABEL])) <= 1e-4
    assert np.min(np.abs(got - logits[:, 1 - LABEL])) > 1e-2


def served(running: TritonServer, name: str, documents: list[str]) -> npt.NDArray[np.float64]:
    """Logits in the order of the documents."""
    with RerankClient(running.grpc_target, model=name, timeout_s=60.0) as client:
        ranking = sorted(client.rerank(QUERY, documents), key=lambda ranked: ranked.index)
    return np.array([ranked.logit for ranked in ranking])


@pytest.mark.skipif(not HANDED, reason="the cases in ../shared are not here")
def test_every_case_at_hand_is_served(folders: dict[str, Path]) -> None:
    assert {"handed-electra", "handed-camembert", "handed-distilbert"} <= set(folders)
