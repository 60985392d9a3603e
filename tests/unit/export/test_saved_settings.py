"""What sentence-transformers saved beside a cross-encoder is applied, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import write_settings

from triton_rerank_export.checkpoint.facts import Facts, read_facts
from triton_rerank_export.errors import ExportError, about

SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "tiny-bert"))


def read(folder: Path) -> Facts:
    with about("acme/tiny"):
        return read_facts(folder)


def refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as error:
        read(folder)
    message = str(error.value)
    assert message.startswith("acme/tiny: ") and "\n" not in message
    return message


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_files_are_read_as_sentence_transformers_writes_them(folder: Path, tmp_path: Path) -> None:
    """Not by our own builder: a later release that writes others is seen here."""
    from sentence_transformers import CrossEncoder
    from torch import nn

    model = CrossEncoder(
        str(folder),
        device="cpu",
        local_files_only=True,
        activation_fn=nn.Identity(),
        prompts={"query": "find: ", "other": "unused"},
        default_prompt_name="query",
        max_length=100,
    )
    model.save_pretrained(str(tmp_path / "saved"))
    found = read(tmp_path / "saved")
    assert (found.activation, found.query_prompt, found.max_length) == ("identity", "find: ", 100)


@pytest.mark.parametrize(
    ("stated", "activation"), [(IDENTITY, "identity"), (SIGMOID, "sigmoid"), ("torch.nn.Identity", "identity")]
)
def test_the_saved_activation_counts_more_than_that_of_config_json(folder: Path, stated: str, activation: str) -> None:
    other = SIGMOID if activation == "identity" else IDENTITY
    edit_config(folder, sentence_transformers={"activation_fn": other})
    assert read(write_settings(folder, activation_fn=stated)).activation == activation


def test_without_a_saved_activation_config_json_counts(folder: Path) -> None:
    edit_config(folder, sbert_ce_default_activation_function=IDENTITY)
    assert read(write_settings(folder, activation_fn=None)).activation == "identity"


@pytest.mark.parametrize("stated", ["torch.nn.modules.activation.Tanh", "my_code.Sigmoid", "Sigmoid", 3, ["x"]])
def test_an_activation_that_is_not_known_is_named_with_its_file(folder: Path, stated: object) -> None:
    write_settings(folder, activation_fn=stated)
    assert f"its activation in config_sentence_transformers.json is {stated}; supported are Identity" in refusal(folder)


def test_settings_of_an_embedding_model_are_not_read(folder: Path) -> None:
    """As CrossEncoder does: what is left of the model that this one was trained from does not concern it."""
    write_settings(folder, model_type="SentenceTransformer", prompts={"q": "x"}, default_prompt_name="q")
    (folder / "modules.json").write_text(json.dumps([{"type": "a.Transformer"}, {"type": "a.Pooling"}]))
    assert (read(folder).activation, read(folder).query_prompt) == ("sigmoid", "")


def test_settings_without_their_list_of_modules_are_a_copy_that_is_not_whole(folder: Path) -> None:
    write_settings(folder, prompts={"q": "find: "}, default_prompt_name="q")
    (folder / "modules.json").unlink()
    message = refusal(folder)
    assert (
        "names the prompt 'find: ' and the activation torch.nn.modules.linear.Identity, but modules.json is" in message
    )
    write_settings(folder, activation_fn=SIGMOID)
    (folder / "modules.json").unlink()
    assert read(folder).activation == "sigmoid"  # nothing is lost


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({"prompts": {"query": "query: "}, "default_prompt_name": "query"}, "query: "),
        ({"prompts": {"query": "query: "}, "default_prompt_name": None}, ""),
        ({"prompts": {"query": None}, "default_prompt_name": "query"}, ""),
        ({"prompts": {"query": 'say "ä"\n'}, "default_prompt_name": "query"}, 'say "ä"\n'),
    ],
)
def test_only_the_default_prompt_stands_before_queries(folder: Path, settings: dict[str, Any], prompt: str) -> None:
    assert read(write_settings(folder, **settings)).query_prompt == prompt


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"default_prompt_name": "web"}, "default_prompt_name in config_sentence_transformers.json is 'web', which is"),
        ({"default_prompt_name": ["q"]}, "default_prompt_name in config_sentence_transformers.json is ['q'], which is"),
        ({"prompts": {"q": 3}, "default_prompt_name": "q"}, "the prompt 'q' in config_sentence_transformers.json is 3"),
        ({"prompts": {"q": "\ud800"}, "default_prompt_name": "q"}, "a text was expected"),
        ({"prompts": 7, "default_prompt_name": "q"}, "which is not among its prompts"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named(folder: Path, settings: dict[str, Any], found: str) -> None:
    assert found in refusal(write_settings(folder, **settings))


@pytest.mark.parametrize(
    ("modules", "found"),
    [
        (["base.modules.transformer.Transformer", "cross_encoder.modules.LogitScore"], "Transformer, LogitScore; supp"),
        (["base.modules.transformer.Transformer", "sentence_transformer.modules.Pooling"], "Transformer, Pooling; sup"),
        (["base.modules.dense.Dense"], "names the modules Dense; supported is one Transformer"),
        ([], "names the modules none; supported is one Transformer"),
    ],
)
def test_modules_that_would_not_be_served_are_named(folder: Path, modules: list[str], found: str) -> None:
    write_settings(folder)
    listed = [{"idx": n, "path": "", "type": f"sentence_transformers.{name}"} for n, name in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert found in refusal(folder)


def test_a_module_of_the_folders_own_code_is_refused(folder: Path) -> None:
    write_settings(folder)
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": "modeling_mine.Transformer"}]))
    assert "supported is one Transformer" in refusal(folder)


def test_a_transformer_in_a_folder_of_its_own_is_refused(folder: Path) -> None:
    write_settings(folder)
    module = {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps([module]))
    assert "modules.json keeps the Transformer in '0_Transformer'; supported is the folder itself" in refusal(folder)


@pytest.mark.parametrize(
    ("transformer", "max_length"),
    [
        ({}, 128),
        ({"max_seq_length": 64}, 64),
        ({"max_seq_length": None}, 128),
        ({"max_seq_length": 4096}, 128),  # the table of positions ends there
        ({"max_seq_length": 64, "processor_kwargs": {"model_max_length": 80}}, 80),
        ({"tokenizer_args": {"model_max_length": 80}}, 80),
        ({"processing_kwargs": {"text": {"max_length": 60, "truncation": True}}, "max_seq_length": 64}, 60),
        ({"model_kwargs": {"torch_dtype": "bfloat16"}, "unpad_inputs": True}, 128),
    ],
)
def test_the_saved_length_of_the_longest_pair_counts(
    folder: Path, transformer: dict[str, Any], max_length: int
) -> None:
    assert read(write_settings(folder, transformer=transformer)).max_length == max_length


@pytest.mark.parametrize(
    ("transformer", "found"),
    [
        ({"transformer_task": "feature-extraction"}, "transformer_task in sentence_bert_config.json is 'feature-ext"),
        ({"module_output_name": "token_embeddings"}, "module_output_name in sentence_bert_config.json is 'token_emb"),
        (
            {"modality_config": {"message": {}}},
            "modality_config in sentence_bert_config.json is {'message': {}}, which",
        ),
        ({"processing_kwargs": {"text": {"truncation": "only_first"}}}, "processing_kwargs in sentence_bert_config"),
        ({"processing_kwargs": {"chat_template": {"x": 1}}}, "processing_kwargs in sentence_bert_config.json is"),
        ({"processing_kwargs": {"chat_template": {"add_generation_prompt": 1}}}, "processing_kwargs in sentence_bert"),
        ({"processing_kwargs": {"chat_template": True}}, "processing_kwargs in sentence_bert_config.json is"),
        ({"config_kwargs": {"num_labels": 3}}, "config_kwargs in sentence_bert_config.json is {'num_labels': 3}, wh"),
        ({"tokenizer_name_or_path": "other"}, "tokenizer_name_or_path in sentence_bert_config.json is 'other', wh"),
        ({"max_seq_length": "64"}, "the longest pair in sentence_bert_config.json is '64'; a number from 1 was"),
        ({"max_seq_length": 0}, "the longest pair in sentence_bert_config.json is 0; a number from 1 was expected"),
    ],
)
def test_what_would_change_a_score_is_named(folder: Path, transformer: dict[str, Any], found: str) -> None:
    assert found in refusal(write_settings(folder, transformer=transformer))


@pytest.mark.parametrize("name", ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"])
@pytest.mark.parametrize("content", ["{", "7", "", "version https://git-lfs.github.com/spec/v1\noid sha256:ab\n"])
def test_a_file_that_is_not_whole_is_named(folder: Path, name: str, content: str) -> None:
    (write_settings(folder) / name).write_text(content)
    assert f"acme/tiny: {name} " in refusal(folder)
