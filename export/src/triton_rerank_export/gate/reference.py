"""PyTorch fp32 with Hugging Face's own tokenizer: what every export is compared with. The only user of torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_rerank import contract
from triton_rerank_export.checkpoint.causal import Answers
from triton_rerank_export.checkpoint.facts import CONFIG
from triton_rerank_export.checkpoint.families import matches
from triton_rerank_export.checkpoint.for_transformers import restated
from triton_rerank_export.checkpoint.json_files import read_object
from triton_rerank_export.checkpoint.saved.modules import read_modules
from triton_rerank_export.errors import ExportError, about, explained
from triton_rerank_export.graph import fp16
from triton_rerank_export.repository.triton_config import SpecialTokensInText
from triton_rerank_server.backends.tokenizer.prompt import Prompt
from triton_rerank_server.backends.tokenizer.tokenizer_file import special_as_text


def load_model(folder: Path, *, allow_pickle: bool = False, head: Answers | None = None) -> Any:
    """Load a cross-encoder in fp32 with eager attention, from the disk only.

    Args:
        folder: checkpoint folder.
        allow_pickle: read ``pytorch_model.bin`` where there are no safetensors; torch then unpickles tensors only.
        head: of a language model; it becomes a classifier whose one row is the yes less the no.

    Raises:
        ExportError: the weights cannot be read, or do not cover the model.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    if head is not None:
        return as_classifier(load_language_model(folder, allow_pickle=allow_pickle), head)
    modules = read_modules(folder, read_object(folder, CONFIG).get("hidden_size"))
    if modules is None:
        return _load(AutoModelForSequenceClassification, folder, allow_pickle=allow_pickle)
    from triton_rerank_export.gate.module_head import WithHead

    with explained("its modules cannot be loaded", hidden=str(folder)):
        model = WithHead(_load(AutoModel, folder, allow_pickle=allow_pickle), modules, folder)
        return model.float().eval()


def load_language_model(folder: Path, *, allow_pickle: bool = False) -> Any:
    """As `load_model`, with the head that gives each token a logit."""
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, folder, allow_pickle=allow_pickle)


