"""Causal rerankers: exported from a language model's own head, held to it, able to fail, and refused where unknown."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sentence_transformers import CrossEncoder
from support.checkpoints import read, refusal
from support.tiny_families import write_tiny, write_zerank_2
from transformers import GemmaForCausalLM

from triton_rerank_export.checkpoint import families, resolve
from triton_rerank_export.checkpoint.catalogue import CATALOGUE
from triton_rerank_export.checkpoint.causal import PROMPTS, Answers, find
from triton_rerank_export.checkpoint.resolve import Checkpoint, read_checkpoint
from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity, reference
from triton_rerank_export.gate.gate import run_gate
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import ExportResult, export_model, served_model

MODELS = {  # folder -> class; the folder's name says how it is asked
    "tiny-qwen3-reranker": "Qwen3ForCausalLM",
    "mxbai-rerank-tiny-v2": "Qwen2ForCausalLM",
    "zerank-2-tiny": "Qwen3ForCausalLM",
    "tiny-bge-reranker-v2-gemma": "GemmaForCausalLM",
}
QWEN3, GEMMA = "tiny-qwen3-reranker", "tiny-bge-reranker-v2-gemma"
FEW = parity.load_parity_set()[:2]
FP32 = ExportOptions(precision="fp32")


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "load_parity_set", lambda: FEW)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("causal")
    return {name: write_tiny(architecture, folder / name) for name, architecture in MODELS.items()}


Exported = Callable[[str], tuple[Path, ExportResult]]


@pytest.fixture(scope="module")
def exported(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model in fp32, exported once: repository, and how it compared."""

    @functools.cache
    def export(name: str) -> tuple[Path, ExportResult]:
        repository = tmp_path_factory.mktemp("exported") / "model_repository"
        return repository, export_model(str(made[name]), repository, FP32, on_step=lambda _: None)

    return export


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "prompt", "activation"),
    [
        (QWEN3, "qwen3-reranker", "sigmoid"),
        ("mxbai-rerank-tiny-v2", "mxbai-rerank-v2", "identity"),
        ("zerank-2-tiny", "zerank-2", "sigmoid"),
        (GEMMA, "bge-reranker-v2-gemma", "sigmoid"),
    ],
)
def test_fp32_gives_the_logits_of_the_language_models_own_head(
    made: dict[str, Path], exported: Exported, name: str, prompt: str, activation: str
) -> None:
    """The gate's other side is the language model: log probabilities of a yes and of a no, from the same pieces."""
    repository, result = exported(name)
    assert result.report.max_logit_difference < 1e-4
    assert f"it is that of {prompt}." in result.manifest.notes[0] and len(result.manifest.notes) == 1
    model = result.manifest.model
    assert (model.activation, model.prompt) == (activation, PROMPTS[prompt].prompt.parameters)
    (graph,) = repository.glob("*-encoder/1/model.onnx")
    words = json.loads((made[name] / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tables = [list(tensor.dims) for tensor in onnx.load(graph).graph.initializer if words in tensor.dims]
    assert tables == [[words, 32]]  # that of the tokens; the head's rows of all other words are gone


def test_int8_keeps_the_order_of_what_is_far_apart(made: dict[str, Path], tmp_path: Path) -> None:
    """Random weights hold documents close together, so the gate's bounds of int8 are not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "check", lambda report, precision: None)
        report = export_model(str(made[QWEN3]), tmp_path / "r", ExportOptions(), on_step=lambda _: None).report
    assert 0 < report.max_logit_difference < 0.5
    assert report.clear_tau > 0.9


def test_the_difference_of_the_logits_is_that_of_the_log_probabilities(made: dict[str, Path]) -> None:
    """And its sigmoid is the softmax over the yes and the no alone."""
    checkpoint = read(made[QWEN3])
    assert checkpoint.head is not None and checkpoint.head.negative is not None
    model = reference.load_language_model(checkpoint.folder)
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        last = model(input_ids=ids).logits[0, -1].double()
        score = reference.as_classifier(model, checkpoint.head).score
        hidden = model.base_model(input_ids=ids).last_hidden_state[:, -1]
        ours = float(score(hidden))
    yes, no = checkpoint.head.positive, checkpoint.head.negative
    chances = last.log_softmax(dim=-1)
    assert abs(ours - float(chances[yes] - chances[no])) < 1e-5 < abs(ours)
    assert abs(1 / (1 + np.exp(-ours)) - float(last[[yes, no]].softmax(dim=0)[0])) < 1e-6


def test_positions_as_transformers_5_writes_them_are_those_of_4(made: dict[str, Path], tmp_path: Path) -> None:
    """transformers 4 does not read them, and takes another base without a word."""
    old, new = (Path(shutil.copytree(made[QWEN3], tmp_path / name / QWEN3)) for name in ("old", "new"))
    edit(old, rope_theta=1e6)
    content = json.loads((new / "config.json").read_text(encoding="utf-8"))
    del content["rope_theta"]
    content["rope_parameters"] = {"rope_theta": 1e6, "rope_type": "default"}
    (new / "config.json").write_text(json.dumps(content), encoding="utf-8")
    logits = [reference.load_model(folder, head=read(folder).head) for folder in (old, new, made[QWEN3])]
    ids = torch.arange(5, 200)[None]
    with torch.no_grad():
        found = [float(model(input_ids=ids).logits) for model in logits]
    assert found[0] == found[1] != found[2]
    edit(new, rope_parameters={"rope_theta": 1e6, "rope_type": "yarn"})
    assert "its rope_type is yarn; supported is default" in refusal(new)


def test_gemmas_first_gelu_is_the_one_that_it_was_trained_with(made: dict[str, Path]) -> None:
    """Its makers' files said "gelu" and meant its approximation; transformers 4 takes them literally, 5 does not."""
    ids = torch.arange(5, 200)[None]
    with torch.no_grad():
        found = reference.load_language_model(made[GEMMA])(input_ids=ids).logits
        tanh, exact = (
            GemmaForCausalLM.from_pretrained(made[GEMMA], hidden_act=act).eval()(input_ids=ids).logits
            for act in ("gelu_pytorch_tanh", "gelu")
        )
    assert float((found - tanh).abs().max()) < 1e-5 < 1e-3 < float((found - exact).abs().max())


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_come_from_the_head_or_from_the_table_of_tokens(tmp_path: Path, tied: bool) -> None:
    folder = write_tiny("Qwen3ForCausalLM", tmp_path / QWEN3, tie_word_embeddings=tied)
    head = read(folder).head
    assert head is not None and head.negative is not None
    model = reference.load_language_model(folder)
    table = model.get_input_embeddings().weight if tied else model.lm_head.weight
    expected = (table[head.positive] - table[head.negative]).detach()
    assert torch.equal(reference.load_model(folder, head=head).score.weight.detach()[0], expected)
    alone = reference.load_model(folder, head=Answers(head.positive, None, 5.0)).score.weight.detach()[0]
    assert torch.allclose(alone, table[head.positive].detach() / 5)


# --- the gate can fail ----------------------------------------------------------------------------------------------


def gate(checkpoint: Checkpoint, repository: Path, **changes: Any) -> str:
    checkpoint = dataclasses.replace(checkpoint, name=checkpoint.folder.name)
    served = dataclasses.replace(served_model(checkpoint, FP32), **changes)
    with pytest.raises(ExportError) as error:
        run_gate(checkpoint, repository, served, on_step=lambda _: None)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        (name, piece)
        for name, prompt in ((QWEN3, "qwen3-reranker"), ("mxbai-rerank-tiny-v2", "mxbai-rerank-v2"))
        for piece in PROMPTS[prompt].prompt.parameters
        if not (piece == "prompt_query" and prompt == "mxbai-rerank-v2")  # for requests with an instruction
    ],
)
def test_a_wrong_piece_of_the_prompt_is_caught(
    made: dict[str, Path], exported: Exported, name: str, piece: str
) -> None:
    repository, result = exported(name)
    right = dict(result.manifest.model.prompt)
    for wrong in ("the " + right[piece], right[piece].replace("\n", " ", 1), None):
        if wrong == right[piece]:
            continue
        prompt = {key: text for key, text in (right | {piece: wrong}).items() if text is not None}
        if piece in ("prompt_query", "prompt_bare_query", "prompt_document") and wrong is None:
            continue  # refused as no prompt at all
        message = gate(read(made[name]), repository, prompt=prompt)
        assert "input_ids at position" in message and message.endswith(
            "do not belong together, or the prompt is another"
        )


