"""What a visitor of the repository finds beside the code: valid, and saying what the Makefile says."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "test.yaml"


@pytest.mark.parametrize(
    ("schema", "file"),
    [("vendor.github-workflows", WORKFLOW), ("vendor.dependabot", ROOT / ".github" / "dependabot.yml")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_it_fits_its_schema(schema: str, file: Path) -> None:
    program = Path(sys.executable).parent / "check-jsonschema"
    arguments = [str(program), "--builtin-schema", schema, str(file)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [WORKFLOW, ROOT / ".pre-commit-config.yaml"], ids=lambda path: path.name)
def test_it_runs_make_targets_that_exist(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    commands = re.findall(r"(?:run|entry): make ([a-z -]+)", file.read_text(encoding="utf-8"))
    assert commands
    assert {target for command in commands for target in command.split()} <= targets


@pytest.mark.parametrize(
    "command",
    [each for each in entry_points(group="console_scripts") if each.name.startswith("triton-rerank")],
    ids=lambda each: each.name,
)
def test_every_command_says_its_version(
    command: EntryPoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [command.name, "--version"])
    with pytest.raises(SystemExit) as ended:
        command.load()()
    assert ended.value.code == 0
    assert command.dist is not None
    assert capsys.readouterr().out == f"{command.name} {command.dist.version}\n"
