"""What sentence-transformers saved beside a cross-encoder: activation, prompt, longest pair, modules.

From 5.4 on it keeps them in files of its own, and leaves them out of config.json. What changes a score is applied, or
refused by name. Which file counts, and when, is what ``CrossEncoder`` of sentence-transformers 5.7 does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank.types import Activation
from triton_rerank_export.checkpoint import labels
from triton_rerank_export.checkpoint.json_files import read_object_if_there
from triton_rerank_export.checkpoint.saved.modules import MODULES, Head, list_files, read_head
from triton_rerank_export.errors import ExportError

SETTINGS = "config_sentence_transformers.json"
_TRANSFORMER_FILES = (  # the first one that is there and not empty counts
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
FILES = (SETTINGS, MODULES, *_TRANSFORMER_FILES)

_SIGMOID, _IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
_ACTIVATIONS: dict[str, Activation] = {
    _SIGMOID: "sigmoid",
    _IDENTITY: "identity",
    "torch.nn.Sigmoid": "sigmoid",
    "torch.nn.Identity": "identity",
}
_TRANSFORMER = "Transformer"
_TASK = "sequence-classification"
_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "logits"}}
_EXPECTED = {"transformer_task": _TASK, "modality_config": _TEXT_ONLY, "module_output_name": "scores"}
_BEFORE_MODULES = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_CAUSAL = {"transformer_task": "text-generation", "module_output_name": "causal_logits"}
_OPENS_ANSWER = "add_generation_prompt"
_READ = ("max_seq_length", "do_lower_case", "unpad_inputs")  # the last one is for embeddings only
_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_HARMLESS = ("trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "use_fast", "cache_dir", "device_map")


@dataclass(frozen=True)
class SavedSettings:
    """What a checkpoint's author saved with sentence-transformers.

    Attributes:
        activation: how a logit becomes a score.
        query_prompt: text that stands before every query; "" where there is none.
        max_length: tokens of the longest pair; None where nothing is said of it.
        lower_case: texts are lowered before anything else.
        opens_answer: a chat template is rendered up to where the answer begins.
    """

    activation: Activation
    query_prompt: str = ""
    max_length: int | None = None
    lower_case: bool = False
    opens_answer: bool = False


def read_settings(
    folder: Path, config: Mapping[str, Any], label: str, *, head: Head | None = None, causal: bool = False
) -> SavedSettings:
    """Read the files that sentence-transformers wrote, if it did.

    Args:
        folder: checkpoint folder.
        config: content of its config.json.
        label: what the checkpoint is called in a message.
        head: of `read_modules`.
        causal: it is a language model with LogitScore behind it.

    Raises:
        ExportError: something in them changes a score and is not supported; names the file, the key and its value.
    """
    saved = read_object_if_there(folder / SETTINGS, label)
    if not _is_read(folder, saved):
        _check_nothing_lost(saved, config, label)
        return SavedSettings(activation_of_config(config, label))
    file, transformer = _transformer(folder, label)
    expected: Mapping[str, object] = _EXPECTED if head is None else _BEFORE_MODULES
    if causal:  # how a chat template's messages are built is seen by the gate
        expected = {**_CAUSAL, "modality_config": transformer.get("modality_config")}
    _check_transformer(file, transformer, expected, label)
    stated = saved.get("activation_fn")
    return SavedSettings(
        activation=activation_of_config(config, label) if stated is None else _activation(stated, SETTINGS, label),
        query_prompt=_default_prompt(saved, label),
        max_length=_longest(file, transformer, label),
        lower_case=bool(transformer.get("do_lower_case")),
        opens_answer=bool(_processing(transformer, "chat_template").get(_OPENS_ANSWER)),
    )


def read_modules(folder: Path, width: object, label: str) -> Head | None:
    """The head of a cross-encoder that sentence-transformers keeps as modules; None where it has no other than its own.

    Args:
        folder: checkpoint folder.
        width: of a layer, as config.json states it.
        label: what the checkpoint is called in a message.

    Raises:
        ExportError: the modules are not such as are served; names them.
    """
    return read_head(folder, width, label) if _of_a_cross_encoder(folder, label) else None


def module_files(folder: Path, label: str) -> list[str]:
    """What `read_modules` and the weights of its head need besides modules.json, as ``1_Pooling/config.json``.

    Raises:
        ExportError: modules.json cannot be read.
    """
    return list_files(folder, label) if _of_a_cross_encoder(folder, label) else []


def _of_a_cross_encoder(folder: Path, label: str) -> bool:
    return _is_read(folder, read_object_if_there(folder / SETTINGS, label))


def activation_of_config(config: Mapping[str, Any], label: str) -> Activation:
    """The activation that config.json names, as sentence-transformers before 5.4 wrote it.

    Where it names none, one label has a sigmoid, several have none.

    Raises:
        ExportError: it is another one.
    """
    newer = config.get("sentence_transformers")
    if newer is not None and not isinstance(newer, dict):
        raise ExportError(f"{label}: sentence_transformers in config.json is {newer!r:.80}; an object was expected")
    if newer is not None and "activation_fn" in newer:
        stated = newer["activation_fn"]
    else:
        stated = config.get("sbert_ce_default_activation_function")
    if stated is None:
        stated = _SIGMOID if labels.count(config, label) == 1 else _IDENTITY
    return _activation(stated, "config.json", label)


def _is_read(folder: Path, saved: Mapping[str, Any]) -> bool:
    """Sentence-transformers reads its settings of a CrossEncoder only, and only beside a list of modules."""
    return (folder / MODULES).is_file() and saved.get("model_type") == "CrossEncoder"


def _check_nothing_lost(saved: Mapping[str, Any], config: Mapping[str, Any], label: str) -> None:
    """Settings of a cross-encoder without its list of modules: a copy that is not whole."""
    if saved.get("model_type") != "CrossEncoder":
        return
    stated, prompt = saved.get("activation_fn"), _default_prompt(saved, label)
    lost = [f"the prompt {prompt!r:.80}"] if prompt else []
    if stated is not None and _activation(stated, SETTINGS, label) != activation_of_config(config, label):
        lost.append(f"the activation {stated}")
    if lost:
        raise ExportError(
            f"{label}: {SETTINGS} names {' and '.join(lost)}, but {MODULES} is missing, without which "
            "sentence-transformers does not read it; get that file too"
        )


def _activation(stated: object, file: str, label: str) -> Activation:
    found = _ACTIVATIONS.get(stated) if isinstance(stated, str) else None
    if found is None:
        raise ExportError(
            f"{label}: its activation in {file} is {stated!s:.80}; supported are Identity and Sigmoid ({_IDENTITY}, "
            f"{_SIGMOID})"
        )
    return found


def _default_prompt(saved: Mapping[str, Any], label: str) -> str:
    name, prompts = saved.get("default_prompt_name"), saved.get("prompts") or {}
    if not name:
        return ""
    if not isinstance(prompts, dict) or not isinstance(name, str) or name not in prompts:
        raise ExportError(
            f"{label}: default_prompt_name in {SETTINGS} is {name!r:.80}, which is not among its prompts; correct the "
            "name, or set it to null"
        )
    prompt = "" if prompts[name] is None else prompts[name]
    if not isinstance(prompt, str) or not _encodes(prompt):
        raise ExportError(f"{label}: the prompt {name!r:.80} in {SETTINGS} is {prompt!r:.80}; a text was expected")
    return prompt


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _transformer(folder: Path, label: str) -> tuple[str, dict[str, Any]]:
    """Name and content of the Transformer's file."""
    for name in _TRANSFORMER_FILES:
        content = read_object_if_there(folder / name, label)
        if content:
            return name, content
    return _TRANSFORMER_FILES[0], {}


