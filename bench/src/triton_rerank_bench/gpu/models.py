"""Models of the shapes that are measured: from a checkpoint, or with random weights, exported by our own command.

Speed does not depend on what weights say, only on how many there are; a random model's vocabulary holds the words of
the texts that are timed, so a word is about one token, and the report counts tokens.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.workloads import load_words

Progress = Callable[[str], None]

_SEED = 1
_SPREAD = 0.05  # of random weights; logits of two documents then differ by more than fp16 rounds
_PUNCTUATION = ".,;:!?'\"()-"


@dataclass(frozen=True)
class Shape:
    """Size of a cross-encoder; its feed-forward layers are four times as wide as ``hidden``, the others.

    ``h100_pairs_per_s`` is what the project wants on one H100 at natural lengths, and elsewhere by the device's own
    matrix rate over `H100_FLOPS`; None where it set nothing.
    """

    family: Literal["bert", "xlm-roberta"]
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    max_length: int
    h100_pairs_per_s: float | None = None


SHAPES: dict[str, Shape] = {
    "minilm-l6": Shape("bert", 6, 384, 12, 30_522, 512, 30_000.0),
    "bge-base": Shape("xlm-roberta", 12, 768, 12, 250_002, 512, 12_000.0),
    "v2-m3": Shape("xlm-roberta", 24, 1024, 16, 250_002, 8_192, 5_000.0),
    "tiny": Shape("bert", 2, 32, 4, 4_096, 512),  # for a try of the script
}
DEFAULT_SHAPES = ("minilm-l6", "bge-base", "v2-m3")
# What an H100 SXM's matrix products reach, as others measured it (stas00/ml-engineering, mamf-finder: bf16).
H100_FLOPS = 794.5e12
NATIVE, WITH_CASTS = "flat, native backend", "flat, with casts"
FORMS = {  # of a graph -> how it is exported
    "flat": ("--graph", "flat"),
    "padded": ("--graph", "padded"),
    WITH_CASTS: ("--graph", "flat", "--fp32-residuals"),
    NATIVE: ("--graph", "flat", "--native"),
}


@dataclass(frozen=True)
class Prepared:
    """A model to serve and to compare; its shape is its public name."""

    shape: str
    checkpoint: Path
    repository: Path


def prepare(
    shape: str, checkpoint: Path | None, work: Path, precision: str, form: str, *, on_step: Progress
) -> Prepared:
    """Make a random checkpoint, where none is given, and export it, into ``work``: several GB for the larger shapes.

    What is there of this form, one of `FORMS`, is replaced.

    Raises:
        BenchError: the export failed.
    """
    folder = work / form.replace(", ", "-").replace(" ", "-") / shape
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if checkpoint is None:
        on_step(f"{shape}: random weights")
        checkpoint = write_random(folder / "checkpoint", SHAPES[shape])
    on_step(f"{shape}: export to {precision}, {form}")
    _export(checkpoint, shape, ("--precision", precision, *FORMS[form]), folder / "model_repository")
    return Prepared(shape, checkpoint, folder / "model_repository")


def check_shape(checkpoint: Path, name: str) -> None:
    """Hold a checkpoint against the shape that it is given for; raises BenchError where it is another, or none."""
    if not (checkpoint / "config.json").is_file():
        raise BenchError(f"--checkpoint {name}={checkpoint}: looked for config.json there; give a checkpoint folder")
    from transformers import AutoConfig

    shape, config = SHAPES[name], AutoConfig.from_pretrained(checkpoint)
    found = (config.model_type, config.num_hidden_layers, config.hidden_size)
    wanted = (shape.family, shape.layers, shape.hidden)
    if found != wanted:
        raise BenchError(f"--checkpoint {name}={checkpoint}: its type, layers and width are {found}, not {wanted}")


def write_random(folder: Path, shape: Shape) -> Path:
    """Write a checkpoint with seeded random weights into a new folder."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(_SEED)
    tokenizer, special = _tokenizer(shape)
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        num_labels=1,
        initializer_range=_SPREAD,
        **special,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(shape: Shape) -> tuple[Any, dict[str, int]]:
    """One whose vocabulary holds the words, and what the config says of it; XLM-R's positions begin after id 1."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    if shape.family == "bert":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces = {piece: index for index, piece in enumerate([*special, *_pieces("")])}
        made = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))  # noqa: S106 - no password
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        fast, config = transformers.BertTokenizerFast, {"max_position_embeddings": shape.max_length}
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        known = [*special, *_pieces("▁")]
        scored = [(piece, -float(index) / len(known) - 1.0) for index, piece in enumerate(known)]
        made = Tokenizer(models.Unigram(scored, unk_id=3))
        made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Metaspace()
        around = {"single": "<s> $A </s>", "pair": "<s> $A </s> </s> $B </s>"}
        made.post_processor = processors.TemplateProcessing(special_tokens=[("<s>", 0), ("</s>", 2)], **around)
        config = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "type_vocab_size": 1}
        fast, config["max_position_embeddings"] = transformers.XLMRobertaTokenizerFast, shape.max_length + 2
    made.add_special_tokens(special)
    return fast(tokenizer_object=made, model_max_length=shape.max_length), config


def _pieces(prefix: str) -> list[str]:
    """Punctuation, letters and whole words, frequent ones first."""
    words, _ = load_words()
    letters = sorted({letter for word in words for letter in word.lower()})
    return list(dict.fromkeys([*_PUNCTUATION, *letters, *(prefix + word.lower() for word in words)]))


def _export(checkpoint: Path, name: str, arguments: Sequence[str], repository: Path) -> None:
    """In a process of its own, whose memory goes with it; bench and export do not import each other."""
    arguments = ["export", "--model", str(checkpoint), "--name", name, *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "triton_rerank_export.cli", *arguments, "--model-repository", str(repository)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise BenchError(
            f"{name} cannot be exported by {' '.join(arguments[5:])}: {said[-1] if said else 'it says nothing'}"
        )
