"""``perf --apply``: the answer goes into the repository that is served, by export's own command."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.tune.answer import Exported, doubt, set_options
from triton_rerank_bench.tune.findings import Tuning

_EXPORT = "triton_rerank_export"


def check_available() -> None:
    """Find out before the measurement, not after it; raises BenchError where export is not installed."""
    if importlib.util.find_spec(_EXPORT) is None:
        raise BenchError("--apply: triton-rerank-export changes the repository, and is not installed; install it")


def apply(tuning: Tuning, model: str, exported: Mapping[str, Exported]) -> list[str]:
    """Have the first repository serve the answer, unless something speaks against it.

    Args:
        tuning: with an answer.
        model: public name.
        exported: label -> repository.

    Returns:
        What was done, or why nothing was, for people.

    Raises:
        BenchError: export refused, or failed; the repository is as it was, or its message says what is active.
        KeyboardInterrupt: with what holds then.
    """
    answer = tuning.answer()
    assert answer is not None
    against, options = doubt(tuning, answer), set_options(answer, exported)
    if against is not None:
        return [f"Not applied: {against}."]
    if not options:
        return ["Nothing to apply."]
    folder = next(iter(exported.values())).folder
    command = [sys.executable, "-m", f"{_EXPORT}.cli", "set", "--model", model, "--model-repository", folder, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the report is written; `make list REPOSITORY={folder}` says what is active") from None
    if done.returncode:
        raise BenchError(f"the report is written, but its answer was not applied: {done.stderr.strip()}")
    return ["Applied:", *(f"  {line}" for line in done.stdout.splitlines())]
