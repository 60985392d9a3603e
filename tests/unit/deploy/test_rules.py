"""Recording and alert rules, run by the real promtool on examples."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from support import chart

RULES = chart.CHART / "files" / "rules.yaml"
EXAMPLES = chart.ROOT / "deploy" / "observability" / "rules_test.yaml"


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH: Debian's package prometheus has it")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_rules_are_valid() -> None:
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_say_what_the_examples_expect() -> None:
    done = promtool("test", "rules", str(EXAMPLES))
    assert done.returncode == 0, done.stdout + done.stderr
