"""`triton-rerank-bulk` over a real Triton: killed, refused, given bad input; nothing is lost, nothing is doubled."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc as triton
from support.bulk import audited, has_parts, last_line, parts, rows, run, run_apart, running, write_collection
from support.mounts import own_mounts
from support.tritons import NAME, again, kill, only_bert, start, wait_until

from triton_rerank import InvalidRequestError, RerankClient
from triton_rerank.contract import MANIFEST_FILE, MAX_TEXT_BYTES
from triton_rerank_export.cli import main
from triton_rerank_server import TritonServer

N_PAIRS = 24 * 40


@pytest.fixture(scope="module")
def repository(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_bert(tiny_repository, tmp_path_factory.mktemp("bulk") / "model_repository")


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[TritonServer]:
    with start(repository) as running:
        yield running


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collection") / "toy")


@pytest.fixture(scope="module")
def scored(served: TritonServer, collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output that nothing disturbed. Tests that change it copy it first."""
    output = tmp_path_factory.mktemp("scored") / "output"
    done = run(collection, output, "--target", served.grpc_target, "--to", "trec")
    assert done.returncode == 0, done.stderr
    return output


def freeze(server: TritonServer) -> None:
    os.killpg(server.pid, signal.SIGSTOP)


def check_whole(output: Path, reference: Path) -> None:
    """Every pair once, with the scores of a run that nothing disturbed."""
    found, expected = rows(output), rows(reference)
    assert [row["pair"] for row in found] == list(range(N_PAIRS))
    assert [(row["query_id"], row["document_id"]) for row in found] == [
        (row["query_id"], row["document_id"]) for row in expected
    ]
    assert [row["logit"] for row in found] == pytest.approx([row["logit"] for row in expected], abs=1e-4)
    assert {row["model_version"] for row in found} == {"1"}


def test_rows_are_what_the_client_says(scored: Path, served: TritonServer, collection: Path) -> None:
    texts = {row["_id"]: row for row in map(json.loads, (collection / "corpus.jsonl").read_text().splitlines())}
    query = json.loads((collection / "queries.jsonl").read_text().splitlines()[7])
    mine = [row for row in rows(scored) if row["query_id"] == query["_id"]]
    documents = [f"{texts[row['document_id']]['title']} {texts[row['document_id']]['text']}".strip() for row in mine]
    with RerankClient(served.grpc_target, model=NAME) as client:
        result = client.rerank(query["text"], documents)
    expected = {one.index: one for one in result}
    assert len(mine) == 40
    for place, row in enumerate(mine):
        assert (row["model"], row["error"], row["truncated"]) == (NAME, None, False)
        assert row["logit"] == pytest.approx(expected[place].logit, abs=1e-4)
        assert row["score"] == pytest.approx(expected[place].score, abs=1e-4)
    written = [line.split() for line in (scored / "scores.trec").read_text().splitlines()]
    ours = [fields for fields in written if fields[0] == query["_id"]]
    assert [fields[3] for fields in ours] == [str(rank) for rank in range(1, 41)]
    assert [float(fields[4]) for fields in ours] == sorted((row["score"] for row in mine), reverse=True)
    assert len(written) == N_PAIRS


def test_a_finished_job_scores_nothing_and_writes_another_form(
    scored: Path, collection: Path, served: TritonServer, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(scored, tmp_path / "output"))
    before = {path.name: path.stat().st_mtime_ns for path in parts(output)}
    done = run(collection, output, "--target", served.grpc_target, "--to", "jsonl")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in parts(output)} == before
    assert [json.loads(line) for line in (output / "scores.jsonl").read_text().splitlines()] == rows(output)


def test_in_process_and_from_parquet_with_texts(
    scored: Path, collection: Path, repository: Path, tmp_path: Path
) -> None:
    """The same pairs, texts in the rows, out of order, no server at all."""
    texts = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in _json_lines(collection / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in _json_lines(collection / "queries.jsonl")}
    pairs = [
        {
            "query_id": row["query_id"],
            "document_id": row["document_id"],
            "query": queries[row["query_id"]],
            "document": texts[row["document_id"]],
        }
        for row in rows(scored)
    ]
    pairs = pairs[::2] + pairs[1::2]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
    done = run(tmp_path / "pairs.parquet", tmp_path / "output", "--local", str(repository))
    assert done.returncode == 0, done.stderr
    assert audited(done)["clean"]
    expected = {(row["query_id"], row["document_id"]): row["logit"] for row in rows(scored)}
    found = {(row["query_id"], row["document_id"]): row["logit"] for row in rows(tmp_path / "output")}
    assert found == pytest.approx(expected, abs=1e-4)


