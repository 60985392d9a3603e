"""What the small files of a checkpoint say of it, or why such a model cannot be served. Reads no weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triton_rerank.types import Activation
from triton_rerank_export.checkpoint import labels
from triton_rerank_export.checkpoint.causal import PROMPTS, Answers, Asked, find
from triton_rerank_export.checkpoint.families import BY_CLASS, FAMILIES, Family
from triton_rerank_export.checkpoint.json_files import MOST, Stated, read_object, read_object_if_there
from triton_rerank_export.checkpoint.labels import Label
from triton_rerank_export.checkpoint.saved.logit_score import (
    asked_of_template,
    read_logit_score,
    with_place_for_instruction,
)
from triton_rerank_export.checkpoint.saved.modules import MODULES, Head, read_modules
from triton_rerank_export.checkpoint.saved.settings import SavedSettings, read_settings
from triton_rerank_export.errors import ExportError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER = "adapter_config.json"
IS_ADAPTER = (  # why such a folder is refused; it has no config.json where the adapter stands alone
    f"{ADAPTER} is there, so the weights are an adapter; merge it (merge_and_unload() of peft) and save the model"
)
SHORTEST = 8  # tokens: the special ones, and a few words

_INSTEAD = "ms-marco-minilm-l6-v2 (English) or bge-reranker-v2-m3 (multilingual)"
_BY_OWN_CODE = (  # patterns of an architecture's name, what such a model is, and why it cannot be served
    (r"VL(Model|For)|Vision", "a reranker of images", f"Only text is read here. Use {_INSTEAD}"),
    (
        r"^Jina\w*ForRanking$",
        "a listwise reranker",
        f"It scores all documents in one sequence; here a score belongs to one pair. Use {_INSTEAD}",
    ),
    (
        r"LayerWise",
        "a layerwise reranker",
        "Which layer gives its score is chosen at run time, by code of its own, which is not run here. Use "
        "bge-reranker-v2-m3",
    ),
    (
        r"CostWise",
        "a lightweight reranker",
        "It merges tokens between its layers, by code of its own, which is not run here. Use bge-reranker-v2-m3",
    ),
    (
        r"ColBERT",
        "a late-interaction model",
        f"It makes a vector for each token instead of a score for a pair. Use {_INSTEAD}",
    ),
)
_ON_A_DECODER = r"^(Qwen\d*|Llama|Gemma\d*|Mistral|Phi\d*)ForSequenceClassification$"
_OTHER_KINDS = (
    (
        r"^(T5|MT5|UMT5|LongT5|Bart|MBart)|ForConditionalGeneration$",
        "an encoder-decoder model",
        f"Its score is that of a word which it would write. Use {_INSTEAD}",
    ),
    (
        r"(ForCausalLM|LMHeadModel)$",
        "a causal LM",
        "Which tokens mean yes and no, and the prompt that it was trained with, are not in its files. --prompt names "
        f"one of {', '.join(PROMPTS)}, for {', '.join(family.causal for family in FAMILIES.values() if family.causal)}",
    ),
    (r"ForMaskedLM$", "a masked LM, which has no classifier yet", "triton-rerank-export finetune trains one"),
    (
        _ON_A_DECODER,
        "a classifier of another architecture, on a causal LM",
        f"Its pairs need the prompt that it was trained with. Use {_INSTEAD}",
    ),
    (r"ForSequenceClassification$", "a classifier of another architecture", f"Use {_INSTEAD}"),
    (r"Model$", "an embedding model", "It has no score for a pair; its cross-encoder may have a page of its own"),
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A cross-encoder.

    Attributes:
        architecture: the model's class.
        modules: behind its layers, with weights of their own; None: the class has its own head.
        one_of: the label that is served, where the classifier has several; None for the only one.
        token_type_ids: the model reads segment ids.
        max_length: tokens of the longest pair that the model can read.
        pad_token_id: id that fills a row up.
        activation: how the checkpoint turns a logit into a score.
        query_prompt: text that stands before every query; "" where there is none.
        lower_case: sentence-transformers lowers texts before the tokenizer does anything.
        n_heads: attention heads.
        n_layers: layers that the weights hold.
        hidden_size: width of a layer.
        embedding_size: width of the tables.
        vocab_size: rows of the table of tokens.
        n_segments: rows of the table of segments; 0 where there is none.
        n_positions: rows of the table of positions, or the longest text where there is none.
        asked: the prompt around its pairs, and the tokens that answer; None for a model without.
        asked_by_name: its id or its folder's name says so, its files, or the user; else its class.
        head: rows of a language model's head that a score is made from; None for a classifier, or not known yet.
    """

    architecture: str
    modules: Head | None
    one_of: Label | None
    token_type_ids: bool
    max_length: int
    pad_token_id: int
    activation: Activation
    query_prompt: str
    lower_case: bool
    n_heads: int
    n_layers: int
    hidden_size: int
    embedding_size: int
    vocab_size: int
    n_segments: int
    n_positions: int
    asked: Asked | None
    asked_by_name: bool
    head: Answers | None

    @property
    def family(self) -> Family:
        """What its class leaves unsaid."""
        return BY_CLASS[self.architecture]

    @property
    def causal(self) -> bool:
        """A language model, whose own head has the tokens that answer."""
        return self.architecture == self.family.causal

    @property
    def templated(self) -> bool:
        """Its prompt is that of its own chat template, which sentence-transformers renders."""
        return self.asked is not None and not self.asked.positive


