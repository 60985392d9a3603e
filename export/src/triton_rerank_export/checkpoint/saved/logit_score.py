"""A causal reranker as sentence-transformers saves it: LogitScore behind a Transformer, and a chat template.

The template is rendered with marks in place of the texts, and what stands around them is the prompt. The gate holds
the scores against sentence-transformers, which renders it for each pair: one that is not made of such pieces is found.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_rerank_export.checkpoint.causal import Answers, Asked
from triton_rerank_export.checkpoint.json_files import read_array, read_object
from triton_rerank_export.checkpoint.saved.modules import MODULES, is_ours, kind_of
from triton_rerank_export.checkpoint.saved.settings import SavedSettings
from triton_rerank_export.errors import ExportError, explained
from triton_rerank_server.backends.tokenizer.prompt import DOCUMENT, INSTRUCTION, QUERY, Prompt

TEMPLATE = "chat_template.jinja"
_KINDS = ["Transformer", "LogitScore"]
_MARKS = {"system": "\ue000instruction\ue001", "query": "\ue000query\ue001", "document": "\ue000document\ue001"}
_PAIR = ("query", "document")
_SPECIAL = re.compile(r"<\|\w+\|>")


def read_logit_score(folder: Path) -> Answers | None:
    """The tokens whose logits are the score, if the modules are a Transformer and LogitScore; None otherwise.

    Args:
        folder: checkpoint folder.

    Raises:
        ExportError: a file cannot be read, or a token is no number.
    """
    listed = read_array(folder, MODULES) if (folder / MODULES).is_file() else []
    if [kind_of(module) for module in listed] != _KINDS or not all(map(is_ours, listed)):
        return None
    if listed[0].get("path") or not listed[1].get("path"):  # refused with all modules at other places
        return None
    path = str(listed[1]["path"])
    stated = read_object(folder, f"{path}/config.json")
    ids = [stated.get(key) for key in ("true_token_id", "false_token_id")]
    if type(ids[0]) is not int or type(ids[1]) not in (int, type(None)) or min(ids[0], ids[1] or 0) < 0:
        raise ExportError(f"true_token_id and false_token_id in {path} are {ids!r:.80}; ids of tokens were expected")
    return Answers(ids[0], ids[1], 1.0)


def asked_of_template(folder: Path, config: Mapping[str, Any], saved: SavedSettings) -> Asked:
    """The prompt of a checkpoint's own chat template.

    Args:
        folder: checkpoint folder.
        config: content of tokenizer_config.json.
        saved: what else sentence-transformers saved; its prompt is the instruction, "": what the template says without.

    Raises:
        ExportError: there is no template, it cannot be rendered, or it does not hold query and document once each.
    """
    path = folder / TEMPLATE
    source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if not isinstance(source, str):
        raise ExportError(f"it has no chat template ({TEMPLATE}), which holds the prompt of its query and document")
    with explained("its chat template cannot be rendered"):
        bare, told = (_render(source, roles, opens_answer=saved.opens_answer) for roles in (_PAIR, ("system", *_PAIR)))
    prompt = _pieces(*_split(bare), told, saved.query_prompt)
    return Asked("of its chat template", "", prompt, "", "", activation=saved.activation)


def with_place_for_instruction(asked: Asked, named: Asked | None) -> Asked:
    """With the prompt that its name tells, if that differs by nothing but a place for an instruction."""
    if named is None or INSTRUCTION in asked.prompt.query or _bare(named.prompt) != _bare(asked.prompt):
        return asked
    return dataclasses.replace(asked, prompt=named.prompt)


def _bare(prompt: Prompt) -> str:
    return "".join((prompt.prefix, prompt.bare_query or prompt.query, prompt.middle, prompt.document, prompt.suffix))


def _render(source: str, roles: tuple[str, ...], *, opens_answer: bool) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    messages = [{"role": role, "content": _MARKS[role]} for role in roles]
    return environment.from_string(source).render(messages=messages, add_generation_prompt=opens_answer)


def _split(text: str) -> tuple[str, str, str]:
    before, query, rest = text.partition(_MARKS["query"])
    between, document, after = rest.partition(_MARKS["document"])
    if not query or not document or _MARKS["query"] in rest or _MARKS["document"] in after:
        raise ExportError("its chat template does not hold the query once and then the document once")
    return before, between, after


def _pieces(before: str, between: str, after: str, told: str, instruction: str) -> Prompt:
    """Special tokens apart from what is tokenised with the texts; a space belongs to the word behind it."""
    start = max((found.end() for found in _SPECIAL.finditer(before)), default=0)
    middle = list(_SPECIAL.finditer(between))
    starts = ends = len(between.removesuffix(" "))
    if middle:
        starts, ends = middle[0].start(), middle[-1].end()
    tail, inner, lead = between[:starts], between[starts:ends], between[ends:]
    plain, usual = before[start:], ""
    query = plain
    if _MARKS["system"] in told:
        first, _, last = _split(told)[0].partition(_MARKS["system"])
        if before.startswith(first) and before.endswith(last) and not _SPECIAL.search(last) and len(first) >= start:
            usual = before[len(first) : len(before) - len(last)]
            query = f"{first[start:]}{INSTRUCTION}{last}"
    if instruction and INSTRUCTION not in query:
        raise ExportError("it has a default prompt, for which its chat template has no place that is known here")
    return Prompt(
        prefix=before[:start],
        query=f"{query}{QUERY}{tail}",
        middle=inner,
        document=f"{lead}{DOCUMENT}",
        suffix=after,
        bare_query="" if usual or instruction or query == plain else f"{plain}{QUERY}{tail}",
        instruction=instruction or usual,
    )