def _check_transformer(file: str, settings: Mapping[str, Any], expected: Mapping[str, object], label: str) -> None:
    task = settings.get("transformer_task", "feature-extraction")
    if task != expected["transformer_task"]:
        raise ExportError(
            f"{label}: transformer_task in {file} is {task!r:.80}; a reranker's with these modules is "
            f"{expected['transformer_task']}"
        )
    for key, value in settings.items():
        if not _known(key, value, expected):
            raise ExportError(
                f"{label}: {key} in {file} is {value!r:.80}, which changes scores and is not supported; if it is not "
                "needed, remove it"
            )


def _known(key: str, value: object, expected: Mapping[str, object]) -> bool:
    """A setting that changes no score, or that is read elsewhere in this file."""
    if key in _ARGUMENTS:
        return isinstance(value, dict) and set(value) <= {"model_max_length", *_HARMLESS}
    if key == "processing_kwargs":
        return _only_known(value)
    return key in _READ or (key in expected and value == expected[key])


def _only_known(processing: object) -> bool:
    """Nothing but how pairs are cut, and that as sentence-transformers does it anyway, and where a template ends."""
    if not isinstance(processing, dict) or set(processing) - {"text", "chat_template"}:
        return processing in ({}, None)
    text, template = (processing.get(key) or {} for key in ("text", "chat_template"))
    usual = {"padding": (True,), "truncation": (True, "longest_first")}
    return (
        isinstance(text, dict)
        and all(key == "max_length" or value in usual.get(key, ()) for key, value in text.items())
        and isinstance(template, dict)
        and all(key == _OPENS_ANSWER and isinstance(value, bool) for key, value in template.items())
    )


def _processing(settings: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return (settings.get("processing_kwargs") or {}).get(part) or {}


def _longest(file: str, settings: Mapping[str, Any], label: str) -> int | None:
    """The length that counts, of all that are stated: that of a call, else that of the tokenizer, else the model's."""
    arguments = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    stated = (
        _processing(settings, "text").get("max_length"),
        arguments.get("model_max_length"),
        settings.get("max_seq_length"),
    )
    longest = next((length for length in stated if length is not None), None)
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise ExportError(f"{label}: the longest pair in {file} is {longest!r:.80}; a number from 1 was expected")
    return longest
