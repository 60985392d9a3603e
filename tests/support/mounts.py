"""Commands in front of another that give it mounts, or a user, of its own; tests skip where that is not allowed."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def possible(*command: str) -> bool:
    """True if the command, in front of another, runs it."""
    return (
        shutil.which(command[0]) is not None and not subprocess.run([*command, "true"], capture_output=True).returncode
    )


def own_mounts(script_of_mounts: str) -> list[str]:
    """What runs a shell script of mounts that only the command behind it sees."""
    for unshare in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        if possible(*unshare):
            return [*unshare, "sh", "-c", f'{script_of_mounts} && exec "$@"', "sh"]
    pytest.skip("unshare cannot make mounts here")
