"""Asks one Triton over its HTTP service: readiness, models, and one request. On this machine, never through a proxy."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

_ASK_TIMEOUT_S = 5.0


class ControlError(RuntimeError):
    """Triton did not answer, or refused.

    Attributes:
        status: of HTTP; None if no answer came.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Control:
    """One Triton's HTTP service; safe to share between threads.

    HTTP, because a connection is made anew for each question (gRPC waits longer and longer between its attempts), and
    because it is plain where gRPC wants certificates or headers.

    Args:
        address: ``host:port``, IPv6 in brackets.
        headers: of each question.
    """

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        self._base = f"http://{address}/v2/"
        self._headers = dict(headers or {})
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the environment says

    def is_ready(self) -> bool:
        """True if Triton says that every model is loaded and warmed up."""
        try:
            self._ask("health/ready")
        except ControlError:
            return False
        return True

    def is_model_ready(self, model: str) -> bool:
        """True if a model takes requests.

        Raises:
            ControlError: no answer.
        """
        try:
            self._ask(f"models/{model}/ready")
        except ControlError as exc:
            if exc.status is None:
                raise
            return False
        return True

    def ready_models(self) -> list[str]:
        """Names of the models that are served.

        Raises:
            ControlError: no answer.
        """
        return [model["name"] for model in self.index() if model.get("state") == "READY"]

    def index(self) -> list[dict[str, str]]:
        """What Triton knows of every folder: ``name``, ``state`` and ``reason``, as far as there are any.

        Raises:
            ControlError: no answer.
        """
        return list(self._ask("repository/index", {}))

    def is_ensemble(self, model: str) -> bool:
        """True if a model's requests go through other models.

        Raises:
            ControlError: no answer.
        """
        return "ensemble_scheduling" in self._ask(f"models/{model}/config")

    def unload(self, model: str) -> None:
        """Take a model from service, not its steps; returns at once, while its running requests go on.

        Raises:
            ControlError: no answer, or Triton does not run with explicit model control.
        """
        self._ask(f"repository/models/{model}/unload", {"parameters": {"unload_dependents": False}})

    def logits(self, model: str, query: str, documents: list[str], *, timeout_s: float) -> list[float]:
        """Score documents through the whole path.

        Raises:
            ControlError: no answer in time, or an error of Triton or of a backend.
        """
        texts = {"query": [query] * len(documents), "document": documents}
        inputs = [
            {"name": name, "shape": [len(data), 1], "datatype": "BYTES", "data": data} for name, data in texts.items()
        ]
        body = {"inputs": inputs, "outputs": [{"name": "logits"}]}
        (logits,) = self._ask(f"models/{model}/infer", body, timeout_s=timeout_s)["outputs"]
        return [float(value) for value in logits["data"]]

    def _ask(self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = _ASK_TIMEOUT_S) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data=data, headers=self._headers)  # noqa: S310 - its scheme is ours
        try:
            with self._opener.open(request, timeout=timeout_s) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except urllib.error.HTTPError as exc:
            raise ControlError(_reason(exc), status=exc.code) from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise ControlError(f"{self._base}{path}: {exc}") from exc


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read().decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:200] or str(error)