def test_a_wrong_pad_is_caught(made: dict[str, Path], exported: Exported) -> None:
    message = gate(read(made[QWEN3]), exported(QWEN3)[0], pad_token_id=5)
    assert "is 5, transformers has 0" in message


def test_yes_and_no_in_each_others_place_are_caught(made: dict[str, Path], exported: Exported) -> None:
    checkpoint = read(made[QWEN3])
    assert checkpoint.head is not None and checkpoint.head.negative is not None
    swapped = Answers(checkpoint.head.negative, checkpoint.head.positive, 1.0)
    message = gate(dataclasses.replace(checkpoint, head=swapped), exported(QWEN3)[0])
    assert "the fp32 export does not agree with PyTorch" in message


def test_another_token_than_the_last_is_caught(made: dict[str, Path], tmp_path: Path) -> None:
    """The first token, and the last of the row with its padding, as a model without a padding id reads it."""

    @contextlib.contextmanager
    def at(model: Any, place: int) -> Iterator[None]:
        def forward(input_ids: Any, attention_mask: Any) -> Any:
            hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
            return {"logits": model.score(hidden[:, place])}

        model.forward = forward
        yield
        del model.forward

    for place in (0, -1):
        patch_of = functools.partial(at, place=place)
        wrong = dataclasses.replace(families.BY_CLASS["Qwen3ForCausalLM"], traced_as=patch_of, last_layer_cut=None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parity, "load_parity_set", lambda: FEW[:1])
            patch.setitem(families.BY_CLASS, "Qwen3ForCausalLM", wrong)
            with pytest.raises(ExportError, match="the fp32 export does not agree with PyTorch"):
                export_model(str(made[QWEN3]), tmp_path / f"r{place}", FP32, on_step=lambda _: None)


