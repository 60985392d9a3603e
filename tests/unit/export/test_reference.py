"""PyTorch's side of the gate: which weights it reads, and what it says of those that it does not."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import write_fine_tuned

from triton_rerank.repository import read_artefacts
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate.reference import Reference, load_model
from triton_rerank_server.backends.tokenizer.pairs import PairTokenizer

QUERY, DOCUMENTS = "binary heap", ["keeps its largest element at the root", "Paris, France", ""]


@pytest.fixture
def pickled(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """tiny-bert with pytorch_model.bin instead of safetensors."""
    folder = Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "tiny-bert"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def logits(folder: Path, *, allow_pickle: bool = False) -> list[float]:
    reference = Reference(folder, max_length=128, allow_pickle=allow_pickle)
    return [float(logit) for logit in reference.logits(QUERY, DOCUMENTS)]


def test_a_pickle_is_read_only_if_allowed(checkpoints: dict[str, Path], pickled: Path) -> None:
    with pytest.raises(ExportError, match="the checkpoint cannot be loaded"):
        load_model(pickled)
    assert logits(pickled, allow_pickle=True) == pytest.approx(logits(checkpoints["tiny-bert"]), abs=1e-5)


def test_safetensors_win_over_a_pickle(checkpoints: dict[str, Path], pickled: Path, tmp_path: Path) -> None:
    other = write_fine_tuned(checkpoints["tiny-bert"], tmp_path / "other")
    shutil.copyfile(other / "model.safetensors", pickled / "model.safetensors")
    found = logits(pickled, allow_pickle=True)
    assert found == pytest.approx(logits(other), abs=1e-5)
    assert found != pytest.approx(logits(checkpoints["tiny-bert"]), abs=1.0)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(pickled: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (made,)

    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload()}, protocol=2))
    with pytest.raises(ExportError, match="the checkpoint cannot be loaded"):
        load_model(pickled, allow_pickle=True)
    torch.save({"weight": Payload()}, pickled / "pytorch_model.bin")
    with pytest.raises(ExportError, match="the checkpoint cannot be loaded"):
        load_model(pickled, allow_pickle=True)
    assert not made.exists()


def test_transformers_says_nothing_on_the_way(checkpoints: dict[str, Path]) -> None:
    """Its advice to pad in another way would stand in the middle of the command's own words."""
    code = (
        "import sys; from pathlib import Path; from triton_rerank_export.gate.reference import Reference; "
        "r = Reference(Path(sys.argv[1]), max_length=8); "
        "r.tokens('heap', 'a very long document ' * 99, width=8); r.logits('heap', ['a very long document ' * 99])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkpoints["tiny-bert"])], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlmr"])
def test_tokens_are_what_a_plain_call_of_transformers_gives(checkpoints: dict[str, Path], name: str) -> None:
    """Where nothing is cut of the query, ours is the call that a user of transformers would make."""
    from transformers import AutoTokenizer

    reference = Reference(checkpoints[name], max_length=64)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[name])
    for document in (*DOCUMENTS, "word " * 100):
        plain = tokenizer([QUERY], [document], truncation="only_second", max_length=64, padding="max_length")
        row = reference.tokens(QUERY, document, width=64)
        assert {key: [ids.tolist()] for key, ids in row.items()} == dict(plain)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlmr"])
@pytest.mark.parametrize("meaning", ["text", "special"])
def test_special_tokens_in_a_text_mean_what_the_served_step_takes_them_for(
    tiny_repository: Path, checkpoints: dict[str, Path], name: str, meaning: Literal["text", "special"]
) -> None:
    document = "one [SEP] two </s> three<s> <pad> [CLS] [MASK]"
    reference = Reference(checkpoints[name], max_length=128, special_tokens_in_text=meaning)
    parameters = {**read_artefacts(tiny_repository, name).tokenizer_parameters, "special_tokens_in_text": meaning}
    served = PairTokenizer.of_parameters(read_artefacts(tiny_repository, name).tokenizer_file, parameters)
    expected = served.encode("a [SEP] </s> query", [document]).input_ids[0]
    assert (
        reference.tokens("a [SEP] </s> query", document, width=len(expected))["input_ids"].tolist() == expected.tolist()
    )


def test_an_activation_that_is_not_a_number_is_the_largest(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["tiny-bert"]
    reference = Reference(folder, max_length=128, watched=r"\.encoder\.")
    reference.logits(QUERY, DOCUMENTS)
    assert reference.peak is not None
    before = reference.peak.value
    assert 0.0 < before < 100.0
    reference.peak.look("a.module", torch.tensor([0.0, -2 * before]))
    assert (reference.peak.value, reference.peak.module) == (2 * before, "a.module")
    reference.peak.look("another.module", torch.tensor([1.0, float("nan")]))
    reference.peak.look("a.module", torch.tensor([5.0, float("inf")]))
    assert np.isnan(reference.peak.value) and reference.peak.module == "another.module"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_no_number_are_said_to_be_damaged(
    checkpoints: dict[str, Path], tmp_path: Path, value: float
) -> None:
    folder = Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "tiny-bert"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ExportError, match=rf"PyTorch itself gives the logit {value} for 'binary heap': its weights are"
    ):
        logits(folder)
