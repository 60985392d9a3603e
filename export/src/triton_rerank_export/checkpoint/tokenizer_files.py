"""tokenizer.json, and what tokenizer_config.json says beside it: read, and held against the model's tables.

Only tokenizer.json is served. What transformers would do otherwise because of another file is refused here, with the
key; `reference` compares the two tokenizers themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import PostProcessor, TemplateProcessing

from triton_rerank_export.checkpoint.causal import Answers, check_prompt, head_of
from triton_rerank_export.checkpoint.facts import CONFIG, TOKENIZER, TOKENIZER_CONFIG, Facts, check_no_code
from triton_rerank_export.checkpoint.json_files import read_object, read_object_if_there
from triton_rerank_export.errors import ExportError, explained
from triton_rerank_server.backends.tokenizer.tokenizer_file import read_template

REMEDY = (
    "AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder) writes both files alike, once the "
    "right one of the two is corrected"
)
_BERT_KEYS = {  # key of tokenizer_config.json: what it is called in tokenizer.json, and what BERT's class assumes
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
_OVERRULED = {  # section of tokenizer.json: keys of tokenizer_config.json that classes of transformers hold above it
    "normalizer": "tokenizer_class, do_lower_case, strip_accents, tokenize_chinese_chars",
    "pre_tokenizer": "tokenizer_class, add_prefix_space",
    "post_processor": "tokenizer_class, bos_token, eos_token, cls_token, sep_token",
}
_TWO_WORDS = Tokenizer(WordLevel({"a": 2**31, "b": 2**31 + 1}))
_NOTHING_AROUND = TemplateProcessing(single="$A", pair="$A:0 $B:1", special_tokens=[])
_BERT_CLASSES = tuple(
    f"{family}Tokenizer{kind}" for family in ("Bert", "Electra", "DistilBert") for kind in ("", "Fast")
)


def check_tokenizer(folder: Path, facts: Facts) -> Answers | None:
    """Check what can be said of the tokenizer without transformers, before the weights are fetched.

    Args:
        folder: checkpoint folder.
        facts: of the same folder.

    Returns:
        The facts' ``head``, with the ids of the prompt's tokens where its own files name none.

    Raises:
        ExportError: a file is missing or not whole, the two contradict each other, or the tokenizer gives ids that the
            model has no row for.
    """
    if not (folder / TOKENIZER).is_file():
        raise ExportError(
            f"no {TOKENIZER}; save the model to a folder, make one there with "
            "AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder), and export the folder"
        )
    content = read_object(folder, TOKENIZER)
    config = read_object_if_there(folder, TOKENIZER_CONFIG)
    check_no_code(config)
    if facts.asked is None:  # a language model is filled up on the left while it writes
        _check_sides(content, config)
    _check_lower_case(content, config, facts)
    names = config.get("model_input_names")
    if facts.token_type_ids and names is not None and (not isinstance(names, list) or "token_type_ids" not in names):
        raise ExportError(
            f"model_input_names in {TOKENIZER_CONFIG} is {names!r:.80}, without token_type_ids, which the model reads; "
            "add it, or take the key out"
        )
    tokenizer = load(folder)
    _check_ids(tokenizer, facts)
    if facts.asked is not None:
        check_prompt(tokenizer, facts.asked)
        return facts.head or (head_of(tokenizer, facts.asked) if facts.causal else None)
    with explained(f"{TOKENIZER} does not encode a pair"):
        segments = read_template(tokenizer).segments
    if facts.token_type_ids and max(segments) >= facts.n_segments:
        raise ExportError(
            f"{TOKENIZER} gives a pair the segment id {max(segments)}, type_vocab_size in {CONFIG} is "
            f"{facts.n_segments}; tokenizer and model do not belong together"
        )
    return None


def load(folder: Path) -> Tokenizer:
    """Read tokenizer.json as it will be served.

    Raises:
        ExportError: it is no tokenizer file.
    """
    with explained(f"{TOKENIZER} is no tokenizer file, or not whole; get it anew"):
        tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text(encoding="utf-8"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def check_same(theirs: Tokenizer, ours: Tokenizer, *, special_are_text: bool) -> None:
    """Hold the tokenizer that transformers makes of a folder against tokenizer.json, which is what will be served.

    The vocabulary is not compared: transformers takes it from tokenizer.json as it is.

    Args:
        theirs: below the tokenizer of transformers.
        ours: from `load`.
        special_are_text: special tokens inside a text are not looked for, so that it does not matter how.

    Raises:
        ExportError: they would cut a text into other tokens; names the section and the keys that may be why.
    """
    for section, keys in _OVERRULED.items():
        if _state(theirs, section) != _state(ours, section):
            raise ExportError(
                f"transformers overrules the {section} of {TOKENIZER} because of {TOKENIZER_CONFIG} ({keys}), "
                f"and only {TOKENIZER} is served; {REMEDY}"
            )
    added = [_added(tokenizer, special_are_text=special_are_text) for tokenizer in (theirs, ours)]
    if added[0] != added[1]:
        tokens = sorted({token[0] for token in added[0] ^ added[1]})
        raise ExportError(
            f"transformers and {TOKENIZER} do not add the same tokens ({', '.join(map(repr, tokens))[:80]}); "
            f"they stand in {TOKENIZER_CONFIG} (added_tokens_decoder), special_tokens_map.json or added_tokens.json, "
            f"and only {TOKENIZER} is served; {REMEDY}"
        )


def _state(tokenizer: Tokenizer, section: str) -> object:
    part = getattr(tokenizer, section)
    if section == "post_processor":  # whatever its form, it puts the same tokens around texts
        return [_around(part or _NOTHING_AROUND, *texts) for texts in (("a",), ("a", "b"), ("",), ("", ""))]
    return None if part is None else json.loads(part.__getstate__())


def _around(processor: PostProcessor, *texts: str) -> tuple[list[int], list[int]]:
    """Ids and segments of texts, "a" and "b" having the highest ids."""
    encoding = processor.process(*(_TWO_WORDS.encode(text) for text in texts))
    return encoding.ids, encoding.type_ids


def _added(tokenizer: Tokenizer, *, special_are_text: bool) -> set[tuple[str, int, bool, bool, bool, bool]]:
    return {
        (token.content, index, token.single_word, token.lstrip, token.rstrip, token.normalized)
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if not (special_are_text and token.special)
    }


def _check_sides(content: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Transformers takes a side from tokenizer.json where tokenizer_config.json names none.

    Filled up on the left, the first token is a padding one, and it is what the classifier of each family reads: scores
    would depend on the other pairs of a batch.
    """
    for key, section in (("truncation_side", "truncation"), ("padding_side", "padding")):
        there = content.get(section)
        own = there.get("direction", "right") if isinstance(there, dict) else "right"
        file, side = (TOKENIZER_CONFIG, config[key]) if key in config else (TOKENIZER, own)
        if str(side).lower() != "right":
            raise ExportError(
                f"{key} in {file} is {side!r:.80}; texts are cut and filled up on the right here. Set it to "
                '"right" if the model was trained so'
            )


