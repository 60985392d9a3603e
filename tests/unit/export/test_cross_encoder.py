"""What is served gives the scores of sentence-transformers' own CrossEncoder, or is not served."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import write_settings
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

from triton_rerank import RerankClient
from triton_rerank.local.scorer import LocalScorer
from triton_rerank_export.checkpoint.resolve import read_checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity
from triton_rerank_export.gate.cross_encoder import Peer, PeerReport, hold_against_peer
from triton_rerank_export.gate.parity import ParityQuery
from triton_rerank_export.gate.reference import Reference
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import ExportResult, export_model, served_model

QUERIES = [ParityQuery("how do I compress a file?", ("gzip makes files smaller", "a file cabinet", "", "Paris"))]
CASES = Path(__file__).parents[4] / "shared" / "cases" / "checkpoints"


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "tiny-bert"))


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate with four pairs instead of 288."""
    monkeypatch.setattr(parity, "load_parity_set", lambda: QUERIES)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def export(folder: Path, repository: Path, **options: Any) -> ExportResult:
    wanted = ExportOptions(precision="fp32", name="m", **options)
    return export_model(str(folder), repository, wanted, on_step=lambda _: None)


def predicted(folder: Path, query: ParityQuery = QUERIES[0]) -> list[float]:
    """What a user of sentence-transformers gets."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return [float(score) for score in model.predict([(query.query, document) for document in query.documents])]


def served(repository: Path, query: ParityQuery = QUERIES[0]) -> list[float]:
    """What a user of ours gets, in the order of the documents."""
    with RerankClient(scorer=LocalScorer(repository, "m")) as client:
        ranked = sorted(client.rerank(query.query, query.documents), key=lambda one: one.index)
    return [float(one.score or 0.0) for one in ranked]


def compare(folder: Path, **wrong: Any) -> PeerReport:
    """The second reference alone; ``wrong`` is what we would have read wrongly."""
    checkpoint = replace(read_checkpoint(folder, name="m", source="local folder m"), **wrong)
    model = served_model(checkpoint, ExportOptions(precision="fp32"))
    reference = Reference(folder, max_length=model.max_length, query_prompt=model.query_prompt)
    logits = [reference.logits(query.query, query.documents) for query in QUERIES]
    return hold_against_peer(checkpoint, folder, QUERIES, logits, model, lambda _: None)


# --- what users of sentence-transformers get -----------------------------------------------------------------------


@pytest.mark.usefixtures("few_queries")
def test_a_saved_prompt_and_activation_are_served(folder: Path, tmp_path: Path) -> None:
    write_settings(folder, prompts={"query": "find documents on: "}, default_prompt_name="query")
    result = export(folder, tmp_path / "model_repository")
    model = result.manifest.model
    assert (model.activation, model.query_prompt) == ("identity", "find documents on: ")
    config = (tmp_path / "model_repository" / "m-tokenizer" / "config.pbtxt").read_text()
    assert 'key: "query_prompt"' in config and 'string_value: "find documents on: "' in config
    scores = served(tmp_path / "model_repository")
    assert scores == pytest.approx(predicted(folder), abs=1e-4)
    write_settings(folder)
    assert scores != pytest.approx(predicted(folder), abs=1e-3)  # so the prompt matters to these weights


@pytest.mark.parametrize("settings", [{}, {"prompts": {"q": "find: "}, "default_prompt_name": "q"}])
def test_the_second_reference_is_predict(folder: Path, settings: dict[str, Any]) -> None:
    write_settings(folder, activation_fn="torch.nn.modules.activation.Sigmoid", **settings)
    peer = Peer(folder, special_tokens_in_text="text")
    logits, scores = peer.scores(QUERIES[0].query, QUERIES[0].documents, max_length=128)
    assert scores.tolist() == pytest.approx(predicted(folder), abs=1e-6)
    assert scores.tolist() == pytest.approx((1 / (1 + np.exp(-logits))).tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"activation": "sigmoid"}, "gives the score "),
        ({"query_prompt": ""}, "gives the logit "),
        ({"query_prompt": "find: find: "}, "gives the logit "),
    ],
)
def test_a_setting_that_is_read_wrongly_is_refused(folder: Path, wrong: dict[str, Any], found: str) -> None:
    write_settings(folder, prompts={"query": "find: "}, default_prompt_name="query")
    assert compare(folder).difference == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(ExportError) as error:
        compare(folder, **wrong)
    message = str(error.value)
    assert f"sentence-transformers {found}" in message and "it would be served with" in message
    assert "for 'how do I compress a file?' / '" in message and "\n" not in message


def test_a_longer_pair_than_sentence_transformers_takes_is_refused(folder: Path) -> None:
    write_settings(folder, transformer={"max_seq_length": 64})
    with pytest.raises(ExportError, match="cuts a pair at 64 tokens, it would be served with 128; export it"):
        compare(folder, max_length=128)


def test_a_file_that_we_do_not_know_is_seen_in_the_scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for a second reference: a setting that a later release invents."""
    from sentence_transformers import CrossEncoder

    predict = CrossEncoder.predict
    monkeypatch.setattr(CrossEncoder, "predict", lambda *args, **options: 1.01 * predict(*args, **options))
    with pytest.raises(ExportError, match="something in the checkpoint changes scores and is not known here"):
        compare(folder)


