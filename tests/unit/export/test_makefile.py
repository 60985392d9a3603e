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
    words = would_run("speed", f"REPOSITORY={repository}")
    assert f"{wanted} --model-repository {repository}" in words
    assert words.count("triton-rerank-export export ") == 1


@pytest.mark.parametrize(
    ("flags", "given", "wanted", "says"),
    [
        ("avx2", (), "--precision int8 --accelerator", "PRECISION=int8, the fastest"),
        ("avx2 avx512_vnni", (), "--precision int8 --engine openvino", "PRECISION=int8 ENGINE=openvino, the fastest"),
        ("avx2 avx_vnni", (), "--precision int8 --engine openvino", "PRECISION=int8 ENGINE=openvino, the fastest"),
        ("avx512_vnni avx512_bf16", (), "--precision bf16 --accelerator", "PRECISION=bf16, the fastest"),
        ("avx512_vnni amx_bf16", ("PRECISION=fp32",), "--precision fp32 --accelerator", ""),
        ("avx512_vnni amx_bf16", ("ENGINE=openvino",), "--precision int8 --engine openvino", ""),
    ],
)
def test_export_takes_what_the_processor_computes_fastest_and_says_so(
    flags: str, given: tuple[str, ...], wanted: str, says: str, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: fpu {flags}\n", encoding="utf-8")
    words = would_run("export", "MODEL=m", f"CPUINFO={cpuinfo}", *given)
    assert wanted in words
    assert (says in words) if says else ("the fastest" not in words)


@pytest.mark.parametrize("target", ["serve", "gateway"])
@pytest.mark.parametrize(("repository", "exports"), [("model_repository", 1), ("/srv/models", 0)])
def test_no_demo_is_put_into_a_users_repository(target: str, repository: str, exports: int) -> None:
    words = would_run(target, f"REPOSITORY={repository}")
    assert words.count("triton-rerank-export export ") == exports
    assert f"--model-repository {repository}" in words


def test_a_demo_whose_settings_were_changed_is_not_exported_over(tmp_path: Path) -> None:
    """Nor one that was replaced: neither has a version 1 any more. A checkout has the config, without a model."""
    manifest = tmp_path / "minilm-l6-demo" / "3" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    (manifest.parents[1] / "config.pbtxt").touch()
    assert "triton-rerank-export export" in would_run("demo", f"REPOSITORY={tmp_path}", only_if_older=True)
    manifest.touch()
    assert "triton-rerank-export export" not in would_run("demo", f"REPOSITORY={tmp_path}", only_if_older=True)


def test_perf_applies_its_answer_to_the_repository_that_is_served() -> None:
    words = would_run("perf", "REPOSITORY=/srv/models", "APPLY=1")
    assert "perf --model-repository served=/srv/models --model-repository int8-openvino=.cache/int8-openvino" in words
    assert " --apply" in words
    assert "--apply" not in would_run("perf")


def would_run(*arguments: str, only_if_older: bool = False) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    when = ["--old-file=.venv/.demo"] if only_if_older else ["--always-make"]
    command = ["make", "--dry-run", *when, *arguments]
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert made.stderr == ""
    return " ".join(made.stdout.replace("\\\n", " ").split())


def test_what_chooses_none_of_the_tests_alone_or_only_those_is_no_failure() -> None:
    assert would_run("test", "ARGS=-k name").count("-k name || test $? = 5") == 2
    assert "test $?" not in would_run("test")


@pytest.mark.parametrize("given", [(), ("TRAIN=lines.jsonl",), ("OUTPUT=folder",)])
def test_finetune_says_what_make_was_not_told(given: tuple[str, ...]) -> None:
    command = ["make", "--old-file=.venv/.demo", "finetune", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "make finetune: give TRAIN=lines.jsonl and OUTPUT=folder" in done.stderr
