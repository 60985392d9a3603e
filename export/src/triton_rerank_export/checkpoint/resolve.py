"""Which checkpoint a name means, where its files are, and that they are whole, before anything is built from them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triton_rerank.types import Activation
from triton_rerank_export.checkpoint import licence as licences
from triton_rerank_export.checkpoint.catalogue import CATALOGUE, CatalogueEntry, find, public_name
from triton_rerank_export.checkpoint.causal import Answers, Asked, head_of
from triton_rerank_export.checkpoint.facts import SHORTEST, Facts, read_facts
from triton_rerank_export.checkpoint.families import BY_CLASS, Family, check_form
from triton_rerank_export.checkpoint.labels import Label
from triton_rerank_export.checkpoint.source import HubModel, fetch
from triton_rerank_export.checkpoint.tokenizer_files import check_tokenizer, load
from triton_rerank_export.checkpoint.vocabulary import with_tokenizer
from triton_rerank_export.checkpoint.weights import check_weights
from triton_rerank_export.errors import ExportError
from triton_rerank_export.repository.triton_config import Precision

_DEFAULT_LONGEST = 1024  # tokens; a longer model is served up to here unless told otherwise
_LOCAL = "local folder"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^\s@]+))?", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """A cross-encoder on disk.

    Attributes:
        name: public model name.
        folder: Hugging Face checkpoint folder with tokenizer.json and weights.
        source: where it came from, for the config: a Hugging Face id, or words.
        revision: commit of the hub, 40 hex digits; "" for a local folder or a model built here.
        licence: as the model card or the catalogue names it; "" if neither does.
        architecture: the model's class.
        token_type_ids: the model reads segment ids.
        max_length: longest pair in tokens.
        pad_token_id: id that fills a row up.
        activation: how the checkpoint turns a logit into a score.
        query_prompt: text that its author put before every query; "" if there is none.
        n_segments: rows of the model's table of segments.
        n_heads: attention heads, for fusion.
        hidden_size: width, for fusion.
        allow_pickle: the weights may be a pickle, to be read with torch's weights_only.
        one_of: the label that is served, where the classifier has several; None for the only one.
        asked: the prompt around its pairs; None for a model without.
        asked_by_name: its name says so, or the user; else its class.
        head: of a language model, the rows of its head that a score is made from; None for a classifier.
        templated: its prompt is that of its own chat template, which sentence-transformers renders.
        label: what it is called in a message: where it came from, never a folder of ours.
    """

    name: str
    folder: Path
    source: str
    revision: str
    licence: str
    architecture: str
    token_type_ids: bool
    max_length: int
    pad_token_id: int
    activation: Activation
    query_prompt: str
    n_segments: int
    n_heads: int
    hidden_size: int
    allow_pickle: bool = False
    one_of: Label | None = None
    asked: Asked | None = None
    asked_by_name: bool = True
    head: Answers | None = None
    templated: bool = False
    label: str = ""

    @property
    def family(self) -> Family:
        """What its class leaves unsaid."""
        return BY_CLASS[self.architecture]

    @property
    def row(self) -> int | None:
        """Which of the model's logits is served; None where it gives one."""
        return None if self.one_of is None else self.one_of.index


@dataclass(frozen=True)
class _Origin:
    """Where a model comes from: ``folder``, ``entry.build``, or else the hub at ``revision`` ("": current)."""

    name: str
    source: str
    revision: str = ""
    folder: Path | None = None
    entry: CatalogueEntry | None = None


def resolve(
    model: str,
    work: Path,
    *,
    name: str | None = None,
    max_length: int | None = None,
    precision: Precision = "fp32",
    flat: bool = False,
    allow_pickle: bool = False,
    asked_label: str | None = None,
    accepted_licence: str | None = None,
    prompt: str | None = None,
    on_step: Callable[[str], object] = lambda _: None,
) -> Checkpoint:
    """Find a model by its public name, its folder or its Hugging Face id, and fetch it if need be.

    Args:
        model: a name of the catalogue, a checkpoint folder, or ``org/name``, optionally with ``@revision``.
        work: scratch folder for a checkpoint that is built here.
        name: public name; by default the catalogue's, the folder's, or the last part of the id.
        max_length: tokens of the longest pair; None means the model's own limit, but at most 1024.
        precision: that it will be exported in.
        flat: it will be exported as a flat graph.
        allow_pickle: take pickled weights where there are no safetensors.
        asked_label: number or name of the label that is to be served; None: the catalogue's, or it must have one only.
        accepted_licence: licence that the user accepts, though it restricts what the weights may be used for.
        prompt: name of the prompt that a causal reranker was trained with; None: what its name or its class says.
        on_step: called with what is being done, if it takes long.

    Raises:
        ExportError: there is no such model, it cannot be fetched, or it cannot be served; says what was found.
    """
    origin = _find(model)
    name = name or origin.name
    _check_name(name)
    licence = origin.entry.licence if origin.entry else ""
    asked_label = asked_label or (origin.entry and origin.entry.label) or None
    licences.check_accepted(licence, accepted_licence, origin.source)

    def check(folder: Path) -> None:
        _, facts = _read_files(folder, origin.source, precision, flat, asked_label, origin.source, prompt, work)
        licences.check_accepted(licences.of_card(folder, origin.source), accepted_licence, origin.source)
        _served_length(facts, max_length, origin.source)
        if origin.entry is not None and origin.revision == origin.entry.revision and prompt is None:
            _check_entry(origin.entry, facts)

    folder, revision = _local_folder(origin, work), ""
    if folder is None:
        folder = fetch(HubModel(origin.source, origin.revision, allow_pickle), check=check, on_step=on_step)
        revision = folder.name
    return read_checkpoint(
        folder,
        name=name,
        source=origin.source,
        revision=revision,
        licence=licence,
        max_length=max_length,
        allow_pickle=allow_pickle,
        asked_label=asked_label,
        accepted_licence=accepted_licence,
        precision=precision,
        flat=flat,
        prompt=prompt,
        label=origin.source if origin.entry and origin.entry.build else "",
        work=work,
    )


