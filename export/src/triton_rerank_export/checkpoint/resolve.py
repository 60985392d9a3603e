"""Which checkpoint a name means, where its files are, and that they are whole, before anything is built from them."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_export.checkpoint import licence as licences
from triton_rerank_export.checkpoint.catalogue import CATALOGUE, CatalogueEntry, find, public_name
from triton_rerank_export.checkpoint.facts import SHORTEST, Facts, read_facts
from triton_rerank_export.checkpoint.families import check_form
from triton_rerank_export.checkpoint.for_transformers import with_tokenizer
from triton_rerank_export.checkpoint.source import HubModel, fetch
from triton_rerank_export.checkpoint.tokenizer_files import check_tokenizer
from triton_rerank_export.checkpoint.weights import check_weights
from triton_rerank_export.errors import ExportError, about
from triton_rerank_export.options import ExportOptions

_DEFAULT_LONGEST = 1024  # tokens; a longer model is served up to here unless told otherwise
_LOCAL = "local folder"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^\s@]+))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Facts):
    """A cross-encoder on disk: its facts, with the longest pair that is served.

    Attributes:
        name: public model name.
        folder: Hugging Face checkpoint folder with tokenizer.json and weights.
        source: where it came from, for the config: a Hugging Face id, or words.
        revision: commit of the hub, 40 hex digits; "" for a local folder or a model built here.
        licence: as the model card or the catalogue names it; "" if neither does.
        allow_pickle: the weights may be a pickle, to be read with torch's weights_only.
        label: what it is called in a message: where it came from, never a folder of ours.
    """

    name: str
    folder: Path
    source: str
    revision: str
    licence: str
    allow_pickle: bool
    label: str

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
    model: str, work: Path, options: ExportOptions | None = None, *, on_step: Callable[[str], object] = lambda _: None
) -> Checkpoint:
    """Find a model by its public name, its folder or its Hugging Face id, and fetch it if need be.

    Args:
        model: a name of the catalogue, a checkpoint folder, or ``org/name``, optionally with ``@revision``.
        work: scratch folder for a checkpoint that is built here.
        options: how it will be exported. Its ``name`` is by default the catalogue's, the folder's, or the last part of
            the id, its ``label`` the catalogue's.
        on_step: called with what is being done, if it takes long.

    Raises:
        ExportError: there is no such model, it cannot be fetched, or it cannot be served; says what was found.
    """
    origin, options = _find(model), options or ExportOptions()
    entry, source = origin.entry, origin.source
    name = options.name or origin.name
    _check_name(name)
    if entry is not None:
        options = dataclasses.replace(options, label=options.label or entry.label or None)
    licence = entry.licence if entry else ""
    with about(source):
        licences.check_accepted(licence, options.accept_licence)

    def check(folder: Path) -> None:
        """Refuse small files that cannot be exported, before the weights are fetched."""
        with about(source):
            _, facts, _ = _read_files(folder, options, source, work)
        if entry is not None and origin.revision == entry.revision and options.prompt is None:
            with about(entry.name):
                _check_entry(entry, facts)

    folder, revision = origin.folder, ""
    if entry is not None and entry.build is not None:
        folder = entry.build(Path(tempfile.mkdtemp(dir=work)) / origin.name)
    if folder is None:
        folder = fetch(HubModel(source, origin.revision, options.allow_pickle), check=check, on_step=on_step)
        revision = folder.name
    label = source if entry and entry.build else ""
    return read_checkpoint(
        folder, options, name=name, source=source, revision=revision, licence=licence, label=label, work=work
    )


def read_checkpoint(
    folder: Path,
    options: ExportOptions | None = None,
    *,
    name: str,
    source: str,
    revision: str = "",
    licence: str = "",
    label: str = "",
    work: Path | None = None,
) -> Checkpoint:
    """Check that a folder holds a cross-encoder that can be served, and read its facts.

    Args:
        folder: Hugging Face checkpoint folder.
        options: how it will be exported.
        name: public name.
        source: where it came from.
        revision: commit of the hub; "" if it is not from there.
        licence: SPDX name; "" means what its model card states.
        label: what it is called in a message; by default its source and revision, or its folder.
        work: scratch folder for a tokenizer.json, where it has only a vocabulary; None: it must have one.

    Raises:
        ExportError: a file is missing or not whole, or the model is of a kind that is not supported; says what was
            found.
    """
    _check_name(name)
    options = options or ExportOptions()
    label = label or (f"{source}@{revision}" if revision else str(folder))
    with about(label):
        folder, facts, card = _read_files(folder, options, source, work)
        check_weights(folder, facts, allow_pickle=options.allow_pickle)
    return Checkpoint(
        **{**vars(facts), "max_length": options.max_length or min(facts.max_length, _DEFAULT_LONGEST)},
        name=name,
        folder=folder,
        source=source,
        revision=revision,
        licence=card if licences.is_restricted(card) else licence or card,
        allow_pickle=options.allow_pickle,
        label=label,
    )


def _read_files(folder: Path, options: ExportOptions, source: str, work: Path | None) -> tuple[Path, Facts, str]:
    """All that is known before the weights are there: the folder with its tokenizer.json, facts, the card's licence."""
    facts = read_facts(folder, asked=options.label, source=source, prompt=options.prompt)
    check_form(facts.family, options.precision, flat=options.graph == "flat")
    folder = folder if work is None else with_tokenizer(folder, work)
    facts = dataclasses.replace(facts, head=check_tokenizer(folder, facts))
    card = licences.of_card(folder)
    licences.check_accepted(card, options.accept_licence)
    if options.max_length is not None and not SHORTEST <= options.max_length <= facts.max_length:
        raise ExportError(
            f"max_length {options.max_length} is out of bounds; this model takes {SHORTEST} to {facts.max_length} "
            "tokens"
        )
    return folder, facts, card


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


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ExportError(f"model name {name!r}: it must match {_NAME.pattern}; give another with --name")


def _check_entry(entry: CatalogueEntry, facts: Facts) -> None:
    differences = [
        f"{fact} is {found}, not {stated}"
        for fact in ("architecture", "activation", "max_length")
        if (found := getattr(facts, fact)) != (stated := getattr(entry, fact))
    ]
    if differences:
        raise ExportError(
            f"{entry.source}@{entry.revision} is not what the catalogue says: {'; '.join(differences)}; correct the "
            "catalogue, or pin another revision there"
        )