def as_classifier(model: Any, head: Answers) -> Any:
    """A causal language model -> the classifier of its class with one label; it takes the layers over.

    Args:
        model: of transformers.
        head: which tokens answer.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    rows = model.get_output_embeddings().weight.detach()
    row = rows[head.positive] - (0 if head.negative is None else rows[head.negative])
    model.config.num_labels = 1
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(model.config, attn_implementation="eager")
    setattr(classifier, classifier.base_model_prefix, model.base_model)
    classifier.score = torch.nn.Linear(len(row), 1, bias=False)
    classifier.score.weight = torch.nn.Parameter(row[None, :] / head.scale)
    return classifier.eval()


def _load(auto: Any, folder: Path, *, allow_pickle: bool) -> Any:
    _silence_warnings()
    with explained("the checkpoint cannot be loaded", hidden=str(folder)):
        model, info = auto.from_pretrained(
            folder,
            attn_implementation="eager",
            chunk_size_feed_forward=0,  # chunks save memory and change no logit; no graph could be traced with them
            local_files_only=True,
            output_loading_info=True,
            use_safetensors=None if allow_pickle else True,  # None: safetensors where there are any
            **restated(folder),
        )
    if info["missing_keys"]:
        raise ExportError(
            f"the weights lack {len(info['missing_keys'])} parameters, among them {sorted(info['missing_keys'])[0]}; "
            "it is not a finished cross-encoder"
        )
    if hasattr(model.config, "reference_compile"):
        model.config.reference_compile = False  # ModernBERT compiles itself where it can, and is then not traced
    return model.float().eval()


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer that transformers makes of a checkpoint folder.

    Raises:
        ExportError: it makes none.
    """
    from transformers import AutoTokenizer

    _silence_warnings()
    with explained("transformers cannot load its tokenizer", hidden=str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ExportError(f"transformers makes no fast tokenizer of it, but {type(tokenizer).__name__}")
    return tokenizer


def give_segments(tokenizer: Any) -> bool:
    """Let a tokenizer give the model segments, if its class leaves them out: ALBERT's of transformers 5 does.

    Returns:
        Whether it had to be told.
    """
    names = tokenizer.model_input_names
    left_out = contract.TOKEN_TYPE_IDS not in names and any(tokenizer.backend_tokenizer.encode("a", "a").type_ids)
    if left_out:
        tokenizer.model_input_names = [*names, contract.TOKEN_TYPE_IDS]
    return left_out


@dataclass
class ActivationPeak:
    """The largest absolute number that a watched layer takes or gives, and PyTorch's name of that layer.

    What it takes may be larger than all that layers give: ModernBERT's feed-forward multiplies two halves of an output.
    """

    value: float = 0.0
    module: str = ""

    def watch(self, model: Any, pattern: str) -> None:
        """Look at every linear layer that an fp16 export computes in fp16, from the next forward pass on.

        Args:
            model: of transformers.
            pattern: that is found in the names of the layers that are fp16 if their weights fit; fp16.py leaves the
                head in fp32, and matrices that do not fit.

        Raises:
            ExportError: no layer has such a name.
        """
        from torch import nn

        linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        names = matches(pattern, linear)
        if not names:
            raise ExportError(
                f"no layer of {type(model).__name__} is named like those that fp16 computes ({pattern}), so nothing "
                "can be said of an overflow; the installed transformers is not one that is known here. Export fp32"
            )
        for name in names:
            module = linear[name]
            if all(float(weight.detach().abs().max()) <= fp16.LARGEST for weight in module.parameters()):
                module.register_forward_hook(
                    lambda _module, inputs, output, name=name: self.look(name, *inputs, output)
                )

    def look(self, module: str, *activations: Any) -> None:
        """Take what a layer takes and gives into account."""
        for activation in activations:
            value = float(activation.detach().abs().max())
            if not (math.isnan(self.value) or value <= self.value):  # NaN counts as the largest, whatever comes after
                self.value, self.module = value, module


@dataclass(eq=False)
class Reference:
    """Tokenises and scores pairs as a user of transformers does, one pair at a time: no batch, no code of ours.

    Attributes:
        folder: checkpoint folder.
        max_length: tokens a pair.
        label: what the checkpoint is called in a message; by default its folder.
        tensors: names of the inputs that are served; the model gets no other.
        pad_token_id: of the model; None means the tokenizer's.
        query_prompt: text before every query.
        special_tokens_in_text: special tokens written inside a text are "text", or what they name: "special".
        allow_pickle: see `load_model`.
        row: of the logits, where the model gives several; None: it gives one.
        watched: keep ``peak`` up to date with the layers that this pattern names; None: watch none.
        prompt: of a causal reranker.
        head: of a language model, whose logits after the prompt are compared with one another as log probabilities.

    Raises:
        ExportError: transformers cannot load the tokenizer.
    """

    folder: Path
    _: KW_ONLY
    max_length: int
    label: str = ""
    tensors: Sequence[str] = (contract.INPUT_IDS, contract.ATTENTION_MASK, contract.TOKEN_TYPE_IDS)
    pad_token_id: int | None = None
    query_prompt: str = ""
    special_tokens_in_text: SpecialTokensInText = "text"
    allow_pickle: bool = False
    row: int | None = None
    watched: str | None = None
    prompt: Prompt | None = None
    head: Answers | None = None

    def __post_init__(self) -> None:
        self.peak = None if self.watched is None else ActivationPeak()
        self.label = self.label or str(self.folder)
        with about(self.label):
            self.tokenizer = load_tokenizer(self.folder)
        if contract.TOKEN_TYPE_IDS in self.tensors:
            give_segments(self.tokenizer)
        if self.pad_token_id is None:  # asked before the pieces of a Unigram vocabulary get other names
            self.pad_token_id = self.tokenizer.pad_token_id
        self._split = self.special_tokens_in_text == "text"
        if self._split:  # as served: transformers' own switch lets <s> and </s> of a Unigram vocabulary through
            backend = self.tokenizer.backend_tokenizer
            self.tokenizer._tokenizer = special_as_text(backend, backend.to_str())

    @cached_property
    def _model(self) -> Any:
        load = load_model if self.head is None else load_language_model
        with about(self.label):
            model = load(self.folder, allow_pickle=self.allow_pickle)
        if self.peak is not None and self.watched is not None:
            self.peak.watch(model, self.watched)
        return model

    def logits(self, query: str, documents: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits of one query with n documents: float32 ``(n,)``.

        Raises:
            ExportError: the weights cannot be read, do not cover the model, do not fit the tokenizer, or give a logit
                that is not finite.
        """
        import torch

        model = self._model
        # Of a language model the last token's logits alone: all words' for every token are a third more work.
        kept = {} if self.head is None else {"logits_to_keep": 1}
        with torch.no_grad(), explained(f"{self.label}: PyTorch cannot score a pair"):
            rows = [self._encode(query, document).convert_to_tensors("pt") for document in documents]
            inputs = [{name: row[name] for name in self.tensors if name in row} for row in rows]
            logits = [self._logit(model(**row, **kept, return_dict=True).logits) for row in inputs]
        odd = next((logit for logit in logits if not math.isfinite(logit)), None)
        if odd is not None:
            raise ExportError(
                f"{self.label}: PyTorch itself gives the logit {odd} for {query[:40]!r}: its weights are damaged, or "
                "its training diverged; get them anew, or train it again"
            )
        return np.array(logits, dtype=np.float32)

    def _logit(self, output: Any) -> float:
        """Of a classifier ``(1, 1)``, of a language model ``(1, 1, vocabulary)``."""
        if self.head is None:
            return float(output if self.row is None else output[0, self.row])
        last, head = output[0, -1], self.head
        if head.negative is None:
            return float(last[head.positive]) / head.scale
        chances = last.log_softmax(dim=-1)
        return float(chances[head.positive] - chances[head.negative]) / head.scale

    def tokens(self, query: str, document: str, *, width: int) -> dict[str, npt.NDArray[np.int64]]:
        """One pair as transformers cuts and joins it: input name -> int64 ``(width,)``.

        Filled up on the right, with the padding id of the model; the tokenizer may have another, which the model does
        not see under a mask of zeros.
        """
        with explained(f"{self.label}: transformers cannot tokenise a pair"):
            row = {name: ids for name, (ids,) in self._encode(query, document).items()}
        filled = {}
        for name, ids in row.items():
            padding = self.pad_token_id if name == contract.INPUT_IDS else 0
            filled[name] = np.full(width, padding, dtype=np.int64)
            filled[name][: len(ids)] = ids
        return filled

    def _encode(self, query: str, document: str) -> Any:
        """A batch of one pair without padding, with the inputs that the tokenizer's class names.

        Of lists, as sentence-transformers calls it: beside a single query an empty document would be taken for none.
        """
        if self.prompt is not None:
            return self._encode_prompted(self.prompt, query, document)
        return self.tokenizer(
            [self.query_prompt + query],
            [document],
            truncation="longest_first",
            max_length=self.max_length,
            split_special_tokens=self._split,
            verbose=False,
        )

    def _encode_prompted(self, prompt: Prompt, query: str, document: str) -> Any:
        """The pieces one by one. Only a query that has to be cut is made apart from the words around it."""
        from transformers import BatchEncoding

        before, after = prompt.around_query(prompt.instruction)
        prefix, middle, suffix = (
            self._ids(part, split=False) for part in (prompt.prefix, prompt.middle, prompt.suffix)
        )
        asked = self._ids(before + query + after, split=self._split)
        told = self._ids(prompt.before_document + document, split=self._split)
        room = self.max_length - len(prefix) - len(middle) - len(suffix)
        if len(asked) + len(told) > room:
            head, tail = self._ids(before.rstrip(), split=self._split), self._ids(after, split=self._split)
            texts = before[len(before.rstrip()) :] + query, prompt.before_document + document
            cut, kept = self._longest_first(*texts, room - len(head) - len(tail))
            if cut != self._ids(texts[0], split=self._split):
                asked, told = [*head, *cut, *tail], kept
        ids = [*prefix, *asked, *middle, *told[: room - len(asked)], *suffix]
        return BatchEncoding({contract.INPUT_IDS: [ids], contract.ATTENTION_MASK: [[1] * len(ids)]})

    def _longest_first(self, query: str, document: str, room: int) -> tuple[list[int], list[int]]:
        pair = self.tokenizer(
            [query],
            [document],
            add_special_tokens=False,
            truncation="longest_first",
            max_length=room,
            split_special_tokens=self._split,
        )
        owned = list(zip(pair[contract.INPUT_IDS][0], pair.sequence_ids(0), strict=True))
        return [index for index, owner in owned if owner == 0], [index for index, owner in owned if owner == 1]

    def _ids(self, text: str, *, split: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"])


def _silence_warnings() -> None:
    """What transformers warns of is checked here, and said in our words."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # transformers 5 draws one of its own