def read_checkpoint(
    folder: Path,
    *,
    name: str,
    source: str,
    revision: str = "",
    licence: str = "",
    max_length: int | None = None,
    precision: Precision = "fp32",
    flat: bool = False,
    allow_pickle: bool = False,
    asked_label: str | None = None,
    accepted_licence: str | None = None,
    prompt: str | None = None,
    label: str = "",
    work: Path | None = None,
) -> Checkpoint:
    """Check that a folder holds a cross-encoder that can be served, and read its facts.

    Args:
        folder: Hugging Face checkpoint folder.
        name: public name.
        source: where it came from.
        revision: commit of the hub; "" if it is not from there.
        licence: SPDX name; "" means what its model card states.
        max_length: as for `resolve`.
        precision: as for `resolve`.
        flat: as for `resolve`.
        allow_pickle: as for `resolve`.
        asked_label: as for `resolve`.
        accepted_licence: as for `resolve`.
        prompt: as for `resolve`.
        label: what it is called in a message; by default its source and revision, or its folder.
        work: scratch folder for a tokenizer.json, where it has only a vocabulary; None: it must have one.

    Raises:
        ExportError: a file is missing or not whole, or the model is of a kind that is not supported; says what was
            found.
    """
    _check_name(name)
    label = label or (f"{source}@{revision}" if revision else str(folder))
    folder, facts = _read_files(folder, label, precision, flat, asked_label, source, prompt, work)
    card = licences.of_card(folder, label)
    licences.check_accepted(card, accepted_licence, label)
    check_weights(folder, facts, label=label, allow_pickle=allow_pickle)
    return Checkpoint(
        name=name,
        folder=folder,
        source=source,
        revision=revision,
        licence=card if licences.is_restricted(card) else licence or card,
        architecture=facts.architecture,
        token_type_ids=facts.token_type_ids,
        max_length=_served_length(facts, max_length, label),
        pad_token_id=facts.pad_token_id,
        activation=facts.activation,
        query_prompt=facts.query_prompt,
        n_segments=facts.n_segments,
        n_heads=facts.n_heads,
        hidden_size=facts.hidden_size,
        allow_pickle=allow_pickle,
        one_of=facts.one_of,
        asked=facts.asked,
        asked_by_name=facts.asked_by_name,
        head=facts.answers
        or (head_of(load(folder, label), facts.asked, label) if facts.asked and facts.causal else None),
        templated=facts.answers is not None,
        label=label,
    )


def _read_files(
    folder: Path,
    label: str,
    precision: Precision,
    flat: bool,
    asked_label: str | None,
    source: str,
    prompt: str | None,
    work: Path | None,
) -> tuple[Path, Facts]:
    """All that is known before the weights are there, and the folder with its tokenizer.json."""
    facts = read_facts(folder, label, asked=asked_label, source=source, prompt=prompt)
    check_form(facts.family, precision, label, flat=flat)
    folder = folder if work is None else with_tokenizer(folder, work, label)
    check_tokenizer(folder, facts, label)
    return folder, facts


def _find(model: str) -> _Origin:
    entry = find(model)
    if entry is not None:
        return _Origin(entry.name, entry.source, entry.revision, entry=entry)
    folder = Path(model)
    if folder.is_dir():
        folder = folder.resolve()
        return _Origin(folder.name.lower(), f"{_LOCAL} {folder.name}", folder=folder)
    match = _HUB_ID.fullmatch(model)
    if match is None:
        raise ExportError(
            f"model {model!r} is neither a known name ({', '.join(sorted(CATALOGUE))}) nor a checkpoint folder nor a "
            "Hugging Face id (org/name or org/name@revision)"
        )
    hub_id, revision = match["id"], match["revision"] or ""
    entry = find(hub_id)
    if entry is not None:
        return _Origin(entry.name, entry.source, revision, entry=entry)
    return _Origin(public_name(hub_id), hub_id, revision)


def _local_folder(origin: _Origin, work: Path) -> Path | None:
    if origin.entry is not None and origin.entry.build is not None:
        return origin.entry.build(Path(tempfile.mkdtemp(dir=work)) / origin.name)
    return origin.folder


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ExportError(f"model name {name!r}: it must match {_NAME.pattern}; give another with --name")


def _served_length(facts: Facts, asked: int | None, label: str) -> int:
    if asked is None:
        return min(facts.max_length, _DEFAULT_LONGEST)
    if not SHORTEST <= asked <= facts.max_length:
        raise ExportError(
            f"{label}: max_length {asked} is out of bounds; this model takes {SHORTEST} to {facts.max_length} tokens"
        )
    return asked


def _check_entry(entry: CatalogueEntry, facts: Facts) -> None:
    differences = [
        f"{fact} is {found}, not {stated}"
        for fact in ("architecture", "activation", "max_length")
        if (found := getattr(facts, fact)) != (stated := getattr(entry, fact))
    ]
    if differences:
        raise ExportError(
            f"{entry.name}: {entry.source}@{entry.revision} is not what the catalogue says: {'; '.join(differences)}; "
            "correct the catalogue, or pin another revision there"
        )
