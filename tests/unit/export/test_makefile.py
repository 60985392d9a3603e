"""What the Makefile exports into which repository; make only says what it would do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("repository", "wanted"),
    [
        ("model_repository", "--precision int8 --replace"),
        ("/elsewhere", "--precision int8 --replace"),
        (".cache/fp32", "--precision fp32 --replace"),
        (".cache/bf16", "--precision bf16 --replace"),
        (".cache/int8-openvino", "--precision int8 --engine openvino --replace"),
    ],
)
def test_a_repository_in_cache_gets_the_precision_that_it_is_named_for(repository: str, wanted: str) -> None:
    command = ["make", "--dry-run", "--always-make", "speed", f"REPOSITORY={repository}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    words = " ".join(made.stdout.replace("\\\n", " ").split())
    assert f"{wanted} --model-repository {repository}" in words
    assert words.count("triton-rerank-export export ") == 1
    assert made.stderr == ""
