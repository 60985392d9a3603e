"""Teach the demo model a workshop's shorthand: 200 triples, fine-tune, export, serve, and measure on unseen queries.

"insp lh brg mly" is a note of that workshop for "inspect the left-hand bearing every month", which no model can know.
Needs `make demo`, and a few minutes of two cores. Your own data is a JSONL file like the one that this writes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from triton_rerank import RerankClient, RerankError, RerankResult
from triton_rerank_server import ServerConfig, TritonServer

COMMAND = str(Path(sys.executable).parent / "triton-rerank-export")
WORDS = {
    "do": {"insp": "inspect", "repl": "replace", "lub": "lubricate", "cln": "clean", "adj": "adjust", "rmv": "remove"},
    "side": {"lh": "left-hand", "rh": "right-hand", "fwd": "front", "aft": "rear", "upr": "upper", "lwr": "lower"},
    "part": {"brg": "bearing", "vlv": "valve", "flt": "filter", "pmp": "pump", "gskt": "gasket", "mtr": "motor"},
    "when": {"mly": "every month", "ann": "once a year", "b4s": "before each start", "eow": "at the end of the week"},
}
N_TRAINED, N_HELD_OUT = 200, 50


def main() -> None:
    """Train on the shorthand, export the checkpoint, and compare it with the model before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-repository", type=Path, default=Path(__file__).parent.parent / "model_repository")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    groups = triples(seed=7)
    trained, held_out = groups[:N_TRAINED], groups[N_TRAINED:]
    print(f"before: {right_first(options.model_repository, 'minilm-l6-demo', held_out)} of {N_HELD_OUT} right")
    with tempfile.TemporaryDirectory() as folder:
        data, checkpoint, repository = (Path(folder) / name for name in ("train.jsonl", "workshop", "repository"))
        data.write_text("".join(json.dumps(group) + "\n" for group in trained), encoding="utf-8")
        finetune = ["finetune", "--checkpoint", "minilm-l6-demo", "--data", data, "--output", checkpoint]
        finetune += [
            "--epochs",
            str(options.epochs),
            "--group-size",
            "4",
            "--held-out-fraction",
            "0",
            "--precision",
            "fp32",
        ]
        subprocess.run([COMMAND, *map(str, finetune)], check=True)
        export = ["export", "--model", checkpoint, "--precision", "fp32", "--model-repository", repository]
        subprocess.run([COMMAND, *map(str, export)], check=True)
        print(f"after: {right_first(repository, 'workshop', held_out)} of {N_HELD_OUT} right")


def triples(seed: int) -> list[dict[str, object]]:
    """Query in shorthand, the text that it stands for, and seven texts that differ from it in one thing or two."""
    draw = random.Random(seed)  # noqa: S311 - the same each time, no secret
    notes = list(itertools.product(*WORDS.values()))
    return [
        {
            "query": " ".join(note),
            "positives": [written(note)],
            "negatives": [written(other) for other in draw.sample(near(note, notes), 7)],
        }
        for note in draw.sample(notes, N_TRAINED + N_HELD_OUT)
    ]


def written(note: tuple[str, ...]) -> str:
    """The sentence that a note in shorthand stands for."""
    do, side, part, when = (words[short] for words, short in zip(WORDS.values(), note, strict=True))
    return f"{do.capitalize()} the {side} {part} {when}."


def near(note: tuple[str, ...], notes: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Notes that differ in one word or two."""
    return [other for other in notes if 1 <= sum(a != b for a, b in zip(note, other, strict=True)) <= 2]


def right_first(repository: Path, model: str, groups: list[dict[str, object]]) -> int:
    """How many queries get their text before the seven others, from a real Triton; the right one stands last before."""
    config = ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0)
    with TritonServer(config) as server, RerankClient(server.grpc_target, model=model, timeout_s=60) as client:
        lists = [[*group["negatives"], *group["positives"]] for group in groups]  # type: ignore[misc]
        answers = client.rerank_many([str(group["query"]) for group in groups], lists)
        failed = [answer for answer in answers if isinstance(answer, RerankError)]
        if failed:
            raise failed[0]
        ranked = [answer for answer in answers if isinstance(answer, RerankResult)]
        return sum(answer[0].index == len(texts) - 1 for answer, texts in zip(ranked, lists, strict=True))


if __name__ == "__main__":
    main()
