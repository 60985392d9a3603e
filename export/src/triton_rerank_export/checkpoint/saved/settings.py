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
from triton_rerank_export.checkpoint.json_files import Stated, read_object_if_there
from triton_rerank_export.checkpoint.saved.modules import MODULES, SETTINGS, Head, of_a_cross_encoder
from triton_rerank_export.errors import ExportError

_TRANSFORMER_FILES = tuple(  # the first one that is there and not empty counts
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
FILES = (SETTINGS, MODULES, *_TRANSFORMER_FILES)

_SIGMOID, _IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
_ACTIVATIONS: dict[str, Activation] = {
    _SIGMOID: "sigmoid",
    _IDENTITY: "identity",
    "torch.nn.Sigmoid": "sigmoid",
    "torch.nn.Identity": "identity",
}
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


def read_settings(folder: Path, config: Stated, *, head: Head | None = None, causal: bool = False) -> SavedSettings:
    """Read the files that sentence-transformers wrote, if it did.

    Args:
        folder: checkpoint folder.
        config: content of its config.json.
        head: of `read_modules`.
        causal: it is a language model with LogitScore behind it.

    Raises:
        ExportError: something in them changes a score and is not supported; names the file, the key and its value.
    """
    saved = read_object_if_there(folder, SETTINGS)
    if not of_a_cross_encoder(folder):
        _check_nothing_lost(saved, config)
        return SavedSettings(activation_of_config(config))
    contents = (read_object_if_there(folder, name) for name in _TRANSFORMER_FILES)
    transformer = next(filter(None, contents), Stated(_TRANSFORMER_FILES[0]))
    expected: Mapping[str, object] = _EXPECTED if head is None else _BEFORE_MODULES
    if causal:  # how a chat template's messages are built is seen by the gate
        expected = {**_CAUSAL, "modality_config": transformer.get("modality_config")}
    _check_transformer(transformer, expected)
    stated = saved.get("activation_fn")
    return SavedSettings(
        activation=activation_of_config(config) if stated is None else _activation(stated, SETTINGS),
        query_prompt=_default_prompt(saved),
        max_length=_longest(transformer),
        lower_case=bool(transformer.get("do_lower_case")),
        opens_answer=bool(_processing(transformer, "chat_template").get(_OPENS_ANSWER)),
    )


def activation_of_config(config: Stated) -> Activation:
    """The activation that config.json names, as sentence-transformers before 5.4 wrote it.

    Where it names none, one label has a sigmoid, several have none.

    Raises:
        ExportError: it is another one.
    """
    newer = config.get("sentence_transformers")
    if newer is not None and not isinstance(newer, dict):
        raise config.wrong("sentence_transformers", newer, "an object")
    stated = (newer or {}).get("activation_fn", config.get("sbert_ce_default_activation_function"))
    if stated is None:
        stated = _SIGMOID if labels.count(config) == 1 else _IDENTITY
    return _activation(stated, "config.json")


def _check_nothing_lost(saved: Stated, config: Stated) -> None:
    """Settings of a cross-encoder without its list of modules: a copy that is not whole."""
    if saved.get("model_type") != "CrossEncoder":
        return
    stated, prompt = saved.get("activation_fn"), _default_prompt(saved)
    lost = [f"the prompt {prompt!r:.80}"] if prompt else []
    if stated is not None and _activation(stated, SETTINGS) != activation_of_config(config):
        lost.append(f"the activation {stated}")
    if lost:
        raise ExportError(
            f"{SETTINGS} names {' and '.join(lost)}, but {MODULES} is missing, without which "
            "sentence-transformers does not read it; get that file too"
        )


def _activation(stated: object, file: str) -> Activation:
    found = _ACTIVATIONS.get(stated) if isinstance(stated, str) else None
    if found is None:
        raise ExportError(
            f"its activation in {file} is {stated!s:.80}; supported are Identity and Sigmoid ({_IDENTITY}, {_SIGMOID})"
        )
    return found


def _default_prompt(saved: Mapping[str, Any]) -> str:
    name, prompts = saved.get("default_prompt_name"), saved.get("prompts") or {}
    if not name:
        return ""
    if not isinstance(prompts, dict) or not isinstance(name, str) or name not in prompts:
        raise ExportError(
            f"default_prompt_name in {SETTINGS} is {name!r:.80}, which is not among its prompts; correct the "
            "name, or set it to null"
        )
    prompt = "" if prompts[name] is None else prompts[name]
    if not isinstance(prompt, str) or not _encodes(prompt):
        raise ExportError(f"the prompt {name!r:.80} in {SETTINGS} is {prompt!r:.80}; a text was expected")
    return prompt


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _check_transformer(settings: Stated, expected: Mapping[str, object]) -> None:
    task = settings.get("transformer_task", "feature-extraction")
    if task != expected["transformer_task"]:
        raise ExportError(
            f"transformer_task in {settings.file} is {task!r:.80}; a reranker's with these modules is "
            f"{expected['transformer_task']}"
        )
    for key, value in settings.items():
        if not _known(key, value, expected):
            raise ExportError(
                f"{key} in {settings.file} is {value!r:.80}, which changes scores and is not supported; if it is not "
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


def _longest(settings: Stated) -> int | None:
    """The length that counts, of all that are stated: that of a call, else that of the tokenizer, else the model's."""
    arguments = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    stated = (
        _processing(settings, "text").get("max_length"),
        arguments.get("model_max_length"),
        settings.get("max_seq_length"),
    )
    longest = next((length for length in stated if length is not None), None)
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise settings.wrong("the longest pair", longest, "a number from 1")
    return longest