def _check_lower_case(content: Mapping[str, Any], config: Mapping[str, Any], facts: Facts) -> None:
    """BERT's class in transformers lets these keys overrule tokenizer.json, and so does its default for them."""
    normalizer = content.get("normalizer")
    if not isinstance(normalizer, dict):
        normalizer = {}
    if facts.lower_case and not _lowers(normalizer):
        raise ExportError(
            f"do_lower_case is true for sentence-transformers, but {TOKENIZER} does not lower texts; set it "
            f"to false, or give {TOKENIZER} a normalizer that does"
        )
    if config.get("tokenizer_class") not in _BERT_CLASSES or normalizer.get("type") != "BertNormalizer":
        return
    for key, (name, default) in _BERT_KEYS.items():
        stated, there = config.get(key, default), normalizer.get(name, default)
        if stated != there:
            says = f"is {json.dumps(stated)}" if key in config else f"is not stated, which means {json.dumps(stated)}"
            raise ExportError(
                f"{key} in {TOKENIZER_CONFIG} {says:.120}, but {name} in {TOKENIZER} is "
                f"{json.dumps(there):.80}, and only {TOKENIZER} is served; {REMEDY}"
            )


def _lowers(normalizer: Mapping[str, Any]) -> bool:
    parts = normalizer.get("normalizers", [normalizer])
    return any(
        isinstance(part, dict) and (part.get("type") == "Lowercase" or part.get("lowercase") is True) for part in parts
    )


def _check_ids(tokenizer: Tokenizer, facts: Facts) -> None:
    """The highest id, added tokens included, must have a row in the table of tokens."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    token, highest = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    if highest >= facts.vocab_size:
        raise ExportError(
            f"{TOKENIZER} has the token {token!r:.80} with id {highest}, but vocab_size in {CONFIG} is "
            f"{facts.vocab_size}; call model.resize_token_embeddings({highest + 1}), train the new rows, and save the "
            "model again, or take the tokens out"
        )
    if facts.pad_token_id > highest:
        raise ExportError(
            f"pad_token_id in {CONFIG} is {facts.pad_token_id}, but the highest id in {TOKENIZER} is {highest}"
        )
