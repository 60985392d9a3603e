"""The advice of `perf` is done by export's own command, in a real repository."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_bench import figures

from triton_rerank_bench.errors import BenchError
from triton_rerank_bench.tune.answer import Exported, apply, change_lines, check_available
from triton_rerank_bench.tune.findings import Answer, Row, Schedule, Tuning, Wanted
from triton_rerank_bench.tune.knobs import KNOBS, UNBOUNDED, Setting, candidates, exported_setting, ground
from triton_rerank_bench.tune.servers import Level
from triton_rerank_bench.tune.variants import read_configs
from triton_rerank_export.repository.check import check_repository

NAME = "tiny-bert"
FAST, SLOW = figures(120, 40, Level(1)), figures(100, 50, Level(1))
IN_THE_CLIENT = {"split", "sub_requests"}


@pytest.fixture
def served(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "served"))


def repositories(*folders: Path) -> dict[str, Exported]:
    return {folder.name: Exported("fp32", "onnxruntime", str(folder)) for folder in folders}


def setting_of(folder: Path) -> Setting:
    return exported_setting(folder.name, read_configs(folder, NAME))


def found(setting: Setting, *exported: Setting, confirmed: bool | None = True) -> Tuning:
    """A run that ended with this setting, of one of these repositories."""
    tuning = Tuning(Wanted(None, None, ()), Schedule.of(60), 100.0, [Row("exported", each, SLOW) for each in exported])
    tuning.best, tuning.exported = setting, next(each for each in exported if each.repository == setting.repository)
    if setting != tuning.exported:
        tuning.rows.append(Row("knobs", setting, FAST, knob="instances", kept=True))
        turns = ((tuning.exported, SLOW), (setting, FAST)) * 2
        tuning.rows += [Row("confirmation", each, figures) for each, figures in turns]
        tuning.confirmed = confirmed
    return tuning


def answer_of(tuning: Tuning) -> Answer:
    answer = tuning.answer()
    assert answer is not None
    return answer


def applied(tuning: Tuning, repositories: dict[str, Exported]) -> list[str]:
    return apply(tuning, answer_of(tuning), NAME, repositories)


def test_every_value_of_every_knob_is_served_as_it_was_measured_and_passes_the_check(served: Path) -> None:
    """Each beside those before it, as the search leaves them."""
    tried = 0
    on = ground(served.name, read_configs(served, NAME), cores=4, has_gpu=False, most_pairs=100)
    for knob in (knob for knob in KNOBS if knob not in IN_THE_CLIENT):
        for wanted in candidates(knob, setting_of(served), on)[:2]:
            assert applied(found(wanted, setting_of(served)), repositories(served))[0] == "Applied:"
            assert setting_of(served) == wanted.served
            assert check_repository(served) == [NAME, "tiny-xlmr"]
            tried += 1
    assert tried > 8
    assert setting_of(served).queue_bounds == UNBOUNDED


def test_knobs_of_a_gpu_are_served_as_they_were_measured(served: Path) -> None:
    on = ground(served.name, read_configs(served, NAME), cores=4, has_gpu=True, most_pairs=100)
    (micro,) = candidates("micro_batch_tokens", setting_of(served), on)
    (wanted,) = candidates("graph_tokens", micro, on)
    wanted = replace(wanted, tokenizers=2)
    applied(found(wanted, setting_of(served)), repositories(served))
    there, measured = read_configs(served, NAME), read_configs(served, NAME)
    assert setting_of(served).tokenizers == 2
    wanted.change(measured)
    assert there.encoder.parameters["cuda_graph_shapes"].string_value.startswith("1x32,2x32,")
    assert there.encoder.parameters == measured.encoder.parameters
    fewer = replace(setting_of(served), max_batch_size=4)
    applied(found(replace(fewer, graph_tokens=wanted.graph_tokens), setting_of(served)), repositories(served))
    assert "8x32" not in read_configs(served, NAME).encoder.parameters["cuda_graph_shapes"].string_value
    none = replace(setting_of(served), graph_tokens=0)
    applied(found(none, setting_of(served)), repositories(served))
    assert "cuda_graph_shapes" not in read_configs(served, NAME).encoder.parameters


def test_an_answer_of_another_repository_is_put_into_the_first(served: Path, tiny_repository: Path) -> None:
    other = shutil.copytree(tiny_repository, served.parent / "other's")  # a name that a shell minds
    both = repositories(served, other)
    wanted = replace(setting_of(other), instances=2)
    tuning = found(wanted, setting_of(served), setting_of(other))
    assert applied(tuning, both)[0] == "Applied:"
    assert replace(setting_of(served), repository="") == replace(wanted, repository="")
    assert setting_of(other).instances == 1
    assert applied(found(setting_of(served), setting_of(served)), both) == ["Nothing to apply."]


@pytest.mark.parametrize("doubtful", ["interrupted", "not confirmed", "failed calls"])
def test_a_doubtful_answer_is_not_applied(served: Path, doubtful: str) -> None:
    wanted = replace(setting_of(served), instances=2)
    tuning = found(wanted, setting_of(served), confirmed=None if doubtful == "not confirmed" else True)
    tuning.interrupted = doubtful == "interrupted"
    if doubtful == "failed calls":
        failed = replace(FAST, errors={"OverloadedError": 1})
        tuning.rows = [replace(row, figures=failed) if row.figures is FAST else row for row in tuning.rows]
    (told,) = applied(tuning, repositories(served))
    assert told.startswith("Not applied: ")
    assert setting_of(served).instances == 1
    assert any(line.startswith("in the repository, as a new version: make set ") for line in lines(tuning, served))


def lines(tuning: Tuning, served: Path) -> list[str]:
    return change_lines(answer_of(tuning), NAME, repositories(served))


def test_that_export_refuses_is_told_with_its_own_words(served: Path) -> None:
    wanted = replace(setting_of(served), instances=1000)
    with pytest.raises(BenchError, match="the report is written.*--instances is 1000: it must be from 1 to 64"):
        applied(found(wanted, setting_of(served)), repositories(served))


def test_that_export_is_missing_is_told_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    check_available()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BenchError, match="--apply: triton-rerank-export .* is not installed"):
        check_available()
