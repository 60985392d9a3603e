"""Writes checkpoints as the installed transformers writes them, and exports each; a JSON line says how it went.

Run by another environment than the tests': ``python -m support.written_anew CHECKPOINTS REPOSITORY``.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from unittest import mock

import torch
import transformers

from triton_rerank_export.errors import ExportError
from triton_rerank_export.gate import parity
from triton_rerank_export.options import ExportOptions
from triton_rerank_export.pipeline import export_model


def write_anew(folder: Path) -> None:
    """Config, weights and tokenizer, in this version's form."""
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    getattr(transformers, architecture).from_pretrained(folder).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def main(checkpoints: Path, repository: Path) -> None:
    """Export every folder in fp32, and those that can be in fp16 too, beside it."""
    torch.set_num_threads(1)
    gc.freeze()  # each export collects garbage four times
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    few = parity.load_parity_set()[:3]
    mock.patch.object(parity, "load_parity_set", return_value=few).start()
    for folder in sorted(checkpoints.iterdir()):
        said = {"name": folder.name, "transformers": transformers.__version__}
        try:
            write_anew(folder)
            report = export_model(
                str(folder), repository, ExportOptions(precision="fp32"), on_step=lambda _: None
            ).report
            said |= {"difference": report.max_logit_difference, "peer": report.peer_difference, "notes": report.notes}
            if folder.name.startswith(("bert", "xlmr", "modernbert", "distilbert")):
                half = export_model(
                    str(folder), repository.with_name("half"), ExportOptions(precision="fp16"), on_step=lambda _: None
                )
                said["fp16"] = half.report.max_logit_difference
        except ExportError as exc:
            said["refused"] = str(exc)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