def test_a_dropped_layer_is_caught(made: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    one = Path(shutil.copytree(made[QWEN3], tmp_path / QWEN3))
    model = reference.load_language_model(one)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers, model.config.layer_types = 1, ["full_attention"]
    model.save_pretrained(one)
    assert "the fp32 export does not agree with PyTorch" in gate(read(one), exported(QWEN3)[0])


# --- as sentence-transformers saves them ----------------------------------------------------------------------------

CONTENT = """{{ messages | selectattr("role", "eq", "%s") | map(attribute="content") | first }}"""
TOLD = CONTENT.replace("first", 'first | default("Find it")') % "system"
QWEN3_PROMPT = PROMPTS["qwen3-reranker"].prompt
TEMPLATES = {  # jinja takes one line break at the end away
    "qwen3": f"{QWEN3_PROMPT.prefix}<Instruct>: {TOLD}\n<Query>: {CONTENT % 'query'}\n"
    f"<Document>: {CONTENT % 'document'}{QWEN3_PROMPT.suffix}\n",
    "chat": f"<|im_start|>system\n{CONTENT % 'query'}<|im_end|>\n<|im_start|>user\n{CONTENT % 'document'}<|im_end|>\n"
    "<|im_start|>assistant\n\n",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By CrossEncoder itself: LogitScore behind the language model, names that say nothing, a template of each form."""
    made, folders = tmp_path_factory.mktemp("templates"), {}
    for name, template in TEMPLATES.items():
        plain = write_tiny("Qwen3ForCausalLM", made / "plain" / name)
        (plain / "chat_template.jinja").write_text(template, encoding="utf-8")
        folders[name] = made / name
        CrossEncoder(str(plain), device="cpu", local_files_only=True).save_pretrained(str(folders[name]))
    return folders


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_checkpoint_with_its_own_template_gives_the_scores_of_sentence_transformers(
    saved: dict[str, Path], tmp_path: Path, name: str
) -> None:
    result = export_model(str(saved[name]), tmp_path / "r", FP32, on_step=lambda _: None)
    assert result.report.max_logit_difference < 1e-4
    assert result.report.notes == ()
    assert result.report.peer_difference is not None and result.report.peer_difference < 1e-4
    prompt = result.manifest.model.prompt
    assert (prompt.get("instruction"), "{instruction}" in prompt["prompt_query"]) == (
        ("Find it", True) if name == "qwen3" else (None, False)
    )


def test_a_template_that_is_not_made_of_pieces_is_found_by_the_scores(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["chat"], tmp_path / "m"))
    path = folder / "chat_template.jinja"
    longer = "{% if messages[0].content | length > 15 %}a long one {% endif %}"
    path.write_text(longer + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ExportError, match="sentence-transformers gives the logit"):
        export_model(str(folder), tmp_path / "r", FP32, on_step=lambda _: None)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("<|im_start|>no place", "its chat template does not hold the query once and then the document once"),
        ("{% bad", "its chat template cannot be rendered"),
        ("{{ raise_exception('not for you') }}", "not for you"),
        (None, "it has no chat template (chat_template.jinja), which holds the prompt of its query and document"),
    ],
)
def test_a_template_that_holds_no_pair_is_refused(
    saved: dict[str, Path], tmp_path: Path, template: str | None, words: str
) -> None:
    folder = Path(shutil.copytree(saved["chat"], tmp_path / "m"))
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert words in refusal(folder)


@pytest.fixture(scope="module")
def zerank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the cache of the hub has it: in a folder that is named after its commit."""
    return write_zerank_2(tmp_path_factory.mktemp("hub") / CATALOGUE["zerank-2"].revision)


@pytest.fixture
def cached(zerank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change, which is what the hub gives."""
    folder = Path(shutil.copytree(zerank, tmp_path / zerank.name))
    monkeypatch.setattr(resolve, "fetch", lambda model, *, check, on_step: check(folder) or folder)
    return folder


def test_zerank_2_by_name_gives_the_logit_of_yes_as_sentence_transformers_does(cached: Path, tmp_path: Path) -> None:
    """Its prompt is what its template says, with the place for an instruction that its authors name."""
    result = export_model("zerank-2", tmp_path / "r", FP32, on_step=lambda _: None)
    assert result.report.max_logit_difference < 1e-4
    assert result.report.peer_difference is not None and result.report.peer_difference < 1e-4
    assert result.report.notes == ()
    model = result.manifest.model
    assert (model.activation, model.licence, model.revision) == ("identity", "Apache-2.0", cached.name)
    assert model.prompt == PROMPTS["zerank-2"].prompt.parameters
    head = read(cached).head
    assert head is not None
    table = reference.load_language_model(cached).get_input_embeddings().weight
    score = reference.load_model(cached, head=head).score.weight.detach()[0]
    assert torch.equal(score, table[head.positive].detach())


def test_the_score_between_0_and_1_that_zerank_2_gave_before_comes_with_its_prompt_by_name(
    cached: Path, tmp_path: Path
) -> None:
    checkpoint = resolve.resolve("zerank-2", tmp_path, ExportOptions(prompt="zerank-2"))
    assert checkpoint.head is not None
    assert (checkpoint.activation, checkpoint.head.scale, checkpoint.templated) == ("sigmoid", 5.0, False)


def test_an_older_commit_of_zerank_2_must_be_accepted_with_its_licence(cached: Path, tmp_path: Path) -> None:
    (cached / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    older = f"zeroentropy/zerank-2@{'0' * 40}"
    with pytest.raises(ExportError, match="its licence is cc-by-nc-4.0, .* pass --accept-licence cc-by-nc-4.0"):
        resolve.resolve(older, tmp_path)
    assert resolve.resolve(older, tmp_path, ExportOptions(accept_licence="CC-BY-NC-4.0")).licence == "cc-by-nc-4.0"


def test_where_the_template_ends_is_what_its_author_saved(cached: Path) -> None:
    edit(cached, "sentence_bert_config.json", processing_kwargs={"chat_template": {"add_generation_prompt": False}})
    asked = read(cached).asked
    assert asked is not None
    assert asked.prompt.suffix == "<|im_end|>\n"


def test_logit_score_behind_a_classifier_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["chat"], tmp_path / "m"))
    edit(folder, architectures=["Qwen3ForSequenceClassification"])
    assert "modules.json puts LogitScore behind Qwen3ForSequenceClassification, which is no causal LM" in refusal(
        folder
    )


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("yes", "true_token_id and false_token_id in 1_LogitScore are ['yes', "),
        (1500, "LogitScore reads the token 1500;"),
    ],
)
def test_a_token_that_is_none_is_refused(saved: dict[str, Path], tmp_path: Path, token: object, words: str) -> None:
    folder = Path(shutil.copytree(saved["chat"], tmp_path / "m"))
    edit(folder, "1_LogitScore/config.json", true_token_id=token)
    assert words in refusal(folder)


# --- what is not known ----------------------------------------------------------------------------------------------


def test_a_language_model_whose_name_says_nothing_needs_a_prompt_by_name(made: dict[str, Path], tmp_path: Path) -> None:
    plain = Path(shutil.copytree(made[QWEN3], tmp_path / "chat"))
    message = refusal(plain)
    assert "its architecture is Qwen3ForCausalLM, a causal LM" in message
    assert (
        "are not in its files. --prompt names one of qwen3-reranker, mxbai-rerank-v2, zerank-2, zerank-1, " in message
    )
    assert "\n" not in message
    asked = read(plain, prompt="zerank-1").asked
    assert asked is not None and asked.name == "zerank-1"
    assert "--prompt 'other' is not known; there are qwen3-reranker, " in refusal(plain, prompt="other")


def test_the_id_tells_the_prompt(made: dict[str, Path], tmp_path: Path) -> None:
    plain = Path(shutil.copytree(made[QWEN3], tmp_path / "5fa94080caafeaa45a15d11f969d7978e087a3db"))
    for source, prompt in {
        "Qwen/Qwen3-Reranker-8B": "qwen3-reranker",
        "tomaarsen/Qwen3-Reranker-0.6B-seq-cls": "qwen3-reranker",
        "mixedbread-ai/mxbai-rerank-large-v2": "mxbai-rerank-v2",
        "zeroentropy/zerank-2-reranker": "zerank-2",
        "zeroentropy/zerank-1-small": "zerank-1",
    }.items():
        asked = read_checkpoint(plain, name="m", source=source).asked
        assert asked is not None and asked.name == prompt
    with pytest.raises(ExportError, match="a causal LM"):
        read_checkpoint(plain, name="m", source="Qwen/Qwen3-Embedding-0.6B")


def test_a_classifier_of_pairs_takes_no_prompt(tmp_path: Path) -> None:
    folder = write_tiny("BertForSequenceClassification", tmp_path / "bert")
    message = refusal(folder, prompt="zerank-1")
    assert "--prompt is for causal rerankers; pairs of BertForSequenceClassification have none" in message


def test_a_language_model_has_no_labels(made: dict[str, Path]) -> None:
    assert "--label is for classifiers; the score of a causal LM is" in refusal(made[QWEN3], label="0")


def test_the_padding_comes_from_config_or_tokenizer_or_it_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[QWEN3], tmp_path / QWEN3))
    edit(folder, pad_token_id=None)
    assert read(folder).pad_token_id == 0
    edit(folder, "tokenizer_config.json", pad_token={"content": "<|im_end|>"})
    assert read(folder).pad_token_id == 2
    for wrong in (None, "<pad>"):
        edit(folder, "tokenizer_config.json", pad_token=wrong)
        message = refusal(folder)
        assert f"pad_token_id in config.json is missing, and pad_token in tokenizer_config.json ({wrong!r})" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("<|im_end|>", "<|eos|>"), "has no special token <|im_end|>, which the prompt qwen3-reranker is made of"),
        (('"yes"', '"yea"'), "its tokenizer makes 2 tokens of 'yes', whose logit is the score of the prompt"),
    ],
)
def test_a_tokenizer_that_does_not_know_the_prompt_is_refused(
    made: dict[str, Path], tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    folder = Path(shutil.copytree(made[QWEN3], tmp_path / QWEN3))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8").replace(*change))
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) != "yes"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert words in refusal(folder)


def test_the_catalogues_causal_models_have_prompts_by_their_ids() -> None:
    causal = [entry for entry in CATALOGUE.values() if entry.architecture.endswith("ForCausalLM")]
    assert len(causal) >= 5
    for entry in causal:
        assert find((entry.source,), None) is not None