def _json_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_kill_9_of_the_job(scored: Path, collection: Path, served: TritonServer, tmp_path: Path) -> None:
    arguments = ("--target", served.grpc_target, "--concurrency", "1", "--workers", "1")
    with running(collection, tmp_path / "output", *arguments) as process:
        assert wait_until(has_parts(tmp_path / "output", 2), 60)
        process.kill()
    left = len(parts(tmp_path / "output"))
    assert left < N_PAIRS // 60, "it must be killed before its end"
    (tmp_path / "output" / ".part-00000015.parquet-1-1").write_bytes(b"half a file")  # as a crash while writing leaves
    done = run(collection, tmp_path / "output", *arguments)
    assert done.returncode == 0, done.stderr
    assert "goes on: " in done.stderr
    assert audited(done)["clean"]
    assert not list((tmp_path / "output").glob(".part-*"))
    check_whole(tmp_path / "output", scored)


def test_kill_9_of_the_only_server(scored: Path, collection: Path, repository: Path, tmp_path: Path) -> None:
    """The job waits until the server is back, and goes on; not one pair gets an error."""
    server = start(repository)
    with server, running(collection, tmp_path / "output", "--target", server.grpc_target, "--concurrency", "1") as job:
        assert wait_until(has_parts(tmp_path / "output", 2), 60)
        kill(server)
        assert len(parts(tmp_path / "output")) < N_PAIRS // 60
        with again(server):
            _, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    check_whole(tmp_path / "output", scored)
    assert not any(row["error"] for row in rows(tmp_path / "output"))


def test_a_server_that_refuses_slows_the_job_down(
    scored: Path, collection: Path, repository: Path, tmp_path: Path
) -> None:
    """Sixteen calls at a time, of which a server refuses those that wait: they come again, and none is lost.

    Where the encoder is so quick that none waits 2 ms, a shorter wait is refused.
    """
    narrow = only_bert(repository, tmp_path / "narrow")
    (narrow / NAME / "1" / MANIFEST_FILE).unlink()  # its canary would be refused as well
    (config,) = narrow.glob("*-encoder/config.pbtxt")
    patient = "default_timeout_microseconds: 10000000"
    text = config.read_text(encoding="utf-8")
    assert patient in text
    refused = 0
    for most_us in (2_000, 700, 250):
        config.write_text(text.replace(patient, f"default_timeout_microseconds: {most_us}"), encoding="utf-8")
        output = tmp_path / str(most_us)
        with start(narrow) as server:
            done = run(collection, output, "--target", server.grpc_target, "--concurrency", "16")
            refused = failed(server.grpc_target, NAME)
        assert done.returncode == 0, done.stderr
        check_whole(output, scored)
        if refused:
            break
    assert refused, "none was refused"


def failed(target: str, model: str) -> int:
    """Requests that a server refused, in whichever step."""
    with triton.InferenceServerClient(target) as client:
        found = client.get_inference_statistics(model, client_timeout=10.0).model_stats
    return sum(int(version.inference_stats.fail.count) for version in found)


@pytest.mark.parametrize("harm", [kill, freeze], ids=["kill -9", "frozen"])
def test_a_server_that_stays_away_ends_the_job_and_costs_nothing(
    harm: Callable[[TritonServer], None], scored: Path, collection: Path, repository: Path, tmp_path: Path
) -> None:
    arguments = ("--patience-s", "1", "--timeout-s", "3", "--concurrency", "1")
    server = start(repository)
    try:
        server.start()
        with running(collection, tmp_path / "output", "--target", server.grpc_target, *arguments) as job:
            assert wait_until(has_parts(tmp_path / "output", 2), 60)
            harm(server)
            _, said = job.communicate(timeout=120)
    finally:
        server.stop(kill=True)
    assert job.returncode in (4, 5), said
    assert "pairs are kept, and the same command goes on from there" in said.splitlines()[-1]
    assert not any(row["error"] for row in rows(tmp_path / "output"))
    with start(repository) as other:
        done = run(collection, tmp_path / "output", "--target", other.grpc_target)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path / "output", scored)