def read_facts(folder: Path, *, asked: str | None = None, source: str = "", prompt: str | None = None) -> Facts:
    """Read config.json, tokenizer_config.json and the files that sentence-transformers wrote.

    Args:
        folder: Hugging Face checkpoint folder.
        asked: number or name of the label that is to be served; None: it must have one only.
        source: its id, whose name may say how it is asked.
        prompt: name of the prompt that it was trained with; None: what its name or its class says.

    Raises:
        ExportError: a file cannot be read, or the model is of a kind that is not supported; says what was found.
    """
    if (folder / ADAPTER).is_file():
        raise ExportError(IS_ADAPTER)
    config = read_object(folder, CONFIG)
    _check_kind(config, _BY_OWN_CODE)
    check_no_code(config)
    if quantised := config.get("quantization_config"):
        raise ExportError(
            f"quantization_config in {CONFIG} is {quantised!r:.80}; export the checkpoint that it was made from"
        )
    answers = read_logit_score(folder)
    modules = None if answers else read_modules(folder, config.get("hidden_size"))
    named = find((source, folder.name), prompt)
    known = named is not None or answers is not None
    architecture = _architecture(config, modules, is_asked=known)
    family = BY_CLASS[architecture]
    causal = architecture == family.causal
    if answers is not None:
        _check_answers(answers, architecture, config.number("vocab_size"), causal=causal)
    _check_model_type(config, family)
    if modules is not None:  # config.json knows nothing of it
        config.update(id2label=None, num_labels=1)
    one_of = _one_of(config, asked, causal=causal)
    _check_required(config, family)
    saved = read_settings(folder, config, head=modules, causal=answers is not None)
    question = _asked(family, named, prompt)
    stated = read_object_if_there(folder, TOKENIZER_CONFIG)
    if answers is not None and prompt is None:
        question = with_place_for_instruction(asked_of_template(folder, stated, saved), named)
    pad = _pad(folder, config, stated, family)
    sizes = _sizes(config, family, pad)
    return Facts(
        architecture=architecture,
        modules=modules,
        one_of=one_of,
        token_type_ids=family.reads_segments and sizes["n_segments"] > 0,
        max_length=_longest(stated, saved, family, pad, sizes["n_positions"]),
        pad_token_id=pad,
        activation=question.activation if question is not None and causal else saved.activation,
        query_prompt="" if answers is not None else saved.query_prompt,
        lower_case=saved.lower_case,
        asked=question,
        asked_by_name=known,
        head=answers if prompt is None else None,
        **sizes,
    )


def _sizes(config: Stated, family: Family, pad: int) -> dict[str, int]:
    """What config.json says of tables and layers."""
    vocabulary = config.number("vocab_size")
    if pad >= vocabulary:
        raise ExportError(f"pad_token_id in config.json is {pad}; vocab_size {vocabulary} bounds it")
    width, heads = (config.number(key, least=1) for key in (family.width, family.heads))
    if width % heads:
        raise ExportError(f"{family.width} {width} in config.json is no multiple of {family.heads} {heads}")
    config.number(family.depth, least=1)
    segments = 0 if family.segments is None else config.number("type_vocab_size", default=family.segments)
    of_tables, default = family.embedding_width or (family.width, None)
    return {
        "n_heads": heads,
        "n_layers": config.number(family.stored_layers, least=1),
        "hidden_size": width,
        "embedding_size": config.number(of_tables, least=1, default=default),
        "vocab_size": vocabulary,
        "n_segments": segments,
        "n_positions": config.number("max_position_embeddings"),
    }


def _check_answers(head: Answers, architecture: str, vocabulary: int, *, causal: bool) -> None:
    if not causal:
        raise ExportError(f"{MODULES} puts LogitScore behind {architecture}, which is no causal LM")
    highest = max(head.positive, head.negative or 0)
    if highest >= vocabulary:
        raise ExportError(f"LogitScore reads the token {highest}; vocab_size {vocabulary} in {CONFIG} bounds it")


def check_no_code(config: Stated) -> None:
    """Refuse a checkpoint that brings Python code of its own, which is not run here.

    Raises:
        ExportError: ``auto_map`` names some.
    """
    if code := config.get("auto_map"):
        named = code.values() if isinstance(code, dict) else [code]
        raise ExportError(
            f"auto_map in {config.file} names code of its own ({', '.join(str(name) for name in named)[:80]}), which "
            "is not run here: what it computes is not what its architecture's name says. Export a checkpoint without "
            f"auto_map, or use {_INSTEAD}"
        )


