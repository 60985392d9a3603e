"""Session-wide: checkpoints, an exported repository, and one real Triton that serves it.

What takes seconds to import (torch, transformers, export) is imported by the fixtures that need it: every process of a
run reads this file, and the tests of client and gateway need none of it.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before either framework is imported: tests call nobody
os.environ["LANGSMITH_TRACING"] = "false"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import pytest
from hypothesis import HealthCheck, settings
from support.load import BusyClock

from triton_rerank import RerankClient
from triton_rerank_server import TritonServer

if TYPE_CHECKING:
    from triton_rerank_export.repository.triton_config import Precision

ROOT = Path(__file__).parent.parent
DEMO = "minilm-l6-demo"
TINY = ("tiny-bert", "tiny-xlmr")
REPOSITORY = "model_repository"


LONG = (  # most of them minutes
    "test_finetune_example", "test_never_half", "test_families", "test_gateway_sdks", "test_notebook", "test_perf",
    "test_transformers5", "test_gpu", "test_bulk_ray", "test_source", "test_precisions", "test_outage", "test_rollout",
    "test_peers", "test_guide", "test_fuzz", "test_vocabulary", "test_local",
)  # fmt: skip


# Neither an example that takes 0.2 s nor examples that are slow to make break a bound of ours: the machine is busy.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's "&"; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first: one at the end keeps one worker, and the others have nothing left to do."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of a run of those marked ``alone`` the modules that have none: importing all of them takes 20 s."""
    if config.option.markexpr != "alone" or collection_path.suffix != ".py":
        return None
    return "mark.alone" not in collection_path.read_text(encoding="utf-8") or None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """No garbage is looked for among what modules import, which stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_is_not_searched_for_garbage() -> None:
    """With all that modules import a collection takes 0.6 s: an export has four, and a deadline may fall into one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny models: threads that wait for each other on busy cores take ten times as long. Code under test may ask."""
    if "torch" in sys.modules:
        _torch_on_one_thread()


def _torch_on_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """A command that is called in this process leaves its own behind, and what is started later inherits them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def busy() -> Iterator[BusyClock]:
    """What a busy machine adds to the time of a call."""
    with BusyClock() as clock:
        yield clock


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once(name, write)``: the folder of that name, written by the first worker that asks, read by all.

    TEST_EXPORTS is a folder that several runs share: of one state of the sources.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    shared = Path(os.environ.get("TEST_EXPORTS") or shared)

    def get(name: str, write: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                write(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def tiny_checkpoints(once: Once) -> dict[str, Path]:
    """PyTorch checkpoint folders of both tiny models by public model name."""

    def write(folder: Path) -> None:
        from support.tiny_models import write_tiny_bert, write_tiny_xlmr

        _torch_on_one_thread()
        write_tiny_bert(folder / "tiny-bert")
        write_tiny_xlmr(folder / "tiny-xlmr")

    folder = once("checkpoints", write)
    return {name: folder / name for name in TINY}


@pytest.fixture(scope="session")
def checkpoints(tiny_checkpoints: dict[str, Path], once: Once) -> dict[str, Path]:
    """The tiny models' and the demo model's."""

    def write(folder: Path) -> None:
        from triton_rerank_export.demo import demo_model

        demo_model.assemble(folder / DEMO)

    return {**tiny_checkpoints, DEMO: once("demo-checkpoint", write) / DEMO}


@pytest.fixture(scope="session")
def tiny_repository(tiny_checkpoints: dict[str, Path], once: Once) -> Path:
    """Both tiny models in fp32, with bounded queues. Tests that change it copy it first."""

    def write(folder: Path) -> None:
        for name in TINY:
            export(tiny_checkpoints[name], folder / REPOSITORY, "fp32")

    return once("tiny", write) / REPOSITORY


@pytest.fixture(scope="session")
def fine_tuned(tiny_checkpoints: dict[str, Path], once: Once) -> Path:
    """tiny-bert after another training step: its logits are 3 higher."""

    def write(folder: Path) -> None:
        from support.tiny_models import write_fine_tuned

        write_fine_tuned(tiny_checkpoints["tiny-bert"], folder / "tiny-bert")

    return once("fine-tuned", write) / "tiny-bert"


@pytest.fixture(scope="session")
def two_versions(tiny_repository: Path, fine_tuned: Path, once: Once) -> Path:
    """tiny-bert as version 1, and fine-tuned as version 2, which is active. Tests that change it copy it first."""

    def write(folder: Path) -> None:
        export(fine_tuned, Path(shutil.copytree(tiny_repository, folder / REPOSITORY)), "fp32")

    return once("versions", write) / REPOSITORY


@pytest.fixture(scope="session")
def model_repository(tiny_repository: Path, once: Once) -> Path:
    """The demo model in int8 beside both tiny models in fp32."""

    def write(folder: Path) -> None:
        export(DEMO, folder / REPOSITORY, "int8")
        for model in tiny_repository.iterdir():
            (folder / REPOSITORY / model.name).symlink_to(model)

    return once("full", write) / REPOSITORY


@pytest.fixture(scope="session")
def demo_fp32(once: Once) -> Path:
    """The demo model in fp32, whose scores are the same on every processor but for rounding."""
    return once("demo-fp32", lambda folder: export(DEMO, folder / REPOSITORY, "fp32")) / REPOSITORY


def export(model: str | Path, repository: Path, precision: Precision) -> None:
    """fp32 passes a short gate: tests of export compute the whole one, of both families and in each precision."""
    from support.tiny_models import BOUNDED

    from triton_rerank_export.gate import parity
    from triton_rerank_export.options import ExportOptions
    from triton_rerank_export.pipeline import export_model

    _torch_on_one_thread()
    gc.freeze()  # what was imported just now
    few = parity.load_parity_set()[:4]
    with pytest.MonkeyPatch.context() as patch:
        if precision == "fp32":
            patch.setattr(parity, "load_parity_set", lambda: few)
        export_model(str(model), repository, ExportOptions(precision=precision, **BOUNDED), on_step=lambda _: None)


@pytest.fixture(scope="session")
def server(model_repository: Path) -> Iterator[TritonServer]:
    """One real Triton for all tests that do not harm it."""
    from support.tritons import start

    with start(model_repository) as running:
        yield running


@pytest.fixture
def demo_client(server: TritonServer) -> Iterator[RerankClient]:
    with RerankClient(server.grpc_target, model=DEMO, timeout_s=60.0) as client:
        yield client


@pytest.fixture(scope="session")
def passages() -> list[str]:
    return (ROOT / "examples" / "passages.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def example_queries() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "examples" / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