def test_another_version_in_mid_run(collection: Path, two_versions: Path, tmp_path: Path) -> None:
    """Two servers of one list serve two versions, as in a rollout: no row is of the second."""
    first, second = (only_bert(two_versions, tmp_path / name) for name in ("first", "second"))
    assert main(["activate", "--model", NAME, "--model-repository", str(first), "--version", "1"]) == 0
    with start(first) as old, start(second) as new:
        with running(collection, tmp_path / "output", "--target", old.grpc_target, "--concurrency", "1") as job:
            assert wait_until(has_parts(tmp_path / "output", 2), 60)
            job.kill()
        arguments = ("--target", f"{old.grpc_target},{new.grpc_target}")
        done = run(collection, tmp_path / "output", *arguments)
        assert done.returncode == 3
        assert "version" in last_line(done)
        assert {row["model_version"] for row in rows(tmp_path / "output")} == {"1"}
        done = run(collection, tmp_path / "output", "--target", new.grpc_target)
        assert done.returncode == 3
        assert "is of another job: its model_version is 1, and 2 here" in last_line(done)
        done = run(collection, tmp_path / "output", "--target", old.grpc_target)
    assert done.returncode == 0, done.stderr
    assert audited(done)["versions"] == ["1"]


def test_pairs_that_always_fail_get_rows_with_their_error(served: TritonServer, tmp_path: Path) -> None:
    source = write_collection(tmp_path / "toy", queries=4, blank_query=True)
    arguments = ("--target", served.grpc_target)
    done = run(source, tmp_path / "output", *arguments, "--to", "trec")
    assert done.returncode == 0, done.stderr
    failed = [row for row in rows(tmp_path / "output") if row["error"]]
    assert {row["query_id"] for row in failed} == {"q3"}
    assert len(failed) == 40 == audited(done)["errors"]
    assert all(row["score"] is None and "query" in row["error"] for row in failed)
    assert "q3" not in {line.split()[0] for line in (tmp_path / "output" / "scores.trec").read_text().splitlines()}
    done = run(source, tmp_path / "strict", *arguments, "--max-errors", "39", "--block-pairs", "160")
    assert done.returncode == 1
    assert "40 pairs have an error, and --max-errors is 39: InvalidRequestError" in last_line(done)


def test_a_document_that_cannot_be_sent_is_found_among_others(served: TritonServer, tmp_path: Path) -> None:
    """One of 41 is too large: the other forty of its call are scored."""
    source = write_collection(tmp_path / "toy", queries=2)
    with (source / "corpus.jsonl").open("a", encoding="utf-8") as corpus, (source / "run.trec").open("a") as pairs:
        corpus.write(json.dumps({"_id": "huge", "text": "x" * (MAX_TEXT_BYTES + 1)}) + "\n")
        pairs.write("q1 Q0 huge 41 -41 bm25\n")
    done = run(source, tmp_path / "output", "--target", served.grpc_target)
    assert done.returncode == 0, done.stderr
    (failed,) = [row for row in rows(tmp_path / "output") if row["error"]]
    assert (failed["query_id"], failed["document_id"], failed["score"]) == ("q1", "huge", None)
    assert failed["error"].startswith("RequestTooLargeError: ")
    assert audited(done)["pairs"] == 81


def test_two_jobs_on_one_output(collection: Path, served: TritonServer, tmp_path: Path) -> None:
    with running(collection, tmp_path / "output", "--target", served.grpc_target, "--concurrency", "1") as job:
        assert wait_until(has_parts(tmp_path / "output", 1), 60)
        done = run(collection, tmp_path / "output", "--target", served.grpc_target)
        assert done.returncode == 3
        assert f"another triton-rerank-bulk writes there (process {job.pid} on " in last_line(done)
        _, said = job.communicate(timeout=120)
        assert job.returncode == 0, said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("another input", "its input_sha256 is"),
        ("--max-length 16", "its max_length is None, and 16 here"),
        ("--block-pairs 61", "its block_pairs is 60, and 61 here"),
    ],
)
def test_an_output_of_another_job(
    change: str, named: str, scored: Path, collection: Path, served: TritonServer, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(scored, tmp_path / "output"))
    other = write_collection(tmp_path / "other", documents=39) if change == "another input" else collection
    arguments = change.split() if change.startswith("--") else []
    before = rows(output)
    done = run(other, output, "--target", served.grpc_target, *arguments)
    assert done.returncode == 3
    assert named in last_line(done)
    assert rows(output) == before