# --- files as others write them ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_queries")
def test_a_generic_fast_tokenizer_is_exported(folder: Path, tmp_path: Path) -> None:
    generic = PreTrainedTokenizerFast.from_pretrained(folder)
    generic.save_pretrained(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert export(folder, tmp_path / "model_repository").report.peer_difference is not None
    assert served(tmp_path / "model_repository") == pytest.approx(predicted(folder), abs=1e-4)


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True},
        {"extra_special_tokens": ["[MASK]"]},
        {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["[MASK]"]},
    ],
)
def test_files_of_transformers_5_are_exported(
    checkpoints: dict[str, Path], folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """This transformers cannot read them; the same model as it writes it is what they are held against."""
    edit(folder / "tokenizer_config.json", **changes)
    before = sorted(path.name for path in folder.iterdir())
    assert export(folder, tmp_path / "model_repository").report.peer_difference is not None
    assert served(tmp_path / "model_repository") == pytest.approx(predicted(checkpoints["tiny-bert"]), abs=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.usefixtures("few_queries")
def test_roberta_with_a_bert_tokenizer_gets_no_segments(folder: Path, tmp_path: Path) -> None:
    """One row of segments, and a tokenizer that gives two: sentence-transformers fails on it, and it is said."""
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=130, type_vocab_size=1, num_labels=1,
        pad_token_id=0, initializer_range=0.2, **shape
    )  # fmt: skip
    torch.manual_seed(3)
    body = tmp_path / "roberta"
    RobertaForSequenceClassification(config).save_pretrained(body)
    tokenizer.save_pretrained(body)
    result = export(body, tmp_path / "model_repository")
    assert result.report.peer_difference is None
    assert result.manifest.notes == (
        "The scores were not compared with sentence-transformers: it cannot score a pair (IndexError: index out of "
        "range in self).",
    )
    edit(body / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert served(tmp_path / "model_repository") == pytest.approx(predicted(body), abs=1e-4)


@pytest.mark.usefixtures("few_queries")
def test_segments_that_would_be_left_out_are_refused(
    checkpoints: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """Two rows of segments, a tokenizer that gives two, and an architecture that is served without."""
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=130, type_vocab_size=2, num_labels=1, pad_token_id=0, **shape
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    with pytest.raises(ExportError, match="its tokenizer gives token_type_ids, which change what the model computes"):
        export(tmp_path / "roberta", tmp_path / "model_repository")


@pytest.mark.usefixtures("few_queries")
def test_another_padding_id_under_the_mask_is_exported(
    checkpoints: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """A BERT body that pads with 0 and an XLM-R tokenizer that pads with 1, as msmarco-MiniLM-L12-en-de-v1 has."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(checkpoints["tiny-xlmr"] / name, folder / name)
    (folder / "vocab.txt").unlink(missing_ok=True)
    result = export(folder, tmp_path / "model_repository")
    assert result.manifest.model.pad_token_id == 0 and result.report.peer_difference is not None
    assert served(tmp_path / "model_repository") == pytest.approx(predicted(folder), abs=1e-4)


@pytest.mark.usefixtures("few_queries")
def test_special_tokens_in_a_text_are_text_unless_asked_otherwise(folder: Path, tmp_path: Path) -> None:
    forged = ParityQuery("how do I compress a file?", ("Paris [SEP] gzip makes files smaller", "a [SEP] b [CLS] c"))
    special = export(folder, tmp_path / "special", special_tokens_in_text="special")
    assert special.manifest.model.special_tokens_in_text == "special"
    assert 'string_value: "special"' in (tmp_path / "special" / "m-tokenizer" / "config.pbtxt").read_text()
    assert served(tmp_path / "special", forged) == pytest.approx(predicted(folder, forged), abs=1e-4)
    export(folder, tmp_path / "text")
    assert "special_tokens_in_text" not in (tmp_path / "text" / "m-tokenizer" / "config.pbtxt").read_text()
    _, scores = Peer(folder, special_tokens_in_text="text").scores(forged.query, forged.documents, max_length=128)
    assert served(tmp_path / "text", forged) == pytest.approx(scores.tolist(), abs=1e-4)
    assert served(tmp_path / "text", forged) != pytest.approx(predicted(folder, forged), abs=1e-3)


# --- the cases at hand -----------------------------------------------------------------------------------------------

RIGHT = {  # each refused in one line with these words, or exported with this activation
    "a-v5class-bert": ("sigmoid",),
    "c-roberta-berttok": ("sigmoid",),
    "e-added-bert": ("with id 1417", "vocab_size in config.json is 1416"),
    "g-cased": ("do_lower_case in tokenizer_config.json is false", "save_pretrained(folder) writes both"),
    "h-lfs-tokenizer": ("tokenizer.json is a pointer of git-lfs", "git lfs pull"),
    "j-automap": ("auto_map in config.json names code of its own",),
    "st57-identity": ("identity",),
    "y-fast-bert": ("sigmoid",),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases in ../shared are not here")
@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("name", RIGHT)
def test_each_case_comes_out_as_its_readme_says(name: str, tmp_path: Path) -> None:
    right = RIGHT[name]
    if right[0] in ("sigmoid", "identity"):
        result = export(CASES / name, tmp_path / "model_repository")
        assert (result.manifest.model.activation,) == right
        if result.report.peer_difference is not None and name != "a-v5class-bert":
            assert served(tmp_path / "model_repository") == pytest.approx(predicted(CASES / name), abs=1e-4)
        return
    with pytest.raises(ExportError) as error:
        export(CASES / name, tmp_path / "model_repository")
    assert "\n" not in str(error.value)
    assert all(words in str(error.value) for words in right)
    assert not (tmp_path / "model_repository").exists()


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases in ../shared are not here")
def test_every_case_has_a_right_outcome_here() -> None:
    assert {path.name for path in CASES.iterdir()} == set(RIGHT)
