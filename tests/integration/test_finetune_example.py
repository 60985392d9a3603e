"""200 triples make the demo model better at queries of their kind: trained, exported, served, as the example shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1800)
def test_200_triples_make_the_served_model_better_on_queries_that_it_never_saw(root: Path, demo_fp32: Path) -> None:
    """After one epoch of the two that are the example's default: 31 of 50 were right, of 4."""
    example = str(root / "examples" / "finetune.py")
    command = [sys.executable, example, "--model-repository", str(demo_fp32), "--epochs", "1"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for each other on busy cores
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    before, after = (int(right) for right in re.findall(r"^(?:before|after): (\d+) of 50 right$", done.stdout, re.M))
    assert before <= 25
    assert after >= before + 10
