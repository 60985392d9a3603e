"""Checkpoints from a hub: a real HTTP server on loopback, and the real huggingface_hub in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.hub import RESOLVE, Fault, Hub, Machine, serve_hub
from support.tiny_families import SAVED, write_tiny
from support.tiny_models import resize_positions, write_settings

from triton_rerank_export.checkpoint.catalogue import CATALOGUE, find
from triton_rerank_export.checkpoint.families import BY_CLASS
from triton_rerank_export.checkpoint.licence import is_restricted
from triton_rerank_export.repository.check import check_repository

HUB_ID = "acme/Tiny-Reranker"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = f"{HUB_ID}@{COMMIT}"


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """What the hub has; a test may change it."""
    return Path(shutil.copytree(checkpoints["tiny-bert"], tmp_path / "on-the-hub"))


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with serve_hub(folder, hub_id=HUB_ID, commit=COMMIT) as running:
        yield running


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine.with_cache(tmp_path / "hf-home", hub)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_id_without_a_revision_is_the_current_commit(hub: Hub, machine: Machine, folder: Path) -> None:
    found = machine.resolve(HUB_ID)
    assert (found["name"], found["source"], found["revision"]) == ("tiny-reranker", HUB_ID, COMMIT)
    assert found["steps"] == [f"downloading {HUB_ID} at {COMMIT}"]
    weights = Path(found["folder"]) / "model.safetensors"
    assert weights.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert weights.is_relative_to(machine.cache)


def test_only_the_files_that_are_needed_are_fetched_and_the_weights_come_last(
    hub: Hub, machine: Machine, folder: Path
) -> None:
    for name in ("onnx/model.onnx", "openvino/openvino_model.bin", "pytorch_model.bin", "tf_model.h5",
                 "flax_model.msgpack", "model.fp16.safetensors", "vocab.txt"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    machine.resolve(PINNED)
    fetched = hub.fetched()
    assert sorted(fetched[:-1]) == ["config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert fetched[-1] == "model.safetensors"


def test_weights_in_parts_are_fetched_in_full(hub: Hub, machine: Machine, folder: Path) -> None:
    write_in_parts(folder)
    found = machine.resolve(PINNED)
    assert len(list(Path(found["folder"]).glob("model-*.safetensors"))) > 1
    hub.fault = "down"
    assert machine.resolve(PINNED)["folder"] == found["folder"]


def write_in_parts(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")


def test_a_pinned_commit_in_the_cache_is_taken_without_the_network(hub: Hub, machine: Machine) -> None:
    first = machine.resolve(PINNED)
    hub.requests.clear()
    again = machine.resolve(PINNED)
    assert (hub.requests, again["folder"], again["steps"]) == ([], first["folder"], [])


def test_an_id_without_a_revision_follows_the_hub(hub: Hub, machine: Machine) -> None:
    machine.resolve(HUB_ID)
    hub.commit = COMMIT[::-1]
    assert machine.resolve(HUB_ID)["revision"] == COMMIT[::-1]


def test_offline_the_cache_is_enough(hub: Hub, machine: Machine) -> None:
    machine.resolve(HUB_ID)
    hub.requests.clear()
    machine.environment["HF_HUB_OFFLINE"] = "1"
    assert machine.resolve(HUB_ID)["revision"] == COMMIT
    assert machine.resolve(PINNED)["revision"] == COMMIT
    assert hub.requests == []


def test_offline_without_a_copy_says_what_is_missing(hub: Hub, machine: Machine) -> None:
    offline = Machine(machine.environment | {"HF_HUB_OFFLINE": "1"})
    assert f"{PINNED}: HF_HUB_OFFLINE is set, and {machine.cache} has no copy; unset it, or" in offline.refusal(PINNED)
    found = machine.resolve(PINNED)
    (Path(found["folder"]) / "tokenizer.json").unlink()
    assert "lacks its tokenizer.json" in offline.refusal(PINNED)
    (Path(found["folder"]) / "model.safetensors").unlink()
    assert "no model.safetensors, and no other weights" in offline.refusal(PINNED)
    assert {
        path for _, path, _ in hub.requests if "/api/" not in path
    }  # the copy came from the hub, not from a fixture


def test_what_a_copy_lacks_is_fetched(hub: Hub, machine: Machine) -> None:
    folder = Path(machine.resolve(PINNED)["folder"])
    for name in ("tokenizer_config.json", "model.safetensors"):
        (folder / name).resolve().unlink()
        hub.requests.clear()
        machine.resolve(PINNED)
        assert hub.fetched() == [name]


def test_what_sentence_transformers_saved_is_fetched_and_read(hub: Hub, machine: Machine, folder: Path) -> None:
    write_settings(folder, prompts={"query": "find: "}, default_prompt_name="query")
    found = machine.resolve(PINNED)
    assert (found["activation"], found["query_prompt"]) == ("identity", "find: ")
    assert {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"} < set(hub.fetched())
    hub.requests.clear()
    assert machine.resolve(PINNED)["query_prompt"] == "find: "
    assert hub.requests == []


def test_a_copy_that_does_not_know_of_those_files_is_completed(hub: Hub, machine: Machine, folder: Path) -> None:
    """As a release of ours left it that did not ask for them, or transformers itself."""
    copy = Path(machine.resolve(PINNED)["folder"])
    write_settings(folder)
    shutil.rmtree(copy.parents[1] / ".no_exist")
    offline = Machine(machine.environment | {"HF_HUB_OFFLINE": "1"})
    message = offline.refusal(PINNED)
    assert "does not say whether it has modules.json, config_sentence_transformers.json, adapter_config.json" in message
    assert machine.resolve(PINNED)["activation"] == "identity"
    assert offline.resolve(PINNED)["activation"] == "identity"


def test_offline_a_copy_of_the_whole_repository_says_that_there_are_none(
    hub: Hub, machine: Machine, folder: Path
) -> None:
    copy = Path(machine.resolve(PINNED)["folder"])
    shutil.rmtree(copy.parents[1] / ".no_exist")
    (copy / ".gitattributes").touch()
    assert Machine(machine.environment | {"HF_HUB_OFFLINE": "1"}).resolve(PINNED)["activation"] == "sigmoid"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "config.json",
            {"auto_map": {"AutoModel": "modeling_mine.Model"}},
            "auto_map in config.json names code of its",
        ),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side in tokenizer_config.json is 'left'"),
        ("adapter_config.json", {}, "adapter_config.json is there, so the weights are an adapter"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_weights_are_fetched(
    hub: Hub, machine: Machine, folder: Path, name: str, content: dict[str, Any], expected: str
) -> None:
    path = folder / name
    if not path.is_file():
        path.write_text("{}")
    edit_json(path, **content)
    assert f"{HUB_ID}: {expected}" in machine.refusal(HUB_ID)
    assert "model.safetensors" not in hub.fetched()


def test_the_token_is_sent_and_a_wrong_one_is_named(hub: Hub, machine: Machine) -> None:
    hub.token = "hf_right"
    machine.environment["HF_TOKEN"] = "hf_wrong"
    message = machine.refusal(PINNED)
    assert f"{hub.endpoint} refuses the token (401); set HF_TOKEN to a valid one" in message
    assert "hf_wrong" not in message
    machine.environment["HF_TOKEN"] = "hf_right"
    assert machine.resolve(PINNED)["revision"] == COMMIT


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("gated", "it is gated; accept its terms at {hub}/acme/Tiny-Reranker, then set HF_TOKEN"),
        ("refused", "{hub} refuses the token (403); set HF_TOKEN to a valid one"),
        ("down", "{hub} answered 503; run it again later"),
        ("silent", "{hub} cannot be reached (timed out); run it again"),
        ("closes early", "{hub} closed the connection in the middle of a file; run it again, it goes on where"),
        ("wrong length", "the download from {hub} failed (Consistency check failed: file should be of size"),
    ],
)
def test_a_hub_that_fails_gives_one_clear_message_soon(hub: Hub, machine: Machine, fault: Fault, expected: str) -> None:
    hub.fault = fault
    started = time.monotonic()
    assert f"{PINNED}: {expected.format(hub=hub.endpoint)}" in machine.refusal(PINNED)
    assert time.monotonic() - started < 15.0
    hub.fault = None
    assert machine.resolve(PINNED)["revision"] == COMMIT


def test_a_branch_that_moves_meanwhile_is_not_mixed(hub: Hub, machine: Machine) -> None:
    hub.fault = "moves"
    assert f"{HUB_ID}: it moved to another commit meanwhile; run it again" in machine.refusal(HUB_ID)


def test_an_unreachable_hub_is_given_up_soon(hub: Hub, machine: Machine) -> None:
    with socket.socket() as bound_but_deaf:
        bound_but_deaf.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound_but_deaf.getsockname()[1]}"
        started = time.monotonic()
        message = Machine(machine.environment | {"HF_ENDPOINT": endpoint}).refusal(PINNED)
        assert time.monotonic() - started < 15.0
    assert f"{PINNED}: {endpoint} cannot be reached ([Errno 111] Connection refused); run it again" in message


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, machine: Machine, folder: Path) -> None:
    """huggingface_hub writes pieces of 10 MiB, so the file has to be larger than that."""
    path = folder / "model.safetensors"
    save_file({**load_file(path), "unused": np.arange(6 << 20, dtype=np.float32)}, path)
    hub.fault = "closes early"
    machine.refusal(PINNED)
    hub.fault = None
    hub.requests.clear()
    found = machine.resolve(PINNED)
    ranges = [headers.get("Range") for _, path, headers in hub.requests if path.startswith("/store/")]
    assert ranges == [f"bytes={10 << 20}-"]
    assert (Path(found["folder"]) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("acme/other", "has no such model, or it is private, and there is no such folder here; check the spelling"),
        (f"{HUB_ID}@v9", f"{HUB_ID}@v9: it has no such revision; "),
        (f"{HUB_ID}@{'f' * 40}", "it has no such revision; "),
        ("acme/two--dashes", "Cannot have -- or .. in repo_id"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub: Hub, machine: Machine, model: str, expected: str) -> None:
    assert expected in machine.refusal(model)


def test_a_repository_that_is_no_checkpoint_is_refused(hub: Hub, machine: Machine, folder: Path) -> None:
    (folder / "config.json").unlink()
    assert f"{HUB_ID}: it has no config.json; it is not a checkpoint of transformers" in machine.refusal(HUB_ID)
    (folder / "adapter_config.json").write_text("{}")
    assert f"{HUB_ID}: adapter_config.json is there, so the weights are an adapter; merge" in machine.refusal(HUB_ID)


def test_a_model_of_another_kind_is_refused_before_its_weights_are_fetched(
    hub: Hub, machine: Machine, folder: Path
) -> None:
    edit_json(folder / "config.json", architectures=["Qwen3ForCausalLM"])
    assert f"{HUB_ID}: its architecture is Qwen3ForCausalLM, a causal LM; supported are" in machine.refusal(HUB_ID)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    edit_json(folder / "config.json", architectures=["BertForSequenceClassification"])
    hub.commit = COMMIT[::-1]
    assert f"{HUB_ID}: no tokenizer.json; save the model to a folder" in machine.refusal(HUB_ID)
    assert "model.safetensors" not in hub.fetched()


def test_a_pickle_is_refused_unless_it_is_asked_for(hub: Hub, machine: Machine, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = machine.refusal(PINNED)
    assert "its weights are pytorch_model.bin, a pickle, which can run code when it is read" in message
    assert "pass --allow-pickle if you trust its authors" in message
    assert "pytorch_model.bin" not in hub.fetched()
    found = machine.resolve(PINNED, allow_pickle=True)
    assert found["allow_pickle"]
    assert (Path(found["folder"]) / "pytorch_model.bin").is_file()


def test_a_truncated_file_on_the_hub_is_found(hub: Hub, machine: Machine, folder: Path) -> None:
    """The hub itself has half of it: lengths agree all the way, only the file's own header tells."""
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    message = machine.refusal(PINNED)
    assert f"{PINNED}: model.safetensors is not whole" in message
    assert f"delete {machine.cache}/models--acme--Tiny-Reranker/blobs/" in message


