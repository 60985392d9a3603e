"""Checkpoints from the Hugging Face hub: pinned, safetensors, offline first, in the hub library's own cache.

``huggingface_hub`` does the work, so its variables hold: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the rest.
It is imported inside functions: that is slow, and it reads its variables then.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_export.checkpoint.facts import ADAPTER, CONFIG, IS_ADAPTER, TOKENIZER, TOKENIZER_CONFIG
from triton_rerank_export.checkpoint.for_transformers import VOCABULARY
from triton_rerank_export.checkpoint.licence import CARD
from triton_rerank_export.checkpoint.saved.modules import MODULES, SETTINGS, module_files
from triton_rerank_export.checkpoint.saved.settings import FILES
from triton_rerank_export.checkpoint.weights import list_names, parts, pick_weights
from triton_rerank_export.errors import NO_ROOM, ExportError, about

_FACTS = (
    *(CARD, CONFIG, TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *(ADAPTER, *FILES),
)
# Not every model has them, but a copy must know of them.
_ASKED_FOR = (TOKENIZER, TOKENIZER_CONFIG, MODULES, SETTINGS, ADAPTER)
_OF_A_WHOLE_COPY = ".gitattributes"  # nobody needs it: who has one copied everything
_LOGIT_SCORE = re.compile(r"\d+_LogitScore/config\.json")  # a module of a causal reranker
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel:
    """A checkpoint on the hub, or in the cache.

    Attributes:
        hub_id: ``org/name``.
        revision: commit, branch or tag; "" is the current commit.
        allow_pickle: take ``pytorch_model.bin`` where there are no safetensors.
    """

    hub_id: str
    revision: str = ""
    allow_pickle: bool = False

    def __str__(self) -> str:
        return f"{self.hub_id}@{self.revision}" if self.revision else self.hub_id


def fetch(model: HubModel, *, check: Callable[[Path], object], on_step: Callable[[str], object]) -> Path:
    """Give a checkpoint's folder in the cache; what is missing there is downloaded.

    A pinned commit that is complete in the cache is used without a look at the network. An interrupted download goes
    on where it stopped.

    Args:
        model: what to fetch.
        check: called with the folder before the weights are fetched, so that a refusal comes before gigabytes.
        on_step: called with what is being downloaded.

    Returns:
        Folder whose name is the commit, 40 hex digits.

    Raises:
        ExportError: the hub cannot be reached, refuses, or does not have it; a file came half; the disk is full.
    """
    from huggingface_hub.errors import HfHubHTTPError

    of_transport = [kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception)]
    failures: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *of_transport)
    with about(model):
        try:
            folder = _cached(model)
            if folder is None:
                return _download(model, check, on_step)
            check(folder)
            return folder
        except ExportError:
            raise
        except failures as exc:  # requests' errors are OSErrors
            raise ExportError(_explain(exc, model.hub_id)) from exc


def _cached(model: HubModel) -> Path | None:
    """Folder of a complete copy, if the network need not, or must not, be asked."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline = constants.HF_HUB_OFFLINE
    if not offline and not _COMMIT.fullmatch(model.revision):
        return None
    try:
        folder = Path(snapshot_download(model.hub_id, revision=model.revision or None, local_files_only=True))
        lack = _lack(folder, model, offline)
    except LocalEntryNotFoundError:
        lack = "has no copy"
    if lack and offline:
        raise ExportError(
            f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} {lack}; unset it, or copy the cache of a machine "
            "that has the model"
        )
    return None if lack else folder


def _lack(folder: Path, model: HubModel, offline: bool) -> str:
    """What a cached copy lacks, or does not know: that a file is there, or that this commit has none."""
    from huggingface_hub import try_to_load_from_cache

    try:
        with about(model):
            names = list_names(folder)
            with about("its copy"):
                weights = pick_weights(names, allow_pickle=model.allow_pickle)
            wanted = [CONFIG, *parts(folder / weights), *module_files(folder)]
            wanted += [] if VOCABULARY in names else [TOKENIZER]
    except ExportError as exc:
        return f"is of no use: {exc}"
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        return f"lacks its {', '.join(missing)}"
    known = functools.partial(try_to_load_from_cache, model.hub_id, revision=folder.name)
    unknown = [name for name in _ASKED_FOR if known(name) is None]
    if unknown and not (offline and _OF_A_WHOLE_COPY in names):
        return f"does not say whether it has {', '.join(unknown)}, which change scores"
    return ""


