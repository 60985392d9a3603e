"""The served model that is measured: which one, its active version's files, and a real Triton with a real client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as triton

from triton_rerank import RerankClient, repository
from triton_rerank.contract import CONFIG_FILE, ENCODER_SUFFIX
from triton_rerank.repository import Artefacts
from triton_rerank.triton.proxies import own_arguments
from triton_rerank_bench.errors import BenchError
from triton_rerank_server import ServerConfig, TritonServer

CALL_TIMEOUT_S = 600.0  # 100 long pairs on a busy core take seconds, not minutes


@dataclass(frozen=True)
class ServedModel:
    """A running server and a client for one of its models.

    Attributes:
        client: connected.
        target: where it listens, ``host:port``.
        pid: process id of tritonserver; its children are the backends' stubs.
        triton_version: as the server says.
    """

    client: RerankClient
    target: str
    pid: int
    triton_version: str


@contextmanager
def serve(model_repository: Path, model: str, *, on_progress: Callable[[str], None]) -> Iterator[ServedModel]:
    """Start Triton on free ports and stop it afterwards; raises ServerStartError where it does not start.

    ``on_progress`` is called with a short text at each step of the start.
    """
    config = ServerConfig(model_repository=model_repository, grpc_port=0, http_port=0, metrics_port=0)
    with (
        TritonServer(config, on_progress=on_progress) as server,
        RerankClient(server.grpc_target, model=model, timeout_s=CALL_TIMEOUT_S) as client,
    ):
        yield ServedModel(client, server.grpc_target, server.pid, triton_version(server.grpc_target))


def triton_version(target: str) -> str:
    """Version that a running Triton states; raises BenchError where it does not answer."""
    with triton.InferenceServerClient(target, channel_args=own_arguments(target)) as client:
        try:
            return str(client.get_server_metadata(client_timeout=10.0).version)
        except triton.InferenceServerException as exc:
            raise BenchError(f"{target}: no Triton answers there ({exc.message()})") from exc


def name_repositories(values: Sequence[str]) -> dict[str, Path]:
    """Name, else the folder's -> folder of ``[NAME=]PATH``; raises BenchError for one that is not there, or twice."""
    folders: list[tuple[str, Path]] = []
    for value in values:
        name, separator, path = value.rpartition("=")
        if not Path(path).is_dir():
            raise BenchError(f"--model-repository {value}: looked for the folder {path}; `make export` builds one")
        folders.append((name if separator else Path(path).resolve().name, Path(path)))
    found = dict(folders)
    if len(found) < len(folders):
        names = ", ".join(name for name, _ in folders)
        raise BenchError(f"--model-repository: the names {names} must differ; give them as NAME=PATH")
    return found


def read_model(model_repository: Path, name: str | None = None) -> Artefacts:
    """Read the configs of a model, the only one without a name: of its active version, which would be served.

    Raises:
        ConfigurationError: no such model.
        BenchError: no such repository, more than one model to choose from, or a file is missing.
    """
    model = repository.read_artefacts(model_repository, name or _only_model(model_repository))
    for path in (model.tokenizer_file, model.encoder_file):
        if not path.is_file():
            raise BenchError(f"{path}: looked for this file, and it is not there; `make export` builds it")
    return model


def _only_model(model_repository: Path) -> str:
    built = repository.exported_models(model_repository)
    names = [name for name in built if repository.read_artefacts(model_repository, name).encoder_file.is_file()]
    if not names:
        raise BenchError(
            f"--model-repository {model_repository}: looked for a built model there (<model>/{CONFIG_FILE} and "
            f"<model>{ENCODER_SUFFIX}/<version>/model.onnx), and found none; `make export` builds one"
        )
    if len(names) > 1:
        raise BenchError(f"--model-repository {model_repository}: holds {', '.join(names)}; say which by --model")
    return names[0]
