"""PyTorch fp32 with Hugging Face's own tokenizer: what every export is compared with. The only user of torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank_export.errors import ExportError


def load_model(folder: Path) -> Any:
    """Load a one-label cross-encoder in fp32 with eager attention, from the disk only.

    Raises:
        ExportError: the weights cannot be read, or do not cover the model.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # what it warns of is checked below, and said in our words
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation="eager", local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as exc:
        raise ExportError(f"{folder}: the checkpoint cannot be loaded ({exc})") from exc
    if info["missing_keys"]:
        raise ExportError(
            f"{folder}: the weights lack {len(info['missing_keys'])} parameters, among them {info['missing_keys'][0]}; "
            "it is not a finished cross-encoder"
        )
    return model.float().eval()


class Reference:
    """Scores pairs as transformers does, one pair at a time: no batch, no padding, no code of ours.

    Args:
        folder: checkpoint folder.
        max_length: tokens a pair.
        max_query_tokens: tokens kept of the query.
    """

    def __init__(self, folder: Path, *, max_length: int, max_query_tokens: int) -> None:
        from transformers import AutoTokenizer

        self._model = load_model(folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
        self._max_length = max_length
        self._max_query_tokens = max_query_tokens

    def logits(self, query: str, documents: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits of one query with n documents: float32 ``(n,)``."""
        import torch

        with torch.no_grad():
            logits = [float(self._model(**self._encode(query, document)).logits) for document in documents]
        return np.array(logits, dtype=np.float32)

    def _encode(self, query: str, document: str) -> dict[str, Any]:
        ids = [
            self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (query, document)
        ]
        encoding = self._tokenizer.prepare_for_model(
            ids[0][: self._max_query_tokens],
            ids[1],
            truncation="only_second",
            max_length=self._max_length,
            return_tensors="pt",
            prepend_batch_axis=True,
        )
        return {name: encoding[name] for name in self._tokenizer.model_input_names if name in encoding}
