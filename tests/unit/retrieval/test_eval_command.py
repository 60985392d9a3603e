"""`triton-rerank-eval`: from data to reports, the same bytes twice, and on from where it was cut."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from support.chat_endpoint import ChatEndpoint
from support.chat_endpoint import asked as asked_of
from support.toy_collection import QRELS, write_collection

from triton_rerank import ConfidenceBands, ConfigurationError, Scorer
from triton_rerank.testing import FakeScorer
from triton_rerank_retrieval.eval import rerankers
from triton_rerank_retrieval.eval.cli import main
from triton_rerank_retrieval.eval.plan import RerankerSpec, read_plan
from triton_rerank_retrieval.eval.plots import front
from triton_rerank_retrieval.eval.sweeps import KPoint, bagged, clearly_better, knee

PLAN = """
[[retriever]]
name = "words"
kind = "bm25"
[[retriever]]
name = "theirs"
kind = "run"
path = "RUN"
[[reranker]]
name = "model"
kind = "sentence-transformers"
model = "fake"
[[reranker]]
name = "light"
kind = "sentence-transformers"
model = "light"
[[system]]
name = "first"
retrievers = ["words"]
[[system]]
name = "levels"
retrievers = ["words"]
light = "light"
reranker = "model"
keep = 1
[[system]]
name = "whole"
retrievers = ["words", "theirs"]
weights = [0.5, 0.5]
reranker = "model"
blend = 0.5
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[FakeScorer]:
    """Every reranker is a fake that likes shared words; those that were opened."""
    opened: list[FakeScorer] = []

    def make(self: object, spec: RerankerSpec) -> Scorer:
        opened.append(FakeScorer(name=spec.name, model=spec.name))
        return opened[-1]

    monkeypatch.setattr(rerankers.OpenRerankers, "_make", make)
    return opened


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    folder = write_collection(tmp_path / "toy")
    run = tmp_path / "theirs.trec"
    run.write_text("q1 Q0 d5 1 3 t\nq1 Q0 d2 2 2 t\nq2 Q0 d1 1 3 t\nq4 Q0 d1 1 1 t\nq5 Q0 d2 1 1 t\n")
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace("RUN", str(run)))
    paths = {"--data": folder, "--systems": plan, "--work": tmp_path / "work", "--output": tmp_path / "default"}
    return [str(part) for pair in paths.items() for part in pair]