def test_a_full_disk_is_said(hub: Hub, machine: Machine, folder: Path) -> None:
    """The download's temporary file is a link to /dev/full, where the kernel answers every write with ENOSPC."""
    first = machine.resolve(PINNED)
    blob = (Path(first["folder"]) / "model.safetensors").resolve()
    blob.unlink()
    Path(f"{blob}.incomplete").symlink_to("/dev/full")
    message = machine.refusal(PINNED)
    assert f"no room for it in {machine.cache}/models--acme--Tiny-Reranker (No space left on device)" in message
    assert "set HF_HOME to a folder on another disk" in message


def fetched_otherwise() -> list[str]:
    """A model of each kind that is fetched in another way."""
    entries = [entry for entry in CATALOGUE.values() if entry.build is None and not entry.label]
    kinds = {(entry.architecture, entry.activation, entry.max_length > 1024): entry.name for entry in entries}
    return sorted(kinds.values())


@pytest.mark.parametrize("name", fetched_otherwise())
def test_each_kind_of_the_catalogue_is_fetched_at_its_revision(
    hub: Hub, machine: Machine, folder: Path, name: str
) -> None:
    entry = find(name)
    assert entry is not None
    catalogued = folder.with_name("catalogued")
    hub.folder = SAVED[name](catalogued) if name in SAVED else write_tiny(entry.architecture, catalogued)
    hub.hub_id, hub.commit = entry.source, entry.revision
    fields = (
        {}
        if entry.activation == "sigmoid"
        else {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    )
    after_padding = BY_CLASS[entry.architecture].positions_after_padding
    positions = entry.max_length + 2 if after_padding else entry.max_length
    edit_json(resize_positions(hub.folder, positions) / "config.json", **fields)
    edit_json(hub.folder / "tokenizer_config.json", model_max_length=entry.max_length)
    model = entry.older_ids[0] if entry.older_ids else entry.source.upper()
    if is_restricted(entry.licence):
        assert f"its licence is {entry.licence}, which restricts" in machine.refusal(model)
        assert not hub.requests
    found = machine.resolve(model, accept_licence=entry.licence)
    assert (found["name"], found["source"], found["revision"]) == (name, entry.source, entry.revision)
    assert (found["licence"], found["activation"]) == (entry.licence, entry.activation)
    assert found["max_length"] == min(entry.max_length, 1024)


def test_a_licence_that_restricts_use_is_refused_before_the_weights_unless_it_is_accepted(
    hub: Hub, machine: Machine, folder: Path
) -> None:
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A reranker\n")
    message = machine.refusal(HUB_ID)
    assert message.startswith(
        f"{HUB_ID}: its licence is cc-by-nc-4.0, which restricts what the weights may be used for"
    )
    assert "pass --accept-licence cc-by-nc-4.0 if you keep to it" in message
    assert "model.safetensors" not in hub.fetched()
    assert machine.resolve(HUB_ID, accept_licence="CC-BY-NC-4.0")["licence"] == "cc-by-nc-4.0"
    assert "its licence is cc-by-nc-4.0" in machine.refusal(PINNED)  # though the weights are in the cache now


def test_a_revision_that_is_not_what_the_catalogue_says_is_refused(hub: Hub, machine: Machine) -> None:
    entry = CATALOGUE["ms-marco-minilm-l6-v2"]
    hub.hub_id, hub.commit = entry.source, entry.revision
    message = machine.refusal(entry.name)
    assert f"{entry.name}: {entry.source}@{entry.revision} is not what the catalogue says: " in message
    assert "activation is sigmoid, not identity; max_length is 128, not 512; correct the catalogue" in message
    assert "model.safetensors" not in hub.fetched()
    assert machine.resolve(f"{entry.source}@main")["max_length"] == 128  # another revision may differ


def test_a_download_shows_its_progress_where_somebody_looks(hub: Hub, machine: Machine) -> None:
    terminal, stderr = pty.openpty()
    command = [sys.executable, "-c", RESOLVE, PINNED, "{}"]
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # rows, columns
    subprocess.run(command, env=machine.environment, stdout=subprocess.DEVNULL, stderr=stderr, timeout=120, check=True)
    os.close(stderr)
    assert "model.safetensors: 100%" in os.read(terminal, 1 << 16).decode()
    os.close(terminal)


def export(machine: Machine, repository: Path) -> subprocess.CompletedProcess[str]:
    arguments = ["--model", HUB_ID, "--precision", "fp32", "--model-repository", str(repository)]
    return machine.run("-m", "triton_rerank_export.cli", "export", *arguments)


def test_a_model_from_the_hub_is_exported(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    done = export(machine, tmp_path / "model_repository")
    assert done.returncode == 0, done.stderr
    assert check_repository(tmp_path / "model_repository") == ["tiny-reranker"]
    assert "%|" not in done.stderr  # no progress bar where nobody looks


def test_a_download_that_breaks_off_leaves_nothing_behind(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    hub.fault = "closes early"
    before = {path.name for path in tmp_path.iterdir()}
    done = export(machine, tmp_path / "model_repository")
    assert done.returncode == 1
    assert "closed the connection in the middle of a file" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} - before == {"hf-home"}
