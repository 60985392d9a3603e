"""Whose terms the weights have, and whether they must be accepted by name before anything is fetched."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from triton_rerank_export.checkpoint.json_files import check_no_pointer
from triton_rerank_export.errors import ExportError, explained

CARD = "README.md"
_FREE = re.compile(  # begins of the hub's names of licences that restrict no use
    r"(apache|mit|bsd|isc|zlib|ncsa|unlicense|wtfpl|postgresql|cc0|pddl|cdla|odc-by|odbl|afl|artistic|bsl|ecl|epl|eupl"
    r"|etalab|openmdw|lppl|ms-pl|mpl|ofl|osl|gfdl|[al]?gpl)(-|$)|cc-by(-sa)?-\d",
    re.IGNORECASE,
)
_RESTRICTED = re.compile(r"\b(nc|nd|research)\b|non-?commercial", re.IGNORECASE)


def of_card(folder: Path) -> str:
    """The licence that a model card states in its front matter; "" where there is no card, or it states none.

    Args:
        folder: checkpoint folder.

    Raises:
        ExportError: the front matter cannot be read.
    """
    from huggingface_hub.repocard import metadata_load

    path = folder / CARD
    if not path.is_file():
        return ""
    check_no_pointer(path)
    with explained(f"what {CARD} begins with is no YAML, and it may state a licence; correct it"):
        stated = metadata_load(path) or {}
    named = stated.get("license")
    if named == "other":
        named = stated.get("license_name") or named
    names = [str(name) for name in (named if isinstance(named, list) else [named]) if name and name != "unknown"]
    return " and ".join(names)


def check_accepted(licence: str, accepted: str | None) -> None:
    """Refuse weights whose licence restricts their use, unless it was accepted by its name.

    Args:
        licence: as the catalogue or the model card states it; "" where none does.
        accepted: the name that the user gave.

    Raises:
        ExportError: it restricts their use and was not accepted; says which option accepts it.
    """
    if is_restricted(licence) and (accepted or "").lower() != licence.lower():
        raise ExportError(
            f"its licence is {licence:.80}, which restricts what the weights may be used for; read it, and pass "
            f"--accept-licence {shlex.quote(licence):.80} if you keep to it"
        )


def is_restricted(licence: str) -> bool:
    """No licence that is known to leave every use open; one that is not stated restricts nothing here."""
    return any(not _FREE.match(one) or _RESTRICTED.search(one) for one in licence.split(" and ") if one)
