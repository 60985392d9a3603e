"""What a drain does where Triton does not look at its repository, or the repository is gone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from triton_rerank_server.launch.runtime import link_repository
from triton_rerank_server.running.control import Control
from triton_rerank_server.running.drain import by_hiding, drain


class Polling(Control):
    """One ensemble and its step; it looks at ``models`` when it is asked for readiness the third time, or never."""

    def __init__(self, models: Path, *, looks: bool = True) -> None:
        super().__init__("")
        self._models, self._looks, self._asked = models, looks, 0
        self.states = ["UNLOADING", "UNAVAILABLE"]

    def is_model_ready(self, model: str) -> bool:
        self._asked += 1
        return not self._looks or self._asked < 3 or (self._models / model).exists()

    def is_ensemble(self, model: str) -> bool:
        return model == "m"

    def index(self) -> list[dict[str, str]]:
        names = sorted(path.name for path in self._models.iterdir())
        state = "READY" if self._asked < 3 else self.states.pop(0)
        return [{"name": name, "state": state if name == "m" else "READY"} for name in names]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("m", "m-encoder"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "config.pbtxt").touch()
    return tmp_path / "mine"


@pytest.fixture
def runtime(repository: Path, tmp_path: Path) -> Path:
    (tmp_path / "runtime").mkdir()
    link_repository(tmp_path / "runtime", repository)
    return tmp_path / "runtime"


def test_the_ensemble_is_hidden_until_it_is_unloaded_and_the_users_folder_is_as_it_was(
    repository: Path, runtime: Path
) -> None:
    control = Polling(runtime / "models")
    assert drain(control, by_hiding(control, runtime, repository), timeout_s=30)
    assert control.states == []
    assert sorted(path.name for path in repository.glob("*/config.pbtxt")) == ["config.pbtxt"] * 2
    assert (runtime / "models" / "m-encoder" / "config.pbtxt").is_file()
    assert list((runtime / "models" / "m").iterdir()) == []


def test_a_triton_that_does_not_look_in_time_is_told(
    repository: Path, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control = Polling(runtime / "models", looks=False)
    with caplog.at_level(logging.WARNING):
        assert not drain(control, by_hiding(control, runtime, repository), timeout_s=0.2)
    assert "did not look at its repository in time (--repository-poll-secs)" in caplog.text


def test_a_repository_that_is_gone_does_not_keep_the_server_from_ending(
    repository: Path, runtime: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control = Polling(runtime / "models")
    with caplog.at_level(logging.WARNING):
        assert not drain(control, by_hiding(control, runtime, tmp_path / "gone"), timeout_s=30)
    assert "requests between two steps may be lost: the repository cannot be shown without them" in caplog.text