def _download(model: HubModel, check: Callable[[Path], object], on_step: Callable[[str], object]) -> Path:
    """Get the files that are needed, weights last. The list comes first: it has a time limit and is not retried."""
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    hub_id, revision = model.hub_id, model.revision or "main"
    info = HfApi().model_info(hub_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    names = {sibling.rfilename for sibling in info.siblings or ()}
    if CONFIG not in names and ADAPTER in names:
        raise ExportError(IS_ADAPTER)
    if CONFIG not in names:
        raise ExportError(f"it has no {CONFIG}; it is not a checkpoint of transformers")
    folder = Path(hf_hub_download(hub_id, CONFIG, revision=revision)).parent  # notes where a branch is, for offline use
    if folder.name != info.sha:
        raise ExportError("it moved to another commit meanwhile; run it again")

    def get(name: str) -> Path:
        return Path(hf_hub_download(hub_id, name, revision=folder.name))

    facts = _FACTS if TOKENIZER in names else (*_FACTS, VOCABULARY)
    for name in (name for name in names if name in facts or _LOGIT_SCORE.fullmatch(name)):
        get(name)
    for name in set(_ASKED_FOR) - names:
        with contextlib.suppress(EntryNotFoundError):  # the cache notes that there is none
            get(name)
    modules = names.intersection(module_files(folder))
    for name in (name for name in modules if name.endswith(CONFIG)):
        get(name)
    check(folder)
    weights = pick_weights(names, allow_pickle=model.allow_pickle)
    on_step(f"downloading {hub_id} at {folder.name}")
    for name in (*parts(get(weights)), *modules):
        get(name)
    return folder


def _explain(exc: Exception, hub_id: str) -> str:
    """One line in our words: what happened, and what to do.

    The library's transport is requests before its version 1, then httpx, then httpx2, whose errors have other names.
    """
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(exc, errors.LocalEntryNotFoundError) and isinstance(exc.__cause__, Exception):
        exc = exc.__cause__  # "not in the cache" hides why it could not be fetched
    if isinstance(exc, errors.GatedRepoError):
        return f"it is gated; accept its terms at {hub}/{hub_id}, then set HF_TOKEN to a token of that account"
    if isinstance(exc, errors.RepositoryNotFoundError):
        return (
            f"{hub} has no such model, or it is private, and there is no such folder here; check the spelling, or set "
            "HF_TOKEN to a token that may read it"
        )
    if isinstance(exc, errors.RevisionNotFoundError):
        return f"it has no such revision; {hub}/{hub_id}/commits/main lists them"
    names = {kind.__name__ for kind in type(exc).__mro__}
    if isinstance(status := getattr(getattr(exc, "response", None), "status_code", None), int):
        return _explain_status(status, hub)
    if names & {"ChunkedEncodingError", "RemoteProtocolError"}:
        return f"{hub} closed the connection in the middle of a file; run it again, it goes on where it stopped"
    if names & {"ConnectionError", "Timeout", "TransportError"}:
        return f"{hub} cannot be reached ({_innermost(exc)}); run it again, or copy the cache of a machine that has it"
    return _explain_disk(exc, f"{constants.HF_HUB_CACHE}/models--{hub_id.replace('/', '--')}", hub)


def _explain_status(status: int, hub: str) -> str:
    if status in (401, 403):
        return f"{hub} refuses the token ({status}); set HF_TOKEN to a valid one that may read the model"
    return f"{hub} answered {status}; run it again later"


def _explain_disk(exc: Exception, cache: str, hub: str) -> str:
    if isinstance(exc, OSError) and exc.errno in NO_ROOM:
        return f"no room for it in {cache} ({exc.strerror}); free some, or set HF_HOME to a folder on another disk"
    return f"the download from {hub} failed ({_innermost(exc)}); run it again, and if that fails too, delete {cache}"


def _innermost(exc: BaseException) -> str:
    """First line of the error that began the chain: the others repeat it, with addresses and ids around it."""
    while (below := exc.__cause__ or exc.__context__) is not None:
        exc = below
    return (str(exc).splitlines() or [type(exc).__name__])[0].rstrip(".")