def _architecture(config: Stated, modules: Head | None, *, is_asked: bool) -> str:
    """The class; that of a language model only if it is known how it is asked."""
    found = _stated(config)
    known = [name for name in found if name in (BY_CLASS if is_asked else FAMILIES)]
    fits = len(found) == len(known) == 1 and BY_CLASS[known[0]].modules == (modules is not None)
    if modules is not None and not fits:
        raise ExportError(
            f"{MODULES} puts modules behind {', '.join(found)[:80] or 'an unknown architecture'}; they are "
            f"served behind {', '.join(name for name, family in FAMILIES.items() if family.modules)} only"
        )
    if found and re.search(_ON_A_DECODER, found[-1]) and config.get("pad_token_id") is None:
        raise ExportError(
            f"pad_token_id in config.json is missing, and {found[-1]} reads the last token that is none; rows "
            f"of a batch could not be told from padding. Use {_INSTEAD}"
        )
    if fits:
        return found[0]
    _check_kind(config, _OTHER_KINDS)
    raise _of_another_kind(found, "", "")


def _asked(family: Family, named: Asked | None, stated: str | None) -> Asked | None:
    """What a checkpoint of a family is asked: by the user, by its name, or by its class."""
    if stated is not None and not family.prompt:
        raise ExportError(f"--prompt is for causal rerankers; pairs of {family.architecture} have none")
    return (named or PROMPTS[family.prompt]) if family.prompt else None


def _one_of(config: Stated, asked: str | None, *, causal: bool) -> Label | None:
    if causal and asked is not None:
        raise ExportError("--label is for classifiers; the score of a causal LM is that of its yes and no")
    return None if causal else labels.choose(config, asked)


def _pad(folder: Path, config: Stated, stated: Stated, family: Family) -> int:
    """A language model may name it in its tokenizer's files only."""
    if config.get("pad_token_id") is not None:
        return config.number("pad_token_id")
    if not family.causal:
        return family.pad_token_id
    token = stated.get("pad_token")
    name = token.get("content") if isinstance(token, dict) else token
    added = read_object_if_there(folder, TOKENIZER).get("added_tokens") or ()
    found = [entry.get("id") for entry in added if isinstance(entry, dict) and entry.get("content") == name]
    if name is None or len(found) != 1 or not isinstance(found[0], int):
        raise ExportError(
            f"pad_token_id in config.json is missing, and pad_token in {TOKENIZER_CONFIG} ({name!r:.80}) is "
            "no added token; rows of a batch could not be filled up. State one of the two"
        )
    return found[0]


def _stated(config: Stated) -> list[str]:
    stated = config.get("architectures") or ()
    return [str(name) for name in stated] if isinstance(stated, list | tuple) else [str(stated)]


def _check_kind(config: Stated, kinds: Sequence[tuple[str, str, str]]) -> None:
    """Refuse a model of one of these kinds with its own sentence."""
    found = _stated(config)
    for pattern, kind, sentence in kinds:
        if found and re.search(pattern, found[-1]):
            raise _of_another_kind(found, f", {kind}", f". {sentence}")


def _of_another_kind(found: Sequence[str], kind: str, sentence: str) -> ExportError:
    served = ", ".join(name + " with modules" * family.modules for name, family in FAMILIES.items())
    return ExportError(
        f"its architecture is {', '.join(found)[:200] or 'not stated in config.json'}{kind}; supported are "
        f"cross-encoders with one label: {served}{sentence}"
    )


def _check_model_type(config: Stated, family: Family) -> None:
    """Transformers goes by model_type, and guesses from the folder's name where there is none."""
    expected, found = family.model_types, config.get("model_type")
    if found not in expected:
        raise ExportError(
            f"model_type in config.json is {found!r:.80}, which is not {family.architecture}'s; it must be "
            f'"{expected[0]}"'
        )


def _check_required(config: Stated, family: Family) -> None:
    for key, supported in family.required.items():
        stated = config.get(key)
        if stated is not None and stated not in supported:
            raise ExportError(
                f"its {key} is {stated!s:.80}; supported is {' or '.join(str(value) for value in supported)}"
            )
    rope = config.get("rope_parameters")  # transformers 5's name of rope_scaling and rope_theta
    if family.prompt and isinstance(rope, dict) and rope.get("rope_type", "default") != "default":
        raise ExportError(f"its rope_type is {rope['rope_type']!s:.80}; supported is default")


def _longest(tokenizer: Stated, saved: SavedSettings, family: Family, pad: int, positions: int) -> int:
    """What is stated, if the table of positions goes so far."""
    rows = positions - (pad + 1 if family.positions_after_padding else 0)
    stated = saved.max_length or _tokenizer_limit(tokenizer)
    longest = min(rows, family.longest or rows, stated or rows)
    if longest < SHORTEST:
        raise ExportError(
            f"its longest pair has {longest} tokens (max_position_embeddings in config.json, model_max_length "
            f"in {TOKENIZER_CONFIG}); at least {SHORTEST} are needed"
        )
    return longest


def _tokenizer_limit(tokenizer: Stated) -> int | None:
    """Transformers writes 1e30 where the tokenizer has no limit."""
    stated = tokenizer.get("model_max_length")
    if stated is None:
        return None
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not stated >= 1:
        raise tokenizer.wrong("model_max_length", stated, "a number from 1")
    return int(stated) if stated < MOST else None