def test_an_instruction_for_a_model_without_a_prompt(collection: Path, served: TritonServer, tmp_path: Path) -> None:
    done = run(collection, tmp_path / "output", "--target", served.grpc_target, "--instruction", "find a tool")
    assert done.returncode == InvalidRequestError.exit_code
    assert "instruction: this model has no prompt" in last_line(done)
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_output_folder_of_somebody_elses(collection: Path, served: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    done = run(collection, tmp_path, "--target", served.grpc_target)
    assert done.returncode == 3
    assert "holds thesis.tex, which is not ours" in last_line(done)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def _repeat(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines, lines[3]]), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        ("run.trec", "1 pairs stand twice, such as q0 d3"),
        ("corpus.jsonl", "line 41: the id 'd3' stands twice"),
        ("queries.jsonl", "line 25: the id 'q3' stands twice"),
    ],
)
def test_ids_that_repeat(spoiled: str, said: str, served: TritonServer, tmp_path: Path) -> None:
    source = write_collection(tmp_path / "toy")
    _repeat(source / spoiled)
    done = run(source, tmp_path / "output", "--target", served.grpc_target)
    assert done.returncode == 2
    assert said in last_line(done)
    assert not parts(tmp_path / "output")
    shutil.rmtree(source)
    done = run(write_collection(source), tmp_path / "output", "--target", served.grpc_target)  # mended, it goes on
    assert done.returncode == 0, done.stderr


def test_a_corpus_without_a_document_of_the_run(served: TritonServer, tmp_path: Path) -> None:
    source = write_collection(tmp_path / "toy")
    corpus = (source / "corpus.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (source / "corpus.jsonl").write_text("".join(corpus[:-2]), encoding="utf-8")
    done = run(source, tmp_path / "output", "--target", served.grpc_target)
    assert done.returncode == 2
    assert "names 2 document ids that the collection does not have, such as 'd38', 'd39'" in last_line(done)


def test_a_cut_parquet_file(served: TritonServer, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"query_id": ["q"], "document_id": ["d"], "query": ["a"], "document": ["b"]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    done = run(path, tmp_path / "output", "--target", served.grpc_target)
    assert done.returncode == 2
    assert "pairs.parquet: cannot be read, or is cut" in last_line(done)


def test_a_block_that_is_cut_is_scored_again(
    scored: Path, collection: Path, served: TritonServer, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(scored, tmp_path / "output"))
    parts(output)[3].write_bytes(parts(output)[3].read_bytes()[:-100])
    done = run(collection, output, "--target", served.grpc_target)
    assert done.returncode == 0, done.stderr
    assert "part-00000003.parquet: is broken" in done.stderr
    check_whole(output, scored)


@pytest.mark.parametrize("harm", ["doubled", "foreign", "lost", "version"])
def test_the_audit_finds_what_others_did_to_the_output(
    harm: str, scored: Path, collection: Path, served: TritonServer, tmp_path: Path
) -> None:
    """Rows that footers do not tell of."""
    output = Path(shutil.copytree(scored, tmp_path / "output"))
    path = parts(output)[2]
    found = pq.read_table(path).to_pylist()
    if harm == "doubled":
        path = output / "copy.parquet"
    elif harm == "foreign":
        found[5]["document_id"] = "d999"
    elif harm == "lost":
        found[5] = found[6]
    else:
        found[5]["model_version"] = "7"
    pq.write_table(pa.Table.from_pylist(found, schema=pq.read_schema(parts(output)[2])), path)
    done = run(collection, output, "--target", served.grpc_target)
    expected: dict[str, dict[str, object]] = {
        "doubled": {"doubled": 60},
        "foreign": {"foreign": 1, "lost": 1},
        "lost": {"lost": 1, "doubled": 1},
        "version": {"versions": ["1", "7"]},
    }
    assert done.returncode == 1
    clean = {"pairs": N_PAIRS, "lost": 0, "doubled": 0, "foreign": 0, "broken": 0, "errors": 0, "versions": ["1"]}
    assert audited(done) == {**clean, **expected[harm], "clean": False}


def test_a_full_disk(scored: Path, collection: Path, served: TritonServer, tmp_path: Path) -> None:
    """A file system of its own that is full after some blocks; with room, the same command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    kept = tmp_path / "kept"
    before = own_mounts(f"mount -t tmpfs -o size=72k none {disk}")
    line = [*before, "sh", "-c", f'"$@"; code=$?; cp -r {disk}/output {kept}; exit $code', "sh"]
    done = run_apart(collection, disk / "output", "--target", served.grpc_target, before=line)
    assert done.returncode == 1, done.stderr
    assert "cannot be written (No space left on device)" in last_line(done)
    assert 0 < len(parts(kept)) < N_PAIRS // 60
    done = run(collection, kept, "--target", served.grpc_target)
    assert done.returncode == 0, done.stderr
    check_whole(kept, scored)


def test_no_server_at_all(collection: Path, tmp_path: Path) -> None:
    done = run(collection, tmp_path / "output", "--target", "127.0.0.1:9", "--patience-s", "0")
    assert done.returncode == 4
    assert "ServerUnavailableError" in last_line(done)
