"""PyTorch fp32 with Hugging Face's own tokenizer: what every export is compared with. The only user of torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank_export import fp16
from triton_rerank_export.errors import ExportError

_COMPUTED_IN_FP16 = re.compile(r"\.encoder\.")  # fp16.py leaves the head in fp32, and matrices that do not fit


def load_model(folder: Path, *, allow_pickle: bool = False) -> Any:
    """Load a one-label cross-encoder in fp32 with eager attention, from the disk only.

    Args:
        folder: checkpoint folder.
        allow_pickle: read ``pytorch_model.bin`` where there are no safetensors; torch then unpickles tensors only.

    Raises:
        ExportError: the weights cannot be read, or do not cover the model.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    _silence_warnings()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
            use_safetensors=None if allow_pickle else True,  # None: safetensors where there are any
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as exc:
        raise ExportError(f"{folder}: the checkpoint cannot be loaded ({exc})") from exc
    if info["missing_keys"]:
        raise ExportError(
            f"{folder}: the weights lack {len(info['missing_keys'])} parameters, among them {info['missing_keys'][0]}; "
            "it is not a finished cross-encoder"
        )
    return model.float().eval()


@dataclass
class ActivationPeak:
    """The largest absolute output of a watched layer, and PyTorch's name of that layer."""

    value: float = 0.0
    module: str = ""

    def watch(self, model: Any) -> None:
        """Look at every linear layer that an fp16 export computes in fp16, from the next forward pass on."""
        from torch import nn

        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and _COMPUTED_IN_FP16.search(name) and _weights_fit_fp16(module):
                module.register_forward_hook(lambda _module, _input, output, name=name: self.look(name, output))

    def look(self, module: str, output: Any) -> None:
        """Take one output of a layer into account."""
        value = float(output.detach().abs().max())
        if not value <= self.value:  # NaN counts as larger
            self.value, self.module = value, module


class Reference:
    """Tokenises and scores pairs as transformers does, one pair at a time: no batch, no padding, no code of ours.

    The weights are read at the first logits, so that tokens can be compared before.

    Args:
        folder: checkpoint folder.
        max_length: tokens a pair.
        allow_pickle: see `load_model`.
        watch_activations: keep ``peak`` up to date.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_length: int,
        allow_pickle: bool = False,
        watch_activations: bool = False,
    ) -> None:
        from transformers import AutoTokenizer

        _silence_warnings()
        self.peak = ActivationPeak() if watch_activations else None
        self._folder = folder
        self._allow_pickle = allow_pickle
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
        self._max_length = max_length

    @cached_property
    def _model(self) -> Any:
        model = load_model(self._folder, allow_pickle=self._allow_pickle)
        if self.peak is not None:
            self.peak.watch(model)
        return model

    def logits(self, query: str, documents: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits of one query with n documents: float32 ``(n,)``.

        Raises:
            ExportError: the weights cannot be read, or do not cover the model.
        """
        import torch

        model = self._model
        with torch.no_grad():
            rows = [self._encode(query, document).convert_to_tensors("pt") for document in documents]
            logits = [float(model(**row).logits) for row in rows]
        return np.array(logits, dtype=np.float32)

    def tokens(self, query: str, document: str, *, width: int) -> Mapping[str, npt.NDArray[np.int64]]:
        """One pair as transformers cuts, joins and pads it: input name -> int64 ``(width,)``, padded on the right."""
        row = self._tokenizer.pad(
            self._encode(query, document), padding="max_length", max_length=width, padding_side="right"
        )
        return {name: np.array(ids, dtype=np.int64) for name, (ids,) in row.items()}

    def _encode(self, query: str, document: str) -> Any:
        """A batch of one pair without padding, with the inputs that the tokenizer's class names.

        Of lists, as sentence-transformers calls it: beside a single query an empty document would be taken for none.
        """
        return self._tokenizer(
            [query],
            [document],
            truncation="longest_first",
            max_length=self._max_length,
            split_special_tokens=True,  # special tokens written inside a text are text
            verbose=False,
        )


def _weights_fit_fp16(module: Any) -> bool:
    return all(float(weight.detach().abs().max()) <= fp16.LARGEST for weight in module.parameters())


def _silence_warnings() -> None:
    """What transformers warns of is checked here, and said in our words."""
    from transformers.utils import logging

    logging.set_verbosity_error()