def read(folder: Path) -> dict[str, Any]:
    (found,) = json.loads((folder / "report.json").read_text())["collections"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("library", ["matplotlib", "ir_measures"])
def test_without_its_extra_the_command_says_what_to_install(library: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None; from triton_rerank_retrieval.eval import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    needed = "pip install 'triton-rerank-retrieval[eval]'"
    assert (done.returncode, done.stderr) == (2, f"triton-rerank-eval: {library} is not installed: {needed}\n")


def test_systems_are_measured_and_reported_in_every_form(
    arguments: list[str], asked: list[FakeScorer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--tune", "--time-queries", "1", "--output", str(tmp_path / "out")]) == 0
    found = read(tmp_path / "out")
    plain = "whole, without reranker, tuned"
    assert set(found["systems"]) == {"first", "levels", "whole", plain, "whole, tuned"}
    assert all(spec["reranker"] == "" for spec in found["systems"][plain]["made_of"].values())
    whole = found["systems"]["whole"]
    assert whole["means"]["nDCG@10"] == pytest.approx(sum(whole["per_query"]["nDCG@10"].values()) / 4)
    assert whole["recall_ceiling"] == 1.0
    assert set(found["systems"]["whole, tuned"]["made_of"]) == {"even", "odd"}
    assert set(found["tuned_minus"]) == {"first", "levels", "whole", plain}
    means = {name: one["means"]["nDCG@10"] for name, one in found["systems"].items()}
    assert found["tuned_minus"]["first"]["mean"] == pytest.approx(means["whole, tuned"] - means["first"])
    printed, progress = capsys.readouterr()
    steps = [line.split("tuned ")[1].split()[0].split("/") for line in progress.splitlines() if "tuned " in line]
    assert steps and steps[-1][0] == steps[-1][1]  # as many as were foretold
    assert "whole, tuned against each other system" in printed
    assert json.loads(printed.splitlines()[-1])["toy"]["first"] == round(means["first"], 4)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?https?:|url\(https?:|<script|@import", page)
    assert "K = " in (tmp_path / "out" / "report.md").read_text()
    runs = sorted((tmp_path / "out" / "runs").iterdir())
    assert len(runs) == 5
    assert re.fullmatch(r"(q\d Q0 d\d \d+ \d+ [\w-]+\n)+", runs[0].read_text())


def test_the_run_files_give_the_reports_figures_by_pytrec_eval(
    arguments: list[str], asked: list[FakeScorer], tmp_path: Path
) -> None:
    assert main([*arguments, "--time-queries", "0", "--output", str(tmp_path / "out")]) == 0
    qrels: dict[str, dict[str, int]] = {}
    for query, document, grade in QRELS:
        qrels.setdefault(query, {})[document] = grade
    figures = {"nDCG@10": "ndcg_cut_10", "AP": "map", "R@100": "recall_100", "P@10": "P_10", "Success@10": "success_10"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(figures.values()))
    systems = read(tmp_path / "out")["systems"]
    runs = sorted((tmp_path / "out" / "runs").iterdir())
    assert len(runs) == len(systems)
    for run in runs:
        name = next(name for name in systems if run.stem.endswith(name))
        values = theirs.evaluate(pytrec_eval.parse_run(run.read_text().splitlines()))
        for ours, trec in figures.items():
            expected = {query: values[query][trec] if query in values else 0.0 for query in qrels}
            assert systems[name]["per_query"][ours] == pytest.approx(expected, abs=1e-6)


def test_the_same_inputs_give_the_same_bytes(arguments: list[str], asked: list[FakeScorer], tmp_path: Path) -> None:
    for name in ("one", "two"):
        work = ["--work", str(tmp_path / f"work-{name}")]
        assert main([*arguments, *work, "--tune", "--time-queries", "0", "--output", str(tmp_path / name)]) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) >= 7
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_run_that_was_cut_goes_on_and_asks_for_no_pair_twice(
    arguments: list[str], asked: list[FakeScorer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ["--time-queries", "0", "--output", str(tmp_path / "out")]
    score = FakeScorer.score

    async def cut(self: FakeScorer, *arguments: Any) -> Any:
        if len(self.requests) == 2:
            raise KeyboardInterrupt
        return await score(self, *arguments)

    monkeypatch.setattr(FakeScorer, "score", cut)
    assert main([*arguments, *whole]) == 130
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(FakeScorer, "score", score)
    assert main([*arguments, *whole]) == 0
    pairs = [
        (scorer.name, request.query, document)
        for scorer in asked
        for request in scorer.requests
        for document in request.documents
    ]
    answered = set(pairs)
    assert len(pairs) - len(answered) <= 1  # only what was under way when it was cut
    before = len(asked)
    assert main([*arguments, *whole]) == 0
    assert len(asked) == before  # a run that is complete opens no model


def test_bands_are_written_as_the_client_reads_them(
    arguments: list[str], asked: list[FakeScorer], tmp_path: Path
) -> None:
    assert main([*arguments, "--time-queries", "0", "--output", str(tmp_path)]) == 0
    bands = ConfidenceBands.from_file(tmp_path / "confidence.json")
    calibration = read(tmp_path)["calibration"]
    assert bands.band("fake", calibration["high"]) == "high"
    assert bands.band("fake", calibration["medium"]) == "medium"
    assert bands.band("fake", calibration["medium"] - 1) == "low"
    recalls = [point["recall"] for point in calibration["thresholds"]]
    assert recalls == sorted(recalls, reverse=True)


def test_bands_go_into_a_file_of_ones_own_beside_those_of_other_models(
    arguments: list[str], asked: list[FakeScorer], tmp_path: Path
) -> None:
    file = tmp_path / "mine" / "bands.json"
    file.parent.mkdir()
    file.write_text('{"other": {"high": 2, "medium": 1}, "fake": {"high": 9e9, "medium": 8e9}}', encoding="utf-8")
    given = [*arguments, "--time-queries", "0", "--output", str(tmp_path), "--bands", str(file)]
    assert main(given) == 0
    calibration, bands = read(tmp_path)["calibration"], ConfidenceBands.from_file(file)
    assert bands.band("fake", calibration["high"]) == "high"
    assert bands.band("fake", calibration["medium"] - 1) == "low"
    assert bands.band("other", 1.5) == "medium"


def test_bands_that_cannot_be_calibrated_are_told(
    arguments: list[str],
    asked: list[FakeScorer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [*arguments, "--time-queries", "0", "--output", str(tmp_path / "out"), "--bands"]
    broken, missing = tmp_path / "broken.json", tmp_path / "bands.json"
    broken.write_text("{", encoding="utf-8")
    assert main([*given, str(broken)]) == 2
    assert "broken.json is not JSON" in capsys.readouterr().err
    assert main([*given, str(missing), "--no-sweep"]) == 2
    assert "give one of the two" in capsys.readouterr().err
    assert not asked  # all before anything was measured
    monkeypatch.setattr("triton_rerank_retrieval.eval.cli.calibrate", lambda *_: None)
    assert main([*given, str(missing)]) == 2
    assert "not written: no reranker scored, or its scores do not rise with relevance" in capsys.readouterr().err
    assert not missing.exists()
    assert (tmp_path / "out" / "report.md").exists()


def test_check_says_what_can_be_measured_and_measures_nothing(
    arguments: list[str], asked: list[FakeScorer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--check", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "toy: 3 systems can be measured\n"
    assert asked == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "absent"], "corpus.jsonl"),
        (["--measure", "accuracy"], "ir-measures"),
        (["--systems", "absent.toml"], "no TOML file"),
        (["--output", "/proc/reports"], "--output /proc/reports: cannot be written"),
        (["--baseline", "nobody"], "the systems are first, levels, whole"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_message(
    more: list[str], message: str, arguments: list[str], asked: list[FakeScorer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--time-queries", "0", *more]) == 2
    assert message in capsys.readouterr().err


ONE_RUN = "[[retriever]]\nname='d'\nkind='run'\n[[system]]\nname='s'\nretrievers=['d']\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{ONE_RUN}feedback=0.3", "system s: feedback needs a first stage of kind bm25"),
        (f"{ONE_RUN.replace('run', 'bm25')}feedback=1.5", "system s: documents is 10, words 20 and weight 1.5"),
        ("[[system]]\nname='s'\nretrievers=['nobody']", "no such first stage"),
        ("[[retriever]]\nname='s'\nkind='bm25'\nsize=3", "'size'"),
        ("[[retriver]]\nname='s'", "'retriver'"),
        ("[[retriever]]\nname='s'", "kind"),
        ("not toml", "no TOML file"),
        ("[[retriever]]\nname='s'\nkind='bm25'\n" * 2, "must differ"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_plan(tmp_path / "plan.toml")


def test_the_knee_is_the_smallest_k_that_keeps_99_percent_of_the_best() -> None:
    points = [KPoint(10, 0.40, None), KPoint(20, 0.499, None), KPoint(50, 0.50, None), KPoint(100, 0.49, None)]
    assert knee(points).k == 20


PLACES = np.linspace(0, 1, 11)[:, None]


def test_the_chosen_place_is_the_best_where_all_queries_agree_and_the_middle_where_nothing_differs() -> None:
    agreed = -np.abs(PLACES - 0.8) * np.ones((1, 30))
    assert bagged(agreed, PLACES) == pytest.approx([0.8])
    assert bagged(np.ones((11, 30)), PLACES) == pytest.approx([0.5])
    assert bagged(np.ones((11, 1)), np.c_[PLACES, np.full(11, np.nan)])[0] == pytest.approx(0.5)


def test_on_few_noisy_queries_the_chosen_place_is_nearer_to_the_true_best_than_the_best_of_the_grid() -> None:
    rng, true = np.random.default_rng(0), 0.6
    chosen, grid_best = [], []
    for _ in range(100):
        likes = rng.normal(true, 0.4, size=(1, 30))  # each query has its own best place
        values = -((PLACES - likes) ** 2) + rng.normal(0, 0.2, size=(11, 30))
        chosen.append(float(bagged(values, PLACES)[0]))
        grid_best.append(float(PLACES[values.mean(axis=1).argmax(), 0]))
    off, off_grid = (float(np.mean((np.array(places) - true) ** 2)) for places in (chosen, grid_best))
    assert off < 0.75 * off_grid
    assert np.mean(chosen) == pytest.approx(true, abs=0.03)


def test_depth_and_lambda_stay_unless_another_gains_more_than_one_standard_error() -> None:
    base = np.zeros(20)
    noise = np.tile([0.5, -0.48], 10)  # better by 0.01 on average, with an error of 0.11
    assert clearly_better(np.array([base, base + noise])) == 0
    assert clearly_better(np.array([base, base + noise, base + 0.02])) == 2
    assert clearly_better(np.array([base[:1], base[:1] + 0.3])) == 0  # one query says nothing


def test_the_front_holds_what_no_other_system_beats() -> None:
    systems = {"slow": (3.0, 0.5), "fast": (1.0, 0.4), "worse": (2.0, 0.3), "best": (4.0, 0.6)}
    assert front(systems) == ["fast", "slow", "best"]


def test_a_language_model_is_measured_too(tmp_path: Path) -> None:
    def likes_files(body: dict[str, Any]) -> str:
        return json.dumps({"score": 9 if "file" in asked_of(body)["document"] else 1, "reason": ""})

    with ChatEndpoint(likes_files) as server:
        plan = PLAN.split('[[retriever]]\nname = "theirs"')[0] + (
            f'[[reranker]]\nname = "model"\nkind = "llm"\nmodel = "m"\nbase_url = "{server.url}"\n'
            '[[system]]\nname = "asked"\nretrievers = ["words"]\nreranker = "model"\n'
        )
        (tmp_path / "plan.toml").write_text(plan)
        paths = {"--data": write_collection(tmp_path / "toy"), "--systems": tmp_path / "plan.toml"}
        paths |= {"--work": tmp_path / "work", "--output": tmp_path / "out"}
        arguments = [str(part) for pair in paths.items() for part in pair]
        assert main([*arguments, "--time-queries", "1"]) == 0
    assert read(tmp_path / "out")["systems"]["asked"]["seconds"] > 0
    assert {body["model"] for body in server.received} == {"m"}
