"""Computes a model whose head is modules of sentence-transformers, in torch; modules.py says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from triton_rerank_export.checkpoint.saved.modules import WEIGHTS, Head, HeadLayer


class WithHead(nn.Module):
    """A model of transformers without a head, and the modules behind it. Called like one with a head.

    Args:
        model: gives a vector a token.
        head: what follows.
        folder: checkpoint folder, with a folder of weights for each layer of the head.
    """

    def __init__(self, model: Any, head: Head, folder: Path) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.config.classifier_pooling = head.pooling  # where ModernBERT's own classifier says which tokens it reads
        self.head = nn.ModuleList(_layer(layer, folder) for layer in head.layers)  # by its index: names without a scope
        self.activations = nn.ModuleList(getattr(nn, layer.activation)() for layer in head.layers)

    def get_input_embeddings(self) -> Any:
        """The table of words."""
        return self.model.get_input_embeddings()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, return_dict: bool | None = None
    ) -> SequenceClassifierOutput:
        """Logits ``(batch, 1)`` of token ids and mask, both int64 ``(batch, length)``."""
        vectors = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.config.classifier_pooling == "cls":
            vector = vectors[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(vectors.dtype)
            vector = (vectors * mask).sum(dim=1) / mask.sum(dim=1)
        for layer, activation in zip(self.head, self.activations, strict=True):
            vector = activation(layer(vector))
        return SequenceClassifierOutput(logits=vector)


def _layer(layer: HeadLayer, folder: Path) -> nn.Module:
    """With a bias in any case: a product without one would become int8, and the head stays fp32 (graph: Gemm)."""
    norm = layer.kind == "LayerNorm"
    made: nn.Module = nn.LayerNorm(layer.outputs) if norm else nn.Linear(layer.inputs, layer.outputs)
    stored = load_file(folder / layer.path / WEIGHTS)
    weights = {name.rsplit(".", 1)[-1]: stored[name] for name in layer.weights}
    made.load_state_dict({"bias": torch.zeros(layer.outputs), **weights})
    return made
